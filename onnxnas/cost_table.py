"""Costs of candidates by look-up: sums of what choices change, alone and together.

Looking up costs a few microseconds a candidate, where rewriting and predicting the network takes
a tenth of a second and compiling it several. Cycles, weights and MACs are sums of `Factor`s. Peak
memory is no sum: it is the most that is alive while any kernel runs, and that is what is summed
for it, kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxnas.cost import Cost, KernelCostModel, Kind
from onnxnas.interactions import NETWORKS, ORDER, SHARE, Interactions, candidate_of
from onnxnas.objectives import FIGURES
from onnxnas.search import Move, Progress, Trial
from onnxnas.sites import Candidate, SearchSpace, Site

Genes = NDArray[np.intp]
"""(n, sites) choices of n candidates, 0 = keep."""
Figures = NDArray[np.float64]
"""(n, 5) columns as `onnxnas.objectives.FIGURES`."""

_CHUNK = 2048
"""Candidates looked up at once: what is read and written stays in the cache."""


@dataclass(frozen=True)
class Factor:
    """A part of the cost that depends on few sites.

    Attributes:
        sites: indices of them, ascending; none for the network as it is.
        cycles: what every joint choice adds, an axis of choices + 1 per site.
        weight_bytes: likewise.
        macs: likewise.
    """

    sites: tuple[int, ...]
    cycles: NDArray[np.float64]
    weight_bytes: NDArray[np.float64]
    macs: NDArray[np.float64]


Live = tuple[NDArray[np.float64], Sequence[tuple[tuple[int, ...], NDArray[np.float64]]]]
"""Bytes alive at some kernels, and what joint choices of sites add: (choices + 1, ..., kernels)."""


class _Peak(Protocol):
    """Peak memory of candidates."""

    @property
    def live(self) -> Live | None:
        """What the peak is the largest sum of; None where it is no such thing."""

    def __call__(self, count: int, genes: Sequence[Genes]) -> NDArray[np.float64]:
        """Bytes, (count,); genes of one site an entry."""

    def scaled(self, factor: float) -> _Peak:
        """All of it times a factor."""


@dataclass(frozen=True)
class CostTable:
    """Costs of all candidates of a space on one target.

    Attributes:
        sites: in gene order.
        factors: sum to cycles, weight bytes and MACs.
        kind: of the figures it was made from.
        impossible: sets of choices found that cannot all be made, beyond those of sites that
            share a claim; a look-up gives them figures all the same.
        networks: rewritten networks it was made from.
        left_out: interactions that were not looked at, for want of `networks`.
    """

    sites: tuple[Site, ...]
    factors: tuple[Factor, ...]
    kind: Kind
    peak: _Peak
    impossible: tuple[frozenset[Move], ...] = ()
    networks: int = 0
    left_out: int = 0

    @classmethod
    def build(
        cls,
        graph: Any,
        space: SearchSpace,
        view: Callable[[Candidate], Any],
        cost_model: KernelCostModel,
        progress: Progress | None = None,
        *,
        share: float = SHARE,
        order: int = ORDER,
        networks: int = NETWORKS,
    ) -> CostTable:
        """From a cost model that predicts kernel by kernel.

        With ``share=0`` and `order` and `networks` large enough, look-ups equal fresh
        predictions; the defaults leave out what hardly matters.

        Args:
            graph: the normalised original; is not changed.
            space: its sites.
            view: a candidate's graph as the cost model sees it, see `Evaluator.view`.
            cost_model: of the target.
            progress: called before each rewritten network.
            share: choices that change no kernel in common by more than this share of the
                network are taken to add up.
            order: choices of an interaction at most.
            networks: rewritten networks to look at, at most.

        Raises:
            SiteGone: never; such sets of choices are listed as `impossible`.
        """
        told = progress or (lambda *_: None)
        found = Interactions(graph, space, view, cost_model, told, share, order, networks).find()
        empty = np.sum(list(found.base.values()) or [np.zeros(4)], axis=0)
        shape = [len(site.choices) + 1 for site in space]
        sums: dict[tuple[int, ...], NDArray[np.float64]] = {(): empty}
        for term, added in found.terms.items():
            if added:
                on = tuple(i for i, _ in term)
                cells = sums.setdefault(on, np.zeros((*(shape[i] for i in on), 4)))
                cells[tuple(k for _, k in term)] = np.sum(list(added.values()), axis=0)
        factors = tuple(
            Factor(on, *(np.ascontiguousarray(cells[..., c]) for c in (0, 1, 2)))
            for on, cells in sums.items()
        )
        gone = tuple(
            frozenset(candidate_of(space, term).decisions) for term in sorted(found.impossible)
        )
        kind = cost_model.target.kind
        peak = _LivePeak.of(found, shape)
        return cls(space.sites, factors, kind, peak, gone, found.looked, found.left_out)

    @classmethod
    def additive(
        cls, space: SearchSpace, baseline: Trial, alone: Mapping[Move, Trial]
    ) -> CostTable:
        """From what whole networks cost with one choice each; choices are taken to add up.

        Peak memory does not add up: it is taken to be the highest of the single choices where
        one raises it, else the lowest.

        Args:
            space: the sites.
            baseline: the network as it is; it has a cost.
            alone: of single choices; one that is missing or has no cost is infinite.
        """
        if baseline.cost is None:
            raise ValueError("the network as it is has no cost")
        before = _row(baseline.cost)
        factors = [Factor((), *(np.array(v) for v in (before[0], before[2], before[3])))]
        peaks = []
        for i, site in enumerate(space):
            rows = [before]
            for choice in site.choices:
                trial = alone.get((site.id, choice.label))
                cost = None if trial is None else trial.cost
                rows.append(np.full(4, np.inf) if cost is None else _row(cost))
            cells = np.array(rows)
            change = cells - before
            factors.append(Factor((i,), *(np.ascontiguousarray(change[:, c]) for c in (0, 2, 3))))
            peaks.append(cells[:, 1])
        peak = _AlonePeak(float(before[1]), tuple(peaks))
        return cls(space.sites, tuple(factors), baseline.cost.kind, peak)

    def anchored(self, known: CostTable) -> CostTable:
        """What single choices cost from another table, and beyond that this one, to its scale.

        Args:
            known: `additive`, of the same sites.
        """
        keep = np.zeros((1, len(self.sites)), np.intp)
        (was,), (now,) = self.figures(keep), known.figures(keep)
        scale = np.divide(now, was, out=np.ones_like(now), where=was > 0)
        together = [
            Factor(
                f.sites,
                f.cycles * scale[_CYCLES],
                f.weight_bytes * scale[_WEIGHTS],
                f.macs * scale[_MACS],
            )
            for f in self.factors
            if len(f.sites) > 1
        ]
        return replace(
            self,
            factors=(*known.factors, *together),
            kind=known.kind,
            peak=self.peak.scaled(scale[_PEAK]),
        )

    @property
    def live(self) -> Live | None:
        """Bytes alive at some kernels, whose largest sum the peak is; None where it is not."""
        return self.peak.live

    def figures(self, genes: Genes) -> Figures:
        """Costs of n candidates, damage 0; genes as for `candidates`."""
        result = np.zeros((len(genes), len(FIGURES)))
        for start in range(0, len(genes), _CHUNK):
            part = genes[start : start + _CHUNK]
            count, columns = len(part), [np.ascontiguousarray(c) for c in part.T]
            total = np.zeros((count, 3))
            for on, cells in self._cells:
                total += cells[0] if not on else cells.take(_index(columns, on, self._sizes), 0)
            chunk = result[start : start + count]
            chunk[:, [_CYCLES, _WEIGHTS, _MACS]] = total
            chunk[:, _PEAK] = self.peak(count, columns)
        return result

    def genes(self, candidates: Iterable[Candidate]) -> Genes:
        """(n, sites): number of each site's choice, 0 where it is kept.

        Raises:
            KeyError: a decision is of no site or choice of the table.
        """
        moves = {
            (site.id, choice.label): (i, k)
            for i, site in enumerate(self.sites)
            for k, choice in enumerate(site.choices, start=1)
        }
        rows = list(candidates)
        genes = np.zeros((len(rows), len(self.sites)), np.intp)
        for row, candidate in zip(genes, rows, strict=True):
            for move in candidate.decisions:
                i, k = moves[move]
                row[i] = k
        return genes

    def candidates(self, genes: Genes) -> list[Candidate]:
        """The reverse of `genes`."""
        space = SearchSpace(self.sites)
        return [
            candidate_of(space, ((int(i), int(row[i])) for i in np.flatnonzero(row)))
            for row in genes
        ]

    @cached_property
    def _sizes(self) -> list[int]:
        return [len(site.choices) + 1 for site in self.sites]

    @cached_property
    def _cells(self) -> list[tuple[tuple[int, ...], NDArray[np.float64]]]:
        """Sites, and rows of (cycles, weight bytes, MACs), of factors merged."""
        columns = {
            f.sites: np.stack([f.cycles, f.weight_bytes, f.macs], axis=-1) for f in self.factors
        }
        return _merged(columns, self._sizes)


_CYCLES, _PEAK, _WEIGHTS, _MACS = (
    FIGURES.index(name) for name in ("cycles", "peak_bytes", "weight_bytes", "macs")
)


def _index(columns: Sequence[Genes], on: Sequence[int], sizes: Sequence[int]) -> Genes:
    """Row-major number of each candidate's joint choice."""
    index = columns[on[0]]
    for site in on[1:]:
        index = index * sizes[site] + columns[site]
    return index


