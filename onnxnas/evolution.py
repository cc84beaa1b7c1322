"""NSGA-II over the choices of a problem: selection and survival by pymoo, genes by us.

Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II". Limits come first:
of two candidates that miss them the one that misses less survives.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxnas.errors import UsageError
from onnxnas.problem import Figures, Genes, Problem
from onnxnas.strategy import Recent, Strategy, keys

_POPULATION = 40
_PATIENCE = 10
"""Generations bred in vain before the space counts as searched."""


class Evolution(Strategy):
    """NSGA-II; finishes when it finds nothing new, which only happens in small spaces."""

    name = "evolution"

    def __init__(self, problem: Problem, seed: int = 0, start: Genes | None = None) -> None:
        super().__init__(problem, seed, start)
        self._recent = Recent()
        self._asked: Any = None
        self._algorithm = self._nsga2()

    def ask(self) -> Genes:
        bred = self._asked is not None
        self._asked = self._algorithm.ask() if self.problem.size > 1 or not bred else None
        if self._asked is None:
            return self.start[:0]
        genes: Genes = self._asked.get("X").astype(np.intp)
        return self._recent.fresh(genes)

    def tell(self, genes: Genes, figures: Figures) -> None:
        goal = self.problem.goal
        possible = goal.possible(figures)
        missed = np.where(possible[:, None], goal.violations(figures), 1e9)
        # What is impossible needs figures all the same; its misses keep it from surviving.
        figures = np.where(possible[:, None], figures, goal.original)
        impossible = np.where(possible, 0.0, 1e9)[:, None]
        self._asked.set(
            "F", figures[:, goal.columns], "G", np.concatenate([missed, impossible], axis=1)
        )
        self._algorithm.tell(infills=self._asked)

    def _nsga2(self) -> Any:
        try:
            from pymoo.algorithms.moo.nsga2 import NSGA2, binary_tournament
            from pymoo.core.mating import Mating
            from pymoo.core.problem import Problem as PymooProblem
            from pymoo.core.termination import NoTermination
            from pymoo.operators.crossover.ux import UniformCrossover
            from pymoo.operators.selection.tournament import TournamentSelection
        except ImportError:
            raise UsageError(
                "The evolution strategy needs pymoo: pip install 'onnxnas[search]'."
            ) from None
        goal, choices = self.problem.goal, self.problem.choices
        described = PymooProblem(
            n_var=len(choices),
            n_obj=len(goal.columns),
            n_ieq_constr=len(goal.limits) + 1,
            xl=np.zeros(len(choices)),
            xu=choices,
            vtype=int,
        )
        mating = Mating(
            TournamentSelection(func_comp=binary_tournament),
            UniformCrossover(),
            self._mutated,
            repair=self._repaired,
            eliminate_duplicates=_Unseen(self._recent),
            n_max_iterations=_PATIENCE,
        )
        algorithm = NSGA2(
            pop_size=_POPULATION,
            sampling=self._first(),
            mating=mating,
            termination=NoTermination(),
            seed=int(self.rng.integers(2**31)),
        )
        return algorithm.setup(described)

    def _first(self) -> Genes:
        """What is given, the original, and candidates that rewrite anything from little to all."""
        drawn = self.problem.drawn(self.rng, 4 * _POPULATION)
        density = self.rng.random((len(drawn), 1))
        drawn[self.rng.random(drawn.shape) > density] = 0
        drawn[0] = 0
        drawn = self.problem.repaired(drawn, self.rng)
        everyone = Recent().fresh(np.concatenate([self.start, drawn]))
        return everyone[: max(_POPULATION, len(self.start) + 1)]

    def _mutated(self, _: Any, offspring: Any, random_state: Any = None, **__: Any) -> Any:
        """About one site of each candidate gets another gene."""
        genes = offspring.get("X").astype(np.intp)
        open_sites = np.array([len(g) > 1 for g in self.problem.allowed], dtype=bool)
        hit = random_state.random(genes.shape) < 1 / max(1, open_sites.sum())
        drawn = self.problem.drawn(random_state, len(genes))
        again = self.problem.drawn(random_state, len(genes))
        other = np.where(drawn == genes, again, drawn)
        offspring.set("X", np.where(hit & open_sites, other, genes))
        return offspring

    def _repaired(self, _: Any, offspring: Any, random_state: Any = None, **__: Any) -> Any:
        genes = offspring.get("X").astype(np.intp)
        offspring.set("X", self.problem.repaired(genes, random_state))
        return offspring


class _Unseen:
    """Keeps candidates from being asked for again; what pymoo calls to eliminate duplicates."""

    def __init__(self, recent: Recent) -> None:
        self._recent = recent

    def do(self, offspring: Any, *others: Any) -> Any:
        seen = {key for other in others if len(other) for key in keys(other.get("X"))}
        rows = []
        for i, key in enumerate(keys(offspring.get("X"))):
            if key not in seen and key not in self._recent:
                seen.add(key)
                rows.append(i)
        return offspring[rows]
