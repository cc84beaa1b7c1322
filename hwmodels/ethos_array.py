"""An Ethos-U's array of multipliers, the operators it runs and the blocks it works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

Size = tuple[int, int, int]
"""(height, width, channels)"""

SUBKERNEL = 8
"""Rows and columns of a window that are done in one pass."""
BRICK = 16
"""Channels that are stored together."""


class Work(NamedTuple):
    """One operator as the NPU runs it.

    Attributes:
        kind: ``conv``, ``depthwise``, ``product`` (fully connected), ``pool``, ``copy``, ``resize``
            or ``elementwise``.
        ifm, ofm: sizes of input and output.
        window, strides, dilations: (height, width).
        stripe: output rows made at once inside a cascade, else 0.
        enlarges: every value is read as two by two (U55, U65).
        sparse: of four weights next to each other, two are zero (U85).
        broadcast: an elementwise operator's other input is smaller.
    """

    kind: str
    ifm: Size
    ofm: Size
    window: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    stripe: int = 0
    enlarges: bool = False
    sparse: bool = False
    broadcast: bool = False


class Block(NamedTuple):
    """What is worked on at once.

    Attributes:
        ifm, ofm: pieces of input and output.
        unit: the piece of the output that the multipliers make together.
        part_kernel: multipliers share out window elements, not input channels.
    """

    ifm: Size
    ofm: Size
    unit: Size
    part_kernel: bool


@dataclass(frozen=True)
class Array:
    """Sizes inside one NPU.

    Attributes:
        family: ``ethos-u55`` (U65 alike) or ``ethos-u85``.
        cores: that share the work.
        units: pieces of the output that the multipliers can make together, by preference.
        banks: of the shared memory (U55, U65); `input_granule`, `sum_granule`: banks are given to
            inputs and sums in steps of these.
        input_bytes, sum_bytes, output_bytes, chain_bytes: memories of a U85.
    """

    family: str
    cores: int
    units: tuple[Size, ...]
    banks: int = 0
    input_granule: int = 0
    sum_granule: int = 0
    input_bytes: int = 0
    sum_bytes: int = 0
    output_bytes: int = 0
    chain_bytes: int = 0

    @property
    def largest(self) -> Size:
        """The largest block."""
        return (128, 128, 1024) if self.family == "ethos-u85" else (32, 64, 128)


def window_extent(work: Work) -> tuple[int, int]:
    """Dilated window."""
    height, width = ((w - 1) * d + 1 for w, d in zip(work.window, work.dilations, strict=True))
    return height, width


def one_stripe(work: Work) -> Work:
    """What is done at once inside a cascade."""
    if not work.stripe or work.stripe >= work.ofm[0]:
        return work
    rows = (work.stripe - 1) * work.strides[0] + window_extent(work)[0]
    ifm = (min(work.ifm[0], rows), *work.ifm[1:])
    return work._replace(ifm=ifm, ofm=(work.stripe, *work.ofm[1:]), stripe=0)


def storage_granule(depth: int, unit: Size) -> Size:
    """Steps in which a U85 stores a piece of input of some depth."""
    rows, columns = (2, 2) if unit[0] == 2 else (1, 4)
    large = unit[0] * unit[1] * unit[2] >= 256
    if depth <= 16:
        return (4, 4, 16) if large else (rows, columns, 16)
    if depth <= 32:
        return (2, 4, 32) if large else (1, 2, 32)
    if large:
        return (1, 4, 64) if unit[0] == 1 else (2, 2, 64)
    return 1, 1, 64


def input_size(size: int, stride: int, extent: int, step: int) -> int:
    return up((size - 1) * stride + min(extent, SUBKERNEL), step)


def up(value: int, step: int) -> int:
    """Rounded up to a multiple."""
    return -(-value // step) * step