def _merged(
    cells: Mapping[tuple[int, ...], NDArray[np.float64]], sizes: Sequence[int]
) -> list[tuple[tuple[int, ...], NDArray[np.float64]]]:
    """Tables with those added to them whose sites are among theirs: fewer look-ups.

    Args:
        cells: sites -> an axis of choices + 1 per site, and one of columns.
        sizes: of the axes.

    Returns:
        Sites, and a row of columns per joint choice, (cells, columns).
    """
    kept: dict[tuple[int, ...], NDArray[np.float64]] = {}
    for on in sorted(cells, key=lambda sites: (-len(sites), sites)):
        table = cells[on]
        wider = [other for other in kept if set(on) <= set(other)]
        if wider:
            home = min(wider, key=lambda other: kept[other].size)
            shape = [sizes[i] if i in on else 1 for i in home]
            kept[home] = kept[home] + table.reshape(*shape, table.shape[-1])
        else:
            kept[on] = table
    return [(on, table.reshape(-1, table.shape[-1])) for on, table in kept.items()]


def _row(cost: Cost) -> NDArray[np.float64]:
    """Cycles, peak, weights and MACs; weights that the target says nothing about are none."""
    weights = cost.weight_bytes or 0
    return np.array([cost.cycles, cost.peak_activation_bytes, weights, cost.macs], np.float64)


