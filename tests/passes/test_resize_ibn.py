"""Narrower hidden layers: where, how wide, and weights that make up for the channels that go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
import rewriting
from fitting import ROWS, error, fresh, recovery, result
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxnas.errors import UsageError
from onnxnas.passes.resize_ibn import ResizeIbn
from onnxnas.passes.scale_width import ScaleWidth
from onnxnas.recover import values_only
from onnxnas.sites import Candidate


def ibn(act: str = "Relu", *, stride: int = 1, bias: bool = True, k: int = 3) -> onnx.ModelProto:
    """One block 6 -> 32 -> 6 whose channels 16.. are linear in the others before the activation."""
    b = models.ModelBuilder([1, 6, 8, 8])
    attrs: dict[str, Any] = {"alpha": 0.2} if act == "LeakyRelu" else {}
    slope = [b.const(np.linspace(0.1, 0.4, 32, dtype=np.float32)[:, None, None])]
    extra = slope if act == "PRelu" else []
    y = b.op(act, b.conv(b.x, 6, 32, out="wide"), *extra, **attrs)
    y = b.op(act, b.depthwise(y, 32, k, stride=stride, out="deep"), *extra, **attrs)
    y = b.conv(y, 32, 6, bias=bias, out="narrow")
    return b.build(b.op("Relu", b.op("Add", b.x, y) if stride == 1 else y))


def test_offers_the_targets_widths() -> None:
    sites, _ = rewriting.find(ResizeIbn(), ibn())
    assert [c.label for c in sites["wide"].choices] == ["to-28", "to-24", "to-20", "to-16"]
    assert all(c.exactness == "recovered" for c in sites["wide"].choices)
    assert "node:narrow" in sites["wide"].claims


@pytest.mark.parametrize(
    ("act", "stride", "bias"),
    [
        ("Relu", 1, True),
        ("Relu", 2, False),
        ("LeakyRelu", 1, True),
        ("PRelu", 1, True),
        ("Sigmoid", 1, True),  # no gradient steps through it: least squares alone
    ],
)
def test_fitted_is_better_than_merely_cut(
    tmp_path: Path, act: str, stride: int, bias: bool
) -> None:
    model = ibn(act, stride=stride, bias=bias)
    found = recovery(tmp_path, model, ResizeIbn(steps=100))
    move = ("resize-ibn@wide", "to-24")
    candidate = Candidate.of(dict([move]))
    fits, refused = found.alone([move])
    assert not refused
    cut = error(model, result(found, model, None, candidate), fresh())
    fitted = error(model, result(found, model, values_only(fits), candidate), fresh())
    assert fitted < 0.5 * cut
    weight = result(found, model, values_only(fits), candidate)
    assert rewriting.attribute(weight, "deep", "group") == 24


def test_dead_channels_cost_nothing(tmp_path: Path) -> None:
    model = ibn()
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if values.shape[0] == 32 and values.ndim in (1, 4):
            values[5:13] = -1.0 if values.ndim == 1 else 0.0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    found = recovery(tmp_path, model, ResizeIbn(steps=0))
    move = ("resize-ibn@wide", "to-24")
    fits, _ = found.alone([move])
    assert not set(fits[move].values["kept"]) & set(range(5, 13))
    other = result(found, model, values_only(fits), Candidate.of(dict([move])))
    assert error(model, other, fresh()) < 1e-6
    assert error(model, rewriting.scale_one_weight(other, 3.0), fresh()) > 1e-6


def test_gradient_steps_improve_on_least_squares(tmp_path: Path) -> None:
    model = ibn()
    move = ("resize-ibn@wide", "to-16")
    plain, _ = recovery(tmp_path, model, ResizeIbn(steps=0)).alone([move])
    trained, _ = recovery(tmp_path, model, ResizeIbn(steps=200)).alone([move])
    assert trained[move].error < 0.95 * plain[move].error


def test_in_order_repairs_what_earlier_blocks_changed(tmp_path: Path) -> None:
    b = models.ModelBuilder([1, 6, 8, 8])
    y = b.x
    for _ in range(3):
        y = b.ibn(y, 6, 32, 6)
    model = b.build(y)
    found = recovery(tmp_path, model, ResizeIbn(steps=0))
    candidate = Candidate.of({site.id: "to-20" for site in found.space})
    alone, _ = found.alone(list(candidate.decisions))
    ordered, refused = found.in_order(candidate)
    assert not refused
    assert ordered.keys() == set(candidate.decisions)
    errors = [
        error(model, result(found, model, values_only(w), candidate), fresh())
        for w in (alone, ordered)
    ]
    assert errors[1] < errors[0]


def test_blocks_in_a_chain_share_a_layer(tmp_path: Path) -> None:
    """The reader of one hidden layer is the first layer of the next block."""
    b = models.ModelBuilder([1, 6, 8, 8])
    y = b.op("Relu", b.conv(b.x, 6, 32))
    for _ in range(3):
        y = b.op("Relu", b.conv(b.op("Relu", b.depthwise(y, 32)), 32, 32))
    model = b.build(b.conv(y, 32, 6))
    found = recovery(tmp_path, model, ResizeIbn(steps=20))
    candidate = Candidate.of({site.id: "to-24" for site in found.space})
    assert len(candidate.decisions) == 3
    fits, refused = found.in_order(candidate)
    assert not refused
    fitted = result(found, model, values_only(fits), candidate)
    cut = result(found, model, None, candidate)
    assert error(model, fitted, fresh()) < 0.5 * error(model, cut, fresh())


def test_a_fit_is_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move = ("resize-ibn@wide", "to-24")
    first, _ = recovery(tmp_path, ibn(), ResizeIbn(steps=0)).alone([move])
    monkeypatch.setattr(ResizeIbn, "recover", None)  # a second fit would raise
    again, _ = recovery(tmp_path, ibn(), ResizeIbn(steps=0)).alone([move])
    assert again[move].error == first[move].error
    for name, values in first[move].values.items():
        np.testing.assert_array_equal(values, again[move].values[name])


def test_other_data_is_another_fit(tmp_path: Path) -> None:
    move = ("resize-ibn@wide", "to-24")
    first, _ = recovery(tmp_path, ibn(), ResizeIbn(steps=0)).alone([move])
    other, _ = recovery(tmp_path, ibn(), ResizeIbn(steps=0), rows=ROWS * 0.5).alone([move])
    assert other[move].error != first[move].error


def test_too_few_rows_are_refused_with_the_number(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has 20 rows, and fitting weights needs 50"):
        recovery(tmp_path, ibn(), ResizeIbn(), rows=ROWS[:20])


@pytest.mark.parametrize(
    ("rows", "reason"), [(np.zeros_like(ROWS), "is the same on every sample"), (ROWS * 1e30, "NaN")]
)
def test_degenerate_samples_are_refused(
    tmp_path: Path, rows: NDArray[np.float32], reason: str
) -> None:
    model = ibn()
    if reason == "is the same on every sample":
        model = no_output(model)
    move = ("resize-ibn@wide", "to-24")
    fits, refused = recovery(tmp_path, model, ResizeIbn(), rows=rows).alone([move])
    assert not fits
    assert reason in refused[move]


def no_output(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without biases, so that nothing comes of zeros."""
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 1:
            zeros = np.zeros_like(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
    return model


def test_declines_with_a_reason() -> None:
    _, misses = rewriting.find(ResizeIbn(), models.outputs_in_the_middle())
    assert all(misses.values())
    sites, misses = rewriting.find(ResizeIbn(), small())
    assert not sites
    assert "fewest the target works in" in misses["wide"]


def small() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 3, 8, 8])
    y = b.op("Relu", b.conv(b.x, 3, 4, out="wide"))
    return b.build(b.conv(b.op("Relu", b.depthwise(y, 4)), 4, 3))


def test_other_groups_are_not_its_business() -> None:
    model = models.classifier_head()
    assert not set(rewriting.find(ResizeIbn(), model)[0]) & set(
        rewriting.find(ScaleWidth(), model)[0]
    )
