"""Where to look in a model besides its outputs, which can be blind to a difference."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxnas.difference import OutputDifference
from onnxnas.protos import type_name, without_weights

_CARRY = frozenset(
    {
        "Cast", "DequantizeLinear", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose",
        "Unsqueeze",
    }
)  # fmt: skip
"""Operators whose output is their first input in another form."""

_STEPS = frozenset({"Ceil", "Floor", "Round", "Sign"})
_SATURATING = frozenset({"Clip", "HardSigmoid", "LogSoftmax", "Relu", "Sigmoid", "Softmax", "Tanh"})
_SQUASHING = frozenset({"HardSigmoid", "Sigmoid", "Softmax", "Tanh"})
_ENLARGING = frozenset({"Resize", "Upsample"}) | _SATURATING
_FLOATS = frozenset({"float", "double", "float16", "bfloat16"})


def differences(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, OutputDifference]:
    """Nothing compared yet, for each of some tensors of a model; outputs by what they are."""
    stepped, squashed = stepped_outputs(model), squashed_outputs(model)
    return {n: OutputDifference(n, n in stepped, n in squashed) for n in names}


def stepped_outputs(model: onnx.ModelProto) -> frozenset[str]:
    """Outputs that jump: classes, truth values, rounded values, of whatever type they are kept in.

    They are to be judged by how many elements are equal: where scores tie to rounding, either
    class is right, and classes have no magnitude.
    """
    types, makers = _types(model), _makers(model)

    def steps(name: str) -> bool:
        node = makers.get(name)
        if types.get(name, "float") not in _FLOATS or (node and node.op_type in _STEPS):
            return True
        return node is not None and node.op_type in _CARRY and steps(node.input[0])

    return frozenset(value.name for value in model.graph.output if steps(value.name))


def squashed_outputs(model: onnx.ModelProto) -> frozenset[str]:
    """Outputs that are parts of 1, such as probabilities."""
    makers = _makers(model)

    def squashed(name: str) -> bool:
        node = makers.get(name)
        if node is None or node.op_type in _SQUASHING:
            return node is not None
        return node.op_type in _CARRY and squashed(node.input[0])

    return frozenset(value.name for value in model.graph.output if squashed(value.name))


def decided_on(original: onnx.ModelProto, result: onnx.ModelProto) -> list[str]:
    """Float tensors, in both models alike, that outputs which jump or saturate are read off.

    A class map can be the same on every random input although the scores under it are wrong, and
    a probability can be 1 whatever the logits; the scores and logits themselves show it.
    """
    types, makers, others = _types(original), _makers(original), _makers(result)
    outputs = {value.name for value in original.graph.output}
    todo, seen = list(outputs), set()
    found = []
    while todo:
        name = todo.pop()
        node, other = makers.get(name), others.get(name)
        if name in seen or node is None or other is None:
            continue
        seen.add(name)
        if node.op_type != other.op_type or list(node.input) != list(other.input):
            continue
        if node.op_type in _CARRY:
            todo.append(node.input[0])
        elif types.get(name) not in _FLOATS or node.op_type in _STEPS | _SATURATING:
            for source in node.input:
                if types.get(source) not in _FLOATS:
                    todo.append(source)
                elif source in makers and source in others:
                    found.append(source)
    return sorted(set(found) - outputs)


def decided_before(original: onnx.ModelProto, result: onnx.ModelProto) -> list[str]:
    """Scores that classes were chosen from after they were enlarged, and now are before that.

    That they are the same says nothing about the classes; that they are not says enough.
    """
    types, makers, others = _types(original), _makers(original), _makers(result)
    found = []
    for output in original.graph.output:
        name, chosen = output.name, False
        while (node := makers.get(name)) is not None:
            if chosen and name in others and types.get(name) in _FLOATS:
                found.append(name)
                break
            if node.op_type not in _CARRY and not (chosen and node.op_type in _ENLARGING):
                if node.op_type != "ArgMax" or node.input[0] in others:
                    break
                chosen = True
            name = node.input[0]
    return sorted(set(found))


def with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy that also hands out some of its inner tensors; the model itself if there are none."""
    if not tensors:
        return model
    known = {value.name: value for value in _inferred(model).graph.value_info}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(known.get(n, onnx.ValueInfoProto(name=n)) for n in tensors)
    return copy


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(without_weights(model))


def _types(model: onnx.ModelProto) -> dict[str, str]:
    graph = _inferred(model).graph
    values = {v.name: type_name(v.type) for v in [*graph.value_info, *graph.input, *graph.output]}
    kinds = onnx.TensorProto.DataType
    return values | {t.name: kinds.Name(t.data_type).lower() for t in graph.initializer}


def _makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output if output}
