"""Sizes and speeds of the Ethos-U targets and of the memories around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxnas.hwmodels.ethos_array import Array


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


MEMORIES: Mapping[str, tuple[Memory, Memory]] = {
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
ACCELERATORS: Mapping[str, tuple[Array, Mapping[str, float], Mapping[str, int] | None]] = {
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
