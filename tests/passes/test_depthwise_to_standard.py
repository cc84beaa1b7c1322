"""Depthwise and grouped convolutions with fewer groups compute the same function."""

from __future__ import annotations

from typing import Any

import models
import numpy as np
import onnx
import oracle
import pytest
import rewriting
from onnx import numpy_helper

from onnxnas.graph import from_model
from onnxnas.passes.depthwise_to_standard import DepthwiseToStandard
from onnxnas.rewriter import Rewriter, SiteGone

PASS = DepthwiseToStandard()


def grouped(
    channels: int, group: int, out_channels: int | None = None, opset: int = 13, **conv: Any
) -> onnx.ModelProto:
    """One grouped 3x3 convolution with output y between two others."""
    out_channels = out_channels or channels
    b = models.ModelBuilder(["n", 3, 13, 11], opset=opset)
    conv.setdefault("pads", 1)
    x = b.op("Relu", b.conv(b.x, 3, channels))
    y = b.conv(x, channels, out_channels, 3, group=group, out="y", **conv)
    return b.build(b.conv(b.op("Relu", y), out_channels, 5))


@pytest.mark.parametrize(
    ("channels", "group", "labels"),
    [
        (64, 64, ["groups-of-8", "groups-of-16", "groups-of-32", "dense"]),
        (32, 32, ["groups-of-8", "groups-of-16", "dense"]),  # groups-of-32 is dense
        (24, 24, ["groups-of-8", "dense"]),
        (10, 10, ["dense"]),
        (32, 4, ["groups-of-16", "dense"]),  # 8 channels per group already
        (24, 4, ["dense"]),  # 6 channels per group fit into no offered size
    ],
)
def test_choices_are_the_sizes_that_divide(channels: int, group: int, labels: list[str]) -> None:
    sites, misses = rewriting.find(PASS, grouped(channels, group))
    assert [c.label for c in sites["y"].choices] == labels
    assert sites["y"].claims == {"node:y"}
    assert not misses


def test_the_note_says_how_weights_grow() -> None:
    sites, _ = rewriting.find(PASS, grouped(32, 32))
    assert sites["y"].choice("groups-of-16").note == (
        "depthwise 3x3 over 32 channels, weights grow 16x"
    )
    assert sites["y"].choice("dense").note.endswith("grow 32x")


@pytest.mark.parametrize(
    "conv",
    [
        {},
        {"bias": False},
        {"stride": 2},
        {"pads": (0, 1, 2, 1)},
        {"dilations": [2, 3], "pads": (2, 3, 2, 3)},
        {"auto_pad": "SAME_UPPER", "stride": 2},
        {"auto_pad": "SAME_LOWER", "stride": 2},
        {"auto_pad": "VALID"},
        {"opset": 9},
        {"opset": 22},
    ],
    ids=str,
)
@pytest.mark.parametrize(("group", "out_channels"), [(32, 32), (32, 96), (8, 64)])
def test_every_choice_is_exact(group: int, out_channels: int, conv: dict[str, Any]) -> None:
    model = grouped(32, group, out_channels, **conv)
    sites, _ = rewriting.find(PASS, model)
    for choice in sites["y"].choices:
        result = rewriting.rewrite(PASS, model, {"y": choice.label})
        oracle.assert_same_outputs(model, result)
        size = choice.params["group_size"] or 32
        assert rewriting.attribute(result, "y", "group") == 32 // size
        for name in ("pads", "strides", "dilations", "auto_pad"):
            assert rewriting.attribute(result, "y", name) == rewriting.attribute(model, "y", name)


def test_the_weight_grows_and_the_old_one_is_gone() -> None:
    model = grouped(32, 32)
    result = rewriting.rewrite(PASS, model, {"y": "groups-of-8"})
    shapes = [tuple(t.dims) for t in result.graph.initializer]
    assert (32, 8, 3, 3) in shapes
    assert (32, 1, 3, 3) not in shapes


def test_a_shared_weight_is_left_to_its_other_readers() -> None:
    b = models.ModelBuilder([2, 16, 7, 7])
    w = b.weight(16, 1, 3, 3)
    one = b.op("Conv", b.x, w, group=16, pads=[1] * 4, out="one")
    model = b.build(b.op("Conv", b.op("Relu", one), w, group=16, pads=[1] * 4, out="two"))
    sites, misses = rewriting.find(PASS, model)
    assert list(sites) == ["one", "two"]
    assert not misses
    only_one = rewriting.rewrite(PASS, model, {"one": "dense"})
    oracle.assert_same_outputs(model, only_one)
    assert rewriting.attribute(only_one, "two", "group") == 16
    both = rewriting.rewrite(PASS, model, {"one": "dense", "two": "groups-of-8"})
    oracle.assert_same_outputs(model, both)


def test_a_graph_output_in_the_middle_is_kept() -> None:
    b = models.ModelBuilder([1, 16, 7, 7])
    y = b.depthwise(b.x, 16, out="y")
    model = b.build(b.op("Relu", y), y)
    result = rewriting.rewrite(PASS, model, {"y": "dense"})
    oracle.assert_same_outputs(model, result)
    assert [o.name for o in result.graph.output] == [o.name for o in model.graph.output]


def test_half_precision_stays_half_precision() -> None:
    model = grouped(16, 16)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    result = rewriting.rewrite(PASS, model, {"y": "dense"})
    assert {t.data_type for t in result.graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_declines_with_a_reason() -> None:
    b = models.ModelBuilder([1, 16, 9])
    flat = b.op("Conv", b.x, b.weight(16, 1, 3), group=16, out="flat")
    _, misses = rewriting.find(PASS, b.build(flat))
    assert misses == {"flat": "is a 1-D convolution"}

    b = models.ModelBuilder([1, 16, 9, 9])
    weight = b.op("Reshape", b.op("GlobalAveragePool", b.x), b.const(np.array([16, 1, 1, 1])))
    model = b.build(b.op("Conv", b.x, weight, group=16, out="fed"))
    _, misses = rewriting.find(PASS, model)
    assert misses == {"fed": "its weight is not a constant"}


def test_a_site_that_no_longer_fits_is_gone() -> None:
    sites, _ = rewriting.find(PASS, grouped(24, 24))
    changed = from_model(grouped(20, 20))  # as after a pass of earlier order
    rw = Rewriter(changed, "t", {})
    with pytest.raises(SiteGone, match=r"20 groups of 1 channels.*groups of 8"):
        PASS.rewrite(rw, sites["y"], sites["y"].choice("groups-of-8"))
    PASS.rewrite(rw, sites["y"], sites["y"].choice("dense"))
    assert rw.node("y").attrs["group"] == 1


def test_what_is_dense_by_now_stays_as_it_is() -> None:
    sites, _ = rewriting.find(PASS, grouped(24, 24))
    changed = from_model(grouped(1, 1))  # as after all channels but one were removed
    rw = Rewriter(changed, "t", {})
    PASS.rewrite(rw, sites["y"], sites["y"].choice("dense"))
    assert not rw.provenance


def test_a_wrong_weight_is_noticed() -> None:
    model = grouped(16, 16)
    result = rewriting.rewrite(PASS, model, {"y": "dense"})
    with pytest.raises(AssertionError, match="off by"):
        oracle.assert_same_outputs(model, rewriting.scale_one_weight(result))
