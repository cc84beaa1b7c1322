"""What a search minimises and what it must keep to: metrics, limits and goals.

Every strategy, table and report speaks of a candidate by the same row of five figures, `FIGURES`.
People name the columns by `METRICS` and write limits as ``8ms``, ``512KiB``, ``2.5M`` or ``-30%``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal

import numpy as np
from numpy.typing import NDArray

from onnxnas.errors import UsageError, unknown_name

FIGURES = ("cycles", "peak_bytes", "weight_bytes", "macs", "damage")
"""Columns of a row of figures: damage is 0 for the original; infinite means impossible."""

METRICS = ("latency", "peak-memory", "weights", "macs", "quality")
"""The same columns in the words of the command line."""

_BYTES = {
    unit: Decimal(base) ** power
    for power, units in enumerate([("B", "B"), ("KB", "KiB"), ("MB", "MiB"), ("GB", "GiB")])
    for base, unit in zip((1000, 1024), units, strict=True)
}
_UNITS: Mapping[str, Mapping[str, Decimal]] = {
    "latency": {"s": Decimal(1), "ms": Decimal("1e-3"), "us": Decimal("1e-6")},
    "peak-memory": _BYTES,
    "weights": _BYTES,
    "macs": {"": Decimal(1), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9)},
    "quality": {"": Decimal(1), "%": Decimal("0.01")},
}
_EXAMPLES = {
    "latency": "8ms, 120us or -30%",
    "peak-memory": "512KiB, 1.5MB or -30%",
    "weights": "512KiB, 1.5MB or -30%",
    "macs": "2.5M, 300k or -30%",
    "quality": "0.01 or 1%",
}
_TEXT = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)\s*([A-Za-z%]*)")
_SLACK = 1e-9
"""Rounding that a figure may exceed its ceiling by, as a share of it."""
_DIGITS = 3
"""Significant digits of a limit that is suggested to people."""

Array = NDArray[np.float64]


def column(metric: str) -> int:
    """Which of `FIGURES` a metric is.

    Raises:
        UsageError: there is no such metric.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    return METRICS.index(metric)


@dataclass(frozen=True)
class Limit:
    """The most a candidate may have of one metric; `str()` gives text that parses back.

    Attributes:
        metric: one of `METRICS`.
        value: seconds, bytes, a count, or damage; for a relative limit the allowed change as a
            share of the original: -0.3 is 30 % less.
        relative: which of the two.
    """

    metric: str
    value: float
    relative: bool = False

    @classmethod
    def parse(cls, metric: str, text: str) -> Limit:
        """From ``8ms``, ``512KiB``, ``2.5M``, or ``-30%`` for a change of the original.

        Raises:
            UsageError: the metric or the text is not understood, or nothing can meet it.
        """
        column(metric)
        found = _TEXT.fullmatch(text.strip())
        units = _UNITS[metric]
        sign, number, unit = found.groups() if found else ("", "", "")
        relative = bool(sign) and unit == "%" and metric != "quality"
        if not found or (sign and not relative) or not (relative or unit in units):
            raise UsageError(
                f"Cannot read the limit {text!r} on {metric}: write {_EXAMPLES[metric]}."
            )
        if relative:
            change = float(Decimal(sign + number) / 100)
            if change <= -1:
                raise UsageError(f"The limit {text} on {metric} leaves nothing of the model.")
            return cls(metric, change, True)
        value = float(Decimal(number) * units[unit])
        if value == 0 and metric != "quality":
            raise UsageError(f"The limit {text} on {metric} leaves nothing of the model.")
        return cls(metric, value)

    def absolute(self, original: Sequence[float], clock_hz: float) -> float:
        """The most allowed in the unit of the metric's column of `FIGURES`.

        Args:
            original: row of figures of the unchanged model.
            clock_hz: of the target; cycles per second.
        """
        if self.relative:
            return original[column(self.metric)] * (1 + self.value)
        return self.value * (clock_hz if self.metric == "latency" else 1.0)

    def admitting(self, figure: float, original: Sequence[float], clock_hz: float) -> Limit:
        """The tightest short limit of the same kind that a figure of that column meets.

        Args:
            figure: in the unit of the column, finite.
            original: as in `absolute`.
            clock_hz: as in `absolute`.
        """
        up = Context(prec=_DIGITS, rounding=ROUND_CEILING)
        if self.relative:
            share = figure / original[column(self.metric)] - 1
            value = float(Decimal(share).quantize(Decimal("0.001"), ROUND_CEILING))
        else:
            value = figure / (clock_hz if self.metric == "latency" else 1.0)
            value = float(up.create_decimal_from_float(value))
        return Limit(self.metric, value, self.relative)

    def __str__(self) -> str:
        value = Decimal(repr(self.value))
        if self.relative:
            return f"{'' if value < 0 else '+'}{_plain(value * 100)}%"
        texts = [_plain(value / scale) + unit for unit, scale in _UNITS[self.metric].items()]
        exact = [t for t in texts if Limit.parse(self.metric, t).value == self.value]
        return min(exact, key=len)


