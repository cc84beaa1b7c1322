"""Linear fits from streamed sums: ridge, channels to drop, low rank. Numpy only.

All of them need nothing but the first and second moments of the samples, so any number of
samples takes the memory of one square matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

RIDGE = 1e-3
"""Share of the mean variance of a feature that is added to every variance."""


STRENGTHS = (RIDGE, 1e-1, 1.0, 10.0)
"""Ridges to choose from by the error on the rows to tune by."""


@dataclass
class Moments:
    """Sums over samples of features x [n, p] and targets y [n, q].

    Attributes:
        count: n.
        x, y: sums of the values.
        xx, xy, yy: sums of the products; `yy` of every target with itself only.
    """

    count: int
    x: Floats
    y: Floats
    xx: Floats
    xy: Floats
    yy: Floats

    @classmethod
    def empty(cls, features: int, targets: int) -> Moments:
        p, q = features, targets
        return cls(0, np.zeros(p), np.zeros(q), np.zeros((p, p)), np.zeros((p, q)), np.zeros(q))

    @classmethod
    def of(cls, x: NDArray[np.floating], y: NDArray[np.floating]) -> Moments:
        """Of one batch."""
        moments = cls.empty(x.shape[1], y.shape[1])
        moments.add(x, y)
        return moments

    def add(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> None:
        """Take in samples x [n, p] and y [n, q]; products are summed in their own precision."""
        self.count += len(x)
        with np.errstate(over="ignore", invalid="ignore"):  # `finite` tells
            self.x += x.sum(0, dtype=np.float64)
            self.y += y.sum(0, dtype=np.float64)
            self.xx += x.T @ x
            self.xy += x.T @ y
            self.yy += np.einsum("nq,nq->q", y, y, dtype=np.float64)

    def plus(self, other: Moments, weight: float = 1.0) -> Moments:
        """Both sets of samples, the other's counting `weight` times each."""
        return Moments(
            self.count + round(weight * other.count),
            self.x + weight * other.x,
            self.y + weight * other.y,
            self.xx + weight * other.xx,
            self.xy + weight * other.xy,
            self.yy + weight * other.yy,
        )

    @property
    def finite(self) -> bool:
        """Whether no sample held NaN or infinity."""
        return bool(np.isfinite(self.xx).all() and np.isfinite(self.yy).all())

    def covariance(self) -> tuple[Floats, Floats]:
        """Of the features among themselves [p, p] and with the targets [p, q]."""
        n = max(1, self.count)
        xx = self.xx / n - np.outer(self.x, self.x) / n**2
        return xx, self.xy / n - np.outer(self.x, self.y) / n**2

    def variance(self) -> float:
        """Of all targets together."""
        n = max(1, self.count)
        return float(np.maximum(self.yy / n - (self.y / n) ** 2, 0.0).sum())


@dataclass(frozen=True)
class Linear:
    """y = x @ weight + bias.

    Attributes:
        weight: [p, q]; rows of features that are not used are zero.
        bias: [q].
    """

    weight: Floats
    bias: Floats

    def error(self, moments: Moments) -> float:
        """Mean squared error on some samples over the variance of the targets."""
        n, w, b = max(1, moments.count), self.weight, self.bias
        fitted = np.einsum("pq,pq->", w, moments.xx @ w) + 2 * (moments.x @ w) @ b
        cross = np.einsum("pq,pq->", w, moments.xy) + b @ moments.y
        total = fitted / n + b @ b - 2 * cross / n + moments.yy.sum() / n
        return float(max(total, 0.0) / max(moments.variance(), 1e-30))


def ridge(
    moments: Moments,
    *,
    kept: Indices | None = None,
    prior: Floats | None = None,
    strength: float = RIDGE,
) -> Linear:
    """Least squares with intercept and a ridge of `strength` times the mean feature variance.

    Args:
        moments: of the samples.
        kept: features that may be used; None means all.
        prior: weights [p, q] that the ridge pulls to; None means zero.
    """
    xx, xy = moments.covariance()
    kept = np.arange(len(xx)) if kept is None else np.asarray(kept, np.int64)
    damping = strength * _mean_variance(xx)
    start = np.zeros_like(xy) if prior is None else prior
    left = xx[np.ix_(kept, kept)] + damping * np.eye(len(kept))
    right = xy[kept] + damping * start[kept]
    weight = np.zeros_like(xy)
    weight[kept] = np.linalg.solve(left, right)
    n = max(1, moments.count)
    return Linear(weight, (moments.y - moments.x @ weight) / n)


