"""The proven optimum of a problem's table as a strategy; a front by a ladder of limits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxnas.integer_program import Program, Solution
from onnxnas.problem import Figures, Genes, Problem
from onnxnas.strategy import Recent, Strategy

_RUNGS = 20
"""Limits of a ladder, when more than one metric is minimised."""


class Exact(Strategy):
    """The proven optimum; with several metrics to minimise, a ladder of limits on the first.

    Where nothing meets the limits, the candidate whose worst miss is least.

    It believes the problem's own table, whatever it is told; see `solutions`.

    Attributes:
        solutions: what was found so far, each with the gap that is left.
    """

    name = "exact"

    def __init__(self, problem: Problem, seed: int = 0, start: Genes | None = None) -> None:
        super().__init__(problem, seed, start)
        self.solutions: list[Solution] = []
        self._recent = Recent()
        self._steps = self._ladder(Program(problem))

    def ask(self) -> Genes:
        first, self.start = self._recent.fresh(self.start), self.start[:0]
        if len(first):
            return first
        for solution in self._steps:
            self.solutions.append(solution)
            if solution.genes is not None:
                fresh = self._recent.fresh(solution.genes[None])
                if len(fresh):
                    return fresh
        return self.start

    def tell(self, genes: Genes, figures: Figures) -> None:
        pass

    def _ladder(self, program: Program) -> Iterator[Solution]:
        goal = self.problem.goal
        first, *others = goal.columns
        ceilings = goal.ceilings
        lowest = program.best(first, ceilings)
        yield lowest
        if lowest.genes is None and ceilings:
            yield program.nearest(ceilings)
            return
        for other in others:
            mildest = program.best(other, ceilings)
            yield mildest
            if mildest.genes is None or lowest.genes is None:
                continue
            mildest = program.best(first, {**ceilings, other: mildest.value})
            yield mildest
            if mildest.genes is None:  # only by the solver's tolerance
                continue
            for most in np.linspace(lowest.value, mildest.value, _RUNGS)[:-1]:
                yield program.best(other, {**ceilings, first: float(most)})
