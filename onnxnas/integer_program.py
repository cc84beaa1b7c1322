"""The best candidate of a problem, proven: an integer program over its table.

One binary variable per choice of a site; *keep* is what is left of one. Factors over several
sites are written as sums over sets of choices, and every set that adds something gets a variable
that is the product of its choices (the linearisation of R. Fortet, 1960, with the inequalities of
choices that exclude each other added up). Sites that exclude each other are cliques.

Peak memory is the largest of many sums, one per moment. Of those only the ones that bind become
constraints: solve, look the solution up, add the moments it overfills, solve again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from onnxnas.objectives import FIGURES
from onnxnas.problem import Figures, Genes, Problem
from onnxnas.roundtrip import silenced

Array = NDArray[np.float64]
Term = tuple[tuple[int, int], ...]
"""(site, gene) pairs of different sites, ascending."""

_PEAK = FIGURES.index("peak_bytes")
_DAMAGE = FIGURES.index("damage")
_MISS = -1
"""In place of a column: the largest share by which any ceiling is missed."""
_UNIT = 1e4
"""Largest price in the solver's eyes: it stops within 1e-6 of the optimum, whatever the unit."""
_BYTES = 1e4
"""Of peak memory, the unit that it is minimised in."""
_TOLERANCE = 1e-9
"""Rounding that a ceiling may be exceeded by, as a share of it."""
_NODES = 100_000
"""Branches until the solver gives up on proving; a time limit would not give the same twice."""
_ROUNDS = 300
"""Solutions looked up and turned down until the search is given up, unproven."""
_SAMPLES = 32
"""Completions that are looked at before a guessed cut is believed."""


@dataclass(frozen=True)
class Solution:
    """The best candidate under some ceilings.

    Attributes:
        genes: (sites,), or None where none was found.
        figures: (5,) of it.
        value: what was minimised; infinite where there is none.
        bound: no candidate has less, if `proven`.
        proven: whether the bound, or that there is no candidate, holds for sure.
    """

    genes: Genes | None
    figures: Figures | None
    value: float
    bound: float
    proven: bool

    @property
    def gap(self) -> float:
        """Share of the value by which the bound lies below it; 0 is optimal."""
        if self.genes is None:
            return 0.0
        return max(0.0, self.value - self.bound) / max(abs(self.value), 1e-12)


@dataclass
class _Rows:
    """Linear constraints."""

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)

    def add(self, terms: Iterable[tuple[int, float]], lower: float, upper: float) -> None:
        """One row over (variable, factor) pairs."""
        row = len(self.lower)
        self.entries += [(row, variable, factor) for variable, factor in terms]
        self.lower.append(lower)
        self.upper.append(upper)

    def copy(self) -> _Rows:
        return _Rows(self.entries[:], self.lower[:], self.upper[:])

    def constraint(self, variables: int) -> LinearConstraint:
        row, variable, factor = zip(*self.entries, strict=True) if self.entries else ((), (), ())
        matrix = csr_array((factor, (row, variable)), (len(self.lower), variables), dtype=float)
        return LinearConstraint(matrix, self.lower, self.upper)


