"""Which activations of a DRAM target are kept in its SRAM cache.

Tensors inside cascades are there as rolling buffers. Of the others, those that fit together with
everything else are kept, and where several compete, the set that is accessed most.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from onnxnas.hwmodels.ethos_cascades import Cascade
from onnxnas.hwmodels.ethos_steps import Steps
from onnxnas.memory import Buffer

_MOST = 1e12
_LARGEST_GROUP = 20
"""Tensors that compete with each other are decided on together, in groups up to this."""


def eligible(steps: Steps, cascades: Sequence[Cascade]) -> set[str]:
    """Tensors that could be kept in SRAM: made by the NPU, outside of cascades, and for it."""
    inside = {i for c in cascades for i in range(c.first, c.last + 1)}
    made = {
        name
        for i, step in enumerate(steps.steps)
        if i not in inside and not step.on_cpu
        for name in step.writes
    }
    cpu = {name for step in steps.steps if step.on_cpu for name in step.reads}
    return {t for t in made if steps.readers().get(t)} - cpu - steps.inputs - steps.outputs


def staged(
    steps: Steps,
    candidates: Sequence[Buffer],
    places: Mapping[str, str],
    fixed: Sequence[Buffer],
    cascades: Sequence[Cascade],
    times: Sequence[int],
    limit: int,
    accesses: Mapping[str, float],
) -> set[str]:
    """Tensors that are kept in SRAM.

    Args:
        steps: the schedule.
        candidates: buffers of `eligible` tensors.
        places: buffer of each of those.
        fixed: buffers that are in the SRAM whatever happens.
        cascades: of the schedule.
        times: moment of each step.
        limit: bytes of the SRAM.
        accesses: values of each tensor that are read and written.
    """
    on_cpu = [time for step, time in zip(steps.steps, times, strict=True) if step.on_cpu]
    end = times[-1] + 3
    least, most = [0] * end, [0] * end
    for buffer in fixed:
        _add(least, buffer, 1)
    most = list(least)
    for buffer in candidates:
        _add(most, buffer, 1)
    kept, open_ = set[str](), []
    for buffer in candidates:
        crosses = any(buffer.start <= time <= buffer.end for time in on_cpu)
        if crosses or _highest(least, buffer) + buffer.size > limit:
            _add(most, buffer, -1)
        else:
            open_.append(buffer)
    competing = []
    for buffer in open_:
        if _highest(most, buffer) <= limit:
            kept.add(buffer.name)
            _add(least, buffer, 1)
        else:
            competing.append(buffer)
    scores = _scores(steps, competing, places, cascades, accesses)
    for group in _groups(competing):
        chosen = _Choice(group, scores, least, most, limit).best()
        for buffer in group:
            if buffer.name in chosen:
                kept.add(buffer.name)
                _add(least, buffer, 1)
            else:
                _add(most, buffer, -1)
    inside = {i for c in cascades for i in range(c.first + 1, c.last + 1)}
    return _elementwise_together(steps, {t for t, place in places.items() if place in kept}, inside)


def _scores(
    steps: Steps,
    competing: Sequence[Buffer],
    places: Mapping[str, str],
    cascades: Sequence[Cascade],
    accesses: Mapping[str, float],
) -> dict[str, float]:
    """What each buffer is worth; most where it is read inside a cascade."""
    within = {
        t for c in cascades for i in range(c.first + 1, c.last + 1) for t in steps.steps[i].reads
    }
    scores = {b.name: 0.0 for b in competing}
    for name, place in places.items():
        if place in scores:
            scores[place] += _MOST if name in within else accesses.get(name, 0.0)
    return scores


def _groups(competing: Sequence[Buffer]) -> list[list[Buffer]]:
    """Tensors that are alive one after another without a gap."""
    groups: list[list[Buffer]] = []
    end = -1
    for buffer in sorted(competing, key=lambda b: b.start):
        if groups and buffer.start <= end and len(groups[-1]) <= _LARGEST_GROUP:
            groups[-1].append(buffer)
            end = max(end, buffer.end)
        else:
            groups.append([buffer])
            end = buffer.end
    return groups


class _Choice:
    """The subset of a group with the highest score that fits (branch and bound)."""

    def __init__(
        self,
        group: Sequence[Buffer],
        scores: dict[str, float],
        least: Sequence[int],
        most: Sequence[int],
        limit: int,
    ) -> None:
        self._group, self._scores = group, scores
        self._least, self._most, self._limit = list(least), list(most), limit
        self._rest = [0.0] * (len(group) + 1)
        for i in range(len(group) - 1, -1, -1):
            self._rest[i] = self._rest[i + 1] + scores[group[i].name]
        self._score, self._chosen = -1.0, frozenset[str]()

    def best(self) -> frozenset[str]:
        self._search(0, 0.0, frozenset())
        return self._chosen

    def _search(self, i: int, score: float, chosen: frozenset[str]) -> None:
        if score + self._rest[i] <= self._score:
            return
        if i == len(self._group):
            self._score, self._chosen = score, chosen
            return
        buffer = self._group[i]
        always = False
        if _highest(self._least, buffer) + buffer.size <= self._limit:
            always = _highest(self._most, buffer) <= self._limit
            _add(self._least, buffer, 1)
            self._search(i + 1, score + self._scores[buffer.name], chosen | {buffer.name})
            _add(self._least, buffer, -1)
        if not always:
            _add(self._most, buffer, -1)
            self._search(i + 1, score, chosen)
            _add(self._most, buffer, 1)


def _elementwise_together(steps: Steps, near: set[str], inside: Collection[int]) -> set[str]:
    """An elementwise step with one input in DRAM gains nothing from the other in SRAM.

    Args:
        steps: the schedule.
        near: tensors in SRAM.
        inside: steps whose first input comes through a cascade.
    """
    others = {name for step in steps.steps for name, by in step.takers if not by.arithmetic}
    for i, step in enumerate(steps.steps):
        if not step.on_cpu and i not in inside and not near.issuperset(step.reads):
            near = near - (set(step.reads) - others)
    return near


def _highest(levels: Sequence[int], buffer: Buffer) -> int:
    return max(levels[max(0, buffer.start) : buffer.end + 1])


def _add(levels: list[int], buffer: Buffer, sign: int) -> None:
    for t in range(max(0, buffer.start), min(len(levels), buffer.end + 1)):
        levels[t] += sign * buffer.size
