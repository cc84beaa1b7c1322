"""One pass on one model: what it finds, and the model after some of its choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from fakes import TARGET

from onnxnas.cost import Target
from onnxnas.graph import check_model, contract, from_model, to_model
from onnxnas.materialize import apply_candidate
from onnxnas.pass_contract import Pass, Why
from onnxnas.sites import Candidate, SearchSpace, Site


def find(
    pass_: Pass, model: onnx.ModelProto, target: Target = TARGET
) -> tuple[dict[str, Site], dict[str, str]]:
    """Sites by tensor, and the reason of every miss by tensor."""
    sites, misses = _find(pass_, from_model(model), target)
    return {site.tensor: site for site in sites}, misses


def rewrite(
    pass_: Pass, model: onnx.ModelProto, choices: Mapping[str, str], target: Target = TARGET
) -> onnx.ModelProto:
    """The valid model after some choices (tensor -> label), its contract unchanged."""
    graph = from_model(model)
    sites, _ = _find(pass_, graph, target)
    candidate = Candidate.of({f"{pass_.name}@{t}": label for t, label in choices.items()})
    applied = apply_candidate(graph, SearchSpace(sites), candidate, {pass_.name: pass_})
    result = to_model(applied.graph, model, applied.provenance)
    check_model(result)
    assert contract(result) == contract(model)
    return result


def ops(model: onnx.ModelProto) -> list[str]:
    """Operator names in execution order."""
    return [node.op_type for node in model.graph.node]


def attribute(model: onnx.ModelProto, output: str, name: str) -> Any:
    """One attribute of the node that writes `output`; None where it has none."""
    for node in model.graph.node:
        if output in node.output:
            for attr in node.attribute:
                if attr.name == name:
                    return onnx.helper.get_attribute_value(attr)
            return None
    raise AssertionError(f"nothing writes {output}")


def scale_one_weight(model: onnx.ModelProto, by: float = 1.01) -> onnx.ModelProto:
    """Sabotage: the first non-zero value of the first rewritten node's weight, scaled."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    node = next(n for n in changed.graph.node if n.metadata_props and n.op_type == "Conv")
    tensor = next(t for t in changed.graph.initializer if t.name == node.input[1])
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[values.ravel().nonzero()[0][0]] *= by
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return changed


def _find(pass_: Pass, graph: Any, target: Target) -> tuple[tuple[Site, ...], dict[str, str]]:
    why = Why(pass_.name)
    sites = tuple(pass_.find_sites(graph, target, why))
    return sites, {miss.tensor: miss.reason for miss in why.misses}
