"""Operators that only move elements: reshapes, transposes, slices, joins, padding, resizing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnxnas.hwmodels.tflite_context import (
    CannotLower,
    Context,
    Layout,
    channels_last,
    is_bytes,
    of_bytes,
    plain,
    same_order,
)
from onnxnas.hwmodels.tflite_padding import border, feeds_large_stride


def alias(ctx: Context, node: Any) -> None:
    """Identity and Dropout: the same tensor under a new name."""
    ctx.alias(node.outputs[0], node.inputs[0])


def cast(ctx: Context, node: Any) -> None:
    """Cast between floats, or at the edge of the graph, is no work; of integers to bytes an ADD.

    Vela leaves TFLite's own operator for that, which its runtime has instead, to the CPU on
    Ethos-U55 and U65; on U85 it makes the same addition of it. The rest is refused.
    """
    x, y = node.inputs[0], node.outputs[0]
    edge = not x.inputs or all(not t.outputs for t in node.outputs)
    floats = [t.dtype is not None and np.issubdtype(t.dtype, np.floating) for t in (x, y)]
    if is_bytes(y) and not edge and not is_bytes(x) and not floats[0]:
        source, zero = ctx.read(x), ctx.ints([0])
        target = ctx.write(y, ctx.layout(x), quantization=of_bytes(y))
        ctx.op("ADD", [source, zero], [target], "AddOptions")
    elif (x.inputs and (edge or floats[0] == floats[1])) or all(floats):
        ctx.alias(y, x)
    elif edge:
        ctx.inputs.append(ctx.write(y))  # the image comes in already quantised
    else:
        raise CannotLower(f"casts {x.dtype} to {y.dtype} in the middle of the network")


def reshape(ctx: Context, node: Any) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: RESHAPE, with as few transposes as possible."""
    x, y = node.inputs[0], node.outputs[0]
    if _channel_shuffle(ctx, node):
        return
    before, after = ctx.shape(x), ctx.shape(y)
    layout = ctx.layout(x)
    image = channels_last(len(after))
    if same_order(before, layout, plain(len(before))):
        source, result = ctx.read(x), plain(len(after))
        if len(after) >= 4 and same_order(after, result, image):
            result = image
    elif len(after) >= 3 and after[:2] == before[:2] and layout == channels_last(len(before)):
        source, result = ctx.read(x), image  # only spatial axes are joined or split
    elif len(after) == 2 and after[0] == before[0] and _feeds_products(ctx, y):
        ctx.flattened[y.name] = before[1:]
        source, result = ctx.read(x), plain(2)
    else:
        source, result = ctx.read(x, plain(len(before))), plain(len(after))
        if len(after) >= 4 and same_order(after, result, image):
            result = image
    if [before[a] for a in layout] == [after[a] for a in result] and source == ctx.read(x):
        ctx.alias(y, x, result)
    else:
        ctx.reshape(source, ctx.write(y, result, like=source))


def _feeds_products(ctx: Context, tensor: Any) -> bool:
    """Whether all readers are matrix products whose constant can be reordered instead."""
    if any(tensor is t for t in ctx.graph.outputs) or not tensor.outputs:
        return False
    return all(
        n.op in ("Gemm", "MatMul")
        and n.inputs[0] is tensor
        and ctx.constant(n.inputs[1]) is not None
        and len(n.inputs[1].shape) == 2
        and not n.attrs.get("transA", 0)
        for n in tensor.outputs
    )


def _channel_shuffle(ctx: Context, node: Any) -> bool:
    """Reshape to groups, swap, reshape back: a swap of the two innermost axes channels-last."""
    x, y = node.inputs[0], node.outputs[0]
    before, split = ctx.shape(x), ctx.shape(y)
    if len(before) != 4 or len(split) != 5 or split[3:] != before[2:]:
        return False
    swap = ctx.only_reader(y)
    if swap is None or swap.op != "Transpose" or split[0] != before[0]:
        return False
    join = ctx.only_reader(swap.outputs[0])
    if [int(a) for a in swap.attrs.get("perm", ())] != [0, 2, 1, 3, 4] or join is None:
        return False
    if join.op != "Reshape" or ctx.shape(join.outputs[0]) != before:
        return False
    ctx.absorb(swap, join)
    n, groups, each, h, w = split
    source = ctx.read(x, channels_last(4))
    apart = ctx.like(source, f"{y.name}/groups", [n, h, w, groups, each])
    swapped = ctx.like(source, f"{y.name}/swapped", [n, h, w, each, groups])
    ctx.reshape(source, apart)
    ctx.op("TRANSPOSE", [apart, ctx.ints([0, 1, 2, 4, 3])], [swapped], "TransposeOptions")
    ctx.reshape(swapped, ctx.write(join.outputs[0], like=source))
    return True


