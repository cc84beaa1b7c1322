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


def block(act: str = "Relu", **depthwise: Any) -> onnx.ModelProto:
    b = models.ModelBuilder([1, 6, 8, 8])
    extra = [b.const(np.full((16, 1, 1), 0.2, np.float32))] if act == "PRelu" else []
    y = b.op(act, b.conv(b.x, 6, 16, out="wide"), *extra)
    y = b.op(act, b.depthwise(y, 16, out="deep", **depthwise), *extra)
    y = b.conv(y, 16, 6, out="narrow")
    residual = not depthwise.keys() & {"stride", "pads"}
    return b.build(b.op("Relu", b.op("Add", b.x, y, out="end") if residual else y))


@pytest.mark.parametrize(
    ("act", "depthwise"),
    [
        ("Relu", {}),
        ("LeakyRelu", {}),
        ("PRelu", {}),
        ("Relu", {"stride": 2, "pads": [0, 0, 1, 1]}),
        ("Relu", {"k": 5, "pads": [2, 1, 2, 3]}),
        ("Relu", {"dilations": [2, 2], "pads": 2}),
    ],
)
def test_fused_and_fitted(tmp_path: Path, act: str, depthwise: dict[str, Any]) -> None:
    model = block(act, **depthwise)
    found = recovery(tmp_path, model, FuseIbn(steps=150), ROWS)
    candidate = Candidate.of({"fuse-ibn@wide": "hidden-16"})
    fits, refused = found.alone(list(candidate.decisions))
    assert not refused
    fitted = result(found, model, values_only(fits), candidate)
    assert rewriting.ops(fitted).count("Conv") == 2
    assert rewriting.attribute(fitted, "deep", "group") == 1
    wrong = error(model, fitted, fresh())
    assert wrong < 0.6
    assert wrong < 0.5 * error(model, result(found, model, None, candidate), fresh())


def test_without_the_first_activation_ridge_alone_is_exact(tmp_path: Path) -> None:
    """A first activation that never clips: then the fused convolution can do the same."""
    model = block("Relu")
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [16]:  # biases far above zero
            values = onnx.numpy_helper.to_array(tensor) + np.float32(30.0)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    model = inner_only(model)
    found = recovery(tmp_path, model, FuseIbn(steps=0), ROWS)
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
    ridge, _ = recovery(tmp_path, model, FuseIbn(steps=0), ROWS).alone([move])
    trained, _ = recovery(tmp_path, model, FuseIbn(steps=300), ROWS).alone([move])
    assert trained[move].error < 0.9 * ridge[move].error


def test_declines_with_a_reason() -> None:
    _, misses = rewriting.find(FuseIbn(), models.squeeze_excite())
    assert any("other layers" in reason for reason in misses.values())
    b = models.ModelBuilder([1, 6, 8, 8])
    y = b.depthwise(b.conv(b.x, 6, 16, out="wide"), 16)
    _, misses = rewriting.find(FuseIbn(), b.build(b.conv(b.op("Relu", y), 16, 6)))
    assert "merge-linear-convs is exact" in misses["wide"]
    _, misses = rewriting.find(FuseIbn(largest=10), block())
    assert "too long" in misses["wide"]
