"""A graph as int8 TFLite file, for compilers that read TFLite; what has no form is cut out.

Weights are the network's own, one int8 scale per output channel. Activation scales are dummies
unless real ranges are given. A node that cannot be lowered splits the network: its inputs become
outputs of the file and its outputs become inputs of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxnas.hwmodels import tflite_lowering_conv as convs
from onnxnas.hwmodels import tflite_lowering_elementwise as elementwise
from onnxnas.hwmodels import tflite_lowering_pool as pools
from onnxnas.hwmodels import tflite_lowering_shape as shapes
from onnxnas.hwmodels.tflite_context import CannotLower, Context, WeightCache, is_bytes
from onnxnas.ops import STANDARD_DOMAINS, macs

Lower = Callable[[Context, Any], None]

LOWERINGS: Mapping[str, Lower] = {
    "Conv": convs.conv,
    "ConvTranspose": convs.conv_transpose,
    "Gemm": convs.gemm,
    "MatMul": convs.matmul,
    "BatchNormalization": convs.batch_normalization,
    **dict.fromkeys(
        (
            "Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu", "Gelu", "Exp", "Log",
            "Abs",
        ),
        elementwise.unary,
    ),
    "Clip": elementwise.clip,
    "PRelu": elementwise.prelu,
    "HardSigmoid": elementwise.hard_sigmoid,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum"), elementwise.arithmetic),
    "Neg": elementwise.negation,
    "Pow": elementwise.power,
    **dict.fromkeys(("MaxPool", "AveragePool"), pools.pool),
    "GlobalAveragePool": pools.global_average_pool,
    "GlobalMaxPool": pools.global_max_pool,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), pools.reduction),
    "Softmax": pools.softmax,
    "ArgMax": pools.arg_max,
    **dict.fromkeys(("Identity", "Dropout"), shapes.alias),
    "Cast": shapes.cast,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), shapes.reshape),
    "Transpose": shapes.transpose,
    "Concat": shapes.concat,
    "Split": shapes.split,
    "Slice": shapes.slices,
    "Gather": shapes.gather,
    "Pad": shapes.pad,
    **dict.fromkeys(("Resize", "Upsample"), shapes.resize),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), shapes.depth_to_space),
    **dict.fromkeys(("Tile", "Expand"), shapes.tile),
}  # fmt: skip
"""ONNX operator -> how it is lowered."""

_ANY_TYPE = frozenset({"Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators that do not care about the type of what they move."""
_BYTES_TOO = frozenset({"Resize", "Slice", "Transpose", "Pad", "Concat"})
"""Operators that move values which are int8 here, whatever they were."""


@dataclass(frozen=True)
class Part:
    """One node, with those fused into it, and what became of it.

    Attributes:
        op: of the ONNX node.
        tensors: every ONNX tensor it computes, the one it leaves behind last.
        operators: numbers of its TFLite operators; none where it costs nothing.
        macs: multiply-accumulates.
        reason: why it was cut out; empty otherwise.
    """

    op: str
    tensors: tuple[str, ...]
    operators: range
    macs: int
    reason: str = ""


@dataclass(frozen=True)
class Lowered:
    """A network as TFLite.

    Attributes:
        tflite: the file; empty where nothing at all could be lowered to an operator.
        parts: in execution order; every computed ONNX tensor is in exactly one.
    """

    tflite: bytes
    parts: tuple[Part, ...]


def lower(
    graph: Any,
    weights: WeightCache | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    largest_resize: int = 8,
) -> Lowered:
    """Lower a graph; never fails, what has no TFLite form is a `Part` with a reason.

    Args:
        graph: `gs.Graph`, topologically sorted, every variable with a static shape.
        weights: quantised weights shared with other graphs.
        ranges: real minimum and maximum per tensor name, for a file that computes the same.
        largest_resize: factor up to which the target resizes in one operator.
    """
    ctx = Context(graph, weights or WeightCache(), ranges or {}, largest_resize)
    done: set[int] = set()
    parts = []
    for node in graph.nodes:
        if id(node) not in done and node.op != "Constant":
            part = _part(ctx, node)
            done.update(id(n) for n in ctx.absorbed)
            parts.append(part)
    if not ctx.writer.operators:
        return Lowered(b"", tuple(parts))
    return Lowered(_file(ctx, parts), tuple(parts))


def _part(ctx: Context, node: Any) -> Part:
    start = len(ctx.writer.operators)
    before = dict(ctx._numbers), list(ctx.inputs)
    ctx.absorbed = []
    reason = ""
    try:
        _lowering(ctx, node)(ctx, node)
    except CannotLower as error:
        reason = str(error)
        del ctx.writer.operators[start:]
        ctx._numbers, ctx.inputs = before
        ctx.absorbed = []
        for tensor in node.outputs:
            ctx.layouts.pop(tensor.name, None)
            ctx.flattened.pop(tensor.name, None)
    nodes = [node, *ctx.absorbed]
    tensors = tuple(t.name for n in nodes for t in n.outputs if t.name)
    operators = range(start, len(ctx.writer.operators))
    return Part(node.op, tensors, operators, sum(macs(n) for n in nodes), reason)


def _lowering(ctx: Context, node: Any) -> Lower:
    if (node.domain or "") not in STANDARD_DOMAINS or node.op not in LOWERINGS:
        raise CannotLower("has no int8 TFLite form here")
    if all(ctx.constant(t) is not None for t in node.inputs if t.name):
        raise CannotLower("works on constants only: fold them first")
    if node.op not in _ANY_TYPE:
        for tensor in node.inputs[:1]:
            floating = tensor.dtype is None or np.issubdtype(tensor.dtype, np.floating)
            if not floating and not (node.op in _BYTES_TOO and is_bytes(tensor)):
                raise CannotLower(f"works on {tensor.dtype} values")
    return LOWERINGS[node.op]


def _file(ctx: Context, parts: list[Part]) -> bytes:
    read = {i for o in ctx.writer.operators for i in o.inputs}
    written = [i for o in ctx.writer.operators for i in o.outputs]
    names = {t.name for t in ctx.graph.outputs}
    cut = {name for p in parts if p.reason for name in p.tensors}
    for node in ctx.graph.nodes:
        if any(t.name in cut for t in node.outputs):
            names.update(t.name for t in node.inputs)
    wanted = {number for (name, _), number in ctx._numbers.items() if name in names}
    outputs = [i for i in written if i in wanted or i not in read]
    inputs = [i for i in ctx.inputs if i in read]
    return ctx.writer.finish(inputs, outputs)
