"""How well a weight compresses: bits per weight after int8 quantisation and entropy coding.

Accelerators that stream compressed weights run faster on compressible ones, so the values of a
weight are part of its cost. Two figures describe them, both from the histogram of the quantised
values: the Shannon entropy, which no coder beats, and the length of the best Golomb-Rice code
(R. F. Rice, 1979), which simple hardware decoders come close to.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxnas.graph import LazyWeight

TYPICAL_BITS = (7.3, 7.5)
"""Entropy and Golomb-Rice bits of a trained weight, for one whose values are not computed yet.
Medians over the convolutions of MobileNetV2, DeepLabV3, YOLO-Fastest and MiniFASNet."""

_LEVELS = 256
_PALETTE = 32
"""Distinct values up to which a decoder may look them up, so that frequent ones get short codes
(Arm's Ethos-U weight streams)."""
_LOOKED_UP = 0.1
"""Bits that a Golomb-Rice code of those is longer than their entropy."""


class WeightStatistics:
    """Bits per weight of constants, remembered by the identity of the array behind them.

    Copies of a graph share weight arrays and nothing may write into one, so each is looked at
    once. An entry goes when its array does.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[weakref.ref[Any], tuple[float, float]]] = {}

    def bits(self, constant: Any, axis: int) -> tuple[float, float]:
        """Entropy and Golomb-Rice bits per weight of a constant.

        A lazy weight is never computed for this, and counts as typical even after it was:
        costs must not depend on when they are asked for.

        Args:
            constant: `gs.Constant`, floating point, or a Constant node's variable.
            axis: of the output channels, each of which is quantised on its own.
        """
        if constant.inputs:
            constant = constant.inputs[0].attrs["value"]
        source = constant._values
        if isinstance(source, LazyWeight):
            typical = level_bits(source.levels) if source.levels else TYPICAL_BITS
            return sparse_bits(*typical, density=source.density)
        place = (id(source), axis)
        found = self._known.get(place)
        if found is not None and found[0]() is source:
            return found[1]
        values = source.load() if isinstance(source, LazyValues) else source
        made = measure_bits(values, axis)
        forget = weakref.ref(source, lambda _: self._known.pop(place, None))
        self._known[place] = (forget, made)
        return made


def measure_bits(values: NDArray[Any], axis: int) -> tuple[float, float]:
    """Entropy and Golomb-Rice bits per value after symmetric int8 quantisation per channel."""
    matrix = np.moveaxis(np.asarray(values, np.float32), axis, 0).reshape(values.shape[axis], -1)
    largest = np.abs(matrix).max(axis=1, initial=0.0)
    scales = np.where(largest > 0, largest / 127, 1.0)
    stored = np.rint(matrix / scales[:, None]).astype(np.int16)
    counts = np.bincount(stored.ravel() + 128, minlength=_LEVELS)[:_LEVELS]
    shares = counts / max(1, counts.sum())
    present = shares[shares > 0]
    entropy = float(-(present * np.log2(present)).sum())
    return entropy, _rice_bits(shares)


def level_bits(levels: int) -> tuple[float, float]:
    """Bits of a typical weight when an output channel has so many distinct values, evenly spaced.

    Each halving of their number saves a bit; few enough are looked up, in codes as good as entropy.
    """
    fewer = max(0.0, float(np.log2(_LEVELS / levels)))
    entropy = TYPICAL_BITS[0] - fewer
    return entropy, entropy + _LOOKED_UP if levels <= _PALETTE else TYPICAL_BITS[1]


def sparse_bits(entropy: float, rice: float, density: float) -> tuple[float, float]:
    """Bits per weight when only a share of the weights may differ from zero."""
    if density >= 1.0:
        return entropy, rice
    place = -(density * np.log2(density) + (1 - density) * np.log2(1 - density))
    return float(place + density * entropy), float(min(8.0, place + density * rice))


def _rice_bits(shares: NDArray[Any]) -> float:
    """Mean length of sign bit, unary quotient and remainder, with the best divisor."""
    magnitude = np.abs(np.arange(_LEVELS) - 128)
    zeros = float(shares[128])
    sign = 1.0 - zeros
    lengths = [float((shares * ((magnitude >> k) + 1 + k)).sum()) + sign for k in range(8)]
    best = min(lengths)
    if 0.0 < zeros < 1.0:  # runs of zeros are coded apart where that is shorter
        rest = shares.copy()
        rest[128] = 0.0
        place = -(zeros * np.log2(zeros) + sign * np.log2(sign))
        others = [float((rest * ((magnitude >> k) + 2 + k)).sum()) for k in range(8)]
        best = min(best, place + min(others))
    if np.count_nonzero(shares) <= _PALETTE:
        by_rank = np.sort(shares)[::-1]
        rank = np.arange(_LEVELS)
        best = min(best, *(float((by_rank * ((rank >> k) + 1 + k)).sum()) for k in range(8)))
    return float(min(8.0, best))
