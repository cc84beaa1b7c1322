"""Two convolutions in a row become one, border included; every other pair is declined aloud."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fitting
import models
import numpy as np
import onnx
import oracle
import pytest
import rewriting

from onnxnas.graph import from_model, to_model
from onnxnas.passes.merge_linear_convs import MergeLinearConvs
from onnxnas.passes.resize_ibn import ResizeIbn
from onnxnas.recover import values_only
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.sites import Candidate

PASS = MergeLinearConvs()
Kernel = tuple[int, int]


def pair(
    first: dict[str, Any],
    second: dict[str, Any],
    shape: Sequence[int | str] = (2, 8, 11, 9),
    opset: int = 13,
) -> onnx.ModelProto:
    """Convolution a, then b reading it; keys are `add`'s arguments."""
    b = models.ModelBuilder(shape, opset=opset, seed=3)
    a = add(b, b.x, "a", **{"cin": 8, "cout": 12, **first})
    y = add(b, a, "b", **{"cin": 12, "cout": 20, **second})
    return b.build(b.op("Relu", y))


def add(
    b: models.ModelBuilder,
    x: str,
    out: str,
    *,
    cin: int,
    cout: int,
    k: Kernel = (1, 1),
    group: int = 1,
    bias: bool = True,
    **attrs: Any,
) -> str:
    inputs = [x, b.weight(cout, cin // group, *k)]
    if bias:
        inputs.append(b.weight(cout, scale=2.0))
    return b.op("Conv", *inputs, out=out, group=group, **attrs)


DEPTHWISE = {"group": 12, "cout": 12, "k": (3, 3)}
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "1x1 into 1x1": ({}, {}),
    "without any bias": ({"bias": False}, {"bias": False}),
    "bias only first": ({}, {"bias": False}),
    "bias only second, padded": ({"bias": False}, {"k": (3, 3), "pads": [1] * 4}),
    "1x1 into 3x3": ({}, {"k": (3, 3)}),
    "1x1 into depthwise": ({}, DEPTHWISE),
    "1x1 into depthwise with multiplier": ({}, {**DEPTHWISE, "cout": 24}),
    "3x3 into 1x1": ({"k": (3, 3), "pads": [1, 0, 2, 1]}, {}),
    "3x3 stride 2 into 1x1 stride 2": ({"k": (3, 3), "strides": [2, 2], "pads": [1] * 4},
                                       {"strides": [2, 2]}),
    "dilated 3x3 into 1x1": ({"k": (3, 3), "dilations": [2, 1]}, {}),
    "1x1 into dilated 3x3 stride 2": ({}, {"k": (3, 3), "dilations": [1, 2], "strides": [2, 1]}),
    "1x1 stride 2 into 3x3": ({"strides": [2, 2]}, {"k": (3, 3), "strides": [1, 2]}),
    "1x1 stride 2 into padded 3x3": ({"strides": [2, 2], "bias": False},
                                     {"k": (3, 3), "pads": [1, 2, 0, 1]}),
    "depthwise into 1x1": ({"group": 8, "cout": 8, "k": (3, 3), "pads": [1] * 4}, {"cin": 8}),
    "depthwise with multiplier into 1x1": ({"group": 8, "cout": 16, "k": (3, 3)}, {"cin": 16}),
    "depthwise SAME_UPPER stride 2 into 1x1": (
        {"group": 8, "cout": 8, "k": (3, 3), "auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"cin": 8, "strides": [2, 2]},
    ),
    "grouped into the same groups": ({"group": 4}, {"group": 4}),
    "4 groups into 6 groups": ({"group": 4}, {"group": 6, "cout": 18}),
    "depthwise 1x1 into depthwise": ({"group": 8, "cout": 8}, {**DEPTHWISE, "cin": 8, "cout": 8,
                                                               "group": 8}),
    "1x3 into 3x1": ({"k": (1, 3), "pads": [0, 1, 0, 1]}, {"k": (3, 1)}),
    "3x1 into 1x3": ({"k": (3, 1), "strides": [2, 1]}, {"k": (1, 3), "strides": [1, 3]}),
    "padded 1x1 into 3x3": ({"pads": [1, 0, 1, 2]}, {"k": (3, 3)}),
}  # fmt: skip
BORDERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "3x3": ({}, {"k": (3, 3), "pads": [1] * 4}),
    "3x3 without second bias": ({}, {"k": (3, 3), "pads": [1] * 4, "bias": False}),
    "depthwise": ({}, {**DEPTHWISE, "pads": [1] * 4}),
    "depthwise multiplier": ({}, {**DEPTHWISE, "cout": 24, "pads": [0, 1, 1, 2]}),
    "grouped": ({"group": 4}, {"group": 2, "k": (3, 3), "pads": [1] * 4}),
    "dilated stride 2": ({}, {"k": (3, 3), "dilations": [2, 3], "strides": [2, 1],
                              "pads": [2, 3, 1, 3]}),
    "after stride 2": ({"strides": [2, 2]}, {"k": (3, 3), "pads": [1, 1, 1, 1]}),
    "SAME_LOWER": ({}, {"k": (3, 3), "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "both padded": ({"pads": [1, 0, 0, 1]}, {"k": (3, 3), "pads": [1] * 4}),
    "1x3 into padded 3x1": ({"k": (1, 3), "pads": [0, 1, 0, 1]}, {"k": (3, 1),
                                                                 "pads": [1, 0, 1, 0]}),
    "padded 1x1": ({}, {"pads": [0, 1, 1, 0]}),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_merge_is_exact(name: str) -> None:
    model = pair(*PAIRS[name])
    sites, misses = rewriting.find(PASS, model)
    assert not misses
    assert [c.label for c in sites["b"].choices] == ["merge"]
    assert sites["b"].claims == {"node:a", "node:b", "channels:a", "weights:a"}
    result = rewriting.rewrite(PASS, model, {"b": "merge"})
    assert rewriting.ops(result) == ["Conv", "Relu"]
    oracle.assert_same_outputs(model, result)


@pytest.mark.parametrize("name", BORDERS)
def test_a_bias_before_padding_becomes_a_plane(name: str) -> None:
    model = pair(*BORDERS[name])
    sites, misses = rewriting.find(PASS, model)
    assert not misses
    assert [c.label for c in sites["b"].choices] == ["merge-with-border-plane"]
    result = rewriting.rewrite(PASS, model, {"b": "merge-with-border-plane"})
    assert rewriting.ops(result) == ["Conv", "Add", "Relu"]
    oracle.assert_same_outputs(model, result)


def test_a_plane_that_forgets_the_border_is_noticed() -> None:
    model = pair(*BORDERS["3x3"])
    result = rewriting.rewrite(PASS, model, {"b": "merge-with-border-plane"})
    plane = next(t for t in result.graph.initializer if "plane" in t.name)
    values = onnx.numpy_helper.to_array(plane)
    everywhere = np.broadcast_to(values[:, :, 5:6, 5:6], values.shape)
    plane.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(everywhere), plane.name))
    with pytest.raises(AssertionError, match="off by"):
        oracle.assert_same_outputs(model, result)


def test_a_wrong_weight_is_noticed() -> None:
    model = pair(*PAIRS["1x1 into depthwise"])
    result = rewriting.rewrite(PASS, model, {"b": "merge"})
    with pytest.raises(AssertionError, match="off by"):
        oracle.assert_same_outputs(model, rewriting.scale_one_weight(result))


@pytest.mark.parametrize("opset", [9, 11, 17, 22])
def test_any_opset_and_a_dynamic_batch(opset: int) -> None:
    for first, second in (PAIRS["3x3 into 1x1"], BORDERS["depthwise"]):
        model = pair(first, second, ("n", 8, 11, 9), opset)
        (choice,) = rewriting.find(PASS, model)[0]["b"].choices
        oracle.assert_same_outputs(model, rewriting.rewrite(PASS, model, {"b": choice.label}))


def test_a_dynamic_image_size_merges_only_without_a_border() -> None:
    sizes = ("n", 8, "h", "w")
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8, 9, 7)).astype(np.float32)}
    for name in ("1x1 into 3x3", "bias only second, padded", "3x3 into 1x1"):
        model = pair(*PAIRS[name], sizes)
        result = rewriting.rewrite(PASS, model, {"b": "merge"})
        oracle.assert_same_outputs(model, result, feeds)
    sites, misses = rewriting.find(PASS, pair(*BORDERS["3x3"], sizes))
    assert not sites
    assert "needs a fixed image size" in misses["b"]


