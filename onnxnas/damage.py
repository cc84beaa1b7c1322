"""How much worse than the original a candidate is, by the measure that limits bind on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from onnxnas.divergence import Divergence
from onnxnas.evaluate import Measured
from onnxnas.front_point import Loss, loss_of, losses_of
from onnxnas.held_out import HeldOut
from onnxnas.materialize import Weights, apply_candidate
from onnxnas.prepare import Prepared
from onnxnas.quality import Task, compare
from onnxnas.sites import Candidate

Binds = Literal["task", "agreement", "error"]


@dataclass
class Damage:
    """Measures losses of candidates whose weights are known.

    Attributes:
        binds: what the first loss is: the user's task metric if there is one, else disagreement
            with the original about classes, else squared error over variance.
        measure: of divergence, in words.
    """

    prepared: Prepared
    binds: Binds
    measure: str
    task: Task | None
    seed: int
    _known: dict[tuple[Candidate, str], Loss] = field(default_factory=dict)
    _original: list[Measured] = field(default_factory=list)

    @classmethod
    def of(cls, prepared: Prepared, held_out: HeldOut, task: Task | None, seed: int) -> Damage:
        """By the task if there is one, else by what the outputs are."""
        classes = any(j.kind == "logits" for j in held_out.judged)
        binds: Binds = "task" if task is not None else "agreement" if classes else "error"
        measure = " and ".join(sorted({j.measure for j in held_out.judged}))
        return cls(prepared, binds, measure, task, seed)

    def losses(
        self, candidate: Candidate, weights: Weights, divergence: Divergence, evaluation: str
    ) -> tuple[Loss, ...]:
        """All that is known of what a candidate loses, what binds first.

        Args:
            weights: what was fitted.
            divergence: on held-out rows.
            evaluation: how the weights came about; results are kept by it and the candidate.
        """
        losses = losses_of(divergence, self.measure)
        if self.task is None:
            return losses
        key = candidate, evaluation
        if key not in self._known:
            self._known[key] = self._task_loss(self.task, candidate, weights)
        return (self._known[key], *losses)

    def _task_loss(self, task: Task, candidate: Candidate, weights: Weights) -> Loss:
        prepared = self.prepared
        applied = apply_candidate(
            prepared.graph, prepared.space, candidate, prepared.passes, weights
        )
        model = applied.model(prepared.normalised)
        if not self._original:
            self._original = task.measured(prepared.source, self.seed)
        return loss_of(compare(self._original, task.measured(model, self.seed), self.seed)[0])


def damage_of(losses: tuple[Loss, ...]) -> float:
    """The figure that limits bind on: 0 where nothing was lost."""
    return losses[0].value if losses else 0.0
