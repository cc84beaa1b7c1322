"""Smaller inputs: what is put in front and behind, where it declines, and what is fitted then."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
import rewriting
from fakes import TARGET, ToyCostModel
from fitting import error, recovery, result
from oracle import assert_same_outputs, random_feeds, run

from onnxnas.cost import Cost
from onnxnas.graph import check_model, contract, from_model
from onnxnas.materialize import apply_candidate
from onnxnas.pass_contract import Why
from onnxnas.passes.resize_ibn import ResizeIbn
from onnxnas.passes.resize_input import ResizeInput
from onnxnas.recover import Recovery, values_only
from onnxnas.resized import as_original
from onnxnas.search import Evaluator
from onnxnas.sites import Candidate, SearchSpace

PASS = ResizeInput()


def classifier(size: int = 32, batch: int | str = 1, opset: int = 13) -> onnx.ModelProto:
    b = models.ModelBuilder([batch, 3, size, size], opset=opset)
    y = b.op("Relu", b.conv(b.x, 3, 8, 3, stride=2, pads=1, out="stem"))
    y = b.ibn(b.ibn(y, 8, 32, 8, stride=2), 8, 32, 8)
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    return b.build(b.op("Gemm", y, b.weight(10, 8), b.weight(10), transB=1, out="logits"))


def segmenter(*, fixed: bool, argmax: bool = False) -> onnx.ModelProto:
    """Half the resolution and back, the way back by a factor or to a fixed size."""
    b = models.ModelBuilder([1, 3, 16, 16])
    skip = b.op("Relu", b.conv(b.x, 3, 8, 3, stride=2, pads=1))
    deep = b.op("Relu", b.conv(skip, 8, 8, 3, stride=2, pads=1))
    if fixed:
        sizes = b.const(np.array([1, 8, 8, 8], np.int64))
        up = b.op("Resize", deep, "", "", sizes, mode="linear")
    else:
        up = b.op("Resize", deep, "", b.const(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    y = b.conv(b.op("Add", skip, up), 8, 5, out="scores")
    if not argmax:
        return b.build(y)
    y = b.op("Cast", b.op("ArgMax", b.op("Sigmoid", y), axis=1, keepdims=0), to=1)
    return b.build(y)


def smooth(size: int, count: int = 60, seed: int = 3) -> Any:
    """Pictures that survive being made smaller."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 4, 4)).astype(np.float32)
    return coarse.repeat(size // 4, 2).repeat(size // 4, 3)


def test_sizes_are_multiples_of_the_total_stride() -> None:
    sites, _ = rewriting.find(PASS, classifier(32))
    assert [c.label for c in sites["x"].choices] == ["to-28x28", "to-24x24", "to-20x20", "to-16x16"]
    sites, _ = rewriting.find(PASS, classifier(33))
    assert [c.params["size"] for c in sites["x"].choices][:2] == [(29, 29), (25, 25)]
    sites, _ = rewriting.find(PASS, classifier(36))  # a half need be no multiple of the stride
    assert [c.label for c in sites["x"].choices][-1] == "to-18x18"
    sites, _ = rewriting.find(ResizeInput(ratios=(1.25,)), classifier(32))
    assert [c.label for c in sites["x"].choices] == ["to-40x40"]


@pytest.mark.parametrize("batch", [1, "n"])
@pytest.mark.parametrize("opset", [11, 13, 20])
@pytest.mark.parametrize("label", ["to-24x24", "to-16x16"])
def test_the_network_runs_on_the_resized_picture(batch: int | str, opset: int, label: str) -> None:
    model = classifier(32, batch, opset)
    small = rewriting.rewrite(PASS, model, {"x": label})
    front = "AveragePool" if label == "to-16x16" else "Resize"
    assert rewriting.ops(small)[0] == front
    size = int(label[-2:])
    feeds = random_feeds(model)
    shown = onnx.ModelProto()
    shown.CopyFrom(small)
    shown.graph.output.add().name = small.graph.node[0].output[0]
    resized = run(shown, feeds)
    assert resized[small.graph.node[0].output[0]].shape[2:] == (size, size)
    inner = classifier(size, batch, opset)  # the same weights: they do not depend on the size
    direct = run(inner, {"x": resized[small.graph.node[0].output[0]]})
    np.testing.assert_allclose(resized["logits"], direct["logits"], rtol=1e-4, atol=1e-5)
    broken = rewriting.scale_one_weight  # sabotage below must be seen
    stem = next(n for n in small.graph.node if n.op_type == "Conv")
    assert stem.metadata_props
    with pytest.raises(AssertionError):
        assert_same_outputs(small, broken(small, 1.5), feeds)


class NoResize(ToyCostModel):
    """A target that leaves Resize to somebody else."""

    def cost(self, graph: Any) -> Cost:
        cost = super().cost(graph)
        kernels = tuple(
            replace(k, cycles=None, reason="left to the CPU") if k.op == "Resize" else k
            for k in cost.kernels
        )
        cycles = sum(k.cycles or 0.0 for k in kernels)
        return replace(cost, kernels=kernels, cycles=cycles, seconds=cycles / 1e9)


def test_a_resize_that_has_no_cost_saves_nothing() -> None:
    graph = from_model(classifier())
    space = SearchSpace(tuple(PASS.find_sites(graph, TARGET, Why(PASS.name))))
    evaluator = Evaluator(graph, space, {PASS.name: PASS}, NoResize(), {})
    moves = [Candidate.of({"resize-input@x": label}) for label in ("to-24x24", "to-16x16")]
    resized, pooled = evaluator.evaluate(moves)
    assert resized.cost is None
    assert resized.reason == "its Resize has no cost on toy: left to the CPU"
    assert pooled.cycles < evaluator.evaluate([Candidate()])[0].cycles


def test_half_by_averages_is_half_by_interpolation() -> None:
    b = models.ModelBuilder([1, 3, 8, 8])
    pooled = b.build(b.op("AveragePool", b.x, kernel_shape=[2, 2], strides=[2, 2], out="y"))
    b = models.ModelBuilder([1, 3, 8, 8])
    half = b.const(np.array([1, 1, 0.5, 0.5], np.float32))
    y = b.op("Resize", b.x, "", half, mode="linear", out="y")
    assert_same_outputs(pooled, b.build(y), random_feeds(pooled))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("argmax", [False, True])
def test_maps_are_enlarged_again(fixed: bool, argmax: bool) -> None:
    model = segmenter(fixed=fixed, argmax=argmax)
    small = rewriting.rewrite(PASS, model, {"x": "to-12x12"})
    want, have = (run(m, random_feeds(model)) for m in (model, small))
    assert {k: v.shape for k, v in want.items()} == {k: v.shape for k, v in have.items()}
    resize = next(n for n in small.graph.node if n.output[0] == "scores")
    assert resize.op_type == "Resize"


def test_the_contract_may_change_if_asked() -> None:
    model = classifier()
    pass_ = PASS.for_new_contract()
    graph = from_model(model)
    space = SearchSpace(tuple(pass_.find_sites(graph, TARGET, Why(pass_.name))))
    candidate = Candidate.of({"resize-input@x": "to-16x16"})
    applied = apply_candidate(graph, space, candidate, {pass_.name: pass_})
    assert list(applied.graph.inputs[0].shape) == [1, 3, 32, 32]  # for fitting and judging
    view = applied.view({"x": (1, 3, 32, 32)})
    assert list(view.inputs[0].shape) == [1, 3, 16, 16]
    assert sorted(n.op for n in view.nodes) == sorted(n.op for n in graph.nodes)
    small = applied.model(model)
    assert [p.shape for p in contract(small)[0]] == [(1, 3, 16, 16)]
    assert_same_outputs(rewriting.rewrite(PASS, model, {"x": "to-16x16"}), as_original(small))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("argmax", [False, True])
def test_maps_have_the_new_size_if_asked(fixed: bool, argmax: bool) -> None:
    model = segmenter(fixed=fixed, argmax=argmax)
    pass_ = PASS.for_new_contract()
    graph = from_model(model)
    space = SearchSpace(tuple(pass_.find_sites(graph, TARGET, Why(pass_.name))))
    candidate = Candidate.of({"resize-input@x": "to-12x12"})
    small = apply_candidate(graph, space, candidate, {pass_.name: pass_}).model(model)
    check_model(small)
    (image,), (maps,) = contract(small)
    assert (image.shape, maps.shape) == ((1, 3, 12, 12), (1, 6, 6) if argmax else (1, 5, 6, 6))
    (maps,) = contract(as_original(small))[1]
    assert maps.shape == contract(model)[1][0].shape
    kept = rewriting.rewrite(PASS, model, {"x": "to-12x12"})
    have, want = (
        next(iter(run(m, random_feeds(model)).values())) for m in (as_original(small), kept)
    )
    if argmax:  # enlarged as classes here, as scores there
        assert set(np.unique(have)) <= set(range(5))
        assert (have == want).mean() > 0.6
    else:
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)


