"""Fits from sums agree with fits from the samples, and with brute force."""

from __future__ import annotations

import numpy as np
import pytest

from onnxnas.least_squares import Floats, Linear, Moments, low_rank, removal_order, ridge

RNG = np.random.default_rng


def samples(n: int = 400, p: int = 6, q: int = 3, noise: float = 0.1) -> tuple[Floats, Floats]:
    rng = RNG(1)
    x = rng.standard_normal((n, p)) @ rng.standard_normal((p, p)) + rng.standard_normal(p)
    y = x @ rng.standard_normal((p, q)) + 2.0 + noise * rng.standard_normal((n, q))
    return x, y


def single(p: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.arange(p)[:, None]


def test_ridge_without_ridge_is_numpys_least_squares() -> None:
    x, y = samples()
    moments = Moments.of(x[:100], y[:100])
    moments.add(x[100:], y[100:])
    fit = ridge(moments, strength=1e-12)
    expected, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)
    np.testing.assert_allclose(np.vstack([fit.weight, fit.bias]), expected, rtol=1e-6, atol=1e-8)


def test_error_from_sums_is_the_error_on_the_samples() -> None:
    x, y = samples()
    fit = ridge(Moments.of(x, y), kept=np.array([0, 2, 3]))
    assert not fit.weight[[1, 4, 5]].any()
    wrong = x @ fit.weight + fit.bias - y
    relative = (wrong**2).mean(0).sum() / y.var(0).sum()
    assert fit.error(Moments.of(x, y)) == pytest.approx(relative, rel=1e-9)
    worse = Linear(fit.weight * 1.1, fit.bias)
    assert worse.error(Moments.of(x, y)) > fit.error(Moments.of(x, y)) * 1.001


def test_ridge_stays_at_the_prior_where_there_is_no_data() -> None:
    x, y = samples(p=4)
    x[:, 3] = 5.0  # a constant feature says nothing
    prior = np.full((4, 3), 7.0)
    fit = ridge(Moments.of(x, y), prior=prior)
    np.testing.assert_allclose(fit.weight[3], 7.0, rtol=1e-6)
    assert not np.allclose(fit.weight[:3], 7.0, rtol=0.05)


def test_removal_order_is_the_best_greedy_one() -> None:
    x, y = samples(p=7)
    moments = Moments.of(x, y)
    order = removal_order([(moments, single(7), np.zeros((7, 3)))], strength=1e-12)
    left = list(range(7))
    for dropped in order:
        errors = {
            c: ridge(moments, kept=np.array([i for i in left if i != c]), strength=1e-12).error(
                moments
            )
            for c in left
        }
        assert errors[dropped] == pytest.approx(min(errors.values()), rel=1e-6)
        left.remove(dropped)
    assert len(order) == 6


def test_removal_order_takes_all_features_of_a_channel() -> None:
    x, y = samples(p=6)
    y = x[:, 2:6] @ RNG(0).standard_normal((4, 3))  # the first two features are of no use
    moments = Moments.of(x, y)
    pairs = np.arange(6).reshape(3, 2)
    assert removal_order([(moments, pairs, np.zeros((6, 3)))], least=2) == [0]


def test_two_readers_share_one_order() -> None:
    x, _ = samples(p=4, noise=0.0)
    first, second = x[:, :1] * 3.0, x[:, 1:2] * 100.0
    fits = [(Moments.of(x, v), single(4), np.zeros((4, 1))) for v in (first, second)]
    assert set(removal_order(fits, least=2)) == {2, 3}


def test_dead_channels_go_first() -> None:
    x, y = samples(p=5)
    x[:, [1, 3]] = 0.0
    order = removal_order([(Moments.of(x, y), single(5), np.zeros((5, 3)))])
    assert set(order[:2]) == {1, 3}


def test_low_rank_uses_the_data() -> None:
    rng = RNG(3)
    x = rng.standard_normal((500, 8)) * np.array([10, 10, 1, 1, 0.1, 0.1, 0.1, 0.1])
    weight = rng.standard_normal((8, 6))
    moments = Moments.of(x, x @ weight)
    a, b = low_rank(moments, weight, 2)
    u, s, vt = np.linalg.svd(weight)
    plain = u[:, :2] * s[:2] @ vt[:2]
    wrong = [float(np.var(x @ (m - weight), axis=0).sum()) for m in (a @ b, plain)]
    assert wrong[0] < 0.5 * wrong[1]
    full_a, full_b = low_rank(moments, weight, 6)
    np.testing.assert_allclose(full_a @ full_b, weight, atol=1e-9)


def test_more_samples_weigh_as_said() -> None:
    x, y = samples()
    twice = Moments.of(np.r_[x, x], np.r_[y, y])
    np.testing.assert_allclose(Moments.of(x, y).plus(Moments.of(x, y)).xx, twice.xx)


def test_not_finite_is_said() -> None:
    x, y = samples()
    x[3, 2] = np.nan
    assert not Moments.of(x, y).finite
