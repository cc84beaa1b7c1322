"""Which nodes a runtime executes as one: a convolution, product or sum with its activation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxnas.ops import UNARY_ELEMENTWISE, clip_bounds

CONVOLUTIONS = ("Conv", "ConvTranspose")
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Pow")

_TAKES_ACTIVATION = frozenset(
    {*CONVOLUTIONS, *ARITHMETIC, "Gemm", "MatMul", "AveragePool", "BatchNormalization"}
)
_ACTIVATIONS = UNARY_ELEMENTWISE - {"Identity", "Dropout"}


def group_from(node: Any, outputs: set[int]) -> tuple[list[Any], str]:
    """The nodes that run together with one, itself first, and the name of its activation.

    Args:
        node: the first of them in topological order.
        outputs: ``id`` of the graph's output tensors; those are not passed over.
    """
    nodes = [node]
    if node.op == "MatMul" and is_constant(node.inputs[1]):
        bias = _only_reader(node.outputs[0], outputs)
        if bias is not None and bias.op == "Add" and any(is_constant(t) for t in bias.inputs):
            nodes.append(bias)
    if node.op not in _TAKES_ACTIVATION:
        return nodes, "none"
    found = _activation(nodes[-1].outputs[0], outputs)
    return (nodes, "none") if found is None else ([*nodes, *found[1]], found[0])


def activation_name(node: Any) -> str:
    """Name of a unary activation; the ReLU family by its lower bound, as an int8 range ends it."""
    if node.op != "Clip":
        return str(node.op)
    bounds = clip_bounds(node)
    if bounds == (0.0, 6.0):
        return "Relu6"
    return "Relu" if bounds is not None and bounds[0] == 0.0 else "Clip"


def is_constant(tensor: Any) -> bool:
    """Whether a tensor is a constant, also that of a Constant node."""
    if isinstance(tensor, gs.Constant):
        return True
    return bool(tensor.inputs) and tensor.inputs[0].op == "Constant"


def _activation(tensor: Any, outputs: set[int]) -> tuple[str, list[Any]] | None:
    """Name and nodes of the activation that alone reads a tensor.

    SiLU is ``x * sigmoid(x)``, hard-swish ``x * clip(x + 3, 0, 6) / 6`` in any order of factors.
    """
    if id(tensor) in outputs:
        return None
    readers = tensor.outputs
    if len(readers) == 1 and readers[0].op in _ACTIVATIONS:
        return activation_name(readers[0]), [readers[0]]
    gate = next((r for r in readers if r.op != "Mul"), None)
    if len(readers) != 2 or gate is None or all(r.op != "Mul" for r in readers):
        return None
    if gate.op in ("Sigmoid", "HardSigmoid"):
        passed = _gated(tensor, gate.outputs[0], [gate], outputs)
        return None if passed is None else ("Silu" if gate.op == "Sigmoid" else "HardSwish", passed)
    if gate.op == "Add" and any(_scalar(t) == 3.0 for t in gate.inputs):
        clip = _only_reader(gate.outputs[0], outputs)
        if clip is not None and clip.op == "Clip" and clip_bounds(clip) == (0.0, 6.0):
            passed = _gated(tensor, clip.outputs[0], [gate, clip], outputs)
            return None if passed is None else ("HardSwish", passed)
    return None


def _gated(tensor: Any, gate: Any, passed: list[Any], outputs: set[int]) -> list[Any] | None:
    """The product of a tensor with its gate and the scalings around it, or None."""
    multiplied, tail = False, gate
    while True:
        reader = _only_reader(tail, outputs)
        if reader is None or reader.op not in ("Mul", "Div"):
            return passed if multiplied else None
        other = reader.inputs[1] if reader.inputs[0] is tail else reader.inputs[0]
        if other is tensor and not multiplied:
            multiplied = True
        elif not _sixth(_scalar(other)):
            return passed if multiplied else None
        passed = [*passed, reader]
        tail = reader.outputs[0]


def _sixth(value: float | None) -> bool:
    return value is not None and (value == 6.0 or abs(value - 1 / 6) < 1e-4)


def _only_reader(tensor: Any, outputs: set[int]) -> Any | None:
    single = len(tensor.outputs) == 1 and id(tensor) not in outputs
    return tensor.outputs[0] if single else None


def _scalar(tensor: Any) -> float | None:
    if not isinstance(tensor, gs.Constant) or math.prod(tensor.shape) != 1:
        return None
    return float(np.asarray(tensor.values).reshape(()))