def transpose(ctx: Context, node: Any) -> None:
    """Transpose: a relabelling between ONNX order and channels-last, else TRANSPOSE."""
    x, y = node.inputs[0], node.outputs[0]
    shape = ctx.shape(x)
    rank = len(shape)
    permutation = [int(a) for a in node.attrs.get("perm") or reversed(range(rank))]
    layout = ctx.layout(x)
    # Axis a of x is axis permutation.index(a) of y.
    relabelled: Layout = tuple(permutation.index(a) for a in layout)
    result = ctx.shape(y)
    for known in (plain(rank), channels_last(rank)):
        if relabelled == known:
            ctx.alias(y, x, known)
            return
    source = ctx.read(x)
    wanted = channels_last(rank) if layout == channels_last(rank) else plain(rank)
    target = ctx.write(y, wanted, like=source)
    if same_order(result, relabelled, wanted):
        ctx.reshape(source, target)
        return
    numbers = ctx.ints([relabelled.index(a) for a in wanted])
    ctx.op("TRANSPOSE", [source, numbers], [target], "TransposeOptions")


def concat(ctx: Context, node: Any) -> None:
    """Concat: CONCATENATION."""
    y = node.outputs[0]
    rank = len(ctx.shape(y))
    first = next((t for t in node.inputs if ctx.constant(t) is None), node.inputs[0])
    layout = ctx.layout(first)
    if len(node.inputs) == 1:
        ctx.alias(y, first)
        return
    axis = layout.index(int(node.attrs["axis"]) % rank)
    sources = [ctx.read(t, layout) for t in node.inputs]
    target = ctx.write(y, layout)
    common = ctx.quantization_of(target)  # TFLite joins without rescaling
    sources = [ctx.requantized(s, common) for s in sources]
    ctx.op("CONCATENATION", sources, [target], "ConcatenationOptions", Axis=axis)


def split(ctx: Context, node: Any) -> None:
    """Split, equal or not: SPLIT_V."""
    x = node.inputs[0]
    rank = len(ctx.shape(x))
    axis = int(node.attrs.get("axis", 0)) % rank
    source, layout = ctx.read(x), ctx.layout(x)
    parts = [t for t in node.outputs if t.name]
    sizes = [ctx.shape(t)[axis] for t in parts]
    if sum(sizes) != ctx.shape(x)[axis]:
        raise CannotLower("an output without a name leaves its part unknown")
    targets = [ctx.write(t, layout, like=source) for t in parts]
    inputs = [source, ctx.ints(sizes), ctx.ints([layout.index(axis)], scalar=True)]
    ctx.op("SPLIT_V", inputs, targets, "SplitVOptions", NumSplits=len(parts))


def slices(ctx: Context, node: Any) -> None:
    """Slice with constant bounds: SLICE, or STRIDED_SLICE for steps over 1."""
    x, y = node.inputs[0], node.outputs[0]
    shape = ctx.shape(x)
    rank = len(shape)
    starts, ends = ctx.argument(node, 1, "starts"), ctx.argument(node, 2, "ends")
    if starts is None or ends is None:
        raise CannotLower("has no bounds")
    axes, steps = ctx.argument(node, 3, "axes"), ctx.argument(node, 4)
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    begin, step = [0] * rank, [1] * rank
    for axis, start, stride in zip(axes, starts, steps, strict=True):
        if stride < 1:
            raise CannotLower("reverses an axis")
        length = shape[int(axis)]
        begin[int(axis)] = int(np.clip(start + length if start < 0 else start, 0, length))
        step[int(axis)] = int(stride)
    source, layout = ctx.read(x), ctx.layout(x)
    target = ctx.write(y, layout, like=source)
    size = ctx.shape(y)
    begins = ctx.ints([begin[a] for a in layout])
    if all(s == 1 for s in step):
        sizes = ctx.ints([size[a] for a in layout])
        ctx.op("SLICE", [source, begins, sizes], [target], "SliceOptions")
        return
    last = ctx.ints([begin[a] + (size[a] - 1) * step[a] + 1 for a in layout])
    strides = ctx.ints([step[a] for a in layout])
    ctx.op("STRIDED_SLICE", [source, begins, last, strides], [target], "StridedSliceOptions")


