"""Windows that slide over an image: ONNX's explicit padding in TFLite's SAME and VALID."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxnas.hwmodels.tflite_context import CannotLower, Context
from onnxnas.ops import resolve_pads

_SAME_STRIDE = 3
"""Larger strides run on the NPU with VALID padding only."""


@dataclass(frozen=True)
class Window:
    """Kernel of a convolution or pool, (height, width), with the padding that is really read.

    Attributes:
        pads: top, left, bottom, right; ceil_mode and auto_pad resolved.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    same: bool

    @property
    def padded(self) -> bool:
        return any(self.pads)


def window(ctx: Context, node: Any, kernel: Sequence[int]) -> Window:
    """View of a node's window; a 1-D one is one row high.

    Raises:
        CannotLower: negative padding, or unknown sizes.
    """
    x, y = ctx.shape(node.inputs[0])[2:], ctx.shape(node.outputs[0])[2:]
    count = len(x)
    fill = [1] * (2 - count)

    def axes(name: str) -> list[int]:
        return [*fill, *(int(v) for v in node.attrs.get(name) or [1] * count)]

    sizes, results = [*fill, *x], [*fill, *y]
    extent = [*fill, *(int(k) for k in kernel)]
    strides, dilations = axes("strides"), axes("dilations")
    begins = [0] * (2 - count) + _begins(node, sizes, extent, strides, dilations, count)
    needed = [
        (o - 1) * s + (k - 1) * d + 1 - i
        for o, s, k, d, i in zip(results, strides, extent, dilations, sizes, strict=True)
    ]
    if min(begins) < 0:
        raise CannotLower("has negative padding")
    # ONNX may declare padding at the end that no window reaches, or leave elements unread.
    ends = [max(0, n - b) for n, b in zip(needed, begins, strict=True)]
    pads = (begins[0], begins[1], ends[0], ends[1])
    same = max(strides) <= _SAME_STRIDE and all(
        o == -(-i // s) and b == max(0, n) // 2
        for o, i, s, b, n in zip(results, sizes, strides, begins, needed, strict=True)
    )
    return Window(
        (extent[0], extent[1]), (strides[0], strides[1]), (dilations[0], dilations[1]), pads, same
    )


def padded_input(
    ctx: Context, view: Window, source: int, name: str, lowest: bool = False
) -> tuple[int, str]:
    """The input of a window and its TFLite padding; adds a PAD where neither kind fits.

    Args:
        ctx: the context.
        view: the window.
        source: number of the channels-last input.
        name: of the input, for the padded tensor.
        lowest: pad with the lowest value instead of zero, for maximum pools.
    """
    if not view.padded:
        return source, "VALID"
    if view.same:
        return source, "SAME"
    top, left, bottom, right = view.pads
    n, h, w, c = ctx.shape_of(source)
    padded = ctx.like(source, f"{name}/padded", [n, h + top + bottom, w + left + right, c])
    amounts = ctx.ints([[0, 0], [top, bottom], [left, right], [0, 0]])
    if max(view.strides) > _SAME_STRIDE:
        zero = ctx.quantization_of(source).zero_point
        border(ctx, source, padded, view.pads, -128 if lowest else zero)
    elif lowest:
        value = ctx.filled(f"{name}/lowest", -1e9, like=ctx.quantization_of(source))
        ctx.op("PADV2", [source, amounts, value], [padded], "PadV2Options")
    else:
        ctx.op("PAD", [source, amounts], [padded], "PadOptions")
    return padded, "VALID"


def feeds_large_stride(tensor: Any) -> bool:
    """Whether a window that strides far reads a tensor: see `border`."""
    return any(max(n.attrs.get("strides") or [1]) > _SAME_STRIDE for n in tensor.outputs)


def border(
    ctx: Context, source: int, target: int, pads: tuple[int, int, int, int], value: int
) -> None:
    """Padding by joining constants of a stored value to the sides of a channels-last image.

    Vela would merge a PAD into the window and then refuse it for its large stride.
    """
    quantization = ctx.quantization_of(source)
    sides = [(1, pads[0], pads[2]), (2, pads[1], pads[3])]
    sides = [side for side in sides if side[1] or side[2]]
    for i, (axis, before, after) in enumerate(sides):
        shape = list(ctx.shape_of(source))
        name = f"{ctx.writer.tensors[target].name}/{axis}"
        pieces = [source]
        for size, place in ((before, 0), (after, 2)):
            border = [*shape[:axis], size, *shape[axis + 1 :]]
            data = np.full(border, value, np.int8).tobytes()
            if size:
                constant = ctx.writer.tensor(f"{name}/{place}", border, "INT8", quantization, data)
                pieces.insert(place, constant)
        shape[axis] += before + after
        joined = target if i == len(sides) - 1 else ctx.like(source, name, shape)
        ctx.op("CONCATENATION", pieces, [joined], "ConcatenationOptions", Axis=axis)
        source = joined


def _begins(
    node: Any,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    count: int,
) -> list[int]:
    """Padding before each spatial axis the node has."""
    if node.attrs.get("auto_pad", "NOTSET") == "NOTSET":
        return [int(p) for p in (node.attrs.get("pads") or [0] * count)[:count]]
    pads = resolve_pads(
        node.attrs,
        (1, 1, *sizes),
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (dilations[0], dilations[1]),
    )
    if isinstance(pads, str):
        raise CannotLower(pads)
    return [pads[0], pads[1]][2 - count :]
