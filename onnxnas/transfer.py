"""A recipe of one model made to fit another: places are found by name, else by what they look like.

Two places are alike if the same pass applies to nodes of the same kinds, kernels and strides at
the same resolution, and they are the same in the count of such places from the input on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from onnxnas.graph import is_static
from onnxnas.ops import conv
from onnxnas.recipe import Fingerprint, Recipe
from onnxnas.rules import spatial_size, stages
from onnxnas.sites import Candidate, Choice, SearchSpace, Site

_NEAR = 0.25
"""A choice may leave this much more or less of the channels than the recipe's, relative to it."""
_COUNTS = ("width", "rank")
"""Parameters of a choice that count channels."""


@dataclass(frozen=True)
class Match:
    """What one decision of a recipe became in this model.

    Attributes:
        site: the recipe's.
        choice: the recipe's.
        found: site id and choice label here, None where there is nothing like it.
        reason: why not; empty otherwise.
    """

    site: str
    choice: str
    found: tuple[str, str] | None
    reason: str = ""

    @property
    def moved(self) -> bool:
        """It is made, under another name or as another choice."""
        return self.found is not None and self.found != (self.site, self.choice)

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.site}={self.choice} is not made here: {self.reason}"
        return f"{self.site}={self.choice} is made as {self.found[0]}={self.found[1]}"


def match_recipe(
    recipe: Recipe, space: SearchSpace, graph: Any
) -> tuple[Candidate, tuple[Match, ...]]:
    """The decisions of a recipe in another model.

    Args:
        space: every site of the model.
        graph: of the model, shapes inferred.

    Returns:
        What can be made of it, and what cannot, each with its reason.
    """
    found = matches(recipe, space, graph)
    candidate = Candidate.of(dict(m.found for m in found if m.found))
    return candidate, tuple(m for m in found if m.found is None)


def matches(recipe: Recipe, space: SearchSpace, graph: Any) -> tuple[Match, ...]:
    """What became of each decision of a recipe, in its order; see `match_recipe`."""
    return tuple(_Matching(recipe, space, graph).all())


def fingerprints(candidate: Candidate, space: SearchSpace, graph: Any) -> dict[str, Fingerprint]:
    """What the places of a candidate's decisions look like, by site id."""
    seen = _looks(space, graph)
    tensors = graph.tensors()
    return {
        site.id: Fingerprint(*seen[site.id], _share(site, choice, tensors))
        for site, choice in space.decided(candidate)
    }


class _Matching:
    def __init__(self, recipe: Recipe, space: SearchSpace, graph: Any) -> None:
        self.recipe, self.space = recipe, space
        self.tensors = graph.tensors()
        self.sites = {site.id: site for site in space}
        self.looks = _looks(space, graph)
        self.by_look = {
            (self.sites[site_id].pass_name, *look): self.sites[site_id]
            for site_id, look in self.looks.items()
        }
        self.taken: dict[str, Site] = {}

    def all(self) -> Iterator[Match]:
        # Names first: a place that is here by its name is nobody else's by its look.
        named = {
            site_id: self._decide(site_id, label, self.sites[site_id])
            for site_id, label in self.recipe.candidate.decisions
            if site_id in self.sites and self._same_look(site_id)
        }
        for site_id, label in self.recipe.candidate.decisions:
            yield named[site_id] if site_id in named else self._by_look(site_id, label)

    def _same_look(self, site_id: str) -> bool:
        """A name alone is no place: exporters number tensors, in other models differently."""
        wanted = self.recipe.fingerprints.get(site_id)
        return wanted is None or wanted.structure == self.looks[site_id][0]

    def _by_look(self, site_id: str, label: str) -> Match:
        wanted = self.recipe.fingerprints.get(site_id)
        if wanted is None:
            reason = "no place has this name, and the recipe does not say what it looks like"
            return Match(site_id, label, None, reason)
        name = site_id.partition("@")[0]
        kind = f"{wanted.structure}{f' in stage {wanted.stage}' if wanted.stage else ''}"
        alike = [key for key in self.by_look if key[:3] == (name, wanted.structure, wanted.stage)]
        site = self.by_look.get((name, wanted.structure, wanted.stage, wanted.nth))
        if site is None:
            count = f"{len(alike)} of {wanted.nth} places" if alike else "no place"
            return Match(site_id, label, None, f"{count} for {name} like it ({kind})")
        return self._decide(site_id, label, site)

    def _decide(self, site_id: str, label: str, site: Site) -> Match:
        clash = next((o for o, s in self.taken.items() if s.claims & site.claims), None)
        if site.id in self.taken or clash:
            return Match(site_id, label, None, f"{clash or site.id} is taken by another decision")
        choice = self._choice(site_id, label, site)
        if choice is None:
            have = ", ".join(c.label for c in site.choices)
            return Match(site_id, label, None, f"{site.id} has no such choice; it has {have}")
        self.taken[site.id] = site
        return Match(site_id, label, (site.id, choice.label))

    def _choice(self, site_id: str, label: str, site: Site) -> Choice | None:
        """The choice that leaves the same share of the channels; else the one of the same name."""
        wanted = self.recipe.fingerprints.get(site_id)
        if wanted is None or wanted.share is None:
            return next((c for c in site.choices if c.label == label), None)
        off = [
            (abs(share - wanted.share), c.label != label, i)
            for i, c in enumerate(site.choices)
            if _stem(c.label) == _stem(label)
            for share in [_share(site, c, self.tensors)]
            if share is not None
        ]
        best = min(off, default=None)
        return (
            site.choices[best[2]] if best is not None and best[0] <= _NEAR * wanted.share else None
        )


