"""Cycles of kernels as an Ethos-U compiler would estimate them, from the columns of a table.

Kernels are told apart into the operators that the NPU runs (`ethos_blocks`), with the memories
that `placement` found for them, and costed (`ethos_cycles`). Operators that run in ways not
followed here have no estimate.
"""

from __future__ import annotations

import itertools
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxnas.cost import Target
from onnxnas.hwmodels.ethos_array import BRICK, Size, Work, up
from onnxnas.hwmodels.ethos_cycles import Chip, Where
from onnxnas.hwmodels.kernel_table import KernelTable

_MOST_REMEMBERED = 200_000
_LONGEST_CHAIN = 3
_MOST_JOINED = 2
"""Inputs of a concatenation, besides the first, that are told apart."""
_MOST_PIXELS, _PIECE = 65_536, 200
"""Of an arg-max that is taken at once; cycles that each piece of a larger one takes longer."""
_LARGEST_FACTOR = 8
"""Of an enlargement that the compiler takes as one operator."""
_WORTH, _MOST_STAGED = 1.15, 65_536
"""How much longer weights must be needed than they take; bytes of them."""
_COPIES = (None, *itertools.product((False, True), repeat=2))
"""An input may not be copied, or be copied from (DRAM, row by row)."""
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
_Row: Any = namedtuple("_Row", _COLUMNS)  # type: ignore[misc]


class _Around(NamedTuple):
    """What runs next to a kernel.

    Attributes:
        chained: elementwise operators that run inside it.
        joined: channels of the concatenation that it writes a part of; 0 for none.
    """

    chained: tuple[str, ...] = ()
    joined: int = 0


class _Cost(NamedTuple):
    """Cycles of a kernel.

    Attributes:
        placed: with its weights where the schedule leaves them.
        staged: with them in the SRAM.
        transfer: of bringing them there.
    """

    placed: float
    staged: float
    transfer: float


class Modelled:
    """Estimates for one target; remembers what it has worked out.

    Args:
        target: its card.
    """

    def __init__(self, target: Target) -> None:
        self._chip = Chip.of(target)
        self._known: dict[tuple[str, str, Any, _Around], _Cost] = {}

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
        costs = np.zeros((len(table), len(_Cost._fields)))
        for i, (op, around) in enumerate(_arounds(table, chip)):
            if op not in _COSTS:
                continue
            key = (op, activations[i], _Row(*values[i]), around)
            known = self._known.get(key)
            if known is None:
                cost = _COSTS[op](chip, *key)
                known = cost if isinstance(cost, _Cost) else _Cost(cost, cost, 0.0)
                self._known[key] = known
            costs[i] = known
        return _brought(table, costs, chip.far is chip.near)


def _brought(
    table: KernelTable,
    costs: NDArray[np.float64],
    flash: bool,
) -> NDArray[np.float64]:
    """Costs with the wait for weights that come in while the kernel before runs."""
    placed, staged, transfer = costs.T
    before = table["previous"].astype(np.int64)
    slack = np.where(before >= 0, np.minimum(placed, staged)[before], 0.0)
    wait = np.maximum(0.0, transfer - slack)
    # Planned transfers overlap with the kernel itself, but for the first one of the network.
    planned = np.where(before >= 0, np.maximum(staged, wait), staged + wait)
    # Small weights are brought where that pays, even where the plan saw no reason to.
    small = table["stored_weights"] < _MOST_STAGED
    if flash:
        unplanned = np.where(small & (staged > _WORTH * transfer), staged, placed)
    else:
        unplanned = np.where(small, np.minimum(placed, staged + wait), placed)
    brought = np.where(table["weights_near"] > 0, planned, unplanned)
    result: NDArray[np.float64] = np.where(transfer > 0, brought, placed)
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


def _sizes(row: Any) -> tuple[Size, Size]:
    return (
        (int(row.in_height), int(row.in_width), int(row.in_channels)),
        (int(row.out_height), int(row.out_width), int(row.out_channels)),
    )


def _stripe(row: Any, ifm: Size, ofm: Size, extent: int, following: tuple[int, int]) -> int:
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


def _where(row: Any, ifm: Size, ofm: Size, speeds: tuple[str, ...], around: _Around) -> Where:
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
    if activation == "none":
        return plain
    return f"{plain}+clamp" if activation in _CLAMPS else f"{plain}+table"


def _after(around: _Around) -> tuple[str, ...]:
    return tuple(_ELEMENTWISE[op] for op in around.chained)


def _weighted(chip: Chip, op: str, activation: str, row: Any, around: _Around) -> _Cost:
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
    elif chip.new and around.joined and activation != "none":
        where = where._replace(written_channels=around.joined)
    stripe = 0 if around.chained else _stripe(row, ifm, ofm, extent, (3, 1))
    work = Work(kind, ifm, ofm, window, strides, dilations, stripe)
    more = 0.0
    if silu or (groups > 1 and activation not in ("none", *_CLAMPS)):
        more += _pass(chip, row, "copy", "plain+table")
    if silu:
        more += _pass(chip, row, "elementwise", "multiply", 2)
    return _Cost(
        groups * chip.cycles(work, where) + more,
        groups * chip.cycles(work, where._replace(staged=True)) + more,
        chip.transfer(work, where),
    )


