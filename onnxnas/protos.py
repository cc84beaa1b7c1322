"""Walking and measuring raw ONNX protos, without copying the weights in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

MAX_PROTO_BYTES = 2_000_000_000
"""A protobuf cannot be serialised from 2^31 bytes on; the rest is room for everything that is
not a weight."""

_SUB_BYTE_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}


def walk(message: Message, kind: type[M]) -> Iterator[M]:
    """Every message of one kind inside another: in subgraphs, functions and attributes too."""
    for field, value in message.ListFields():
        if field.type != field.TYPE_MESSAGE:
            continue
        for child in [value] if isinstance(value, Message) else value:
            if isinstance(child, kind):
                yield child
            if not isinstance(child, onnx.TensorProto):
                yield from walk(child, kind)


def undecodable(message: Message) -> str:
    """Path of a text field in a message that is not UTF-8; empty if there is none.

    Protobuf lets such a field through, and everything that reads it fails.
    """
    if isinstance(message, onnx.TensorProto):  # listing its fields would copy the data
        return "name" if isinstance(message.name, bytes) else ""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_MESSAGE, field.TYPE_STRING):
            continue
        single = isinstance(value, (Message, str, bytes))
        for child in [value] if single else value:
            found = undecodable(child) if isinstance(child, Message) else ""
            if found or isinstance(child, bytes):
                return f"{field.name}.{found}".rstrip(".")
    return ""


def copy_without(message: M, *skipped: str) -> M:
    """A copy that lacks some top-level fields; what is skipped is never touched."""
    copy: M = type(message)()
    for field, value in message.ListFields():
        if field.name in skipped:
            continue
        if isinstance(value, Message):
            getattr(copy, field.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(copy, field.name).extend(value)
        else:
            setattr(copy, field.name, value)
    return copy


def tensor_bytes(tensor: onnx.TensorProto) -> int | None:
    """Size of a tensor's data as ``raw_data``, in bytes; None for strings and unknown types."""
    kinds = onnx.TensorProto.DataType
    if tensor.data_type not in kinds.values() or tensor.data_type in (
        onnx.TensorProto.UNDEFINED,
        onnx.TensorProto.STRING,
    ):
        return None
    count = math.prod(tensor.dims)
    bits = _SUB_BYTE_BITS.get(kinds.Name(tensor.data_type))
    if bits is not None:
        return int(-(-count * bits // 8))
    return int(count) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Size of all initializers of the main graph, in bytes."""
    return sum(tensor_bytes(tensor) or 0 for tensor in model.graph.initializer)


def without_weights(model: onnx.ModelProto, threshold: int = 1 << 16) -> onnx.ModelProto:
    """A copy in which initializers of `threshold` bytes or more are graph inputs instead.

    Stands in for a model too large to be serialised where only its structure matters.
    """
    light = copy_without(model, "graph")
    light.graph.CopyFrom(copy_without(model.graph, "initializer"))
    inputs = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if (tensor_bytes(tensor) or 0) < threshold:
            light.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def attribute_kind(attribute: onnx.AttributeProto) -> Any:
    """Name of an attribute's type, e.g. ``TYPE_PROTO``."""
    kinds = onnx.AttributeProto.AttributeType
    return kinds.Name(attribute.type) if attribute.type in kinds.values() else attribute.type


def type_name(kind: onnx.TypeProto) -> str:
    """A type in words: ``float``, ``sequence(float)``, ``optional(sequence(int64))``."""
    field = kind.WhichOneof("value")
    if field in ("tensor_type", "sparse_tensor_type"):
        number = getattr(kind, field).elem_type
        known = number in onnx.TensorProto.DataType.values()
        name = onnx.TensorProto.DataType.Name(number).lower() if known else str(number)
        return name if field == "tensor_type" else f"sparse({name})"
    if field in ("sequence_type", "optional_type"):
        return f"{field.removesuffix('_type')}({type_name(getattr(kind, field).elem_type)})"
    if field == "map_type":
        key = onnx.TensorProto.DataType.Name(kind.map_type.key_type).lower()
        return f"map({key}, {type_name(kind.map_type.value_type)})"
    return "opaque" if field else "unknown"


def constant_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The weight a Constant node stands for; None for any other node."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or not node.output:
        return None
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if len(values) != 1 or node.attribute[0].ref_attr_name:
        return None
    kind, value = next(iter(values.items()))
    tensor = onnx.TensorProto()
    if kind == "value":
        tensor.CopyFrom(value)
    elif kind in ("value_float", "value_floats"):
        tensor = onnx.numpy_helper.from_array(np.asarray(value, np.float32))
    elif kind in ("value_int", "value_ints"):
        tensor = onnx.numpy_helper.from_array(np.asarray(value, np.int64))
    else:
        return None
    tensor.name = node.output[0]
    return tensor


def remove_dead(graph: onnx.GraphProto) -> int:
    """Remove nodes none of whose outputs is read, by whatever subgraph; returns how many."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if not node.output or any(o in needed for o in node.output if o):
            kept.append(node)
            needed.update(node.input)
            for inner in walk(node, onnx.NodeProto):
                needed.update(inner.input)
            for body in walk(node, onnx.GraphProto):
                needed.update(value.name for value in body.output)
    dead = len(graph.node) - len(kept)
    if dead:
        replace_items(graph.node, kept[::-1])
    return dead


def replace_items(field: Any, items: list[Any]) -> None:
    """Give a repeated field other items, which may be some of its own."""
    kept = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(kept)