def _looks(space: SearchSpace, graph: Any) -> dict[str, tuple[str, int, int]]:
    """Site id -> structure, stage, and which of those of the same pass, structure and stage."""
    tensors, resolutions = graph.tensors(), stages(graph)
    order = {id(node): i for i, node in enumerate(graph.nodes)}
    counts: Counter[tuple[str, str, int]] = Counter()
    places = {site.id: _nodes(site, tensors, order) for site in space}
    found = {}
    for site in sorted(space, key=lambda s: order.get(id(_producer(tensors, s.tensor)), 0)):
        size = spatial_size(tensors[site.tensor]) if site.tensor in tensors else ()
        stage = resolutions.index(size) + 1 if size in resolutions else 0
        kind = (site.pass_name, ", ".join(map(_word, places[site.id])), stage)
        counts[kind] += 1
        found[site.id] = (kind[1], stage, counts[kind])
    return found


def _nodes(site: Site, tensors: Mapping[str, Any], order: Mapping[int, int]) -> list[Any]:
    """The nodes a place is about: those it claims, else the one it is named by and its readers."""
    claimed = {c.partition(":")[2] for c in site.claims if c.startswith("node:")}
    nodes = [_producer(tensors, name) for name in sorted({*claimed, site.tensor})]
    if not claimed and site.tensor in tensors:
        nodes += tensors[site.tensor].outputs
    unique = {id(node): node for node in nodes if node is not None}
    return sorted(unique.values(), key=lambda node: order.get(id(node), 0))


def _producer(tensors: Mapping[str, Any], name: str) -> Any | None:
    return next(iter(tensors[name].inputs), None) if name in tensors else None


def _word(node: Any) -> str:
    """A node without its sizes: operator, kernel, stride, groups, and whether channels grow."""
    view = conv(node)
    if isinstance(view, str):
        return str(node.op)
    stride = "x".join(map(str, dict.fromkeys(view.strides)))
    word = f"Conv {'x'.join(map(str, view.kernel))}{f'/{stride}' if stride != '1' else ''}"
    if view.group > 1:
        return f"{word} {'depthwise' if view.depthwise else 'grouped'}"
    change = view.out_channels - view.in_channels
    return word + (" wider" if change > 0 else " narrower" if change < 0 else "")


def _share(site: Site, choice: Choice, tensors: Mapping[str, Any]) -> float | None:
    """Channels a choice leaves of its tensor's; None where it does not count them."""
    counted = next((choice.params[key] for key in _COUNTS if key in choice.params), None)
    shape = tensors[site.tensor].shape if site.tensor in tensors else None
    if counted is None or shape is None or len(shape) < 2 or not is_static(shape[1]):
        return None
    return round(float(counted) / int(shape[1]), 4)


def _stem(label: str) -> str:
    return re.sub(r"\d+$", "", label)
