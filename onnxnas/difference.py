"""How far one output is from what it should be, judged by the precision it is computed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT_TOLERANCE = 1e-5
"""Of the largest magnitude: six times the largest rounding difference (1.7e-6) seen between two
ways of running six real float32 networks. Types less precise than float32 get 4 epsilon."""

SHARE_TOLERANCE = 1e-4
"""Share of elements of an output that jumps (classes, truth values) that may differ: where two
scores tie to rounding, either is right."""

NOISE_FACTOR = 10
"""The tolerance grows to this multiple of the original's own rounding noise, where that is more."""

SQUASHED_SCALE = 0.05
"""Least magnitude that errors of probabilities are relative to: they are parts of 1, and computed
to a few epsilon of 1 (1.2e-7) however small they are."""

_MOST = 100
"""... but never to more than this multiple of what it is without noise."""


@dataclass
class OutputDifference:
    """One output of a result against the original's, over several inputs.

    Attributes:
        name: of the output.
        stepped: the output jumps (classes, truth values) and so is judged by the share of unequal
            elements, not by magnitude; integer types always are.
        squashed: the output was squashed to a fixed range (probabilities), see `SQUASHED_SCALE`.
        noise: the `error` between two correct ways of running the original itself; 0 if unknown.
        problem: why they cannot be compared (another shape or type); empty if they can.
    """

    name: str
    stepped: bool = False
    squashed: bool = False
    noise: float = 0.0
    problem: str = ""
    _dtype: np.dtype[Any] | None = None
    _scales: list[tuple[float, float]] = field(default_factory=list)
    _snr_db: float = math.inf
    _count: int = 0
    _unequal: int = 0
    _misplaced: int = 0
    _decisions: int = 0
    _same_decisions: int = 0
    _low: Any = None
    _high: Any = None

    def add(self, reference: Any, actual: Any) -> None:
        """Compare the outputs of one run: arrays, or lists of arrays for sequences."""
        wanted, got = _arrays(reference), _arrays(actual)
        if len(wanted) != len(got):
            self.problem = f"{len(got)} elements in the sequence instead of {len(wanted)}"
            return
        for want, have in zip(wanted, got, strict=True):
            if want.shape != have.shape or want.dtype != have.dtype:
                self.problem = f"{_describe(have)} instead of {_describe(want)}"
            elif want.size:
                self._dtype = want.dtype
                self._count += want.size
                self._track_range(want)
                if self.by_magnitude:
                    self._add_floats(want, have)
                else:
                    self._unequal += int(np.count_nonzero(~_same(want, have)))

    @property
    def by_magnitude(self) -> bool:
        """Whether the output is judged by magnitude, rather than by the share of equal elements."""
        return not self.stepped and (self._dtype is None or _is_float(self._dtype))

    @property
    def max_abs_error(self) -> float:
        """Largest absolute error of a float output."""
        return max((error for error, _ in self._scales), default=0.0)

    @property
    def max_reference(self) -> float:
        """Largest absolute value of the original's float output."""
        return max((scale for _, scale in self._scales), default=0.0)

    @property
    def error(self) -> float:
        """What is held against `tolerance`.

        For floats the largest error of a run by the largest magnitude in that run (or, where the
        original gave only zeros, in all runs); for others the share of unequal elements.
        """
        if not self.by_magnitude:
            return self._unequal / max(self._count, 1)
        if self._misplaced:
            return math.inf
        least = SQUASHED_SCALE if self.squashed else 0.0
        return max(
            (_ratio(e, max(s or self.max_reference, least)) for e, s in self._scales), default=0.0
        )

    @property
    def tolerance(self) -> float:
        """Largest `error` that rounding explains; see the constants of this module."""
        base = SHARE_TOLERANCE
        if self.by_magnitude:
            precision = 0.0 if self._dtype is None else 4 * _epsilon(self._dtype)
            base = max(FLOAT_TOLERANCE, precision)
        return min(max(base, NOISE_FACTOR * self.noise), _MOST * base)

    @property
    def ok(self) -> bool:
        """Whether the outputs are the same but for rounding."""
        return not self.problem and self.error <= self.tolerance

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio of the worst run in dB; infinite where there is no error."""
        return self._snr_db

    @property
    def argmax_agreement(self) -> float | None:
        """Share of equal decisions along the class axis; None where there is none.

        The class axis is the last of rank 3 ([batch, boxes, classes]), else axis 1.
        """
        return self._same_decisions / self._decisions if self._decisions else None

    @property
    def constant(self) -> bool:
        """Whether the original gave one and the same value everywhere: then this says little."""
        return self._count > 1 and bool(self._low == self._high)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values; what is infinite or does not apply is None."""
        return {
            "name": self.name,
            "ok": self.ok,
            "problem": self.problem,
            "dtype": "" if self._dtype is None else str(self._dtype),
            "error": _finite(self.error),
            "tolerance": self.tolerance,
            "judged_by": "relative magnitude" if self.by_magnitude else "share of unequal elements",
            "noise": _finite(self.noise),
            "max_abs_error": _finite(self.max_abs_error) if self.by_magnitude else None,
            "max_abs_reference": _finite(self.max_reference) if self.by_magnitude else None,
            "snr_db": _finite(self.snr_db) if self.by_magnitude else None,
            "argmax_agreement": self.argmax_agreement,
            "constant": self.constant,
        }

    def __str__(self) -> str:
        if self.problem:
            return f"{self.name}: {self.problem}"
        noise = f", rounding noise of the original {self.noise:.2g}" if self.noise else ""
        return f"{self.measured()}; allowed {self.tolerance:.2g}{noise}"

    def measured(self) -> str:
        """How far it is off, without what is allowed."""
        if not self.by_magnitude:
            text = f"{self.name}: {self._unequal} of {self._count} elements differ"
        elif self._misplaced:
            text = f"{self.name}: {self._misplaced} NaN or infinite values are not where they were"
        else:
            text = (
                f"{self.name}: largest error {self.max_abs_error:.3g} of {self.max_reference:.3g}, "
                f"relative {self.error:.2g}, SNR {self.snr_db:.1f} dB"
            )
            if self.argmax_agreement is not None:
                text += f", argmax agrees {self.argmax_agreement:.2%}"
        return text + (", one value throughout, which says little" if self.constant else "")

    def _add_floats(self, want: NDArray[Any], have: NDArray[Any]) -> None:
        identical = np.array_equal(want, have)
        axis = -1 if want.ndim == 3 else 1
        if want.ndim >= 2 and want.shape[axis] > 1 and want.dtype.kind == "f":
            decisions = want.size // want.shape[axis]
            self._decisions += decisions
            self._same_decisions += (
                decisions
                if identical
                else int(np.count_nonzero(want.argmax(axis) == have.argmax(axis)))
            )
        if identical and np.isfinite(want).all():
            self._scales.append((0.0, float(np.abs(want).max())))
            return
        wide = np.complex128 if want.dtype.kind == "c" else np.float64
        want, have = want.astype(wide), have.astype(wide)
        finite = np.isfinite(want) & np.isfinite(have)
        if not finite.all():
            self._misplaced += int(np.count_nonzero(~finite & ~_same(want, have)))
            want, have = want[finite], have[finite]
        reference, error = np.abs(want), np.abs(have - want)
        scale, worst = float(reference.max(initial=0.0)), float(error.max(initial=0.0))
        self._scales.append((worst, scale))
        if worst:
            self._snr_db = min(self._snr_db, _decibel(reference, scale) - _decibel(error, worst))

    def _track_range(self, want: NDArray[Any]) -> None:
        if want.dtype.kind in "OSUc":
            return
        low, high = want.min(), want.max()
        self._low = low if self._low is None else min(self._low, low)
        self._high = high if self._high is None else max(self._high, high)


def _arrays(value: Any) -> list[NDArray[Any]]:
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [array for element in value for array in _arrays(element)]
    return [np.asarray(value)]


def _same(want: NDArray[Any], have: NDArray[Any]) -> NDArray[np.bool_]:
    equal = np.asarray(want == have)
    if want.dtype.kind in "fc":
        equal |= np.isnan(want) & np.isnan(have)
    return equal


def _decibel(magnitudes: NDArray[Any], largest: float) -> float:
    """Power of some values in dB; scaled by the largest first, so that no square overflows."""
    if not largest:
        return -math.inf
    return 20 * math.log10(float(np.linalg.norm(magnitudes / largest))) + 20 * math.log10(largest)


def _describe(array: NDArray[Any]) -> str:
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind not in "biuOSU"


def _epsilon(dtype: np.dtype[Any]) -> float:
    return float(np.finfo(dtype).eps) if dtype.kind in "fc" else 2.0**-7


def _ratio(error: float, scale: float) -> float:
    return error / scale if scale else (math.inf if error else 0.0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
