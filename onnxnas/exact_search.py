"""Rewrites that change nothing: the best of them, alone or beside what is decided already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxnas.front_point import Evaluation
from onnxnas.greedy import SearchResult, Value, greedy, neighbourhood
from onnxnas.journal import Journal
from onnxnas.materialize import Weights, apply_candidate
from onnxnas.objectives import Goal, column
from onnxnas.prepare import Prepared
from onnxnas.screening import Screen
from onnxnas.search import Evaluator, Move, Progress, Trial, figures_of
from onnxnas.sites import Candidate, SearchSpace

_MISSED = 10.0
"""Shares of the objective that missing a limit by all of it counts for."""
_DAMAGE = column("quality")


@dataclass
class _Beside(Evaluator):
    """Costs candidates on top of decisions that are already made, with their fitted weights."""

    made: Candidate = field(default_factory=Candidate)
    weights: Weights = field(default_factory=dict)
    whole: SearchSpace = field(default_factory=lambda: SearchSpace(()))
    evaluation: Evaluation = "original"

    def together(self, candidate: Candidate) -> Candidate:
        """With what is made already."""
        return Candidate.of({**dict(self.made.decisions), **dict(candidate.decisions)})

    def view(self, candidate: Candidate) -> Any:
        applied = apply_candidate(
            self.graph,
            self.whole,
            self.together(candidate),
            self.passes,
            self.weights,
            shapes=False,
        )
        return applied.view(self.input_shapes)

    def recorded_as(self, candidate: Candidate) -> tuple[str, Candidate]:
        kind = f"compiled {self.evaluation}" if self.made.decisions else "compiled"
        return kind, self.together(candidate)


@dataclass(frozen=True)
class ExactSearch:
    """Searches the exact choices of a model.

    Attributes:
        prepared: of the model.
        goal: what is wanted; damage has no part in it.
        screen: rules out without a compile.
        journal: of what was costed.
        forced: exact decisions that have to be made.
    """

    prepared: Prepared
    goal: Goal
    screen: Screen | None
    journal: Journal | None
    forced: Candidate
    progress: Progress

    def run(
        self,
        budget_s: float | None,
        start: Candidate,
        made: Candidate | None = None,
        weights: Weights | None = None,
        evaluation: Evaluation = "original",
        worth: frozenset[Move] | None = None,
    ) -> SearchResult:
        """Search beside some decisions; the candidates of the result hold these as well.

        Args:
            budget_s: seconds; 0 takes `start` as it is.
            start: exact decisions to begin with.
            made: what is decided already, with its weights.
            evaluation: how those weights came about.
            worth: choices known to pay elsewhere: of all others only those near `made` are tried.
        """
        prepared, made = self.prepared, made or Candidate()
        sites = [
            replace(site, choices=tuple(c for c in site.choices if c.exactness == "exact"))
            for site in prepared.space
            if not prepared.space.conflicts(site, made)
        ]
        if worth is not None:
            near = frozenset[str]().union(
                *(neighbourhood(prepared.graph, s) for s, _ in prepared.space.decided(made))
            )
            sites = [
                s
                for s in sites
                if neighbourhood(prepared.graph, s) & near
                or any((s.id, c.label) in worth for c in s.choices)
            ]
        space = SearchSpace(tuple(s for s in sites if s.choices))
        evaluator = _Beside(
            prepared.graph,
            space,
            prepared.passes,
            prepared.cost_model,
            prepared.input_shapes,
            journal=self.journal,
            made=made,
            weights=weights or {},
            whole=prepared.space,
            evaluation=evaluation,
        )
        ids = {s.id for s in space}
        found = greedy(
            evaluator,
            value=self.value(),
            screen=self.screen,
            start=Candidate.of({s: c for s, c in start.decisions if s in ids}),
            fixed=frozenset(s for s, _ in self.forced.decisions),
            budget_s=budget_s,
            progress=self.progress,
        )
        whole = [replace(t, candidate=evaluator.together(t.candidate)) for t in found.trials]
        best = replace(found.best, candidate=evaluator.together(found.best.candidate))
        return replace(found, best=best, trials=tuple(whole))

    def value(self) -> Value | None:
        """What is to be small; None where that is just the cycles."""
        goal = self.goal
        limits = tuple(limit for limit in goal.limits if limit.metric != "quality")
        columns = [at for at in goal.columns if at != _DAMAGE] or [0]
        if columns == [0] and not limits:
            return None
        wanted = replace(goal, limits=limits)

        def value(trial: Trial) -> float:
            if trial.cost is None:
                return float("inf")
            row = np.array([figures_of(trial.cost)])
            shares = sum(row[0, at] / goal.original[at] for at in columns if goal.original[at])
            return float(shares + _MISSED * wanted.violations(row).sum())

        return value


def paying(found: SearchResult) -> dict[Move, Trial]:
    """The chosen decisions of a search, each with its cost alone where that is known."""
    alone = {t.candidate: t for t in found.trials if len(t.candidate.decisions) == 1}
    moves: Sequence[Move] = found.best.candidate.decisions
    singles = {m: alone.get(Candidate.of(dict([m]))) for m in moves}
    return {m: t for m, t in singles.items() if t is not None and t.cost is not None}
