"""The candidates nothing beats: Pareto fronts, their named points, and the space they cover."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NAMED = 5
"""Candidates of a front that get a name."""
LARGEST = 1000
"""Points an `Archive` holds at most, so that its cost does not grow with what was seen."""


def pareto(figures: Array, columns: Sequence[int]) -> NDArray[np.bool_]:
    """Which rows no other row beats in all columns: (n,).

    Of rows equal in these columns the first one counts; impossible ones (not finite) never do.

    Args:
        figures: (n, columns).
        columns: to be small.
    """
    rows = figures[:, list(columns)]
    left = np.lexsort(rows.T[::-1])
    left = left[np.isfinite(rows[left]).all(axis=1)]
    mask = np.zeros(len(figures), dtype=bool)
    while len(left):
        best = left[0]  # nothing sorted behind it can beat it
        mask[best] = True
        left = left[(rows[left] < rows[best]).any(axis=1)]
    return mask


def named(figures: Array, columns: Sequence[int], chosen: int | None = None) -> dict[str, int]:
    """Up to five points of a front, spread evenly over its first column: name -> row.

    A is the mildest (largest in the first column), the last one goes furthest. Rows that are not
    on the front get no name, but for the chosen one, which always has one.

    Args:
        figures: (n, columns); leave the original out, it needs no name.
        columns: that span the front.
        chosen: a row.
    """
    on_front = pareto(figures, columns)
    if chosen is not None:
        on_front[chosen] = True
    front = np.flatnonzero(on_front)
    values = figures[front, columns[0]]
    order = np.lexsort((front, -values))
    front, values = front[order], values[order]
    if len(front) > NAMED:
        free = np.ones(len(front), dtype=bool)
        free[[0, -1]] = False
        aims = np.linspace(values[0], values[-1], NAMED)[1:-1]
        inside = np.flatnonzero(free & (front == chosen))
        if len(inside):  # it takes the place of the point that would be nearest to it
            free[inside] = False
            aims = np.delete(aims, np.argmin(np.abs(aims - values[inside])))
        for aim in aims:
            gaps = np.where(free, np.abs(values - aim), np.inf)
            free[np.argmin(gaps)] = False
        front = front[~free]
    return {name: int(row) for name, row in zip(string.ascii_uppercase, front, strict=False)}


def hypervolume(points: Array, reference: Sequence[float]) -> float:
    """Volume that points dominate below a reference point, exactly; larger is better.

    Slices along the last axis (Knowles 2002, "hypervolume by slicing objectives"): exponential in
    the axes, meant for two to four of them.

    Args:
        points: (n, k), to be small; those beyond the reference count nothing.
        reference: (k,) worst values that still count.
    """
    points = points[(points < np.asarray(reference)).all(axis=1)]
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(reference[0] - points.min())
    points = points[np.argsort(points[:, -1], kind="stable")]
    ends = [*points[1:, -1], reference[-1]]
    slices = (
        (end - point[-1]) * hypervolume(points[: i + 1, :-1], reference[:-1])
        for i, (point, end) in enumerate(zip(points, ends, strict=True))
        if end > point[-1]
    )
    return float(sum(slices))


class Archive:
    """The front of all candidates ever added; holds no more than `LARGEST`.

    Attributes:
        genes: (n, sites) of the front.
        figures: (n, 5) of the front.
    """

    def __init__(self, sites: int, columns: Sequence[int]) -> None:
        """Start empty.

        Args:
            sites: genes of a candidate.
            columns: of the figures, to be small.
        """
        self._columns = tuple(columns)
        self.genes: NDArray[np.intp] = np.zeros((0, sites), dtype=np.intp)
        self.figures: Array = np.zeros((0, 5))

    def add(self, genes: NDArray[np.intp], figures: Array) -> None:
        """Look at more candidates: (n, sites) and (n, 5)."""
        genes = np.concatenate([self.genes, genes])
        figures = np.concatenate([self.figures, figures])
        kept = np.flatnonzero(pareto(figures, self._columns))
        kept = kept[np.lexsort(figures[kept][:, self._columns[::-1]].T)]
        if len(kept) > LARGEST:
            kept = kept[np.linspace(0, len(kept) - 1, LARGEST).round().astype(np.intp)]
        self.genes, self.figures = genes[kept], figures[kept]
