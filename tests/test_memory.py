"""Peak memory: lifetimes, views, in-place steps, placement."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxnas import graph as graphs
from onnxnas.kernels import split_kernels
from onnxnas.memory import Buffer, Peak, activations, peak, place


def _buffers(text: str) -> dict[str, Buffer]:
    graph = graphs.from_model(onnx.parser.parse_model(text))
    return {b.name: b for b in activations(graph, split_kernels(graph))}


def _model(inputs: str, outputs: str, body: str) -> str:
    return f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {body} }}'


def test_peak_of_a_branch_holds_both_arms() -> None:
    body = (
        "a = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) b = Sigmoid(a) c = Tanh(a) "
        "d = Mul(b, c) y = AveragePool<kernel_shape=[4,4]>(d)"
    )
    found = _buffers(_model("float[1,4,8,8] x", "float[1,4,1,1] y", body))
    # b is computed while a is still needed by c, which then takes a's place.
    assert peak(found.values()).size == 4 * 64 + 4 * 16
    assert found["a"].end == 3
    assert found["b"].end == 4


def test_elementwise_never_writes_over_an_input_that_is_read_again() -> None:
    body = "a = MaxPool<kernel_shape=[1,1]>(x) b = Sigmoid(a) y = Add(a, b)"
    found = _buffers(_model("float[1,2,4,4] x", "float[1,2,4,4] y", body))
    assert set(found) == {"x", "a", "b"}  # y takes the place of a
    assert peak(found.values()) == Peak(64, 0, (("a", 32), ("x", 32)))
    assert found["b"].start == 1
    assert found["a"].end == 3


def test_network_inputs_are_never_overwritten() -> None:
    found = _buffers(_model("float[1,2,4,4] x", "float[1,2,4,4] y", "y = Sigmoid(x)"))
    assert peak(found.values()) == Peak(64, 0, (("x", 32), ("y", 32)))


def test_views_cost_nothing() -> None:
    body = "a = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) y = Flatten(a)"
    found = _buffers(_model("float[1,4,8,8] x", "float[1,64] y", body))
    assert set(found) == {"x", "a"}
    assert found["a"].end == 2


def test_an_output_lives_to_the_end() -> None:
    body = (
        "a = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) "
        "b = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) c = GlobalAveragePool(b)"
    )
    found = _buffers(_model("float[1,4,8,8] x", "float[1,4,4,4] a, float[1,4,1,1] c", body))
    assert found["a"].end == 3


def test_peak_names_what_is_alive_largest_first() -> None:
    found = peak([Buffer("a", 10, 0, 2), Buffer("b", 30, 2, 4), Buffer("c", 39, 3, 5)])
    assert found == Peak(69, 3, (("c", 39), ("b", 30)))
    assert peak([]) == Peak(0, 0, ())


_BUFFERS = st.lists(
    st.tuples(st.integers(1, 200), st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=25
)


@settings(max_examples=60, deadline=None)
@given(_BUFFERS)
def test_placed_buffers_never_overlap(drawn: list[tuple[int, int, int]]) -> None:
    buffers = [Buffer(f"t{i}", 16 * s, a, a + d) for i, (s, a, d) in enumerate(drawn)]
    offsets, arena = place(buffers)
    assert arena >= peak(buffers).size
    for i, one in enumerate(buffers):
        assert offsets[one.name] + one.size <= arena
        for other in buffers[:i]:
            if one.start <= other.end and other.start <= one.end:
                low, high = sorted((one, other), key=lambda b: offsets[b.name])
                assert offsets[low.name] + low.size <= offsets[high.name]


def test_peak_agrees_with_counting_every_moment() -> None:
    rng = np.random.default_rng(0)
    buffers = [
        Buffer(f"t{i}", int(rng.integers(1, 99)), int(a), int(a + rng.integers(0, 9)))
        for i, a in enumerate(rng.integers(0, 40, 60))
    ]
    counted = [sum(b.size for b in buffers if b.start <= t <= b.end) for t in range(60)]
    found = peak(buffers)
    assert found.size == max(counted)
    assert found.moment == int(np.argmax(counted))
    assert sum(size for _, size in found.tensors) == found.size


@pytest.mark.parametrize("multiple", [1, 16])
def test_channels_inside_are_rounded_up(multiple: int) -> None:
    text = _model(
        "float[1,3,4,4] x",
        "float[1,3,1,1] y",
        "a = MaxPool<kernel_shape=[1,1]>(x) y = GlobalAveragePool(a)",
    )
    graph: Any = graphs.from_model(onnx.parser.parse_model(text))
    found = {b.name: b.size for b in activations(graph, split_kernels(graph), multiple)}
    assert found == {"x": 48, "a": 16 * (3 if multiple == 1 else 16), "y": 3}
