"""Kernels as columns: what is stored as training data and what features are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.hwmodels.placement import PLACEMENT, Placement, unplaced
from onnxnas.kernels import Kernel

NUMBERS = (
    "batch", "in_channels", "in_height", "in_width", "out_channels", "out_height", "out_width",
    "window_height", "window_width", "stride_height", "stride_width", "dilation_height",
    "dilation_width", "pad_top", "pad_left", "pad_bottom", "pad_right", "groups", "offset_step",
    "macs", "in_bytes", "operand_bytes", "operands", "out_bytes", "weights", "entropy_bits",
    "rice_bits", "shared_bytes", "live_bytes", "live_blocks", "reads_input", "writes_output",
    "readers", "producer", "oldest_producer", "consumer", "last_consumer", *PLACEMENT,
)  # fmt: skip
"""Numeric columns; see `onnxnas.kernels.Kernel` and `placement` for what they mean."""

_COLUMN = {name: i for i, name in enumerate(NUMBERS)}
INDICES = (
    "producer", "oldest_producer", "consumer", "last_consumer", "previous", "following",
)  # fmt: skip
"""Columns that hold row numbers, -1 for none."""

_INDICES = [_COLUMN[n] for n in INDICES]


@dataclass(frozen=True)
class KernelTable:
    """Kernels of one or several networks, one row each, in execution order.

    Attributes:
        ops: operator of each row.
        activations: fused activation of each row.
        numbers: [rows, len(NUMBERS)]; `INDICES` are row numbers of this table.
        starts: first row of each network.
    """

    ops: NDArray[np.str_]
    activations: NDArray[np.str_]
    numbers: NDArray[np.float64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ops)

    def __getitem__(self, column: str) -> NDArray[np.float64]:
        values: NDArray[np.float64] = self.numbers[:, _COLUMN[column]]
        return values

    @property
    def network(self) -> NDArray[np.int64]:
        """Number of the network each row belongs to."""
        sizes = np.diff([*self.starts, len(self)])
        return np.repeat(np.arange(len(self.starts)), sizes)

    @classmethod
    def of(
        cls,
        networks: Sequence[Sequence[Kernel]],
        placements: Sequence[Placement] | None = None,
    ) -> KernelTable:
        """The table of several networks' kernels.

        Args:
            networks: kernels of each.
            placements: of each; without, all are `unplaced`.
        """
        if placements is None:
            placements = [unplaced(kernels) for kernels in networks]
        kernels = [k for network in networks for k in network]
        starts = np.cumsum([0, *(len(n) for n in networks)])[:-1].astype(np.int64)
        rows = [_row(k) for k in kernels]
        own = np.array(rows, np.float64).reshape(len(rows), len(NUMBERS) - len(PLACEMENT))
        numbers = np.hstack([own, np.vstack([*placements, np.zeros((0, len(PLACEMENT)))])])
        table = cls(
            np.array([k.op for k in kernels], np.str_),
            np.array([k.activation for k in kernels], np.str_),
            numbers,
            starts,
        )
        _shift(numbers, starts[table.network] if len(rows) else starts[:0])
        return table

    @classmethod
    def join(cls, tables: Iterable[KernelTable]) -> KernelTable:
        """Several tables as one."""
        parts = list(tables)
        offsets = np.cumsum([0, *(len(t) for t in parts)])[:-1]
        numbers = np.concatenate([t.numbers for t in parts])
        _shift(numbers, np.repeat(offsets, [len(t) for t in parts]))
        return cls(
            np.concatenate([t.ops for t in parts]),
            np.concatenate([t.activations for t in parts]),
            numbers,
            np.concatenate([t.starts + o for t, o in zip(parts, offsets, strict=True)]),
        )


def _shift(numbers: NDArray[np.float64], by: NDArray[Any]) -> None:
    for column in _INDICES:
        known = numbers[:, column] >= 0
        numbers[known, column] += by[known]


def _row(k: Kernel) -> tuple[float, ...]:
    return (
        k.batch, k.in_channels, k.in_height, k.in_width, k.out_channels, k.out_height, k.out_width,
        *k.window, *k.strides, *k.dilations, *k.pads, k.groups, k.offset_step, k.macs,
        k.in_bytes, k.operand_bytes, k.operands, k.out_bytes, k.weights,
        k.entropy_bits, k.rice_bits, k.shared_bytes, k.live_bytes, k.live_blocks,
        k.reads_input, k.writes_output,
        k.readers, k.producer, k.oldest_producer, k.consumer, k.last_consumer,
    )  # fmt: skip
