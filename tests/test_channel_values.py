"""Channels said to be constant are, at every place and for any input; the rest is not said."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from models import ModelBuilder
from numpy.typing import NDArray
from random_cnn import random_cnn

from onnxnas.channel_values import constant_channels
from onnxnas.coupling import Coupling
from onnxnas.graph import from_model


def known(model: onnx.ModelProto) -> dict[str, NDArray[np.float64]]:
    graph = from_model(model)
    return constant_channels(graph, Coupling.of(graph).opaque)


def check_against_runs(model: onnx.ModelProto, values: dict[str, NDArray[np.float64]]) -> int:
    """Every value said to be known is what two runs give; returns how many there are."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(onnx.shape_inference.infer_shapes(model))
    outputs = {o.name for o in exposed.graph.output}
    exposed.graph.output.extend(
        v for v in exposed.graph.value_info if v.name in values and v.name not in outputs
    )
    for seed in (0, 1):
        for name, actual in oracle.run(exposed, oracle.random_feeds(model, seed)).items():
            said = values[name].reshape(1, -1, *[1] * (actual.ndim - 2))
            limit = 1e-5 * max(1.0, float(np.abs(actual).max()))
            worst = np.nanmax(np.abs(actual - said), initial=0.0)
            assert worst <= limit, f"{name} is not constant: off by {worst:.3g}"
    return sum(int(np.count_nonzero(~np.isnan(v))) for v in values.values())


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=random_cnn(dead=True))
def test_what_is_said_to_be_constant_is(model: onnx.ModelProto) -> None:
    check_against_runs(model, known(model))


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=random_cnn())
def test_nothing_is_constant_in_a_healthy_network(model: onnx.ModelProto) -> None:
    assert check_against_runs(model, known(model)) == 0


def half_dead(b: ModelBuilder) -> str:
    """Six channels; 0 to 2 are constant, 0 of them at zero."""
    weight = b.rng.standard_normal((6, 3, 1, 1)).astype(np.float32)
    weight[:3] = 0
    bias = b.const(np.asarray([0, 0.7, -1.2, 0.3, 0.2, 0.1], np.float32))
    return b.op("Conv", b.x, b.const(weight), bias)


CASES: dict[str, tuple[int, Any]] = {
    "average-pool": (3, lambda b, x: b.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4)),
    "average-pool-counts-padding": (
        1,
        lambda b, x: b.op(
            "AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
        ),
    ),
    "max-pool-padded": (3, lambda b, x: b.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)),
    "pad-with-zero": (1, lambda b, x: b.op("Pad", x, b.const(np.asarray([0, 0, 1, 1] * 2)))),
    "pad-with-the-constant": (
        1,
        lambda b, x: b.op(
            "Pad", x, b.const(np.asarray([0, 0, 1, 1] * 2)), b.const(np.asarray(0.7, np.float32))
        ),
    ),
    "pad-reflected": (
        3,
        lambda b, x: b.op("Pad", x, b.const(np.asarray([0, 0, 1, 1] * 2)), mode="reflect"),
    ),
    "depthwise": (3, lambda b, x: b.depthwise(x, 6, pads=0)),
    "depthwise-padded": (1, lambda b, x: b.depthwise(x, 6, bias=False)),
    "depthwise-multiplier": (6, lambda b, x: b.conv(x, 6, 12, 3, group=6)),
    "dense": (0, lambda b, x: b.conv(x, 6, 4)),
    "transposed": (0, lambda b, x: b.op("ConvTranspose", x, b.weight(6, 4, 2, 2))),
    "add-known": (3, lambda b, x: b.op("Add", x, b.weight(6, 1, 1))),
    "add-map": (0, lambda b, x: b.op("Add", x, b.weight(6, 8, 8))),
    "multiply-by-zero": (1, lambda b, x: b.op("Mul", x, b.conv(b.x, 3, 6))),
    "concat-height": (3, lambda b, x: b.op("Concat", x, b.op("Identity", x), axis=2)),
    "concat-height-differing": (1, lambda b, x: b.op("Concat", x, b.op("Neg", x), axis=2)),
    "softmax": (0, lambda b, x: b.op("Softmax", x, axis=2)),
    "divide-by-zero": (0, lambda b, x: b.op("Div", x, b.const(np.zeros(1, np.float32)))),
    "flatten": (3 * 64, lambda b, x: b.op("Flatten", x)),
    "gemm": (
        0,
        lambda b, x: b.op("Gemm", b.op("Flatten", x), b.weight(384, 4), b.weight(4), alpha=0.5),
    ),
    **{
        op.lower(): (3, lambda b, x, op=op: b.op(op, x))
        for op in ("Abs", "Exp", "HardSigmoid", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Softplus",
                   "Tanh")
    },
    "hard-swish": (3, lambda b, x: b.op("HardSwish", x)),
    "erf": (0, lambda b, x: b.op("Erf", x)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_values_through_one_operator(name: str) -> None:
    expected, wire = CASES[name]
    b = ModelBuilder([1, 3, 8, 8], opset=14)
    y = wire(b, half_dead(b))
    model = b.build(y)
    if name != "divide-by-zero":
        check_against_runs(model, known(model))
    assert np.count_nonzero(~np.isnan(known(model)[y])) == expected


def test_a_gemm_of_constants_only_is_constant() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = b.op("Flatten", b.op("GlobalAveragePool", half_dead(b)))
    weight = b.rng.standard_normal((2, 6)).astype(np.float32)
    weight[0, 3:] = 0
    inputs = (y, b.const(weight), b.weight(1, 2))
    y = b.op("Gemm", *inputs, transB=1, alpha=0.5, beta=2.0)
    model = b.build(y)
    assert np.isnan(known(model)[y]).tolist() == [False, True]
    assert check_against_runs(model, known(model)) > 0


def test_a_wrong_claim_shows() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = half_dead(b)
    model = b.build(y)
    values = known(model)
    values[y][3] = 0.3  # its bias, but its filter is not zero
    with pytest.raises(AssertionError, match="is not constant"):
        check_against_runs(model, values)
