"""Hidden maps in parts: the same outputs for every form of block, and the vendor's cycles."""

from __future__ import annotations

from typing import Any

import models
import numpy as np
import onnx
import pytest
import rewriting
from fakes import TARGET
from oracle import assert_same_outputs, random_feeds

from onnxnas.graph import from_model, to_model
from onnxnas.materialize import apply_candidate
from onnxnas.pass_contract import Why
from onnxnas.passes.fuse_ibn import FuseIbn
from onnxnas.passes.resize_ibn import ResizeIbn
from onnxnas.passes.split_hidden import SplitHidden
from onnxnas.plugins import load_target
from onnxnas.sites import Candidate, SearchSpace

PASS = SplitHidden()
WIDTH = 36  # four whole steps of 8, and a part of one


def activated(b: models.ModelBuilder, act: str, y: str, width: int = WIDTH) -> str:
    if act == "PRelu":
        return b.op(act, y, b.weight(width, 1, 1))
    if act == "Clip":
        return b.op(act, y, *(b.const(np.array(v, np.float32)) for v in (0, 6)))
    if act == "Silu":
        return b.op("Mul", b.op("Sigmoid", y), y)
    if act == "scaled":
        return b.op("Relu", b.op("Add", b.op("Mul", y, b.weight(1, width, 1, 1)), b.weight(1)))
    if act == "batch norm":
        variance = b.const(np.linspace(0.5, 2.0, width, dtype=np.float32))
        return b.op(
            "BatchNormalization", b.op("Relu", y), *(b.weight(width) for _ in "sbm"), variance
        )
    return y if act == "none" else b.op(act, y)


def block(act: str = "Relu", bias: bool = True, **depthwise: Any) -> onnx.ModelProto:
    b = models.ModelBuilder([1, 6, 11, 9], opset=14)
    y = activated(b, act, b.conv(b.x, 6, WIDTH, bias=bias, out="wide"))
    y = activated(b, act, b.depthwise(y, WIDTH, bias=bias, out="deep", **depthwise))
    y = b.conv(y, WIDTH, 6, bias=bias, out="narrow")
    return b.build(b.op("Relu", b.op("Add", b.x, y) if not depthwise else y))


def groups(model: onnx.ModelProto) -> list[int]:
    """Groups of all convolutions, ascending."""
    names = (node.output[0] for node in model.graph.node if node.op_type == "Conv")
    return sorted(rewriting.attribute(model, name, "group") for name in names)


def check(model: onnx.ModelProto, tensor: str, label: str) -> onnx.ModelProto:
    result = rewriting.rewrite(PASS, model, {tensor: label})
    assert_same_outputs(model, result, random_feeds(model))
    return result


@pytest.mark.parametrize(
    "act", ["Relu", "Clip", "PRelu", "Silu", "HardSwish", "scaled", "batch norm", "none"]
)
def test_parts_are_added(act: str) -> None:
    model = block(act, bias=act != "Clip")
    sites, misses = rewriting.find(PASS, model)
    assert [c.label for c in sites["wide"].choices] == ["add-2", "add-3", "add-4"]
    assert set(sites) == {"wide"}
    assert not misses.keys() & {"wide"}
    result = check(model, "wide", "add-3")
    assert groups(result) == [1] * 6 + [8, 12, 16]
    of_parts = [n for n in result.graph.node if n.op_type == "Add" and n.metadata_props]
    assert len(of_parts) == (8 if act == "scaled" else 2)  # those of the activations, in parts
    check(model, "wide", "add-2")
    check(model, "wide", "add-4")


@pytest.mark.parametrize(
    "depthwise",
    [
        {"stride": 2},
        {"stride": 2, "pads": (0, 1, 2, 1)},
        {"stride": 2, "auto_pad": "SAME_UPPER"},
        {"stride": 2, "k": 5},
    ],
)
def test_parts_that_became_small_are_put_together(depthwise: dict[str, Any]) -> None:
    model = block(**depthwise)
    sites, _ = rewriting.find(PASS, model)
    assert [c.label for c in sites["wide"].choices] == ["concat-2", "concat-3", "concat-4"]
    assert "in 2 parts, put together" in sites["wide"].choice("concat-2").note
    result = check(model, "wide", "concat-2")
    assert groups(result) == [1, 1, 1, 16, 20]
    assert rewriting.ops(result).count("Concat") == 1
    check(model, "wide", "concat-4")


def test_dilation_stays() -> None:
    check(block(dilations=[2, 2], pads=2), "wide", "add-2")


