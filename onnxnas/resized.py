"""A model whose inputs and outputs have other sizes than the original's, and the way back.

Such a model says in its metadata what the sizes were. `as_original` puts linear interpolation in
front of it and behind it, as a user of the original has to do; so it can be run on the original's
inputs and its outputs be compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxnas.graph import Port, Shape, contract, is_static, port_of, set_metadata
from onnxnas.probes import stepped_outputs

_KEY = "onnxnas.original_shapes"
_MIN_OPSET = 11
"""Since then Resize says where the pixels are."""


def declare(model: onnx.ModelProto, shapes: Mapping[str, Sequence[Any]]) -> None:
    """Give inputs and outputs new sizes, in place, and note what they were.

    Args:
        shapes: of inputs and outputs by name; dimensions that are open there stay as they were.
    """
    before: dict[str, Shape] = {}
    for value in [*model.graph.input, *model.graph.output]:
        port, new = port_of(value), shapes.get(value.name)
        if new is None or port.shape is None or len(new) != len(port.shape):
            continue
        for dimension, old, size in zip(
            value.type.tensor_type.shape.dim, port.shape, new, strict=True
        ):
            if is_static(size) and size != old:
                before[value.name] = port.shape
                dimension.dim_value = size
    if before:
        set_metadata(model, {_KEY: json.dumps(before)})


def resized_ports(
    model: onnx.ModelProto, original: onnx.ModelProto | None = None
) -> list[tuple[Port, Shape]]:
    """Inputs and outputs that have another size than in the original, and their shape there.

    Args:
        original: where it is there, it can have been resized itself, and the model not again.
    """
    if original is not None and contract(original) == contract(model):
        return []
    noted = next((p.value for p in model.metadata_props if p.key == _KEY), "{}")
    try:
        shapes = {str(name): tuple(shape) for name, shape in json.loads(noted).items()}
    except (ValueError, TypeError, AttributeError):  # somebody else's entry
        return []
    ports = [port for side in contract(model) for port in side]
    return [(p, shapes[p.name]) for p in ports if p.name in shapes and p.shape != shapes[p.name]]


def in_words(model: onnx.ModelProto, original: onnx.ModelProto) -> str:
    """What has another size, as a clause; empty where nothing has."""
    return ", ".join(
        f"{port.name} [{_dims(port.shape)}] instead of [{_dims(old)}]"
        for port, old in resized_ports(model, original)
    )


def _dims(shape: Shape | None) -> str:
    return ",".join("?" if d is None else str(d) for d in shape or ())


def as_original(model: onnx.ModelProto, original: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """A model that takes and gives what the original did; the model itself if it does already.

    Inputs are reduced to the size of the model's own by linear interpolation between pixels
    (ONNX Resize, half_pixel), outputs enlarged to the original's in the same way; those that jump
    (classes, truth values) take the nearest.
    """
    ports = resized_ports(model, original)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if not ports or opset < _MIN_OPSET or not all(_fits(port, old) for port, old in ports):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    inputs = {value.name for value in graph.input}
    nodes = list(graph.node)
    front, behind = list[onnx.NodeProto](), list[onnx.NodeProto]()
    stepped = stepped_outputs(model)
    for port, old in ports:
        assert port.shape is not None
        inner = f"{port.name}/at_its_own_size"
        taken = port.name in inputs
        for node in nodes:
            for names in (node.input, node.output):
                for i in [i for i, name in enumerate(names) if name == port.name]:
                    names[i] = inner
        ends = (port.name, inner) if taken else (inner, port.name)
        sizes = (old, port.shape) if taken else (port.shape, old)
        (front if taken else behind).extend(
            _resize(graph, port, ends, sizes, opset, port.name in stepped)
        )
        for value in [*graph.input, *graph.output]:
            if value.name == port.name:
                for dimension, size in zip(value.type.tensor_type.shape.dim, old, strict=True):
                    if is_static(size):
                        dimension.dim_value = size
    del graph.node[:]
    graph.node.extend([*front, *nodes, *behind])
    set_metadata(result, {_KEY: "{}"})
    return result


def _fits(port: Port, old: Shape) -> bool:
    return port.shape is not None and len(port.shape) == len(old)


def _resize(
    graph: onnx.GraphProto,
    port: Port,
    ends: tuple[str, str],
    sizes: tuple[Shape, Shape],
    opset: int,
    stepped: bool,
) -> list[onnx.NodeProto]:
    """Nodes between two tensors of different sizes, of whatever type."""
    x, y = ends
    scales = [
        scale(a, b) if is_static(a) and is_static(b) else np.float32(1.0)
        for a, b in zip(*sizes, strict=True)
    ]
    hint = f"{port.name}/resized"
    given = [(f"{hint}/scales", np.array(scales, np.float32))]
    if opset < 13:  # the region of interest may not be left out yet
        given.append((f"{hint}/roi", np.zeros(0, np.float32)))
    graph.initializer.extend(onnx.numpy_helper.from_array(v, name) for name, v in given)
    roi = f"{hint}/roi" if opset < 13 else ""
    plain = port.dtype == "float"
    if not plain:  # not every type is resized everywhere
        ends = f"{hint}/float", f"{hint}/done"
    make = onnx.helper.make_node
    nodes = [
        make(
            "Resize",
            [ends[0], roi, f"{hint}/scales"],
            [ends[1]],
            name=hint,
            mode="nearest" if stepped else "linear",
            coordinate_transformation_mode="half_pixel",
        )
    ]
    if not plain:
        own = getattr(onnx.TensorProto, port.dtype.upper())
        to_float = make("Cast", [x], [ends[0]], name=f"{hint}/to", to=onnx.TensorProto.FLOAT)
        nodes = [to_float, *nodes, make("Cast", [ends[1]], [y], name=f"{hint}/from", to=own)]
    return nodes


def scale(old: int, new: int) -> np.float32:
    """A factor with which the floor of the product is the new length."""
    factor = np.float32(new / old)
    while math.floor(old * float(factor)) < new:
        factor = np.nextafter(factor, np.float32(np.inf))
    return factor
