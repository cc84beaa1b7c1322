"""Choices that change the function: what each saves and harms alone, and what combinations do.

Costs come first: a choice that saves nothing on the target is never fitted. What remains is fitted
alone and judged alone on held-out rows. A search over costs that are looked up and divergences that
are added up proposes combinations; that is only a proxy, so these are compiled whole and really
judged, with weights as they were fitted alone (single-shot) or fitted again in order (multishot).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxnas.cost import Cost, KernelCostModel
from onnxnas.cost_table import CostTable
from onnxnas.divergence import Divergence
from onnxnas.front_point import Evaluation
from onnxnas.held_out import HeldOut
from onnxnas.integer_program import Program
from onnxnas.journal import Journal
from onnxnas.materialize import Applied, apply_candidate
from onnxnas.objectives import Goal, column
from onnxnas.pass_contract import Fitted, OutOfTime
from onnxnas.problem import Problem
from onnxnas.recover import OUT_OF_TIME, Move, Recovery, values_only
from onnxnas.rewriter import SiteGone
from onnxnas.screening import Screen, dominated
from onnxnas.search import (
    AT_ONCE,
    MIN_GAIN,
    Evaluator,
    Progress,
    Trial,
    cost_from,
    cost_values,
    figures_of,
)
from onnxnas.sites import Candidate, SearchSpace

_ALONE_SHARE = 0.6
"""Of the time there is for fitting choices alone; the rest is for judging and combining them."""
_TABLE_SHARE = 0.2
"""Of the time there is after that for finding out how choices change each other's cost."""
_NETWORKS = 500
"""Rewritten networks that are looked at for that, at most."""
LATE = "not judged before the time was up"
_NOT_COSTED = "not costed before the time was up"
_CYCLES, _DAMAGE = column("latency"), column("quality")


@dataclass(frozen=True)
class Single:
    """One choice alone.

    Attributes:
        saving: cycles it takes off the whole network with the exact choices that pay.
        fitted: its weights.
        divergence: on held-out rows.
    """

    saving: float
    fitted: Fitted
    divergence: Divergence


@dataclass(frozen=True)
class Finalist:
    """A combination that was compiled whole and judged.

    Attributes:
        candidate: what was left of the choices after those that could not be fitted.
        goal: share of the original's cycles that was to be saved.
        trial: cost of the whole rewritten network with its own weights.
        divergence: on held-out rows.
        proxy: sum of the single divergences.
        weights: what was fitted.
        evaluation: how.
    """

    candidate: Candidate
    goal: float
    trial: Trial
    divergence: Divergence
    proxy: float
    weights: Mapping[Move, Fitted]
    evaluation: Evaluation = "multishot"


