"""Classes decided before maps are enlarged: exact where pixels repeat, else as numpy says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import models
import numpy as np
import onnx
import pytest
import rewriting
from oracle import assert_same_outputs, random_feeds, run
from segmenters import CLASSES, PASS, Array, applied, delivered, only, segmenter, typed


def low_scores(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.add().name = "low"
    return run(probe, feeds)["low"]


def interpolated(x: Array, places: Array) -> Array:
    """Linear interpolation at some places of the last two axes, in float64."""
    for axis in (2, 3):
        last = x.shape[axis] - 1
        at = np.clip(places, 0, last)
        low = np.minimum(np.floor(at).astype(int), max(last - 1, 0))
        part = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        x = np.take(x, low, axis) * (1 - part) + np.take(x, np.minimum(low + 1, last), axis) * part
    return x


NEAREST = ["asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"]


@pytest.mark.parametrize("opset", [11, 13, 19])
@pytest.mark.parametrize("where", [*NEAREST, "tf_half_pixel_for_nn"])
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_repeated_pixels_are_decided_first_exactly(opset: int, where: str, rounding: str) -> None:
    if where == "tf_half_pixel_for_nn" and opset > 11:
        return  # no such coordinates any more
    for sizes, to in ((False, 4), (True, (3, 2))):
        model = segmenter(
            mode="nearest", where=where, to=to, sizes=sizes, opset=opset,
            resize={"nearest_mode": rounding},
        )  # fmt: skip
        sites, misses = rewriting.find(PASS, model)
        assert not misses
        assert [(c.label, c.exactness) for c in sites["am"].choices] == [
            ("repeat-classes", "exact")
        ]
        feeds, result = random_feeds(model), delivered(model, "repeat-classes")
        assert np.array_equal(only(model, feeds), only(result, feeds))
        assert rewriting.ops(result) == ["Conv", "ArgMax", "Cast", "Resize", "Squeeze", "Cast"]


@pytest.mark.parametrize("opset", [11, 13, 19])
@pytest.mark.parametrize("label", ["repeat-2", "repeat-4", "repeat-8"])
@pytest.mark.parametrize("where", ["align_corners", "half_pixel", "asymmetric"])
def test_interpolated_pixels_are_decided_as_numpy_says(opset: int, label: str, where: str) -> None:
    model = segmenter(where=where, to=8, opset=opset, sizes=where == "align_corners")
    repeat, feeds = int(label.split("-")[1]), random_feeds(model, 4)
    x = low_scores(model, feeds).astype(np.float64)
    corner = int(where == "align_corners")
    step = repeat / 8  # of the pixels that are decided on, in those of the scores
    middle = np.arange((5 - corner) * 8 // repeat + corner)
    places = (middle + 0.5) * step - 0.5 if where == "half_pixel" else middle * step
    classes = interpolated(x, places).argmax(1)
    full = np.arange((5 - corner) * 8 + corner)
    nearest = (full + repeat // 2) // repeat if corner else full // repeat
    want = classes[:, nearest][:, :, nearest]
    have = only(delivered(model, label), feeds)
    assert have.dtype == np.float32
    assert np.array_equal(have, want)
    kept = only(model, feeds)
    assert (have == kept).mean() > (0.4 if where == "asymmetric" else 0.6)
    assert not np.array_equal(have, kept)


def test_what_is_judged_has_the_scores_and_says_the_same() -> None:
    model = segmenter(to=8, keepdims=1, behind=None)
    name = next(n.input[0] for n in model.graph.node if n.op_type == "ArgMax")
    change = applied(model, "repeat-4")
    assert [n.op for n in change.graph.nodes] == ["Conv", "Resize", "Resize", "ArgMax"]
    judged = rewriting.rewrite(PASS, model, {"am": "repeat-4"})
    feeds = random_feeds(model)
    assert np.array_equal(only(judged, feeds), only(delivered(model, "repeat-4"), feeds))
    assert name in change.graph.tensors()
    view = change.view({"x": (1, 3, 10, 10)})
    assert name not in view.tensors()
    assert [n.op for n in view.nodes][-4:] == ["ArgMax", "Cast", "Resize", "Cast"]


def test_a_wrong_weight_is_seen() -> None:
    model = segmenter(mode="nearest", to=2)
    result = delivered(model, "repeat-classes")
    assert_same_outputs(model, result)
    bias = next(t for t in result.graph.initializer if len(t.dims) == 1 and t.data_type == 1)
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 3
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    with pytest.raises(AssertionError):
        assert_same_outputs(model, result)


def scaled(b: models.ModelBuilder, y: str) -> str:
    """A classifier behind the enlargement, and what changes no order."""
    return b.op("Softmax", b.op("Relu", b.conv(y, CLASSES, 7)), axis=1)


def twice(b: models.ModelBuilder, y: str) -> str:
    again = b.const(np.array([1, 1, 2, 2], np.float32))
    return b.op("Resize", b.op("Sigmoid", y), "", again, mode="nearest")


@pytest.mark.parametrize("between", [scaled, twice])
def test_what_works_position_by_position_moves_along(
    between: Callable[[models.ModelBuilder, str], str],
) -> None:
    model = segmenter(mode="nearest", to=4, between=between)
    result = delivered(model, "repeat-classes")
    assert_same_outputs(model, result)
    argmax = next(n for n in result.graph.node if n.op_type == "ArgMax")
    assert "Resize" not in rewriting.ops(result)[: list(result.graph.node).index(argmax)]
    linear = segmenter(to=4, between=scaled)
    same = delivered(linear, "repeat-2")
    probe = [n.op_type for n in same.graph.node]
    assert probe[:6] == ["Conv", "Resize", "Conv", "Relu", "Softmax", "ArgMax"]
    feeds = random_feeds(linear)
    assert (only(linear, feeds) == only(same, feeds)).mean() > 0.6


@pytest.mark.parametrize("classes", [CLASSES, 200, 300])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("behind", [None, 1, 6])
@pytest.mark.parametrize("last", [0, 1])
def test_readers_get_what_they_had(classes: int, keepdims: int, behind: Any, last: int) -> None:
    model = segmenter(
        mode="nearest", to=3, classes=classes, keepdims=keepdims, behind=behind,
        select_last_index=last, batch="n",
    )  # fmt: skip
    result = delivered(model, "repeat-classes")
    assert_same_outputs(model, result)
    kind = {t.name: t for t in result.graph.node if t.op_type == "Cast"}
    narrow = next(n for n in kind.values() if "narrow" in n.output[0])
    assert narrow.attribute[0].i == (2 if classes <= 256 else 6)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_channels_may_be_last(keepdims: int) -> None:
    """As exporters of networks with channels last leave it."""

    def turned(b: models.ModelBuilder, y: str) -> str:
        return b.op("Transpose", b.op("Relu", y), perm=[0, 2, 3, 1], out="last")

    model = segmenter(mode="nearest", to=3, between=turned, axis=-1, keepdims=keepdims)
    result = delivered(model, "repeat-classes")
    assert_same_outputs(model, result)
    assert result.graph.node[2].op_type == "ArgMax"
    linear = segmenter(to=4, between=turned, axis=3, keepdims=keepdims)
    feeds, small = random_feeds(linear), delivered(linear, "repeat-2")
    assert (only(linear, feeds) == only(small, feeds)).mean() > 0.6
    judged = rewriting.rewrite(PASS, linear, {"am": "repeat-2"})
    assert np.array_equal(only(judged, feeds), only(small, feeds))
    assert "last" in {name for node in judged.graph.node for name in node.output}
    sites, misses = rewriting.find(PASS, segmenter(between=turned, axis=1))
    assert not sites
    assert "over axis 1, not over channels" in misses["am"]


def test_several_enlargements_in_a_row() -> None:
    """The last one is shortened; one that does nothing is left out."""

    def before(b: models.ModelBuilder, y: str) -> str:
        y = b.op("Resize", y, "", b.const(np.array([1, 1, 2, 2], np.float32)), mode="linear")
        return b.op("Resize", y, "", b.const(np.ones(4, np.float32)), mode="linear")

    model = segmenter(before=before, small=5, to=2)
    sites, _ = rewriting.find(PASS, model)
    assert [c.label for c in sites["am"].choices] == ["repeat-2"]
    assert rewriting.ops(delivered(model, "repeat-2")).count("Resize") == 3


def test_factors_that_are_no_power_of_two() -> None:
    model = segmenter(to=6)
    sites, _ = rewriting.find(PASS, model)
    assert [c.label for c in sites["am"].choices] == ["repeat-2", "repeat-6"]
    uneven = segmenter(to=(4, 8))
    sites, _ = rewriting.find(PASS, uneven)
    assert [c.label for c in sites["am"].choices] == ["repeat-2", "from-5x5"]
    for m, label in ((model, "repeat-6"), (uneven, "from-5x5"), (uneven, "repeat-2")):
        feeds = random_feeds(m)
        assert (only(m, feeds) == only(delivered(m, label), feeds)).mean() > 0.5


def tapped() -> onnx.ModelProto:
    model = segmenter()
    name = next(n.output[0] for n in model.graph.node if n.op_type == "Resize")
    model.graph.output.add().CopyFrom(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    )
    return onnx.shape_inference.infer_shapes(model)


def computed_size() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 3, 8, 8])
    y = b.conv(b.x, 3, CLASSES)
    shape = b.op("Mul", b.op("Shape", y), b.const(np.array([1, 1, 2, 2], np.int64)))
    y = b.op("Resize", y, "", "", shape, mode="linear")
    return typed(b.build(b.op("ArgMax", y, axis=1), check=False))


def classifier() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 8])
    y = b.op("ArgMax", b.op("Gemm", b.x, b.weight(8, 5)), axis=1)
    return typed(b.build(y, check=False))


def shifted(b: models.ModelBuilder, y: str) -> str:
    return b.op("Add", y, b.weight(1, CLASSES, 40, 40))


def pooled(b: models.ModelBuilder, y: str) -> str:
    return b.op("MaxPool", y, kernel_shape=[3, 3], pads=[1] * 4)


def other_softmax(b: models.ModelBuilder, y: str) -> str:
    return b.op("Softmax", y, axis=3)


def old_softmax(b: models.ModelBuilder, y: str) -> str:
    return b.op("Softmax", y, axis=1)


def crop() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 3, 8, 8])
    region = b.const(np.array([0, 0, 0.1, 0.1, 1, 1, 0.9, 0.9], np.float32))
    up = b.const(np.array([1, 1, 2, 2], np.float32))
    where = {"coordinate_transformation_mode": "tf_crop_and_resize"}
    y = b.op("Resize", b.conv(b.x, 3, CLASSES), region, up, mode="linear", **where)
    y = b.op("Cast", b.op("Relu", y), to=1)
    model = typed(b.build(b.op("ArgMax", y, axis=1), check=False))
    dims = [1, CLASSES, 16, 16]
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(n.output[0], onnx.TensorProto.FLOAT, dims)
        for n in model.graph.node
        if n.op_type in ("Resize", "Relu", "Cast")
    )
    return model


def two_axes() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 3, 8, 8], opset=18)
    sizes = b.const(np.array([16, 16], np.int64))
    y = b.op("Resize", b.conv(b.x, 3, CLASSES), "", "", sizes, mode="linear", axes=[2, 3])
    return typed(b.build(b.op("ArgMax", y, axis=1), check=False))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (classifier, "does not read a map"),
        (lambda: segmenter(axis=2), "over axis 2"),
        (tapped, "read elsewhere too, or an output"),
        (computed_size, "computed size|not fixed"),
        (lambda: segmenter(between=shifted), "Add .* stands before it"),
        (lambda: segmenter(between=pooled), "MaxPool .* stands before it"),
        (lambda: segmenter(between=other_softmax), "Softmax .* not over channels"),
        (lambda: segmenter(between=old_softmax, opset=11), "opset below 13"),
        (crop, "coordinates 'tf_crop_and_resize'"),
        (two_axes, "axes or an aspect"),
    ],
)
def test_declines_with_a_reason(model: Callable[[], onnx.ModelProto], reason: str) -> None:
    sites, misses = rewriting.find(PASS, model())
    assert not sites
    assert any(re.search(reason, miss) for miss in misses.values()), misses


def test_scores_as_outputs_are_no_place() -> None:
    b = models.ModelBuilder([1, 3, 8, 8])
    up = b.const(np.array([1, 1, 2, 2], np.float32))
    sites, misses = rewriting.find(PASS, b.build(b.op("Resize", b.conv(b.x, 3, 5), "", up)))
    assert not sites
    assert not misses
