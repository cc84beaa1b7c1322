"""Padding to the target's multiples: same outputs, same contract, and a reason where not."""

from __future__ import annotations

from dataclasses import replace

import fakes
import numpy as np
import onnx
import pytest
import rewriting
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import ModelBuilder
from onnx import numpy_helper
from oracle import assert_same_outputs, evalset_model, random_feeds
from random_cnn import random_cnn

from onnxnas.coupling import Coupling
from onnxnas.graph import from_model
from onnxnas.materialize import apply_candidate
from onnxnas.pass_contract import Why
from onnxnas.passes.align_channels import AlignChannels
from onnxnas.sites import Candidate, SearchSpace, Site

PASS = AlignChannels()
TARGET = replace(fakes.TARGET, channel_multiples=(4, 8, 16))


def found(model: onnx.ModelProto) -> tuple[dict[str, Site], dict[str, str]]:
    return rewriting.find(PASS, model, TARGET)


def aligned(model: onnx.ModelProto, choices: dict[str, str]) -> onnx.ModelProto:
    return rewriting.rewrite(PASS, model, choices, TARGET)


def widths(model: onnx.ModelProto) -> dict[str, int]:
    """Output channels of every convolution, by output."""
    dims = {t.name: t.dims for t in model.graph.initializer}
    return {n.output[0]: dims[n.input[1]][0] for n in model.graph.node if n.op_type == "Conv"}


def bottleneck(hidden: int, opset: int = 13) -> onnx.ModelProto:
    b = ModelBuilder(["n", 3, "h", "w"], opset=opset)
    y = b.op("PRelu", b.conv(b.x, 3, hidden, out="expand"), b.weight(hidden, 1, 1))
    y = b.op("Sigmoid", b.depthwise(y, hidden, out="depthwise", stride=2))
    return b.build(b.conv(y, hidden, 16, out="project"))


@pytest.mark.parametrize("opset", [9, 13, 21])
def test_expand_and_depthwise_are_padded_together(opset: int) -> None:
    model = bottleneck(10, opset)
    sites, misses = found(model)
    assert list(sites) == ["expand"]
    labels = {c.label: (c.params["multiple"], c.exactness) for c in sites["expand"].choices}
    assert labels == {"multiple-of-4": (4, "exact"), "multiple-of-16": (16, "exact")}
    assert sites["expand"].choices[1].note == "10 channels padded to 16 in 4 tensors"
    assert not misses
    feeds = {"x": random_feeds(model, shapes={"x": (2, 3, 9, 7)})["x"]}
    for label, width in (("multiple-of-4", 12), ("multiple-of-16", 16)):
        result = aligned(model, {"expand": label})
        assert widths(result) == {"expand": width, "depthwise": width, "project": 16}
        assert_same_outputs(model, result, feeds)


def test_only_choices_that_change_something_are_offered() -> None:
    assert found(bottleneck(16))[0] == {}
    (site,) = found(bottleneck(8))[0].values()
    assert [c.label for c in site.choices] == ["multiple-of-16"]


def test_a_wrong_weight_shows() -> None:
    model = bottleneck(10)
    result = aligned(model, {"expand": "multiple-of-4"})
    feeds = random_feeds(model, shapes={"x": (2, 3, 9, 7)})
    with pytest.raises(AssertionError, match="off by"):
        assert_same_outputs(model, rewriting.scale_one_weight(result), feeds)


def test_odd_widths_at_the_contract_are_missed_with_the_reason() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = b.conv(b.conv(b.x, 3, 5, out="middle"), 5, 6, out="inner")
    _, misses = found(b.build("middle", b.conv(b.op("Softmax", y, axis=1), 6, 7, out="last")))
    assert misses["middle"] == "'middle' is a graph output"
    assert misses["last"] == "'last' is a graph output"
    assert misses["inner"].startswith("Softmax 'softmax_")


@pytest.mark.parametrize("op", ["Reciprocal", "Log", "Sqrt"])
def test_declines_where_zero_channels_would_become_nan(op: str) -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = b.op(op, b.op("Exp", b.conv(b.x, 3, 5, out="c")), out="y")
    sites, misses = found(b.build(b.conv(y, 5, 16)))
    assert not sites
    assert misses == {"c": f"{op} 'y' is not finite where a new channel is zero"}


def test_divisors_get_ones_and_variances_too() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = b.op("Div", b.conv(b.x, 3, 5, out="c"), b.const(np.full((5, 1, 1), 0.7, np.float32)))
    y = b.op("BatchNormalization", y, *(b.weight(5) for _ in range(3)),
             b.const(np.full(5, 0.3, np.float32)), epsilon=0.0)  # fmt: skip
    model = b.build(b.conv(y, 5, 16))
    assert_same_outputs(model, aligned(model, {"c": "multiple-of-8"}))


def test_parts_of_a_concat_are_padded_on_their_own_and_together() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = b.op("Concat", *(b.conv(b.x, 3, n, out=f"c{n}") for n in (3, 5, 6)), axis=1)
    y = b.op("PRelu", y, b.weight(14, 1, 1))
    y = b.op("Gemm", b.op("Flatten", y), b.weight(14 * 64, 4), b.weight(4))
    model = b.build(y)
    assert list(found(model)[0]) == ["c3", "c5", "c6"]
    for choices in (
        {"c5": "multiple-of-16"},
        {"c3": "multiple-of-4", "c5": "multiple-of-8", "c6": "multiple-of-16"},
    ):
        result = aligned(model, choices)
        assert sum(widths(result).values()) == {1: 25, 3: 28}[len(choices)]
        assert_same_outputs(model, result)


def test_costing_evaluates_no_weight() -> None:
    graph = from_model(bottleneck(10))
    sites = tuple(PASS.find_sites(graph, TARGET, Why(PASS.name)))
    candidate = Candidate.of({sites[0].id: "multiple-of-16"})
    applied = apply_candidate(graph, SearchSpace(sites), candidate, {PASS.name: PASS})
    lazy = [t._values for t in applied.graph.tensors().values() if hasattr(t, "_values")]
    made = [v for v in lazy if hasattr(v, "evaluated")]
    assert len(made) == 6  # two weights and biases, a slope, the projection
    assert not any(v.evaluated for v in made)
    group = Coupling.of(applied.graph).group("expand")
    assert group is not None
    assert group.size == 16


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=random_cnn(), data=st.data())
def test_any_choices_on_any_network_keep_the_outputs(
    model: onnx.ModelProto, data: st.DataObject
) -> None:
    sites, _ = found(model)
    choices = {
        tensor: data.draw(st.sampled_from([c.label for c in site.choices]))
        for tensor, site in sites.items()
        if data.draw(st.booleans())
    }
    result = aligned(model, choices)
    assert_same_outputs(model, result)
    changed = {n.output[0] for n in result.graph.node if n.metadata_props}
    assert bool(changed) == bool(choices)


@pytest.mark.parametrize(
    ("name", "count"),
    [("minifasnet_v2_80", 15), ("mobilenetv2_224", 1), ("yolo_fastest_1.1_320", 15)],
)
def test_real_networks(name: str, count: int) -> None:
    model = onnx.load(evalset_model(name))
    sites, misses = found(model)
    assert len(sites) == count
    assert all("is a graph output" in reason for reason in misses.values())
    widest = {tensor: site.choices[-1].label for tensor, site in sites.items()}
    result = aligned(model, widest)
    grown = sum(numpy_helper.to_array(t).size for t in result.graph.initializer)
    assert grown > sum(numpy_helper.to_array(t).size for t in model.graph.initializer)
    assert_same_outputs(model, result)
