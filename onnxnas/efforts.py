"""Which combinations of choices are really tried, and how much work goes into each.

    quick      a ladder from the sums, each rung judged as its choices were fitted alone
    normal     and those near the limit fitted again in order
    thorough   and cohorts bred from those, sums corrected by findings; then `onnxnas.distilled`

Everything that was tried is kept in the order in which it was tried, so that a search that ends
early hands out the best so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from onnxnas.corrected_sums import corrected
from onnxnas.damage import Damage, damage_of
from onnxnas.errors import UnsupportedError
from onnxnas.integer_program import Program
from onnxnas.objectives import METRICS, Goal, column
from onnxnas.outcome import Evaluated
from onnxnas.pass_contract import OutOfTime
from onnxnas.problem import Genes, Problem
from onnxnas.recover import values_only
from onnxnas.recovery_search import Finalist, RecoverySearch
from onnxnas.rewriter import SiteGone
from onnxnas.search import figures_of
from onnxnas.sites import Candidate
from onnxnas.strategies import make
from onnxnas.study import Study
from onnxnas.zero_shot import ZeroShot

EffortName = Literal["quick", "normal", "thorough"]
EFFORTS: tuple[EffortName, ...] = ("quick", "normal", "thorough")

_CYCLES, _PEAK, _DAMAGE = map(column, ("latency", "peak-memory", "quality"))
_STEP = 0.05
"""Between two rungs of the ladder, as a share of what is left without any damage."""
_SHORT = 0.01
"""Tables promise a little more than there is: one rung is this much below a limit, one at it; and
below other limits where it can be."""
_HOPELESS = 4.0
"""Times the limit that a rung may harm, as its choices were fitted alone, to be worth a step on."""
_HALVINGS = 2
"""Looks between the last rung that keeps to the limit and the first that does not."""
_LOOKED_AT = 4000
"""Candidates a strategy looks up in the table for one ladder."""
_COHORTS, _COHORT = 3, 4
_POOL = 2
"""Times a cohort: so many are at hand for a zero-shot score to choose from, if one is of use."""


@dataclass(frozen=True)
class Tried:
    """One combination that was compiled whole and judged.

    Attributes:
        finalist: what is known of it.
        evaluated: the same with the losses that limits bind on.
    """

    finalist: Finalist
    evaluated: Evaluated

    @property
    def damage(self) -> float:
        """What binds."""
        return damage_of(self.evaluated.losses)


@dataclass
class Effort:
    """One search for combinations.

    Attributes:
        search: with every choice judged alone.
        damage: measures what is lost.
        goal: of the user.
        name: how much is done.
        strategy: of the ladder, a name from `strategies.STRATEGIES`.
        seed: of that strategy.
        start: a candidate to begin with.
        tried: in order.
        looked_up: candidates that were only looked up.
        zero_shot: whether scores of structures say anything here.
    """

    search: RecoverySearch
    damage: Damage
    goal: Goal
    name: EffortName
    strategy: str
    seed: int
    start: Candidate = field(default_factory=Candidate)
    tried: list[Tried] = field(default_factory=list)
    looked_up: int = 0
    zero_shot: ZeroShot = field(init=False)

    def __post_init__(self) -> None:
        self.zero_shot = ZeroShot(self.search, self.seed)

    @property
    def axis(self) -> int:
        """The column along which the ladder climbs."""
        asked = [*self.goal.columns, *self.goal.ceilings]
        return next((at for at in asked if at != _DAMAGE), 0)

    @property
    def limit(self) -> float:
        """Of damage."""
        return self.goal.ceilings.get(_DAMAGE, math.inf)

    def run(self) -> None:
        """Try combinations until there is nothing more to try, or the time is up."""
        with suppress(OutOfTime):
            self._run()
        if self.name == "quick":
            self.zero_shot.why_not = "effort is quick"
        else:
            self.zero_shot.assess([t.finalist for t in self.tried])

    def _run(self) -> None:
        if not self.search.singles:
            return
        problem = self.search.problem(self._table_goal(self.axis))
        rungs = self._ladder(problem, self.axis)
        if not rungs:  # no sum meets the other limits: what comes nearest is worth knowing
            free = replace(problem, goal=replace(problem.goal, limits=()))
            rungs = self._ladder(free, self.axis)
        if self.start.decisions:
            self.refit(self._known(problem, self.start))
        rungs = self._single_shots(rungs)
        for axis in self.goal.columns:
            if axis not in (self.axis, _DAMAGE):
                along = replace(problem, goal=self._table_goal(axis))
                known = {t.finalist.candidate for t in self.tried}
                self._single_shots([c for c in self._ladder(along, axis) if c not in known])
        if self.name != "quick":
            self._multishots(problem, rungs)
        if self.name == "thorough":
            self._breed(problem)

    def _table_goal(self, axis: int) -> Goal:
        """Both ends of the front; what is limited besides is kept to, damage is not."""
        metric = METRICS[axis]
        limits = tuple(x for x in self.goal.limits if x.metric not in (metric, "quality"))
        return replace(self.goal, minimise=(metric, "quality"), limits=limits)

    def _ladder(self, problem: Problem, axis: int) -> list[Candidate]:
        """The mildest candidate of each rung, from little to much; no candidate twice."""
        start = self.search.start.cost
        assert start is not None
        first = figures_of(start)[axis]
        rungs = [first * (1 - step * _STEP) for step in range(int(1 / _STEP))]
        if (most := self.goal.ceilings.get(axis)) is not None:
            rungs += [most, most * (1 - _SHORT)]
        rungs = sorted((r for r in rungs if 0 < r < self.goal.original[axis]), reverse=True)
        return list(dict.fromkeys(self._found(problem, axis, rungs)))

    def _found(self, problem: Problem, axis: int, rungs: Sequence[float]) -> list[Candidate]:
        if self.strategy == "exact":
            return [c for c in self._steps(Program(problem), axis, rungs) if c is not None]
        return [c for c in self._from_front(problem, axis, rungs) if c is not None]

    def _steps(self, program: Program, axis: int, rungs: Sequence[float]) -> list[Candidate | None]:
        """One candidate a rung; peaks go in steps, so one just below what it comes to as well."""
        found = []
        for rung, below in zip(rungs, [*rungs[1:], math.inf], strict=True):
            candidate, figure = self._mildest(program, axis, rung)
            if math.isinf(figure):  # nor is there one further down
                break
            found.append(candidate)
            if axis == _PEAK and (lower := figure * (1 - _SHORT)) > below:
                found.append(self._mildest(program, axis, lower)[0])
        return found

    def _mildest(self, program: Program, axis: int, most: float) -> tuple[Candidate | None, float]:
        """Of candidates with no more than this on an axis; what it has there, or infinity."""
        self.looked_up += 1
        others = program.problem.goal.ceilings
        for short in (_SHORT, 0.0) if others else (0.0,):
            ceilings = {at: (1 - short) * limit for at, limit in others.items()}
            found = program.best(_DAMAGE, {**ceilings, axis: most})
            if found.genes is not None and found.figures is not None:
                return self._whole(program.problem, found.genes), float(found.figures[axis])
        return None, math.inf

    def _whole(self, problem: Problem, genes: Genes) -> Candidate | None:
        """A combination with the exact choices beside it; None where nothing is made."""
        candidate = problem.candidate(genes)
        return self.search.beside(candidate) if candidate.decisions else None

    def _from_front(
        self, problem: Problem, axis: int, rungs: Sequence[float]
    ) -> list[Candidate | None]:
        start = problem.genes([self.start]) if self.start.decisions else None
        study = Study(problem, make(self.strategy, problem, self.seed, start))
        front = study.run(_LOOKED_AT, self.search.deadline)
        self.looked_up += front.evaluations
        found: list[Candidate | None] = []
        for rung in rungs:
            meets = np.flatnonzero(front.figures[:, axis] <= rung)
            if len(meets):
                mildest = meets[np.argmin(front.figures[meets, _DAMAGE])]
                found.append(self._whole(problem, front.genes[mildest]))
        return found

    def _single_shots(self, rungs: Sequence[Candidate]) -> list[Candidate]:
        """Judge rungs until two in a row do far too much damage; returns those worth more work."""
        kept, hopeless = [], 0
        for rung in rungs:
            tried = self._try(rung, self.search.single_shot)
            if tried is None:
                continue
            kept.append(tried.finalist.candidate)
            hopeless = hopeless + 1 if tried.damage > _HOPELESS * self.limit else 0
            if hopeless == 2:
                break
        return kept

    def _multishots(self, problem: Problem, rungs: Sequence[Candidate]) -> None:
        """Fit those again that matter: near the limit, or all over the ladder without one."""
        if not rungs:
            return
        if self.goal.columns[0] == _DAMAGE:
            self.refit_all([r for r in rungs if self._meets_others(self._of(r))][:2])
        elif math.isinf(self.limit):
            spread = np.linspace(0, len(rungs) - 1, 5).round().astype(int).tolist()
            self.refit_all([rungs[at] for at in sorted({*spread})])
        else:
            self._climb(problem, rungs)

    def _climb(self, problem: Problem, rungs: Sequence[Candidate]) -> None:
        """Up from the last rung that was good enough unfitted, or down to the first that is."""
        good = [i for i, r in enumerate(rungs) if self._of(r).damage <= self.limit]
        first = at = max(good, default=0)
        met, failures = dict[int, Tried](), 0
        while at < len(rungs) and failures < 2:
            if (at - first) % 2 == 0:  # of the first two both are needed, of others mostly
                self._ahead(rungs[at : at + 2])
            tried = self.refit(rungs[at])
            if tried is not None:
                met[at] = tried
            failures = 0 if tried is not None and tried.damage <= self.limit else failures + 1
            at += 1
        at = first - 1
        while at >= 0 and not any(t.damage <= self.limit for t in met.values()):
            if (tried := self.refit(rungs[at])) is not None:
                met[at] = tried
            at -= 1
        best = max((i for i, t in met.items() if t.damage <= self.limit), default=None)
        worse = [i for i, t in met.items() if t.damage > self.limit]
        if best is not None and best + 1 in worse:
            self._halve(problem, met[best], met[best + 1])

    def _halve(self, problem: Problem, good: Tried, bad: Tried) -> None:
        """What lies between one that keeps to the limit and one that does not."""
        for _ in range(_HALVINGS):
            ends = [t.evaluated.figures[self.axis] for t in (good, bad)]
            between = self._found(problem, self.axis, [sum(ends) / 2])
            tried = self.refit(between[0]) if between else None
            if tried is None or not ends[1] < tried.evaluated.figures[self.axis] < ends[0]:
                return
            good, bad = (tried, bad) if tried.damage <= self.limit else (good, tried)

    def _breed(self, problem: Problem) -> None:
        """Cohorts around the front: sums corrected by what was found, then bred by evolution."""
        for cohort in range(_COHORTS):
            refits = {t.finalist.candidate: t.damage for t in self.tried if self._is_refit(t)}
            better = corrected(problem, refits)
            parents = problem.genes([t.finalist.candidate for t in self.tried])
            study = Study(better, make("evolution", better, self.seed + cohort, parents))
            front = study.run(_LOOKED_AT, self.search.deadline)
            self.looked_up += front.evaluations
            order = np.argsort(np.abs(front.figures[:, _DAMAGE] - self._aim()), kind="stable")
            fresh: dict[Candidate, float] = {}
            for i in order:
                candidate = self._whole(problem, front.genes[i])
                if candidate is not None and candidate not in refits:
                    fresh.setdefault(candidate, front.figures[i, _CYCLES])
            if not fresh:
                return
            self.zero_shot.assess([t.finalist for t in self.tried])
            pool = list(fresh)[: _POOL * _COHORT]
            best = self.zero_shot.best_first(pool, [fresh[c] for c in pool])
            self.refit_all(best[:_COHORT])

    def _aim(self) -> float:
        """The damage that is looked for: at the limit, or what the mildest half of trials has."""
        if math.isfinite(self.limit):
            return self.limit
        return float(np.median([t.damage for t in self.tried] or [0.0]))

    def refit_all(self, candidates: Sequence[Candidate]) -> None:
        """Fit candidates in order that were not yet; as many side by side as there are workers.

        Raises:
            OutOfTime: before all were judged.
        """
        lacking, workers = self._lacking(candidates), self.search.recovery.workers
        for start in range(0, len(lacking), workers):  # the time may not last for all of them
            some = lacking[start : start + workers]
            self._ahead(some)
            for candidate in some:
                self.refit(candidate)

    def _ahead(self, candidates: Sequence[Candidate]) -> None:
        self.search.recovery.ahead((), self._lacking(candidates))

    def _lacking(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that were not fitted in order yet."""
        done = {t.finalist.candidate for t in self.tried if self._is_refit(t)}
        return [c for c in candidates if c not in done]

    def report(self, chosen: Tried | None, max_drop: float | None) -> dict[str, Any]:
        """The figures of everything that was tried, plain JSON values."""
        rows = self.search.recovery.rows
        return {
            "bound": {"on": self.damage.binds, "max_drop": max_drop},
            "measure": self.damage.measure,
            "rows_fitted_on": rows.roles.count("fit"),
            "rows_tuned_by": rows.roles.count("tune"),
            "rows_held_out": sum(rows.held_out),
            "finalists": [
                {
                    "cycles": f.trial.cycles,
                    "saving": f.goal,
                    "divergence": f.divergence.value,
                    "divergence_standard_error": f.divergence.error,
                    "agreement": f.divergence.agrees,
                    "agreement_standard_error": f.divergence.agreement_error,
                    "drop": t.damage,
                    "sum_of_single_divergences": f.proxy,
                    "evaluation": f.evaluation,
                    "chosen": t is chosen,
                    "candidate": str(f.candidate),
                }
                for t in sorted(self.tried, key=lambda t: -t.finalist.trial.cycles)
                for f in [t.finalist]
            ],
            "zero_shot": self.zero_shot.to_dict(),
        }

    def refit(self, candidate: Candidate) -> Tried | None:
        """Fit a candidate's choices in order and judge it; at most once.

        Raises:
            OutOfTime: before it was known.
        """
        for tried in self.tried:
            if tried.finalist.candidate == candidate and self._is_refit(tried):
                return tried
        return self._try(candidate, self.search.finalist)

    def _try(
        self, candidate: Candidate, judge: Callable[[float, Candidate], Finalist]
    ) -> Tried | None:
        """Judge a candidate; without its exact choices where they do not go with the others."""
        try:
            finalist = judge(0.0, candidate)
        except (SiteGone, UnsupportedError):
            singles = self.search.singles
            bare = Candidate.of(dict(m for m in candidate.decisions if m in singles))
            if bare == candidate:
                return None
            return self._try(bare, judge)
        cost = finalist.trial.cost
        if not finalist.candidate.decisions or cost is None:
            return None
        finalist = replace(finalist, goal=1 - cost.cycles / self.search.baseline.cycles)
        weights = values_only(finalist.weights)
        losses = self.damage.losses(
            finalist.candidate, weights, finalist.divergence, finalist.evaluation
        )
        evaluated = Evaluated(finalist.candidate, cost, losses, finalist.evaluation, weights)
        self.tried.append(Tried(finalist, evaluated))
        return self.tried[-1]

    def _of(self, candidate: Candidate) -> Tried:
        return next(t for t in reversed(self.tried) if t.finalist.candidate == candidate)

    def _is_refit(self, tried: Tried) -> bool:
        return tried.finalist.evaluation == "multishot"

    def _meets_others(self, tried: Tried) -> bool:
        """Whether all limits but that of damage are met."""
        row = np.array([tried.evaluated.figures])
        row[:, _DAMAGE] = 0.0
        return bool(self.goal.feasible(row)[0])

    def _known(self, problem: Problem, candidate: Candidate) -> Candidate:
        """What of a candidate the table knows of, and the exact choices beside it."""
        moves = {(s.id, c.label) for s in problem.table.sites for c in s.choices}
        known = Candidate.of({m[0]: m[1] for m in candidate.decisions if m in moves})
        return self.search.beside(known)
