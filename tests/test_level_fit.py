"""Few distinct weights: on a common grid in int8, with less harm than rounding each alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxnas.least_squares import Floats
from onnxnas.level_fit import Levels, few_levels, is_clustered


def problem(seed: int, features: int, outputs: int) -> tuple[Floats, Floats]:
    """A weight and the covariance of features that depend on each other."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((features, features)) * np.geomspace(1, 0.05, features)
    return rng.standard_normal((features, outputs)), mixed @ mixed.T / features


def harm(weight: Floats, covariance: Floats, found: Levels) -> float:
    wrong = weight - found.index * found.step.astype(np.float64)
    return float(np.einsum("pq,pq->", wrong, covariance @ wrong))


@pytest.mark.parametrize("levels", [31, 15, 7])
def test_all_channels_share_one_grid_in_int8(levels: int) -> None:
    weight, covariance = problem(0, 150, 20)
    weight *= np.geomspace(0.01, 100, 20)  # channels of all sizes
    values = few_levels(weight, covariance, levels).weight
    scales = np.abs(values).max(0) / 127
    stored = np.rint(values / scales).astype(int)
    assert len(np.unique(stored)) <= levels
    grid = np.rint(np.arange(-(levels // 2), levels // 2 + 1) * 127 / (levels // 2))
    assert set(np.unique(stored)) <= {int(v) for v in grid}


@pytest.mark.parametrize("levels", [31, 15, 7])
def test_does_less_harm_than_rounding_each_alone(levels: int) -> None:
    for seed in range(3):
        weight, covariance = problem(seed, 200, 24)
        plain = harm(weight, covariance, Levels.nearest(weight, levels))
        assert harm(weight, covariance, few_levels(weight, covariance, levels)) < 0.5 * plain


def test_comes_near_the_best_of_all_roundings() -> None:
    ratios = []
    for seed in range(10):
        weight, covariance = problem(seed, 5, 1)
        found = few_levels(weight, covariance, 3)
        step = found.step.astype(np.float64)
        every = np.array([*itertools.product((-1, 0, 1), repeat=5)]) * step
        wrong = weight[:, 0] - every
        best = np.einsum("np,pk,nk->n", wrong, covariance, wrong).min()
        plain = np.clip(np.rint(weight / step), -1, 1).astype(np.int8)
        ratios.append(
            [harm(weight, covariance, f) / best for f in (found, Levels(plain, found.step))]
        )
    ours, alone = np.median(ratios, 0)
    assert 1.0 <= ours < 2.0
    assert ours < alone


def test_channels_of_zeros_stay_and_dead_features_do_not_matter() -> None:
    weight, covariance = problem(3, 40, 6)
    weight[:, 2] = 0.0
    covariance[:, 7] = covariance[7] = 0.0
    found = few_levels(weight, covariance, 15)
    assert not found.index[:, 2].any()
    assert np.isfinite(found.weight).all()
    rest = np.delete(np.arange(40), 7)
    same = few_levels(weight[rest], covariance[np.ix_(rest, rest)], 15)
    assert harm(weight, covariance, found) < 1.5 * harm(
        weight[rest], covariance[np.ix_(rest, rest)], same
    )


@pytest.mark.parametrize("axis", [0, -1])
def test_few_values_are_recognised_along_either_axis(axis: int) -> None:
    weight, covariance = problem(5, 100, 40)
    found = few_levels(weight, covariance, 31).weight
    assert is_clustered(found.T if axis == 0 else found)
    assert not is_clustered(weight if axis == 0 else weight.T)
    found[:, 4] = weight[:, 4]
    assert not is_clustered(found.T if axis == 0 else found)


def test_alone_is_within_half_a_step() -> None:
    weight, _ = problem(4, 30, 5)
    found = Levels.nearest(weight, 31)
    assert (np.abs(found.weight - weight) <= 0.5001 * found.step).all()
    assert np.abs(found.index).max(0).tolist() == [15] * 5
