"""The strategies by name, and the two simple ones that the others are compared with."""

from __future__ import annotations

import numpy as np

from onnxnas.errors import unknown_name
from onnxnas.evolution import Evolution
from onnxnas.exact import Exact
from onnxnas.problem import Figures, Genes, Problem
from onnxnas.strategy import Recent, Strategy

_EPSILON = 1e-6
"""Of a share: what is free counts as this dear, so that the largest of the free steps wins."""


class Random(Strategy):
    """Uniform over all choices, conflicts repaired; the baseline. Never finishes by itself."""

    name = "random"
    _BATCH = 64

    def ask(self) -> Genes:
        first, self.start = self.start, self.start[:0]
        if len(first):
            return first
        return self.problem.repaired(self.problem.drawn(self.rng, self._BATCH), self.rng)

    def tell(self, genes: Genes, figures: Figures) -> None:
        pass


class Greedy(Strategy):
    """One decision after the other: what brings most for what it uses up.

    While limits are missed, the decision that closes most of the gap for the least loss of the
    objective; after that the one that gains most of the objective for the least use of what the
    limits leave. Ends where no single decision helps. Several metrics count as the sum of their
    shares of the original.
    """

    name = "greedy"

    def __init__(self, problem: Problem, seed: int = 0, start: Genes | None = None) -> None:
        super().__init__(problem, seed, start)
        self._recent = Recent()
        self._at: Genes | None = None
        self._figures: Figures = np.zeros((0, 0))
        self._done = False

    def ask(self) -> Genes:
        if self._done:
            return self.start[:0]
        if self._at is None:
            keep = np.zeros((1, len(self.problem.choices)), dtype=np.intp)
            keep = self.problem.repaired(keep, self.rng)
            return self._recent.fresh(np.concatenate([self.start, keep]))
        return self._recent.fresh(self.problem.neighbours(self._at))

    def tell(self, genes: Genes, figures: Figures) -> None:
        if self._at is None:
            best = self.problem.goal.order(figures)[0]
            self._done = not self.problem.goal.possible(figures[[best]])[0]
        else:
            scores = self._scores(figures)
            best = int(np.argmax(scores))
            self._done = scores[best] <= 0
        if not self._done:
            self._at, self._figures = genes[best], figures[best]

    def _scores(self, figures: Figures) -> Figures:
        """How good a step to each candidate is; positive where it is one forward."""
        goal = self.problem.goal
        both = np.concatenate([self._figures[None], figures])
        missed = goal.violations(both).sum(axis=1)
        possible = goal.possible(both)
        both = np.where(possible[:, None], both, self._figures)
        scale = np.where(np.array(goal.original) > 0, goal.original, 1.0)
        value = (both / scale)[:, goal.columns].sum(axis=1)
        if missed[0] > 0:
            gained, spent = missed[0] - missed, value - value[0]
            gained = np.where(gained > _EPSILON, gained, 0.0)
        else:
            used = sum((both[:, c] / (most or 1.0) for c, most in goal.ceilings.items()), value * 0)
            gained, spent = value[0] - value, used - used[0]
            gained = np.where(missed == 0, gained, 0.0)
        scores = gained / (np.maximum(spent, 0.0) + _EPSILON)
        forward: Figures = np.where(possible, scores, 0.0)[1:]
        return forward


STRATEGIES: dict[str, type[Strategy]] = {s.name: s for s in (Exact, Evolution, Greedy, Random)}


def make(name: str, problem: Problem, seed: int = 0, start: Genes | None = None) -> Strategy:
    """The strategy of that name.

    Args:
        name: a key of `STRATEGIES`.
        problem: what to search.
        seed: of everything random.
        start: candidates to begin with, (n, sites).

    Raises:
        UsageError: there is no such strategy.
    """
    if name not in STRATEGIES:
        raise unknown_name("strategy", name, STRATEGIES)
    return STRATEGIES[name](problem, seed, start)