class Program:
    """The integer program of one problem; solved for any column under any ceilings."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._rows = _Rows()
        self._guesses: list[Term] = []
        self._variable = {
            (site, gene): i
            for i, (site, gene) in enumerate(
                (s, g) for s, count in enumerate(problem.choices) for g in range(1, count + 1)
            )
        }
        for site, count in enumerate(problem.choices):
            if count > 1:
                self._rows.add([(v, 1.0) for v in self._of(site)], -np.inf, 1.0)
        for sites in problem.exclusive:
            self._rows.add([(v, 1.0) for s in sites for v in self._of(s)], -np.inf, 1.0)
        effects, impossible = _terms(problem)
        for term in (*impossible, *problem.forbidden):
            self._forbid(self._rows, term)
        self._constant = effects.pop((), np.zeros(len(FIGURES)))
        pairs = [(pair,) for pair in self._variable]
        self._terms: list[Term] = [*pairs, *(term for term in effects if len(term) > 1)]
        nothing = np.zeros_like(self._constant)
        self._effects = np.array([effects.get(term, nothing) for term in self._terms])
        self._effects = self._effects.reshape(len(self._terms), len(self._constant))
        products: dict[tuple[int, ...], dict[Term, int]] = defaultdict(dict)
        for variable, term in enumerate(self._terms):
            if len(term) > 1:
                products[tuple(site for site, _ in term)][term] = variable
        for same in products.values():
            self._tie(same)

    def _of(self, site: int) -> list[int]:
        return [self._variable[site, gene + 1] for gene in range(int(self.problem.choices[site]))]

    def _tie(self, products: Mapping[Term, int]) -> None:
        """Make variables the products of their choices; all are over the same sites."""
        having: dict[tuple[int, int], list[int]] = defaultdict(list)
        rest: dict[tuple[int, Term], list[tuple[int, tuple[int, int]]]] = defaultdict(list)
        for term, variable in products.items():
            for axis, pair in enumerate(term):
                having[pair].append(variable)
                rest[axis, term[:axis] + term[axis + 1 :]].append((variable, pair))
        for pair, variables in having.items():
            terms = [(v, 1.0) for v in variables]
            self._rows.add([*terms, (self._variable[pair], -1.0)], -np.inf, 0.0)
        for (_, others), ends in rest.items():
            terms = [(v, -1.0) for v, _ in ends]
            terms += [(self._variable[pair], 1.0) for pair in (*others, *(p for _, p in ends))]
            self._rows.add(terms, -np.inf, float(len(others)))

    def _forbid(self, rows: _Rows, term: Term) -> None:
        """Of these sites at least one has another gene."""
        terms, most = list[tuple[int, float]](), len(term) - 1.0
        for site, gene in term:
            if gene:
                terms.append((self._variable[site, gene], 1.0))
            else:  # kept: one less the sum of its choices
                terms += [(v, -1.0) for v in self._of(site)]
                most -= 1.0
        rows.add(terms, -np.inf, most)

    def best(self, at: int, ceilings: Mapping[int, float]) -> Solution:
        """The candidate with the least of one column of `FIGURES` under ceilings on any.

        Ties are broken by single decisions that improve the other columns.

        Args:
            at: the column.
            ceilings: the most allowed, by column.
        """
        self._guesses = []
        if at == _PEAK and self.problem.table.live is None:
            return self._descend(ceilings)
        found = self._search(at, ceilings)
        return found if found.genes is None else self._polished(found, at, ceilings)

    def nearest(self, ceilings: Mapping[int, float]) -> Solution:
        """The candidate whose worst miss of a ceiling is least, as a share of that ceiling.

        A ceiling on memory only counts where the table says what its peak consists of.

        Args:
            ceilings: the most allowed, by column; not empty.
        """
        self._guesses = []
        live = self.problem.table.live is not None
        return self._search(_MISS, {c: v for c, v in ceilings.items() if live or c != _PEAK})

    def _descend(self, ceilings: Mapping[int, float]) -> Solution:
        """Lower the ceiling on memory to just below the last solution until there is none."""
        best = Solution(None, None, math.inf, 0.0, False)
        most = ceilings.get(_PEAK, math.inf)
        while True:
            found = self._search(0, {**ceilings, _PEAK: most})
            if found.genes is None:
                bound = best.value if found.proven else 0.0
                return replace(best, bound=bound, proven=found.proven)
            best = self._polished(replace(found, bound=0.0), _PEAK, ceilings)
            most = best.value * (1 - 2 * _TOLERANCE)

    def _search(self, at: int, ceilings: Mapping[int, float]) -> Solution:
        """Solve, look the solution up, exclude what is wrong with it, solve again."""
        moments, turned_down = set[int](), list[Term]()
        for _ in range(_ROUNDS):
            genes, bound, ended = self._solve(at, ceilings, moments, turned_down)
            proven = ended and not self._guesses
            if genes is None:
                return Solution(None, None, math.inf, math.inf, proven)
            figures = self.problem.evaluate(genes[None])[0]
            most, value = dict(ceilings), float(figures[at])
            if at == _PEAK:
                most[_PEAK] = min(bound, most.get(_PEAK, math.inf))
            elif at == _MISS:
                most = {c: v + bound * self._span(c, v) for c, v in ceilings.items()}
                value = max((figures[c] - v) / self._span(c, v) for c, v in ceilings.items())
            over = [c for c, v in most.items() if not figures[c] <= v + _TOLERANCE * abs(v)]
            if not over:
                return Solution(genes, figures, value, min(bound, value), proven)
            fuller = moments
            if _PEAK in over:
                fuller = moments | self._overfull(genes, most[_PEAK])
            if fuller != moments:
                moments = fuller
            elif over == [_PEAK] and self.problem.table.live is None:
                self._guesses.append(self._guess(genes, ceilings[_PEAK]))
            elif at == _MISS or over == [_PEAK] == [at]:  # the bound is all but met
                return Solution(genes, figures, value, min(bound, value), proven)
            else:  # the solver's tolerance is larger than ours
                turned_down.append(tuple((s, int(g)) for s, g in enumerate(genes)))
        return Solution(None, None, math.inf, math.inf, False)

    def _overfull(self, genes: Genes, most: float) -> set[int]:
        """Columns of the moments that need more memory than allowed."""
        made = {(site, int(gene)) for site, gene in enumerate(genes)}
        at = [v for v, term in enumerate(self._terms) if made.issuperset(term)]
        needed = self._constant + self._effects[at].sum(axis=0)
        return {int(c) for c in np.flatnonzero(needed > most) if c >= len(FIGURES)}

    def _solve(
        self,
        at: int,
        ceilings: Mapping[int, float],
        moments: Iterable[int],
        turned_down: Iterable[Term],
    ) -> tuple[Genes | None, float, bool]:
        """Genes, a bound of what is minimised, and whether the solver came to an end."""
        count = len(self._terms)
        rows, upper = self._rows.copy(), np.ones(count + 1)
        for term in (*turned_down, *self._guesses):
            self._forbid(rows, term)
        limits = {c: most for c, most in ceilings.items() if c != _PEAK}
        limits |= {c: ceilings.get(_PEAK, math.inf) for c in moments}
        for c, most in limits.items():
            effect = self._effects[:, c]
            size = abs(most) if math.isfinite(most) else abs(self._constant[c])
            scale = float(np.abs(effect).max(initial=size)) or 1.0
            terms = [(int(v), effect[v] / scale) for v in np.flatnonzero(effect)]
            room = (most - self._constant[c]) / scale
            if at == _MISS:
                rows.add([*terms, (count, -self._span(c, most) / scale)], -np.inf, room)
            elif math.isfinite(most):
                rows.add(terms, -np.inf, room)
            if at == _PEAK and c >= len(FIGURES):
                rows.add([*terms, (count, -_BYTES / scale)], -np.inf, -self._constant[c] / scale)
            if (
                c == _DAMAGE and at != _MISS
            ):  # none is negative: a choice that is too harmful alone is out
                upper[:count][effect > most * (1 + _TOLERANCE)] = 0.0
        prices, constant = np.zeros(count + 1), 0.0
        if at in (_PEAK, _MISS):
            upper[count], prices[count] = np.inf, 1.0
        else:
            prices[:count], constant = self._effects[:, at], self._constant[at]
        unit = np.abs(prices).max() / _UNIT or 1.0
        with silenced():  # the solver prints lines of its own
            found = milp(
                prices / unit,
                constraints=rows.constraint(count + 1),
                integrality=np.array([len(term) == 1 for term in self._terms] + [False]),
                bounds=Bounds(0.0, upper),
                options={"mip_rel_gap": 0.0, "node_limit": _NODES},
            )
        if found.x is None:
            return None, math.inf, found.status == 2
        genes = np.zeros(len(self.problem.choices), dtype=np.intp)
        for (site, gene), variable in self._variable.items():
            if found.x[variable] > 0.5:
                genes[site] = gene
        bound = found.fun if found.mip_dual_bound is None else found.mip_dual_bound
        bound = bound * unit * (_BYTES if at == _PEAK else 1.0) + constant
        return genes, float(bound), found.status == 0

    def _span(self, at: int, most: float) -> float:
        """What a miss of a ceiling is a share of, as in `Goal.violations`."""
        return most or self.problem.goal.original[min(at, _DAMAGE)] or 1.0

    def _guess(self, genes: Genes, most: float) -> Term:
        """Why a solution needs too much memory, where the table cannot say.

        Sites are set free one after the other as long as every completion looked at needs too
        much as well: likely, but no proof.
        """
        rng = np.random.default_rng(len(self._guesses))
        drawn = rng.integers(0, self.problem.choices + 1, size=(_SAMPLES, len(genes)))
        fixed = np.ones(len(genes), dtype=bool)
        fixed[self.problem.choices == 0] = False
        for site in np.flatnonzero(fixed)[::-1]:
            fixed[site] = False
            peaks = self.problem.table.figures(np.where(fixed, genes, drawn))[:, _PEAK]
            fixed[site] = peaks.min() <= most
        return tuple((int(s), int(genes[s])) for s in np.flatnonzero(fixed))

    def _polished(self, found: Solution, at: int, ceilings: Mapping[int, float]) -> Solution:
        """A solution that no single decision improves: in what is minimised, then the rest."""
        genes, figures = found.genes, found.figures
        assert genes is not None
        assert figures is not None
        order = [at, *(c for c in range(len(FIGURES)) if c != at)]
        while True:
            rows = np.concatenate([genes[None], self.problem.neighbours(genes)])
            looked = self.problem.evaluate(rows)
            for c, most in ceilings.items():
                looked[1:][looked[1:, c] > most * (1 + _TOLERANCE)] = np.inf
            first = np.lexsort([looked[:, c] for c in reversed(order)])[0]
            if not tuple(looked[first, order]) < tuple(figures[order]):
                value = float(figures[at])
                return replace(
                    found, genes=genes, figures=figures, value=value, bound=min(found.bound, value)
                )
            genes, figures = rows[first], looked[first]


def _terms(problem: Problem) -> tuple[dict[Term, Array], list[Term]]:
    """What each set of choices adds beyond the sum of its parts, and which are impossible.

    What is added are five figures and after them the bytes of each moment.
    """
    live = problem.table.live
    moments = 0 if live is None else len(live[0])
    effects: dict[Term, Array] = defaultdict(lambda: np.zeros(len(FIGURES) + moments))
    impossible: list[Term] = []

    def add(sites: tuple[int, ...], values: Array, columns: slice | list[int]) -> None:
        values = values.reshape(*(problem.choices[s] + 1 for s in sites), values.shape[-1])
        infinite = np.isinf(values).any(axis=-1)
        for cell in np.argwhere(infinite):
            impossible.append(tuple(zip(sites, map(int, cell), strict=True)))
        added = np.where(np.expand_dims(infinite, -1), 0.0, np.nan_to_num(values))
        for axis in range(len(sites)):
            first = np.take(added, [0], axis)
            added = np.concatenate([first, np.delete(added, 0, axis) - first], axis)
        for cell in np.argwhere(added.any(axis=-1)):
            term = tuple((s, int(g)) for s, g in zip(sites, cell, strict=True) if g)
            effects[term][columns] += added[tuple(cell)]

    for factor in problem.table.factors:
        values = np.stack([factor.cycles, factor.weight_bytes, factor.macs], axis=-1)
        add(tuple(factor.sites), values, [0, 2, 3])
    for site, damage in enumerate(problem.damage):
        add((site,), damage[:, None], [_DAMAGE])
    if live is not None:
        effects[()][len(FIGURES) :] += live[0]
        for sites, values in live[1]:
            add(tuple(sites), values, slice(len(FIGURES), None))
    possible = {
        term: effect
        for term, effect in effects.items()
        if not any(problem.clashes[a, b] for a, _ in term for b, _ in term)
    }
    return possible, impossible
