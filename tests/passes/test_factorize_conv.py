"""Low rank where the data is of low rank, with the layer's own bias and layout."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import pytest
import rewriting
from fitting import ROWS, error, fresh, recovery, result
from onnx import numpy_helper

from onnxnas.passes.factorize_conv import FactorizeConv
from onnxnas.recover import values_only
from onnxnas.sites import Candidate

PASS = FactorizeConv(smallest=256)


def conv_layer(bias: bool = True, stride: int = 1) -> onnx.ModelProto:
    """A 1x1 layer 24 -> 32 that reads only 6 directions of its 24 channels."""
    b = models.ModelBuilder([1, 6, 8, 8])
    wide = b.conv(b.x, 6, 24, out="wide")
    y = b.conv(wide, 24, 32, bias=bias, stride=stride, out="layer")
    return b.build(b.op("Relu", y))


def gemm_layer(transposed: int) -> onnx.ModelProto:
    b = models.ModelBuilder([1, 6, 8, 8])
    x = b.op("Flatten", b.op("GlobalAveragePool", b.conv(b.x, 6, 24)))
    weight = b.weight(*((32, 24) if transposed else (24, 32)))
    return b.build(b.op("Gemm", x, weight, b.weight(32), out="layer", transB=transposed))


@pytest.mark.parametrize(
    "model",
    [conv_layer(), conv_layer(bias=False), conv_layer(stride=2), gemm_layer(0), gemm_layer(1)],
    ids=["conv", "no-bias", "stride", "gemm", "gemm-transposed"],
)
def test_data_of_low_rank_costs_nothing(tmp_path: Path, model: onnx.ModelProto) -> None:
    found = recovery(tmp_path, model, PASS, rows=ROWS)
    (site,) = (s for s in found.space if s.tensor == "layer")
    label = site.choices[0].label
    fits, refused = found.alone([(site.id, label)])
    assert not refused
    candidate = Candidate.of({site.id: label})
    fitted = result(found, model, values_only(fits), candidate)
    assert error(model, fitted, fresh()) < 1e-5
    for tensor in fitted.graph.initializer:
        if tensor.name == "layer/second":
            wrong = numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
    assert error(model, fitted, fresh()) > 1e-5


def test_plain_factors_are_worse_than_fitted_ones(tmp_path: Path) -> None:
    model = conv_layer()
    found = recovery(tmp_path, model, PASS, rows=ROWS)
    (site,) = (s for s in found.space if s.tensor == "layer")
    label = site.choices[-1].label
    candidate = Candidate.of({site.id: label})
    fits, _ = found.alone([(site.id, label)])
    plain = error(model, result(found, model, None, candidate), fresh())
    assert error(model, result(found, model, values_only(fits), candidate), fresh()) < 0.5 * plain


def test_ranks_have_fewer_weights_than_the_whole() -> None:
    sites, misses = rewriting.find(PASS, conv_layer())
    ranks = [int(c.params["rank"]) for c in sites["layer"].choices]
    assert ranks == sorted(ranks, reverse=True)
    assert all(r * (24 + 32) < 24 * 32 and r % 4 == 0 for r in ranks)
    assert "too few to be split" in misses["wide"]


def test_declines_with_a_reason() -> None:
    b = models.ModelBuilder([1, 6, 8, 8])
    y = b.conv(b.depthwise(b.conv(b.x, 6, 24, 3, out="large"), 24, out="deep"), 24, 24, group=2)
    _, misses = rewriting.find(PASS, b.build(y))
    assert "no 1x1" in misses["large"]
    assert "no 1x1" in misses["deep"]
    assert "grouped" in misses[y]
    assert np.isfinite(ROWS).all()
