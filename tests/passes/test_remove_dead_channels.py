"""Dead channels: constant ones are folded on, unread ones dropped, and the outputs stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import fakes
import numpy as np
import onnx
import pytest
import rewriting
from hypothesis import HealthCheck, given, settings
from models import ModelBuilder
from numpy.typing import NDArray
from onnx import numpy_helper
from oracle import assert_same_outputs, evalset_model, random_feeds
from random_cnn import random_cnn

from onnxnas.graph import from_model
from onnxnas.materialize import apply_candidate
from onnxnas.pass_contract import Why
from onnxnas.passes.remove_dead_channels import RemoveDeadChannels
from onnxnas.sites import Candidate, SearchSpace

PASS = RemoveDeadChannels()


def edit(b: ModelBuilder, output: str, change: Callable[[NDArray[np.float32]], None]) -> None:
    """Change the weight of the node that writes `output` in place."""
    name = next(n for n in b.nodes if n.output[0] == output).input[1]
    tensor = next(t for t in b.initializers if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def kill(b: ModelBuilder, output: str, channels: Sequence[int]) -> None:
    def change(values: NDArray[np.float32]) -> None:
        values[list(channels)] = 0

    edit(b, output, change)


def width(model: onnx.ModelProto, output: str) -> int:
    name = next(n for n in model.graph.node if n.output[0] == output).input[1]
    return next(int(t.dims[0]) for t in model.graph.initializer if t.name == name)


def removed(model: onnx.ModelProto) -> onnx.ModelProto:
    """All sites rewritten, outputs compared."""
    sites, _ = rewriting.find(PASS, model)
    result = rewriting.rewrite(PASS, model, dict.fromkeys(sites, "remove"))
    assert_same_outputs(model, result)
    return result


def pair(
    act: str = "Sigmoid", k: int = 1, pads: int = 0, bias: bool = True, dead: Sequence[int] = (1, 3)
) -> onnx.ModelProto:
    """Two convolutions and an activation; some filters of the first are zero, their bias is not."""
    b = ModelBuilder([1, 3, 8, 8])
    y = b.op(act, b.conv(b.x, 3, 6, 3, out="first"))
    b.conv(y, 6, 5, k, pads=pads, bias=bias, out="second")
    kill(b, "first", dead)
    return b.build("second")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("k", [1, 3])
def test_constant_channels_are_folded_into_the_next_bias(bias: bool, k: int) -> None:
    model = pair(k=k, bias=bias)
    sites, misses = rewriting.find(PASS, model)
    assert sites["first"].choices[0].note == "2 of 6 channels removed: 2 constant, 0 unread"
    assert sites["first"].choices[0].exactness == "exact"
    assert misses == {}
    result = removed(model)
    assert width(result, "first") == 4
    with pytest.raises(AssertionError, match="off by"):
        assert_same_outputs(model, rewriting.scale_one_weight(result))


def test_a_constant_does_not_pass_a_padded_border() -> None:
    sites, misses = rewriting.find(PASS, pair(k=3, pads=1))
    assert not sites
    assert misses["first"].startswith("2 of 6 channels are constant but not zero, and what reads")


def test_a_zero_passes_a_padded_border() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = b.op("Relu", b.conv(b.x, 3, 6, 3, out="first"))
    y = b.conv(y, 6, 5, 3, pads=[0, 1, 2, 1])
    kill(b, "first", [0, 4])
    bias = next(t for t in b.initializers if t.name == b.nodes[0].input[2])
    bias.CopyFrom(numpy_helper.from_array(-np.arange(1, 7, dtype=np.float32), bias.name))
    assert width(removed(b.build(y)), "first") == 4


def test_unread_channels_go_whatever_they_hold() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = b.op("Relu", b.depthwise(b.conv(b.x, 3, 6, out="first"), 6, out="depthwise"))
    b.conv(y, 6, 5, 3, pads=1, out="second")

    def unread(values: NDArray[np.float32]) -> None:
        values[:, [0, 5]] = 0

    edit(b, "second", unread)
    model = b.build("second")
    sites, _ = rewriting.find(PASS, model)
    assert sites["first"].choices[0].note == "2 of 6 channels removed: 0 constant, 2 unread"
    result = removed(model)
    assert width(result, "first") == width(result, "depthwise") == 4
    assert rewriting.attribute(result, "depthwise", "group") == 4


def test_constants_are_followed_through_a_chain() -> None:
    """Dead in the depthwise only, then through BatchNorm, hard-swish, a slope, pooling, a Gemm."""
    b = ModelBuilder(["n", 3, 8, 8])
    y = b.depthwise(b.conv(b.x, 3, 6, out="first"), 6, out="depthwise")
    y = b.op("BatchNormalization", y, *(b.weight(6) for _ in range(3)),
             b.const(np.linspace(0.5, 2, 6, dtype=np.float32)))  # fmt: skip
    y = b.op("PRelu", b.op("Add", y, b.weight(6, 1, 1)), b.weight(6, 1, 1))
    y = b.op("Mul", y, b.op("HardSigmoid", y))
    y = b.op("Div", b.op("MaxPool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), b.weight(1))
    y = b.op("Flatten", b.op("AveragePool", y, kernel_shape=[4, 4], strides=[4, 4]))
    y = b.op("Gemm", y, b.weight(6 * 4, 7), b.weight(1, 7), alpha=0.7, beta=1.3)
    kill(b, "depthwise", [2, 3])
    result = removed(b.build(y))
    assert width(result, "first") == width(result, "depthwise") == 4


def test_a_residual_channel_is_dead_only_where_both_sides_are() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = b.op("Add", b.conv(b.x, 3, 6, out="left"), b.conv(b.x, 3, 6, out="right"))
    y = b.conv(y, 6, 5)
    kill(b, "left", [0, 1, 2])
    kill(b, "right", [1, 2, 3])
    result = removed(b.build(y))
    assert width(result, "left") == width(result, "right") == 4


def test_a_gate_that_is_zero_kills_what_it_gates() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    x = b.conv(b.x, 3, 6, out="first")
    gate = b.op("Relu", b.conv(b.op("GlobalAveragePool", x), 6, 6, bias=False, out="gate"))
    y = b.conv(b.op("Mul", x, gate), 6, 5, 3, pads=1)
    kill(b, "gate", [4])

    def unread(values: NDArray[np.float32]) -> None:
        values[:, 4] = 0

    edit(b, "gate", unread)  # else the gates would still need the channel's mean
    result = removed(b.build(y))
    assert width(result, "first") == width(result, "gate") == 5


def test_splits_and_concats_move_constants_along() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    b.conv(b.x, 3, 6, out="first")
    b.nodes.append(
        onnx.helper.make_node("Split", ["first", b.const(np.asarray([2, 4]))], ["l", "r"], axis=1)
    )
    y = b.op("Concat", b.op("Tanh", "r"), "l", b.op("Slice", "l", *(
        b.const(np.asarray([v])) for v in (0, 2, 1))), axis=1)  # fmt: skip
    b.conv(y, 8, 5, out="second")
    kill(b, "first", [1, 2, 5])
    model = b.build("second")
    assert set(rewriting.find(PASS, model)[0]) == {"l", "r"}
    assert width(removed(model), "first") == 3


@pytest.mark.parametrize("act", ["Relu", "Sigmoid"])
def test_one_channel_stays_when_all_are_dead(act: str) -> None:
    result = removed(pair(act, dead=range(6)))
    assert width(result, "first") == 1


def test_a_convolution_reading_its_own_group_gets_its_first_bias() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    x = b.op("Sigmoid", b.conv(b.x, 3, 6, out="first"))
    y = b.op("Add", x, b.conv(x, 6, 6, bias=False, out="inner"))
    kill(b, "first", [1, 2])
    kill(b, "inner", [1, 2, 5])
    result = removed(b.build(b.conv(y, 6, 5)))
    assert width(result, "first") == width(result, "inner") == 4


def test_dead_channels_at_a_graph_output_are_missed_with_the_reason() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    b.conv(b.x, 3, 6, out="y")
    kill(b, "y", [1, 2])
    sites, misses = rewriting.find(PASS, b.build("y"))
    assert not sites
    assert misses == {"y": "2 channels are constant, but 'y' is a graph output"}


def test_healthy_networks_have_no_site_and_no_miss() -> None:
    assert rewriting.find(PASS, pair(dead=())) == ({}, {})


def test_a_product_without_bias_cannot_take_a_constant() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = b.op("Sigmoid", b.conv(b.op("GlobalAveragePool", b.x), 3, 6, out="first"))
    y = b.op("MatMul", b.op("Flatten", y), b.weight(6, 4))
    kill(b, "first", [3])
    sites, misses = rewriting.find(PASS, b.build(y))
    assert not sites
    assert "without a constant bias" in misses["first"]


def test_rewriting_evaluates_no_weight() -> None:
    graph = from_model(pair())
    sites = tuple(PASS.find_sites(graph, fakes.TARGET, Why(PASS.name)))
    candidate = Candidate.of({sites[0].id: "remove"})
    applied = apply_candidate(graph, SearchSpace(sites), candidate, {PASS.name: PASS})
    lazy = [t._values for t in applied.graph.tensors().values() if hasattr(t, "_values")]
    made = [v for v in lazy if hasattr(v, "evaluated")]
    assert len(made) == 4
    assert not any(v.evaluated for v in made)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=random_cnn(dead=True))
def test_all_dead_channels_of_any_network_can_go(model: onnx.ModelProto) -> None:
    removed(model)


@pytest.mark.parametrize(
    ("name", "dead"), [("mobilenetv2_224", {"conv_1": 10, "conv_9": 1}), ("minifasnet_v2_80", {})]
)
def test_real_networks(name: str, dead: dict[str, int]) -> None:
    model = onnx.load(evalset_model(name))
    sites, _ = rewriting.find(PASS, model)
    assert {t: len(s.choices[0].params["dead"]) for t, s in sites.items()} == dead
    result = rewriting.rewrite(PASS, model, dict.fromkeys(sites, "remove"))
    assert_same_outputs(model, result, random_feeds(model, seed=3))


def test_a_width_the_target_works_in_is_offered_too() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = b.op("Sigmoid", b.conv(b.x, 3, 14, 3, out="first"))
    b.conv(y, 14, 5, out="second")
    kill(b, "first", [1, 3, 4, 8, 13])
    model = b.build("second")
    sites, _ = rewriting.find(PASS, model)  # multiples of 4 and 8
    assert [c.label for c in sites["first"].choices] == ["remove", "remove-to-multiple-of-4"]
    result = rewriting.rewrite(PASS, model, {"first": "remove-to-multiple-of-4"})
    assert width(result, "first") == 12
    assert_same_outputs(model, result)
