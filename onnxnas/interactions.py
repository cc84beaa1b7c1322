"""What choices do to the kernels of a network: each alone, and beyond that together.

The cost of a kernel as a function of the choices around it is written as a sum over sets of
choices: what each changes alone, what two change beyond the sum of both, and so on (the anchored
decomposition of H. Rabitz and O. Alis, "General foundations of high-dimensional model
representations", 1999, with the network as it is for an anchor). Choices that change no kernel in
common do not interact, so most terms are zero and are never looked at, and terms far apart are
read off one rewritten network. A choice that changes the whole network interacts with every
other: its terms with single ones are read off networks of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.cost import KernelCostModel, SeenKernel
from onnxnas.rewriter import SiteGone
from onnxnas.search import Progress
from onnxnas.sites import Candidate, SearchSpace

Gene = tuple[int, int]
"""Index of a site in its space, and number of its choice, from 1."""
Term = tuple[Gene, ...]
"""Choices of different sites, sorted."""
Values = NDArray[np.float64]
"""(4,) cycles, bytes of weights, MACs and bytes alive of one kernel."""

SHARE = 3e-4
"""Of the network: choices that change no kernel by more than this are taken to add up."""
ORDER = 3
"""Choices of a term at most."""
NETWORKS = 1500
"""Rewritten networks that are looked at, at most."""
_REACH = 2
"""Kernels on either side of a rewrite in which its effects are looked for."""
_FEW = 8
"""Kernels; a choice that changes no more is never taken to change the whole network."""
_ADDING = slice(0, 3)


@dataclass
class Interactions:
    """Terms of the costs of a network's kernels.

    Attributes:
        graph: of the original.
        space: the choices that are looked at.
        view: a candidate's graph as the cost model sees it; may hold decisions that stand in any
            case, and then so does the network as it is. Raises SiteGone.
        share: see `SHARE`; 0 for all terms there are.
        order: see `ORDER`.
        networks: see `NETWORKS`; what each choice does alone is always looked at.
        base: kernel -> values in the network as it is.
        terms: set of choices -> kernel -> what it adds to its values.
        impossible: smallest sets of choices found that cannot all be made.
        looked: networks that were looked at.
        left_out: terms that were not, for want of `networks`.
    """

    graph: Any
    space: SearchSpace
    view: Callable[[Candidate], Any]
    cost_model: KernelCostModel
    progress: Progress
    share: float = SHARE
    order: int = ORDER
    networks: int = NETWORKS
    base: dict[str, Values] = field(default_factory=dict)
    terms: dict[Term, dict[str, Values]] = field(default_factory=dict)
    impossible: list[Term] = field(default_factory=list)
    looked: int = 0
    left_out: int = 0

    def __post_init__(self) -> None:
        self._claims = [site.claims for site in self.space]
        self._seen: dict[Term, dict[str, SeenKernel]] = {}
        self._values: dict[Term, dict[str, Values]] = {}
        self._touched: dict[Gene, frozenset[str]] = {}
        self._alone: list[list[Term]] = []
        self._places: dict[int, list[int]] = {}
        self._floor = np.zeros(4)

    def find(self) -> Interactions:
        """Look at networks until the terms are known."""
        self._look([()], "the network as it is")
        self.base = self._values[()]
        totals = np.sum(list(self.base.values()), axis=0) if self.base else np.zeros(4)
        self._floor = self.share * totals
        alone: list[Term] = [
            ((i, k),) for i, s in enumerate(self.space) for k in range(1, len(s.choices) + 1)
        ]
        packs = self._far_apart(alone) if self.share > 0 else [[term] for term in alone]
        self._look([_union(pack) for pack in packs], "each choice alone")
        self._read(packs, "each choice alone")
        for term in alone:
            if term in self.terms:
                self._touched[term[0]] = self._touches(term)
        whole = self._whole()
        for site in whole:
            self._beside(site)
        near = self._near(whole)
        level = [term for term in alone if term in self.terms]
        for order in range(2, self.order + 1):
            level = [t for t in self._larger(level, near) if self._worth_it(t, order)]
            level.sort(key=lambda t: (-self._weight(t), t))
            room = max(0, self.networks - self.looked)
            packs = self._packed(level)
            for pack in packs[room:]:
                self.left_out += len(pack)
            packs = packs[:room]
            self._look([_union(pack) for pack in packs], what := f"{order} choices together")
            self._read(packs, what)
            level = [t for pack in packs for t in pack if t in self.terms]
        for site in whole:
            self._scaled(site)
        return self

    def _whole(self) -> list[int]:
        """Sites that change most of the network, such as its resolution: they meet every other."""
        if self.share == 0:
            return []
        least = max(_FEW, len(self.base) // 2)
        return sorted({gene[0] for gene, names in self._touched.items() if len(names) > least})

    def _beside(self, site: int) -> None:
        """Terms of single choices with one that changes most kernels, in their groups."""
        genes = [gene for gene in self._touched if gene[0] == site]
        free = [[t for t in pack if not self._clash(t, site)] for pack in self._alone]
        packs = [[*pack, (gene,)] for gene in genes for pack in free if pack]
        room = max(0, self.networks - self.looked)
        self.left_out += len(packs[room:])
        what = "each choice with one of the whole network"
        self._look([_union(pack) for pack in packs[:room]], what)
        for pack in packs[:room]:
            if (union := _union(pack)) in self._values:
                for term in pack[:-1]:
                    both = _union((term, pack[-1]))
                    self.terms[both] = self._added(union, both, self.terms[term])

    def _scaled(self, site: int) -> None:
        """Terms of two and more choices with one that changes most kernels.

        They are not looked at: they are taken to be scaled as the single one of them is that
        changes a kernel most. Halving both sides of a map quarters what a convolution costs,
        however many channels it has.
        """
        terms = [t for t in self.terms if len(t) > 1 and not self._clash(t, site)]
        for gene in [gene for gene in self._touched if gene[0] == site]:
            for term in terms:
                self.terms[_union((term, (gene,)))] = {
                    name: value * self._scale(name, term, gene)
                    for name, value in self.terms[term].items()
                }

    def _scale(self, name: str, term: Term, gene: Gene) -> Values:
        """What a choice adds to what the one that changes a kernel most adds, as a share of it."""
        zero = np.zeros(4)
        changes = [(self.terms[(g,)].get(name, zero), g) for g in term]
        change, most = max(changes, key=lambda c: abs(float(c[0][0])))
        added = self.terms.get(_union(((most,), (gene,))), {}).get(name, zero)
        return added / np.where(change == 0, np.inf, change)

    def _clash(self, term: Term, site: int) -> bool:
        return any(g[0] == site or self._claims[g[0]] & self._claims[site] for g in term)

    def _near(self, whole: Sequence[int]) -> dict[Gene, set[Gene]]:
        """Choices that change a kernel in common, and can be made together."""
        near: dict[Gene, set[Gene]] = {gene: set() for gene in self._touched}
        for a, b in combinations([g for g in self._touched if g[0] not in whole], 2):
            apart = a[0] != b[0] and not self._claims[a[0]] & self._claims[b[0]]
            if apart and self._touched[a] & self._touched[b]:
                near[a].add(b)
                near[b].add(a)
        return near

    @staticmethod
    def _larger(level: Sequence[Term], near: Mapping[Gene, set[Gene]]) -> list[Term]:
        """Terms of one more choice, of which all but the last are a term, all near each other."""
        return [
            (*term, gene)
            for term in level
            for gene in sorted(set.intersection(*(near[g] for g in term)))
            if gene > term[-1]
        ]

    def _worth_it(self, term: Term, order: int) -> bool:
        """Whether all parts of a term were found to add something."""
        parts = [p for p in combinations(term, order - 1)]
        if any(set(gone) <= set(term) for gone in self.impossible):
            return False
        if order == 2 or self.share == 0:
            return all(p in self.terms for p in parts)
        return all(self._weight_of(p) > self.share for p in parts)

    def _weight_of(self, term: Term) -> float:
        """The largest change that a term adds to a kernel, as a share of the network."""
        added = self.terms.get(term, {}).values()
        whole = self._floor[_ADDING] / (self.share or 1.0)
        most = max((np.abs(v[_ADDING]) for v in added), key=lambda v: float(v[0]), default=None)
        return 0.0 if most is None else float((most / np.maximum(whole, 1.0)).max())

    def _weight(self, term: Term) -> float:
        return min(self._weight_of(p) for p in combinations(term, len(term) - 1))

    def _packed(self, terms: Iterable[Term]) -> list[list[Term]]:
        """Terms in groups that can be made at once, none changing a kernel another does."""
        numbers: dict[str, int] = {}
        for touched in self._touched.values():
            for name in sorted(touched):
                numbers.setdefault(name, len(numbers))
        claims: dict[str, int] = {}
        for claim in sorted(set().union(*self._claims)):
            claims[claim] = len(claims)
        packs: list[list[Term]] = []
        taken: list[tuple[int, int]] = []
        for term in terms:
            kernels = sum({1 << numbers[n] for g in term for n in self._touched[g]})
            held = sum({1 << claims[c] for g in term for c in self._claims[g[0]]})
            for i, (other_kernels, other_held) in enumerate(taken):
                if not kernels & other_kernels and not held & other_held:
                    packs[i].append(term)
                    taken[i] = (other_kernels | kernels, other_held | held)
                    break
            else:
                packs.append([term])
                taken.append((kernels, held))
        return packs

    def _far_apart(self, alone: Sequence[Term]) -> list[list[Term]]:
        """Single choices of one pass in groups, none near a kernel that another is near."""
        number = {name: i for i, name in enumerate(self.base)}
        tensors = self.graph.tensors()
        for i, site in enumerate(self.space):
            near = _around(tensors, site.tensors)
            self._places[i] = sorted(number[name] for name in near & number.keys())
        packs: list[list[Term]] = []
        for term in alone:
            for pack in packs:
                if all(self._apart(term[0][0], other[0][0]) for other in pack):
                    pack.append(term)
                    break
            else:
                packs.append([term])
        return packs

    def _apart(self, site: int, other: int) -> bool:
        one, two = self.space.sites[site], self.space.sites[other]
        if one.pass_name != two.pass_name or one.claims & two.claims:
            return False
        here, there = self._places[site], self._places[other]
        if not here or not there:
            return False
        return here[0] > there[-1] + _REACH or there[0] > here[-1] + _REACH

    def _read(self, packs: list[list[Term]], what: str) -> None:
        """Terms from the networks that hold them; packs that do not read clearly are split."""
        again: list[list[Term]] = []
        for pack in packs:
            union = _union(pack)
            whose = self._whose(union, pack) if union in self._values else None
            if whose is not None:
                if len(pack[0]) == 1:
                    self._alone.append(pack)
                for term in pack:
                    self.terms[term] = self._added(union, term, whose[term])
            elif len(pack) > 1:
                again += [pack[: len(pack) // 2], pack[len(pack) // 2 :]]
            else:
                self.impossible += pack
        if again:
            self._look([_union(p) for p in again], what)
            self._read(again, what)

    def _whose(self, union: Term, pack: Sequence[Term]) -> dict[Term, Iterable[str]] | None:
        """The kernels of a network that each of its terms may have changed; None if not clear."""
        found = self._values[union]
        if len(pack) == 1:
            return {pack[0]: {**found, **self.base}}
        if len(pack[0]) == 1:
            return self._nearest(found, pack)
        known = {n for gene in union for n in self._touched[gene]}
        if found.keys() - self.base.keys() - known:
            return None  # a kernel that no choice alone makes
        return {term: {n for gene in term for n in self._touched[gene]} for term in pack}

    def _nearest(
        self, found: Mapping[str, Values], pack: Sequence[Term]
    ) -> dict[Term, Iterable[str]] | None:
        """Kernels by the single choice they are nearest to; None if one is near none."""
        number = {name: i for i, name in enumerate(self.base)}
        place = dict(number)
        last = 0
        for name in found:
            last = place.setdefault(name, last)
        whose: dict[Term, list[str]] = {term: [] for term in pack}
        zero = np.zeros(4)
        for name, here in place.items():
            change = found.get(name, zero) - self.base.get(name, zero)
            if not change.any():
                continue
            away = [min(abs(here - p) for p in self._places[term[0][0]]) for term in pack]
            least = int(np.argmin(away))
            if away[least] > _REACH and (np.abs(change) > self._floor)[_ADDING].any():
                return None
            whose[pack[least]].append(name)
        return dict(whose)

    def _added(self, union: Term, term: Term, names: Iterable[str]) -> dict[str, Values]:
        """What a term adds to kernels beyond what its parts, and the network's others, add."""
        found, zero = self._values[union], np.zeros(4)
        parts = [p for n in range(1, len(term)) for p in combinations(term, n)]
        if len(term) > 1:
            parts += [(g,) for g in union if g not in term]
        added = {}
        for name in names:
            value = found.get(name, zero) - self.base.get(name, zero)
            for part in parts:
                if part in self.terms:
                    value = value - self.terms[part].get(name, zero)
            if np.abs(value).max() > 1e-9:
                added[name] = value
        return added

    def _touches(self, term: Term) -> frozenset[str]:
        """Kernels that a choice changes by more than the share, or at all where that is 0."""
        if self.share > 0:
            added = self.terms[term].items()
            return frozenset(n for n, v in added if (np.abs(v) > self._floor)[_ADDING].any())
        seen, base = self._seen[term], self._seen[()]
        return frozenset(
            n
            for n in {*seen, *base}
            if n not in seen or n not in base or seen[n].key != base[n].key
        ) | frozenset(self.terms[term])

    def _look(self, terms: Sequence[Term], what: str) -> None:
        """Rewrite, see, and cost the kernels of all networks in one go."""
        new: dict[Term, dict[str, SeenKernel]] = {}
        for done, term in enumerate(terms):
            self.progress(what, done, len(terms))
            if term in self._values:
                continue
            try:
                view = self.view(candidate_of(self.space, term))
            except SiteGone:
                continue
            new[term] = {k.output: k for k in self.cost_model.see([view])[0]}
            self.looked += 1
        self.progress(what, len(terms), len(terms))
        keys = list(dict.fromkeys(k.key for kernels in new.values() for k in kernels.values()))
        cycles = dict(zip(keys, np.nan_to_num(self.cost_model.cycles_of(keys)), strict=True))
        for term, kernels in new.items():
            self._values[term] = {
                name: np.array([cycles[k.key], k.weight_bytes, k.macs, k.live_bytes])
                for name, k in kernels.items()
            }
            if len(term) <= 1:
                self._seen[term] = kernels


def candidate_of(space: SearchSpace, term: Iterable[Gene]) -> Candidate:
    """The candidate that makes these choices."""
    sites = space.sites
    return Candidate.of({sites[i].id: sites[i].choices[k - 1].label for i, k in term})


def _around(tensors: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """Names of tensors, and of those that the nodes at them read and write."""
    near = set(names)
    for name in near & tensors.keys():
        for node in [*tensors[name].inputs, *tensors[name].outputs]:
            near |= {t.name for t in [*node.inputs, *node.outputs]}
    return near


def _union(pack: Iterable[Term]) -> Term:
    return tuple(sorted(gene for term in pack for gene in term))