def _plain(value: Decimal) -> str:
    return format(value.normalize(), "f")


@dataclass(frozen=True)
class Goal:
    """What is to be minimised within which limits, for one model on one target.

    Attributes:
        minimise: metrics; several ask for a front.
        limits: in the user's words.
        original: row of `FIGURES` of the unchanged model.
        clock_hz: of the target.
    """

    minimise: tuple[str, ...]
    limits: tuple[Limit, ...]
    original: tuple[float, ...]
    clock_hz: float

    def __post_init__(self) -> None:
        """Check the metrics.

        Raises:
            UsageError: a metric does not exist, or there is none to minimise.
        """
        if not self.minimise:
            raise UsageError(f"Say what to minimise: one or more of {', '.join(METRICS)}.")
        if len(self.original) != len(FIGURES):
            raise ValueError(f"a row of figures has {len(FIGURES)} columns: {self.original}")
        for metric in (*self.minimise, *(limit.metric for limit in self.limits)):
            column(metric)

    @property
    def columns(self) -> tuple[int, ...]:
        """Columns of the metrics to minimise."""
        return tuple(column(metric) for metric in self.minimise)

    @property
    def ceilings(self) -> dict[int, float]:
        """The most allowed per limited column; of several limits on one the tightest."""
        found: dict[int, float] = {}
        for limit in self.limits:
            at, most = column(limit.metric), limit.absolute(self.original, self.clock_hz)
            found[at] = min(most, found.get(at, math.inf))
        return found

    def violations(self, figures: Array) -> Array:
        """How far candidates miss each limit, as a share of it: (n, limits), 0 where it is met.

        Args:
            figures: (n, 5).
        """
        missed = np.zeros((len(figures), len(self.limits)))
        for i, limit in enumerate(self.limits):
            at = column(limit.metric)
            most = limit.absolute(self.original, self.clock_hz)
            over = np.nan_to_num(figures[:, at], nan=np.inf, posinf=np.inf) - most
            scale = most or self.original[at] or 1.0
            missed[:, i] = np.where(over <= _SLACK * scale, 0.0, over / scale)
        return missed

    def possible(self, figures: Array) -> NDArray[np.bool_]:
        """Which candidates can be made, and all that is asked about them is known: (n,).

        A figure that nobody asks about may be unknown (NaN), e.g. a target's stored weights.
        """
        asked = figures[:, [*self.columns, *self.ceilings]]
        lost = np.isnan(asked).sum(axis=1) + np.isinf(figures).sum(axis=1)
        can: NDArray[np.bool_] = np.equal(lost, 0)
        return can

    def feasible(self, figures: Array) -> NDArray[np.bool_]:
        """Which candidates are possible and meet every limit: (n,)."""
        met: NDArray[np.bool_] = np.equal(self.violations(figures).max(axis=1, initial=0.0), 0)
        return met & self.possible(figures)

    def order(self, figures: Array) -> NDArray[np.intp]:
        """Indices of candidates from best to worst: (n,).

        Feasible ones come first, by what is minimised, first metric first, ties broken by the
        other columns; then the others by their worst miss.
        """
        missed = self.violations(figures).max(axis=1, initial=0.0)
        missed = np.where(self.possible(figures), missed, np.inf)
        rest = [c for c in range(len(FIGURES)) if c not in self.columns]
        keys = [figures[:, c] for c in (*self.columns, *rest)]
        return np.lexsort([*reversed(keys), missed])

    def relaxed(self, row: Sequence[float]) -> tuple[Limit, ...]:
        """The limits that a candidate misses, each loosened just enough to admit it.

        Args:
            row: five finite figures.
        """
        missed = self.violations(np.array([row], dtype=float))[0]
        return tuple(
            limit.admitting(row[column(limit.metric)], self.original, self.clock_hz)
            for limit, miss in zip(self.limits, missed, strict=True)
            if miss > 0
        )
