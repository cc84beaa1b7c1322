"""Runs of elementwise nodes seen as one function of one tensor: where one ends, what it computes.

SiLU as ``x * sigmoid(x)``, hard-swish as five nodes, or a BatchNormalization behind an activation
are all the same to whoever fits the layers around them: values, and their derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.arrays import Array, library, like, single_precision
from onnxnas.graph import values_of
from onnxnas.ops import STANDARD_DOMAINS, clip_bounds

Dual = tuple[Any, Any]
"""Values [..., channels] and their derivatives by the run's input; a constant's are 0.0."""

_MOST_NODES = 12


def pointwise_after(tensor: Any, graph: Any) -> tuple[tuple[Any, ...], Any]:
    """The longest run of elementwise nodes that a tensor alone goes into, and its last tensor.

    Every tensor inside is read inside only. The last one may have any readers; without a run it
    is the tensor itself.
    """
    outputs = {id(t) for t in graph.outputs}
    nodes: list[Any] = []
    while (step := _step(tensor, outputs)) is not None:
        nodes += step
        tensor = step[-1].outputs[0]
    return tuple(nodes), tensor


def _step(tensor: Any, outputs: set[int]) -> list[Any] | None:
    """Nodes from a tensor to the next one that everything computed of it goes through."""
    inside, taken, alive, nodes = {id(tensor)}, set[int](), [tensor], list[Any]()
    while len(nodes) < _MOST_NODES and not any(id(t) in outputs for t in alive):
        readers = (r for t in alive for r in t.outputs if id(r) not in taken)
        node = next((r for r in readers if _joins(r, inside)), None)
        if node is None:
            return None
        nodes.append(node)
        taken.add(id(node))
        y = node.outputs[0]
        inside.add(id(y))
        alive = [t for t in alive if any(id(r) not in taken for r in t.outputs)]
        if not alive:
            return nodes
        alive.append(y)
    return None


def _joins(node: Any, inside: set[int]) -> bool:
    if node.op not in _RULES or (node.domain or "") not in STANDARD_DOMAINS:
        return False
    if len(node.outputs) != 1 or node.attrs.get("training_mode"):
        return False
    if node.op == "Clip" and clip_bounds(node) is None:
        return False
    known = all(id(t) in inside or _fits(node, t) for t in node.inputs if t.name)
    divisor = node.op != "Div" or isinstance(node.inputs[1], gs.Constant)
    return known and divisor


def _fits(node: Any, tensor: Any) -> bool:
    """Whether a constant holds one value, or one for each channel."""
    if not isinstance(tensor, gs.Constant):
        return False
    shape = [int(d) for d in tensor.shape]
    along = 1 if node.op == "BatchNormalization" else 3
    return math.prod(shape) == (shape[-along] if len(shape) >= along else 1)


def follow(nodes: Sequence[Any], x: Array, kept: NDArray[np.int64] | None = None) -> Dual:
    """Values and derivatives of a run, where its input is `x` [..., channels].

    Args:
        nodes: as `pointwise_after` gives them, at least one.
        kept: channels of the network's that those of `x` are; None means all of them.
    """
    made = {id(t) for node in nodes for t in node.outputs}
    known: dict[int, Dual] = {}
    for node in nodes:
        operands = [_operand(t, x, made, known, kept) for t in node.inputs if t.name]
        known[id(node.outputs[0])] = _RULES[node.op](node, operands)
    value, slope = known[id(nodes[-1].outputs[0])]
    return single_precision(value), single_precision(library(x).broadcast_to(slope, x.shape))


def _operand(tensor: Any, x: Array, made: set[int], known: Mapping[int, Dual], kept: Any) -> Dual:
    if id(tensor) in made:
        return known[id(tensor)]
    one, none = (like(np.float32(v), x) for v in (1.0, 0.0))
    if not isinstance(tensor, gs.Constant):
        return x, one
    values = values_of(tensor).reshape(-1)
    if len(values) == 1:
        return like(np.float32(values[0]), x), none
    return like((values if kept is None else values[kept]).astype(np.float32), x), none


def _clipped(x: Dual, low: float, high: float) -> Dual:
    inside = (x[0] > low) & (x[0] < high)
    return library(x[0]).clip(x[0], low, high), x[1] * inside


def _sigmoid(_: Any, operands: Sequence[Dual]) -> Dual:
    x, slope = operands[0]
    y = 0.5 + 0.5 * library(x).tanh(0.5 * x)  # never overflows
    return y, slope * y * (1 - y)


def _tanh(_: Any, operands: Sequence[Dual]) -> Dual:
    x, slope = operands[0]
    y = library(x).tanh(x)
    return y, slope * (1 - y * y)


def _leaky(x: Dual, below: Any) -> Dual:
    rate = library(x[0]).where(x[0] > 0, like(np.float32(1.0), x[0]), below)
    return x[0] * rate, x[1] * rate


def _hard_sigmoid(node: Any, operands: Sequence[Dual]) -> Dual:
    alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    return _clipped((operands[0][0] * alpha + beta, operands[0][1] * alpha), 0.0, 1.0)


def _hard_swish(_: Any, operands: Sequence[Dual]) -> Dual:
    x, slope = operands[0]
    gate = library(x).clip(x / 6 + 0.5, 0, 1)
    return x * gate, slope * (gate + x / 6 * ((x > -3) & (x < 3)))


def _multiply(_: Any, operands: Sequence[Dual]) -> Dual:
    (a, da), (b, db) = operands
    return a * b, da * b + a * db


def _divide(_: Any, operands: Sequence[Dual]) -> Dual:
    (a, da), (b, _db) = operands
    return a / b, da / b


def _batch_norm(node: Any, operands: Sequence[Dual]) -> Dual:
    (x, slope), (scale, _), (bias, _), (mean, _), (variance, _) = operands
    rate = scale / library(x).sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    return (x - mean) * rate + bias, slope * rate


def _clip(node: Any, operands: Sequence[Dual]) -> Dual:
    bounds = clip_bounds(node)
    assert bounds is not None
    return _clipped(operands[0], *bounds)


_RULES: Mapping[str, Callable[[Any, Sequence[Dual]], Dual]] = {
    "Identity": lambda _, a: a[0],
    "Relu": lambda _, a: _clipped(a[0], 0.0, np.inf),
    "Clip": _clip,
    "LeakyRelu": lambda node, a: _leaky(
        a[0], like(np.float32(node.attrs.get("alpha", 0.01)), a[0][0])
    ),
    "PRelu": lambda _, a: _leaky(a[0], a[1][0]),
    "Sigmoid": _sigmoid,
    "Tanh": _tanh,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Neg": lambda _, a: (-a[0][0], -a[0][1]),
    "Add": lambda _, a: (a[0][0] + a[1][0], a[0][1] + a[1][1]),
    "Sub": lambda _, a: (a[0][0] - a[1][0], a[0][1] - a[1][1]),
    "Mul": _multiply,
    "Div": _divide,
    "BatchNormalization": _batch_norm,
}