def test_an_all_zero_bias_needs_no_plane() -> None:
    b = models.ModelBuilder([1, 8, 6, 6])
    a = b.op("Conv", b.x, b.weight(4, 8, 1, 1), b.const(np.zeros(4, np.float32)), out="a")
    model = b.build(b.conv(a, 4, 8, 3, pads=1, out="b"))
    assert rewriting.find(PASS, model)[0]["b"].choices[0].label == "merge"
    oracle.assert_same_outputs(model, rewriting.rewrite(PASS, model, {"b": "merge"}))


def test_the_note_says_how_weights_change() -> None:
    (choice,) = rewriting.find(PASS, pair(*BORDERS["depthwise"]))[0]["b"].choices
    assert choice.note == "1x1 into depthwise 3x3, weights x4.2"  # 864 for 96 + 108


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"k": (3, 3)}, {"k": (3, 3)}, "both kernels are larger than 1x1"),
        ({"k": (3, 1)}, {"k": (3, 1)}, "both kernels are larger than 1x1"),
        ({"k": (3, 3)}, {"pads": [1] * 4}, "it pads the output of a kernel larger than 1x1"),
    ],
)
def test_declines_what_does_not_compose(
    first: dict[str, Any], second: dict[str, Any], reason: str
) -> None:
    sites, misses = rewriting.find(PASS, pair(first, second))
    assert not sites
    assert reason in misses["b"]


