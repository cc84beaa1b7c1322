"""Peak memory of a network on an Ethos-U target, without its compiler.

Follows how Vela 5.2 plans memory. With shared SRAM, all activations lie there, next to the encoded
weights that are brought in ahead of use; where that overflows, steps run as cascades. With
dedicated SRAM, activations belong in DRAM and the SRAM is a cache for what is worth it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxnas.cost import Target
from onnxnas.hwmodels.ethos_cascades import Cascade, Cascades, moments, rolling_buffers
from onnxnas.hwmodels.ethos_staging import staged
from onnxnas.hwmodels.ethos_steps import Steps
from onnxnas.hwmodels.ethos_weights import (
    SCALE_BYTES,
    WeightTraffic,
    encoded_bytes,
    weight_buffers,
)
from onnxnas.kernels import Kernel
from onnxnas.memory import Buffer, Peak, peak

_WEIGHT_RATES: Mapping[str, float] = {
    "Ethos_U55_High_End_Embedded": 1.0,
    "Ethos_U65_Embedded": 1.0,
    "Ethos_U65_High_End": 3.75,
    "Ethos_U85_SYS_DRAM_Mid": 8.0,
}
"""System configuration -> bytes per core cycle that weights come in with."""


@dataclass(frozen=True)
class System:
    """What planning needs to know about a target.

    Attributes:
        limit: bytes of SRAM that may be used, or that are aimed at.
        spilling: activations belong in DRAM, the SRAM is a cache.
        chaining: see `Steps`.
        family: ``ethos-u55``, ``ethos-u65`` or ``ethos-u85``.
        weight_rate: bytes per cycle from the memory that holds weights.
        macs_per_cycle: at best.
    """

    limit: int
    spilling: bool
    chaining: bool
    family: str
    weight_rate: float
    macs_per_cycle: int

    @classmethod
    def of(cls, target: Target) -> System:
        """Of an Ethos-U card."""
        config = target.config
        return cls(
            limit=int(config["arena_bytes"]),
            spilling=config["memory_mode"].startswith("Dedicated_Sram"),
            chaining=config["accelerator"].startswith("ethos-u85"),
            family="-".join(config["accelerator"].split("-")[:2]),
            weight_rate=_WEIGHT_RATES.get(config["system_config"], 1.0),
            macs_per_cycle=target.macs_per_cycle,
        )


@dataclass(frozen=True)
class Arrangement:
    """When a network's steps run and where their tensors lie.

    Attributes:
        steps: in order of execution.
        cascades: steps that run stripe by stripe.
        near: feature maps in SRAM.
        far: feature maps in DRAM.
        rolling: buffers inside cascades, in SRAM.
        weights: SRAM for weights, named after what their steps write.
    """

    steps: Steps
    cascades: Sequence[Cascade] = ()
    near: Sequence[Buffer] = ()
    far: Sequence[Buffer] = ()
    rolling: Sequence[Buffer] = ()
    weights: Sequence[Buffer] = ()


def plan(
    graph: Any,
    kernels: Sequence[Kernel],
    system: System,
    cycles: Sequence[float] | None = None,
) -> dict[str, Peak]:
    """Peak use of each memory that holds activations, ``sram`` and, where spilling, ``dram``.

    Args:
        graph: `gs.Graph` with static shapes.
        kernels: its kernels.
        system: the target.
        cycles: expected cycles of each kernel; guessed from work and traffic without.
    """
    found = arrange(graph, kernels, system, cycles)
    near = {"sram": peak([*found.near, *found.rolling, *found.weights])}
    if not system.spilling or not found.steps.steps:
        return near
    return {**near, "dram": peak(found.far)}


def live_bytes(graph: Any, kernels: Sequence[Kernel], system: System) -> list[int]:
    """Bytes in the fuller of the memories that hold activations while each kernel runs.

    Their largest is the largest of `plan` without `cycles`; 0 for kernels without a step.
    """
    found = arrange(graph, kernels, system)
    result = [0] * len(kernels)
    if not found.steps.steps:
        return result
    times = moments(len(found.steps.steps), found.cascades)
    end = times[-1] + 3
    near = _at([*found.near, *found.rolling, *found.weights], end)
    far = _at(found.far, end)
    for i, step in enumerate(found.steps.steps):
        begin = times[i] if i else 0
        until = next((t for t in times[i + 1 :] if t > times[i]), end)
        most = max(max(near[begin:until]), max(far[begin:until]))
        result[step.kernel] = max(result[step.kernel], most)
    return result


def arrange(
    graph: Any,
    kernels: Sequence[Kernel],
    system: System,
    cycles: Sequence[float] | None = None,
) -> Arrangement:
    """Schedule a network and place its tensors; arguments as of `plan`."""
    weights = [encoded_bytes(k, system.family) for k in kernels]
    weights = [
        w + SCALE_BYTES * k.out_channels if w else 0.0
        for w, k in zip(weights, kernels, strict=True)
    ]
    steps = Steps(graph, kernels, system.chaining, weights)
    if not steps.steps:
        return Arrangement(steps)
    times = moments(len(steps.steps), ())
    maps = feature_maps(steps, times)
    costs = _step_cycles(steps, kernels, cycles, system)
    traffic = WeightTraffic(system.weight_rate, system.chaining, system.limit)
    if not system.spilling:
        buffers = weight_buffers(steps, kernels, costs, times, traffic, {})
        if peak([*maps, *buffers]).size <= system.limit:
            return Arrangement(steps, near=maps, weights=buffers)
    live = _live(maps, times)
    sizes = [round(s.weight_bytes) for s in steps.steps]
    cascades = Cascades(steps, system.limit, system.spilling, live, sizes).find()
    times = moments(len(steps.steps), cascades)
    rolling = rolling_buffers(steps, cascades, times)
    skipped = {b.name for b in rolling}
    maps = [b for b in feature_maps(steps, times, cascades) if b.name not in skipped]
    held = _at(rolling if system.spilling else [*rolling, *maps], times[-1] + 3)
    buffers = weight_buffers(
        steps, kernels, costs, times, traffic, {i: held[t] for i, t in enumerate(times)}, cascades
    )
    if not system.spilling:
        return Arrangement(steps, cascades, maps, (), rolling, buffers)
    near, far = staged(steps, maps, [*rolling, *buffers], cascades, times, system.limit)
    return Arrangement(steps, cascades, near, far, rolling, buffers)


def feature_maps(
    steps: Steps, times: Sequence[int], cascades: Sequence[Cascade] = ()
) -> list[Buffer]:
    """Buffers of all activations; a step at moment t keeps what it touches until t + 1."""
    readers, writers = steps.readers(), steps.writers()
    inside = {i for c in cascades for i in range(c.first, c.last + 1)}
    shared: dict[str, str] = {}

    def held(name: str) -> str:
        while name in shared:
            name = shared[name]
        return name

    spans: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for i, (step, time) in enumerate(zip(steps.steps, times, strict=True)):
        target = step.writes[0]
        alone = writers[target] == 1 and i not in inside
        if step.elementwise and step.op != "PRelu" and alone:  # a PRelu reads its input twice
            for name in step.reads:
                if (
                    name != target
                    and readers[name] == 1
                    and name not in steps.outputs
                    and steps.size(name) == steps.size(target)
                    and steps.bricks(name) == steps.bricks(target)
                ):
                    shared[target] = name
                    break
        for name in (*step.reads, *step.writes):
            place = held(name)
            span = spans.setdefault(place, [time, time + 1])
            span[0] = 0 if name in steps.inputs else min(span[0], time)
            span[1] = max(span[1], time + 1)
            sizes[place] = max(sizes.get(place, 0), steps.size(name))
    for name in steps.outputs:
        if held(name) in spans:
            spans[held(name)][1] = times[-1] + 2
    return [Buffer(name, sizes[name], a, b) for name, (a, b) in spans.items()]


def _step_cycles(
    steps: Steps, kernels: Sequence[Kernel], cycles: Sequence[float] | None, system: System
) -> list[float]:
    """Cycles of each step: its kernel's, or from work and traffic alone."""
    found: list[float] = []
    seen: set[int] = set()
    for step in steps.steps:
        kernel = kernels[step.kernel]
        moved = (kernel.in_bytes + kernel.out_bytes) / 8
        if step.kernel in seen:  # an elementwise step at its end
            found.append(moved)
        elif cycles is not None and not math.isnan(cycles[step.kernel]):
            found.append(float(cycles[step.kernel]))
        else:
            found.append(max(_work(kernel) / system.macs_per_cycle, moved))
        seen.add(step.kernel)
    return found


def _work(kernel: Kernel) -> float:
    """Multiply-accumulates, as many more as the array leaves idle."""
    if kernel.op == "GlobalAveragePool":
        return 8.0 * kernel.in_bytes
    return (8.0 if kernel.op == "DepthwiseConv" else 1.3) * kernel.macs


def _live(maps: Sequence[Buffer], times: Sequence[int]) -> list[int]:
    alive = _at(maps, times[-1] + 3)
    return [alive[t] for t in times]


def _at(buffers: Sequence[Buffer], count: int) -> list[int]:
    """Bytes alive at each moment."""
    change = [0] * (count + 1)
    for b in buffers:
        change[max(0, b.start)] += b.size
        change[min(count, b.end + 1)] -= b.size
    alive, now = [], 0
    for c in change[:count]:
        now += c
        alive.append(now)
    return alive