def gather(ctx: Context, node: Any) -> None:
    """Gather of one constant index: a SLICE."""
    x, y = node.inputs[0], node.outputs[0]
    indices = ctx.values(node.inputs[1])
    if indices is None or indices.size != 1:
        raise CannotLower("only one constant index has an int8 TFLite form here")
    shape = ctx.shape(x)
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    source, layout = ctx.read(x, plain(len(shape))), plain(len(shape))
    begin, size = [0] * len(shape), list(shape)
    begin[axis], size[axis] = int(indices.reshape(())) % shape[axis], 1
    part = ctx.like(source, f"{y.name}/slice", [size[a] for a in layout])
    ctx.op("SLICE", [source, ctx.ints(begin), ctx.ints(size)], [part], "SliceOptions")
    ctx.reshape(part, ctx.write(y, plain(len(ctx.shape(y))), like=source))


def pad(ctx: Context, node: Any) -> None:
    """Pad: PAD, PADV2 for a value other than zero, MIRROR_PAD for reflection."""
    x, y = node.inputs[0], node.outputs[0]
    rank = len(ctx.shape(x))
    amounts = ctx.argument(node, 1, "pads")
    if amounts is None or (amounts < 0).any():
        raise CannotLower("crops, or has no amounts")
    axes = ctx.argument(node, 3)
    numbers = [int(a) % rank for a in (range(rank) if axes is None else axes)]
    sides = [[0, 0] for _ in range(rank)]
    for i, axis in enumerate(numbers):
        sides[axis] = [int(amounts[i]), int(amounts[i + len(numbers)])]
    mode = node.attrs.get("mode", "constant")
    value = node.attrs.get("value", None)
    if value is None and len(node.inputs) > 2 and node.inputs[2].name:
        value = ctx.scalar(node.inputs[2])
        if value is None:
            raise CannotLower("its value is computed")
    source, layout = ctx.read(x), ctx.layout(x)
    target = ctx.write(y, layout, like=source)
    sizes = ctx.ints([sides[a] for a in layout])
    if mode == "reflect":
        ctx.op("MIRROR_PAD", [source, sizes], [target], "MirrorPadOptions", Mode="REFLECT")
    elif mode != "constant":
        raise CannotLower(f"mode {mode!r} has no TFLite form")
    elif feeds_large_stride(y) and rank == 4 and layout == channels_last(4) and not value:
        if any(sides[0] + sides[1]):
            raise CannotLower("pads channels before a large stride")
        edges = (sides[2][0], sides[3][0], sides[2][1], sides[3][1])
        border(ctx, source, target, edges, ctx.quantization_of(source).zero_point)
    elif value:
        filler = ctx.filled(f"{y.name}/value", float(value), ctx.quantization_of(source))
        ctx.op("PADV2", [source, sizes, filler], [target], "PadV2Options")
    else:
        ctx.op("PAD", [source, sizes], [target], "PadOptions")


def resize(ctx: Context, node: Any) -> None:
    """Resize and Upsample of the spatial axes, nearest or bilinear."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = ctx.shape(x), ctx.shape(y)
    if len(before) != 4 or before[:2] != after[:2]:
        raise CannotLower("resizes other axes than height and width")
    if before == after:
        ctx.alias(y, x)
        return
    mode = node.attrs.get("mode", "nearest")
    default = "asymmetric" if node.op == "Upsample" or ctx.graph.opset < 11 else "half_pixel"
    where = node.attrs.get("coordinate_transformation_mode", default)
    if where not in ("asymmetric", "align_corners", "half_pixel", "pytorch_half_pixel"):
        raise CannotLower(f"coordinates {where!r} have no TFLite form")
    source = ctx.read(x, channels_last(4))
    corners, half = where == "align_corners", where.endswith("half_pixel")
    if mode == "nearest":
        op, table = "RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"
        target = ctx.write(y, like=source)
        # At whole factors every rounding repeats each pixel; the plain form runs on every NPU.
        half = half and any(a % b for a, b in zip(after[2:], before[2:], strict=True))
        if corners and _picks(ctx, before[2:], after[2:]):
            _repeated(ctx, source, target)
            return
    elif mode in ("linear", "bilinear"):
        op, table = "RESIZE_BILINEAR", "ResizeBilinearOptions"
        target = ctx.write(y, like=source)
    else:
        raise CannotLower(f"mode {mode!r} has no TFLite form")
    options = {"AlignCorners": corners, "HalfPixelCenters": half}
    steps = [after[2:]] if half else _steps(ctx, before[2:], after[2:], int(corners))
    for size in steps[:-1]:
        name = f"{y.name}/{size[0]}x{size[1]}"
        part = ctx.like(source, name, [before[0], *size, before[1]])
        ctx.op(op, [source, ctx.ints(size)], [part], table, **options)
        source = part
    ctx.op(op, [source, ctx.ints(steps[-1])], [target], table, **options)


def _picks(ctx: Context, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether the target would pick one of all repetitions of a pixel by a large kernel.

    On Ethos-U55 and U65 nearest pixels between corners are a depthwise convolution as large as
    the factor, which has one weight that is not zero.
    """
    factors = {(a - 1) / max(1, b - 1) for a, b in zip(after, before, strict=True)}
    factor = factors.pop()
    whole = not factors and factor == int(factor) and not int(factor) & (int(factor) - 1)
    whole = whole and min(before) > 1
    return whole and factor > _LARGEST_PICK and ctx.largest_resize <= _BY_TWOS


