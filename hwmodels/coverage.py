"""What a cost model was trained on, and what lies outside of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxnas.hwmodels.kernel_table import KernelTable

COLUMNS = (
    "in_channels", "in_height", "in_width", "out_channels", "out_height", "out_width",
    "window_height", "window_width", "stride_height", "stride_width", "dilation_height",
    "groups", "macs", "weights", "entropy_bits", "live_bytes",
)  # fmt: skip
"""Columns whose range is watched."""


@dataclass(frozen=True)
class Coverage:
    """Ranges of the training data, per operator.

    Attributes:
        ranges: operator -> (lowest, highest) of each of `COLUMNS`.
        activations: operator -> fused activations seen.
        counts: operator -> training rows.
    """

    ranges: Mapping[str, tuple[tuple[float, float], ...]]
    activations: Mapping[str, frozenset[str]]
    counts: Mapping[str, int]

    @classmethod
    def of(cls, table: KernelTable) -> Coverage:
        """Of training data."""
        ranges, activations, counts = {}, {}, {}
        values = np.stack([table[c] for c in COLUMNS], axis=1)
        for op in np.unique(table.ops).tolist():
            rows = table.ops == op
            low, high = values[rows].min(axis=0), values[rows].max(axis=0)
            ranges[op] = tuple((float(a), float(b)) for a, b in zip(low, high, strict=True))
            activations[op] = frozenset(table.activations[rows].tolist())
            counts[op] = int(rows.sum())
        return cls(ranges, activations, counts)

    def unknown(self, op: str) -> bool:
        """Whether an operator was never seen: it has no prediction at all."""
        return op not in self.ranges

    def gaps(self, table: KernelTable) -> list[tuple[str, ...]]:
        """For each row, what lies outside, in words; empty for covered rows."""
        found: list[list[str]] = [[] for _ in range(len(table))]
        values = np.stack([table[c] for c in COLUMNS], axis=1)
        for op in np.unique(table.ops).tolist():
            rows = np.flatnonzero(table.ops == op)
            if op not in self.ranges:
                for row in rows:
                    found[row].append(f"operator {op}")
                continue
            low, high = np.array(self.ranges[op]).T
            for row, column in zip(*np.nonzero(values[rows] < low), strict=True):
                found[rows[row]].append(
                    f"{COLUMNS[column]} {values[rows[row], column]:g} < {low[column]:g}"
                )
            for row, column in zip(*np.nonzero(values[rows] > high), strict=True):
                found[rows[row]].append(
                    f"{COLUMNS[column]} {values[rows[row], column]:g} > {high[column]:g}"
                )
            for row in rows:
                if (activation := str(table.activations[row])) not in self.activations[op]:
                    found[row].append(f"activation {activation}")
        return [tuple(reasons) for reasons in found]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "columns": list(COLUMNS),
            "operators": {
                op: {
                    "rows": self.counts[op],
                    "activations": sorted(self.activations[op]),
                    "ranges": [list(r) for r in self.ranges[op]],
                }
                for op in sorted(self.ranges)
            },
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Coverage:
        """The reverse of `to_dict`."""
        operators: Mapping[str, Any] = fields["operators"]
        return cls(
            {op: tuple((r[0], r[1]) for r in v["ranges"]) for op, v in operators.items()},
            {op: frozenset(v["activations"]) for op, v in operators.items()},
            {op: int(v["rows"]) for op, v in operators.items()},
        )
