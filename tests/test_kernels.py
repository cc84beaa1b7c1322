from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ModelBuilder
from numpy.typing import NDArray

from onnxnas.graph import LazyWeight, from_model, static_view
from onnxnas.hwmodels.sampling import TRAINING_FAMILIES, sample_network
from onnxnas.kernels import Kernel, split_kernels
from onnxnas.rewriter import Rewriter
from onnxnas.weight_statistics import TYPICAL_BITS, WeightStatistics, measure_bits, sparse_bits


def split(b: ModelBuilder, *outputs: str) -> list[Kernel]:
    return split_kernels(static_view(from_model(b.build(*outputs)), {}))


def test_a_convolution_takes_its_activation_along() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    kernels = split(b, b.op("Relu", b.conv(b.x, 3, 16, 3, pads=1, stride=2, out="c"), out="y"))
    (k,) = kernels
    assert (k.op, k.activation, k.output, k.tensors) == ("Conv", "Relu", "y", ("c", "y"))
    assert (k.in_channels, k.out_channels, k.out_height, k.out_width) == (3, 16, 4, 4)
    assert (k.window, k.strides, k.pads) == ((3, 3), (2, 2), (1, 1, 0, 0))
    assert k.macs == 16 * 4 * 4 * 27
    assert (k.in_bytes, k.out_bytes, k.weights) == (3 * 64, 16 * 16, 16 * 27)
    assert k.reads_input
    assert k.writes_output
    assert k.live_bytes == 3 * 64 + 16 * 16


@pytest.mark.parametrize("tail", ["Div", "Mul first", "HardSigmoid", "Sigmoid"])
def test_activations_in_pieces_are_recognised(tail: str) -> None:
    b = ModelBuilder([1, 4, 6, 6])
    x = b.conv(b.x, 4, 8)
    three, zero, six = (b.const(np.array(v, np.float32)) for v in (3, 0, 6))
    if tail == "Sigmoid":
        y = b.op("Mul", x, b.op("Sigmoid", x))
    elif tail == "HardSigmoid":
        y = b.op("Mul", x, b.op("HardSigmoid", x, alpha=1 / 6))
    else:
        gate = b.op("Clip", b.op("Add", x, three), zero, six)
        if tail == "Div":
            y = b.op("Div", b.op("Mul", x, gate), six)
        else:
            y = b.op("Mul", b.op("Mul", gate, b.const(np.array(1 / 6, np.float32))), x)
    (k,) = split(b, y)
    assert k.activation == ("Silu" if tail == "Sigmoid" else "HardSwish")
    assert k.output == y


def test_a_gate_that_is_read_elsewhere_is_not_an_activation() -> None:
    b = ModelBuilder([1, 4, 6, 6])
    x = b.conv(b.x, 4, 4)
    gate = b.op("Sigmoid", x)
    kernels = split(b, b.op("Mul", x, gate), b.op("Relu", gate))
    assert [k.op for k in kernels] == ["Conv", "Sigmoid", "Mul", "Relu"]


def test_an_output_in_the_middle_is_not_fused_over() -> None:
    b = ModelBuilder([1, 4, 6, 6])
    x = b.conv(b.x, 4, 4)
    kernels = split(b, x, b.op("Relu", x))
    assert [(k.op, k.activation) for k in kernels] == [("Conv", "none"), ("Relu", "none")]


def test_neighbours_and_bytes_alive() -> None:
    b = ModelBuilder([1, 8, 4, 4])
    y = b.ibn(b.x, 8, 16, 8)
    kernels = split(b, b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]))
    assert [k.op for k in kernels] == ["Conv", "DepthwiseConv", "Conv", "Add", "MaxPool"]
    add = kernels[3]
    assert (add.producer, add.oldest_producer, add.consumer) == (2, 2, 4)
    assert add.operands == 2
    assert add.reads_input
    # The block's input stays alive across all of it.
    assert [k.live_bytes for k in kernels] == [384, 640, 512, 384, 160]
    assert add.shared_bytes == 128


def test_kinds_of_arithmetic_and_of_layers_are_told_apart() -> None:
    b = ModelBuilder([1, 8, 4, 4])
    x = b.conv(b.x, 8, 8, 3, group=2, pads=1)
    gate = b.op("GlobalAveragePool", x)
    y = b.op("Mul", x, gate)
    z = b.op("Add", y, b.const(np.ones((1, 8, 1, 1), np.float32)))
    joined = b.op("Concat", z, b.conv(z, 8, 6), axis=1)
    kernels = split(b, joined)
    found = [k.op for k in kernels]
    assert found == [
        "GroupedConv", "GlobalAveragePool", "MulBroadcast", "AddConstant", "Conv", "Concat",
    ]  # fmt: skip
    assert kernels[-1].offset_step == 8


def test_no_lazy_weight_is_computed() -> None:
    b = ModelBuilder([1, 4, 6, 6])
    graph = from_model(b.build(b.conv(b.x, 4, 8, out="y")))
    rw = Rewriter(graph, "test", {})

    def never() -> NDArray[np.float32]:
        raise AssertionError("computed")

    lazy = rw.constant("w", (8, 4, 1, 1), never, density=0.5)
    rw.set_input(rw.node("y"), 1, lazy)
    (k,) = split_kernels(static_view(graph, {}))
    assert isinstance(lazy._values, LazyWeight)
    assert (k.entropy_bits, k.rice_bits) == sparse_bits(*TYPICAL_BITS, density=0.5)
    assert k.entropy_bits < TYPICAL_BITS[0]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(set(TRAINING_FAMILIES))), st.integers(0, 10_000))
def test_every_computed_tensor_is_in_exactly_one_kernel(family: str, seed: int) -> None:
    graph = sample_network(family, seed)
    kernels = split_kernels(graph)
    inside = [t for k in kernels for t in k.tensors]
    computed = [t.name for n in graph.nodes if n.op != "Constant" for t in n.outputs]
    assert sorted(inside) == sorted(computed)
    assert all(k.tensors[-1] == k.output for k in kernels)
    assert all(k.producer < i for i, k in enumerate(kernels))
    assert all(k.live_bytes >= k.out_bytes + k.in_bytes for k in kernels if k.producer >= 0)


def test_names_do_not_enter_the_key() -> None:
    one, other = ModelBuilder([1, 3, 8, 8]), ModelBuilder([1, 3, 8, 8], x="other")
    (a,), (b,) = split(one, one.conv(one.x, 3, 8)), split(other, other.conv(other.x, 3, 8, out="q"))
    assert a.key == b.key
    assert a.output != b.output


def test_weight_bits_measure_how_values_compress() -> None:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((64, 256)).astype(np.float32)
    uniform = rng.uniform(-1, 1, (64, 256)).astype(np.float32)
    mostly_zero = normal * (rng.random(normal.shape) > 0.9)
    entropy, rice = zip(*(measure_bits(w, 0) for w in (mostly_zero, normal, uniform)), strict=True)
    assert list(entropy) == sorted(entropy)
    assert list(rice) == sorted(rice)
    assert all(r >= e * 0.99 for e, r in zip(entropy, rice, strict=True))
    assert measure_bits(np.zeros((4, 9), np.float32), 0)[0] == 0.0


def test_statistics_are_remembered_per_array() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    graph = from_model(b.build(b.conv(b.x, 3, 8)))
    statistics = WeightStatistics()
    first = split_kernels(static_view(graph, {}), statistics)
    again = split_kernels(static_view(graph, {}), statistics)
    assert first[0].key == again[0].key
    assert len(statistics._known) == 1
