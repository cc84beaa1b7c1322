"""Lowered files are legal TFLite and compute what the network computes, within int8."""

from __future__ import annotations

import gc
from typing import Any

import models
import numpy as np
import onnx
import oracle
import pytest
from numpy.typing import NDArray
from tflite_cases import CASES

from onnxnas.graph import LazyWeight, from_model, static_view
from onnxnas.hwmodels.tflite_context import WeightCache
from onnxnas.hwmodels.tflite_lowering import Lowered, lower

TOLERANCE = 0.06
"""Of the largest magnitude: a few int8 steps, and far below any misplaced element."""


def all_values(model: onnx.ModelProto, feeds: oracle.Feeds) -> dict[str, NDArray[Any]]:
    """Every tensor of a network, from onnxruntime."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {o.name for o in model.graph.output}
    for node in model.graph.node:
        for name in set(node.output) - known:
            probe.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return {**feeds, **oracle.run(probe, feeds)}


def run_tflite(tflite: bytes, feeds: oracle.Feeds) -> NDArray[Any]:
    """The only output of a file, dequantised."""
    interpreter_module = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = interpreter_module.Interpreter(model_content=tflite)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        values = feeds[detail["name"]]
        values = values.transpose(0, 2, 3, 1) if values.ndim == 4 else values
        scale, zero = detail["quantization"]
        stored = np.clip(np.rint(values / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(detail["index"], stored.reshape(detail["shape"]))
    interpreter.invoke()
    (detail,) = interpreter.get_output_details()
    result: NDArray[Any] = interpreter.get_tensor(detail["index"])
    scale, zero = detail["quantization"]
    return (result.astype(np.float64) - zero) * scale if scale else result


def error(model: onnx.ModelProto, lowered_from: onnx.ModelProto | None = None) -> float:
    """Largest deviation of the lowered network from onnxruntime, relative to the largest value."""
    feeds = oracle.random_feeds(model)
    values = all_values(model, feeds)
    ranges = {name: (float(v.min()), float(v.max())) for name, v in values.items()}
    lowered = lower(static_view(from_model(lowered_from or model), {}), ranges=ranges)
    assert [p.reason for p in lowered.parts if p.reason] == []
    want = values[model.graph.output[0].name]
    if not lowered.tflite:  # nothing to compute: the network only renames its input
        return 0.0
    got = run_tflite(lowered.tflite, feeds)
    if got.shape != want.shape:
        want = np.moveaxis(want, 1, -1)
    assert got.shape == want.shape
    if got.dtype == np.int32:  # the index of a maximum; near ties may flip
        return float(np.mean(got != want))
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("name", CASES)
def test_a_lowered_operator_computes_the_same(name: str) -> None:
    assert error(CASES[name].model()) < TOLERANCE


def test_a_misplaced_weight_is_seen() -> None:
    model, sabotaged = CASES["conv same"].model(), CASES["conv same"].model()
    weight = sabotaged.graph.initializer[0]
    flipped = onnx.numpy_helper.to_array(weight)[:, :, :, ::-1].copy()
    weight.CopyFrom(onnx.numpy_helper.from_array(flipped, weight.name))
    assert error(model) < TOLERANCE < error(model, lowered_from=sabotaged)


def parts(model: onnx.ModelProto) -> Lowered:
    return lower(static_view(from_model(model), {}))


def operators(lowered: Lowered) -> list[int]:
    return [len(p.operators) for p in lowered.parts]


@pytest.mark.parametrize("spelling", ["divide last", "divide first", "multiply", "gate"])
def test_a_spelt_out_hard_swish_is_one_operator(spelling: str) -> None:
    assert operators(parts(CASES[f"hard-swish, {spelling}"].model())) == [1, 1]


def test_a_hard_swish_read_from_inside_stays_in_pieces() -> None:
    b = models.ModelBuilder([1, 8, 6, 6], 14)
    gate = b.op("HardSigmoid", b.x, alpha=1 / 6)
    lowered = parts(b.build(b.op("Mul", gate, b.x), gate))
    assert [p.op for p in lowered.parts] == ["HardSigmoid", "Mul"]


def test_an_activation_after_a_graph_output_is_not_fused() -> None:
    b = models.ModelBuilder([1, 8, 6, 6])
    y = b.conv(b.x, 8, 8)
    assert len(parts(b.build(y, b.op("Relu", y))).parts) == 2


def test_every_tensor_is_in_one_part() -> None:
    for case in CASES.values():
        model = case.model()
        computed = sorted(o for n in model.graph.node for o in n.output)
        assert sorted(t for p in parts(model).parts for t in p.tensors) == computed


def test_what_has_no_form_splits_the_network() -> None:
    b = models.ModelBuilder([1, 8, 6, 6])
    inner = b.op("Relu", b.conv(b.x, 8, 8))
    y = b.conv(b.op("Erf", inner), 8, 4)
    lowered = parts(b.build(y))
    assert [(p.op, bool(p.reason)) for p in lowered.parts] == [
        ("Conv", False),
        ("Erf", True),
        ("Conv", False),
    ]
    interpreter_module = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = interpreter_module.Interpreter(model_content=lowered.tflite)
    assert {d["name"] for d in interpreter.get_output_details()} == {inner, y}
    assert {d["name"] for d in interpreter.get_input_details()} == {b.x, b.nodes[-2].output[0]}


def test_lazy_weights_are_read_and_quantised_once() -> None:
    b = models.ModelBuilder([1, 8, 6, 6])
    graph = from_model(b.build(b.conv(b.x, 8, 16)))
    weight = graph.nodes[0].inputs[1]
    values, calls = np.array(weight.values), []

    def compute() -> NDArray[Any]:
        calls.append(1)
        return values

    expected = lower(static_view(graph, {})).tflite
    weight.values = LazyWeight(values.shape, values.dtype, compute)
    cache = WeightCache()
    for _ in range(2):
        assert lower(static_view(graph, {}), cache).tflite == expected
    assert calls == [1]
    assert len(cache._entries) == 1


def test_quantised_weights_go_with_their_arrays() -> None:
    cache = WeightCache()
    graph = static_view(from_model(CASES["depthwise"].model()), {})
    lower(graph, cache)
    assert cache._entries
    del graph
    gc.collect()
    assert not cache._entries


def test_lowering_is_deterministic() -> None:
    model = CASES["squeeze-excite"].model()
    assert parts(model).tflite == parts(model).tflite