@dataclass(frozen=True)
class _AlonePeak:
    before: float
    peaks: tuple[NDArray[np.float64], ...]
    live: Live | None = None

    def __call__(self, count: int, genes: Sequence[Genes]) -> NDArray[np.float64]:
        highest, lowest = np.full(count, self.before), np.full(count, self.before)
        for table, column in zip(self.peaks, genes, strict=True):
            peaks = table[column]
            np.maximum(highest, peaks, out=highest)
            np.minimum(lowest, peaks, out=lowest)
        return np.where(highest > self.before, highest, lowest)

    def scaled(self, factor: float) -> _AlonePeak:
        return _AlonePeak(factor * self.before, tuple(factor * p for p in self.peaks))


@dataclass(frozen=True)
class _LivePeak:
    """Largest of the bytes alive at some kernels.

    Attributes:
        base: (kernels,) with nothing rewritten.
        terms: sites, and what their joint choices add: (cells, kernels).
        sizes: of each site's axis.
    """

    base: NDArray[np.float64]
    terms: tuple[tuple[tuple[int, ...], NDArray[np.float64]], ...]
    sizes: tuple[int, ...]

    @property
    def live(self) -> Live:
        """Its tables with an axis per site."""
        return self.base, [
            (on, table.reshape(*(self.sizes[i] for i in on), -1)) for on, table in self.terms
        ]

    @classmethod
    def of(cls, found: Interactions, sizes: Sequence[int]) -> _LivePeak:
        """Of those kernels that can be the fullest moment of some candidate."""
        names = sorted({*found.base, *(n for added in found.terms.values() for n in added)})
        place = {name: i for i, name in enumerate(names)}
        base = np.array([found.base[n][3] if n in found.base else 0.0 for n in names])
        cells: dict[tuple[int, ...], NDArray[np.float64]] = {}
        for term, added in found.terms.items():
            changes = {name: value[3] for name, value in added.items() if value[3]}
            if changes:
                on = tuple(i for i, _ in term)
                shape = (*(sizes[i] for i in on), len(names))
                table = cells.setdefault(on, np.zeros(shape))
                row = table[tuple(k for _, k in term)]
                row[[place[n] for n in changes]] = list(changes.values())
        terms = _merged(cells, sizes)
        lowest = base + sum((t.min(axis=0) for _, t in terms), np.zeros(len(names)))
        highest = base + sum((t.max(axis=0) for _, t in terms), np.zeros(len(names)))
        kept = np.flatnonzero(highest >= lowest.max(initial=0.0)).tolist()
        for name in list(kept):
            # A kernel counts unless another has at least as much alive in every candidate.
            rest = [other for other in kept if other != name]
            least = base[rest] - base[name]
            for _, table in terms:
                least = least + (table[:, rest] - table[:, [name]]).min(axis=0)
            if (least >= 0).any():
                kept = rest
        few = [(on, np.ascontiguousarray(table[:, kept])) for on, table in terms]
        return cls(base[kept], tuple((on, t) for on, t in few if t.any()), tuple(sizes))

    def __call__(self, count: int, genes: Sequence[Genes]) -> NDArray[np.float64]:
        alive = np.tile(self.base, (count, 1))
        for on, table in self.terms:
            alive += table.take(_index(genes, on, self.sizes), 0)
        peaks: NDArray[np.float64] = alive.max(axis=1, initial=0.0)
        return peaks

    def scaled(self, factor: float) -> _LivePeak:
        terms = tuple((on, factor * table) for on, table in self.terms)
        return replace(self, base=factor * self.base, terms=terms)
