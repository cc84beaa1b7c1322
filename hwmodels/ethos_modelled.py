"""Cycles of kernels as an Ethos-U compiler would estimate them, from the columns of a table.

Kernels are told apart into the operators that the NPU runs (`ethos_blocks`), with the memories
that `placement` found for them, and costed (`ethos_cycles`). Operators that run in ways not
followed here have no estimate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxnas.cost import Target
from onnxnas.hwmodels.ethos_array import BRICK, Size, Work, up
from onnxnas.hwmodels.ethos_cycles import Chip, Where
from onnxnas.hwmodels.kernel_table import KernelTable

_MOST_REMEMBERED = 200_000
"""Kernels."""
_LONGEST_CHAIN = 3
_MOST_JOINED = 2
"""Inputs of a concatenation, besides the first, that are told apart."""
_MOST_PIXELS, _PIECE = 65_536, 200
"""Of an arg-max that is taken at once; cycles that each piece of a larger one takes longer."""
_LARGEST_FACTOR = 8
"""Of an enlargement that the compiler takes as one operator."""
_WORTH, _MOST_STAGED = 1.15, 65_536
"""Weights that come in faster by this factor than they are needed are brought to the SRAM, even
where the schedule saw less reason to; bytes of such weights at most."""
_COPIES = (None, *itertools.product((False, True), repeat=2))
"""An input may not be copied, or be copied from (DRAM, row by row)."""
_PLAIN = frozenset({"none"})
_CLAMPS = frozenset({"Relu", "Relu6", "Clip"})
_ELEMENTWISE = {
    "Add": "add", "Sub": "add", "Mul": "multiply", "Max": "plain", "Min": "plain",
    "AddBroadcast": "add", "SubBroadcast": "add", "MulBroadcast": "multiply",
    "AddConstant": "add", "SubConstant": "add", "MulConstant": "multiply",
    "DivConstant": "multiply",
}  # fmt: skip

_COLUMNS = (
    "in_channels", "in_height", "in_width", "out_channels", "out_height", "out_width",
    "window_height", "window_width", "stride_height", "stride_width", "dilation_height",
    "dilation_width", "groups", "in_bytes", "operand_bytes", "operands", "steps", "rows_in",
    "rows_out", "far_in", "far_out", "rolling_in", "rolling_out", "weights_near", "stored_weights",
)  # fmt: skip
Row = NamedTuple("Row", [(name, float) for name in _COLUMNS])  # type: ignore[misc]


class _Around(NamedTuple):
    """What runs next to a kernel.

    Attributes:
        chained: elementwise operators that run inside it.
        joined: channels of the concatenation that it writes a part of; 0 for none.
    """

    chained: tuple[str, ...] = ()
    joined: int = 0


class Modelled:
    """Estimates for one target; remembers what it has worked out.

    Args:
        target: its card.
    """

    def __init__(self, target: Target) -> None:
        self._chip = Chip.of(target)
        self._known: dict[tuple[str, str, Row, _Around], float] = {}

    def cycles(self, table: KernelTable) -> NDArray[np.float64]:
        """Cycles per row; 0 where there is no estimate.

        Args:
            table: kernels with their placement on the target.
        """
        chip = self._chip
        result = np.zeros(len(table))
        if chip is None:
            return result
        if len(self._known) > _MOST_REMEMBERED:
            self._known.clear()
        activations = table.activations.tolist()
        values = np.stack([table[c] for c in _COLUMNS], axis=1).tolist()
        for i, (op, around) in enumerate(_arounds(table, chip)):
            if op not in _COSTS:
                continue
            key = (op, activations[i], Row(*values[i]), around)
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = _COSTS[op](chip, *key)
            result[i] = known
        return result


def _arounds(table: KernelTable, chip: Chip) -> Iterator[tuple[str, _Around]]:
    """Operator of each kernel, and what runs next to it."""
    ops = table.ops.tolist()
    steps, channels = table["steps"], table["out_channels"]
    consumers = table["consumer"].astype(np.int64).tolist()
    alone = table["readers"] == 1
    for i, op in enumerate(ops):
        chained: list[str] = []
        j = consumers[i]
        while chip.new and j >= 0 and steps[j] == 0 and ops[j] in _ELEMENTWISE:
            if len(chained) == _LONGEST_CHAIN:
                break
            chained.append(ops[j])
            j = consumers[j]
        joined = j >= 0 and ops[j] == "Concat" and alone[i] and not chained
        yield op, _Around(tuple(chained), int(channels[j]) if joined else 0)


def _sizes(row: Row) -> tuple[Size, Size]:
    return (
        (int(row.in_height), int(row.in_width), int(row.in_channels)),
        (int(row.out_height), int(row.out_width), int(row.out_channels)),
    )


def _stripe(row: Row, ifm: Size, ofm: Size, extent: int, following: tuple[int, int]) -> int:
    """Rows made at once, from the rolling buffers beside a kernel; 0 for all."""
    stride = int(row.stride_height)
    if row.rolling_out:
        window, step = following
        rows = int(row.rolling_out) // (ofm[1] * up(ofm[2], BRICK))
        return max(1, rows // 2 - window + step)
    if row.rolling_in:
        rows = int(row.rolling_in) // (ifm[1] * up(ifm[2], BRICK))
        return max(1, (rows // 2 - extent) // stride + 1)
    return 0


def _where(row: Row, ifm: Size, ofm: Size, speeds: tuple[str, ...], around: _Around) -> Where:
    """Where the data of a kernel lies; what it reads besides its first input is told by size."""
    in_rows = row.rows_in > 0 and row.rows_in >= 0.5 * row.in_bytes
    first = float(ifm[0] * ifm[1] * (ifm[2] if in_rows else up(ifm[2], BRICK)))
    more = float(len(around.chained)) * ofm[0] * ofm[1] * up(ofm[2], BRICK)
    if row.operands > 1:
        more += row.operand_bytes * (1 if in_rows else up(ifm[2], BRICK) / ifm[2])
    options = {0.0: (False, False), first: (True, False)}
    if more:
        options |= {more: (False, True), more + first: (True, True)}
    in_far, more_far = options[min(options, key=lambda size: abs(size - row.far_in))]
    return Where(
        in_far=in_far,
        out_far=row.far_out > 0,
        in_rows=in_rows,
        out_rows=row.rows_out > 0,
        weights=row.stored_weights,
        staged=row.weights_near > 0,
        more_near=0.0 if more_far else more,
        more_far=more if more_far else 0.0,
        speeds=speeds,
    )


def _speed(activation: str, plain: str = "plain") -> str:
    if activation in _PLAIN:
        return plain
    return f"{plain}+clamp" if activation in _CLAMPS else f"{plain}+table"


def _after(around: _Around) -> tuple[str, ...]:
    return tuple(_ELEMENTWISE[op] for op in around.chained)


def _weighted(chip: Chip, op: str, activation: str, row: Row, around: _Around) -> float:
    """Convolutions: a grouped one as a convolution per group."""
    ifm, ofm = _sizes(row)
    window = (int(row.window_height), int(row.window_width))
    strides = (int(row.stride_height), int(row.stride_width))
    dilations = (int(row.dilation_height), int(row.dilation_width))
    groups = int(row.groups) if op == "GroupedConv" else 1
    kind = "conv"
    if op == "DepthwiseConv" and ifm[2] == ofm[2]:
        kind = "depthwise"
    elif op == "Gemm":
        kind, window, ifm, ofm = "product", (1, 1), (1, 1, ifm[2] * ifm[0] * ifm[1]), (1, 1, ofm[2])
    extent = (window[0] - 1) * dilations[0] + 1
    silu = activation == "Silu"
    speed = _speed("none" if silu or groups > 1 else activation)
    where = _where(row, ifm, ofm, (speed, *_after(around)), around)
    if groups > 1:
        ifm, ofm = (*ifm[:2], ifm[2] // groups), (*ofm[:2], ofm[2] // groups)
        where = where._replace(weights=where.weights / groups)
    elif chip.new and around.joined and activation not in _PLAIN:
        where = where._replace(written_channels=around.joined)
    stripe = 0 if around.chained else _stripe(row, ifm, ofm, extent, (3, 1))
    work = Work(kind, ifm, ofm, window, strides, dilations, stripe)
    if not where.staged and not chip.new:
        brought = where._replace(staged=True)
        own, transfer = chip.cycles(work, brought), where.weights / chip.constant.rate
        if own > _WORTH * transfer and where.weights < _MOST_STAGED:
            where = brought
    result = groups * chip.cycles(work, where)
    if silu or (groups > 1 and activation not in _PLAIN and activation not in _CLAMPS):
        result += _pass(chip, row, "copy", "plain+table")
    if silu:
        result += _pass(chip, row, "elementwise", "multiply", 2)
    return result


def _pass(chip: Chip, row: Row, kind: str, speed: str, operands: int = 1) -> float:
    """A further operator over the output of a kernel."""
    _, ofm = _sizes(row)
    far, rows = row.far_out > 0, row.rows_out > 0
    size = float(ofm[0] * ofm[1] * up(ofm[2], BRICK)) * (operands - 1)
    where = Where(far, far, rows, rows, more_near=0 if far else size, more_far=size if far else 0)
    return chip.cycles(Work(kind, ofm, ofm), where._replace(speeds=(speed,)))


def _pool(chip: Chip, op: str, activation: str, row: Row, around: _Around) -> float:
    ifm, ofm = _sizes(row)
    window = (int(row.window_height), int(row.window_width))
    speed = _speed(activation, "maximum" if op == "MaxPool" else "plain")
    where = _where(row, ifm, ofm, (speed, *_after(around)), around)
    strides = (int(row.stride_height), int(row.stride_width))
    stripe = _stripe(row, ifm, ofm, window[0], (3, 1))
    return chip.cycles(Work("pool", ifm, ofm, window, strides, (1, 1), stripe), where)


def _mean(chip: Chip, op: str, activation: str, row: Row, around: _Around) -> float:
    """A depthwise convolution with equal weights."""
    ifm, ofm = _sizes(row)
    where = _where(row, ifm, ofm, (_speed(activation),), around)
    return chip.cycles(Work("depthwise", ifm, ofm, ifm[:2]), where)


def _elementwise(chip: Chip, op: str, activation: str, row: Row, around: _Around) -> float:
    ifm, ofm = _sizes(row)
    speed = _speed(activation, _ELEMENTWISE[op])
    where = _where(row, ifm, ofm, (speed, *_after(around)), around)
    return chip.cycles(Work("elementwise", ofm, ofm), where)


def _slope(chip: Chip, op: str, activation: str, row: Row, around: _Around) -> float:
    """A product with constants, then a maximum."""
    ifm, ofm = _sizes(row)
    where = _where(row, ifm, ofm, ("multiply",), around)._replace(constant_channels=ofm[2])
    work = Work("elementwise", ofm, ofm)
    if chip.new:  # both at once; the input is read for each
        size = float(ofm[0] * ofm[1] * up(ofm[2], BRICK))
        near, far = (0.0, size) if where.in_far else (size, 0.0)
        where = where._replace(speeds=("multiply", "plain"), more_near=near, more_far=far)
        return chip.cycles(work, where)
    return chip.cycles(work, where) + _pass(chip, row, "elementwise", "plain", 2)


def _join(chip: Chip, op: str, activation: str, row: Row, around: _Around) -> float:
    """The copies of a concatenation: which inputs they are of is told by their sizes."""
    _, ofm = _sizes(row)
    others = max(1, int(row.operands) - 1)
    first = min(int(row.in_channels), ofm[2])
    rest = max(1, (ofm[2] - first) // others)
    channels = [first, *[rest] * min(others, _MOST_JOINED)]
    area = ofm[0] * ofm[1]
    best, least = [(c, False, False) for c in channels], float("inf")
    for states in itertools.product(_COPIES, repeat=len(channels)):
        copied = [(c, *s) for c, s in zip(channels, states, strict=True) if s is not None]
        sizes = [area * (c if rows else up(c, BRICK)) for c, _, rows in copied]
        far = sum(s for s, (_, is_far, _) in zip(sizes, copied, strict=True) if is_far)
        by_row = sum(s for s, (_, _, rows) in zip(sizes, copied, strict=True) if rows)
        miss = abs(far - row.far_in) + abs(by_row - row.rows_in)
        miss += area * BRICK * abs(len(copied) - min(row.steps, len(channels)))
        if miss < least:
            best, least = copied, miss
    total = 0.0
    for count, far, rows in best:
        part = (ofm[0], ofm[1], count)
        where = Where(far, row.far_out > 0, rows, row.rows_out > 0)
        total += chip.cycles(Work("copy", part, part), where)
    return total * max(1.0, row.steps / max(1, len(best)))


def _resize(chip: Chip, op: str, activation: str, row: Row, around: _Around) -> float:
    """U85 enlarges at once; U55 and U65 by two at a time, and an average smooths the last."""
    ifm, ofm = _sizes(row)
    where = _where(row, ifm, ofm, (_speed(activation, "table" if chip.new else "plain"),), around)
    if chip.new:
        return chip.cycles(Work("resize", ifm, ofm), where)
    if ifm[0] * ifm[1] == 1:
        return 0.0
    factor = round(ofm[0] / ifm[0])
    if op == "ResizeLinear" and factor == 2:
        return _half_pixel(chip, row, ifm, ofm, where)
    first = where._replace(out_far=False, out_rows=False, speeds=("plain",))
    total = 0.0
    while factor > _LARGEST_FACTOR and op == "ResizeLinearCorners":
        size = (2 * ifm[0] - 1, 2 * ifm[1] - 1, ifm[2])
        total += chip.cycles(Work("pool", ifm, size, (2, 2), enlarges=True), first)
        first = first._replace(in_far=False, in_rows=False)
        ifm, factor = size, factor // 2
    window = (factor, factor) if op.startswith("ResizeLinear") else (1, 1)
    while factor > 2:
        size = (2 * ifm[0], 2 * ifm[1], ifm[2])
        total += chip.cycles(Work("pool", ifm, size, enlarges=True), first)
        first = first._replace(in_far=False, in_rows=False)
        ifm, factor = size, factor // 2
    where = where._replace(in_far=first.in_far, in_rows=first.in_rows)
    return total + chip.cycles(Work("pool", ifm, ofm, window, enlarges=True), where)


def _largest(chip: Chip, op: str, activation: str, row: Row, around: _Around) -> float:
    """Values and places are joined into 16 bits, then a pool as wide as there are channels.

    Many pixels go through that pool a few at a time. U85 does it all at once, at a cost that has
    no estimate.
    """
    ifm, ofm = _sizes(row)
    if chip.new:
        return 0.0
    where = _where(row, ifm, ofm, ("plain",), around)._replace(out_rows=True)
    pixels = ifm[0] * ifm[1]
    joined = chip.cycles(Work("depthwise", ifm, ifm), where)
    pool = 8.0 * pixels * max(4, ifm[2]) / chip.array.units[0][0]
    if pixels <= _MOST_PIXELS:
        return joined + pool
    memory = chip.far if where.out_far else chip.near
    return joined + pool + pixels / 4 * (memory.read_latency + memory.write_latency + _PIECE)


def _half_pixel(chip: Chip, row: Row, ifm: Size, ofm: Size, where: Where) -> float:
    """The edges are repeated, then one small convolution makes every fourth pixel."""
    wide = (ifm[0] + 2, ifm[1] + 2, ifm[2])
    padded_far = row.far_in >= wide[0] * wide[1] * wide[2]
    copy = where._replace(out_far=padded_far, out_rows=True, speeds=("plain",))
    edge = copy._replace(in_far=padded_far, in_rows=True)
    high, low = (1, ifm[1], ifm[2]), (wide[0], 1, ifm[2])
    total = chip.cycles(Work("copy", ifm, ifm), copy)
    total += 2 * chip.cycles(Work("copy", high, high), copy)
    total += 2 * chip.cycles(Work("copy", low, low), edge)
    phase = Work(
        "depthwise", (ifm[0] + 1, ifm[1] + 1, ifm[2]), (ofm[0] - 1, ofm[1] - 1, ofm[2]), (2, 2)
    )
    where = where._replace(in_far=padded_far, in_rows=True, weights=2.0 * ofm[2], staged=True)
    return total + 4 * chip.cycles(phase, where)


_Cost = Callable[[Chip, str, str, Row, _Around], float]
_COSTS: dict[str, _Cost] = {
    **dict.fromkeys(("Conv", "GroupedConv", "DepthwiseConv", "Gemm"), _weighted),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(
        ("ResizeNearest", "ResizeLinear", "ResizeLinearCorners", "ResizeNearestCorners"), _resize
    ),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "GlobalAveragePool": _mean,
    "ArgMax": _largest,
    "PRelu": _slope,
    "Concat": _join,
}
