"""Where a graph can be rewritten and what can be chosen there.

A `Site` is a place in one graph where one pass applies; a `Choice` is what is done there; a
`Candidate` is one choice for every site, and prints as text that parses back:
``depthwise-to-standard@conv3_out=dense; align-channels@conv1_out=multiple-of-16``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from onnxnas.errors import UsageError

Exactness = Literal["exact", "recovered", "retrain"]
"""exact: same outputs to rounding for all inputs; recovered: weights re-fitted on data;
retrain: structure only."""

KEEP = "keep"


@dataclass(frozen=True)
class Choice:
    """One thing that can be done at a site.

    Attributes:
        label: unique within the site, kebab-case, no ``=;@`` (e.g. ``dense``, ``groups-of-8``).
        params: what the pass needs to act on it.
        exactness: how the outputs relate to the original's.
        note: one clause for people, shown in the ledger.
    """

    label: str
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    exactness: Exactness = "exact"
    note: str = ""


@dataclass(frozen=True)
class Site:
    """A place in one graph where one pass applies.

    Attributes:
        pass_name: the pass that found it.
        tensor: output tensor that names the place.
        choices: what can be done, *keep* not among them: it is always possible.
        claims: what a rewrite here takes for itself: ``node:<output tensor>`` for a node it
            replaces, ``channels:<tensor>`` for a tensor whose channels it changes, or
            ``channels:<tensor>[4:8]`` for some of them; ``weights:<output tensor>`` for a layer
            whose weights get other values, whatever its channels, or which goes away. Sites that
            share a claim are never both rewritten.
        params: what the pass needs to find the place again.
    """

    pass_name: str
    tensor: str
    choices: tuple[Choice, ...]
    claims: frozenset[str]
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def id(self) -> str:
        """``pass@tensor``, unique in a search space."""
        return f"{self.pass_name}@{self.tensor}"

    @property
    def tensors(self) -> frozenset[str]:
        """Names of the tensors that the place and its claims are about."""
        claimed = (claim.partition(":")[2].partition("[")[0] for claim in self.claims)
        return frozenset({self.tensor, *claimed})

    def choice(self, label: str) -> Choice:
        """The choice of that label.

        Raises:
            UsageError: the site has no such choice.
        """
        for choice in self.choices:
            if choice.label == label:
                return choice
        known = ", ".join([KEEP, *(c.label for c in self.choices)])
        raise UsageError(f"Site {self.id!r} has no choice {label!r}; it has {known}.")


@dataclass(frozen=True)
class Candidate:
    """One choice for every site; sites that are kept are left out.

    Attributes:
        decisions: (site id, choice label) pairs, sorted by site id, *keep* never among them.
    """

    decisions: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, decisions: Mapping[str, str]) -> Candidate:
        """From a mapping site id -> choice label; *keep* is dropped."""
        return cls(tuple(sorted((s, c) for s, c in decisions.items() if c != KEEP)))

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """From the text `str()` gives.

        Raises:
            UsageError: a part is not ``pass@tensor=choice``.
        """
        decisions: dict[str, str] = {}
        for part in filter(None, (p.strip() for p in text.split("; "))):
            site, equals, label = part.rpartition("=")
            if not equals or "@" not in site or not label:
                raise UsageError(f"Cannot read {part!r}: write pass@tensor=choice.")
            decisions[site] = label
        return cls.of(decisions)

    def with_choice(self, site_id: str, label: str) -> Candidate:
        """The same candidate with one decision changed."""
        return Candidate.of({**dict(self.decisions), site_id: label})

    def __str__(self) -> str:
        return "; ".join(f"{site}={label}" for site, label in self.decisions)


@dataclass(frozen=True)
class SearchSpace:
    """All sites of one graph, in the order their passes are applied."""

    sites: tuple[Site, ...]

    def __post_init__(self) -> None:
        ids = [site.id for site in self.sites]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"site ids must be unique, found twice: {', '.join(twice)}")

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def site(self, site_id: str) -> Site:
        """The site of that id.

        Raises:
            UsageError: there is no such site.
        """
        for site in self.sites:
            if site.id == site_id:
                return site
        raise UsageError(f"This model has no site {site_id!r} for this target and these passes.")

    def decided(self, candidate: Candidate) -> list[tuple[Site, Choice]]:
        """The candidate's rewrites, in the order they are to be applied.

        Raises:
            UsageError: a site or choice does not exist, or two decisions are in conflict.
        """
        wanted = dict(candidate.decisions)
        for site_id in wanted:
            self.site(site_id)
        chosen = [(s, s.choice(wanted[s.id])) for s in self.sites if s.id in wanted]
        for i, (site, _) in enumerate(chosen):
            for other, _ in chosen[:i]:
                if site.claims & other.claims:
                    raise UsageError(f"{other.id} and {site.id} change the same part of the graph.")
        return chosen

    def conflicts(self, site: Site, candidate: Candidate) -> list[str]:
        """Ids of the candidate's decided sites that overlap with `site`."""
        wanted = dict(candidate.decisions)
        return [
            other.id
            for other in self.sites
            if other.id in wanted and other.id != site.id and other.claims & site.claims
        ]

    def size(self) -> int:
        """Number of combinations, conflicts not counted out."""
        total = 1
        for site in self.sites:
            total *= 1 + len(site.choices)
        return total


def only_passes(sites: Iterable[Site], names: Iterable[str]) -> tuple[Site, ...]:
    """The sites of the named passes, order kept."""
    wanted = set(names)
    return tuple(site for site in sites if site.pass_name in wanted)