@dataclass
class RecoverySearch:
    """Searches the recovered choices of one model on one target.

    Attributes:
        evaluator: costs candidates.
        recovery: fits weights.
        held_out: judges candidates.
        singles: every choice that saves something and could be fitted.
        rejected: why the others are out.
        alone: what each choice costs alone beside `base`.
        deadline: by `time.monotonic`; nothing is started after it.
        predictor: what was learned about the target; says what choices do to each other.
        screen: predicts single choices, so that the target's backend is not asked about each.
        journal: what was judged in an earlier run that was cut short; takes down what is new.
        axes: columns of `FIGURES`, at least one of which a choice has to lower.
        base: exact decisions that are made in any case, where nothing else is in their way.
        full: keep choices that others of their site beat.
        forced: decisions that every combination has to make.
        factors: choice -> how many times less its divergence counts while combinations are sought.
    """

    evaluator: Evaluator
    recovery: Recovery
    held_out: HeldOut
    progress: Progress = field(default=lambda *_: None)
    singles: dict[Move, Single] = field(default_factory=dict)
    rejected: dict[Move, str] = field(default_factory=dict)
    alone: dict[Move, Trial] = field(default_factory=dict)
    deadline: float | None = None
    predictor: KernelCostModel | None = None
    screen: Screen | None = None
    journal: Journal | None = None
    axes: tuple[int, ...] = (_CYCLES,)
    base: Candidate = field(default_factory=Candidate)
    full: bool = False
    forced: Candidate = field(default_factory=Candidate)
    factors: Mapping[Move, float] = field(default_factory=dict)

    @property
    def space(self) -> SearchSpace:
        """Of the evaluator."""
        return self.evaluator.space

    @property
    def baseline(self) -> Trial:
        """The unchanged model."""
        return self.evaluator.evaluate([Candidate()])[0]

    @property
    def start(self) -> Trial:
        """The model with nothing but `base`."""
        return self.evaluator.evaluate([self.base])[0]

    @property
    def cut_short(self) -> bool:
        """Whether the time was up before every choice was looked at."""
        return not {LATE, _NOT_COSTED, OUT_OF_TIME}.isdisjoint(self.rejected.values())

    def beside(self, candidate: Candidate) -> Candidate:
        """A candidate and of `base` what does not exclude it."""
        made = dict(self.base.decisions)
        for site_id, _ in candidate.decisions:
            for other in self.space.conflicts(self.space.site(site_id), self.base):
                made.pop(other, None)
        return Candidate.of({**made, **dict(candidate.decisions)})

    def judge_alone(self) -> None:
        """Cost every recovered choice, fit and judge those that save something, the most first."""
        savings = self._savings()
        most: dict[str, float] = {}
        for (site_id, _), saving in savings.items():
            most[site_id] = max(saving, most.get(site_id, 0.0))
        sites = sorted(most, key=lambda site_id: -most[site_id])
        found, refused = self._alone([m for s in sites for m in savings if m[0] == s])
        self.rejected.update(refused)
        done = 0
        for site_id in sites:
            moves = [move for move in savings if move[0] == site_id and move in found]
            if self._late():
                self.rejected.update(dict.fromkeys(moves, LATE))
                continue
            self.progress("judging each choice alone", done, len(found))
            try:
                judged = self._judged_alone(moves, found)
            except OutOfTime:
                self.rejected.update(dict.fromkeys(moves, LATE))
                continue
            for move, divergence in zip(moves, judged, strict=True):
                if np.isfinite(divergence.value):
                    self.singles[move] = Single(savings[move], found[move], divergence)
                else:
                    self.rejected[move] = "with it the network's outputs are not finite"
            done += len(moves)

    def _judged_alone(
        self, moves: Sequence[Move], found: Mapping[Move, Fitted]
    ) -> list[Divergence]:
        known = {m: self._recalled("alone", Candidate.of(dict([m]))) for m in moves}
        new = [m for m in moves if known[m] is None]
        students = [self._applied(Candidate.of(dict([m])), {m: found[m]}) for m in new]
        judged = dict(zip(new, self.held_out.divergences(students), strict=True))
        for move, divergence in judged.items():
            if self.journal is not None and np.isfinite(divergence.value):
                single = Candidate.of(dict([move]))
                self.journal.add("alone", single, divergence.to_dict())
        recalled = {m: Divergence.from_dict(v) for m, v in known.items() if v is not None}
        return [recalled.get(m) or judged[m] for m in moves]

    def _recalled(self, kind: str, candidate: Candidate) -> dict[str, Any] | None:
        return None if self.journal is None else self.journal.get(kind, candidate)

    def _applied(self, candidate: Candidate, found: Mapping[Move, Fitted]) -> Applied:
        return apply_candidate(
            self.evaluator.graph,
            self.space,
            candidate,
            self.evaluator.passes,
            values_only(found),
        )

    def _alone(self, moves: Sequence[Move]) -> tuple[dict[Move, Fitted], dict[Move, str]]:
        """Fit choices in a share of the time that is left."""
        self.recovery.deadline = _share_of(self.deadline, _ALONE_SHARE)
        try:
            with suppress(OutOfTime):
                self.recovery.ahead(moves)
            return self.recovery.alone(moves)
        finally:
            self.recovery.deadline = self.deadline

    def _savings(self) -> dict[Move, float]:
        moves = [
            (site.id, choice.label)
            for site in self.space
            for choice in site.choices
            if choice.exactness == "recovered"
        ]
        savings: dict[Move, float] = {}
        before = self.evaluator.view(self.base)
        for start in range(0, len(moves), AT_ONCE):
            self.progress("costing each choice alone", start, len(moves))
            some = moves[start : start + AT_ONCE]
            if self._late():
                self.rejected.update(dict.fromkeys(some, _NOT_COSTED))
                continue
            trials = self._costed([self.beside(Candidate.of(dict([m]))) for m in some], before)
            for move, trial in zip(some, trials, strict=True):
                self.alone[move] = trial
                if trial.cost is None:
                    self.rejected[move] = trial.reason
                    continue
                saving = self.start.cycles - trial.cycles
                if self._pays(trial.cost):
                    savings[move] = saving
                else:
                    self.rejected[move] = (
                        "costs cycles" if saving < 0 else f"saves less than {MIN_GAIN:.1%}"
                    )
        return self._undominated(savings)

    def _costed(self, candidates: Sequence[Candidate], before: Any) -> list[Trial]:
        """Single choices: predicted where that can be relied on; combinations are compiled."""
        assert self.start.cost is not None
        views: dict[Candidate, Any] = {}
        for candidate in candidates if self.screen is not None else ():
            try:
                views[candidate] = self.evaluator.view(candidate)
            except SiteGone:
                continue  # the evaluator below says so of it
        known: dict[Candidate, Trial] = {}
        if self.screen is not None:
            costs = self.screen.costs(self.start.cost, before, list(views.values()))
            known = {c: Trial(c, cost) for c, cost in zip(views, costs, strict=True) if cost}
        self.evaluator.counts["predicted"] += len(known)
        rest = iter(self.evaluator.evaluate([c for c in candidates if c not in known], known=views))
        return [known[c] if c in known else next(rest) for c in candidates]

    def _undominated(self, savings: Mapping[Move, float]) -> dict[Move, float]:
        """Without choices that another of their site beats, where latency alone counts."""
        if self.axes != (_CYCLES,) or self.full:
            return dict(savings)
        by_site: dict[str, dict[str, Cost]] = {}
        for site_id, label in savings:
            cost = self.alone[site_id, label].cost
            assert cost is not None
            by_site.setdefault(site_id, {})[label] = cost
        for site_id, costs in by_site.items():
            for label, reason in dominated(costs).items():
                self.rejected[site_id, label] = reason
        return {m: saving for m, saving in savings.items() if m not in self.rejected}

    def _pays(self, cost: Cost) -> bool:
        """Whether a choice alone lowers a figure that counts by enough."""
        assert self.start.cost is not None
        before, after = figures_of(self.start.cost), figures_of(cost)
        return any(after[at] < (1 - MIN_GAIN) * before[at] for at in self.axes)

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def problem(self, goal: Goal) -> Problem:
        """The search for combinations of what is worth it; harms are taken to add up."""
        alone = {m: self.alone[m] for m in self.singles}
        sites = (
            replace(s, choices=tuple(c for c in s.choices if (s.id, c.label) in alone))
            for s in self.space
        )
        space = SearchSpace(tuple(s for s in sites if s.choices))
        damage = {
            m: max(0.0, s.divergence.value) / self.factors.get(m, 1.0)
            for m, s in self.singles.items()
        }
        problem = Problem.of(self._table(space, alone), damage, goal)
        forced = {site_id for site_id, _ in self.forced.decisions}
        keep = [np.inf if site.id in forced else 0.0 for site in space]
        columns = zip(problem.damage, keep, strict=True)
        return replace(problem, damage=tuple(np.array([k, *d[1:]]) for d, k in columns))

    def _table(self, space: SearchSpace, alone: Mapping[Move, Trial]) -> CostTable:
        """Costs alone add up; how choices change each other's is predicted, if anything is."""
        added_up = CostTable.additive(space, self.start, alone)
        if self.predictor is None:
            return added_up
        late = _share_of(self.deadline, _TABLE_SHARE)

        def view(candidate: Candidate) -> Any:
            if late is not None and time.monotonic() > late:
                raise OutOfTime
            return self.evaluator.view(self.beside(candidate))

        def tell(what: str, done: int, total: int) -> None:
            self.progress(f"what choices do to each other's costs: {what}", done, total)

        with suppress(OutOfTime):
            return CostTable.build(
                self.evaluator.graph, space, view, self.predictor, tell, networks=_NETWORKS
            ).anchored(added_up)
        return added_up

    def solve(self, goal: float) -> Candidate | None:
        """The choices with the least summed divergence that save a share of the cycles."""
        row = (self.baseline.cycles, 1.0, 1.0, 1.0, 0.0)
        problem = self.problem(Goal(("quality",), (), row, 1.0))
        most = (1 - goal) * self.baseline.cycles
        found = Program(problem).best(_DAMAGE, {_CYCLES: most})
        return None if found.genes is None else problem.candidate(found.genes)

    def single_shot(self, goal: float, candidate: Candidate) -> Finalist:
        """Judge a candidate with the weights that were fitted for each choice alone.

        Raises:
            OutOfTime: before it was known.
            SiteGone: its choices do not go together.
        """
        moves = [m for m in candidate.decisions if m in self.singles]
        return self._judged(
            goal, candidate, {m: self.singles[m].fitted for m in moves}, "single-shot"
        )

    def finalist(self, goal: float, candidate: Candidate) -> Finalist:
        """Fit a candidate's choices in order, cost it with those weights, and judge it.

        Raises:
            OutOfTime: before it was known.
            SiteGone: its choices do not go together.
        """
        weights, refused = self.recovery.in_order(candidate)
        for site_id, label in refused:
            self.rejected.setdefault((site_id, label), refused[site_id, label])
            candidate = candidate.with_choice(site_id, "keep")
        return self._judged(goal, candidate, weights, "multishot")

    def _judged(
        self,
        goal: float,
        candidate: Candidate,
        weights: Mapping[Move, Fitted],
        evaluation: Evaluation,
    ) -> Finalist:
        proxy = sum(
            self.singles[m].divergence.value for m in candidate.decisions if m in self.singles
        )
        values = self._recalled(evaluation, candidate)
        if values is not None:
            cost = cost_from(values["cost"], self.evaluator.cost_model.target)
            divergence = Divergence.from_dict(values)
        else:
            applied = self._applied(candidate, weights)
            cost = self._cost(applied)
            divergence = self.held_out.divergence(applied)
            if self.journal is not None and np.isfinite(divergence.value):
                values = {"cost": cost_values(cost), **divergence.to_dict()}
                self.journal.add(evaluation, candidate, values)
        trial = Trial(candidate, cost)
        return Finalist(candidate, goal, trial, divergence, proxy, weights, evaluation)

    def _cost(self, applied: Applied) -> Cost:
        view = applied.view(self.evaluator.input_shapes)
        self.evaluator.counts[self.evaluator.cost_model.target.kind] += 1
        return self.evaluator.cost_model.cost(view)


def _share_of(deadline: float | None, share: float) -> float | None:
    """The moment when a share of the time until a deadline is over."""
    now = time.monotonic()
    return None if deadline is None else now + share * (deadline - now)
