"""Which rewrites to make: those that need data first, then the exact ones beside them.

Nothing is lost that the user did not allow: without calibration data and a limit on the loss only
exact choices are searched (`onnxnas.search`), and the ledger says of the others what they need.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxnas import graph as graphs
from onnxnas.calibration import Calibration
from onnxnas.errors import UsageError
from onnxnas.fit_rows import MIN_ROWS, FitRows
from onnxnas.greedy import SearchResult, greedy
from onnxnas.held_out import HeldOut
from onnxnas.materialize import Weights, apply_candidate
from onnxnas.prepare import Prepared
from onnxnas.quality import Task, compare
from onnxnas.recover import BlockLibrary, Recovery, values_only
from onnxnas.recovery_search import Finalist, RecoverySearch
from onnxnas.screening import Screen
from onnxnas.search import Evaluator, LedgerRow, Progress, Status, Trial
from onnxnas.sites import Candidate, SearchSpace, Site


@dataclass(frozen=True)
class Chosen:
    """What to make of a model.

    Attributes:
        candidate: the decisions.
        weights: of the recovered ones.
        ledger: one row per site and choice.
        trials: every candidate that was costed.
        search: for the report.
        notes: warnings for people.
    """

    candidate: Candidate
    weights: Weights
    ledger: tuple[LedgerRow, ...]
    trials: tuple[Trial, ...]
    search: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass
class _Beside(Evaluator):
    """Costs candidates on top of decisions that are already made, with their fitted weights."""

    made: Candidate = field(default_factory=Candidate)
    weights: Weights = field(default_factory=dict)
    whole: SearchSpace = field(default_factory=lambda: SearchSpace(()))

    def view(self, candidate: Candidate) -> Any:
        both = Candidate.of({**dict(self.made.decisions), **dict(candidate.decisions)})
        applied = apply_candidate(self.graph, self.whole, both, self.passes, self.weights)
        return graphs.static_view(applied.graph, self.input_shapes)


def choose(
    prepared: Prepared,
    *,
    calibration: Calibration | None = None,
    task: Task | None = None,
    max_drop: float | None = None,
    library: Path | None = None,
    budget_s: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Chosen:
    """Search a model's rewrites on a target.

    Args:
        calibration: unlabelled inputs to fit weights on.
        task: binds `max_drop` to its metric, if given.
        max_drop: the most that may be lost of the task metric; without a task of agreement with
            the original where outputs are classes, else squared error over variance. None
            allows no loss: only exact rewrites are searched.
        library: folder of what was fitted before.
        budget_s: seconds for the whole search.
        seed: of sampled positions.
        progress: called with (what, done, total).

    Raises:
        UsageError: there are too few rows, or one cannot be read.
    """
    start = time.monotonic()
    report = progress or (lambda *_: None)
    fitted = any(c.exactness == "recovered" for site in prepared.space for c in site.choices)
    made, weights, recovery_report = Candidate(), dict[Any, Any](), dict[str, Any]()
    lacking = _lacking(calibration, max_drop)
    rows: tuple[LedgerRow, ...] = tuple(_unfitted(prepared.space, lacking))
    costed: tuple[Trial, ...] = ()
    interrupted = False
    screen, notes = _screen(prepared)
    if fitted and not lacking and calibration is not None and max_drop is not None:
        search = recovery_search(prepared, calibration, library, seed, report)
        limit = _Limit.of(prepared, search, task, max_drop, seed)
        deadline = None if budget_s is None else start + budget_s
        search.screen = screen
        search.deadline = search.recovery.deadline = deadline
        try:
            search.judge_alone()
            search.climb(limit.value, limit.damage)
        except KeyboardInterrupt:
            interrupted, budget_s = True, 0.0
        best = search.best(limit.value, limit.damage)
        if best is not None:
            made, weights = best.candidate, values_only(best.weights)
        rows = tuple(_recovered_rows(search, best))
        costed = tuple(search.evaluator.trials.values())
        recovery_report = {"recovery": limit.report(search, best)}
    left = None if budget_s is None else max(0.0, start + budget_s - time.monotonic())
    exact = _exact_beside(prepared, made, weights, screen, left, report)
    candidate = Candidate.of({**dict(made.decisions), **dict(exact.best.candidate.decisions)})
    trials = (*costed, *exact.trials)
    return Chosen(
        candidate,
        weights,
        (*exact.ledger, *rows),
        trials,
        {
            "strategy": "integer program, then greedy" if recovery_report else "greedy",
            "seed": seed,
            "budget_s": budget_s,
            "evaluations": len(trials),
            "space_size": float(prepared.space.size()),
            "seconds": round(time.monotonic() - start, 3),
            "stopped": "interrupted" if interrupted else exact.stopped,
            **recovery_report,
        },
        notes,
    )


def fit_again(
    prepared: Prepared,
    candidate: Candidate,
    calibration: Calibration | None,
    library: Path | None,
    seed: int,
    progress: Progress | None,
) -> Weights:
    """The weights of a candidate that was found before; from the library where it has them.

    Raises:
        UsageError: weights are to be fitted and there is too little data, or they cannot be.
    """
    decided = prepared.space.decided(candidate)
    if all(choice.exactness == "exact" for _, choice in decided):
        return {}
    if calibration is None:
        raise UsageError("Weights of this recipe are fitted on inputs: give --calibration.")
    report = progress or (lambda *_: None)
    search = recovery_search(prepared, calibration, library, seed, report)
    found, refused = search.recovery.in_order(candidate)
    for (site_id, label), reason in refused.items():
        raise UsageError(f"The weights of {site_id}={label} cannot be fitted: {reason}.")
    return values_only(found)


def recovery_search(
    prepared: Prepared,
    calibration: Calibration,
    library: Path | None,
    seed: int,
    progress: Progress,
) -> RecoverySearch:
    """Everything the search of recovered choices needs, nothing searched yet.

    Raises:
        UsageError: there are too few rows, or one cannot be read.
    """
    progress("reading the calibration data", 0, 1)
    rows = FitRows.of(calibration)
    stored = prepared.normalised.SerializeToString(deterministic=True)
    evaluator = Evaluator(
        prepared.graph,
        prepared.space,
        prepared.passes,
        prepared.cost_model,
        prepared.input_shapes,
    )
    held_out = HeldOut.of(prepared.graph, rows)
    recovery = Recovery(
        prepared.graph,
        hashlib.sha256(stored).hexdigest(),
        prepared.space,
        prepared.passes,
        rows,
        BlockLibrary(library),
        seed,
        progress,
    )
    held_out.tick = recovery.tick
    return RecoverySearch(evaluator, recovery, held_out, progress)


def _exact_beside(
    prepared: Prepared,
    made: Candidate,
    weights: Weights,
    screen: Screen | None,
    budget_s: float | None,
    progress: Progress,
) -> SearchResult:
    """Greedy search of the exact choices that do not conflict with what is decided already."""
    sites = [
        replace(site, choices=tuple(c for c in site.choices if c.exactness == "exact"))
        for site in prepared.space
        if not prepared.space.conflicts(site, made)
    ]
    evaluator = _Beside(
        prepared.graph,
        SearchSpace(tuple(s for s in sites if s.choices)),
        prepared.passes,
        prepared.cost_model,
        prepared.input_shapes,
        made=made,
        weights=weights,
        whole=prepared.space,
    )
    return greedy(evaluator, screen=screen, budget_s=budget_s, progress=progress)


def _screen(prepared: Prepared) -> tuple[Screen | None, tuple[str, ...]]:
    """What rules choices out without a compile, and why there is none although there could be."""
    try:
        return Screen.of(prepared.cost_model), ()
    except UsageError as error:
        return None, (f"Every choice is compiled, none is predicted: {error}",)


@dataclass(frozen=True)
class _Limit:
    """What a result may lose, and by what that is measured.

    Attributes:
        binds: ``task``, ``agreement`` or ``error``.
        value: the most that may be lost.
        damage: what a finalist loses.
    """

    binds: str
    value: float
    damage: Callable[[Finalist], float]

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        search: RecoverySearch,
        task: Task | None,
        max_drop: float,
        seed: int,
    ) -> _Limit:
        drops: dict[Candidate, float] = {}

        def task_drop(finalist: Finalist) -> float:
            assert task is not None
            if finalist.candidate not in drops:
                applied = apply_candidate(
                    prepared.graph,
                    prepared.space,
                    finalist.candidate,
                    prepared.passes,
                    values_only(finalist.weights),
                )
                model = graphs.to_model(applied.graph, prepared.normalised)
                drops[finalist.candidate] = compare(task, prepared.source, model, seed)[0].drop
            return drops[finalist.candidate]

        if task is not None:
            binds, damage = "task", task_drop
        elif any(j.kind == "logits" for j in search.held_out.judged):
            binds, damage = "agreement", _disagreement
        else:
            binds, damage = "error", _error
        return cls(binds, max_drop, damage)

    def report(self, search: RecoverySearch, best: Finalist | None) -> dict[str, Any]:
        """The figures of every finalist, plain JSON values."""
        rows = search.recovery.rows
        base = search.baseline.cycles
        return {
            "bound": {"on": self.binds, "max_drop": self.value},
            "measure": " and ".join(sorted({j.measure for j in search.held_out.judged})),
            "rows_fitted_on": rows.roles.count("fit"),
            "rows_tuned_by": rows.roles.count("tune"),
            "rows_held_out": sum(rows.held_out),
            "finalists": [
                {
                    "cycles": f.trial.cycles,
                    "saving": 1 - f.trial.cycles / base,
                    "divergence": f.divergence.value,
                    "divergence_standard_error": f.divergence.error,
                    "agreement": f.divergence.agrees,
                    "agreement_standard_error": f.divergence.agreement_error,
                    "drop": self.damage(f),
                    "sum_of_single_divergences": f.proxy,
                    "chosen": f is best,
                    "candidate": str(f.candidate),
                }
                for f in sorted(search.finalists, key=lambda f: -f.trial.cycles)
            ],
        }


def _disagreement(finalist: Finalist) -> float:
    agrees = finalist.divergence.agrees
    return 1.0 - (0.0 if agrees is None else agrees)


def _error(finalist: Finalist) -> float:
    return finalist.divergence.value


def _lacking(calibration: Calibration | None, max_drop: float | None) -> str:
    """Why nothing can be fitted; empty if it can."""
    if calibration is None:
        return "its weights are fitted on inputs: give --calibration, and --max-drop"
    if len(calibration) < MIN_ROWS:
        return (
            f"its weights are fitted on {MIN_ROWS} rows or more, and there are {len(calibration)}"
        )
    if max_drop is None:
        return "it changes the outputs: say how much may be lost with --max-drop"
    return ""


def _unfitted(space: SearchSpace, reason: str) -> Iterator[LedgerRow]:
    for site in space:
        for choice in site.choices:
            if choice.exactness == "recovered":
                yield _row(site, choice.label, "not chosen", reason, None)


def _recovered_rows(search: RecoverySearch, best: Finalist | None) -> Iterator[LedgerRow]:
    chosen = {} if best is None else dict(best.candidate.decisions)
    for site in search.space:
        for choice in site.choices:
            if choice.exactness != "recovered":
                continue
            move = (site.id, choice.label)
            trial, single = search.alone.get(move), search.singles.get(move)
            delta = None
            if trial is not None and trial.cost is not None:
                delta = trial.cycles - search.baseline.cycles
            harm = "" if single is None else f"divergence {single.divergence.value:.4f} alone"
            if chosen.get(site.id) == choice.label:
                yield _row(site, choice.label, "applied", f"{choice.note}; {harm}", delta)
            elif trial is None:
                reason = search.rejected.get(move, "not costed before the search was stopped")
                yield _row(site, choice.label, "not chosen", reason, delta)
            elif trial.cost is None:
                status: Status = "not chosen" if trial.ruled_out else "impossible"
                yield _row(site, choice.label, status, trial.reason, delta)
            elif move in search.rejected:
                saves = delta is not None and -delta > 0
                status = "rejected" if saves and single is None else "not chosen"
                yield _row(site, choice.label, status, search.rejected[move], delta)
            elif site.id in chosen:
                reason = f"{chosen[site.id]} is better here ({harm})"
                yield _row(site, choice.label, "not chosen", reason, delta)
            else:
                reason = f"others save as much for less ({harm})"
                yield _row(site, choice.label, "not chosen", reason, delta)


def _row(site: Site, label: str, status: Status, reason: str, delta: float | None) -> LedgerRow:
    return LedgerRow(site.pass_name, site.tensor, label, status, reason, "recovered", delta)
