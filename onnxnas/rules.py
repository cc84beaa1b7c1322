"""Rules of an expert applied to a search space: what is left of it, what is forced or preferred."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from onnxnas.cost import Cost
from onnxnas.errors import UsageError
from onnxnas.graph import is_static
from onnxnas.rule_file import Place, Rule
from onnxnas.sites import Candidate, SearchSpace, Site

Move = tuple[str, str]
"""(site id, choice label)."""


@dataclass(frozen=True)
class Note:
    """What one rule did.

    Attributes:
        rule: as written.
        sites: how many it speaks of.
        removed: choices it alone, or it first, took out of the search.
        gone: choices it takes out, whether others do as well or not.
        forced: choices it demands.
        warning: why it did nothing, or more than was meant; empty otherwise.
    """

    rule: str
    sites: int
    removed: int
    gone: frozenset[Move] = frozenset()
    forced: frozenset[Move] = frozenset()
    warning: str = ""


@dataclass(frozen=True)
class Ruled:
    """A search space after the rules.

    Attributes:
        space: what is left of it; a forced site has only its forced choice.
        forced: decisions that every candidate has to make.
        factors: choice -> how many times less its loss counts when candidates are compared; figures
            that are reported stay what they are.
        removed: choice -> the rule that took it out.
        notes: one for each rule, in order.
        before: the space without any rule.
    """

    space: SearchSpace
    forced: Candidate
    factors: Mapping[Move, float]
    removed: Mapping[Move, str]
    notes: tuple[Note, ...]
    before: SearchSpace

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the rules that did nothing, or more than was meant."""
        return tuple(f"Rule {n.rule}: {n.warning}" for n in self.notes if n.warning)


def apply_rules(
    rules: Sequence[Rule], space: SearchSpace, graph: Any, cost: Callable[[], Cost]
) -> Ruled:
    """Narrow a search space.

    Args:
        graph: of the model, its shapes static (see `onnxnas.graph.static_view`).
        cost: of the unchanged model; only asked for where a rule needs it.

    Raises:
        UsageError: rules contradict each other, or force what cannot be.
    """
    return _Application(space, graph, cost).apply(rules)


def stages(graph: Any) -> tuple[tuple[int, ...], ...]:
    """Spatial sizes of a network's feature maps, the largest first: stage 1, stage 2, ...

    What a convolution writes counts; the input's own size only where a convolution keeps it.
    """
    sizes = {
        size
        for node in graph.nodes
        if node.op in ("Conv", "ConvTranspose")
        for size in [spatial_size(node.outputs[0])]
        if size
    }
    return tuple(sorted(sizes, key=lambda size: (-_area(size), size)))


def stages_text(found: Sequence[Sequence[int]]) -> str:
    """``1 = 56x56, 2 = 28x28``."""
    return ", ".join(f"{i} = {'x'.join(map(str, s))}" for i, s in enumerate(found, 1)) or "none"


