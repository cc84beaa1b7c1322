"""A candidate becomes a graph: its rewrites applied in order to a copy of the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from onnxnas.graph import Shape, infer_shapes, is_static, static_view, to_model
from onnxnas.pass_contract import Pass
from onnxnas.resized import declare
from onnxnas.rewriter import Edit, Rewriter
from onnxnas.roundtrip import copy_graph
from onnxnas.sites import Candidate, SearchSpace

Weights = Mapping[tuple[str, str], Mapping[str, NDArray[Any]]]
"""(site id, choice label) -> what was fitted for it; choices without an entry get stand-ins.

Under `TRAINED`: constants of the rewritten graph, by name, that were trained after all rewrites.
"""

TRAINED = ("", "trained")


@dataclass(frozen=True)
class Applied:
    """A rewritten graph and who made which node.

    Attributes:
        graph: `gs.Graph`, cleaned up and topologically sorted; its weights may be lazy.
        provenance: output tensor -> ``pass@tensor=choice``.
        replaced: tensor of the original -> the one that all its readers read now.
        edits: what is still to be done to what is costed and delivered, which may have inputs
            and outputs of other sizes, see `Rewriter.when_delivered`; who does it, and what. The
            graph itself always can be fitted and judged on the user's data.
        trained: weights were trained as a whole: those no rewrite touched differ too.
    """

    graph: Any
    provenance: Mapping[str, str]
    replaced: Mapping[str, str] = field(default_factory=dict)
    edits: tuple[tuple[str, Edit], ...] = ()
    trained: bool = False

    def stands_for(self, tensor: str) -> str:
        """The tensor that is read where the original has this one."""
        while tensor in self.replaced:
            tensor = self.replaced[tensor]
        return tensor

    def view(self, input_shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """What is costed: every shape fixed, see `onnxnas.graph.static_view`."""
        graph, _ = self.delivered()
        return static_view(graph, own_sizes(graph, input_shapes))

    def model(self, like: Any) -> Any:
        """What is delivered, as `onnx.ModelProto`.

        Args:
            like: the model that the original graph was imported from.
        """
        graph, provenance = self.delivered()
        model = to_model(graph, like, provenance)
        if self.edits:
            declare(model, {t.name: t.shape or () for t in [*graph.inputs, *graph.outputs]})
        return model

    def delivered(self) -> tuple[Any, Mapping[str, str]]:
        """The graph after all edits, and who made which node of it."""
        if not self.edits:
            return self.graph, self.provenance
        graph, provenance = copy_graph(self.graph), dict(self.provenance)
        for author, edit in self.edits:
            edit(Rewriter(graph, author, provenance))
        declared: dict[str, Any] = {t.name: t.shape for t in graph.outputs}
        for tensor in graph.outputs:
            tensor.shape = None
        _tidy(graph)
        for tensor in graph.outputs:
            tensor.shape = _static_of(tensor.shape, declared[tensor.name])
        return graph, provenance


def own_sizes(
    graph: Any, input_shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Shapes for a graph whose inputs may have other sizes than those they were given for."""
    declared = {t.name: tuple(t.shape or ()) for t in graph.inputs}
    return {
        name: tuple(d if is_static(d) else g for d, g in zip(declared[name], given, strict=True))
        if len(declared.get(name, ())) == len(given)
        else given
        for name, given in input_shapes.items()
    }


def _static_of(shape: Shape | None, declared: Shape | None) -> Any:
    """A shape that follows from the operators, but for dimensions that stay open as declared."""
    if shape is None or declared is None or len(shape) != len(declared):
        return shape
    return [new if is_static(new) else old for new, old in zip(shape, declared, strict=True)]


def apply_candidate(
    graph: Any,
    space: SearchSpace,
    candidate: Candidate,
    passes: Mapping[str, Pass],
    weights: Weights | None = None,
    *,
    shapes: bool = True,
) -> Applied:
    """Apply every decision of a candidate to a copy of the graph.

    Args:
        weights: of the `recovered` choices; None while only structure is asked for.
        shapes: False leaves those of the result open, where only its `Applied.view` is asked for.

    Raises:
        UsageError: the candidate does not belong to the space.
        SiteGone: one rewrite made another impossible.
    """
    result = copy_graph(graph)
    provenance: dict[str, str] = {}
    replaced: dict[str, str] = {}
    edits: list[tuple[str, Edit]] = []
    before = None
    for site, choice in space.decided(candidate):
        if before not in (None, site.pass_name):
            _tidy(result)
        author = f"{site.id}={choice.label}"
        fitted = (weights or {}).get((site.id, choice.label))
        rewriter = Rewriter(result, author, provenance, fitted, replaced, edits)
        passes[site.pass_name].rewrite(rewriter, site, choice)
        before = site.pass_name
    if before is not None:
        _tidy(result, shapes)
    trained = (weights or {}).get(TRAINED, {})
    put_values(result, trained)
    return Applied(result, provenance, replaced, tuple(edits), bool(trained))


def put_values(graph: Any, values: Mapping[str, NDArray[Any]]) -> None:
    """Give constants of a graph other values, in place."""
    tensors = graph.tensors() if values else {}
    for name, new in values.items():
        tensors[name].values = new.astype(tensors[name].dtype)


def _tidy(graph: Any, shapes: bool = True) -> None:
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    if shapes:
        infer_shapes(graph)
