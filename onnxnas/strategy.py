"""How a search walks: strategies ask for candidates and are told their figures.

    strategy = onnxnas.strategies.make("evolution", problem, seed=0)
    while len(genes := strategy.ask()):
        strategy.tell(genes, problem.evaluate(genes))

`onnxnas.study.Study` is that loop with a budget, a journal and a front. Every strategy is
deterministic for its seed and what it is told.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import ClassVar

import numpy as np

from onnxnas.problem import Figures, Genes, Problem


class Strategy(ABC):
    """Proposes candidates; `ask` and `tell` take turns.

    Attributes:
        name: kebab-case.
        problem: what is searched.
        seed: of everything random.
        start: candidates to begin with, conflict-free or not; may be empty.
    """

    name: ClassVar[str]

    def __init__(self, problem: Problem, seed: int = 0, start: Genes | None = None) -> None:
        self.problem = problem
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        sites = len(problem.choices)
        given = np.zeros((0, sites)) if start is None else np.asarray(start)
        self.start = problem.repaired(given.astype(np.intp), self.rng)

    @abstractmethod
    def ask(self) -> Genes:
        """Candidates to be evaluated next, free of conflicts; none when finished."""

    @abstractmethod
    def tell(self, genes: Genes, figures: Figures) -> None:
        """Take in the figures of what was asked last, in that order."""


class Recent:
    """Candidates that were asked for lately, so that none is asked for twice in a row of `LARGEST`.

    Bounded, so that a strategy's memory does not grow with what it has seen.
    """

    LARGEST = 50_000

    def __init__(self) -> None:
        self._order: deque[bytes] = deque()
        self._known: set[bytes] = set()

    def fresh(self, genes: Genes) -> Genes:
        """The candidates not seen lately, each once; they count as seen from now on."""
        rows = []
        for i, key in enumerate(keys(genes)):
            if key not in self._known:
                rows.append(i)
                self._saw(key)
        return genes[rows]

    def __contains__(self, key: bytes) -> bool:
        return key in self._known

    def _saw(self, key: bytes) -> None:
        self._known.add(key)
        self._order.append(key)
        if len(self._order) > self.LARGEST:
            self._known.remove(self._order.popleft())


def keys(genes: Genes) -> list[bytes]:
    """What tells candidates apart, hashable."""
    return [row.tobytes() for row in genes.astype(np.uint16)]
