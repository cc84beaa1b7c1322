"""Small search problems with made-up tables, to be compared with brute force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxnas.objectives import Goal, Limit
from onnxnas.problem import Cells, Figures, Genes, Problem
from onnxnas.search import Move
from onnxnas.sites import Choice, Site

CLOCK = 1e9  # a cycle is a nanosecond


@dataclass(frozen=True)
class Part:
    """A factor: see `onnxnas.problem.Factor`."""

    sites: tuple[int, ...]
    cycles: NDArray[np.float64]
    weight_bytes: NDArray[np.float64]
    macs: NDArray[np.float64]


@dataclass(frozen=True)
class MadeUpTable:
    """Sums of random factors; the peak is the largest of a few tensors that sites resize."""

    sites: tuple[Site, ...]
    factors: tuple[Part, ...]
    tensors: tuple[Part, ...]  # bytes of a tensor, in `cycles`
    says_live: bool = True
    impossible: tuple[frozenset[Move], ...] = ()

    @property
    def live(self) -> tuple[Cells, list[tuple[tuple[int, ...], Cells]]] | None:
        if not self.says_live:
            return None
        moments = np.eye(len(self.tensors))
        added = [
            (t.sites, t.cycles[..., None] * m) for t, m in zip(self.tensors, moments, strict=True)
        ]
        return np.zeros(len(moments)), added

    def figures(self, genes: Genes) -> Figures:
        found = np.zeros((len(genes), 5))
        for part in self.factors:
            at = tuple(genes[:, list(part.sites)].T)
            found[:, 0] += part.cycles[at]
            found[:, 2] += part.weight_bytes[at]
            found[:, 3] += part.macs[at]
        for part in self.tensors:
            found[:, 1] = np.maximum(found[:, 1], part.cycles[tuple(genes[:, list(part.sites)].T)])
        return found


@dataclass(frozen=True)
class MadeUp:
    """Random problems of one seed.

    Attributes:
        choices: of each site.
        shared: sets of sites that share a claim.
        arity: sites of the larger factors.
    """

    seed: int = 0
    choices: tuple[int, ...] = (2, 3, 1, 2, 3, 2)
    shared: tuple[tuple[int, ...], ...] = ((1, 2),)
    arity: int = 2

    @cached_property
    def table(self) -> MadeUpTable:
        rng = np.random.default_rng(self.seed)
        sites = tuple(
            Site(
                "toy",
                f"t{i}",
                tuple(Choice(f"c{k}", exactness="recovered") for k in range(count)),
                frozenset({f"node:t{i}", *(f"node:shared{s}" for s in self._groups(i))}),
            )
            for i, count in enumerate(self.choices)
        )

        def part(on: Sequence[int], least: float, spread: float) -> Part:
            shape = tuple(self.choices[i] + 1 for i in on)
            columns = least + spread * rng.random((3, *shape))
            return Part(tuple(on), *columns.round())

        n = len(sites)
        unary = [part([i], 1000, 1000) for i in range(n)]
        wide = [part(range(i, i + self.arity), 0, 800) for i in range(n - self.arity + 1)]
        fixed = part([], 5000, 100)
        tensors = [part(range(i, min(n, i + 2)), 500, 1000) for i in range(n)]
        return MadeUpTable(sites, (fixed, *unary, *wide), tuple(tensors))

    def _groups(self, site: int) -> list[int]:
        return [g for g, sites in enumerate(self.shared) if site in sites]

    @property
    def original(self) -> tuple[float, ...]:
        row = self.table.figures(np.zeros((1, len(self.choices)), dtype=np.intp))[0]
        return tuple(float(figure) for figure in row)

    def goal(self, minimise: str = "latency", **limits: str) -> Goal:
        """Goal of this table; limits by metric, ``peak_memory="-10%"``."""
        named = {metric.replace("_", "-"): text for metric, text in limits.items()}
        parsed = tuple(Limit.parse(metric, text) for metric, text in named.items())
        return Goal(tuple(minimise.split(",")), parsed, self.original, CLOCK)

    def problem(self, minimise: str = "latency", **limits: str) -> Problem:
        rng = np.random.default_rng(self.seed + 1)
        damage = {
            (site.id, choice.label): round(float(rng.random()), 3)
            for site in self.table.sites
            for choice in site.choices
        }
        return Problem.of(self.table, damage, self.goal(minimise, **limits))


def brute_force(problem: Problem) -> tuple[Genes, Figures]:
    """All candidates that are possible and within the limits, best first."""
    genes = problem.everything()
    figures = problem.evaluate(genes)
    order = problem.goal.order(figures)
    order = order[problem.goal.feasible(figures)[order]]
    return genes[order], figures[order]
