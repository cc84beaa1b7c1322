"""Which block of its output an Ethos-U works on at once: the choice its compiler makes.

The hardware computes an operator block by block: a block of the output and the piece of the input
it needs lie in small memories inside the NPU. The compiler (Vela 5.2, whose sources are public)
takes the block that moves the fewest bytes. Costs follow from the block: what it wastes at the
borders and how often inputs and weights are read again. This repeats the choice for 8-bit data.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.hwmodels.ethos_areas import elementwise, fitted
from onnxnas.hwmodels.ethos_array import (
    BRICK,
    SUBKERNEL,
    Array,
    Block,
    Size,
    Work,
    one_stripe,
    storage_granule,
    up,
    window_extent,
)


def choose(work: Work, array: Array) -> Block:
    """The block an operator is run with.

    Args:
        work: the operator.
        array: of the target.
    """
    work = one_stripe(work)
    if array.family != "ethos-u85":
        return _searched(work, array, array.units[0], _part_kernel(work, array))
    part = work.kind == "conv" and _part_kernel(work, array)
    unit = _unit(work, array)
    if work.kind == "resize":
        size = (1, 128, BRICK)
        return Block(size, size, unit, False)
    if work.kind == "elementwise":
        size = elementwise(work, array, unit)
        if work.broadcast:
            size = (min(up(work.ofm[0], unit[0]), array.largest[0]), 2 * BRICK, BRICK)
        return Block(size, size, unit, False)
    if work.kind in ("depthwise", "pool"):
        return fitted(work, array, unit)
    return _searched(work, array, unit, part)


def _unit(work: Work, array: Array) -> Size:
    """The unit that wastes least; depthwise ones have no use for deep units."""
    units = array.units
    if work.kind in ("depthwise", "pool", "copy", "resize"):
        units = tuple(u for u in units if u[2] == BRICK)
    waste = [math.prod(up(n, s) for n, s in zip(work.ofm, u, strict=True)) for u in units]
    return units[waste.index(min(waste))]


def _part_kernel(work: Work, array: Array) -> bool:
    if work.kind != "conv":
        return False
    depth, area = work.ifm[2], work.window[0] * work.window[1]
    if array.family == "ethos-u85":
        rounded = area // 5 * 5 + max(area % 5, 2)
        return depth / up(depth, 16) * area / rounded >= depth / up(depth, 64)
    return depth <= 8 or depth / up(depth, 8) * area / up(area, 4) >= depth / up(depth, 32)


# Search: convolutions, and all operators of U55 and U65


def _candidates(unit: Size, end: Size, depth: int, most: int) -> NDArray[Any]:
    """Blocks of at most so many values to try, [n, 3], in the order in which they are tried."""
    step = unit[2]
    depths, d = [], max(step, min(end[2], BRICK))
    d = up(d, BRICK) if d < depth else d
    while d <= end[2]:
        depths.append(d)
        d += step
        d = up(d, BRICK) if d < depth else d
    heights = np.arange(unit[0], end[0] + 1, unit[0])
    widths = np.arange(unit[1], end[1] + 1, unit[1])
    grid = np.meshgrid(depths, heights, widths, indexing="ij")
    blocks = np.stack([grid[1].ravel(), grid[2].ravel(), grid[0].ravel()], axis=1)
    result: NDArray[Any] = blocks[blocks.prod(axis=1) <= most]
    return result


def _searched(work: Work, array: Array, unit: Size, part: bool) -> Block:
    new = array.family == "ethos-u85"
    equal = work.kind in ("depthwise", "pool", "copy", "elementwise")
    inner = (16 if part else 64) if new else up(min(work.ifm[2], 16 if part else 32), unit[2])
    end: Any = tuple(
        up(min(n, m), s) for n, m, s in zip(work.ofm, array.largest, unit, strict=True)
    )
    sums = array.sum_bytes if new else (array.banks - 4 - array.input_granule) * 512
    most = math.prod(end) if work.kind == "elementwise" else sums // 4
    h, w, d = _candidates(unit, end, min(work.ofm[2], end[2] + 1), most).T
    depth = d if equal else np.full_like(d, inner)
    granule = np.array([storage_granule(n, unit) if new else unit for n in (16, 32, 64)]).T
    granule = granule[:, np.searchsorted((16, 32), depth)]
    rows, columns = (
        (n - 1) * stride + min(extent, SUBKERNEL)
        for n, stride, extent in zip((h, w), work.strides, window_extent(work), strict=True)
    )
    if work.enlarges:
        rows, columns = rows // 2 + 1, columns // 2 + 1
    rows, columns = _up(rows, granule[0]), _up(columns, granule[1])
    for copies in (2, 1) if new else (2,):
        if new:
            held = _up(depth if equal else np.minimum(depth, work.ifm[2]), granule[2])
            fits = rows * columns * held * copies <= array.input_bytes
            fits &= h * w * _up(d, BRICK) * 4 * copies <= array.sum_bytes
        else:
            fits = _banked(work, array, (h, w, d), rows * columns, depth)
        if fits.any():
            break
    else:
        fits[0] = True
    if new:
        depth = _up(depth, granule[2])
    h, w, d, rows, columns, depth = (a[fits] for a in (h, w, d, rows, columns, depth))
    cost = _traffic(work, (h, w, d), rows * columns, equal, new)
    whole = math.prod(work.ifm) < rows * columns * depth * 2
    cost = np.where(whole, cost / np.float32(2), cost)
    ties = np.flatnonzero(cost == cost.min())
    best, covered = int(ties[0]), math.inf
    for i in ties[1:]:
        if h[i] <= 4 and w[i] <= 4:
            part_of = min(work.ifm[0], int(rows[i])) * min(work.ifm[1], int(columns[i]))
            share = work.ifm[0] * work.ifm[1] / part_of
            if share <= covered:
                best, covered = int(i), share
    inner = int(d[best]) if equal else inner
    ifm = (int(rows[best]), int(columns[best]), inner)
    return Block(ifm, (int(h[best]), int(w[best]), int(d[best])), unit, part)


def _traffic(
    work: Work,
    block: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    area: NDArray[Any],
    equal: bool,
    new: bool,
) -> NDArray[Any]:
    """Values fetched per value computed."""
    h, w, d = block
    one = np.float32(1)
    elements = np.float32(math.prod(work.ofm))
    result: NDArray[Any]
    if work.kind in ("elementwise", "product"):
        result = one / (h * w * (d if work.kind == "elementwise" else 1)).astype(np.float32)
        return result
    full_h, full_w = -(-work.ofm[0] // h), -(-work.ofm[1] // w)
    full_d = -(-work.ofm[2] // d)
    across = [
        one * np.float32(n) / s.astype(np.float32) for n, s in zip(work.ofm, block, strict=True)
    ]
    weighted = work.kind in ("conv", "depthwise")
    per_pixel = work.window[0] * work.window[1] * work.ifm[2] if weighted else 0
    weights = (per_pixel * full_h * full_w).astype(np.float32)
    if work.kind != "depthwise":
        weights = weights * (across[2] * d.astype(np.float32))
    repeats = math.prod(-(-e // SUBKERNEL) for e in window_extent(work))
    # Equal costs are told apart by how they round: the order matters.
    inputs = (area * work.ifm[2] * repeats).astype(np.float32)
    inputs = inputs * (across[0] * across[1]) if new else inputs * across[1] * across[0]
    if not equal:
        inputs = inputs * full_d.astype(np.float32)
    result = (inputs + weights) / elements
    return result


def _banked(
    work: Work,
    array: Array,
    block: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    area: NDArray[Any],
    depth: NDArray[Any],
) -> NDArray[Any]:
    """Whether blocks fit the shared memory of U55 and U65: banks of 1 KiB."""
    h, w, d = block
    if work.ofm[0] == 1 and work.window[0] == 1 and array.units[0][0] == 2:
        h = np.minimum(h, 1)
    inputs = _up(-(-area * _up(depth, 8) // 1024) * 2, array.input_granule)
    free = array.banks - 2 - 2  # output; tables
    if work.kind == "elementwise":
        fits: NDArray[Any] = inputs * 2 <= free
        return fits
    sums = -(-h * w * _up(d, 8) * 4 // 1024) * 2
    fits = inputs + _up(sums, array.sum_granule) <= free
    return fits


def _up(values: NDArray[Any], step: int | NDArray[Any]) -> NDArray[Any]:
    result: NDArray[Any] = -(-values // step) * step
    return result