def test_nothing_is_fitted_but_the_rest_is_fitted_behind_it(tmp_path: Path) -> None:
    model, rows = classifier(32), smooth(32)
    only = recovery(tmp_path, model, PASS, rows=rows)
    fits, refused = only.alone([("resize-input@x", "to-24x24")])
    assert not refused
    assert not fits["resize-input@x", "to-24x24"].values
    passes = {PASS.name: PASS, "resize-ibn": ResizeIbn(steps=0)}
    sites = [s for p in passes.values() for s in p.find_sites(only.graph, TARGET, Why(""))]
    both = Recovery(
        only.graph, "digest", SearchSpace(tuple(sites)), passes, only.rows, only.library
    )
    candidate = Candidate.of({s.id: s.choices[1].label for s in both.space})
    assert len(candidate.decisions) == 3
    fitted, refused = both.in_order(candidate)
    assert not refused
    new = smooth(32, 12, seed=8)
    wrong = error(model, result(both, model, values_only(fitted), candidate), new)
    assert wrong < error(model, result(both, model, None, candidate), new)


def flat() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 3, 16, 16])
    y = b.op("Flatten", b.op("Relu", b.conv(b.x, 3, 4, 3, stride=2, pads=1)))
    return b.build(b.op("Gemm", y, b.weight(256, 5)))