@pytest.mark.parametrize("op", ["Relu", "Clip", "Identity"])
def test_declines_across_an_operator(op: str) -> None:
    b = models.ModelBuilder([1, 8, 6, 6])
    model = b.build(b.conv(b.op(op, b.conv(b.x, 8, 8, out="a")), 8, 4, out="b"))
    sites, misses = rewriting.find(PASS, model)
    assert not sites
    assert misses == {"b": f"{op} stands between it and the convolution 'a'"}


def test_declines_across_a_batch_normalization_or_a_constant() -> None:
    b = models.ModelBuilder([1, 8, 6, 6])
    ones = b.const(np.ones(8, np.float32))
    y = b.conv(b.op("BatchNormalization", b.conv(b.x, 8, 8, out="a"), *[ones] * 4), 8, 8, out="b")
    scaled = b.op("Mul", y, b.const(np.full((8, 1, 1), 2, np.float32)))
    model = b.build(b.conv(scaled, 8, 8, out="c"))
    assert rewriting.find(PASS, model)[1] == {
        "b": "BatchNormalization stands between it and the convolution 'a'",
        "c": "Mul stands between it and the convolution 'b'",
    }


def test_a_residual_between_is_no_pair() -> None:
    b = models.ModelBuilder([1, 8, 6, 6])
    model = b.build(b.conv(b.op("Add", b.x, b.conv(b.x, 8, 8)), 8, 8))
    assert rewriting.find(PASS, model) == ({}, {})


def test_declines_what_others_read() -> None:
    b = models.ModelBuilder([1, 8, 6, 6])
    a = b.conv(b.x, 8, 8, out="a")
    model = b.build(b.op("Add", a, b.conv(a, 8, 8, out="b")))
    assert rewriting.find(PASS, model) == (
        {},
        {"b": "'a', which it reads, is also needed elsewhere"},
    )
    b = models.ModelBuilder([1, 8, 6, 6])
    a = b.conv(b.x, 8, 8, out="a")
    model = b.build(b.conv(a, 8, 8, out="b"), a)
    assert "needed elsewhere" in rewriting.find(PASS, model)[1]["b"]


def test_declines_half_precision_and_other_convolutions() -> None:
    model = pair({}, {})
    for tensor in model.graph.initializer:
        half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    assert "rounding of float16" in rewriting.find(PASS, model)[1]["b"]

    b = models.ModelBuilder([1, 8, 6])
    a = b.op("Conv", b.x, b.weight(8, 8, 1), out="a")
    model = b.build(b.op("Conv", a, b.weight(8, 8, 1), out="b"))
    assert "1-D" in rewriting.find(PASS, model)[1]["b"]


