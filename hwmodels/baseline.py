"""A first guess of every kernel's cost: a roofline fitted to the data.

A kernel can be no faster than its arithmetic, its traffic and its weights allow. For each operator
and each of `TERMS`, the price of one unit is read off the training data as a low percentile of
cycles per unit; the guess is the largest of those bounds that explain the operator best. It is
tens of percent off where several bounds compete and exact where one rules, and has the right scale
from the smallest kernel to the largest, so that what is left for the regression (true cost over
this) is a small number that hardly depends on size.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.hwmodels.kernel_table import KernelTable

TERMS = ("work", "output", "input", "weights", "fixed", "far", "far_rows", "modelled")
"""Multiply-accumulates as an array does them (`_work`); bytes written and bytes read with
channels rounded up to 16; bytes of encoded weights; one; bytes of DRAM, and those of them that
lie row by row; cycles as the target's compiler would estimate them (`placement`)."""

_ENOUGH = 8
"""Rows an operator needs for prices of its own."""
_ANY = "*"
_PERCENTILE = 2.0
_LEAST = 1e-3
"""Cycles: the smallest bound, for logarithms."""
_PER_TERM = 0.005
"""Spread that a further term must save."""
_DEEP = ("Conv", "Gemm", "ConvTranspose", "GroupedConv", "MatMul")


@dataclass(frozen=True)
class Baseline:
    """Prices per operator.

    Attributes:
        prices: operator -> cycles per unit of each of `TERMS`; ``*`` for all others.
        ruling: operator -> the terms whose largest bound is the guess.
    """

    prices: Mapping[str, tuple[float, ...]]
    ruling: Mapping[str, tuple[str, ...]]

    @classmethod
    def fit(cls, table: KernelTable, cycles: NDArray[Any]) -> Baseline:
        """Prices from kernels that cost anything; NaN and zero are left out."""
        units = terms(table)
        prices, ruling = {}, {}
        costs = np.nan_to_num(cycles) > 0
        for op in [*np.unique(table.ops).tolist(), _ANY]:
            rows = costs & ((table.ops == op) | (op == _ANY))
            if rows.sum() >= _ENOUGH or op == _ANY:
                prices[str(op)], ruling[str(op)] = _fitted(units[rows], cycles[rows])
        return cls(prices, ruling)

    def bounds(self, table: KernelTable) -> NDArray[np.float64]:
        """Cycles per row and term, [rows, len(TERMS)]."""
        names, codes = np.unique(table.ops, return_inverse=True)
        prices = np.array([self.prices.get(str(n), self.prices[_ANY]) for n in names])
        result: NDArray[np.float64] = terms(table) * prices.reshape(-1, len(TERMS))[codes]
        return np.maximum(result, _LEAST)

    def guess(self, table: KernelTable, bounds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cycles per row: the largest of the ruling bounds."""
        names, codes = np.unique(table.ops, return_inverse=True)
        rules = [self.ruling.get(str(n), self.ruling[_ANY]) for n in names]
        masks = np.array([[t in rule for t in TERMS] for rule in rules], np.float64)
        mask = masks.reshape(-1, len(TERMS))[codes]
        # Kernels without an estimate are guessed from what they write.
        mask[bounds[:, TERMS.index("modelled")] <= _LEAST, TERMS.index("output")] = 1.0
        result: NDArray[np.float64] = np.maximum((bounds * mask).max(axis=1), _LEAST)
        return result

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            op: {
                "prices": [float(f"{p:.6g}") for p in self.prices[op]],
                "ruling": list(self.ruling[op]),
            }
            for op in self.prices
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Baseline:
        """The reverse of `to_dict`; of fewer `TERMS`, too."""
        return cls(
            {
                op: (*v["prices"], *[0.0] * (len(TERMS) - len(v["prices"])))
                for op, v in fields.items()
            },
            {op: tuple(v["ruling"]) for op, v in fields.items()},
        )


def _fitted(
    units: NDArray[np.float64], cycles: NDArray[Any]
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Prices, and the terms whose largest bound leaves the least spread of the logarithm."""
    lowest = np.array([_price(cycles, units[:, i]) for i in range(len(TERMS))])
    bounds = np.maximum(units * lowest, _LEAST)
    best, typical = np.inf, 1.0
    chosen: tuple[int, ...] = (0,)
    for count in range(1, len(TERMS) + 1):
        for subset in itertools.combinations(range(len(TERMS)), count):
            if not all(lowest[i] > 0 for i in subset):
                continue
            ratio = np.log(cycles / bounds[:, subset].max(axis=1))
            middle = float(np.median(ratio))
            spread = float(np.abs(ratio - middle).mean()) + _PER_TERM * count
            if spread < best:
                best, chosen, typical = spread, subset, float(np.exp(middle))
    # Centred, so that an operator of few rows falls back on its typical kernel.
    return tuple(float(p) * typical for p in lowest), tuple(TERMS[i] for i in chosen)


def terms(table: KernelTable) -> NDArray[np.float64]:
    """Amounts of work and traffic, [rows, len(TERMS)]."""
    cin, cout = table["in_channels"], table["out_channels"]
    return np.stack(
        [
            _work(table),
            table["out_bytes"] * _up(cout, 16) / cout,
            table["in_bytes"] * _up(cin, 16) / cin + table["operand_bytes"],
            table["stored_weights"],
            np.ones(len(table)),
            table["far_in"] + table["far_out"],
            table["far_rows"],
            table["modelled"],
        ],
        axis=1,
    )


def _work(table: KernelTable) -> NDArray[np.float64]:
    """Multiply-accumulates, idle multipliers included, of an array of fixed shape.

    Output channels go in steps of 8. Of the input, a step takes 32 channels of one window
    element or 8 channels of 4 elements, whichever wastes less; depthwise 4 elements.
    """
    area = table["window_height"] * table["window_width"]
    groups = table["groups"]
    per_in, per_out = table["in_channels"] / groups, table["out_channels"] / groups
    points = table["batch"] * table["out_height"] * table["out_width"]
    deep = np.minimum(area * _up(per_in, 32), _up(area, 4) * _up(per_in, 8))
    dense = points * groups * _up(per_out, 8) * deep
    each = points * _up(table["out_channels"], 8) * _up(area, 4)
    result: NDArray[np.float64] = np.where(np.isin(table.ops, _DEEP), dense, each)
    return result


def _price(cycles: NDArray[Any], units: NDArray[Any]) -> float:
    used = units > 0
    return float(np.percentile(cycles[used] / units[used], _PERCENTILE)) if used.any() else 0.0


def _up(values: NDArray[Any], step: int) -> NDArray[Any]:
    """Rounded up to a multiple."""
    result: NDArray[np.float64] = np.ceil(values / step) * step
    return result
