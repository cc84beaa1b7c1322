"""Part of a graph as a model of its own, to run what is needed and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx

from onnxnas.roundtrip import copy_graph, export_graph


def excerpt(graph: Any, outputs: Sequence[str], inputs: Sequence[str] = ()) -> onnx.ModelProto:
    """The nodes between some tensors and others.

    Args:
        graph: `gs.Graph` with inferred shapes; is not changed.
        outputs: tensors to compute; a graph input among them is passed through.
        inputs: tensors to be fed instead of computed; graph inputs that are still needed are
            inputs too.

    Returns:
        A model whose inputs and outputs have these names.
    """
    view = copy_graph(graph)
    tensors = view.tensors()
    fed = [tensors[name] for name in inputs]
    for tensor in fed:
        tensor.inputs.clear()
    own = {t.name for t in view.inputs}
    view.inputs = [*view.inputs, *(t for t in fed if t.name not in own)]
    view.outputs = [tensors[name] for name in outputs]
    view.cleanup(remove_unused_graph_inputs=True).toposort()
    return export_graph(view, consume=True)


def dependents(graph: Any, tensors: Iterable[str]) -> frozenset[str]:
    """Names of all tensors that are computed from some tensors, those themselves included."""
    found = set(tensors)
    for node in graph.nodes:  # in topological order
        if any(t.name in found for t in node.inputs):
            found.update(t.name for t in node.outputs)
    return frozenset(found)
