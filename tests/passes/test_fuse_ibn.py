"""Fused blocks: structure for every form of depthwise, and weights that come near the block's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
import rewriting
from fitting import ROWS, error, fresh, recovery, result

from onnxnas.passes.fuse_ibn import FuseIbn
from onnxnas.recover import values_only
from onnxnas.sites import Candidate


def activated(b: models.ModelBuilder, act: str, y: str) -> str:
    """Every way an activation is written in files."""
    if act == "PRelu":
        return b.op(act, y, b.const(np.full((16, 1, 1), 0.2, np.float32)))
    if act == "Clip":
        return b.op(act, y, *(b.const(np.array(v, np.float32)) for v in (0, 6)))
    if act == "Silu":
        return b.op("Mul", b.op("Sigmoid", y), y)
    if act == "hard-swish in pieces":
        shifted = b.op("Add", y, b.const(np.array([3], np.float32)))
        clipped = activated(b, "Clip", shifted)
        return b.op("Div", b.op("Mul", y, clipped), b.const(np.array([6], np.float32)))
    if act == "Relu and BatchNormalization":
        scale, bias, mean = (b.weight(16) for _ in range(3))
        variance = b.const(np.linspace(0.5, 2.0, 16, dtype=np.float32))
        return b.op("BatchNormalization", b.op("Relu", y), scale, bias, mean, variance)
    return b.op(act, y)


def block(act: str = "Relu", *, excite: bool = False, **depthwise: Any) -> onnx.ModelProto:
    b = models.ModelBuilder([1, 6, 8, 8], opset=14)
    bias = act != "LeakyRelu"
    y = activated(b, act, b.conv(b.x, 6, 16, bias=bias, out="wide"))
    y = activated(b, act, b.depthwise(y, 16, bias=bias, out="deep", **depthwise))
    if excite:
        gate = b.op("Relu", b.conv(b.op("GlobalAveragePool", y), 16, 4, out="squeeze"))
        y = b.op("Mul", y, b.op("HardSigmoid", b.conv(gate, 4, 16, out="excite")))
    y = b.conv(y, 16, 6, out="narrow")
    residual = not depthwise.keys() & {"stride", "pads"}
    return b.build(b.op("Relu", b.op("Add", b.x, y, out="end") if residual else y))


@pytest.mark.parametrize(
    ("act", "depthwise"),
    [
        ("Relu", {}),
        ("Clip", {}),
        ("LeakyRelu", {}),
        ("PRelu", {}),
        ("Silu", {}),
        ("HardSwish", {}),
        ("hard-swish in pieces", {"stride": 2}),
        ("Relu and BatchNormalization", {}),
        ("Relu", {"stride": 2, "pads": [0, 0, 1, 1]}),
        ("Relu", {"k": 5, "pads": [2, 1, 2, 3]}),
        ("Relu", {"dilations": [2, 2], "pads": 2}),
        ("HardSwish", {"excite": True}),
        ("Silu", {"excite": True, "stride": 2, "pads": [0, 0, 1, 1]}),
    ],
)
def test_fused_and_fitted(tmp_path: Path, act: str, depthwise: dict[str, Any]) -> None:
    model = block(act, **depthwise)
    found = recovery(tmp_path, model, FuseIbn(steps=100), rows=ROWS)
    candidate = Candidate.of({"fuse-ibn@wide": "hidden-12"})
    fits, refused = found.alone(list(candidate.decisions))
    assert not refused
    fitted = result(found, model, values_only(fits), candidate)
    assert rewriting.ops(fitted).count("Conv") == rewriting.ops(model).count("Conv") - 1
    assert rewriting.attribute(fitted, "deep", "group") == 1
    wrong = error(model, fitted, fresh())
    assert wrong < 0.6
    assert wrong < 0.5 * error(model, result(found, model, None, candidate), fresh())
    again, refused = found.in_order(candidate)
    assert not refused
    assert error(model, result(found, model, values_only(again), candidate), fresh()) < 0.6


def test_without_the_first_activation_ridge_alone_is_exact(tmp_path: Path) -> None:
    """A first activation that never clips: then the fused convolution can do the same."""
    model = block("Relu")
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [16]:  # biases far above zero
            values = onnx.numpy_helper.to_array(tensor) + np.float32(30.0)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    model = inner_only(model)
    found = recovery(tmp_path, model, FuseIbn(steps=0), rows=ROWS)
    candidate = Candidate.of({"fuse-ibn@wide": "hidden-16"})
    fits, _ = found.alone(list(candidate.decisions))
    assert error(model, result(found, model, values_only(fits), candidate), fresh()) < 1e-3


def inner_only(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same without padding, whose zeros no bias reaches."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "pads":
                attribute.ints[:] = [0, 0, 0, 0]
        if node.op_type == "Add":
            node.op_type, node.input[0] = "Identity", node.input[1]
            del node.input[1:]
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for size in (1, 6, 6, 6):
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = size
    return model


def test_widths_and_gradients(tmp_path: Path) -> None:
    model = block()
    sites, _ = rewriting.find(FuseIbn(), model)
    assert [c.label for c in sites["wide"].choices] == ["hidden-16", "hidden-12", "hidden-8"]
    move = ("fuse-ibn@wide", "hidden-8")
    ridge, _ = recovery(tmp_path, model, FuseIbn(steps=0), rows=ROWS).alone([move])
    trained, _ = recovery(tmp_path, model, FuseIbn(steps=300), rows=ROWS).alone([move])
    assert trained[move].error < 0.9 * ridge[move].error


def test_declines_with_a_reason() -> None:
    b = models.ModelBuilder([1, 6, 8, 8])
    deep = b.op("Relu", b.depthwise(b.op("Relu", b.conv(b.x, 6, 16, out="wide")), 16))
    two = b.op("Concat", b.conv(deep, 16, 6), b.conv(deep, 16, 6), axis=1)
    _, misses = rewriting.find(FuseIbn(), b.build(two))
    assert "is not scaled by a gate" in misses["wide"]
    b = models.ModelBuilder([1, 6, 8, 8])
    y = b.depthwise(b.conv(b.x, 6, 16, out="wide"), 16)
    _, misses = rewriting.find(FuseIbn(), b.build(b.conv(b.op("Relu", y), 16, 6)))
    assert "merge-linear-convs is exact" in misses["wide"]
    _, misses = rewriting.find(FuseIbn(largest=10), block())
    assert "too long" in misses["wide"]