@dataclass
class _Application:
    space: SearchSpace
    graph: Any
    cost: Callable[[], Cost]
    removed: dict[Move, str] = field(default_factory=dict)
    forced: dict[str, tuple[str, str]] = field(default_factory=dict)
    factors: dict[Move, float] = field(default_factory=dict)

    def apply(self, rules: Sequence[Rule]) -> Ruled:
        self.tensors = self.graph.tensors()
        self.stages = stages(self.graph)
        self.shares: dict[str, float] | None = None
        self._recovered = {
            (s.id, c.label) for s in self.space for c in s.choices if c.exactness != "exact"
        }
        notes = [self._apply(rule) for rule in rules]
        self._settle_forced()
        left = tuple(
            replace(s, choices=tuple(c for c in s.choices if (s.id, c.label) not in self.removed))
            for s in self.space
        )
        return Ruled(
            SearchSpace(tuple(site for site in left if site.choices)),
            Candidate.of({site_id: label for site_id, (label, _) in self.forced.items()}),
            self.factors,
            self.removed,
            tuple(notes),
            self.space,
        )

    def _apply(self, rule: Rule) -> Note:
        sites = [s for s in self.space if fnmatchcase(s.pass_name, rule.passes)]
        placed = [s for s in sites if self._placed(rule, s)]
        matched = [(s.id, c.label) for s in placed for c in s.choices if _labelled(rule, c.label)]
        gone: list[Move] = []
        forced: list[Move] = []
        if rule.verb in ("never", "forbid"):
            gone = matched
        elif rule.verb == "only":
            kept = set(matched)
            gone = [m for s in sites for m in _moves(s) if m not in kept]
        elif rule.verb == "prefer":
            self.factors.update(dict.fromkeys(matched, rule.factor))
        else:
            forced = matched
            for site in placed:
                self._force(rule, site, [label for s, label in matched if s == site.id])
        new = [move for move in gone if move not in self.removed]
        self.removed.update(dict.fromkeys(new, rule.text))
        warning = "" if matched else self._nothing(rule, sites, placed)
        if rule.verb == "prefer" and matched and not self._recovered & set(matched):
            warning = "these choices lose nothing, so nothing is gained by preferring them"
        return Note(
            rule.text,
            len({site_id for site_id, _ in matched}),
            len(new),
            frozenset(gone),
            frozenset(forced),
            warning,
        )

    def _force(self, rule: Rule, site: Site, labels: Sequence[str]) -> None:
        if len(labels) > 1:
            raise UsageError(
                f"Rule {rule.text} forces {site.id}, which can be {', '.join(labels)}: say which."
            )
        for label in labels:
            known = self.forced.setdefault(site.id, (label, rule.text))
            if known[0] != label:
                raise UsageError(
                    f"Rules contradict each other at {site.id}: {known[1]} and {rule.text}."
                )

    def _settle_forced(self) -> None:
        """What excludes a forced choice goes; forced choices must not exclude each other."""
        for site_id, (label, rule) in self.forced.items():
            if (site_id, label) in self.removed:
                ruled_out = self.removed[site_id, label]
                raise UsageError(
                    f"Rules contradict each other at {site_id}: {rule} and {ruled_out}."
                )
            site = self.space.site(site_id)
            for other in self.space:
                if other.id == site_id:
                    gone = [move for move in _moves(other) if move[1] != label]
                elif other.claims & site.claims:
                    if other.id in self.forced:
                        raise UsageError(
                            f"Rules force {site_id} and {other.id}, which change the same part of "
                            "the graph."
                        )
                    gone = _moves(other)
                else:
                    continue
                for move in gone:
                    self.removed.setdefault(move, f"{rule} forces {label} at {site_id}")

    def _nothing(self, rule: Rule, sites: Sequence[Site], placed: Sequence[Site]) -> str:
        """Why a rule speaks of nothing."""
        if not sites:
            return f"there is no site of {rule.passes} here"
        also = "; all of it is ruled out" if rule.verb == "only" else ""
        if placed:
            labels = sorted({c.label for s in placed for c in s.choices})
            return f"no choice is called so there; there are {', '.join(labels)}{also}"
        if any(place.stages for place in rule.places):
            have = stages_text(self.stages)
            return f"no site of {rule.passes} is in such a stage; stages are {have}{also}"
        some = ", ".join(s.tensor for s in sites[:3])
        return (
            f"no site of {rule.passes} matches; they are {some}{', ...' * (len(sites) > 3)}{also}"
        )

    def _placed(self, rule: Rule, site: Site) -> bool:
        return not rule.places or any(self._at(place, rule, site) for place in rule.places)

    def _at(self, place: Place, rule: Rule, site: Site) -> bool:
        if place.names is not None:
            names = self._names(self._about(rule, site))
            return any(fnmatchcase(name, place.names) for name in names)
        if place.stages is not None:
            first, last = place.stages
            return any(first <= stage <= last for stage in self._stages(self._about(rule, site)))
        share = self._share(site)
        return share < place.under if place.under is not None else share > (place.over or 0.0)

    def _about(self, rule: Rule, site: Site) -> frozenset[str]:
        """The tensors by which a rule finds a site: to rule out, any that the site changes."""
        return site.tensors if rule.verb in ("never", "forbid") else frozenset({site.tensor})

    def _names(self, about: frozenset[str]) -> set[str]:
        found = [self.tensors[name] for name in about if name in self.tensors]
        return {*about, *(node.name for tensor in found for node in tensor.inputs)}

    def _stages(self, about: frozenset[str]) -> set[int]:
        """1 for the largest feature maps; nothing where there are none."""
        sizes = {spatial_size(self.tensors[name]) for name in about if name in self.tensors}
        return {self.stages.index(size) + 1 for size in sizes if size in self.stages}

    def _share(self, site: Site) -> float:
        if self.shares is None:
            cost = self.cost()
            self.shares = {
                s.id: sum(k.cycles or 0.0 for k in cost.kernels if s.tensors & set(k.tensors))
                / (cost.cycles or 1.0)
                for s in self.space
            }
        return self.shares[site.id]


def _moves(site: Site) -> list[Move]:
    return [(site.id, choice.label) for choice in site.choices]


def _labelled(rule: Rule, label: str) -> bool:
    return not rule.choices or any(fnmatchcase(label, glob) for glob in rule.choices)


def spatial_size(tensor: Any) -> tuple[int, ...]:
    """Height and width (or what there is) of a feature map, empty for anything else."""
    shape = tensor.shape
    if shape is None or len(shape) < 3 or not all(is_static(d) for d in shape[2:]):
        return ()
    return tuple(int(d) for d in shape[2:])


def _area(size: Sequence[int]) -> int:
    area = 1
    for length in size:
        area *= length
    return area
