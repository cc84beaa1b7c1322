"""Samples are what the convolution reads and what the original says, at the same places."""

from __future__ import annotations

from typing import Any

import models
import numpy as np
import pytest
from oracle import run

from onnxnas.graph import from_model
from onnxnas.ops import Conv, conv
from onnxnas.samples import Sampling, Window, read_samples, read_targets, split_rows

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "options",
    [
        {"k": 1},
        {"k": 3, "pads": 1},
        {"k": 3, "pads": [0, 1, 2, 3], "stride": 2},
        {"k": 3, "pads": 2, "dilations": [2, 2]},
    ],
)
def test_windows_are_what_a_convolution_reads(options: dict[str, Any]) -> None:
    b = models.ModelBuilder([1, 5, 9, 7])
    model = b.build(b.conv(b.x, 5, 4, **options, out="y"))
    found = conv(from_model(model).nodes[0])
    assert isinstance(found, Conv)
    window = Window("x", found.kernel, found.strides, found.dilations, found.pads)
    x = RNG.standard_normal((1, 5, 9, 7)).astype(np.float32)
    y = run(model, {"x": x})["y"]
    sampling = Sampling((window,), "y", most=40)
    at = sampling.positions(y.shape, 3, 1, 0)
    features = sampling.features({"x": x}, at)
    weight, bias = found.weight.values.reshape(4, -1), found.bias.values  # type: ignore[union-attr]
    expected = sampling.targets({"y": y}, at)
    np.testing.assert_allclose(features @ weight.T + bias, expected, atol=1e-5)
    assert not np.allclose(features @ weight.T * 1.01 + bias, expected, atol=1e-5)
    padded = window.read(np.ones_like(x), at)[:, 0] == 0
    np.testing.assert_array_equal(window.inside(x.shape, at), ~padded)


def test_vectors_have_one_position() -> None:
    x = RNG.standard_normal((3, 5)).astype(np.float32)
    sampling = Sampling((Window("x"),), "x")
    at = sampling.positions(x.shape, 0, 10, 0)
    np.testing.assert_array_equal(sampling.features({"x": x}, at), x)


def test_positions_repeat_and_differ_by_row() -> None:
    sampling = Sampling((Window("x"),), "y", most=100)
    first = sampling.positions((1, 4, 20, 20), 0, 10, 7)
    assert len(first) == 10
    np.testing.assert_array_equal(first, sampling.positions((1, 4, 20, 20), 0, 10, 7))
    assert not np.array_equal(first, sampling.positions((1, 4, 20, 20), 1, 10, 7))
    assert not np.array_equal(first, sampling.positions((1, 4, 20, 20), 0, 10, 8))


def rows(count: int, shift: float = 0.0) -> list[tuple[int, bool, dict[str, Any]]]:
    rng = np.random.default_rng(4)
    values = rng.standard_normal((count, 2, 1, 3, 6, 6)).astype(np.float32)
    outs = list(split_rows(count, 0.25, 100))
    return [(i, outs[i], {"x": v[0] + shift, "y": v[1]}) for i, v in enumerate(values)]


def test_held_out_rows_are_in_no_fit() -> None:
    sampling = Sampling((Window("x"),), "y", most=10_000)
    (samples,) = read_samples([sampling], rows(8), None, 8, 0)
    fitted = [t["y"] for _, out, t in rows(8) if not out]
    assert samples.fit.moments.count == 6 * 36
    assert samples.held_out.moments.count == 2 * 36
    expected = np.concatenate([y[0].reshape(3, -1) for y in fitted], 1).sum(1)
    np.testing.assert_allclose(samples.fit.moments.y, expected, rtol=1e-5)


def test_targets_come_from_the_original_and_residuals_from_the_student() -> None:
    sampling = Sampling((Window("x"),), "y", minus=("x",), most=10_000, patches=True)
    targets = read_targets([sampling], rows(4), 4, 0)
    (samples,) = read_samples([sampling], rows(4, shift=1.0), targets, 4, 0)
    (plain,) = read_samples([sampling], rows(4), None, 4, 0)
    np.testing.assert_allclose(samples.fit.x, plain.fit.x + 1.0, atol=1e-6)
    np.testing.assert_allclose(samples.fit.y, plain.fit.y - 1.0, atol=1e-6)


def test_memory_does_not_grow_with_the_rows() -> None:
    sampling = Sampling((Window("x"),), "y", most=30)
    (few,) = read_samples([sampling], rows(8), None, 8, 0)
    (many,) = read_samples([sampling], rows(200), None, 200, 0)
    assert few.fit.moments.xx.shape == many.fit.moments.xx.shape
    assert many.fit.moments.count == 150  # one position of each row that is fitted on


@pytest.mark.parametrize(
    ("count", "share", "most", "held_out"),
    [(10, 0.2, 100, 2), (1000, 0.2, 100, 100), (3, 0.1, 9, 1)],
)
def test_held_out_rows_are_spread(count: int, share: float, most: int, held_out: int) -> None:
    split = list(split_rows(count, share, most))
    assert len(split) == count
    assert sum(split) == held_out
    places = np.flatnonzero(split)
    assert np.ptp(np.diff(places)) <= 1 if held_out > 1 else True
