"""Groups: what is coupled, what is not, what is pinned, and what a site claims of it."""

from __future__ import annotations

import time

import onnx
import pytest
from models import ModelBuilder
from oracle import evalset_model

from onnxnas.coupling import Coupling, Group
from onnxnas.graph import LazyWeight, from_model


def coupling(b: ModelBuilder, *outputs: str) -> Coupling:
    return Coupling.of(from_model(b.build(*outputs)))


def group_of(found: Coupling, tensor: str) -> Group:
    group = found.group(tensor)
    assert group is not None
    return group


def uses(group: Group) -> list[tuple[str, int, int, str]]:
    return [(c.node.outputs[0].name, c.input, c.axis, c.role) for c in group.constants]


def test_expand_and_depthwise_of_a_bottleneck_are_one_group() -> None:
    b = ModelBuilder(["n", 3, "h", "w"])
    y = b.op("Relu", b.conv(b.x, 3, 10, out="expand"), out="act")
    y = b.depthwise(y, 10, out="depthwise", bias=False)
    found = coupling(b, b.conv(y, 10, 4, out="project"))
    group = group_of(found, "depthwise")
    assert group is found.group("expand")
    assert (group.name, group.size, group.pins) == ("expand", 10, ())
    assert [a.tensor.name for a in group.tensors] == ["expand", "act", "depthwise"]
    assert uses(group) == [
        ("expand", 1, 0, "produces"),
        ("expand", 2, 0, "produces"),
        ("depthwise", 1, 0, "per-channel"),
        ("project", 1, 1, "consumes"),
    ]
    assert [c.input for c in group.producers] == [1, 2]
    assert [c.node.outputs[0].name for c in group.consumers] == ["project"]
    assert group.claims == {"channels:expand", "channels:act", "channels:depthwise"}


def test_inputs_outputs_and_outputs_in_the_middle_are_pinned() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    middle = b.conv(b.x, 3, 4, out="middle")
    inner = b.conv(b.op("Relu", middle), 4, 5, out="inner")
    found = coupling(b, "middle", b.conv(inner, 5, 6, out="last"))
    assert group_of(found, "x").pins == ("it is a graph input",)
    assert group_of(found, "middle").pins == ("'middle' is a graph output",)
    assert group_of(found, "last").pins == ("'last' is a graph output",)
    assert group_of(found, "inner").pins == ()


def test_a_residual_with_the_input_pins_the_whole_stage() -> None:
    b = ModelBuilder([1, 6, 8, 8])
    y = b.ibn(b.x, 6, 12, 6)
    found = coupling(b, b.conv(b.ibn(y, 6, 12, 6), 6, 2))
    assert group_of(found, y).pins == ("it is a graph input",)


def test_concat_keeps_its_parts_apart_and_they_claim_their_share() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    left, right = b.conv(b.x, 3, 4, out="left"), b.conv(b.x, 3, 6, out="right")
    joined = b.op("Relu", b.op("Concat", left, right, axis=1, out="joined"), out="act")
    found = coupling(b, b.conv(joined, 10, 2, out="y"))
    assert found.group("joined") is None
    group = group_of(found, "right")
    assert group is not found.group("left")
    assert group.claims == {"channels:right", "channels:joined[4:10]", "channels:act[4:10]"}
    assert not group.claims & group_of(found, "left").claims
    (use,) = group.consumers
    assert [(run.start, run.repeat) for run in use.runs] == [(4, 1)]


def test_concat_added_to_one_convolution_splits_its_channels_too() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    joined = b.op("Concat", b.conv(b.x, 3, 4, out="a"), b.conv(b.x, 3, 6, out="b"), axis=1)
    y = b.op("Add", joined, b.conv(b.x, 3, 10, out="wide"))
    found = coupling(b, b.conv(y, 10, 2))
    assert found.group("wide") is None
    assert [c.runs[0].start for c in group_of(found, "b").producers if c.input == 1] == [0, 4]


def test_a_tensor_joined_with_itself_is_one_group_twice() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = b.op("Concat", b.conv(b.x, 3, 4, out="a"), "a", axis=1, out="aa")
    group = group_of(coupling(b, b.conv(y, 8, 2)), "a")
    assert [run.start for run in group.consumers[0].runs] == [0, 4]
    assert group.claims == {"channels:a", "channels:aa[0:4]", "channels:aa[4:8]"}


def test_chained_residuals_are_one_group() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = first = b.conv(b.x, 3, 8, out="first")
    for _ in range(4):
        y = b.ibn(y, 8, 12, 8)
    found = coupling(b, b.conv(y, 8, 2))
    assert found.group(y) is found.group(first)
    assert len([c for c in group_of(found, first).producers if c.input == 1]) == 5


def test_a_single_channel_spread_over_others_keeps_its_width() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    x = b.conv(b.x, 3, 4, out="many")
    y = b.op("Mul", x, b.op("Sigmoid", b.conv(x, 4, 1, out="one")), out="y")
    found = coupling(b, b.conv(y, 4, 2))
    assert group_of(found, "one").pins == ("Mul 'y' spreads it over channels",)
    assert group_of(found, "many").pins == ()


def test_evaluates_no_weight() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    graph = from_model(b.build(b.conv(b.conv(b.x, 3, 4, out="a"), 4, 2)))
    weight = graph.nodes[0].inputs[1]
    lazy = LazyWeight(tuple(weight.shape), weight.dtype, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    weight.values = lazy
    group = Coupling.of(graph).group("a")
    assert group is not None
    assert not lazy.evaluated


@pytest.mark.parametrize(
    ("name", "groups"),
    [("mobilenetv2_224", 27), ("minifasnet_v2_80", 23), ("yolo_fastest_1.1_320", 39)],
)
def test_real_networks_are_coupled_in_no_time(name: str, groups: int) -> None:
    graph = from_model(onnx.load(evalset_model(name))).cleanup().toposort()
    start = time.perf_counter()
    found = Coupling.of(graph)
    assert time.perf_counter() - start < 0.2, "a few milliseconds on a quiet machine"
    assert len(found.groups) == groups
    assert not found.opaque
