"""Samples are what the convolution reads and what the original says, at the same places."""

from __future__ import annotations

from typing import Any

import models
import numpy as np
import pytest
from oracle import run

from onnxnas.graph import from_model
from onnxnas.ops import Conv, conv
from onnxnas.samples import Role, Sampling, Window, read_samples, read_targets, split_rows

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


def rows(count: int, shift: float = 0.0) -> list[tuple[int, Role, dict[str, Any]]]:
    rng = np.random.default_rng(4)
    values = rng.standard_normal((count, 2, 1, 3, 6, 6)).astype(np.float32)
    roles: list[Role] = ["tune" if row % 4 == 3 else "fit" for row in range(count)]
    return [(i, roles[i], {"x": v[0] + shift, "y": v[1]}) for i, v in enumerate(values)]


def test_rows_to_tune_by_are_in_no_fit() -> None:
    sampling = Sampling((Window("x"),), "y", most=10_000)
    (samples,) = read_samples([sampling], rows(8), None, 8, 0)
    fitted = [t["y"] for _, role, t in rows(8) if role == "fit"]
    assert samples.fit.moments.count == 6 * 36
    assert samples.tune.moments.count == 2 * 36
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
    ("count", "tune", "judge"), [(50, 8, 10), (250, 38, 50), (10_000, 100, 100), (3, 1, 1)]
)
def test_every_row_has_one_role_and_each_role_is_spread(count: int, tune: int, judge: int) -> None:
    roles = split_rows(count)
    assert (roles.count("tune"), roles.count("judge")) == (tune, judge)
    assert roles.count("fit") == count - tune - judge > 0
    for role in ("tune", "judge"):
        places = np.flatnonzero([r == role for r in roles])
        assert np.ptp(np.diff(places)) <= 3 if len(places) > 1 else True
