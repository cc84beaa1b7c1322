"""Which weights an Ethos-U brings to its SRAM ahead of use, and in how many slices.

Weights are streamed from slow memory each time a block of the output needs them. Where that is
slower than the arithmetic, Vela 5.2 copies them to the SRAM while the step before runs: all at
once, or slice by slice of output channels, two slices in turn. This repeats its decision
(`Scheduler::ProposeSlicedWeightBuffering`, sources public) on the same estimates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from onnxnas.hwmodels.ethos_array import BRICK, one_stripe, up
from onnxnas.hwmodels.ethos_cycles import Chip, Where
from onnxnas.hwmodels.ethos_work import Operator

_STARTUP = 1000
"""Cycles of waiting that count as none."""
_LEAST_USE = 0.3
"""Of a block's channels that a slice must fill."""


@dataclass(frozen=True)
class Need:
    """A step that has weights, as its scheduler sees it.

    Attributes:
        operator: what it computes.
        where: its data lies while weights are not brought.
        size: bytes of its weights and scales.
        striped: how many stripes it is done in, 1 outside of cascades.
        cascaded: it is in a cascade.
        first: it is the first of its cascade.
        input_moves: its input could be kept in the SRAM instead.
        index: in the schedule.
    """

    operator: Operator
    where: Where
    size: float
    striped: float = 1.0
    cascaded: bool = False
    first: bool = False
    input_moves: bool = False
    index: int = 0


@dataclass(frozen=True)
class Slack:
    """What a step leaves to the one after it.

    Attributes:
        cycles: in which transfers are hidden.
        memory: bytes of the SRAM that are free while it runs.
    """

    cycles: float
    memory: float


@dataclass(frozen=True)
class Brought:
    """How weights are brought.

    Attributes:
        slices: output channels of each slice.
        parts: bytes of the one or two places for them.
        early: the first part is filled while the step before runs.
        first: bytes of the first slice.
        cycles: of the last slice.
        last_part: which place the last slice is in.
    """

    slices: tuple[int, ...]
    parts: tuple[int, ...]
    early: bool
    first: float
    cycles: float
    last_part: int


@dataclass(frozen=True)
class _Estimate:
    """Of a step done in slices: cycles of its arithmetic, with visible transfers, of reading."""

    run: float
    full: float
    hidden: float
    last: float
    weights: float
    inputs: float
    input_bytes: float


def bring(chip: Chip, need: Need, before: Slack | None, limit: float) -> Brought | None:
    """Whether and how weights are brought to the SRAM.

    Args:
        chip: the target.
        need: the step.
        before: left by the step before; None at the start and after a step on the CPU.
        limit: bytes of the SRAM that are free while it runs.
    """
    if limit < BRICK:
        return None
    return _Decision(chip, need, before, limit).made()


