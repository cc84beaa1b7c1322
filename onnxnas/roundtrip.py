"""In and out of graphsurgeon without loss: what it cannot carry is put back, or refused."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxnas.errors import UnsupportedError
from onnxnas.protos import attribute_kind, first_line, walk


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep tools that log to the terminal quiet, those written in C++ too, while they run."""
    with (
        open(os.devnull, "w") as nowhere,
        _descriptor_to(nowhere.fileno(), sys.stdout, 1),
        _descriptor_to(nowhere.fileno(), sys.stderr, 2),
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        G_LOGGER.suppress(),
    ):
        yield


@contextlib.contextmanager
def _descriptor_to(nowhere: int, stream: Any, descriptor: int) -> Iterator[None]:
    """Send what a process writes to one of its own streams elsewhere."""
    stream.flush()
    try:
        terminal = os.dup(descriptor)
    except OSError:  # the process has no such stream
        yield
        return
    try:
        os.dup2(nowhere, descriptor)
        yield
    finally:
        if os.name == "posix":  # C keeps what is not for a terminal until its buffer is full
            ctypes.CDLL(None).fflush(None)
        os.dup2(terminal, descriptor)
        os.close(terminal)


def import_graph(model: onnx.ModelProto) -> Any:
    """What `gs.import_onnx` gives, sharing no list with the model.

    Raises:
        UnsupportedError: the model holds something that would be lost on the way.
    """
    _refuse_unrepresentable(model)
    try:
        with G_LOGGER.suppress():
            graph = gs.import_onnx(model)
    except Exception as error:  # of whatever kind: it was written for models as they should be
        raise UnsupportedError(
            f"The model cannot be rewritten: graphsurgeon does not read it "
            f"({type(error).__name__}: {first_line(error)})."
        ) from error
    # The list graphsurgeon keeps is the model's own, and it appends to it when it exports.
    graph.import_domains = [
        onnx.helper.make_opsetid(o.domain, o.version) for o in model.opset_import
    ]
    return graph


def export_graph(graph: Any, *, consume: bool = False) -> onnx.ModelProto:
    """What `gs.export_onnx` gives, without its traps; the graph is not changed.

    Args:
        graph: `gs.Graph`.
        consume: the graph is not needed any more, so it need not be copied.
    """
    view = graph if consume else graph.copy()
    for tensor in view.tensors().values():
        held = getattr(tensor, "_values", None)
        # Copies share the proto of an unread weight, and export writes the name into it.
        if held is not None and type(held) is LazyValues and held.tensor.name != tensor.name:
            proto = onnx.TensorProto()
            proto.CopyFrom(held.tensor)
            proto.name = tensor.name
            tensor.values = LazyValues(proto)
    empty = _take_empty_lists(view)
    with G_LOGGER.suppress():
        model: onnx.ModelProto = gs.export_onnx(view, do_type_check=False)
    nodes = list(walk(model, onnx.NodeProto)) if empty else []
    for node in nodes:
        for key, kind in empty.get(node.output[0] if node.output else "", {}).items():
            node.attribute.append(onnx.helper.make_attribute(key, [], attr_type=kind))
    return model


def restore(model: onnx.ModelProto, like: onnx.ModelProto) -> None:
    """Give a model, in place, what a round trip lost of the one it came from.

    Inputs and outputs get back their exact declarations where their names are the same.
    """
    model.ir_version = max(like.ir_version, 4)  # from 4 on weights need not be inputs
    model.producer_name, model.producer_version = like.producer_name, like.producer_version
    model.domain, model.model_version = like.domain, like.model_version
    model.doc_string = like.doc_string
    for field in ("metadata_props", "functions"):
        model.ClearField(field)
        getattr(model, field).extend(getattr(like, field))
    model.graph.name, model.graph.doc_string = like.graph.name, like.graph.doc_string
    model.graph.ClearField("metadata_props")
    model.graph.metadata_props.extend(like.graph.metadata_props)
    declared = {v.name: v for v in [*like.graph.input, *like.graph.output]}
    for value in [*model.graph.input, *model.graph.output]:
        if value.name in declared:
            value.CopyFrom(declared[value.name])
    original = {output: node for node in like.graph.node for output in node.output if output}
    present = {*declared, *(t.name for t in model.graph.initializer)}
    for node in model.graph.node:
        present.update(node.output)
        source = original.get(node.output[0]) if node.output else None
        if source is None or (source.op_type, source.domain) != (node.op_type, node.domain):
            continue
        node.ClearField("metadata_props")
        node.metadata_props.extend(source.metadata_props)
        node.doc_string, node.overload = source.doc_string, source.overload
    model.graph.ClearField("quantization_annotation")
    model.graph.quantization_annotation.extend(
        a for a in like.graph.quantization_annotation if a.tensor_name in present
    )


def _take_empty_lists(graph: Any) -> dict[str, dict[str, int]]:
    """Remove attributes that are empty lists, whose type the exporter cannot tell.

    Returns:
        First output of the node -> attribute name -> attribute type.
    """
    taken: dict[str, dict[str, int]] = {}
    for node in graph.nodes:
        for key in [k for k, v in node.attrs.items() if isinstance(v, list) and not v]:
            domain = node.domain or ""
            kind: int = onnx.AttributeProto.INTS
            if onnx.defs.has(node.op, domain):
                declared = onnx.defs.get_schema(node.op, domain).attributes.get(key)
                if declared:
                    # the stubs do not know it is an enumeration
                    kind = onnx.AttributeProto.AttributeType.Value(declared.type.name)  # type: ignore[attr-defined]
            del node.attrs[key]
            taken.setdefault(node.outputs[0].name, {})[key] = kind
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                taken.update(_take_empty_lists(value))
    return taken


_LOST_ATTRIBUTES = frozenset({"TENSORS", "GRAPHS", "SPARSE_TENSOR", "SPARSE_TENSORS",
                              "TYPE_PROTO", "TYPE_PROTOS"})  # fmt: skip


def _refuse_unrepresentable(model: onnx.ModelProto) -> None:
    """The importer skips some attributes with a log line, and fails on others."""
    if model.graph.sparse_initializer:  # cleaning makes them dense
        raise UnsupportedError("The model cannot be rewritten: it has sparse weights.")
    for node in walk(model, onnx.NodeProto):
        name = f"{node.op_type} node {node.name or ', '.join(node.output)!r}"
        for attribute in node.attribute:
            kind = attribute_kind(attribute)
            texts = [attribute.s, *attribute.strings]
            if kind in _LOST_ATTRIBUTES or any(not _is_utf8(text) for text in texts):
                raise UnsupportedError(
                    f"The model cannot be rewritten: attribute {attribute.name!r} of {name} "
                    f"({kind}) cannot be carried over."
                )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
