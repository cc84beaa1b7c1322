"""Resizing one channel group of a model, for the tests."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxnas.channels import resize_group
from onnxnas.coupling import Coupling
from onnxnas.graph import check_model, contract, from_model, to_model
from onnxnas.rewriter import Rewriter


def resized(model: onnx.ModelProto, tensor: str, index_map: Sequence[int]) -> onnx.ModelProto:
    """The valid model after one group got other channels, its contract unchanged."""
    graph = from_model(model)
    group = Coupling.of(graph).group(tensor)
    assert group is not None, f"{tensor} is not one group"
    resize_group(Rewriter(graph, "test", {}), group, index_map)
    result = to_model(graph, model)
    check_model(result)
    assert contract(result) == contract(model)
    return result