class _Decision:
    def __init__(self, chip: Chip, need: Need, before: Slack | None, limit: float) -> None:
        self._chip, self._need, self._limit = chip, need, limit
        self._before = before
        self._slack = before.cycles if before else 0.0
        self._room = before.memory if before else limit
        self._depth = need.operator.work.ofm[2]
        self._block = chip.block(need.operator.work).ofm[2]
        self._least = max(BRICK, chip.block(need.operator.work).unit[2]) if chip.new else BRICK
        self._again = chip.repeats(need.operator.work) * math.ceil(need.striped)
        self._transfer = chip.transfer(need.size)
        self._unmoved = chip.reading(chip.constant, need.size, "weights") * self._again
        self._moved = chip.reading(chip.near, need.size, "weights") * self._again
        self._early = need.index > 0 and (not need.cascaded or need.first)
        smallest = self._transfer * min(self._depth, BRICK) / self._depth
        self._forced = (
            before is None
            and self._again > 1
            and (smallest < self._unmoved / 10 or smallest <= _STARTUP)
        )
        self._smallest = smallest
        whole = (self._depth,)
        self._alone = self._estimate(whole, need, 0.0, False, False)
        self._busy = self._alone.run > self._unmoved

    def made(self) -> Brought | None:
        if self._moved >= self._unmoved:
            return None
        sliced = self._sliced()
        if sliced is None:
            return None
        slices: tuple[int, ...] = (self._depth,)
        if sliced:
            found = self._slices()
            if found is None:
                return None
            slices = found
        parts = self._parts(slices)
        if parts is None:
            return None
        early = self._early and parts[0] < self._room
        slack = self._slack if early else _STARTUP if self._forced else 0.0
        after = self._estimate(slices, self._need, slack, len(parts) == 2, True)
        if not self._worth_it(after, parts, len(slices)):
            return None
        first = self._need.size * slices[0] / self._depth
        last = (len(slices) - 1) % len(parts)
        return Brought(slices, parts, early, first, after.last, last)

    def _sliced(self) -> bool | None:
        """Whether to try slices, or all at once; None to leave weights where they are."""
        visible = max(0.0, self._transfer - self._slack)
        buffered = self._moved + visible
        if not self._need.cascaded:
            worth = (
                self._forced
                or buffered < self._unmoved
                or self._depth // self._block > 2
                or (self._early and self._smallest < self._slack and self._again > 1)
            )
            return True if worth else None
        hidden = visible < self._transfer / 20
        hidden = hidden or math.ceil(visible / math.ceil(self._need.striped)) < _STARTUP
        fits = self._need.size <= self._limit and (hidden or self._forced)
        return False if fits and (buffered < self._unmoved or not self._busy) else None

    def _slices(self) -> tuple[int, ...] | None:
        """Channels of each slice, such that the first is there in time and two fit."""
        depth, half, size = self._depth, self._limit // 2, self._need.size
        share = self._first_share()
        if share >= 1.0:
            return (depth,)
        first = max(int(depth * share) // self._least * self._least, BRICK)
        if first >= depth:
            return (depth,)
        work, where = self._need.operator.work, self._need.where._replace(staged=True)
        cycles = self._chip.computing(work, where, first, (True, False))
        later = up(max(int(depth * cycles / self._transfer), BRICK), self._block)
        if int(later / depth * size) > half:
            later = int(half / size * depth)
        if later <= 0:
            return (depth,)
        while True:
            step = self._block if later > self._block else self._least
            later = max(later // step * step, self._least)
            ends = [*range(first, depth, later), depth]
            made = (first, *(b - a for a, b in pairwise(ends)))
            if max(made) / depth * size <= half or (first, later) == (BRICK, self._least):
                break
            if later > first:
                later = up(later // 2, self._least)
            else:
                first = up(first // 2, BRICK)
        use = later / up(later, self._block)
        if len(made) > 2 and use < _LEAST_USE and self._busy:
            return None
        return made

    def _first_share(self) -> float:
        """Part of the channels that can be brought before the step begins."""
        least = min(BRICK / self._depth, 1.0)
        share = min(self._slack / self._transfer, 1.0)
        even = math.floor(share / least) * least
        share = 1.0 if 1.0 - even < least / 2 else share
        if self._busy and 0.5 < share < 1.0:
            share = min(max(up(self._depth // 2, BRICK) / self._depth, 0.5), 1.0)
        return min(max(share, least), self._limit // 2 / self._need.size, 1.0)

    def _parts(self, slices: Sequence[int]) -> tuple[int, ...] | None:
        """Bytes of the places for slices: two in turn, or one for the largest."""
        sizes = [math.ceil(self._need.size * n / self._depth / BRICK) * BRICK for n in slices]
        if len(slices) > 1:
            two = (max(sizes[::2]), max(sizes[1::2]))
            if sum(two) <= self._limit:
                return two
        return (max(sizes),) if max(sizes) <= self._limit else None

    def _estimate(
        self, slices: Sequence[int], need: Need, slack: float, double: bool, staged: bool
    ) -> _Estimate:
        chip, n = self._chip, need.striped
        work = one_stripe(need.operator.work)
        where = need.where._replace(staged=staged)
        if staged and need.cascaded and not need.first:
            where = where._replace(in_far=False)
        run = visible = cycles = 0.0
        weights, fetched = 0.0, 0.0
        for i, depth in enumerate(slices):
            ends = (i == 0, i == len(slices) - 1)
            cycles = chip.computing(work, where, depth, ends)
            part = need.size * depth / self._depth
            if staged:
                visible += max(0.0, chip.transfer(part) - slack)
            run += cycles
            slack = cycles if double else 0.0
            weights += part * chip.repeats(work)
            fetched += chip.fetched(work, where.in_rows, depth)
        fetches = len(slices) * chip.repeats(work)
        reading = (
            chip.reading(chip.near if staged else chip.constant, weights / fetches, "weights")
            * fetches
        )
        memory = chip.far if where.in_far else chip.near
        inputs = chip.reading(memory, fetched, "input")
        run = n * run
        return _Estimate(run, run + visible, visible, cycles, n * reading, n * inputs, fetched)

    def _worth_it(self, after: _Estimate, parts: Sequence[int], slices: int) -> bool:
        need, alone = self._need, self._alone
        inputs = after.inputs
        if need.input_moves:
            near = self._chip.reading(self._chip.near, after.input_bytes, "input")
            work = need.operator.work
            held = math.prod(work.ifm)
            both = held + sum(parts) <= self._limit
            old = self._chip.reading(self._chip.near, alone.input_bytes, "input")
            kept = max(alone.run, alone.weights, old)
            moved = max(after.full, after.weights, after.inputs)
            if not both and held < self._room and kept < moved and kept < after.inputs:
                return False  # the SRAM does more for the input
            if both:
                inputs = near
        original = max(alone.run, alone.weights, inputs)
        new = max(after.full, after.weights, inputs)
        if self._busy:
            if after.hidden / slices < _STARTUP:
                new -= after.hidden
            if slices > 1 and after.full == new and self._forced:
                new -= slices * _STARTUP / 2
        once = self._again == 1 and self._transfer + after.weights > original
        return original >= new and not once
