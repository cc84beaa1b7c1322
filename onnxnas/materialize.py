"""A candidate becomes a graph: its rewrites applied in order to a copy of the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from onnxnas.graph import infer_shapes
from onnxnas.pass_contract import Pass
from onnxnas.rewriter import Rewriter
from onnxnas.sites import Candidate, SearchSpace

Weights = Mapping[tuple[str, str], Mapping[str, NDArray[Any]]]
"""(site id, choice label) -> what was fitted for it; choices without an entry get stand-ins."""


@dataclass(frozen=True)
class Applied:
    """A rewritten graph and who made which node.

    Attributes:
        graph: `gs.Graph`, cleaned up and topologically sorted; its weights may be lazy.
        provenance: output tensor -> ``pass@tensor=choice``.
        replaced: tensor of the original -> the one that all its readers read now.
    """

    graph: Any
    provenance: Mapping[str, str]
    replaced: Mapping[str, str] = field(default_factory=dict)

    def stands_for(self, tensor: str) -> str:
        """The tensor that is read where the original has this one."""
        while tensor in self.replaced:
            tensor = self.replaced[tensor]
        return tensor


def apply_candidate(
    graph: Any,
    space: SearchSpace,
    candidate: Candidate,
    passes: Mapping[str, Pass],
    weights: Weights | None = None,
) -> Applied:
    """Apply every decision of a candidate to a copy of the graph.

    Args:
        weights: of the `recovered` choices; None while only structure is asked for.

    Raises:
        UsageError: the candidate does not belong to the space.
        SiteGone: one rewrite made another impossible.
    """
    result = graph.copy()
    provenance: dict[str, str] = {}
    replaced: dict[str, str] = {}
    before = None
    for site, choice in space.decided(candidate):
        if before not in (None, site.pass_name):
            _tidy(result)
        author = f"{site.id}={choice.label}"
        fitted = (weights or {}).get((site.id, choice.label))
        rewriter = Rewriter(result, author, provenance, fitted, replaced)
        passes[site.pass_name].rewrite(rewriter, site, choice)
        before = site.pass_name
    if before is not None:
        _tidy(result)
    return Applied(result, provenance, replaced)


def _tidy(graph: Any) -> None:
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    infer_shapes(graph)