def rearranged() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 3, 16, 16])
    y = b.conv(b.x, 3, 8, 3, stride=2, pads=1)
    return b.build(b.op("Reshape", y, b.const(np.array([1, 8, 64], np.int64))))


def swallowed() -> onnx.ModelProto:
    """A depthwise convolution as wide as the map it reads, in place of a mean."""
    b = models.ModelBuilder([1, 3, 16, 16])
    y = b.depthwise(b.op("Relu", b.conv(b.x, 3, 8, 3, stride=2, pads=1)), 8, 8, pads=0)
    return b.build(b.op("Gemm", b.op("Flatten", y), b.weight(8, 5)))


def two_inputs() -> onnx.ModelProto:
    model = classifier()
    model.graph.input.append(model.graph.input[0])
    model.graph.input[1].name = "other"
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (flat, "do not fit together"),
        (rearranged, "is to a fixed size"),
        (swallowed, "nothing would be left|do not fit together"),
        (two_inputs, "2 inputs"),
        (models.dynamic_size, "no picture of fixed size"),
        (models.grouped_convs, "16 channels"),
    ],
)
def test_declines_with_a_reason(model: Any, reason: str) -> None:
    sites, misses = rewriting.find(PASS, model())
    assert not sites
    assert any(re.search(reason, miss) for miss in misses.values()), misses
