"""Peak memory of a network on an Ethos-U target, without its compiler.

Follows how Vela 5.2 plans memory. With shared SRAM, all activations lie there, next to the encoded
weights that are brought in ahead of use; where that overflows, steps run as cascades. With
dedicated SRAM, activations belong in DRAM and the SRAM is a cache for what is worth it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from onnxnas.cost import Target
from onnxnas.hwmodels.ethos_cascades import Cascade, Cascades, moments, rolling_buffers
from onnxnas.hwmodels.ethos_cycles import Chip
from onnxnas.hwmodels.ethos_schedule import Costs
from onnxnas.hwmodels.ethos_staging import eligible, staged
from onnxnas.hwmodels.ethos_steps import Steps
from onnxnas.hwmodels.ethos_weights import encoded_bytes
from onnxnas.kernels import Kernel
from onnxnas.memory import Buffer, Peak, peak


@dataclass(frozen=True)
class System:
    """What planning needs to know about a target.

    Attributes:
        chip: how the NPU works.
        limit: bytes of SRAM that may be used, or that are aimed at.
        spilling: activations belong in DRAM, the SRAM is a cache.
        family: ``ethos-u55``, ``ethos-u65`` or ``ethos-u85``.
    """

    chip: Chip
    limit: int
    spilling: bool
    family: str

    @classmethod
    def of(cls, target: Target) -> System | None:
        """Of an Ethos-U card; None for other hardware and configurations not known here."""
        chip = Chip.of(target)
        if chip is None:
            return None
        config = target.config
        return cls(
            chip=chip,
            limit=int(config["arena_bytes"]),
            spilling=config["memory_mode"].startswith("Dedicated_Sram"),
            family="-".join(config["accelerator"].split("-")[:2]),
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
        cycles: of each kernel, by the compiler's rules; 0 where they are not known.
        left: tensors in DRAM.
    """

    steps: Steps
    cascades: Sequence[Cascade] = ()
    near: Sequence[Buffer] = ()
    far: Sequence[Buffer] = ()
    rolling: Sequence[Buffer] = ()
    weights: Sequence[Buffer] = ()
    cycles: Sequence[float] = ()
    left: Collection[str] = ()


def plan(found: Arrangement) -> dict[str, Peak]:
    """Peak use of each memory that holds activations, ``sram`` and, where spilling, ``dram``."""
    near = {"sram": peak([*found.near, *found.rolling, *found.weights])}
    if not found.left:
        return near
    return {**near, "dram": peak(found.far)}


def live_bytes(found: Arrangement, count: int) -> list[int]:
    """Bytes in the fuller of the memories that hold activations while each kernel runs.

    Their largest is the largest of `plan`; 0 for kernels without a step.

    Args:
        found: of a network.
        count: of its kernels.
    """
    result = [0] * count
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


def arrange(graph: Any, kernels: Sequence[Kernel], system: System) -> Arrangement:
    """Schedule a network and place its tensors.

    Args:
        graph: `gs.Graph` with static shapes.
        kernels: its kernels.
        system: the target.
    """
    chip = system.chip
    weights = [encoded_bytes(k, system.family) for k in kernels]
    steps = Steps(graph, kernels, chip.new, weights)
    if not steps.steps:
        return Arrangement(steps, cycles=[0.0] * len(kernels))
    times = moments(len(steps.steps), ())
    maps, _ = feature_maps(steps, times, (), steps.tensors())
    live = _live(maps, times)
    if not system.spilling:
        costs = Costs(chip, steps, kernels)
        brought = costs.weights(times, live, system.limit, False)
        if peak([*maps, *brought.buffers]).size <= system.limit:
            cycles = costs.cycles((), brought)
            return Arrangement(steps, (), maps, (), (), brought.buffers, cycles)
    cascades = _cascades(steps, kernels, system, live)
    times = moments(len(steps.steps), cascades)
    rolling = rolling_buffers(steps, cascades, times)
    skipped = {b.name for b in rolling}
    maps, _ = feature_maps(steps, times, cascades, steps.tensors() - skipped)
    taken = _live(rolling if system.spilling else [*rolling, *maps], times)
    costs = Costs(chip, steps, kernels, cascades)
    brought = costs.weights(times, taken, system.limit, system.spilling)
    if not system.spilling:
        cycles = costs.cycles((), brought)
        return Arrangement(steps, cascades, maps, (), rolling, brought.buffers, cycles)
    wanted = eligible(steps, cascades)
    candidates, places = feature_maps(steps, times, cascades, wanted)
    fixed = [*rolling, *brought.buffers]
    kept = staged(steps, candidates, places, fixed, cascades, times, system.limit, costs.accesses())
    near, _ = feature_maps(steps, times, cascades, kept)
    left = steps.tensors() - kept - skipped
    far, _ = feature_maps(steps, times, cascades, left)
    cycles = costs.cycles(left, brought)
    return Arrangement(steps, cascades, near, far, rolling, brought.buffers, cycles, left)


def feature_maps(
    steps: Steps, times: Sequence[int], cascades: Sequence[Cascade], names: Collection[str]
) -> tuple[list[Buffer], dict[str, str]]:
    """Buffers of tensors of one memory; a step at moment t keeps what it touches until t + 1.

    Args:
        steps: the schedule.
        times: moment of each step.
        cascades: of the schedule.
        names: the tensors.

    Returns:
        Buffers, and the name of the buffer that each tensor is in: an elementwise step may write
        over what it reads.
    """
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
        if step.elementwise and step.op != "PRelu" and alone and target in names:
            for name in step.reads:  # a PRelu reads its input twice
                if (
                    name != target
                    and name in names
                    and readers[name] == 1
                    and name not in steps.outputs
                    and steps.size(name) == steps.size(target)
                    and steps.bricks(name) == steps.bricks(target)
                ):
                    shared[target] = name
                    break
        for name in (*step.reads, *step.writes):
            if name not in names:
                continue
            place = held(name)
            span = spans.setdefault(place, [time, time + 1])
            span[0] = 0 if name in steps.inputs else min(span[0], time)
            span[1] = max(span[1], time + 1)
            sizes[place] = max(sizes.get(place, 0), steps.size(name))
    for name in steps.outputs:
        if held(name) in spans:
            spans[held(name)][1] = times[-1] + 2
    buffers = [Buffer(name, sizes[name], a, b) for name, (a, b) in spans.items()]
    return buffers, {name: held(name) for name in names}


def _cascades(
    steps: Steps, kernels: Sequence[Kernel], system: System, live: Sequence[int]
) -> list[Cascade]:
    """Cascades with as high stripes as fit beside the weights that are brought for them."""
    finder = Cascades(steps, system.limit, system.spilling, live)
    lowest = finder.lowest()
    if not lowest:
        return []
    taken = _live(_held(steps, lowest, system.spilling), moments(len(steps.steps), lowest))
    costs = Costs(system.chip, steps, kernels, lowest)
    free = [system.limit - size for size in taken]
    found: list[Cascade] = []
    for cascade in lowest:
        first = cascade.first
        weights = costs.whole(cascade, free[first], free[max(0, first - 1)], system.spilling)
        found += finder.improved(cascade, weights)
    return found


def _held(steps: Steps, cascades: Sequence[Cascade], spilling: bool) -> list[Buffer]:
    """What is in the SRAM whatever is brought to it."""
    times = moments(len(steps.steps), cascades)
    rolling = rolling_buffers(steps, cascades, times)
    if spilling:
        return rolling
    names = steps.tensors() - {b.name for b in rolling}
    return [*rolling, *feature_maps(steps, times, cascades, names)[0]]


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
