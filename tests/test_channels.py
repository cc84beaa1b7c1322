"""Resizing a group: any order, new channels anywhere, removed ones; shapes follow at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from channel_tools import resized
from models import ModelBuilder
from numpy.typing import NDArray
from onnx import numpy_helper
from oracle import assert_same_outputs

from onnxnas.channels import NEW, padded, resize_group
from onnxnas.coupling import Coupling
from onnxnas.graph import from_model
from onnxnas.rewriter import Rewriter, SiteGone


def chain(opset: int = 13) -> onnx.ModelProto:
    b = ModelBuilder(["n", 3, 8, 8], opset=opset)
    y = b.op("Relu", b.conv(b.x, 3, 5, 3, out="first"))
    y = b.op("Sigmoid", b.depthwise(y, 5))
    return b.build(b.conv(y, 5, 4, out="last"))


def weight(model: onnx.ModelProto, output: str) -> NDArray[Any]:
    name = next(n for n in model.graph.node if n.output[0] == output).input[1]
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def test_removed_channels_are_gone_and_the_others_unchanged() -> None:
    model = chain()
    without = onnx.ModelProto()
    without.CopyFrom(model)
    name = next(n for n in model.graph.node if n.output[0] == "last").input[1]
    tensor = next(t for t in without.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[:, [1, 4]] = 0
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    result = resized(without, "first", [0, 2, 3])
    assert weight(result, "first").shape == (3, 3, 3, 3)
    assert_same_outputs(without, result)


def test_a_wrong_new_channel_shows() -> None:
    model = chain()
    result = resized(model, "first", [0, 1, 2, 3, 4, NEW])
    assert_same_outputs(model, result)
    name = next(n for n in result.graph.node if n.output[0] == "last").input[1]
    tensor = next(t for t in result.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[:, -1] = 0.01  # what the new channel carries, sigmoid(0), reaches the output
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    with pytest.raises(AssertionError, match="off by"):
        assert_same_outputs(model, result)


def test_groups_can_be_resized_one_after_the_other_in_one_graph() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    parts = [b.conv(b.x, 3, n, out=f"part{n}") for n in (3, 4, 5)]
    y = b.op("Relu", b.op("Concat", *parts, axis=1, out="joined"))
    model = b.build(b.conv(y, 12, 2))
    graph = from_model(model)
    for part in (4, 5, 3):
        group = Coupling.of(graph).group(f"part{part}")
        assert group is not None
        resize_group(Rewriter(graph, "test", {}), group, padded(group, 8))
    assert graph.tensors()["joined"].shape == [1, 24, 8, 8]
    order = resized(model, "part4", [3, NEW, 0, 1, 2])
    assert_same_outputs(
        model, resized(resized(order, "part3", [2, 0, 1, NEW]), "part5", [*range(5), NEW])
    )


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_equal_splits_are_written_out_once_unequal(opset: int) -> None:
    b = ModelBuilder([1, 3, 8, 8], opset=opset)
    b.conv(b.x, 3, 6, out="both")
    attrs: dict[str, Any] = {"num_outputs": 2} if opset >= 18 else {}
    b.nodes.append(onnx.helper.make_node("Split", ["both"], ["left", "right"], axis=1, **attrs))
    y = b.op("Add", b.conv("left", 3, 2), b.conv("right", 3, 2))
    model = b.build(y)
    assert_same_outputs(model, resized(model, "left", [2, NEW, 1, 0]))


def test_constants_shared_by_several_nodes_are_changed_for_one_only() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    bias = b.weight(4)
    for name in ("a", "b"):
        b.op("Conv", b.x, b.weight(4, 3, 1, 1), bias, out=name)
    model = b.build(b.op("Add", b.conv("a", 4, 2), b.conv("b", 4, 2)))
    assert_same_outputs(model, resized(model, "a", [1, 0, NEW, 3, 2]))


def test_the_type_of_the_weights_is_kept() -> None:
    b = ModelBuilder([1, 3, 8, 8])
    x = b.op("Cast", b.x, to=onnx.TensorProto.FLOAT16)
    half = [
        b.const(b.rng.standard_normal(s).astype(np.float16)) for s in ((4, 3, 1, 1), (2, 4, 1, 1))
    ]
    y = b.op("Conv", b.op("Conv", x, half[0], out="a"), half[1])
    model = b.build(b.op("Cast", y, to=onnx.TensorProto.FLOAT))
    assert weight(resized(model, "a", [0, NEW, 2]), "a").dtype == np.float16


def test_pinned_groups_and_bad_maps_are_refused() -> None:
    graph = from_model(chain())
    rw, found = Rewriter(graph, "test", {}), Coupling.of(graph)
    first, last = found.group("first"), found.group("last")
    assert first is not None
    assert last is not None
    with pytest.raises(SiteGone, match="'last' is a graph output"):
        resize_group(rw, last, [0])
    for bad in ([], [5], [-2]):
        with pytest.raises(ValueError, match="index map"):
            resize_group(rw, first, bad)


def test_padded_keeps_what_fits() -> None:
    group = Coupling.of(from_model(chain())).group("first")
    assert group is not None
    assert padded(group, 5) == [0, 1, 2, 3, 4]
    assert padded(group, 4) == [0, 1, 2, 3, 4, NEW, NEW, NEW]
