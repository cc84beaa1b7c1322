"""Which activations of a DRAM target are kept in its SRAM cache.

Tensors inside cascades are there as rolling buffers. Of the others, those that fit together with
everything else are kept, and where several compete, the set that is accessed most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from onnxnas.hwmodels.ethos_cascades import Cascade
from onnxnas.hwmodels.ethos_steps import Steps
from onnxnas.memory import Buffer

_LARGEST_GROUP = 20
"""Tensors that compete with each other are decided on together, in groups up to this."""


def staged(
    steps: Steps,
    maps: Sequence[Buffer],
    fixed: Sequence[Buffer],
    cascades: Sequence[Cascade],
    times: Sequence[int],
    limit: int,
) -> tuple[list[Buffer], list[Buffer]]:
    """Activations that are kept in SRAM, and those left in DRAM.

    Args:
        steps: the schedule.
        maps: buffers of activations, cascades' insides left out.
        fixed: buffers that are in the SRAM whatever happens.
        cascades: of the schedule.
        times: moment of each step.
        limit: bytes of the SRAM.
    """
    inside = {i for c in cascades for i in range(c.first, c.last + 1)}
    from_cascade = {t for i in inside for t in steps.steps[i].writes}
    into_cascade = {
        t for c in cascades for i in range(c.first + 1, c.last + 1) for t in steps.steps[i].reads
    }
    on_cpu = [time for step, time in zip(steps.steps, times, strict=True) if step.on_cpu]
    written = {t for step in steps.steps if not step.on_cpu for t in step.writes}
    candidates, far = [], []
    for buffer in maps:
        crosses = any(buffer.start <= time <= buffer.end for time in on_cpu)
        edge = buffer.name in steps.inputs or buffer.name in steps.outputs
        if edge or crosses or buffer.name in from_cascade or buffer.name not in written:
            far.append(buffer)
        else:
            candidates.append(buffer)
    end = times[-1] + 3
    least, most = [0] * end, [0] * end
    for buffer in fixed:
        _add(least, buffer, 1)
    most = list(least)
    for buffer in candidates:
        _add(most, buffer, 1)
    kept, open_ = [], []
    for buffer in candidates:
        if _highest(least, buffer) + buffer.size > limit:
            far.append(buffer)
            _add(most, buffer, -1)
        else:
            open_.append(buffer)
    competing = []
    for buffer in open_:
        if _highest(most, buffer) <= limit:
            kept.append(buffer)
            _add(least, buffer, 1)
        else:
            competing.append(buffer)
    readers: Counter[str] = Counter()
    for step in steps.steps:  # a PRelu reads its input twice
        readers.update({name: 2 if step.op == "PRelu" else 1 for name in step.reads})
    scores = {
        b.name: 1e12 if b.name in into_cascade else float(b.size) * (1 + readers[b.name])
        for b in competing
    }
    for group in _groups(competing):
        chosen = _Choice(group, scores, least, most, limit).best()
        for buffer in group:
            (kept if buffer.name in chosen else far).append(buffer)
            if buffer.name in chosen:
                _add(least, buffer, 1)
            else:
                _add(most, buffer, -1)
    return _elementwise_together(steps, kept, far)


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


def _elementwise_together(
    steps: Steps, kept: list[Buffer], far: list[Buffer]
) -> tuple[list[Buffer], list[Buffer]]:
    """An elementwise step with one input in DRAM gains nothing from the other in SRAM."""
    near = {b.name: b for b in kept}
    readers: dict[str, list[bool]] = {}
    for step in steps.steps:
        for name in step.reads:
            readers.setdefault(name, []).append(step.elementwise and step.op != "PRelu")
    away = {b.name for b in far}
    for step in steps.steps:
        if any(name in away for name in step.reads):
            for name in step.reads:
                if name in near and all(readers[name]):
                    far.append(near.pop(name))
                    away.add(name)
    return list(near.values()), far


def _highest(levels: Sequence[int], buffer: Buffer) -> int:
    return max(levels[max(0, buffer.start) : buffer.end + 1])


def _add(levels: list[int], buffer: Buffer, sign: int) -> None:
    for t in range(max(0, buffer.start), min(len(levels), buffer.end + 1)):
        levels[t] += sign * buffer.size
