"""PRelu in other forms computes the same; what the forms cannot express is declined aloud."""

from __future__ import annotations

from typing import Any

import models
import numpy as np
import onnx
import oracle
import pytest
import rewriting
from fakes import TARGET
from numpy.typing import NDArray

from onnxnas.graph import from_model, to_model
from onnxnas.materialize import apply_candidate
from onnxnas.pass_contract import Why
from onnxnas.passes.align_channels import AlignChannels
from onnxnas.passes.rewrite_prelu import RewritePRelu
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.sites import Candidate, SearchSpace

PASS = RewritePRelu()
SLOPES = np.linspace(-0.6, 1.0, 12, dtype=np.float32)  # 1 and values around 0 among them


def around(
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    slopes: NDArray[Any] = SLOPES,
    shape: tuple[int | str, ...] = (2, 12, 9, 8),
    opset: int = 13,
) -> onnx.ModelProto:
    """Convolution x, PRelu y, convolution z, each of 12 channels unless said otherwise."""
    b = models.ModelBuilder(shape, opset=opset, seed=4)
    x = b.conv(b.x, 12, 12, **{"k": 3, "pads": 1, "out": "x_out", **(before or {})})
    y = b.op("PRelu", x, b.const(slopes.reshape(-1, 1, 1)), out="y")
    z = b.conv(y, 12, **{"cout": 7, "k": 3, "pads": 1, "out": "z", **(after or {})})
    return b.build(b.op("Sigmoid", z))


