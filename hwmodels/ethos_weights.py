"""Encoded weights on Ethos-U: how large they become, and when they are brought to the SRAM.

The NPU streams weights through a Golomb-Rice decoder. The encoder pads channels and window
elements to what the hardware works on at once, and each piece carries a header; the constants
below were fitted to sizes that Vela 5.2 reported for 60 sampled networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxnas.hwmodels.ethos_cascades import Cascade
from onnxnas.hwmodels.ethos_steps import BRICK, Steps
from onnxnas.kernels import Kernel
from onnxnas.memory import Buffer

SCALE_BYTES = 10
"""Bias, multiplier and shift of one output channel."""

_SIZES: Mapping[tuple[str, str], tuple[float, float, float, float]] = {
    ("ethos-u55", "depthwise"): (1.111, 0.125, 0.121, 19.2),
    ("ethos-u55", "pointwise"): (1.090, 0.041, 0.075, 28.7),
    ("ethos-u55", "window"): (1.116, 0.079, 0.104, 15.3),
    ("ethos-u65", "depthwise"): (1.097, 0.182, 0.258, 55.4),
    ("ethos-u65", "pointwise"): (1.098, 0.032, 0.094, 73.7),
    ("ethos-u65", "window"): (1.113, 0.086, 0.259, 58.1),
    ("ethos-u85", "depthwise"): (1.185, 0.006, 0.265, 75.5),
    ("ethos-u85", "pointwise"): (1.147, 0.066, 0.172, 146.2),
    ("ethos-u85", "window"): (1.117, 0.096, 0.313, 102.2),
}
"""Family and kind of kernel -> bytes per byte of Golomb-Rice code; the same for the padding of
input channels and window, and for that of output channels, relative to the code; bytes each."""

_POOLING: Mapping[str, float] = {"ethos-u55": 0.127, "ethos-u65": 0.130, "ethos-u85": 0.190}
"""A global average is a depthwise convolution with equal weights: bytes for each of them."""

_FEW_PIXELS = 64
"""Outputs up to this are made in one go, so their weights are read once."""


@dataclass(frozen=True)
class WeightTraffic:
    """How a target brings weights to its SRAM.

    Attributes:
        rate: bytes per cycle from where the weights are kept.
        hidden_only: it does so only behind the step before (Ethos-U85).
        limit: bytes of the SRAM.
    """

    rate: float
    hidden_only: bool
    limit: int


def encoded_bytes(kernel: Kernel, family: str) -> float:
    """Estimated size of a kernel's encoded weights, biases and scales left out.

    Counts the weights that averaging over a whole map is done with.

    Args:
        kernel: any kernel.
        family: ``ethos-u55``, ``ethos-u65`` or ``ethos-u85``.
    """
    window = kernel.window[0] * kernel.window[1]
    if kernel.op == "GlobalAveragePool":
        return _POOLING[family] * _up(kernel.in_channels, 8) * window
    if not kernel.weights:
        return 0.0
    inner = kernel.in_channels / kernel.groups
    block = 64 if family == "ethos-u85" else 32
    if kernel.op == "DepthwiseConv":
        kind, padding = "depthwise", _up(window, 4) / window
    elif window == 1:
        kind, padding = "pointwise", _up(inner, block) / inner
    else:
        kind = "window"
        padding = min(_up(inner, block) / inner, _up(inner, 8) / inner * _up(window, 4) / window)
    code, inside, outside, header = _SIZES[family, kind]
    rounded = _up(kernel.out_channels, 16) / kernel.out_channels
    return kernel.weight_bytes * (code + inside * (padding - 1) + outside * (rounded - 1)) + header


def weight_buffers(
    steps: Steps,
    kernels: Sequence[Kernel],
    cycles: Sequence[float],
    times: Sequence[int],
    traffic: WeightTraffic,
    held: Mapping[int, int],
    cascades: Sequence[Cascade] = (),
) -> list[Buffer]:
    """SRAM for encoded weights, filled while the step before runs.

    Whole where that step is long enough, else in two parts that take turns; not at all where
    weights are read once and bringing them takes longer than the step itself.

    Args:
        steps: the schedule.
        kernels: of the network.
        cycles: expected cycles of each step.
        times: moment of each step.
        traffic: of the target.
        held: bytes of the SRAM that are taken while a step runs.
        cascades: steps inside one take their weights whole or not at all.
    """
    made: list[Buffer] = []
    start_of = {i: c.first for c in cascades for i in range(c.first, c.last + 1)}
    taken = dict(held)
    slack = 0.0
    for i, step in enumerate(steps.steps):
        before, slack = slack, cycles[i]
        if not step.weighted or step.weight_bytes <= 0:
            continue
        kernel, time = kernels[step.kernel], times[i]
        transfer = step.weight_bytes / traffic.rate
        if not _worth_it(kernel, cycles[i], before, transfer, traffic):
            continue
        free = traffic.limit - taken.get(i, 0)
        parts: tuple[int, ...]
        if i in start_of:
            parts = (round(step.weight_bytes),)
        else:
            parts = _parts(step.weight_bytes, kernel.out_channels, cycles[i], before, transfer)
            own = sum(steps.size(t) for t in (*step.reads, *step.writes))
            room = free - own if own < free / 2 else free
            if sum(parts) > room:
                half = min(room // 2, parts[0])
                parts = (half, half)
        if sum(parts) > free or parts[0] <= 0:
            continue
        first = i and start_of.get(i, i) == i and parts[0] < traffic.limit - taken.get(i - 1, 0)
        name = f"weights of {step.writes[0]}"
        made.append(Buffer(name, parts[0], time - 1 if first else time, time + 1))
        if len(parts) == 2:
            made.append(Buffer(name, parts[1], time, time + 1))
            slack = cycles[i] * parts[1] / step.weight_bytes
        for j in range(start_of.get(i, i), len(times)):
            if times[j] != time:
                break
            taken[j] = taken.get(j, 0) + sum(parts)
    return made


def _worth_it(
    kernel: Kernel, own: float, slack: float, transfer: float, traffic: WeightTraffic
) -> bool:
    if traffic.hidden_only:
        return slack >= 0.9 * transfer and own >= 1.3 * transfer
    return kernel.out_height * kernel.out_width > _FEW_PIXELS or own > 1.15 * transfer


def _parts(size: float, depth: int, own: float, slack: float, transfer: float) -> tuple[int, ...]:
    """Bytes of the one or two pieces of a weight that are in the SRAM together."""
    least = min(1.0, BRICK / depth)
    share = min(1.0, slack / transfer)
    if 1.0 - math.floor(share / least) * least < least / 2 or least >= 1.0:
        return (round(size),)
    first = max(BRICK, int(depth * share) // BRICK * BRICK) / depth
    later = min(1.0 - first, _up(depth * own * first / transfer, BRICK) / depth)
    more = math.ceil((1 - first) / later) > 1
    return round(max(first, later if more else 0.0) * size), round(later * size)


def _up(value: float, step: int) -> float:
    return math.ceil(value / step) * step
