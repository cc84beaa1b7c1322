"""Pools, reductions, softmax and arg-max as int8 TFLite operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxnas.hwmodels.tflite_context import CannotLower, Context, channels_last, plain
from onnxnas.hwmodels.tflite_padding import padded_input, window
from onnxnas.hwmodels.tflite_writer import Quantization, int32

_REDUCTIONS: Mapping[str, str] = {
    "ReduceMean": "MEAN",
    "ReduceSum": "SUM",
    "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN",
}
_SOFTMAX_OUTPUT = Quantization((1 / 256,), -128)
"""Fixed by the TFLite specification."""


def pool(ctx: Context, node: Any) -> None:
    """MaxPool or AveragePool over two spatial axes."""
    x, y = node.inputs[0], node.outputs[0]
    if len(ctx.shape(x)) != 4:
        raise CannotLower(f"is a {len(ctx.shape(x)) - 2}-D pool")
    if len(node.outputs) > 1 and node.outputs[1].name:
        raise CannotLower("its indices output has no TFLite form")
    view = window(ctx, node, node.attrs["kernel_shape"])
    if view.dilations != (1, 1):
        raise CannotLower("is a dilated pool, which TFLite does not have")
    largest = node.op == "MaxPool"
    source = ctx.read(x, channels_last(4))
    counts_padding = bool(node.attrs.get("count_include_pad", 0))
    if not largest and view.padded and counts_padding and view.same:
        view = replace(view, same=False)  # TFLite's SAME does not count padding
    moved, padding = padded_input(ctx, view, source, x.name, lowest=largest)
    output, activation = ctx.fused_activation(y)
    target = ctx.write(output, like=source) if output is y else ctx.write(output)
    ctx.op(
        "MAX_POOL_2D" if largest else "AVERAGE_POOL_2D",
        [moved],
        [target],
        "Pool2DOptions",
        Padding=padding,
        StrideW=view.strides[1],
        StrideH=view.strides[0],
        FilterWidth=view.kernel[1],
        FilterHeight=view.kernel[0],
        FusedActivationFunction=activation,
    )


def global_average_pool(ctx: Context, node: Any) -> None:
    """GlobalAveragePool: MEAN over the spatial axes; for several images, which Vela's MEAN
    does not take, an average pool as large as the image.
    """
    shape = ctx.shape(node.inputs[0])
    if len(shape) == 4 and shape[0] > 1:
        _global_pool(ctx, node, "AVERAGE_POOL_2D")
    else:
        _reduce(ctx, node, "MEAN", list(range(2, len(shape))), keep=True)


def global_max_pool(ctx: Context, node: Any) -> None:
    """GlobalMaxPool: a MAX_POOL_2D as large as the image."""
    _global_pool(ctx, node, "MAX_POOL_2D")


def _global_pool(ctx: Context, node: Any, op: str) -> None:
    x, y = node.inputs[0], node.outputs[0]
    shape = ctx.shape(x)
    if len(shape) != 4:
        raise CannotLower(f"is a {len(shape) - 2}-D pool")
    source = ctx.read(x, channels_last(4))
    ctx.op(
        op,
        [source],
        [ctx.write(y, like=source)],
        "Pool2DOptions",
        Padding="VALID",
        StrideW=1,
        StrideH=1,
        FilterWidth=shape[3],
        FilterHeight=shape[2],
    )


def reduction(ctx: Context, node: Any) -> None:
    """ReduceMean, ReduceSum, ReduceMax, ReduceMin; axes as attribute or input."""
    axes = ctx.argument(node, 1, "axes")
    rank = len(ctx.shape(node.inputs[0]))
    if axes is None or axes.size == 0:
        if node.attrs.get("noop_with_empty_axes", 0):
            ctx.alias(node.outputs[0], node.inputs[0])
            return
        axes = np.arange(rank)
    keep = bool(node.attrs.get("keepdims", 1))
    _reduce(ctx, node, _REDUCTIONS[node.op], [int(a) % rank for a in axes], keep)


def _reduce(ctx: Context, node: Any, op: str, axes: list[int], keep: bool) -> None:
    x, y = node.inputs[0], node.outputs[0]
    source, layout = ctx.read(x), ctx.layout(x)
    kept = [a for a in layout if a not in axes]
    if not keep and kept != sorted(kept):
        # What remains would lie in an order that no layout of the result names.
        layout = plain(len(layout))
        source = ctx.read(x, layout)
    averaged = op in ("MEAN", "SUM")
    target = ctx.write(
        y,
        layout if keep else plain(len(ctx.shape(y))),
        like=None if averaged else source,
    )
    if op == "MEAN" and [layout.index(a) for a in axes] == [3] and ctx.shape_of(source)[1] != 1:
        _channel_mean(ctx, source, target, keep)
        return
    numbers = ctx.ints([layout.index(a) for a in sorted(axes)])
    ctx.op(op, [source, numbers], [target], "ReducerOptions", KeepDims=keep)


def _channel_mean(ctx: Context, source: int, target: int, keep: bool) -> None:
    """The mean over channels as a 1x1 convolution: the NPU has no other."""
    n, h, w, channels = ctx.shape_of(source)
    name = ctx.writer.tensors[target].name
    filters = ctx.writer.tensor(
        f"{name}/weights",
        (1, 1, 1, channels),
        "INT8",
        Quantization((1 / (127 * channels),)),
        np.full(channels, 127, np.int8).tobytes(),
    )
    units = Quantization((ctx.quantization_of(source).scales[0] / (127 * channels),))
    bias = ctx.writer.tensor(f"{name}/bias", [1], "INT32", units, int32([0]))
    result = target if keep else ctx.like(target, f"{name}/kept", [n, h, w, 1])
    ctx.op(
        "CONV_2D",
        [source, filters, bias],
        [result],
        "Conv2DOptions",
        Padding="VALID",
        StrideW=1,
        StrideH=1,
        DilationWFactor=1,
        DilationHFactor=1,
    )
    if not keep:
        ctx.reshape(result, target)


def softmax(ctx: Context, node: Any) -> None:
    """Softmax over any axis: the last one in TFLite."""
    x, y = node.inputs[0], node.outputs[0]
    shape = ctx.shape(x)
    rank = len(shape)
    axis = int(node.attrs.get("axis", 1 if ctx.graph.opset < 13 else -1)) % rank
    if ctx.graph.opset < 13 and any(d != 1 for d in shape[axis + 1 :]):
        raise CannotLower("normalises over several axes (opset below 13)")
    layout = ctx.layout(x)
    if layout[-1] != axis:
        rest = [a for a in range(rank) if a != axis]
        layout = (*rest, axis)
    source = ctx.read(x, layout)
    target = ctx.write(y, layout, quantization=_SOFTMAX_OUTPUT)
    ctx.op("SOFTMAX", [source], [target], "SoftmaxOptions", Beta=1.0)


def arg_max(ctx: Context, node: Any) -> None:
    """ArgMax: ARG_MAX, whose result has one axis less, then a reshape where the axis is kept."""
    x, y = node.inputs[0], node.outputs[0]
    rank = len(ctx.shape(x))
    axis = int(node.attrs.get("axis", 0)) % rank
    if node.attrs.get("select_last_index", 0):
        raise CannotLower("select_last_index=1 has no TFLite form")
    source, layout = ctx.read(x), ctx.layout(x)
    keep = bool(node.attrs.get("keepdims", 1))
    rest = [a for a in layout if a != axis]
    if not keep and rest != sorted(rest):
        layout = plain(rank)
        source, rest = ctx.read(x, layout), [a for a in range(rank) if a != axis]
    place = ctx.ints([layout.index(axis)], scalar=True)
    if keep:
        target = ctx.write(y, layout)
        small = ctx.like(target, f"{y.name}/squeezed", [ctx.shape(x)[a] for a in rest])
    else:
        target = small = ctx.write(y, plain(rank - 1))
    ctx.op("ARG_MAX", [source, place], [small], "ArgMaxOptions", OutputType="INT32")
    if keep:
        ctx.reshape(small, target)