def labels(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Choices by tensor."""
    return {t: [c.label for c in s.choices] for t, s in rewriting.find(PASS, model)[0].items()}


DENSE: dict[str, Any] = {}
DEPTHWISE = {"group": 12}
PLACES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, list[str]]]] = {
    "dense, dense": (DENSE, DENSE, {"y": ["add", "mix", "mirror"], "z": ["add-later"]}),
    "depthwise, pointwise": (DEPTHWISE, {"k": 1, "pads": 0, "cout": 20},
                             {"y": ["add", "mirror", "mirror-dense"]}),
    "pointwise, depthwise": ({"k": 1, "pads": 0}, {"group": 12, "cout": 12},
                             {"y": ["add", "mix", "mirror-dense"]}),
    "no biases": ({"bias": False}, {"bias": False}, {"y": ["add", "mix", "mirror"],
                                                    "z": ["add-later"]}),
    "grouped, grouped": ({"group": 4}, {"group": 3, "cout": 6}, {"y": ["add", "mirror-dense"],
                                                                "z": ["add-later"]}),
    "grouped, dense": ({"group": 4, "pads": 0}, {"cout": 14},
                       {"y": ["add", "mirror", "mirror-dense"]}),
    "strides and dilations": (
        {"stride": 2, "pads": (0, 1, 2, 1)},
        {"stride": 2, "dilations": [2, 1], "pads": (2, 1, 3, 0)},
        {"y": ["add", "mix", "mirror"], "z": ["add-later"]},
    ),
    "automatic padding": (
        {"group": 12, "auto_pad": "SAME_UPPER", "stride": 2},
        {"group": 12, "cout": 12, "auto_pad": "SAME_LOWER", "stride": 2},
        {"y": ["add", "mirror-dense"], "z": ["add-later"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("opset", [9, 22])
def test_every_choice_is_exact(place: str, opset: int) -> None:
    before, after, expected = PLACES[place]
    model = around(before, after, opset=opset)
    assert labels(model) == expected
    for tensor, offered in expected.items():
        for label in offered:
            result = rewriting.rewrite(PASS, model, {tensor: label})
            assert "PRelu" not in rewriting.ops(result)
            oracle.assert_same_outputs(model, result)


@pytest.mark.parametrize(
    ("before", "tensor", "label", "ops"),
    [
        (DENSE, "y", "add", ["Conv", "Conv", "Relu", "Add", "Conv"]),
        (DENSE, "y", "mix", ["Conv", "Relu", "Conv", "Conv"]),
        (DENSE, "y", "mirror", ["Conv", "Relu", "Conv"]),
        (DEPTHWISE, "y", "mirror", ["Conv", "Relu", "Conv", "Relu", "Concat", "Conv"]),
        (DEPTHWISE, "y", "mirror-dense", ["Conv", "Relu", "Conv"]),
        (DENSE, "z", "add-later", ["Conv", "Conv", "Relu", "Conv", "Conv", "Add"]),
    ],
)
def test_nothing_more_is_computed_than_said(
    before: dict[str, Any], tensor: str, label: str, ops: list[str]
) -> None:
    result = rewriting.rewrite(PASS, around(before), {tensor: label})
    assert sorted(rewriting.ops(result)) == sorted([*ops, "Sigmoid"])


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1), (12, 1, 1), (1, 12, 1, 1), (9, 8)])
@pytest.mark.parametrize(
    ("slope", "label"), [(0.0, "relu"), (-0.3, "leaky-relu"), (2, "leaky-relu")]
)
def test_equal_slopes(shape: tuple[int, ...], slope: float, label: str) -> None:
    b = models.ModelBuilder([2, 12, 9, 8])
    slopes = b.const(np.full(shape, slope, np.float32))
    model = b.build(b.conv(b.op("PRelu", b.x, slopes, out="y"), 12, 4))
    assert labels(model) == {"y": [label]}
    result = rewriting.rewrite(PASS, model, {"y": label})
    assert rewriting.ops(result)[0] == {"relu": "Relu", "leaky-relu": "LeakyRelu"}[label]
    oracle.assert_same_outputs(model, result)


def test_after_anything_and_before_anything_there_is_add() -> None:
    b = models.ModelBuilder([1, 12, 6, 6])
    slopes = b.const(SLOPES.reshape(1, 12, 1, 1))
    y = b.op("PRelu", b.op("Add", b.x, b.conv(b.x, 12, 12)), slopes, out="y")
    model = b.build(b.op("Mul", y, b.op("GlobalAveragePool", y)))
    assert labels(model) == {"y": ["add"]}
    oracle.assert_same_outputs(model, rewriting.rewrite(PASS, model, {"y": "add"}))


def test_graph_outputs_stay() -> None:
    b = models.ModelBuilder([1, 12, 6, 6])
    x = b.conv(b.x, 12, 12, out="x_out")
    y = b.op("PRelu", x, b.const(SLOPES.reshape(12, 1, 1)), out="y")
    z = b.conv(y, 12, 4)
    only_y, only_x = b.build(z, y), b.build(z, x)
    assert labels(only_y) == {"y": ["add", "mix"]}  # its readers are not all it has
    assert labels(only_x)["y"] == ["add"]  # the convolution before it is needed as it is
    for model in (only_y, only_x):
        for label in labels(model)["y"]:
            oracle.assert_same_outputs(model, rewriting.rewrite(PASS, model, {"y": label}))


def test_two_readers_take_the_slopes_in() -> None:
    b = models.ModelBuilder([1, 12, 6, 6])
    w = b.weight(12, 12, 3, 3)  # of the convolution before, and of one after
    y = b.op("PRelu", b.op("Conv", b.x, w), b.const(SLOPES.reshape(12, 1, 1)), out="y")
    model = b.build(b.op("Conv", y, w), b.conv(y, 12, 3))
    assert labels(model) == {"y": ["add", "mix", "mirror"]}
    for label in labels(model)["y"]:
        oracle.assert_same_outputs(model, rewriting.rewrite(PASS, model, {"y": label}))


def test_slopes_above_one_leave_the_forms_with_both_signs() -> None:
    model = around(slopes=SLOPES * 2)
    assert labels(model) == {"y": ["mix", "mirror"]}
    assert "a slope is 2" in rewriting.find(PASS, model)[1]["y"]
    for label in ("mix", "mirror"):
        oracle.assert_same_outputs(model, rewriting.rewrite(PASS, model, {"y": label}))


def test_a_dynamic_batch_and_size() -> None:
    model = around(after={"stride": 2}, shape=("n", 12, "h", "w"))
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 12, 7, 10)).astype(np.float32)}
    assert labels(model) == {"y": ["add", "mix", "mirror"], "z": ["add-later"]}
    for tensor, offered in labels(model).items():
        for label in offered:
            result = rewriting.rewrite(PASS, model, {tensor: label})
            oracle.assert_same_outputs(model, result, feeds)


def bottleneck() -> onnx.ModelProto:
    """PRelu y1 before and y2 after a depthwise convolution d of stride 2."""
    b = models.ModelBuilder([1, 6, 9, 8], seed=2)
    slopes = [b.const(SLOPES.reshape(12, 1, 1) * k) for k in (1.0, -0.7)]
    y = b.op("PRelu", b.conv(b.x, 6, 12), slopes[0], out="y1")
    y = b.op("PRelu", b.depthwise(y, 12, stride=2, out="d"), slopes[1], out="y2")
    return b.build(b.conv(y, 12, 6, out="p"))


@pytest.mark.parametrize(
    "first", [("y1", "add"), ("y1", "mix"), ("y1", "mirror-dense"), ("d", "add-later")]
)
@pytest.mark.parametrize(
    "second", [("y2", "add"), ("y2", "mirror"), ("y2", "mirror-dense"), ("p", "add-later")]
)
def test_both_ends_of_one_convolution(first: tuple[str, str], second: tuple[str, str]) -> None:
    model = bottleneck()
    result = rewriting.rewrite(PASS, model, dict([first, second]))
    assert "PRelu" not in rewriting.ops(result)
    oracle.assert_same_outputs(model, result)


def test_claims_are_the_prelu_and_for_add_later_the_reader() -> None:
    sites, misses = rewriting.find(PASS, bottleneck())
    assert {t: s.claims for t, s in sites.items()} == {
        "y1": {"node:y1"},
        "d": {"node:y1", "node:d"},
        "y2": {"node:y2"},
        "p": {"node:y2", "node:p"},
    }
    assert not misses


def test_channels_padded_before_are_found_again() -> None:
    model = around(slopes=np.linspace(-1, 1, 12, dtype=np.float32))
    graph, passes = from_model(model), {p.name: p for p in (AlignChannels(), PASS)}
    sites = [s for p in passes.values() for s in p.find_sites(graph, TARGET, Why(p.name))]
    padding = Candidate.of({"align-channels@x_out": "multiple-of-8"})
    for tensor, offered in labels(model).items():
        for label in offered:
            both = padding.with_choice(f"rewrite-prelu@{tensor}", label)
            applied = apply_candidate(graph, SearchSpace(tuple(sites)), both, passes)
            result = to_model(applied.graph, model)
            assert "PRelu" not in rewriting.ops(result)
            assert any(16 in t.dims or 32 in t.dims for t in result.graph.initializer)
            oracle.assert_same_outputs(model, result)


@pytest.mark.parametrize(
    ("shape", "slopes", "reason"),
    [
        ((1, 12), (12,), "not [N, C, H, W]"),
        ((1, 12, 6), (12, 1), "not [N, C, H, W]"),
        ((1, 12, 6, 12), (12,), "differ within a channel"),
        ((1, 12, 6, 6), (12, 6, 1), "differ within a channel"),
    ],
)
def test_declines_with_a_reason(
    shape: tuple[int, ...], slopes: tuple[int, ...], reason: str
) -> None:
    b = models.ModelBuilder(shape)
    model = b.build(b.op("Sigmoid", b.op("PRelu", b.x, b.weight(*slopes), out="y")))
    sites, misses = rewriting.find(PASS, model)
    assert not sites
    assert reason in misses["y"]


def test_declines_computed_slopes_and_half_precision() -> None:
    b = models.ModelBuilder([1, 12, 6, 6])
    slopes = b.op("Sigmoid", b.op("GlobalAveragePool", b.x))
    computed = b.build(b.op("PRelu", b.x, slopes, out="y"))
    assert rewriting.find(PASS, computed) == ({}, {"y": "its slope is not a constant"})

    half = around()
    for tensor in half.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in [*half.graph.input, *half.graph.output]:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    sites, misses = rewriting.find(PASS, half)
    assert not sites
    assert "rounding of float16" in misses["y"]


def test_a_site_whose_neighbours_have_changed_is_gone() -> None:
    sites, _ = rewriting.find(PASS, around())
    other = from_model(around(after={"group": 12, "cout": 12}))
    with pytest.raises(SiteGone, match="not only ungrouped"):
        PASS.rewrite(Rewriter(other, "t", {}), sites["y"], sites["y"].choice("mirror"))
    rw = Rewriter(other, "t", {})
    PASS.rewrite(rw, sites["y"], sites["y"].choice("add"))
    with pytest.raises(SiteGone, match="no longer the output of a PRelu"):
        PASS.rewrite(rw, sites["y"], sites["y"].choice("add"))


@pytest.mark.parametrize(
    ("tensor", "label"), [("y", "add"), ("y", "mix"), ("y", "mirror"), ("z", "add-later")]
)
def test_a_wrong_weight_is_noticed(tensor: str, label: str) -> None:
    model = around()
    result = rewriting.rewrite(PASS, model, {tensor: label})
    with pytest.raises(AssertionError, match="off by"):
        oracle.assert_same_outputs(model, rewriting.scale_one_weight(result))


def test_a_real_network_loses_every_prelu() -> None:
    model = onnx.load(oracle.evalset_model("minifasnet_v2_80"))
    sites, misses = rewriting.find(PASS, model)
    assert not misses
    choices = {t: s.choices[-1].label for t, s in sites.items() if s.choices[0].label == "add"}
    assert set(choices.values()) == {"mirror-dense"}
    result = rewriting.rewrite(PASS, model, choices)
    assert "PRelu" not in rewriting.ops(result)
    oracle.assert_same_outputs(model, result)