_LARGEST_PICK = 4
_BY_TWOS = 8
"""`largest_resize` of targets that enlarge two by two."""


def _repeated(ctx: Context, source: int, target: int) -> None:
    """Nearest pixels between corners as repetition, half a pixel of which is cut off all around."""
    n, height, width, channels = ctx.shape_of(source)
    _, rows, columns, _ = ctx.shape_of(target)
    factor = (rows - 1) // (height - 1)
    name = ctx.writer.tensors[target].name
    for area in _steps(ctx, (height, width), (height * factor, width * factor), 0):
        part = ctx.like(source, f"{name}/{area[0]}x{area[1]}", [n, *area, channels])
        ctx.op(
            "RESIZE_NEAREST_NEIGHBOR",
            [source, ctx.ints(area)],
            [part],
            "ResizeNearestNeighborOptions",
            AlignCorners=False,
            HalfPixelCenters=False,
        )
        source = part
    begin, size = ctx.ints([0, factor // 2, factor // 2, 0]), ctx.ints([n, rows, columns, channels])
    ctx.op("SLICE", [source, begin, size], [target], "SliceOptions")


def _steps(
    ctx: Context, before: tuple[int, ...], after: tuple[int, ...], corner: int
) -> list[tuple[int, ...]]:
    """Sizes on the way of an enlargement that is too large for one operator.

    Enlarging twice by whole factors is exactly enlarging once: the points in between lie on the
    same lines, or repeat the same pixels.
    """
    factors = [(a - corner) / max(1, b - corner) for a, b in zip(after, before, strict=True)]
    factor, limit = int(factors[0]), ctx.largest_resize
    if factors != [factor, factor] or factor <= limit or factor & (factor - 1):
        return [after]
    first = tuple((b - corner) * (factor // limit) + corner for b in before)
    return [*_steps(ctx, before, first, corner), after]


def depth_to_space(ctx: Context, node: Any) -> None:
    """DepthToSpace and SpaceToDepth as reshape, transpose, reshape.

    Vela leaves TFLite's own operators for these on the CPU.
    """
    x, y = node.inputs[0], node.outputs[0]
    block = int(node.attrs["blocksize"])
    n, _, h, w = ctx.shape(x)
    source = ctx.read(x, channels_last(4))
    if node.op == "SpaceToDepth":
        channels = ctx.shape(x)[1]
        apart = [n, h // block, block, w // block, block, channels]
        order = [0, 1, 3, 2, 4, 5]
    else:
        channels = ctx.shape(y)[1]
        if node.attrs.get("mode", "DCR") == "DCR":
            apart, order = [n, h, w, block, block, channels], [0, 1, 3, 2, 4, 5]
        else:
            apart, order = [n, h, w, channels, block, block], [0, 1, 4, 2, 5, 3]
    grouped = ctx.like(source, f"{y.name}/grouped", apart)
    moved = ctx.like(source, f"{y.name}/moved", [apart[a] for a in order])
    ctx.reshape(source, grouped)
    ctx.op("TRANSPOSE", [grouped, ctx.ints(order)], [moved], "TransposeOptions")
    ctx.reshape(moved, ctx.write(y, like=source))


def tile(ctx: Context, node: Any) -> None:
    """Tile and Expand: TILE."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = ctx.shape(x), ctx.shape(y)
    rank = len(after)
    expanded = (1,) * (rank - len(before)) + before
    layout = ctx.layout(x) if len(before) == rank else plain(rank)
    source = ctx.read(x, layout if len(before) == rank else plain(len(before)))
    if len(before) != rank:
        wide = ctx.like(source, f"{x.name}/expanded", expanded)
        ctx.reshape(source, wide)
        source = wide
    times = [after[a] // expanded[a] for a in layout]
    if math.prod(times) == 1:
        ctx.reshape(source, ctx.write(y, layout, like=source))
        return
    ctx.op("TILE", [source, ctx.ints(times)], [ctx.write(y, layout, like=source)])
