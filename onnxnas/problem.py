"""A search problem in numbers: what each combination of choices costs and harms.

A candidate is a row of genes, one per site in the table's order: 0 keeps the site, k makes its
choice k. What it costs is looked up in a cost table; what it harms is the sum of what its choices
harm alone, a proxy that the finalists are judged beyond.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxnas.objectives import FIGURES, Goal
from onnxnas.search import Move
from onnxnas.sites import Candidate, Site

Genes = NDArray[np.intp]
"""(n, sites) choices of n candidates, 0 = keep."""
Figures = NDArray[np.float64]
"""(n, 5) columns as `onnxnas.objectives.FIGURES`."""
Cells = NDArray[np.float64]
"""An axis of choices + 1 per site, and after them one per moment."""

_DAMAGE = FIGURES.index("damage")


class Factor(Protocol):
    """A part of the cost that depends on few sites."""

    @property
    def sites(self) -> tuple[int, ...]:
        """Indices of them, ascending."""

    @property
    def cycles(self) -> NDArray[np.float64]:
        """For every joint choice: an axis of choices + 1 per site."""

    @property
    def weight_bytes(self) -> NDArray[np.float64]:
        """Likewise."""

    @property
    def macs(self) -> NDArray[np.float64]:
        """Likewise."""


class Table(Protocol):
    """What `onnxnas.cost_table.CostTable` offers to a search."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """Gene order."""

    @property
    def factors(self) -> Sequence[Factor]:
        """Sum to cycles, weight bytes and MACs of a candidate."""

    @property
    def live(self) -> tuple[NDArray[np.float64], Sequence[tuple[tuple[int, ...], Cells]]] | None:
        """Bytes alive at some moments: as the network is, and what joint choices add to them.

        The peak is the largest of these sums; None where it is no such thing.
        """

    @property
    def impossible(self) -> tuple[frozenset[Move], ...]:
        """Sets of choices that cannot all be made, beyond those of sites that share a claim."""

    def figures(self, genes: Genes) -> Figures:
        """Of n candidates, damage 0."""


@dataclass(frozen=True)
class Problem:
    """What to search.

    Attributes:
        table: costs.
        damage: per site, of *keep* and of each choice; infinite where unknown.
        goal: what is to be minimised within which limits.
        gone: further sets of moves that are not to be made together.
    """

    table: Table
    damage: tuple[NDArray[np.float64], ...]
    goal: Goal
    gone: tuple[frozenset[Move], ...] = ()

    @classmethod
    def of(
        cls,
        table: Table,
        damage: Mapping[Move, float],
        goal: Goal,
        gone: Collection[frozenset[Move]] = (),
    ) -> Problem:
        """From the damage of single moves.

        An exact choice that is not listed harms nothing; any other is impossible, because what is
        not known to be harmless is not made.
        """
        columns = tuple(
            np.array(
                [0.0]
                + [
                    max(0.0, damage.get((s.id, c.label), 0.0 if c.exactness == "exact" else np.inf))
                    for c in s.choices
                ]
            )
            for s in table.sites
        )
        return cls(table, columns, goal, tuple(gone))

    @cached_property
    def choices(self) -> NDArray[np.intp]:
        """Number of choices of each site, *keep* not counted: (sites,)."""
        return np.array([len(site.choices) for site in self.table.sites], dtype=np.intp)

    @cached_property
    def allowed(self) -> tuple[NDArray[np.intp], ...]:
        """Per site the genes that do no infinite damage, *keep* among them if it may be kept."""
        return tuple(np.flatnonzero(np.isfinite(damage)) for damage in self.damage)

    def drawn(self, rng: np.random.Generator, count: int) -> Genes:
        """Candidates with each site's gene drawn evenly of those allowed, conflicts and all."""
        columns = [rng.choice(g, count) if len(g) else np.zeros(count) for g in self.allowed]
        return np.array(columns, dtype=np.intp).reshape(len(columns), count).T

    @cached_property
    def exclusive(self) -> tuple[tuple[int, ...], ...]:
        """Sets of sites of which at most one can be rewritten: those that share a claim."""
        owners: dict[str, list[int]] = {}
        for i, site in enumerate(self.table.sites):
            for claim in site.claims:
                owners.setdefault(claim, []).append(i)
        found = {tuple(sites) for sites in owners.values() if len(sites) > 1}
        return tuple(sorted(found))

    @cached_property
    def forbidden(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """`gone` and what the table calls impossible, as (site index, gene) pairs."""
        at = {s.id: i for i, s in enumerate(self.table.sites)}
        gene = {
            (s.id, c.label): k for s in self.table.sites for k, c in enumerate(s.choices, start=1)
        }
        return tuple(
            tuple(sorted((at[move[0]], gene[move]) for move in moves))
            for moves in (*self.table.impossible, *self.gone)
            if all(move in gene for move in moves)  # else one of them cannot be made anyway
        )

    @cached_property
    def clashes(self) -> NDArray[np.bool_]:
        """Which two sites exclude each other: (sites, sites), symmetric."""
        count = len(self.table.sites)
        found = np.zeros((count, count), dtype=bool)
        for sites in self.exclusive:
            found[np.ix_(sites, sites)] = True
        np.fill_diagonal(found, False)
        return found

    @property
    def size(self) -> float:
        """Number of combinations, conflicts not counted out."""
        return float(np.prod(self.choices + 1.0))

    def conflicting(self, genes: Genes) -> NDArray[np.bool_]:
        """Which candidates make choices that exclude each other or do infinite damage: (n,)."""
        rewritten = genes > 0
        found = np.zeros(len(genes), dtype=bool)
        for site, damage in enumerate(self.damage):
            found |= np.isinf(damage)[genes[:, site]]
        for sites in self.exclusive:
            found |= rewritten[:, list(sites)].sum(axis=1) > 1
        for pairs in self.forbidden:
            found |= _all_made(genes, pairs)
        return found

    def repaired(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """The candidates with conflicts resolved: sites in random order keep what they can.

        Sites that must not be kept come first, with a random choice where they have none.
        """
        genes = genes.copy()
        broken = np.flatnonzero(self.conflicting(genes))
        if not len(broken):
            return genes
        order = rng.permutation(genes.shape[1])
        forced = np.array([np.isinf(damage[0]) for damage in self.damage], dtype=bool)
        for site in np.concatenate([order[forced[order]], order[~forced[order]]]):
            allowed = self.allowed[site]
            rows = broken[np.isinf(self.damage[site])[genes[broken, site]]]
            if len(allowed):
                genes[rows, site] = rng.choice(allowed, len(rows)) if forced[site] else 0
            rivals = np.flatnonzero(self.clashes[site])
            rows = broken[genes[broken, site] > 0]
            genes[np.ix_(rows, rivals)] = 0
        for pairs in self.forbidden:
            rows = np.flatnonzero(_all_made(genes, pairs))
            genes[rows, rng.choice([site for site, _ in pairs], len(rows))] = 0
        return genes

    def evaluate(self, genes: Genes) -> Figures:
        """Figures of n candidates; all infinite where choices exclude each other.

        Unknown figures are NaN; see `Goal.possible`.
        """
        figures = np.array(self.table.figures(genes), dtype=np.float64)
        for site, damage in enumerate(self.damage):
            figures[:, _DAMAGE] += damage[genes[:, site]]
        impossible = self.conflicting(genes) | np.isinf(figures).any(axis=1)
        figures[impossible] = np.inf
        return figures

    def neighbours(self, row: Genes) -> Genes:
        """All candidates one decision away from one; what excludes that decision is undone."""
        rows = []
        for site, count in enumerate(self.choices):
            for gene in range(count + 1):
                if gene != row[site]:
                    other = row.copy()
                    if gene:
                        other[self.clashes[site]] = 0
                    other[site] = gene
                    rows.append(other)
        found = np.array(rows, dtype=np.intp).reshape(len(rows), len(self.choices))
        return found[~self.conflicting(found)]

    def candidate(self, genes: Sequence[int] | Genes) -> Candidate:
        """One row of genes in words."""
        return Candidate.of(
            {
                site.id: site.choices[gene - 1].label
                for site, gene in zip(self.table.sites, genes, strict=True)
                if gene
            }
        )

    def genes(self, candidates: Sequence[Candidate]) -> Genes:
        """The reverse of `candidate`, for several; what the table does not know of is left out."""
        rows = np.zeros((len(candidates), len(self.table.sites)), np.intp)
        for row, candidate in zip(rows, candidates, strict=True):
            chosen = dict(candidate.decisions)
            for i, site in enumerate(self.table.sites):
                labels = [c.label for c in site.choices]
                if chosen.get(site.id) in labels:
                    row[i] = 1 + labels.index(chosen[site.id])
        return rows

    def everything(self) -> Genes:
        """All candidates, for spaces small enough to hold them: (size, sites)."""
        ranges = [range(count + 1) for count in self.choices]
        rows = list(product(*ranges))
        return np.array(rows, dtype=np.intp).reshape(len(rows), len(self.choices))


def _all_made(genes: Genes, pairs: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    made = np.ones(len(genes), dtype=bool)
    for site, gene in pairs:
        made &= genes[:, site] == gene
    return made
