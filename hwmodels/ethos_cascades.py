"""Cascades: steps that hand each other stripes of rows through small rolling buffers.

Where tensors do not fit the memory they are meant for, Vela runs several steps stripe by stripe,
so that what lies between them is never stored whole. Which steps, and how high the stripes are,
follows from the sizes of the tensors and the memory; this repeats that decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxnas.hwmodels.ethos_array import BRICK
from onnxnas.hwmodels.ethos_step import Step
from onnxnas.hwmodels.ethos_steps import Steps
from onnxnas.memory import Buffer

_CASCADABLE = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "PRelu"})
_ENLARGING = frozenset({"Resize", "Upsample"})


@dataclass(frozen=True)
class Cascade:
    """Steps `first` to `last`, run stripe by stripe.

    Attributes:
        rolling: bytes of the buffer in front of each step but the first.
        size: bytes it was judged to need, with what lives beside it.
        stripes: output rows that each step makes at once.
    """

    first: int
    last: int
    rolling: Mapping[int, int]
    size: int
    stripes: Mapping[int, int]


class Cascades:
    """Finds the cascades of a schedule.

    Args:
        steps: the schedule.
        limit: bytes of the memory stripes go through.
        spilling: tensors live in another memory, and stripes are what keeps them out of it;
            otherwise all share this memory and cascades are made where it overflows.
        live: per step, bytes alive while it runs, were nothing cascaded.
    """

    def __init__(
        self,
        steps: Steps,
        limit: int,
        spilling: bool,
        live: Sequence[int],
    ) -> None:
        self._steps, self._list = steps, steps.steps
        self._limit, self._spilling = limit, spilling
        self._live = live
        self._readers, self._writers = steps.readers(), steps.writers()
        self._spans = _last_reads(self._list)

    def lowest(self) -> list[Cascade]:
        """The cascades with the lowest stripes, in order."""
        stripes = [self._least(i) for i in range(len(self._list))]
        return self._build(0, len(self._list), stripes, None)

    def improved(self, cascade: Cascade, weights: Mapping[int, int]) -> list[Cascade]:
        """The same steps with the highest stripes that still fit.

        Args:
            cascade: with the lowest stripes.
            weights: per step, bytes of weights that are brought for it whole.
        """
        rows = self._rows(cascade.last)
        best: list[Cascade] | None = None
        most = 0
        height = self._least(cascade.last) + 1
        beside = max(0, self._live_beside(cascade))
        while height <= (rows + 1) // 2:
            stripes = [0] * len(self._list)
            stripe = height
            for i in range(cascade.last, cascade.first - 1, -1):
                step = self._list[i]
                stripes[i] = _up(stripe, step.enlarges)
                stripe = stripes[i] // step.enlarges * step.stride
            found = self._build(cascade.first, cascade.last + 1, stripes, weights)
            most = most or len(found)
            inside = {i for c in found for i in range(c.first, c.last + 1)}
            alone = [
                self._alone(i) + beside
                for i in range(cascade.first, cascade.last + 1)
                if i not in inside
            ]
            if max([c.size for c in found] + alone, default=0) > self._limit or len(found) > most:
                break
            best = found
            if not found:
                break
            height += 1
        return [cascade] if best is None else best

    def _live_beside(self, cascade: Cascade) -> int:
        if self._spilling:
            return 0
        return self._live[cascade.first] - self._local(cascade.first)

    def _build(
        self, first: int, end: int, stripes: Sequence[int], weights: Mapping[int, int] | None
    ) -> list[Cascade]:
        found: list[Cascade] = []
        peak = self._limit
        i = first
        while i < end:
            if not self._cascadable(i, stripes[i]):
                peak = peak if self._spilling else max(peak, self._live[i])
                i += 1
                continue
            cascade = self._grow(i, end, stripes, weights, peak)
            if cascade is None:
                peak = peak if self._spilling else max(peak, self._live[i])
                i += 1
            else:
                found.append(cascade)
                peak = peak if self._spilling else max(peak, cascade.size)
                i = cascade.last + 1
        return found

    def _grow(
        self,
        start: int,
        end: int,
        stripes: Sequence[int],
        weights: Mapping[int, int] | None,
        peak: int,
    ) -> Cascade | None:
        source = self._list[start].reads[0]
        stored = 0 if self._spilling else self._steps.size(source)
        source_end = self._spans.get(source, -1)
        buffers = (weights or {}).get(start, 0)
        beside = 0 if self._spilling else max(0, self._live[start] - self._local(start))
        best, best_size, best_rolling = start, self._live[start], {}
        rolling: dict[int, int] = {}
        i = start
        while i + 1 < end and self._linked(i, i + 1, stripes[i + 1]):
            i += 1
            rolling[i] = self._rolling(i - 1, i, stripes)
            again = self._in_place(i - 1) and rolling[i] == rolling.get(i - 1)
            buffers += (0 if again else rolling[i]) + (weights or {}).get(i, 0)
            if self._spilling:
                if self._alone(i) < peak or buffers > peak:
                    break
                best, best_size, best_rolling = i, buffers, dict(rolling)
                continue
            other = max(0, self._live[i] - self._local(i))
            beside = max(beside, other - (self._steps.size(source) if i <= source_end else 0))
            whole = stored + buffers + self._steps.size(self._list[i].writes[0]) + beside
            if whole < best_size or whole < self._live[i]:
                best, best_size, best_rolling = i, whole, dict(rolling)
            fits = self._live[i] < peak and best_size < peak
            if fits or stored + beside + buffers > best_size:
                break
        if best == start:
            return None
        rows = {i: stripes[i] for i in range(start, best + 1)}
        return Cascade(start, best, best_rolling, best_size, rows)

    def _cascadable(self, i: int, stripe: int) -> bool:
        step = self._list[i]
        kind = step.op in _CASCADABLE or step.arithmetic
        kind = kind or (step.op in _ENLARGING and step.enlarges > 1)
        return (
            kind
            and bool(step.reads)
            and not step.on_cpu
            and not step.chained
            and stripe < self._rows(i)
        )

    def _linked(self, i: int, j: int, stripe: int) -> bool:
        """Whether step j can take what step i writes stripe by stripe."""
        link, reads = self._list[i].writes[0], self._list[j].reads
        return (
            self._cascadable(j, stripe)
            and link in reads
            and self._stripable(link)
            and self._stripable(reads[0])
        )

    def _stripable(self, name: str) -> bool:
        """Whether a tensor may exist only in stripes: one writer, one reader, in bricks."""
        edge = name in self._steps.outputs or name in self._steps.inputs
        alone = self._readers[name] == 1 and self._writers.get(name) == 1
        return alone and not edge and self._steps.bricks(name) and self._steps.whole(name)

    def _rolling(self, i: int, j: int, stripes: Sequence[int]) -> int:
        link = self._list[i].writes[0]
        shape = self._steps.flow.shapes[link]
        step = self._list[j]
        needed = min(-(-((stripes[j] - 1) * step.stride + step.rows) // step.enlarges), shape[2])
        return _up(stripes[i] + needed, needed) * shape[3] * _up(shape[1], BRICK)

    def _least(self, i: int) -> int:
        """The lowest stripe: what the next step advances by."""
        stride = self._list[i + 1].stride if i + 1 < len(self._list) else 1
        return _up(stride, self._list[i].enlarges)

    def _rows(self, i: int) -> int:
        shape = self._steps.flow.shapes[self._list[i].writes[0]]
        return shape[2] if len(shape) == 4 else 1

    def _alone(self, i: int) -> int:
        """Bytes a step reads and writes, whole."""
        step = self._list[i]
        own = self._steps.size(step.reads[0])
        return own if self._in_place(i) else own + self._steps.size(step.writes[0])

    def _in_place(self, i: int) -> bool:
        """Whether an elementwise step can write over its first input."""
        step = self._list[i]
        source, target = step.reads[0], step.writes[0]
        return (
            step.arithmetic
            and source not in self._steps.outputs
            and self._readers[source] == 1
            and self._writers[target] == 1
            and self._steps.size(source) == self._steps.size(target)
        )

    def _local(self, i: int) -> int:
        step = self._list[i]
        return self._alone(i) if step.reads else self._steps.size(step.writes[0])


def moments(count: int, cascades: Sequence[Cascade]) -> list[int]:
    """When each step runs: two moments a step, those of a cascade at once."""
    inside = {i: c.first for c in cascades for i in range(c.first, c.last + 1)}
    times, now = [], -2
    for i in range(count):
        if inside.get(i, i) == i:
            now += 2
        times.append(now)
    return times


def rolling_buffers(
    steps: Steps, cascades: Sequence[Cascade], times: Sequence[int]
) -> list[Buffer]:
    """The buffers inside cascades."""
    return [
        Buffer(steps.steps[i].reads[0], size, times[i], times[i] + 1)
        for c in cascades
        for i, size in c.rolling.items()
    ]


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _last_reads(steps: Sequence[Step]) -> dict[str, int]:
    return {name: i for i, step in enumerate(steps) for name in step.reads}
