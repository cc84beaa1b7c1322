"""Cycles of an operator on an Ethos-U as its compiler estimates them, from the block it works on.

Vela 5.2 (sources public) takes the longer of arithmetic and traffic: the blocks one after the
other through multipliers, output unit and command issue; and for each memory the bytes that the
blocks read and write, short bursts counted as long ones. A cost model's baseline is made of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from onnxnas.cost import Target
from onnxnas.hwmodels.ethos_array import BRICK, SUBKERNEL, Array, Block, Size, Work, up
from onnxnas.hwmodels.ethos_blocks import choose
from onnxnas.hwmodels.ethos_chips import ACCELERATORS, MEMORIES, Memory

_MACS_LANES = 8
"""Input channels, or half the window elements, that meet in one step."""


_MOST_REMEMBERED = 100_000
"""Blocks that a chip remembers."""


class Where(NamedTuple):
    """Where an operator's data lies, and what happens to its results.

    Attributes:
        in_far, out_far: in DRAM, not in SRAM.
        constant_input: it reads zeros from where weights are kept.
        in_rows, out_rows: row by row, not in bricks.
        weights, scales: bytes of encoded weights, and of the biases and scales beside them.
        staged: weights are brought to the SRAM first.
        concurrent: bytes of them that are brought while the operator runs.
        more: what is read besides the input: bytes, whether from DRAM, whether row by row.
        constant_channels: of a constant with one value per channel that is read too.
        written_channels: output channels that count as written, where they are not its own.
        chained: what it makes goes on to a step inside it that reads something else, too: its
            results then count as not written.
        speeds: of the output unit for each of its passes, see `Chip`.
    """

    in_far: bool = False
    out_far: bool = False
    constant_input: bool = False
    in_rows: bool = False
    out_rows: bool = False
    weights: float = 0.0
    scales: float = 0.0
    staged: bool = False
    concurrent: float = 0.0
    more: tuple[tuple[float, bool, bool], ...] = ()
    constant_channels: int = 0
    written_channels: int = 0
    chained: bool = False
    speeds: tuple[str, ...] = ("plain",)


@dataclass(frozen=True, eq=False)
class Chip:
    """One target.

    Attributes:
        array: its inside.
        near, far, constant: SRAM, where other activations lie, and weights.
        speeds: cycles per value of the output unit: ``plain``, with a ``clamp``, with a ``table``,
            of a ``maximum``, ``add`` or ``multiply``.
        words: of the channels for elementwise inputs, weights, other inputs and scales (U85).
    """

    array: Array
    near: Memory
    far: Memory
    constant: Memory
    speeds: Mapping[str, float]
    words: Mapping[str, int] | None = None
    _blocks: dict[Work, Block] = field(default_factory=dict, repr=False)
    _computing: dict[Any, float] = field(default_factory=dict, repr=False)

    @property
    def new(self) -> bool:
        """Whether it is a U85."""
        return self.array.family == "ethos-u85"

    @classmethod
    def of(cls, target: Target) -> Chip | None:
        """Of a card; None for other hardware and configurations that are not known here."""
        config = target.config
        accelerator = config.get("accelerator", "")
        memories = MEMORIES.get(config.get("system_config", ""))
        if accelerator not in ACCELERATORS or memories is None:
            return None
        near, other = memories
        dedicated = config["memory_mode"].startswith("Dedicated_Sram")
        array, speeds, words = ACCELERATORS[accelerator]
        return cls(array, near, other if dedicated else near, other, speeds, words)

    def cycles(self, work: Work, where: Where) -> float:
        """Cycles of one operator, transfers of weights before it left out.

        Args:
            work: what is computed.
            where: its data lies.
        """
        return max(self.computing(work, where), self.moving(work, where))

    def computing(
        self, work: Work, where: Where, depth: int = 0, ends: tuple[bool, bool] = (True, True)
    ) -> float:
        """Cycles of multipliers and output unit.

        Args:
            work: what is computed.
            where: its data lies.
            depth: channels of the slice that is made, 0 for all of them.
            ends: whether nothing runs before that slice, and whether nothing runs after it.
        """
        key = (work, where, depth, ends)
        known = self._computing.get(key)
        if known is None:
            if len(self._computing) >= _MOST_REMEMBERED:
                self._computing.clear()
            known = self._computing[key] = self._arithmetic(work, where, depth, ends)
        return known

    def moving(self, work: Work, where: Where) -> float:
        """Cycles that the busiest memory takes."""
        return max(self._traffic(work, where, self.block(work)))

    def block(self, work: Work) -> Block:
        """What is worked on at once."""
        block = self._blocks.get(work)
        if block is None:
            if len(self._blocks) >= _MOST_REMEMBERED:
                self._blocks.clear()
            block = self._blocks[work] = choose(work, self.array)
        return block

    def repeats(self, work: Work) -> int:
        """How often all weights are read."""
        ofm = _least(work.ofm, self.block(work).ofm)
        return -(-work.ofm[0] // ofm[0]) * -(-work.ofm[1] // ofm[1])

    def fetched(self, work: Work, rows: bool, depth: int = 0) -> float:
        """Bytes of its input that an operator reads, those it reads again included.

        Args:
            work: what is computed.
            rows: its input lies row by row.
            depth: channels of the slice that is made, 0 for all of them.
        """
        block = self.block(work)
        inner = work.ifm[2] if rows else up(work.ifm[2], BRICK)
        if work.kind in ("elementwise", "resize"):
            return float(work.ifm[0] * work.ifm[1] * inner)
        ifm, ofm = _least(work.ifm, block.ifm), _least(work.ofm, block.ofm)
        passes = 1
        if work.kind != "product":
            passes = math.prod(-(-w // SUBKERNEL) for w in work.window)
        deep = 1
        if work.kind not in ("depthwise", "pool", "copy"):
            deep = -(-(depth or work.ofm[2]) // ofm[2])
        return float(ifm[0] * ifm[1] * inner * passes * self.repeats(work) * deep)

    def reading(self, memory: Memory, size: float, channel: str) -> float:
        """Cycles of reading bytes.

        Args:
            memory: of this chip.
            size: bytes.
            channel: of the NPU, ``input`` or ``weights``.
        """
        return size / self._rate(memory, channel) + memory.read_latency

    def transfer(self, size: float) -> float:
        """Cycles it takes to bring bytes of weights to the SRAM."""
        return max(
            size / self._rate(self.constant, "stream") + self.constant.read_latency,
            size / self._rate(self.near, "write") + self.near.write_latency,
        )

    def _rate(self, memory: Memory, channel: str) -> float:
        if self.words is None:
            return memory.rate
        return memory.channel(None if channel == "write" else self.words[channel])

    # Arithmetic

    def _arithmetic(self, work: Work, where: Where, depth: int, ends: tuple[bool, bool]) -> float:
        block = self.block(work)
        first, last = self._ends(work, where, block)
        if depth:
            work = work._replace(ofm=(*work.ofm[:2], depth))
        size = _least(work.ofm, block.ofm)
        # Passes joined by "+" run at once, others one after the other.
        per_value = sum(max(self.speeds[s] for s in p.split("+")) for p in where.speeds)
        if work.kind in ("elementwise", "resize"):
            ofm = work.ofm if where.out_rows else (*work.ofm[:2], up(work.ofm[2], BRICK))
            both = max(first, last) if self.new else first + last
            issue = (both / math.prod(block.ofm) + per_value) / 4
            return max(per_value, issue) * math.prod(ofm)
        unit = block.unit
        dense = work.kind in ("conv", "product")
        line = work.ofm[0] == 1 == work.window[0] and work.ofm[1] % 2 == 0
        if not self.new and unit[0] == 2 and dense and line:
            unit, size = (1, 4, unit[2]), (1, *size[1:])
        busy = self._multiplying(work, block, size, unit)
        out = per_value * math.prod(size)
        out = float(math.ceil(out) if self.new else int(out))
        if where.weights:
            source = self.near if where.staged else self.constant
            out = max(out, 10 * size[2] * source.read_latency / 256)
        inside = math.prod(-(-s // u) for s, u in zip(size, unit, strict=True))
        count = math.prod(-(-s // u) for s, u in zip(work.ofm, unit, strict=True)) / inside
        issue = ((abs(last - first) if count > 1 else 0) + busy + out) / 4
        busy, out = max(busy, issue), max(out, issue)
        total = max(busy, out) * count + first * ends[0] + last * ends[1]
        return total + (min(busy, out) if ends[1] or out >= busy else 0.0)

    def _multiplying(self, work: Work, block: Block, size: Size, unit: Size) -> float:
        """Cycles of the multipliers for one block."""
        high, wide, deep = (-(-s // u) for s, u in zip(size, unit, strict=True))
        plane = high * wide
        depth = min(work.ifm[2], block.ifm[2])
        decode = 32 * unit[2] // (8 * (self.array.cores if self.new else 1))
        limit = 1 if work.kind == "product" else SUBKERNEL
        total = 0.0
        for x in range(0, work.window[1], limit):
            for y in range(0, work.window[0], limit):
                area = min(work.window[0] - y, limit) * min(work.window[1] - x, limit)
                if work.kind in ("pool", "copy"):
                    steps, cycles = 1, max(4, area) * plane * deep * 4
                elif work.kind == "depthwise":
                    steps = -(-area // 4)
                    cycles = max(decode, 4 * plane) * steps * deep
                elif block.part_kernel:
                    steps = -(-area // 4)
                    cycles = max(decode, 4 * plane) * steps * deep * -(-depth // _MACS_LANES)
                else:
                    steps = area
                    lanes = depth // _MACS_LANES if self.new else 4
                    cycles = max(decode, lanes * plane) * steps * deep
                wait = 0
                if plane == 1:
                    wait = 2 * steps if deep == 1 else 2 * (steps - 1) * deep
                if block.part_kernel:
                    wait *= -(-depth // _MACS_LANES)
                total += cycles + wait
        if work.kind in ("conv", "product"):
            total *= -(-work.ifm[2] // depth)
        if self.new:
            return total / 2 if work.sparse else total
        return total // self.array.cores

    def _ends(self, work: Work, where: Where, block: Block) -> tuple[float, float]:
        """Cycles until the first block is read, and until the last one is written."""
        source = self._source(where)
        target = self.far if where.out_far else self.near
        read = self._bursts(
            math.prod(_least(work.ifm, block.ifm)), source, block.ifm, work.ifm, where.in_rows
        )
        written = self._bursts(
            math.prod(_least(work.ofm, block.ofm)),
            target,
            block.ofm,
            work.ofm,
            where.out_rows,
            True,
        )
        return (
            source.read_latency + read // source.rate,
            target.write_latency + written // target.rate,
        )

    def _source(self, where: Where) -> Memory:
        if where.constant_input:
            return self.constant
        return self.far if where.in_far else self.near

    # Traffic

    def _traffic(self, work: Work, where: Where, block: Block) -> list[float]:
        """Cycles that each memory is busy."""
        again = self.repeats(work)
        fetched = self.fetched(work, where.in_rows)
        source = self._source(where)
        target = self.far if where.out_far else self.near
        read = self._bursts(fetched, source, block.ifm, work.ifm, where.in_rows)
        written = float(work.ofm[0] * work.ofm[1])
        channels = where.written_channels or work.ofm[2]
        written *= channels if where.out_rows else up(channels, BRICK)
        written = self._bursts(written, target, block.ofm, work.ofm, where.out_rows, True)
        loads: list[tuple[Memory, str, float]] = [
            (source, "stream" if work.kind in ("elementwise", "resize") else "input", read),
            (target, "write", 0.0 if where.chained else written),
        ]
        for values, far, rows in where.more:
            memory = self.far if far else self.near
            size = self._bursts(values, memory, block.ifm, work.ofm, rows)
            loads.append((memory, "stream", size))
        if where.constant_channels and not self.new:
            deep = work.ofm[2] if where.in_rows else up(work.ofm[2], BRICK)
            values = float(work.ofm[0] * work.ofm[1] * deep)
            shape = (1, 1, where.constant_channels)
            size = self._bursts(values, self.constant, block.ifm, shape, True)
            loads.append((self.constant, "stream", size))
        if where.weights:
            home = self.near if where.staged else self.constant
            loads.append((home, "weights", where.weights * again))
            loads.append((self.constant, "scales", where.scales * again))
        if where.concurrent:
            loads.append((self.constant, "stream", where.concurrent))
            loads.append((self.near, "write", where.concurrent))
        return [self._busy(m, loads) for m in {m: None for m, _, _ in loads}]

    def _busy(self, memory: Memory, loads: list[tuple[Memory, str, float]]) -> float:
        own = [(channel, size) for m, channel, size in loads if m is memory]
        total = sum(size for _, size in own) / memory.rate
        if self.words is None:
            return total
        through: dict[str, float] = {}
        for name, size in own:
            through[name] = through.get(name, 0.0) + size / self._rate(memory, name)
        return max(total, *through.values())

    def _bursts(
        self,
        count: float,
        memory: Memory,
        block: Size,
        shape: Size,
        rows: bool,
        write: bool = False,
    ) -> float:
        """Bytes that a transfer counts for: short bursts take as long as full ones."""
        line = block[1] * block[2]
        cores = 1 if self.new else self.array.cores
        if not rows:
            length = line if shape[1] * 16 == block[2] else 16 * block[1] * (cores if write else 1)
        elif not write:
            length = line if shape[2] == block[2] else block[2]
        elif block[2] <= 16 and shape[2] == block[2]:
            length = line
        else:
            length = min(64, 16 * cores, block[2])
        return count * memory.burst // min(memory.burst, length)


def _least(a: Size, b: Size) -> Size:
    return min(a[0], b[0]), min(a[1], b[1]), min(a[2], b[2])
