"""Weights of few distinct values, the rounding of each made up for by those not yet rounded.

The values of an output channel are multiples of one step, so after symmetric int8 quantisation
with a scale per channel all channels share the same few integers, which the weight streams of
accelerators encode in few bits.

What rounding one feature's weights does to the outputs is taken up by the features that are still
free, as the covariance of the features says (Optimal Brain Surgeon, Hassibi & Stork, 1993; the
order of one feature after another for all outputs: Frantar et al., "GPTQ", 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxnas.least_squares import Floats

_DAMPING = 1e-2
"""Share of the mean variance of a feature that is added to every variance."""
_AT_ONCE = 128
"""Features whose errors are kept before the rest of the weights is corrected for them."""
_FEW = 31
"""Distinct values of a channel that are no accident."""
_CLIPS = (1.0, 0.93, 0.86, 0.79)
"""Largest values to choose from, relative to a channel's largest weight."""


@dataclass(frozen=True)
class Levels:
    """A weight [p, q] whose columns are whole multiples of a step each.

    Attributes:
        index: the multiples, int8 [p, q].
        step: [q].
    """

    index: NDArray[np.int8]
    step: NDArray[np.float32]

    @property
    def weight(self) -> NDArray[np.float32]:
        """The values [p, q]."""
        return self.index * self.step

    @classmethod
    def nearest(cls, weight: NDArray[np.floating], levels: int) -> Levels:
        """Every weight rounded alone.

        Args:
            weight: [p, q].
            levels: odd number of distinct values.
        """
        top = levels // 2
        largest = np.abs(weight).max(axis=0, initial=0.0)
        step = np.where(largest > 0, largest / top, 1.0).astype(np.float32)
        return cls(np.rint(weight / step).astype(np.int8), step)


def few_levels(
    weight: Floats, covariance: Floats, levels: int, tick: Callable[[], None] = lambda: None
) -> Levels:
    """The levels with which the outputs change little.

    Args:
        weight: [p, q].
        covariance: of the features, [p, p].
        levels: odd number of distinct values of an output channel.
        tick: called before some features are rounded.

    Raises:
        numpy.linalg.LinAlgError: the covariance is not finite.
    """
    top, variance = levels // 2, np.maximum(np.diag(covariance), 0.0)
    step = _steps(weight, variance, top)
    order = np.argsort(-variance, kind="stable")  # what is rounded last is corrected most
    damping = _DAMPING * max(float(variance.mean()), 1e-12)
    damped = covariance[np.ix_(order, order)] + damping * np.eye(len(order))
    # Row k of it: how the features behind k make up for an error of k.
    root = np.linalg.cholesky(np.linalg.inv(damped)).T
    left = weight[order].astype(np.float64)
    # Every channel has its largest level somewhere, so that all have the same grid in int8.
    largest = np.abs(weight[order]).argmax(axis=0)
    index = np.zeros(weight.shape, np.int8)
    for start in range(0, len(order), _AT_ONCE):
        tick()
        end = min(start + _AT_ONCE, len(order))
        errors = np.zeros((end - start, weight.shape[1]))
        for k in range(start, end):
            rounded = np.clip(np.rint(left[k] / step), -top, top)
            fixed = largest == k
            rounded[fixed] = top * np.sign(weight[order[k], fixed])
            index[order[k]] = rounded
            errors[k - start] = (left[k] - rounded * step) / root[k, k]
            left[k + 1 : end] -= np.outer(root[k, k + 1 : end], errors[k - start])
        left[end:] -= root[start:end, end:].T @ errors
    return Levels(index, step.astype(np.float32))


def is_clustered(weight: NDArray[np.floating]) -> bool:
    """Whether every channel, along the first or the last axis, has few values for its size."""
    for axis in (0, -1):
        channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        large = channels.shape[1] > 2 * _FEW
        if large and all(len(np.unique(channel)) <= _FEW for channel in channels):
            return True
    return False


def _steps(weight: Floats, variance: Floats, top: int) -> Floats:
    """The step [q] of each output channel that rounding alone does least harm with."""
    largest = np.abs(weight).max(axis=0, initial=0.0)
    largest = np.where(largest > 0, largest, 1.0)
    best, least = largest / top, np.full(weight.shape[1], np.inf)
    for clip in _CLIPS:
        step = clip * largest / top
        wrong = weight - step * np.clip(np.rint(weight / step), -top, top)
        harm = variance @ wrong**2
        best, least = np.where(harm < least, step, best), np.minimum(harm, least)
    return best
