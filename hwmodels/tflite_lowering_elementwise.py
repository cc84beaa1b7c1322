"""Activations and arithmetic, element by element, as int8 TFLite operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxnas.hwmodels.tflite_context import (
    CannotLower,
    Context,
    Layout,
    activation,
    plain,
    same_order,
)
from onnxnas.hwmodels.tflite_writer import Quantization
from onnxnas.ops import clip_bounds

_UNARY: Mapping[str, tuple[str, str]] = {
    "Relu": ("RELU", ""),
    "Sigmoid": ("LOGISTIC", ""),
    "Tanh": ("TANH", ""),
    "HardSwish": ("HARD_SWISH", "HardSwishOptions"),
    "LeakyRelu": ("LEAKY_RELU", "LeakyReluOptions"),
    "Elu": ("ELU", ""),
    "Gelu": ("GELU", "GeluOptions"),
    "Exp": ("EXP", "ExpOptions"),
    "Log": ("LOG", ""),
    "Abs": ("ABS", "AbsOptions"),
}
"""ONNX operator -> TFLite operator and its options table."""

_PRESCRIBED: Mapping[str, Quantization] = {
    "Sigmoid": Quantization((1 / 256,), -128),
    "Tanh": Quantization((1 / 128,), 0),
}
"""Output quantisation that the TFLite specification fixes."""

_BINARY: Mapping[str, tuple[str, str]] = {
    "Add": ("ADD", "AddOptions"),
    "Sub": ("SUB", "SubOptions"),
    "Mul": ("MUL", "MulOptions"),
    "Div": ("DIV", "DivOptions"),
    "Sum": ("ADD", "AddOptions"),
    "Max": ("MAXIMUM", "MaximumMinimumOptions"),
    "Min": ("MINIMUM", "MaximumMinimumOptions"),
}
"""ONNX operator -> TFLite operator and its options table."""


def unary(ctx: Context, node: Any) -> None:
    """An activation that TFLite has."""
    op, table = _UNARY[node.op]
    x, y = node.inputs[0], node.outputs[0]
    options: dict[str, Any] = {}
    if node.op == "LeakyRelu":
        options["Alpha"] = float(node.attrs.get("alpha", 0.01))
    if node.op == "Elu" and float(node.attrs.get("alpha", 1.0)) != 1.0:
        raise CannotLower("alpha other than 1 has no TFLite form")
    if node.op == "Gelu":
        options["Approximate"] = node.attrs.get("approximate", "none") == "tanh"
    source = ctx.read(x)
    target = ctx.write(y, ctx.layout(x), quantization=_PRESCRIBED.get(node.op))
    ctx.op(op, [source], [target], table, **options)


def clip(ctx: Context, node: Any) -> None:
    """Clip on its own: a RELU variant where there is one, else MAXIMUM and MINIMUM."""
    x, y = node.inputs[0], node.outputs[0]
    kind = activation(node)
    source, layout = ctx.read(x), ctx.layout(x)
    if kind is not None:
        ctx.op(kind, [source], [ctx.write(y, layout)])
        return
    bounds = clip_bounds(node)
    if bounds is None:
        raise CannotLower("its bounds are not constants")
    if bounds == (0.0, 1.0):
        ctx.op("RELU_0_TO_1", [source], [ctx.write(y, layout)])
        return
    steps = [
        (op, bound)
        for op, bound in zip(("MAXIMUM", "MINIMUM"), bounds, strict=True)
        if np.isfinite(bound)
    ]
    if not steps:
        ctx.alias(y, x)
        return
    # Both operands and the result share one quantisation: MAXIMUM and MINIMUM demand it.
    like = ctx.quantization_of(source)
    for i, (op, bound) in enumerate(steps):
        last = i == len(steps) - 1
        target = (
            ctx.write(y, layout, like=source)
            if last
            else ctx.like(source, f"{y.name}/{op.lower()}", ctx.shape_of(source))
        )
        limit = ctx.filled(f"{y.name}/{op.lower()}/bound", bound, like)
        ctx.op(op, [source, limit], [target], "MaximumMinimumOptions")
        source = target


def prelu(ctx: Context, node: Any) -> None:
    """PRelu with constant slopes."""
    x, slope, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if ctx.constant(slope) is None:
        raise CannotLower("its slope is not a constant")
    layout = ctx.layout(x)
    source = ctx.read(x)
    ctx.op("PRELU", [source, ctx.read(slope, layout)], [ctx.write(y, layout)])


def hard_sigmoid(ctx: Context, node: Any) -> None:
    """HardSigmoid: MUL, ADD and a clip to 0..1, unless it is half of a hard-swish."""
    if hard_swish(ctx, node, 1.0):
        return
    x, y = node.inputs[0], node.outputs[0]
    alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    source, layout = ctx.read(x), ctx.layout(x)
    shape, given = ctx.shape_of(source), ctx.quantization_of(source)
    scaled = ctx.temporary(
        f"{y.name}/scaled", shape, Quantization((given.scales[0] * alpha,), given.zero_point)
    )
    moved = ctx.temporary(f"{y.name}/moved", shape, Quantization((1 / 64,)))
    ctx.op("MUL", [source, ctx.filled(f"{y.name}/alpha", alpha)], [scaled], "MulOptions")
    ctx.op("ADD", [scaled, ctx.filled(f"{y.name}/beta", beta)], [moved], "AddOptions")
    ctx.op("RELU_0_TO_1", [moved], [ctx.write(y, layout)])


def arithmetic(ctx: Context, node: Any) -> None:
    """Add, Sub, Mul, Div, Max, Min, Sum with broadcasting and constants, fused activation.

    A division by a constant is a product with its reciprocal, as converters make it.
    """
    three = node.op == "Add" and any(ctx.scalar(t) == 3.0 for t in node.inputs)
    if three and hard_swish(ctx, node, 6.0):
        return
    op, table = _BINARY[node.op]
    operands = [t for t in node.inputs if t.name]
    rank = len(ctx.shape(node.outputs[0]))
    variables = [t for t in operands if ctx.constant(t) is None]
    widest = max(variables, key=lambda t: len(ctx.shape(t)))
    if len(ctx.shape(widest)) < rank:
        raise CannotLower("a constant has more dimensions than the variable it meets")
    layout = ctx.layout(widest)
    if node.op == "Div" and ctx.constant(operands[1]) is not None:
        op, table = "MUL", "MulOptions"
        numbers = [operand(ctx, operands[0], layout), reciprocal(ctx, operands[1], layout)]
    else:
        numbers = [operand(ctx, t, layout) for t in operands]
    if len(numbers) == 1:
        ctx.alias(node.outputs[0], operands[0])
        return
    output, options = node.outputs[0], {}
    if table != "MaximumMinimumOptions":
        output, options["FusedActivationFunction"] = ctx.fused_activation(output)
    else:  # both operands and the result must share one quantisation
        numbers = [ctx.requantized(n, ctx.quantization(output.name)) for n in numbers]
    source = numbers[0]
    for i, number in enumerate(numbers[1:], 1):
        if i == len(numbers) - 1:
            target = ctx.write(output, layout)
            ctx.op(op, [source, number], [target], table, **options)
        else:
            sizes = np.broadcast_shapes(ctx.shape_of(source), ctx.shape_of(number))
            name = f"{output.name}/{i}"
            target = ctx.temporary(name, sizes, ctx.quantization(output.name))
            ctx.op(op, [source, number], [target], table)
        source = target


def negation(ctx: Context, node: Any) -> None:
    """Neg: MUL with -1."""
    x, y = node.inputs[0], node.outputs[0]
    source = ctx.read(x)
    target = ctx.write(y, ctx.layout(x))
    ctx.op("MUL", [source, ctx.filled(f"{y.name}/minus", -1.0)], [target], "MulOptions")


def power(ctx: Context, node: Any) -> None:
    """Pow with exponent 2: the product of the input with itself."""
    if ctx.scalar(node.inputs[1]) != 2.0:
        raise CannotLower("only squares have a TFLite form here")
    x = node.inputs[0]
    source = ctx.read(x)
    target = ctx.write(node.outputs[0], ctx.layout(x))
    ctx.op("MUL", [source, source], [target], "MulOptions")


def operand(ctx: Context, tensor: Any, layout: Layout) -> int:
    """A tensor of any rank in a layout, with leading axes of 1 as ONNX broadcasting adds them."""
    shape = ctx.shape(tensor)
    if ctx.constant(tensor) is not None or len(shape) == len(layout):
        return ctx.read(tensor, layout)
    expanded = (1,) * (len(layout) - len(shape)) + shape
    source = ctx.read(tensor, plain(len(shape)))
    if not same_order(expanded, plain(len(layout)), layout):
        raise CannotLower(f"{tensor.name!r} broadcasts over the wrong axes for channels-last")
    target = ctx.like(source, f"{tensor.name}/expanded", [expanded[a] for a in layout])
    ctx.reshape(source, target)
    return target


def reciprocal(ctx: Context, tensor: Any, layout: Layout) -> int:
    """One over a constant."""
    values = ctx.values(tensor)
    assert values is not None
    shape = (1,) * (len(layout) - values.ndim) + values.shape
    inverse = 1.0 / values.astype(np.float64).reshape(shape).transpose(layout)
    scale = float(np.abs(inverse).max()) / 127
    stored = np.rint(inverse / scale).astype(np.int8)
    return ctx.writer.tensor(
        f"{tensor.name}/reciprocal",
        stored.shape,
        "INT8",
        Quantization((scale,)),
        stored.tobytes(),
    )


def hard_swish(ctx: Context, node: Any, factor: float) -> bool:
    """Lower ``x * clip(x + 3, 0, 6) / 6`` to HARD_SWISH where `node` begins one.

    Args:
        ctx: the context.
        node: ``x + 3``, or a HardSigmoid.
        factor: what the product must still be divided by.

    Returns:
        whether it was one, in any order of its factors.
    """
    x = next((t for t in node.inputs if ctx.scalar(t) is None), None)
    if x is None:
        return False
    passed = []
    tensor = node.outputs[0]
    if node.op == "HardSigmoid":
        slope, shift = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
        if abs(slope - 1 / 6) > 1e-4 or abs(shift - 0.5) > 1e-4:
            return False
    else:
        reader = ctx.only_reader(tensor)
        if reader is None or reader.op != "Clip" or clip_bounds(reader) != (0.0, 6.0):
            return False
        passed.append(reader)
        tensor = reader.outputs[0]
    multiplied = False
    while not multiplied or abs(factor - 1.0) > 1e-3:
        reader = ctx.only_reader(tensor)
        if reader is None or reader.op not in ("Mul", "Div"):
            return False
        other = reader.inputs[1] if reader.inputs[0] is tensor else reader.inputs[0]
        value = ctx.scalar(other)
        if reader.op == "Mul" and other is x and not multiplied:
            multiplied = True
        elif reader.op == "Mul" and value is not None:
            factor *= value
        elif reader.op == "Div" and value and other is reader.inputs[1]:
            factor /= value
        else:
            return False
        passed.append(reader)
        tensor = reader.outputs[0]
    ctx.absorb(*passed)
    source = ctx.read(x)
    ctx.op("HARD_SWISH", [source], [ctx.write(tensor, ctx.layout(x))], "HardSwishOptions")
    return True