def test_any_layers_around_any_number_of_depthwise_ones() -> None:
    b = models.ModelBuilder([1, 3, 9, 9])
    y = b.op("Relu", b.conv(b.x, 3, 32, 3, pads=1, out="stem"))
    y = b.depthwise(b.op("Relu", b.depthwise(y, 32)), 32)
    y = b.op("Relu", b.conv(y, 32, 8, 3, pads=1))
    y = b.op("Relu", b.conv(y, 8, 24, out="plain"))
    model = b.build(b.conv(y, 24, 4, 3, pads=(1, 0, 2, 1)))
    sites, misses = rewriting.find(PASS, model)
    assert set(sites) == {"stem", "plain"}
    assert len(misses) == 2  # the two that read are not as wide as what goes into them
    both = rewriting.rewrite(PASS, model, {"stem": "add-4", "plain": "add-2"})
    assert_same_outputs(model, both, random_feeds(model))


def test_what_cannot_be_split_says_why() -> None:
    b = models.ModelBuilder([1, 8, 8, 8])
    excited = b.op("Relu", b.conv(b.x, 8, 32, out="excited"))
    gate = b.op("Sigmoid", b.conv(b.op("GlobalAveragePool", excited), 32, 32))
    y = b.conv(b.op("Mul", excited, gate), 32, 8, out="as wide")
    grouped = b.conv(y, 8, 32, out="grouped")
    y = b.conv(b.conv(grouped, 32, 32, group=4), 32, 8, out="few")
    y = b.conv(b.conv(y, 8, 12, out="narrow"), 12, 8, out="pooled")
    y = b.conv(b.op("MaxPool", y, kernel_shape=[2, 2]), 8, 32, out="shown")
    _, misses = rewriting.find(PASS, b.build(b.conv(y, 32, 8), y))
    assert misses["excited"] == "is read by several, or an output"
    assert misses["grouped"] == "goes into a grouped convolution"
    assert misses["as wide"] == "what goes in or comes out is as large as what is between"
    assert misses["pooled"] == "goes into MaxPool, which is no convolution of known weights"
    assert misses["shown"] == "is read by several, or an output"


def test_widths_that_make_no_parts() -> None:
    b = models.ModelBuilder([1, 3, 8, 8])
    sites, misses = rewriting.find(PASS, b.build(b.conv(b.conv(b.x, 3, 8, out="few"), 8, 3)))
    assert not sites
    assert misses["few"] == "8 channels make no two parts of 8"


def beside(model: onnx.ModelProto, decided: dict[str, str]) -> onnx.ModelProto:
    """The model after choices of this pass and of resize-ibn, nothing fitted."""
    graph, passes = from_model(model), {p.name: p for p in (ResizeIbn(), PASS)}
    sites = [s for p in passes.values() for s in p.find_sites(graph, TARGET, Why(p.name))]
    space = SearchSpace(tuple(sites))
    applied = apply_candidate(graph, space, Candidate.of(decided), passes)
    return to_model(applied.graph, model, applied.provenance)


def test_a_narrowed_block_is_split_at_its_new_width() -> None:
    decided = {"resize-ibn@wide": "to-24", "split-hidden@wide": "add-2"}
    assert groups(beside(block(), decided)) == [1, 1, 1, 1, 8, 16]
    assert groups(beside(block(), {**decided, "split-hidden@wide": "add-4"})) == [1] * 6 + [8] * 3


def test_what_makes_one_layer_of_the_block_excludes_it() -> None:
    graph = from_model(block())
    (split,) = PASS.find_sites(graph, TARGET, Why("p"))
    (fused,) = FuseIbn().find_sites(graph, TARGET, Why("p"))
    (narrowed,) = ResizeIbn().find_sites(graph, TARGET, Why("p"))
    assert split.claims & fused.claims
    assert not split.claims & narrowed.claims


def test_the_vendors_compiler_finds_it_faster_where_memory_is_short() -> None:
    """The hidden map has 1.2 MB, and the system 512 KiB of fast memory."""
    b = models.ModelBuilder([1, 16, 112, 112])
    model = b.build(b.ibn(b.x, 16, 96, 24, stride=2))
    sites, _ = rewriting.find(PASS, model, (target := load_target("ethos-u85-2048")).target)
    result = rewriting.rewrite(PASS, model, {next(iter(sites)): "concat-2"}, target.target)
    before, after = (target.cost(from_model(m)).cycles for m in (model, result))
    assert after < 0.75 * before
