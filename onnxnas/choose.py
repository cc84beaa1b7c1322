"""Which rewrites to make: the phases of a search, from single choices to the result.

First the choices that change nothing; then, with data and an allowance for loss, those whose
weights are fitted: each alone, then combinations (`onnxnas.efforts`). Last, what changes nothing is
looked for again beside what was chosen. Nothing is lost that the user did not allow.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxnas.calibration import Calibration
from onnxnas.cost import MAX_UNCOVERED, Cost, KernelCostModel, refuse_uncovered
from onnxnas.cpu_time import Phases
from onnxnas.damage import Damage
from onnxnas.distilled import Distillation
from onnxnas.efforts import Effort
from onnxnas.errors import InfeasibleError, UnsupportedError, UsageError
from onnxnas.exact_search import ExactSearch, paying
from onnxnas.fit_rows import MIN_ROWS
from onnxnas.fitting import open_journal, recovery_search
from onnxnas.greedy import SearchResult
from onnxnas.journal import Journal
from onnxnas.ledger import exact_rows, recovered_rows, unfitted_rows
from onnxnas.objectives import column
from onnxnas.outcome import Chosen, Evaluated, best_of, distinct, front_of, goal_of
from onnxnas.pass_contract import OutOfTime
from onnxnas.prepare import Prepared
from onnxnas.quality import Task
from onnxnas.recovery_search import RecoverySearch
from onnxnas.screening import Screen
from onnxnas.search import Evaluator, Progress, Trial
from onnxnas.sites import Candidate
from onnxnas.wanted import Wanted


def choose(
    prepared: Prepared,
    wanted: Wanted | None = None,
    *,
    calibration: Calibration | None = None,
    task: Task | None = None,
    library: Path | None = None,
    budget_s: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Chosen:
    """Search a model's rewrites on a target.

    Args:
        wanted: the goal; by default the least latency without any loss.
        calibration: unlabelled inputs to fit weights on.
        task: binds `Wanted.max_drop` to its metric, if given.
        library: folder of what was fitted and judged before.
        budget_s: seconds for the whole search.
        seed: of everything random.
        progress: called with (what, done, total).

    Raises:
        UsageError: there are too few rows, one cannot be read, or a limit makes no sense here.
        InfeasibleError: nothing meets the limits.
        CoverageError: too many kernels are unlike anything the cost model was trained on.
    """
    job = _Job(prepared, wanted or Wanted(), calibration, task, library, seed, budget_s, progress)
    try:
        return job.run()
    finally:
        if job.journal is not None:
            job.journal.close()


class _Job:
    """One search, phase by phase."""

    def __init__(
        self,
        prepared: Prepared,
        wanted: Wanted,
        calibration: Calibration | None,
        task: Task | None,
        library: Path | None,
        seed: int,
        budget_s: float | None,
        progress: Progress | None,
    ) -> None:
        self.prepared, self.wanted, self.task = prepared, wanted, task
        self.calibration, self.library, self.seed = calibration, library, seed
        self.budget_s = budget_s
        self.progress: Progress = progress or (lambda *_: None)
        self.phases = Phases()
        self.start = time.monotonic()
        self.deadline = None if budget_s is None else self.start + budget_s
        self.journal: Journal | None = None
        self.interrupted = False
        self.notes: list[str] = []
        self.trials: list[Trial] = []
        self.counts = Counter[str]()

    def run(self) -> Chosen:
        prepared, wanted = self.prepared, self.wanted
        evaluator = self._evaluator()
        (baseline,) = evaluator.evaluate([Candidate()])
        assert baseline.cost is not None
        self.goal = goal_of(
            wanted.objective,
            wanted.every_limit,
            baseline.cost,
            prepared.cost_model.target.clock_hz,
        )
        self.learned = learned = self._learned(baseline.cost)
        predicts = learned is not None and learned is not prepared.cost_model
        self.screen = Screen(learned) if learned and predicts and not wanted.full else None
        forced = Candidate() if prepared.ruled is None else prepared.ruled.forced
        self.forced = self._exact_of(forced)
        lacking = self._lacking(forced)
        search = None if lacking else self._recovery(evaluator)
        exact = self._exact(self._exact_of(wanted.start))
        effort = None
        if search is not None:
            search.base, search.forced = exact.best.candidate, forced
            effort = self._combinations(search)
        everything, chosen = self._decide(baseline.cost, exact, effort)
        beside = self._beside(chosen, exact)
        if beside is not None and beside.best.cost is not None:
            better = replace(chosen, candidate=beside.best.candidate, cost=beside.best.cost)
            everything.append(better)
            chosen = best_of([better, chosen], self.goal)
        if effort is not None and wanted.refit_front and wanted.effort != "quick":
            again = self._refitted(effort, everything, chosen)
            everything += again
            must = set(self.forced.decisions)
            again = [e for e in again if must <= set(e.candidate.decisions)]
            chosen = best_of([chosen, *again], self.goal)
        if effort is not None and wanted.effort == "thorough":
            chosen = self._distilled(everything, chosen)
        front, named = front_of(distinct(everything, chosen), chosen, self.goal)
        rows = (
            unfitted_rows(prepared.space, lacking)
            if search is None
            else recovered_rows(search, chosen.candidate)
        )
        besides = () if beside is None else beside.ledger
        ledger = *exact_rows(exact.ledger, besides, prepared.space, chosen.candidate), *rows
        return Chosen(
            chosen,
            baseline.cost,
            ledger,
            tuple({t.candidate: t for t in self.trials}.values()),
            self._report(exact, search, effort, chosen),
            tuple(self.notes),
            front,
            named,
            search,
        )

    def _evaluator(self) -> Evaluator:
        p = self.prepared
        return Evaluator(p.graph, p.space, p.passes, p.cost_model, p.input_shapes)

    def _learned(self, original: Cost) -> KernelCostModel | None:
        """What was learned about the target, where it can be used."""
        model, most = self.prepared.cost_model, self.wanted.max_uncovered
        if original.kind == "predicted":
            refuse_uncovered(original, model.target, MAX_UNCOVERED if most is None else most)
        try:
            learned = model.predictor()
            if learned is None or learned is model:
                return learned
            predicted = learned.cost(self._evaluator().view(Candidate()))
        except (UsageError, UnsupportedError) as error:
            self.notes.append(f"Every choice is compiled, none is predicted: {error}")
            return None
        if most is not None:
            refuse_uncovered(predicted, model.target, most)
        return learned

    def _exact_of(self, candidate: Candidate) -> Candidate:
        space = self.prepared.space
        exact = {(s.id, c.label) for s in space for c in s.choices if c.exactness == "exact"}
        return Candidate.of(dict(m for m in candidate.decisions if m in exact))

    def _lacking(self, forced: Candidate) -> str:
        """Why nothing can be fitted; empty if it can."""
        space, rows = self.prepared.space, self.calibration
        if not any(c.exactness == "recovered" for site in space for c in site.choices):
            return "there is nothing to fit"
        lacking = ""
        if rows is None:
            lacking = "its weights are fitted on inputs: give --calibration, and --max-drop"
        elif len(rows) < MIN_ROWS:
            lacking = (
                f"its weights are fitted on {MIN_ROWS} rows or more, and there are {len(rows)}"
            )
        elif not self.wanted.allows_loss:
            lacking = "it changes the outputs: say how much may be lost with --max-drop"
        fitted = [m for m in forced.decisions if m not in self._exact_of(forced).decisions]
        if lacking and fitted:
            raise UsageError(f"Rules force {fitted[0][0]}={fitted[0][1]}, and {lacking}.")
        return lacking

    def _recovery(self, evaluator: Evaluator) -> RecoverySearch:
        assert self.calibration is not None
        search = recovery_search(
            self.prepared, self.calibration, self.library, self.seed, self.progress
        )
        self.damage = Damage.of(self.prepared, search.held_out, self.task, self.seed)
        self.distillation = Distillation(search, self.damage, self.goal, self.seed)
        if self.library is not None:
            self.journal = open_journal(
                self.prepared, search.recovery.rows, self.library, self.seed
            )
        search.evaluator = evaluator
        evaluator.journal = search.journal = self.journal
        search.screen, search.full = self.screen, self.wanted.full
        search.predictor = self.learned
        search.deadline = search.recovery.deadline = self.deadline
        search.recovery.workers = self.wanted.workers
        asked = {*self.goal.columns, *self.goal.ceilings} - {column("quality")}
        # What lowers the peak shows only beside others: whatever is smaller may be worth it.
        peak = {column("macs"), column("weights")} if column("peak-memory") in asked else set()
        search.axes = tuple(sorted(asked | peak or {0}))
        if self.prepared.ruled is not None:
            search.factors = self.prepared.ruled.factors
        self._phase("reading the data", 0)
        return search

    def _exact(self, start: Candidate) -> SearchResult:
        self.searched = ExactSearch(
            self.prepared, self.goal, self.screen, self.journal, self.forced, self.progress
        )
        begin = Candidate.of({**dict(start.decisions), **dict(self.forced.decisions)})
        found = self.searched.run(self._left(), begin)
        if self.forced.decisions and found.best.cost is None:
            raise UsageError(f"What the rules force cannot be made: {found.best.reason}.")
        self.interrupted = found.stopped == "interrupted"
        self.trials += found.trials
        self.counts += Counter(found.counts)
        self._phase("rewrites that change nothing", len(found.trials))
        return found

    def _combinations(self, search: RecoverySearch) -> Effort:
        effort = Effort(
            search,
            self.damage,
            self.goal,
            self.wanted.effort,
            self.wanted.strategy,
            self.seed,
            self.wanted.start,
        )
        if self.interrupted:
            return effort
        try:
            search.judge_alone()
            self._phase("each fitted choice alone", len(search.alone))
            effort.run()
        except KeyboardInterrupt:
            self.interrupted = True
        self.trials += [t for t in search.evaluator.trials.values() if t.candidate.decisions]
        self.trials += [t.finalist.trial for t in effort.tried]
        self._phase("combinations of fitted choices", len(effort.tried))
        return effort

    def _decide(
        self, original: Cost, exact: SearchResult, effort: Effort | None
    ) -> tuple[list[Evaluated], Evaluated]:
        """All that could be had, and the best of it."""
        forced = set(self.forced.decisions)
        unchanged = Evaluated(Candidate(), original)
        costed = [
            Evaluated(t.candidate, t.cost, evaluation="single-shot")
            for t in exact.trials
            if t.cost is not None and t.candidate.decisions
        ]
        fitted = [] if effort is None else [t.evaluated for t in effort.tried]
        best = [e for e in costed if e.candidate == exact.best.candidate]
        allowed = [e for e in (unchanged, *best, *fitted) if forced <= set(e.candidate.decisions)]
        try:
            chosen = best_of(allowed, self.goal)
        except InfeasibleError:
            # What the greedy search passed over may meet a limit that its end does not.
            more = [e for e in costed if forced <= set(e.candidate.decisions)]
            chosen = best_of([*allowed, *more], self.goal)
        return [unchanged, *costed, *fitted], chosen

    def _beside(self, chosen: Evaluated, exact: SearchResult) -> SearchResult | None:
        """What changes nothing, looked for again beside what is fitted."""
        made = Candidate.of(dict(m for m in chosen.candidate.decisions if m in {*chosen.weights}))
        if not made.decisions:
            return None
        found = self.searched.run(
            0.0 if self.interrupted else self._left(),
            self._exact_of(chosen.candidate),
            made,
            chosen.weights,
            chosen.evaluation,
            frozenset(paying(exact)),
        )
        self.interrupted |= found.stopped == "interrupted"
        self.trials += found.trials
        self.counts += Counter(found.counts)
        self._phase("the same beside the fitted ones", len(found.trials))
        return found

    def _refitted(
        self, effort: Effort, everything: list[Evaluated], chosen: Evaluated
    ) -> list[Evaluated]:
        """The named candidates, fitted in order where they were not yet."""
        if self.interrupted:
            return []
        _, named = front_of(distinct(everything, chosen), chosen, self.goal)
        known = len(effort.tried)
        try:
            effort.refit_all([e.candidate for e in named.values() if e.weights])
        except OutOfTime:
            pass  # they stay as they were judged before
        except KeyboardInterrupt:
            self.interrupted = True
        found = [t.evaluated for t in effort.tried[known:]]
        self._phase("fitting the named ones again", len(found))
        return found

    def _distilled(self, everything: list[Evaluated], chosen: Evaluated) -> Evaluated:
        """What is best once finalists are trained as a whole; those join everything."""
        must = set(self.forced.decisions)
        try:
            self.distillation.run(
                [e for e in everything if must <= set(e.candidate.decisions)], chosen
            )
        except KeyboardInterrupt:
            self.interrupted = True
        if self.distillation.why_not:
            self.notes.append(f"Not distilled: {self.distillation.why_not}")
        everything += self.distillation.kept
        self._phase("distilling finalists", len(self.distillation.rows))
        return best_of([chosen, *self.distillation.kept], self.goal)

    def _left(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def _phase(self, name: str, evaluations: int) -> None:
        self.phases.ended(name, evaluations)

    def _report(
        self,
        exact: SearchResult,
        search: RecoverySearch | None,
        effort: Effort | None,
        chosen: Evaluated,
    ) -> dict[str, Any]:
        """For the report: plain JSON values."""
        trials = {t.candidate for t in self.trials}
        late = self.deadline is not None and time.monotonic() > self.deadline
        late |= search is not None and search.cut_short
        stopped = "interrupted" if self.interrupted else "budget" if late else exact.stopped
        found: dict[str, Any] = {
            "strategy": f"{self.wanted.strategy}, then greedy" if search else "greedy",
            "effort": self.wanted.effort,
            "objective": list(self.wanted.objective),
            "limits": {limit.metric: str(limit) for limit in self.goal.limits},
            "space": "full" if self.wanted.full else "curated",
            "seed": self.seed,
            "budget_s": self.budget_s,
            "evaluations": len(trials),
            "by_kind": dict(sorted(self._kinds(search, effort).items())),
            "space_size": float(self.prepared.space.size()),
            "seconds": round(time.monotonic() - self.start, 3),
            "cpu_seconds": round(sum(float(p["cpu_seconds"]) for p in self.phases.rows), 3),
            "phases": self.phases.rows,
            "stopped": stopped,
        }
        if search is not None and effort is not None:
            tried = [t for t in effort.tried if t.evaluated.weights is chosen.weights]
            found["recovery"] = effort.report(tried[0] if tried else None, self.wanted.max_drop)
            if self.wanted.effort == "thorough":
                found["recovery"]["distilled"] = self.distillation.to_dict(chosen)
        return found

    def _kinds(self, search: RecoverySearch | None, effort: Effort | None) -> Counter[str]:
        """How many networks were looked at in which way."""
        kinds = self.counts + (Counter() if search is None else search.evaluator.counts)
        if effort is not None:
            kinds["looked up"] = effort.looked_up
            kinds += Counter(t.evaluated.evaluation for t in effort.tried)
            kinds += Counter({"distilled": len(self.distillation.rows)})
        return kinds
