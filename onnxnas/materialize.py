"""A candidate becomes a graph: its rewrites applied in order to a copy of the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxnas.graph import infer_shapes
from onnxnas.pass_contract import Pass
from onnxnas.rewriter import Rewriter
from onnxnas.sites import Candidate, SearchSpace


@dataclass(frozen=True)
class Applied:
    """A rewritten graph and who made which node.

    Attributes:
        graph: `gs.Graph`, cleaned up and topologically sorted; its weights may be lazy.
        provenance: output tensor -> ``pass@tensor=choice``.
    """

    graph: Any
    provenance: Mapping[str, str]


def apply_candidate(
    graph: Any, space: SearchSpace, candidate: Candidate, passes: Mapping[str, Pass]
) -> Applied:
    """Apply every decision of a candidate to a copy of the graph.

    Raises:
        UsageError: the candidate does not belong to the space.
        SiteGone: one rewrite made another impossible.
    """
    result = graph.copy()
    provenance: dict[str, str] = {}
    before = None
    for site, choice in space.decided(candidate):
        if before not in (None, site.pass_name):
            _tidy(result)
        author = f"{site.id}={choice.label}"
        passes[site.pass_name].rewrite(Rewriter(result, author, provenance), site, choice)
        before = site.pass_name
    if before is not None:
        _tidy(result)
    return Applied(result, provenance)


def _tidy(graph: Any) -> None:
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    infer_shapes(graph)
