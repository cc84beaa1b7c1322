"""Runs of elementwise nodes: where they end, and what they compute, against onnxruntime."""

from __future__ import annotations

from typing import Any

import models
import numpy as np
import onnx
import pytest
from oracle import run

from onnxnas.graph import from_model
from onnxnas.pointwise import follow, pointwise_after


def hard_swish(b: models.ModelBuilder, x: str) -> str:
    shifted = b.op("Add", b.const(np.array(3, np.float32)), x)
    low, high = (b.const(np.array(v, np.float32)) for v in (0, 6))
    gate = b.op("Clip", shifted, low, high)
    return b.op("Mul", b.op("Mul", x, gate), b.const(np.array(1 / 6, np.float32)))


def batch_norm(b: models.ModelBuilder, x: str) -> str:
    variance = b.const(np.linspace(0.5, 2.0, 8, dtype=np.float32))
    return b.op("BatchNormalization", b.op("Relu", x), *(b.weight(8) for _ in range(3)), variance)


CHAINS: dict[str, Any] = {
    "Relu": lambda b, x: b.op("Relu", x),
    "LeakyRelu": lambda b, x: b.op("LeakyRelu", x, alpha=0.3),
    "PRelu": lambda b, x: b.op("PRelu", x, b.weight(8, 1, 1)),
    "SiLU": lambda b, x: b.op("Mul", x, b.op("Sigmoid", x)),
    "HardSigmoid": lambda b, x: b.op("HardSigmoid", x, alpha=0.3, beta=0.4),
    "HardSwish": lambda b, x: b.op("HardSwish", x),
    "hard-swish": hard_swish,
    "tanh": lambda b, x: b.op("Neg", b.op("Tanh", x)),
    "affine": lambda b, x: b.op("Div", b.op("Sub", b.weight(1, 8, 1, 1), x), b.weight(1)),
    "batch norm": batch_norm,
}


@pytest.mark.parametrize("name", CHAINS)
def test_values_and_slopes(name: str) -> None:
    b = models.ModelBuilder([1, 8, 20, 20], opset=14)
    y = CHAINS[name](b, b.op("Identity", b.x, out="start"))
    model = b.build(b.op("GlobalAveragePool", y), y, check=False)
    del model.graph.output[1:]
    graph = from_model(model)
    nodes, end = pointwise_after(graph.tensors()["start"], graph)
    assert end.name == y
    x = np.random.default_rng(1).standard_normal((1, 8, 20, 20)).astype(np.float32) * 3
    model.graph.output.add().name = y
    want = np.moveaxis(run(model, {"x": x})[y], 1, -1)
    across = np.moveaxis(x, 1, -1)
    values, slopes = follow(nodes, across)
    np.testing.assert_allclose(values, want, rtol=1e-4, atol=1e-5)
    step = np.float32(1e-2)
    numeric = (follow(nodes, across + step)[0] - follow(nodes, across - step)[0]) / (2 * step)
    assert np.mean(np.abs(numeric - slopes) < 0.02) > 0.97  # all but the kinks
    kept = np.array([1, 4, 6])
    some, _ = follow(nodes, across[..., kept], kept)
    np.testing.assert_array_equal(some, values[..., kept])


def test_a_run_ends_where_others_read_or_add(tmp_path: Any) -> None:
    b = models.ModelBuilder([1, 8, 6, 6])
    y = b.op("Relu", b.conv(b.x, 8, 8, out="start"), out="mid")
    model = b.build(b.op("Add", b.op("Sigmoid", y), b.conv(y, 8, 8)), check=False)
    graph = from_model(model)
    nodes, end = pointwise_after(graph.tensors()["start"], graph)
    assert ([n.op for n in nodes], end.name) == (["Relu"], "mid")
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.add().name = "start"
    graph = from_model(shown)
    assert pointwise_after(graph.tensors()["start"], graph)[0] == ()