def best_ridge(
    moments: Moments,
    tune: Moments,
    features: Indices,
    prior: Floats,
    whole: Moments | None = None,
) -> tuple[Linear, float]:
    """A ridge fit, pulled to the old weights as hard as does best on samples it was not made on.

    Where samples are many for the features, hardly any pull is best; the layer behind a pooling
    has one sample per row, and would learn the rows by heart.

    Args:
        whole: what the fit is made on once it is settled how hard; None means `moments`.

    Returns:
        The fit, and the error on the samples to tune by before any of those were fitted on.
    """
    fits = [ridge(moments, kept=features, prior=prior, strength=s) for s in STRENGTHS]
    errors = [linear.error(tune) for linear in fits]
    best = int(np.argmin(np.nan_to_num(errors, nan=np.inf)))
    if whole is None:
        return fits[best], errors[best]
    return ridge(whole, kept=features, prior=prior, strength=STRENGTHS[best]), errors[best]


def removal_order(
    fits: Sequence[tuple[Moments, Indices, Floats]],
    least: int = 1,
    *,
    strength: float = RIDGE,
    tick: Callable[[], None] = lambda: None,
) -> list[int]:
    """Which channels to drop first, by exact backward elimination.

    Each step drops the channel without which the best linear fits, every other weight re-fitted,
    lose least: the saliency of Optimal Brain Surgeon (Hassibi & Stork, 1993) for the quadratic
    that least squares is. One order serves every width.

    Args:
        fits: moments of each reader of the channels, the features [channels, repeat] each
            channel is for it, and the weights [p, q] its ridge pulls to. Losses are summed
            relative to the variance of the targets.
        least: stop when so many channels are left.
        tick: called before each channel is dropped.
    """
    channels = len(fits[0][1])
    states = [_Elimination.of(moments, at, prior, strength) for moments, at, prior in fits]
    left = np.ones(channels, bool)
    order: list[int] = []
    while channels - len(order) > least:
        tick()
        loss = np.where(left, sum(state.losses(left) for state in states), np.inf)
        worst = int(np.argmin(loss))
        left[worst] = False
        order.append(worst)
        for state in states:
            state.drop(worst)
    return order


@dataclass
class _Elimination:
    """Inverse covariance and weights of one fit, kept up to date while channels go."""

    inverse: Floats
    weight: Floats
    at: Indices
    scale: float

    @classmethod
    def of(cls, moments: Moments, at: Indices, prior: Floats, strength: float) -> _Elimination:
        xx, xy = moments.covariance()
        damping = strength * _mean_variance(xx)
        inverse: Floats = np.linalg.inv(xx + damping * np.eye(len(xx))).astype(np.float64)
        weight = inverse @ (xy + damping * prior)
        return cls(inverse, weight, at, 1.0 / max(moments.variance(), 1e-30))

    def losses(self, left: NDArray[np.bool_]) -> Floats:
        at = self.at
        losses = np.full(len(at), np.inf)
        if at.shape[1] == 1:
            own = at[left, 0]
            energy = np.einsum("pq,pq->p", self.weight[own], self.weight[own])
            losses[left] = energy / np.diag(self.inverse)[own]
        else:
            own = at[left]
            blocks = self.inverse[own[:, :, None], own[:, None, :]]
            weights = self.weight[own]
            losses[left] = np.einsum("cij,cij->c", weights, np.linalg.solve(blocks, weights))
        return losses * self.scale

    def drop(self, channel: int) -> None:
        gone = self.at[channel]
        block = np.linalg.inv(self.inverse[np.ix_(gone, gone)])
        columns = self.inverse[:, gone] @ block
        self.weight -= columns @ self.weight[gone]
        self.inverse -= columns @ self.inverse[gone]


def low_rank(
    moments: Moments, weight: Floats, rank: int, *, strength: float = RIDGE
) -> tuple[Floats, Floats]:
    """The two factors [p, rank] and [rank, q] whose product does best on these samples.

    Truncates the singular values of the outputs (x - mean) @ weight rather than of the weight,
    so directions that the data never takes cost nothing.
    """
    xx, _ = moments.covariance()
    values, vectors = np.linalg.eigh(xx + strength * _mean_variance(xx) * np.eye(len(xx)))
    root = np.sqrt(np.maximum(values, 1e-30))
    u, s, vt = np.linalg.svd((vectors * root).T @ weight, full_matrices=False)
    return (vectors / root) @ (u[:, :rank] * s[:rank]), vt[:rank]


def _mean_variance(xx: Floats) -> float:
    return max(float(np.trace(xx)) / max(1, len(xx)), 1e-12)
