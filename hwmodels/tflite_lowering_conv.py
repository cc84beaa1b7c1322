"""Convolutions and matrix products as int8 TFLite operators with real weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.hwmodels.tflite_context import (
    CannotLower,
    Context,
    channels_last,
    plain,
)
from onnxnas.hwmodels.tflite_padding import padded_input, window
from onnxnas.hwmodels.tflite_writer import Quantization, int32

_BIAS_LIMIT = 2**30


def conv(ctx: Context, node: Any) -> None:
    """Conv, 1-D or 2-D: CONV_2D (grouped too) or DEPTHWISE_CONV_2D, with a fused activation."""
    x, weight = node.inputs[0], _weight(ctx, node)
    rank = len(ctx.shape(x))
    if rank not in (3, 4):
        raise CannotLower(f"is a {rank - 2}-D convolution")
    out_channels, per_group = int(weight.shape[0]), int(weight.shape[1])
    group = int(node.attrs.get("group", 1))
    depthwise = group > 1 and per_group == 1
    view = window(ctx, node, weight.shape[2:])
    bias = _bias(ctx, node, 2, out_channels)

    source = _spatial(ctx, x)
    source, padding = padded_input(ctx, view, source, x.name)
    output, activation = ctx.fused_activation(node.outputs[0])
    # TFLite wants filters as [out, h, w, in], depthwise ones as [1, h, w, out].
    order, axis = ((1, 2, 3, 0), 3) if depthwise else ((0, 2, 3, 1), 0)
    data, scales = _quantized(ctx, weight, order)
    shape = [(out_channels, per_group, *view.kernel)[a] for a in order]
    filters = ctx.writer.tensor(
        weight.name, shape, "INT8", Quantization(tuple(scales), axis=axis), data
    )
    biases = _bias_tensor(ctx, node, bias, source, scales)
    options = {
        "Padding": padding,
        "StrideW": view.strides[1],
        "StrideH": view.strides[0],
        "DilationWFactor": view.dilations[1],
        "DilationHFactor": view.dilations[0],
        "FusedActivationFunction": activation,
    }
    target, finish = _spatial_output(ctx, output)
    if depthwise:
        options["DepthMultiplier"] = out_channels // group
        ctx.op(
            "DEPTHWISE_CONV_2D",
            [source, filters, biases],
            [target],
            "DepthwiseConv2DOptions",
            **options,
        )
    else:
        ctx.op("CONV_2D", [source, filters, biases], [target], "Conv2DOptions", **options)
    finish()


def conv_transpose(ctx: Context, node: Any) -> None:
    """ConvTranspose, ungrouped and 2-D: TRANSPOSE_CONV, cropped where ONNX pads more."""
    x, weight, y = node.inputs[0], _weight(ctx, node), node.outputs[0]
    if len(ctx.shape(x)) != 4:
        raise CannotLower(f"is a {len(ctx.shape(x)) - 2}-D transposed convolution")
    if int(node.attrs.get("group", 1)) != 1:
        raise CannotLower("is a grouped transposed convolution, which TFLite does not have")
    if any(int(d) != 1 for d in node.attrs.get("dilations") or ()):
        raise CannotLower("is a dilated transposed convolution, which TFLite does not have")
    channels, kernel = int(weight.shape[1]), [int(k) for k in weight.shape[2:]]
    strides = [int(s) for s in node.attrs.get("strides") or (1, 1)]
    sizes = list(ctx.shape(x)[2:])
    wanted = list(ctx.shape(y)[2:])
    full = [(i - 1) * s + k for i, s, k in zip(sizes, strides, kernel, strict=True)]
    begins = _transposed_begins(node, full, wanted)
    same = all(
        w == i * s and k >= s and b == (k - s) // 2
        for w, i, s, k, b in zip(wanted, sizes, strides, kernel, begins, strict=True)
    )
    whole = [max(f, i * s) for f, i, s in zip(full, sizes, strides, strict=True)]
    computed = wanted if same else whole
    bias = _bias(ctx, node, 2, channels)

    source = ctx.read(x, channels_last(4))
    data, scales = _quantized(ctx, weight, (1, 2, 3, 0), channel_axis=1)
    shape = (channels, *kernel, int(weight.shape[0]))
    filters = ctx.writer.tensor(weight.name, shape, "INT8", Quantization(tuple(scales)), data)
    biases = _bias_tensor(ctx, node, bias, source, scales)
    target = ctx.write(y)
    batch = ctx.shape(y)[0]
    raw = (
        target
        if computed == wanted
        else ctx.like(target, f"{y.name}/full", [batch, *computed, channels])
    )
    ctx.op(
        "TRANSPOSE_CONV",
        [ctx.ints([batch, *computed, channels]), filters, source, biases],
        [raw],
        "TransposeConvOptions",
        Padding="SAME" if same else "VALID",
        StrideW=strides[1],
        StrideH=strides[0],
    )
    if raw != target:
        if any(b + w > c for b, w, c in zip(begins, wanted, computed, strict=True)):
            raise CannotLower("has output padding beyond what the kernel covers")
        size = [batch, *wanted, channels]
        ctx.op("SLICE", [raw, ctx.ints([0, *begins, 0]), ctx.ints(size)], [target], "SliceOptions")


def _transposed_begins(node: Any, full: list[int], wanted: list[int]) -> list[int]:
    """Rows and columns dropped before the result."""
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode == "NOTSET" and "output_shape" not in node.attrs:
        return [int(p) for p in (node.attrs.get("pads") or (0, 0, 0, 0))[:2]]
    total = [max(0, f - w) for f, w in zip(full, wanted, strict=True)]
    return [(t + (mode == "SAME_LOWER")) // 2 for t in total]


def gemm(ctx: Context, node: Any) -> None:
    """Gemm with a constant second operand: FULLY_CONNECTED."""
    if node.attrs.get("transA", 0):
        raise CannotLower("transA=1 has no TFLite form")
    weight = _weight(ctx, node)
    transposed = bool(node.attrs.get("transB", 0))
    columns = int(weight.shape[0 if transposed else 1])
    bias = _bias(ctx, node, 2, columns)
    factor = float(node.attrs.get("alpha", 1.0))
    if bias is not None:
        bias = bias * float(node.attrs.get("beta", 1.0))
    _fully_connected(ctx, node, weight, transposed, factor, bias, node.outputs[0])


def matmul(ctx: Context, node: Any) -> None:
    """MatMul: FULLY_CONNECTED with a constant, else BATCH_MATMUL; a following bias joins in."""
    a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if ctx.constant(b) is None or len(b.shape) != 2:
        _batch_matmul(ctx, a, b, y)
        return
    if len(ctx.shape(a)) < 2:
        raise CannotLower("multiplies a vector")
    bias, output = None, y
    reader = ctx.only_reader(y)
    if reader is not None and reader.op == "Add":
        other = next(t for t in reader.inputs if t is not y)
        constant = ctx.constant(other)
        columns = int(b.shape[1])
        if constant is not None and list(constant.shape)[-1:] == [columns]:
            values = ctx.values(other)
            if values is not None and values.size == columns:
                bias, output = values.reshape(-1).astype(np.float64), reader.outputs[0]
                ctx.absorb(reader)
    _fully_connected(ctx, node, ctx.constant(b), False, 1.0, bias, output)


def batch_normalization(ctx: Context, node: Any) -> None:
    """An unfused BatchNormalization: per-channel MUL and ADD."""
    x, y = node.inputs[0], node.outputs[0]
    parts = [ctx.values(t) for t in node.inputs[1:5]]
    if any(p is None for p in parts):
        raise CannotLower("its parameters are not constants")
    scale, shift, mean, variance = (np.asarray(p, np.float64) for p in parts)
    factor = scale / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    source, layout = ctx.read(x), ctx.layout(x)
    shape = [-1 if a == 1 else 1 for a in layout]
    output, activation = ctx.fused_activation(y)
    middle = ctx.like(source, f"{y.name}/scaled", ctx.shape_of(source))
    ctx.op(
        "MUL",
        [source, _vector(ctx, f"{y.name}/factor", factor, shape)],
        [middle],
        "MulOptions",
    )
    ctx.op(
        "ADD",
        [middle, _vector(ctx, f"{y.name}/offset", shift - mean * factor, shape)],
        [ctx.write(output, layout)],
        "AddOptions",
        FusedActivationFunction=activation,
    )


def _vector(ctx: Context, name: str, values: NDArray[Any], shape: Sequence[int]) -> int:
    scale = float(np.abs(values).max()) / 127 or 1.0
    stored = np.rint(values / scale).astype(np.int8).reshape(shape)
    return ctx.writer.tensor(name, stored.shape, "INT8", Quantization((scale,)), stored.tobytes())


def _fully_connected(
    ctx: Context,
    node: Any,
    weight: Any,
    transposed: bool,
    factor: float,
    bias: NDArray[Any] | None,
    output: Any,
) -> None:
    x = node.inputs[0]
    rank = len(ctx.shape(x))
    flattened = ctx.flattened.get(x.name)
    source = ctx.read(x) if flattened else ctx.read(x, plain(rank))
    rows, columns = (int(d) for d in (weight.shape if transposed else weight.shape[::-1]))

    def quantize(values: NDArray[Any]) -> tuple[bytes, tuple[float, ...]]:
        matrix = (values if transposed else values.T).reshape(rows, columns)
        if flattened:
            # The inputs of the product come channels-last: reorder its columns instead of them.
            order = channels_last(len(flattened) + 1)
            matrix = matrix.reshape(rows, *flattened).transpose(order).reshape(rows, columns)
        return _per_channel(matrix * factor)

    key = ("matrix", transposed, factor, flattened)
    data, scales = ctx.weights.get(weight, key, quantize)
    quantization = Quantization(tuple(scales))
    filters = ctx.writer.tensor(weight.name, (rows, columns), "INT8", quantization, data)
    biases = _bias_tensor(ctx, node, bias, source, scales)
    output, activation = ctx.fused_activation(output)
    target = ctx.write(output, plain(len(ctx.shape(output))))
    ctx.op(
        "FULLY_CONNECTED",
        [source, filters, biases],
        [target],
        "FullyConnectedOptions",
        FusedActivationFunction=activation,
        KeepNumDims=rank > 2,
    )


def _batch_matmul(ctx: Context, a: Any, b: Any, y: Any) -> None:
    ranks = len(ctx.shape(a)), len(ctx.shape(b))
    if min(ranks) < 2 or ranks[0] != ranks[1]:
        raise CannotLower("multiplies operands of different ranks")
    left, right = (ctx.read(t, plain(r)) for t, r in zip((a, b), ranks, strict=True))
    target = ctx.write(y, plain(ranks[0]))
    ctx.op("BATCH_MATMUL", [left, right], [target], "BatchMatMulOptions", AdjX=False, AdjY=False)


def _weight(ctx: Context, node: Any) -> Any:
    constant = ctx.constant(node.inputs[1])
    if constant is None:
        raise CannotLower(f"its weight {node.inputs[1].name!r} is not a constant")
    return constant


def _bias(ctx: Context, node: Any, index: int, channels: int) -> NDArray[Any] | None:
    if len(node.inputs) <= index or not node.inputs[index].name:
        return None
    values = ctx.values(node.inputs[index])
    if values is None:
        raise CannotLower("its bias is not a constant")
    if values.size not in (1, channels):
        raise CannotLower(f"its bias of shape {values.shape} is not one value per column")
    return np.broadcast_to(values.reshape(-1).astype(np.float64), (channels,))


def _bias_tensor(
    ctx: Context,
    node: Any,
    bias: NDArray[Any] | None,
    source: int,
    scales: Sequence[float],
) -> int:
    """INT32, in units of input scale times weight scale, as TFLite prescribes."""
    units = np.asarray(scales) * ctx.quantization_of(source).scales[0]
    values = np.zeros(len(units)) if bias is None else bias
    stored = np.clip(np.rint(values / units), -_BIAS_LIMIT, _BIAS_LIMIT)
    return ctx.writer.tensor(
        f"{node.outputs[0].name}/bias",
        stored.shape,
        "INT32",
        Quantization(tuple(units.tolist())),
        int32(stored),
    )


def _quantized(
    ctx: Context, weight: Any, order: tuple[int, ...], channel_axis: int = 0
) -> tuple[bytes, tuple[float, ...]]:
    """Filters as int8, one scale per output channel, in TFLite's axis order."""

    def quantize(values: NDArray[Any]) -> tuple[bytes, tuple[float, ...]]:
        if values.ndim == 3:  # a 1-D filter is one row high
            values = values[:, :, None, :]
        filters = values.swapaxes(0, channel_axis)
        data, scales = _per_channel(filters.reshape(filters.shape[0], -1))
        stored = np.frombuffer(data, np.int8).reshape(filters.shape).swapaxes(0, channel_axis)
        return stored.transpose(order).tobytes(), scales

    return ctx.weights.get(weight, ("filters", order, channel_axis), quantize)


def _per_channel(matrix: NDArray[Any]) -> tuple[bytes, tuple[float, ...]]:
    """Rows as int8 with a symmetric scale each; a row of zeros gets scale 1."""
    largest = np.abs(matrix).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1.0).astype(np.float64)
    stored = np.rint(matrix / scales[:, None]).astype(np.int8)
    return stored.tobytes(), tuple(scales.tolist())


def _spatial(ctx: Context, x: Any) -> int:
    """The input channels-last with two spatial axes; a 1-D signal is one row high."""
    shape = ctx.shape(x)
    source = ctx.read(x, channels_last(len(shape)))
    if len(shape) == 4:
        return source
    image = ctx.like(source, f"{x.name}/image", [shape[0], 1, shape[2], shape[1]])
    ctx.reshape(source, image)
    return image


def _spatial_output(ctx: Context, y: Any) -> tuple[int, Any]:
    """Where a convolution writes, and what to do after: the reverse of `_spatial`."""
    shape = ctx.shape(y)
    target = ctx.write(y, channels_last(len(shape)))
    if len(shape) == 4:
        return target, lambda: None
    image = ctx.like(target, f"{y.name}/image", [shape[0], 1, shape[2], shape[1]])
    return image, lambda: ctx.reshape(image, target)
