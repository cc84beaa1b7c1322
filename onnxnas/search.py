"""What searches share: candidates that were looked at, what became of choices, and the costing.

Every candidate is costed at most once. Where the target's costs were learned, candidates that
cannot pay can be ruled out before the target's own backend is asked, which takes long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from onnxnas.cost import Cost, CostModel, Target
from onnxnas.errors import UnsupportedError
from onnxnas.journal import Journal
from onnxnas.materialize import apply_candidate
from onnxnas.pass_contract import Pass
from onnxnas.rewriter import SiteGone
from onnxnas.sites import Candidate, SearchSpace

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, units done, units in all)."""

Status = Literal["applied", "not chosen", "rejected", "impossible"]

Move = tuple[str, str]
"""(site id, choice label)."""

MIN_GAIN = 1e-3
"""A rewrite must save this share of the network to be worth a changed graph."""

AT_ONCE = 8
"""Candidates costed between two looks at the clock."""

RuleOut = Callable[[Sequence[Candidate], Sequence[Any]], Sequence[str]]
"""For candidates and their rewritten graphs, why each cannot pay; empty where it may."""


@dataclass(frozen=True)
class Trial:
    """One candidate that was looked at.

    Attributes:
        candidate: what was tried.
        cost: of the whole rewritten network, or None.
        reason: why there is no cost; empty otherwise.
        ruled_out: its cost was not asked for, because it cannot pay.
    """

    candidate: Candidate
    cost: Cost | None
    reason: str = ""
    ruled_out: bool = False

    @property
    def cycles(self) -> float:
        """Total cycles; infinite where there is no cost."""
        return float("inf") if self.cost is None else self.cost.cycles


@dataclass(frozen=True)
class LedgerRow:
    """What became of one choice at one site, and why.

    Attributes:
        delta_cycles: change of the whole network by this choice alone, None where not costed.
    """

    pass_name: str
    tensor: str
    choice: str
    status: Status
    reason: str
    exactness: str = ""
    delta_cycles: float | None = None


@dataclass
class Evaluator:
    """Costs candidates of one model on one target; every candidate at most once.

    Attributes:
        graph: the normalised original; is not changed.
        input_shapes: static shapes for costing.
        journal: what was costed in an earlier run that was cut short; takes down what is new.
        counts: networks by kind of figure: what was costed, and ``predicted`` alone.
    """

    graph: Any
    space: SearchSpace
    passes: Mapping[str, Pass]
    cost_model: CostModel
    input_shapes: Mapping[str, tuple[int, ...]]
    trials: dict[Candidate, Trial] = field(default_factory=dict)
    journal: Journal | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def view(self, candidate: Candidate) -> Any:
        """The rewritten graph as the cost model sees it.

        Raises:
            SiteGone: the candidate's rewrites exclude each other.
        """
        applied = apply_candidate(self.graph, self.space, candidate, self.passes, shapes=False)
        return applied.view(self.input_shapes)

    def recorded_as(self, candidate: Candidate) -> tuple[str, Candidate]:
        """Under which kind and name the journal keeps the cost of a candidate."""
        return "compiled", candidate

    def evaluate(
        self,
        candidates: Sequence[Candidate],
        rule_out: RuleOut | None = None,
        known: Mapping[Candidate, Any] | None = None,
    ) -> list[Trial]:
        """Cost several candidates in one batch, in order.

        Args:
            known: what `view` gives for some of them.
            rule_out: asked first about those that were not costed yet. What it rules out is not
                remembered: beside other choices it may pay.
        """
        views, known = dict[Candidate, Any](), known or {}
        for candidate in candidates:
            if candidate in self.trials or candidate in views or self._recall(candidate):
                continue
            try:
                views[candidate] = known[candidate] if candidate in known else self.view(candidate)
            except SiteGone as gone:
                self.trials[candidate] = Trial(candidate, None, str(gone))
        ruled_out: dict[Candidate, Trial] = {}
        if rule_out is not None and views:
            asked = list(views)
            for candidate, reason in zip(asked, rule_out(asked, list(views.values())), strict=True):
                if reason:
                    self.counts["predicted"] += 1
                    ruled_out[candidate] = Trial(candidate, None, reason, True)
                    del views[candidate]
        for candidate, trial in zip(views, self._cost(views), strict=True):
            self.trials[candidate] = trial
            self._record(trial)
        self.counts[self.cost_model.target.kind] += len(views)
        return [ruled_out.get(c) or self.trials[c] for c in candidates]

    def _recall(self, candidate: Candidate) -> bool:
        """Whether an earlier run costed a candidate; the original is always costed again."""
        if self.journal is None or not candidate.decisions:
            return False
        values = self.journal.get(*self.recorded_as(candidate))
        if values is None:
            return False
        cost = cost_from(values, self.cost_model.target) if "cycles" in values else None
        self.trials[candidate] = Trial(candidate, cost, str(values.get("reason", "")))
        return True

    def _record(self, trial: Trial) -> None:
        if self.journal is not None and trial.candidate.decisions:
            values = {"reason": trial.reason} if trial.cost is None else cost_values(trial.cost)
            self.journal.add(*self.recorded_as(trial.candidate), values)

    def _cost(self, views: Mapping[Candidate, Any]) -> list[Trial]:
        try:
            costs = self.cost_model.cost_many(list(views.values()))
        except UnsupportedError as error:
            if Candidate() in views and len(views) == 1:
                raise
            if len(views) == 1:  # the cost source chokes on this rewrite, not on the model
                return [Trial(candidate, None, str(error)) for candidate in views]
            return [self._cost({candidate: views[candidate]})[0] for candidate in views]
        return [self._trial(c, cost) for c, cost in zip(views, costs, strict=True)]

    def _trial(self, candidate: Candidate, cost: Cost) -> Trial:
        """A costed candidate, unless some of it has no cost where all of the original has one."""
        if candidate.decisions and cost.unavailable:
            original = self.evaluate([Candidate()])[0].cost
            known = Counter(k.op for k in original.unavailable) if original else Counter[str]()
            for op in Counter(k.op for k in cost.unavailable) - known:
                kernel = next(k for k in cost.unavailable if k.op == op)
                reason = f"its {op} has no cost on {cost.target}: {kernel.reason}"
                return Trial(candidate, None, reason)
        return Trial(candidate, cost)


def cost_values(cost: Cost) -> dict[str, Any]:
    """The totals of a cost as a journal keeps them."""
    return {
        "cycles": cost.cycles,
        "macs": cost.macs,
        "peak_bytes": dict(cost.peak_bytes),
        "weight_bytes": cost.weight_bytes,
        "kind": cost.kind,
    }


def cost_from(values: Mapping[str, Any], target: Target) -> Cost:
    """The reverse of `cost_values`; kernels are not kept."""
    cycles = float(values["cycles"])
    return Cost(
        target=target.name,
        kind=values["kind"],
        cycles=cycles,
        seconds=cycles / target.clock_hz,
        macs=int(values["macs"]),
        peak_bytes=values["peak_bytes"],
        weight_bytes=values["weight_bytes"],
        kernels=(),
    )


def figures_of(cost: Cost, damage: float = 0.0) -> tuple[float, ...]:
    """A row of `objectives.FIGURES`; to be better than the original is no negative damage."""
    stored = 0 if cost.weight_bytes is None else cost.weight_bytes
    row = cost.cycles, cost.peak_activation_bytes, stored, cost.macs, max(0.0, damage)
    return tuple(float(figure) for figure in row)
