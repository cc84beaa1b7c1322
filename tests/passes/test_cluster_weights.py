"""Few distinct weights, fitted to what a layer's inputs are, alone and behind other choices."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import pytest
import rewriting
from fitting import error, fresh, recovery, result
from onnx import numpy_helper

from onnxnas.passes.cluster_weights import ClusterWeights
from onnxnas.passes.resize_ibn import ResizeIbn
from onnxnas.passes.simplify_activation import SimplifyActivation
from onnxnas.quantise import quantise
from onnxnas.recover import values_only
from onnxnas.sites import Candidate

PASS = ClusterWeights(smallest=256)


def conv_layer(kernel: int = 1, bias: bool = True, stride: int = 1) -> onnx.ModelProto:
    b = models.ModelBuilder([1, 6, 8, 8])
    wide = b.op("Relu", b.conv(b.x, 6, 24))
    y = b.conv(wide, 24, 32, kernel, bias=bias, stride=stride, out="layer")
    return b.build(b.op("Relu", y))


def gemm_layer(transposed: int) -> onnx.ModelProto:
    b = models.ModelBuilder([1, 6, 8, 8])
    x = b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", b.conv(b.x, 6, 24))))
    weight = b.weight(*((32, 24) if transposed else (24, 32)))
    return b.build(b.op("Gemm", x, weight, b.weight(32), out="layer", transB=transposed))


def block() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 6, 8, 8])
    wide = b.op("Relu", b.conv(b.x, 6, 32, out="expand"))
    deep = b.op("Relu", b.depthwise(wide, 32, out="deep"))
    return b.build(b.op("Relu", b.conv(deep, 32, 16, out="layer")))


def weight_of(model: onnx.ModelProto, output: str = "layer") -> np.ndarray:
    """[outputs, ...] of a layer, by the tensor it writes."""
    (node,) = (n for n in model.graph.node if output in n.output)
    (tensor,) = (t for t in model.graph.initializer if t.name == node.input[1])
    values = numpy_helper.to_array(tensor)
    trans = [a.i for a in node.attribute if a.name == "transB"]
    return values if node.op_type == "Conv" or trans == [1] else values.T


def most_values(weight: np.ndarray) -> int:
    return max(len(np.unique(channel)) for channel in weight)


@pytest.mark.parametrize(
    "model",
    [
        conv_layer(),
        conv_layer(bias=False),
        conv_layer(kernel=3),
        conv_layer(stride=2),
        gemm_layer(0),
        gemm_layer(1),
    ],
    ids=["conv", "no-bias", "window", "stride", "gemm", "gemm-transposed"],
)
def test_few_values_do_what_the_layer_did(tmp_path: Path, model: onnx.ModelProto) -> None:
    found = recovery(tmp_path, model, PASS)
    (site,) = (s for s in found.space if s.tensor == "layer")
    candidate = Candidate.of({site.id: "levels-15"})
    fits, refused = found.alone([(site.id, "levels-15")])
    assert not refused
    fitted = result(found, model, values_only(fits), candidate)
    assert most_values(weight_of(fitted)) <= 15 < most_values(weight_of(model))
    plain = result(found, model, None, candidate)
    assert most_values(weight_of(plain)) <= 15
    wrong = error(model, fitted, fresh())
    assert wrong < 0.02
    assert wrong < error(model, plain, fresh())
    for tensor in fitted.graph.initializer:  # the check sees a wrong weight
        if numpy_helper.to_array(tensor).size == weight_of(fitted).size:
            scaled = numpy_helper.to_array(tensor) * np.float32(1.3)
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    assert error(model, fitted, fresh()) > 0.02


def test_fewer_values_lose_more(tmp_path: Path) -> None:
    model = conv_layer()
    found = recovery(tmp_path, model, PASS)
    moves = [("cluster-weights@layer", f"levels-{n}") for n in (31, 15, 7)]
    fits, _ = found.alone(moves)
    errors = [fits[move].error for move in moves]
    assert errors == sorted(errors)
    assert errors[0] < 0.01
    real = [
        error(model, result(found, model, values_only(fits), Candidate.of({s: c})), fresh())
        for s, c in moves
    ]
    assert real == sorted(real)


def test_a_quantiser_leaves_as_few_integers(tmp_path: Path) -> None:
    """The values are of use only if int8 keeps them apart from no others."""
    model = conv_layer()
    found = recovery(tmp_path, model, PASS)
    candidate = Candidate.of({"cluster-weights@layer": "levels-15"})
    fits, _ = found.alone([*candidate.decisions])
    fitted = result(found, model, values_only(fits), candidate)
    rows = [{"x": row[None]} for row in fresh(4)]

    def integers(m: onnx.ModelProto) -> int:
        stored = [numpy_helper.to_array(t) for t in quantise(m, rows).graph.initializer]
        (weight,) = (v for v in stored if v.dtype == np.int8 and v.shape == (32, 24, 1, 1))
        return len(np.unique(weight))

    assert integers(fitted) <= 15
    assert integers(model) > 60


def test_behind_a_narrowed_block_the_new_weights_are_clustered(tmp_path: Path) -> None:
    model = block()
    found = recovery(tmp_path, model, ResizeIbn(steps=0), PASS)
    narrow, cluster = "resize-ibn@expand", "cluster-weights@layer"
    label = found.space.site(narrow).choices[0].label
    both = Candidate.of({narrow: label, cluster: "levels-31"})
    alone, _ = found.alone([*both.decisions])
    fits, refused = found.in_order(both)
    assert not refused
    only = error(
        model, result(found, model, values_only(fits), Candidate.of({narrow: label})), fresh()
    )
    fitted = result(found, model, values_only(fits), both)
    weight = weight_of(fitted)
    assert weight.shape[1] < 32
    assert most_values(weight) <= 31
    wrong = error(model, fitted, fresh())
    assert wrong < 1.2 * only + 0.005
    # With weights fitted alone the layer is not the one that was clustered: each value rounds.
    mixed = result(found, model, values_only(alone), both)
    assert most_values(weight_of(mixed)) <= 31
    assert error(model, mixed, fresh()) < 0.5


def test_behind_a_gate_that_went_away_the_layer_reads_another_tensor(tmp_path: Path) -> None:
    b = models.ModelBuilder([1, 6, 8, 8])
    x = b.op("Relu", b.conv(b.x, 6, 24))
    gate = b.op("Relu", b.conv(b.op("GlobalAveragePool", x), 24, 8))
    gated = b.op("Mul", x, b.op("Sigmoid", b.conv(gate, 8, 24)), out="gated")
    model = b.build(b.op("Relu", b.conv(gated, 24, 32, out="layer")))
    found = recovery(tmp_path, model, SimplifyActivation(), PASS)
    both = Candidate.of(
        {"simplify-activation@gated": "constant-gate", "cluster-weights@layer": "levels-31"}
    )
    fits, refused = found.in_order(both)
    assert not refused
    fitted = result(found, model, values_only(fits), both)
    assert "gated" not in {t for n in fitted.graph.node for t in n.output}
    assert most_values(weight_of(fitted)) <= 31
    only = Candidate.of({"simplify-activation@gated": "constant-gate"})
    alone = error(model, result(found, model, values_only(fits), only), fresh())
    assert error(model, fitted, fresh()) < alone + 0.005


def test_weights_that_others_fitted_are_not_replaced_by_older_ones(tmp_path: Path) -> None:
    model = conv_layer()
    found = recovery(tmp_path, model, PASS)
    site = found.space.site("cluster-weights@layer")
    fits, _ = found.alone([(site.id, "levels-31")])
    (tensor,) = (t for t in model.graph.initializer if t.dims[:2] == [32, 24])
    other = numpy_helper.to_array(tensor)[::-1].copy()
    tensor.CopyFrom(numpy_helper.from_array(other, tensor.name))
    again = recovery(tmp_path, model, PASS)
    fitted = result(again, model, values_only(fits), Candidate.of({site.id: "levels-31"}))
    assert np.abs(weight_of(fitted) - other).max() < np.abs(other).max() / 20


def test_small_grouped_and_shared_layers_are_declined() -> None:
    b = models.ModelBuilder([1, 6, 8, 8])
    small = b.conv(b.x, 6, 24, out="small")
    grouped = b.conv(small, 24, 48, 3, group=2, out="grouped")
    weight = b.weight(48, 48, 1, 1)
    one = b.op("Conv", grouped, weight, out="one", kernel_shape=[1, 1])
    two = b.op("Conv", one, weight, out="two", kernel_shape=[1, 1])
    sites, misses = rewriting.find(PASS, b.build(b.op("Relu", two)))
    assert not sites
    assert "fewer than 256 weights" in misses["small"]
    assert "grouped" in misses["grouped"]
    assert "shares its weight" in misses["one"]


def test_all_zeros_cannot_be_clustered(tmp_path: Path) -> None:
    model = conv_layer()
    (tensor,) = (t for t in model.graph.initializer if t.dims[:2] == [32, 24])
    tensor.CopyFrom(numpy_helper.from_array(np.zeros((32, 24, 1, 1), np.float32), tensor.name))
    found = recovery(tmp_path, model, PASS)
    move = ("cluster-weights@layer", "levels-7")
    fits, refused = found.alone([move])
    assert not fits
    assert refused[move]
