"""How well predicted totals agree with true ones: the words every table uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLDS: Mapping[str, float] = {"mape": 0.05, "kendall": 0.90, "within_10": 0.95}
"""Of a card that names none. Errors are upper limits, the others lower ones."""


@dataclass(frozen=True)
class Accuracy:
    """Agreement over a set of networks; shares, not percent.

    Attributes:
        count: networks.
        mape: mean of |predicted - true| / true.
        rmspe: root mean square of the same.
        worst: largest of the same.
        within_5, within_10: share of networks off by at most 5 and 10 %.
        kendall: rank correlation tau-b, NaN below two networks.
        spearman: rank correlation, NaN below two networks.
    """

    count: int
    mape: float
    rmspe: float
    worst: float
    within_5: float
    within_10: float
    kendall: float
    spearman: float

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; NaN is None."""
        values = {
            name: None if isinstance(v, float) and np.isnan(v) else round(v, 5)
            for name, v in vars(self).items()
        }
        return {**values, "count": self.count}


def accuracy(true: NDArray[np.float64], predicted: NDArray[np.float64]) -> Accuracy:
    """Of totals, one per network; networks that cost nothing are left out."""
    used = true > 0
    true, predicted = true[used], predicted[used]
    if not len(true):
        return Accuracy(0, *[float("nan")] * 7)
    errors = np.abs(predicted - true) / true
    return Accuracy(
        count=len(true),
        mape=float(errors.mean()),
        rmspe=float(np.sqrt((errors**2).mean())),
        worst=float(errors.max()),
        within_5=float((errors <= 0.05).mean()),
        within_10=float((errors <= 0.10).mean()),
        kendall=_kendall(true, predicted),
        spearman=_pearson(_ranks(true), _ranks(predicted)),
    )


def _kendall(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Tau-b (M. G. Kendall, 1945), quadratic in the number of networks."""
    upper = np.triu_indices(len(a), 1)
    x, y = np.sign(a[:, None] - a)[upper], np.sign(b[:, None] - b)[upper]
    size = float(np.sqrt((x != 0).sum() * (y != 0).sum()))
    return float((x * y).sum() / size) if size else float("nan")


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks, ties averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    averages: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return averages


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if len(a) < 2 or not a.std() or not b.std():
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