def _pass(chip: Chip, row: Any, kind: str, speed: str, operands: int = 1) -> float:
    """A further operator over the output of a kernel."""
    _, ofm = _sizes(row)
    far, rows = row.far_out > 0, row.rows_out > 0
    size = float(ofm[0] * ofm[1] * up(ofm[2], BRICK)) * (operands - 1)
    where = Where(far, far, rows, rows, more_near=0 if far else size, more_far=size if far else 0)
    return chip.cycles(Work(kind, ofm, ofm), where._replace(speeds=(speed,)))


def _pool(chip: Chip, op: str, activation: str, row: Any, around: _Around) -> float:
    ifm, ofm = _sizes(row)
    window = (int(row.window_height), int(row.window_width))
    speed = _speed(activation, "maximum" if op == "MaxPool" else "plain")
    where = _where(row, ifm, ofm, (speed, *_after(around)), around)
    strides = (int(row.stride_height), int(row.stride_width))
    stripe = _stripe(row, ifm, ofm, window[0], (3, 1))
    return chip.cycles(Work("pool", ifm, ofm, window, strides, (1, 1), stripe), where)


def _mean(chip: Chip, op: str, activation: str, row: Any, around: _Around) -> float:
    """A depthwise convolution with equal weights."""
    ifm, ofm = _sizes(row)
    where = _where(row, ifm, ofm, (_speed(activation),), around)
    return chip.cycles(Work("depthwise", ifm, ofm, ifm[:2]), where)


def _elementwise(chip: Chip, op: str, activation: str, row: Any, around: _Around) -> float:
    ifm, ofm = _sizes(row)
    speed = _speed(activation, _ELEMENTWISE[op])
    where = _where(row, ifm, ofm, (speed, *_after(around)), around)
    return chip.cycles(Work("elementwise", ofm, ofm), where)


def _slope(chip: Chip, op: str, activation: str, row: Any, around: _Around) -> float:
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


def _join(chip: Chip, op: str, activation: str, row: Any, around: _Around) -> float:
    """The copies of a concatenation: which inputs they are of is told by their sizes."""
    _, ofm = _sizes(row)
    others = max(1, int(row.operands) - 1)
    first = min(int(row.in_channels), ofm[2])
    rest = max(1, (ofm[2] - first) // others)
    channels = [first, *[rest] * min(others, _MOST_JOINED)]
    area = ofm[0] * ofm[1]
    best: list[Any] = [(c, False, False) for c in channels]
    least = float("inf")
    for states in itertools.product(_COPIES, repeat=len(channels)):
        copied: list[Any] = [
            (c, *s) for c, s in zip(channels, states, strict=True) if s is not None
        ]
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
    return total * max(1.0, float(row.steps) / max(1, len(best)))


def _resize(chip: Chip, op: str, activation: str, row: Any, around: _Around) -> float:
    """U85 enlarges at once; U55 and U65 by two at a time, and an average smooths the last."""
    ifm, ofm = _sizes(row)
    where = _where(row, ifm, ofm, (_speed(activation, "table" if chip.new else "plain"),), around)
    if chip.new:
        return chip.cycles(Work("resize", ifm, ofm), where)
    if ifm[0] * ifm[1] == 1:
        return 0.0
    factor = round(ofm[0] / ifm[0])
    if op == "ResizeLinear" and factor == 2:
        return _half_pixel(chip, row, ifm, (*ofm[:2], around.joined or ofm[2]), where)
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


def _largest(chip: Chip, op: str, activation: str, row: Any, around: _Around) -> float:
    """A pool as wide as there are channels.

    U85 takes as many pixels at once as an axis may have. On U55 and U65, values and places are
    joined into 16 bits first, and many pixels go through the pool a few at a time.
    """
    ifm, _ = _sizes(row)
    where = _where(row, ifm, ifm, ("plain",), around)._replace(out_rows=True)
    pixels = ifm[0] * ifm[1]
    if chip.new:
        where = where._replace(in_rows=True)
        pieces = [_MOST_PIXELS] * (pixels // _MOST_PIXELS) + [pixels % _MOST_PIXELS]
        works = [Work("pool", (n, ifm[2], 1), (n, 1, 1), (1, ifm[2])) for n in pieces if n]
        return sum(chip.cycles(work, where) for work in works)
    joined = chip.cycles(Work("depthwise", ifm, ifm), where)
    pool = 8.0 * pixels * max(4, ifm[2]) / chip.array.units[0][0]
    if pixels <= _MOST_PIXELS:
        return joined + pool
    memory = chip.far if where.out_far else chip.near
    return joined + pool + pixels / 4 * (memory.read_latency + memory.write_latency + _PIECE)


def _half_pixel(chip: Chip, row: Any, ifm: Size, ofm: Size, where: Where) -> float:
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


_COSTS: dict[str, Callable[[Chip, str, str, Any, _Around], float | _Cost]] = {
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
