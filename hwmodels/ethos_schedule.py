"""What a schedule's steps cost, and which weights are brought to the SRAM while it runs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from onnxnas.hwmodels.ethos_array import BRICK, SUBKERNEL, Work, up
from onnxnas.hwmodels.ethos_buffering import Brought, Need, Slack, bring
from onnxnas.hwmodels.ethos_cascades import Cascade
from onnxnas.hwmodels.ethos_cycles import Chip, Where
from onnxnas.hwmodels.ethos_shapes import size
from onnxnas.hwmodels.ethos_step import Step
from onnxnas.hwmodels.ethos_steps import APART, Steps
from onnxnas.hwmodels.ethos_weights import SCALE_BYTES
from onnxnas.hwmodels.ethos_work import Operator, operators
from onnxnas.kernels import Kernel
from onnxnas.memory import Buffer

_MOST_PIXELS = 65_536
"""Of an arg-max that is taken at once."""
_LAYOUT = frozenset({"Copy", "Concat", "Transpose", "Reshape", "Slice", "Split", "Pad"})


@dataclass(frozen=True)
class Weights:
    """Weights in the SRAM.

    Attributes:
        buffers: for them, named after what their steps write.
        brought: how, by step.
        slack: cycles of each step in which the next one's are brought.
    """

    buffers: Sequence[Buffer]
    brought: Mapping[int, Brought]
    slack: Sequence[float]


class Costs:
    """Of the steps of one schedule on one chip.

    Args:
        chip: the target.
        steps: the schedule.
        kernels: of the network.
        cascades: of the schedule.
    """

    def __init__(
        self, chip: Chip, steps: Steps, kernels: Sequence[Kernel], cascades: Sequence[Cascade] = ()
    ) -> None:
        self._chip, self._steps, self._kernels = chip, steps, kernels
        self._inside = {i: c for c in cascades for i in range(c.first, c.last + 1)}
        stripes = {i: rows for c in cascades for i, rows in c.stripes.items()}
        self._operators = [
            operators(step, kernels[step.kernel], chip.new, stripes.get(i, 0))
            for i, step in enumerate(steps.steps)
        ]
        self._joined = {t for step in steps.steps for t in step.writes if not steps.whole(t)}

    def weights(self, times: Sequence[int], held: Sequence[int], limit: int, far: bool) -> Weights:
        """Which weights are brought to the SRAM.

        Args:
            times: moment of each step.
            held: bytes of the SRAM that are taken while each step runs.
            limit: bytes of the SRAM.
            far: feature maps are in DRAM when this is decided.
        """
        buffers: list[Buffer] = []
        found: dict[int, Brought] = {}
        taken = dict(zip(times, held, strict=True))
        before: Slack | None = None
        slack: list[float] = []
        for i, (step, time) in enumerate(zip(self._steps.steps, times, strict=True)):
            brought, before = self._bring(i, before, float(limit - taken[time]), far)
            slack.append(before.cycles if before else 0.0)
            if brought is None:
                continue
            found[i] = brought
            taken[time] += sum(brought.parts)
            name = f"weights of {step.writes[0]}"
            made = self._operators[i]
            if made[0].times > 1 and brought.parts[0] < limit - taken[time]:
                buffers.append(Buffer(name, brought.parts[0], time, time + 1))  # for the next slice
            for n, part in enumerate(brought.parts):
                first = time - (brought.early and n == 0)
                last = time + (n == brought.last_part)
                buffers.append(Buffer(name, part, first, last))
        return Weights(buffers, found, slack)

    def whole(self, cascade: Cascade, free: float, earlier: float, far: bool) -> dict[int, int]:
        """Bytes of weights that are brought for the steps of a cascade.

        Args:
            cascade: of the schedule.
            free: bytes of the SRAM that are free while it runs.
            earlier: and while the step before does.
            far: feature maps are in DRAM when this is decided.
        """
        found: dict[int, int] = {}
        before: Slack | None = None
        if cascade.first:
            _, before = self._bring(cascade.first - 1, None, 0.0, far)
            before = None if before is None else Slack(before.cycles, earlier)
        for i in range(cascade.first, cascade.last + 1):
            brought, before = self._bring(i, before, free, far)
            if brought is not None:
                found[i] = sum(brought.parts)
                free -= found[i]
        return found

    def _bring(
        self, i: int, before: Slack | None, free: float, far: bool
    ) -> tuple[Brought | None, Slack | None]:
        """How the weights of a step are brought, and what it leaves to the step after it."""
        step, made = self._steps.steps[i], self._operators[i]
        if step.on_cpu:
            return None, None
        if not made:
            return None, Slack(0.0, free)
        where = self._where(step, made[0], None, far)
        slack = Slack(self._chip.computing(made[0].work, where), free)
        if not where.weights:
            return None, slack
        brought = bring(self._chip, self._need(i, made[0], where, far), before, free)
        if brought is not None:
            slack = Slack(brought.cycles, free - brought.parts[brought.last_part])
        return brought, slack

    def accesses(self) -> dict[str, float]:
        """Values of each tensor that are read, those read again included, or written."""
        result: dict[str, float] = {}
        for step, made in zip(self._steps.steps, self._operators, strict=True):
            for n, (name, by) in enumerate(step.takers):
                rows = not self._steps.bricks(name)
                if by is step and n == 0 and made:
                    values = sum(o.times * self._chip.fetched(o.work, rows) for o in made)
                    if step.op == "PRelu" and step.chained:
                        values += self._values(step, name)
                else:
                    values = self._values(step, name)
                result[name] = result.get(name, 0.0) + values
            inside = self._chip.new and (step.inside or self._fused(step))
            if not (inside or self._unwritten(step)):
                for name in step.writes:
                    result[name] = result.get(name, 0.0) + self._values(step, name)
        return result

    @staticmethod
    def _unwritten(step: Step) -> bool:
        """Whether Vela leaves the result of a chain out of its count.

        Of each chained step only one tensor is counted, and it reads one.
        """
        last = step.inside[-1] if step.inside else step
        return step.chained and (last.arithmetic or last.op == "PRelu")

    def _fused(self, step: Step) -> bool:
        """Whether the activation of its kernel runs inside it."""
        kernel = self._kernels[step.kernel]
        apart = step.writes[0].endswith(APART) or step.apart
        return kernel.activation not in ("none", "Silu") and not apart

    def _values(self, step: Step, name: str) -> float:
        """Of what a step touches of a tensor."""
        height, width, depth = size(step.shape)
        whole = height * width * up(depth, BRICK if self._steps.bricks(name) else 1)
        return float(min(self._steps.size(name), whole))

    def cycles(self, far: Collection[str], weights: Weights) -> list[float]:
        """Cycles of each kernel; 0 where it is not known how it runs.

        Args:
            far: tensors in DRAM.
            weights: in the SRAM.
        """
        result = [0.0] * len(self._kernels)
        for i, step in enumerate(self._steps.steps):
            brought = weights.brought.get(i)
            slack = weights.slack[i - 1] if i else 0.0
            for operator in self._operators[i]:
                where = self._where(step, operator, brought, far)
                busy = self._chip.computing(operator.work, where)
                moving = self._chip.moving(operator.work, where)
                for _ in range(operator.times):
                    own = busy
                    if brought is not None:
                        whole = self._chip.transfer(where.weights + where.scales)
                        first = max(0.0, self._chip.transfer(brought.first) - slack)
                        own = max(whole - slack + brought.cycles, busy + first)
                        slack = brought.cycles
                    result[step.kernel] += max(own, moving, self._wide(step, far))
            if not self._operators[i]:
                result[step.kernel] += self._wide(step, far)
        return result

    def _wide(self, step: Step, far: Collection[str]) -> float:
        """An arg-max on U55 and U65, whose values have two bytes.

        Many pixels go through the pool a few at a time.
        """
        kernel, chip = self._kernels[step.kernel], self._chip
        if chip.new or kernel.op != "ArgMax":
            return 0.0
        if step.op == "Conv":
            memory = chip.far if step.writes[0] in far else chip.near
            work = Work("depthwise", size(step.shape), size(step.shape))
            length = min(2 * BRICK, 2 * chip.block(work).ofm[2], memory.burst)
            return 2.0 * math.prod(step.shape) * memory.burst / length / memory.rate
        if step.op != "ArgMax":
            return 0.0
        pixels, channels = kernel.in_height * kernel.in_width, kernel.in_channels
        passes = [min(channels - c, SUBKERNEL) for c in range(0, channels, SUBKERNEL)]
        per_pixel = 8.0 * sum(max(4, n) for n in passes) / chip.array.units[0][0]
        busy = pixels * per_pixel / chip.array.cores
        memory = chip.far if step.reads[0] in far else chip.near
        # Of two bytes a value, 8 channels and two more of them for each pass.
        bursts = 2.0 * (SUBKERNEL + 2) * memory.burst / BRICK / memory.rate
        if pixels > _MOST_PIXELS:  # four at a time, one piece after the other
            target = chip.far if step.writes[0] in far else chip.near
            wait = memory.read_latency + target.write_latency
            return 1.25 * busy + pixels / 4 * wait + pixels * bursts
        return max(busy, pixels * len(passes) * bursts)

    def _need(self, i: int, operator: Operator, where: Where, far: bool) -> Need:
        step, cascade = self._steps.steps[i], self._inside.get(i)
        striped = 1.0
        if cascade is not None:
            striped = max(1.0, operator.work.ofm[0] / cascade.stripes[i])
        producer = next(
            (s for s in reversed(self._steps.steps[:i]) if step.reads[0] in s.writes), None
        )
        moves = far and producer is not None and producer.op not in _LAYOUT
        return Need(
            operator,
            where,
            where.weights + where.scales,
            striped,
            cascade is not None,
            cascade is not None and cascade.first == i,
            moves and (cascade is None or cascade.first == i),
            i,
        )

    def _where(
        self,
        step: Step,
        operator: Operator,
        brought: Brought | None,
        far: Collection[str] | bool,
    ) -> Where:
        steps, work = self._steps, operator.work

        def is_far(name: str) -> bool:
            return far if isinstance(far, bool) else name in far

        source, target = next(iter(step.reads), None), step.writes[0]
        others = list(step.reads[1:])
        if step.op == "PRelu" and step.chained and source is not None:
            others.append(source)
        more = [(self._values(step, n), is_far(n), not steps.bricks(n)) for n in others]
        if work.broadcast and not self._chip.new:  # counts as read for every value
            whole = float(work.ofm[0] * work.ofm[1] * up(work.ofm[2], BRICK))
            more = [(whole, far, rows) for _, far, rows in more]
        weighted = step.weighted and step.weight_bytes > 0
        unit = self._chip.block(work).unit[2] if self._chip.new else BRICK
        slices = brought.slices if brought else (work.ofm[2],)
        scales = SCALE_BYTES * sum(up(n, unit) for n in slices) if weighted else 0.0
        weights = step.weight_bytes if weighted else 0.0
        first = brought.first * weights / (weights + scales) if brought and brought.early else 0.0
        joined = self._chip.new and target in self._joined and not step.part and operator.times == 1
        return Where(
            in_far=source is not None and is_far(source),
            out_far=is_far(target),
            constant_input=source is None,
            in_rows=source is None or not steps.bricks(source),
            out_rows=not steps.bricks(target),
            weights=weights,
            scales=scales,
            staged=brought is not None,
            concurrent=max(0.0, weights - first) if brought else 0.0,
            more=tuple(more),
            constant_channels=operator.constant_channels,
            written_channels=steps.flow.channels(target) if joined and self._fused(step) else 0,
            chained=self._unwritten(step),
            speeds=operator.speeds,
        )
