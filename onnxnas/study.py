"""The loop of a search: a strategy asks, candidates are evaluated, the front is kept.

Looking a candidate up in the table leaves nothing behind but the front, so a study's memory and
its time per candidate do not grow. Real evaluations (compiling, running on data) go through a
`Journal`: strategies are deterministic, so a study that was killed and is run again asks the same
and is answered from the journal until it is where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxnas.front import Archive
from onnxnas.journal import Journal
from onnxnas.objectives import FIGURES
from onnxnas.problem import Figures, Genes, Problem
from onnxnas.search import Progress
from onnxnas.sites import Candidate
from onnxnas.strategy import Strategy

Evaluate = Callable[[Genes], Iterable[Sequence[float]]]
"""Figures of n candidates, one row after the other; may be lazy."""


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        genes: (n, sites) of the front: candidates within all limits that no other one beats in
            what is minimised or limited; sorted by that, the first metric first.
        figures: (n, 5) of the front.
        nearest: genes of the best candidate: within the limits if there is any, else the one
            that misses them the least; None where nothing is possible.
        nearest_figures: its figures.
        evaluations: candidates that were asked for.
        stopped: why the study ended.
    """

    genes: Genes
    figures: Figures
    nearest: Genes | None
    nearest_figures: Figures | None
    evaluations: int
    stopped: Literal["finished", "evaluations", "budget", "interrupted"]


class Study:
    """One strategy on one problem."""

    def __init__(
        self, problem: Problem, strategy: Strategy, evaluate: Evaluate | None = None
    ) -> None:
        """Prepare; nothing is evaluated yet.

        Args:
            problem: what to search.
            strategy: made for the same problem.
            evaluate: where figures come from, `Problem.evaluate` if not given; see `journaled`.
        """
        self.problem = problem
        self.strategy = strategy
        self.evaluate = evaluate or problem.evaluate
        goal = problem.goal
        columns = dict.fromkeys((*goal.columns, *goal.ceilings))
        self._front = Archive(len(problem.choices), tuple(columns))
        self._nearest: tuple[Genes, Figures] | None = None
        self._evaluations = 0

    def run(
        self, evaluations: int, deadline: float | None = None, progress: Progress | None = None
    ) -> StudyResult:
        """Search; Ctrl-C ends it early with what was found so far.

        Args:
            evaluations: at most so many candidates in all.
            deadline: by `time.monotonic`; nothing is evaluated after it.
            progress: called with (what, done, total).
        """
        report = progress or (lambda *_: None)
        stopped: Literal["finished", "evaluations", "budget", "interrupted"] = "evaluations"
        try:
            while self._evaluations < evaluations:
                report("searching", self._evaluations, evaluations)
                asked = self.strategy.ask()
                if not len(asked):
                    stopped = "finished"
                    break
                genes = asked[: evaluations - self._evaluations]
                figures = self._figures(genes, deadline)
                self._take(genes[: len(figures)], figures)
                if len(figures) < len(genes):
                    stopped = "budget"
                    break
                if len(genes) < len(asked):
                    break
                self.strategy.tell(genes, figures)
        except KeyboardInterrupt:
            stopped = "interrupted"
        report("searching", self._evaluations, evaluations)
        return StudyResult(
            self._front.genes,
            self._front.figures,
            None if self._nearest is None else self._nearest[0],
            None if self._nearest is None else self._nearest[1],
            self._evaluations,
            stopped,
        )

    def _figures(self, genes: Genes, deadline: float | None) -> Figures:
        """Of the candidates that there was time for."""
        rows: list[Sequence[float]] = []
        answers = iter(self.evaluate(genes))
        while len(rows) < len(genes):
            if deadline is not None and time.monotonic() > deadline:
                break
            rows.append(next(answers))
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(FIGURES))

    def _take(self, genes: Genes, figures: Figures) -> None:
        if not len(genes):
            return
        self._evaluations += len(genes)
        goal = self.problem.goal
        feasible = goal.feasible(figures)
        self._front.add(genes[feasible], figures[feasible])
        best = goal.order(figures)[0]
        if not goal.possible(figures[[best]])[0]:
            return
        if self._nearest is not None:
            both = np.stack([self._nearest[1], figures[best]])
            if goal.order(both)[0] == 0:
                return
        self._nearest = genes[best].copy(), figures[best].copy()


def journaled(
    problem: Problem,
    journal: Journal,
    kind: str,
    evaluate: Callable[[Sequence[Candidate]], Iterable[Sequence[float]]],
) -> Evaluate:
    """An evaluation that asks the journal first and writes down what is new.

    Args:
        problem: says what genes mean.
        journal: of this model, target and data.
        kind: of evaluation, e.g. ``compiled``.
        evaluate: figures of the candidates that are not in the journal, in order; may be lazy,
            then each is on disk before the next one starts.
    """

    def lookup(genes: Genes) -> Iterator[Sequence[float]]:
        candidates = [problem.candidate(row) for row in genes]
        new = [c for c in dict.fromkeys(candidates) if journal.get(kind, c) is None]
        answers = iter(evaluate(new) if new else ())
        for candidate in candidates:
            known = journal.get(kind, candidate)
            if known is None:
                row = [float(f) for f in next(answers)]
                known = {"figures": [f if np.isfinite(f) else str(f) for f in row]}
                journal.add(kind, candidate, known)
            yield [float(f) for f in known["figures"]]

    return lookup