def test_shared_weights_stay_for_their_other_readers() -> None:
    b = models.ModelBuilder([1, 8, 6, 6])
    w = b.weight(8, 8, 1, 1)
    a = b.op("Conv", b.x, w, out="a")
    y = b.op("Conv", a, w, out="b")
    model = b.build(b.op("Conv", b.op("Relu", y), w, out="c"))
    result = rewriting.rewrite(PASS, model, {"b": "merge"})
    assert rewriting.ops(result) == ["Conv", "Relu", "Conv"]
    oracle.assert_same_outputs(model, result)


def test_in_a_chain_disjoint_pairs_both_merge_and_overlapping_ones_conflict() -> None:
    b = models.ModelBuilder([1, 8, 6, 6])
    x, channels = b.x, 8
    for name, wide in zip("abcd", (12, 6, 10, 4), strict=True):
        x, channels = b.conv(x, channels, wide, 3 if name == "a" else 1, out=name), wide
    model = b.build(b.op("Relu", x))
    sites, _ = rewriting.find(PASS, model)
    assert list(sites) == ["b", "c", "d"]
    assert sites["b"].claims & sites["c"].claims
    assert not sites["b"].claims & sites["d"].claims
    result = rewriting.rewrite(PASS, model, {"b": "merge", "d": "merge"})
    assert rewriting.ops(result) == ["Conv", "Conv", "Relu"]
    oracle.assert_same_outputs(model, result)


def test_a_graph_output_last_is_written_under_its_name() -> None:
    b = models.ModelBuilder([1, 8, 6, 6])
    model = b.build(b.conv(b.conv(b.x, 8, 8, out="a"), 8, 8, 3, pads=1, out="b"))
    result = rewriting.rewrite(PASS, model, {"b": "merge-with-border-plane"})
    oracle.assert_same_outputs(model, result)


def test_a_pair_that_was_torn_apart_is_gone() -> None:
    model = pair({}, {})
    sites, _ = rewriting.find(PASS, model)
    graph = from_model(model)
    graph.nodes[1].inputs[0] = graph.inputs[0]
    with pytest.raises(SiteGone, match="no longer follows"):
        PASS.rewrite(Rewriter(graph, "t", {}), sites["b"], sites["b"].choices[0])


def test_the_plane_follows_a_smaller_input() -> None:
    """Another pass may have given the maps another size before."""
    ends: tuple[dict[str, Any], dict[str, Any]] = {}, {"k": (3, 3), "pads": [1, 1, 1, 1]}
    (site,) = rewriting.find(PASS, pair(*ends, shape=(1, 8, 12, 12)))[0].values()
    model = pair(*ends, shape=(1, 8, 6, 7))
    graph = from_model(model)
    PASS.rewrite(Rewriter(graph, "x", {}), site, site.choices[0])
    graph.cleanup().toposort()
    oracle.assert_same_outputs(model, to_model(graph, model))


def test_a_merged_layer_may_be_narrowed_and_fitted(tmp_path: Path) -> None:
    """Steps move the weights of the layer that is merged: they are in it before it is."""
    b = models.ModelBuilder([1, 6, 8, 8])
    linear = b.conv(b.x, 6, 4)
    y = b.op("Relu", b.conv(linear, 4, 32, out="wide"))
    model = b.build(b.conv(b.op("Relu", b.depthwise(y, 32)), 32, 6))
    found = fitting.recovery(tmp_path, model, ResizeIbn(steps=20, windows=2000), PASS)
    narrow = {"resize-ibn@wide": "to-16"}
    fits, refused = found.in_order(Candidate.of(narrow))
    assert not refused
    weights = values_only(fits)
    assert any("wide:" in name for values in weights.values() for name in values)
    both = Candidate.of({**narrow, f"{PASS.name}@wide": "merge"})
    alone, merged = (fitting.result(found, model, weights, c) for c in (Candidate.of(narrow), both))
    assert rewriting.ops(merged).count("Conv") == rewriting.ops(alone).count("Conv") - 1
    oracle.assert_same_outputs(alone, merged)
