"""Whole networks by the compiler's rules alone, compared with the compiler, case by case."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest

from onnxnas import graph as graphs
from onnxnas.hwmodels import ethos_memory
from onnxnas.hwmodels.ethos_memory import System
from onnxnas.hwmodels.ethos_u import card
from onnxnas.hwmodels.measuring import kernel_cycles
from onnxnas.hwmodels.vela import VelaCostModel
from onnxnas.kernels import split_kernels

TARGETS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-2048")

CASES = {
    "grouped-with-activation": (
        "float[1,16,48,48] x", "float[1,48,24,24] y",
        "a = Conv<pads=[1,1,1,1]>(x, w0) b = Relu(a) "
        "c = Conv<group=4, pads=[1,1,1,1]>(b, w1) d = Relu(c) "
        "y = Conv<pads=[1,1,1,1], strides=[2,2]>(d, w2)",
        ((32, 16, 3, 3), (48, 8, 3, 3), (48, 48, 3, 3)),
    ),
    "thin-silu": (
        "float[1,8,48,48] x", "float[1,16,48,48] y",
        "a = Conv<pads=[1,1,1,1]>(x, w0) b = Sigmoid(a) c = Mul(a, b) y = Conv(c, w1)",
        ((4, 8, 3, 3), (16, 4, 1, 1)),
    ),
    "branches-joined": (
        "float[1,4,40,40] x", "float[1,32,40,40] y",
        "s = Conv<pads=[1,1,1,1]>(x, w0) a = Conv(s, w1) b = Conv<pads=[1,1,1,1]>(s, w2) "
        "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(s) c = Conv(p, w3) "
        "j = Concat<axis=1>(a, b, c) y = Conv(j, w4)",
        ((24, 4, 3, 3), (8, 24, 1, 1), (24, 24, 3, 3), (16, 24, 1, 1), (32, 48, 1, 1)),
    ),
    "dilated-by-four": (
        "float[1,4,24,24] x", "float[1,32,24,24] y",
        "a = Conv<pads=[1,1,1,1]>(x, w0) "
        "y = Conv<group=32, dilations=[4,4], pads=[4,4,4,4]>(a, w1)",
        ((32, 4, 3, 3), (32, 1, 3, 3)),
    ),
    "slopes": (
        "float[1,16,48,48] x", "float[1,16,48,48] y",
        "a = Conv<pads=[1,1,1,1]>(x, w0) b = PRelu(a, w1) y = Conv<pads=[1,1,1,1]>(b, w2)",
        ((32, 16, 3, 3), (32, 1, 1), (16, 32, 3, 3)),
    ),
    "padded-pool": (
        "float[1,4,50,50] x", "float[1,16,25,25] y",
        "a = Conv<pads=[1,1,1,1]>(x, w0) "
        "b = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a) y = Conv(b, w1)",
        ((24, 4, 3, 3), (16, 24, 1, 1)),
    ),
    "no-op-resize": (
        "float[1,16,24,24] x", "float[1,48,24,24] y",
        "a = Conv(x, w0) r = Resize<mode=\"linear\">(a, , scales) b = Conv(x, w1) "
        "j = Concat<axis=1>(r, b) y = Conv(j, w2)",
        ((16, 16, 1, 1), (32, 16, 1, 1), (48, 48, 1, 1)),
    ),
}  # fmt: skip


def network(name: str, scale: float = 1.0) -> Any:
    inputs, outputs, body, shapes = CASES[name]
    rng = np.random.default_rng(7)
    made = "scales = Constant<value = float[4] {1.0, 1.0, 1.0, 1.0}>() " if "scales" in body else ""
    for i, shape in enumerate(shapes):
        values = rng.normal(0.1, 0.4, shape) * scale
        text = ",".join(f"{v:.4f}" for v in np.clip(values, -1, 0.9).ravel())
        size = ",".join(map(str, shape))
        made += f"w{i} = Constant<value = float[{size}] {{{text}}}>() "
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {made}{body} }}'
    )
    return graphs.from_model(onnx.parser.parse_model(text))


def dense_depthwise(channels: int) -> Any:
    """A depthwise convolution whose weights are written as those of a dense one."""
    weights = np.zeros((channels, channels, 3, 3), np.float32)
    weights[np.arange(channels), np.arange(channels)] = np.random.default_rng(3).normal(
        size=(channels, 3, 3)
    )
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[1,{channels},48,48] x) => '
        f"(float[1,{channels},48,48] y) {{ a = MaxPool<kernel_shape=[1,1]>(x) "
        "b = Conv<pads=[1,1,1,1]>(a, w) y = MaxPool<kernel_shape=[1,1]>(b) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return graphs.from_model(model)


def compared(graph: Any, target: str) -> tuple[float, float, float, float]:
    """Cycles and peak memory, by the rules and by the compiler; of kernels that have rules."""
    own = card(target)
    cost = VelaCostModel(own, None, 1).cost(graph)
    kernels = split_kernels(graph)
    system = System.of(own)
    assert system is not None
    found = ethos_memory.arrange(graph, kernels, system)
    true = np.nan_to_num(kernel_cycles(kernels, cost))
    known = np.array(found.cycles) > 0
    most = max(at.size for at in ethos_memory.plan(found).values())
    return float(sum(found.cycles)), float(true[known].sum()), most, max(cost.peak_bytes.values())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", sorted(CASES))
def test_the_rules_are_those_of_the_compiler(name: str, target: str) -> None:
    found, true, size, true_size = compared(network(name), target)
    assert found == pytest.approx(true, rel=0.02)
    assert size == pytest.approx(true_size, rel=0.02)


def test_a_larger_network_is_noticed() -> None:
    inputs, outputs, body, shapes = CASES["slopes"]
    wider = [(s[0] * 2, *s[1:]) if i == 0 else s for i, s in enumerate(shapes)]
    wider = [wider[0], (64, 1, 1), (16, 64, 3, 3)]
    CASES_WIDER = (inputs, outputs, body, tuple(wider))
    found, _, _, _ = compared(network("slopes"), "ethos-u55-128")
    CASES["wider"] = CASES_WIDER
    try:
        more, true, _, _ = compared(network("wider"), "ethos-u55-128")
    finally:
        del CASES["wider"]
    assert more > 1.5 * found
    assert more == pytest.approx(true, rel=0.02)


def test_weights_that_are_zero_in_half_of_the_places_take_half_the_time() -> None:
    found, true, _, _ = compared(dense_depthwise(96), "ethos-u85-512")
    assert found == pytest.approx(true, rel=0.02)
