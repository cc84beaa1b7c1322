"""Cycles of an operator on an Ethos-U as its compiler estimates them, from the block it works on.

Vela 5.2 (sources public) takes the longer of arithmetic and traffic: the blocks one after the
other through multipliers, output unit and command issue; and for each memory the bytes that the
blocks read and write, short bursts counted as long ones. A cost model's baseline is made of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from onnxnas.cost import Target
from onnxnas.hwmodels.ethos_array import BRICK, SUBKERNEL, Array, Block, Size, Work, up
from onnxnas.hwmodels.ethos_blocks import choose

_MACS_LANES = 8
"""Input channels, or half the window elements, that meet in one step."""


_MOST_REMEMBERED = 100_000
"""Blocks that a chip remembers."""


class Where(NamedTuple):
    """Where an operator's data lies, and what happens to its results.

    Attributes:
        in_far, out_far: in DRAM, not in SRAM.
        in_rows, out_rows: row by row, not in bricks.
        weights: bytes of encoded weights.
        staged: they are brought to the SRAM first.
        more_near, more_far: bytes that are read besides the input, from SRAM and from DRAM.
        constant_channels: of a constant with one value per channel that is read too.
        written_channels: output channels that count as written, where they are not its own.
        speeds: of the output unit for each of its passes, see `Chip`.
    """

    in_far: bool = False
    out_far: bool = False
    in_rows: bool = False
    out_rows: bool = False
    weights: float = 0.0
    staged: bool = False
    more_near: float = 0.0
    more_far: float = 0.0
    constant_channels: int = 0
    written_channels: int = 0
    speeds: tuple[str, ...] = ("plain",)


@dataclass(frozen=True)
class Memory:
    """A memory as seen from the NPU.

    Attributes:
        rate: bytes per cycle.
        read_latency, write_latency: cycles.
        burst: bytes.
        reads, writes: transfers under way, all ports together.
    """

    rate: float
    read_latency: int
    write_latency: int
    burst: int
    reads: int = 0
    writes: int = 0

    def channel(self, words: int | None) -> float:
        """Bytes per cycle through one of the NPU's channels.

        Args:
            words: 16-byte words it can have under way; None for writing.
        """
        if words is None:
            under_way, latency = 0.8 * self.writes, self.write_latency
        else:
            slots = words / max(self.burst // 16, 1)
            under_way, latency = min(slots, 0.8 * self.reads), self.read_latency
        return min(self.rate, 0.8 * self.burst * under_way / latency)


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

    @property
    def new(self) -> bool:
        """Whether it is a U85."""
        return self.array.family == "ethos-u85"

    @classmethod
    def of(cls, target: Target) -> Chip | None:
        """Of a card; None for other hardware and configurations that are not known here."""
        config = target.config
        accelerator = config.get("accelerator", "")
        memories = _MEMORIES.get(config.get("system_config", ""))
        if accelerator not in _CHIPS or memories is None:
            return None
        near, other = memories
        dedicated = config["memory_mode"].startswith("Dedicated_Sram")
        array, speeds, words = _CHIPS[accelerator]
        return cls(array, near, other if dedicated else near, other, speeds, words)

    def cycles(self, work: Work, where: Where) -> float:
        """Cycles of one operator.

        Args:
            work: what is computed.
            where: its data lies.
        """
        block = self._blocks.get(work)
        if block is None:
            if len(self._blocks) >= _MOST_REMEMBERED:
                self._blocks.clear()
            block = self._blocks[work] = choose(work, self.array)
        return max(self._arithmetic(work, where, block), *self._traffic(work, where, block))

    def transfer(self, work: Work, where: Where) -> float:
        """Cycles it takes to bring an operator's weights and scales to the SRAM."""
        unit = self.array.units[0][2] if self.new else BRICK
        size = where.weights + 10 * up(work.ofm[2], unit)
        words = None if self.words is None else self.words["stream"]
        rate = self.constant.rate if words is None else self.constant.channel(words)
        return size / rate + self.constant.read_latency

    # Arithmetic

    def _arithmetic(self, work: Work, where: Where, block: Block) -> float:
        size = _least(work.ofm, block.ofm)
        # Passes joined by "+" run at once, others one after the other.
        per_value = sum(max(self.speeds[s] for s in p.split("+")) for p in where.speeds)
        first, last = self._ends(work, where, block)
        if work.kind in ("elementwise", "resize"):
            ofm = work.ofm if where.out_rows else (*work.ofm[:2], up(work.ofm[2], BRICK))
            ends = max(first, last) if self.new else first + last
            issue = (ends / math.prod(block.ofm) + per_value) / 4
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
        return max(busy, out) * count + min(busy, out) + first + last

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
        return total if self.new else total // self.array.cores

    def _ends(self, work: Work, where: Where, block: Block) -> tuple[float, float]:
        """Cycles until the first block is read, and until the last one is written."""
        source = self.far if where.in_far else self.near
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

    # Traffic

    def _traffic(self, work: Work, where: Where, block: Block) -> list[float]:
        """Cycles that each memory is busy."""
        ifm, ofm = _least(work.ifm, block.ifm), _least(work.ofm, block.ofm)
        counts = [-(-n // b) for n, b in zip(work.ofm, ofm, strict=True)]
        again = counts[0] * counts[1]
        depth = work.ifm[2] if where.in_rows else up(work.ifm[2], BRICK)
        if work.kind in ("elementwise", "resize"):
            fetched: float = work.ifm[0] * work.ifm[1] * depth
        else:
            passes = 1
            if work.kind != "product":
                passes = math.prod(-(-w // SUBKERNEL) for w in work.window)
            deep = 1 if work.kind in ("depthwise", "pool", "copy") else counts[2]
            fetched = float(ifm[0] * ifm[1] * depth * passes * again * deep)
        source = self.far if where.in_far else self.near
        target = self.far if where.out_far else self.near
        read = self._bursts(fetched, source, block.ifm, work.ifm, where.in_rows)
        written = float(work.ofm[0] * work.ofm[1])
        channels = where.written_channels or work.ofm[2]
        written *= channels if where.out_rows else up(channels, BRICK)
        written = self._bursts(written, target, block.ofm, work.ofm, where.out_rows, True)
        loads: list[tuple[Memory, str, float]] = [
            (source, "stream" if work.kind in ("elementwise", "resize") else "input", read),
            (target, "write", written),
            (self.near, "stream", where.more_near),
            (self.far, "stream", where.more_far),
        ]
        if where.constant_channels and not self.new:
            values = float(work.ofm[0] * work.ofm[1] * up(work.ofm[2], BRICK))
            shape = (1, 1, where.constant_channels)
            size = self._bursts(values, self.constant, block.ifm, shape, True)
            loads.append((self.constant, "stream", size))
        if where.weights:
            home = self.near if where.staged else self.constant
            loads.append((home, "weights", where.weights * again))
            scales = 10 * up(work.ofm[2], block.unit[2] if self.new else BRICK)
            loads.append((self.constant if self.new else home, "scales", scales * again))
        return [self._busy(m, loads) for m in {m: None for m, _, _ in loads}]

    def _busy(self, memory: Memory, loads: list[tuple[Memory, str, float]]) -> float:
        own = [(channel, size) for m, channel, size in loads if m is memory]
        total = sum(size for _, size in own) / memory.rate
        if self.words is None:
            return total
        return max(
            total,
            *(
                size / memory.channel(None if name == "write" else self.words[name])
                for name, size in own
            ),
        )

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


_MEMORIES: Mapping[str, tuple[Memory, Memory]] = {
    "Ethos_U55_High_End_Embedded": (Memory(8.0, 32, 32, 32), Memory(1.0, 64, 0, 128)),
    "Ethos_U65_Embedded": (Memory(16.0, 32, 32, 32), Memory(1.0, 64, 0, 128)),
    "Ethos_U65_High_End": (Memory(16.0, 32, 32, 32), Memory(3.75, 500, 250, 128)),
    "Ethos_U85_SYS_DRAM_Mid": (
        Memory(32.0, 32, 32, 64, 16, 16),
        Memory(12.0, 500, 250, 128, 64, 32),
    ),
}
"""System configuration -> SRAM, and the memory behind it."""

_U55_128 = Array("ethos-u55", 1, ((1, 2, 8),), banks=24, input_granule=4, sum_granule=8)
_U55_256 = Array("ethos-u55", 1, ((2, 2, 8),), banks=48, input_granule=8, sum_granule=16)
_U65_512 = Array("ethos-u55", 2, ((2, 2, 8),), banks=48, input_granule=8, sum_granule=16)
_U85_512 = Array(
    "ethos-u85", 2, ((2, 2, 16), (1, 4, 16)),
    input_bytes=16384, sum_bytes=32768, output_bytes=3072, chain_bytes=4096,
)  # fmt: skip
_U85_2048 = Array(
    "ethos-u85", 4, ((2, 2, 64), (1, 4, 64), (4, 4, 16)),
    input_bytes=32768, sum_bytes=131072, output_bytes=12288, chain_bytes=8192,
)  # fmt: skip
_U85_CHANNELS: Mapping[int, Mapping[str, int]] = {
    512: {"stream": 128, "weights": 256, "input": 128, "scales": 16},
    2048: {"stream": 256, "weights": 512, "input": 256, "scales": 16},
}


def _speeds(
    plain: float, clamp: float, table: float, maximum: float, add: float, multiply: float
) -> Mapping[str, float]:
    return {
        "plain": plain, "clamp": clamp, "table": table, "maximum": maximum, "add": add,
        "multiply": multiply,
    }  # fmt: skip


_FAST = _speeds(0.25, 0.25, 1.0, 0.125, 0.75, 0.375)
_CHIPS: Mapping[str, tuple[Array, Mapping[str, float], Mapping[str, int] | None]] = {
    "ethos-u55-128": (_U55_128, _speeds(0.5, 0.5, 1.0, 0.25, 1.5, 0.75), None),
    "ethos-u55-256": (_U55_256, _FAST, None),
    "ethos-u65-256": (_U55_256, _FAST, None),
    "ethos-u65-512": (_U65_512, _speeds(0.125, 0.125, 0.5, 0.0625, 0.375, 0.1875), None),
    "ethos-u85-512": (_U85_512, _speeds(*[0.125] * 6), _U85_CHANNELS[512]),
    "ethos-u85-2048": (
        _U85_2048,
        _speeds(0.03125, 0.03125, 0.0625, 0.03125, 0.03125, 0.03125),
        _U85_CHANNELS[2048],
    ),
}
"""Accelerator -> its inside, speeds of its output unit, words of its channels."""
