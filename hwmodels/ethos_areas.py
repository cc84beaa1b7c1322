"""Blocks of a U85's operators whose channels are independent: as large as its memories allow."""

from __future__ import annotations

import math

from onnxnas.hwmodels.ethos_array import (
    BRICK,
    Array,
    Block,
    Size,
    Work,
    input_size,
    storage_granule,
    up,
    window_extent,
)


def elementwise(work: Work, array: Array, unit: Size) -> Size:
    granule = (unit[0], unit[1], BRICK)
    ofm = tuple(up(n, g) for n, g in zip(work.ofm, granule, strict=True))
    limit = [min(n, m) for n, m in zip(ofm, array.largest, strict=True)]
    columns = array.output_bytes // granule[2]
    height = _tile(ofm[0], granule[0], limit[0])
    needed = _tile(ofm[1], granule[1], min(columns, limit[1]))
    depth = granule[2]
    more = min(columns // max(needed, granule[1]), limit[2] // depth)
    if more >= 2:
        columns, depth = columns // more, depth * more
    return up(height, granule[0]), up(columns, granule[1]), up(depth, granule[2])


def _tile(size: int, granule: int, tile: int) -> int:
    if size % tile == 0:
        return tile
    return max(up(size // (size // tile + 1), granule), granule)


def fitted(work: Work, array: Array, unit: Size) -> Block:
    granule = (unit[0], unit[1], BRICK)
    ofm = (up(work.ofm[0], unit[0]), up(work.ofm[1], unit[1]), up(work.ofm[2], BRICK))
    height, width, depth = _by_area(work, array, unit, ofm)
    forced = 0
    while True:
        rows, columns, inner = _needed(work, unit, (height, width, depth))
        if (height, width, depth) == ofm or (
            height >= ofm[0] and width >= ofm[1] and depth >= ofm[2]
        ):
            break
        # Room for one more row of input, where there is more than one block.
        row = math.prod(_needed(work, unit, (granule[0], width, depth)))
        if array.input_bytes - rows * columns * inner >= row:
            break
        step = granule[2]
        if (height != ofm[0] or forced & 2) and height > granule[0]:
            height -= granule[0]
        elif (depth > width or forced & 1) and depth > step:
            depth -= step
        elif (width != ofm[1] or forced & 4) and width > granule[1]:
            width -= granule[1]
        elif forced != 7:
            forced = forced << 1 | 1
        elif depth > granule[2]:
            depth = max(depth // 2, granule[2])
        else:
            break
    return Block((rows, columns, inner), (height, width, depth), unit, False)


def _needed(work: Work, unit: Size, block: Size) -> Size:
    """The piece of input a block needs, as it is stored."""
    granule, extent = storage_granule(block[2], unit), window_extent(work)
    return (
        input_size(block[0], work.strides[0], extent[0], granule[0]),
        input_size(block[1], work.strides[1], extent[1], granule[1]),
        up(block[2], granule[2]),
    )


def _by_area(work: Work, array: Array, unit: Size, ofm: Size) -> Size:
    """The block of the output's proportions that covers most and fits sums and input."""
    sums, room = array.sum_bytes // 4, array.input_bytes
    least = unit[0] * unit[1] * BRICK
    aspect = ofm[0] / ofm[1]
    deep = window_extent(work) == (1, 1)
    limit = tuple(min(n, m) for n, m in zip(ofm, array.largest, strict=True))
    macs = math.prod(unit) * 8
    deepest = min(max(macs, sums // least), limit[2])
    cover = ofm[1] * ofm[2] if deep else ofm[0] * ofm[1]
    best, best_metric = (unit[0], unit[1], BRICK), math.inf
    for depth in range(BRICK, deepest + 1, BRICK):
        granule = storage_granule(depth, unit)
        stored = math.prod(up(n, g) for n, g in zip(work.ifm, granule, strict=True))
        allowed, before, retry, fitted = sums, -1, 25, False
        while True:
            height, width = _proportional(aspect, allowed // depth, unit)
            width, height = min(width, limit[1]), min(height, limit[0])
            area = width * height
            if width < ofm[1]:
                width = _best_tile(ofm[1], unit[1], width)
            height = max(area // width // unit[0] * unit[0], unit[0])
            used = width * height * depth
            by_sums = sums / used
            by_input = room / min(math.prod(_needed(work, unit, (height, width, depth))), stored)
            if by_sums >= 1 and by_input >= 1:
                part = depth % granule[2] or granule[2]
                waste = 1 + (granule[2] - part) / granule[2] / 10
                fit = 1 + abs(1 - limit[2] / depth) / 10
                metric = fit * waste * (1 + abs(1 - cover / (width * (depth if deep else height))))
                if metric < best_metric:
                    best, best_metric = (height, width, depth), metric
                    if depth >= ofm[2] and width >= ofm[1] and height >= ofm[0]:
                        return ofm
                fitted = True
                break
            if used == before:
                retry -= 1
                by_input = 0.9 if retry <= 0 else by_input
            before = used
            if by_input < 1 < by_sums:
                allowed = min(allowed, used)
            less = max(int(allowed // least * min(by_input, by_sums)), 0) * least
            less = allowed - least if less == allowed else less
            if less < least:
                break
            allowed = less
        if not fitted:
            break
    return best


def _proportional(aspect: float, area: int, unit: Size) -> tuple[int, int]:
    width = math.sqrt(area / aspect)
    height = width * aspect
    if height < 1:
        width, height = width * height, 1.0
    elif width < 1:
        width, height = 1.0, height * width
    rows, columns = max(int(height), unit[0]), max(int(width), unit[1])
    return rows // unit[0] * unit[0], columns // unit[1] * unit[1]


def _best_tile(size: int, granule: int, tile: int) -> int:
    """A width near `tile` whose last piece is largest."""
    if size % tile == 0:
        return tile
    even = max(up(size // (size // tile + 1), granule), granule)
    first = max(even - 2 * granule, (even + 1) // 2, granule)
    best, best_rest = tile, size % tile
    for t in range(tile, first - 1, -granule):
        rest = size % t or t
        if rest > best_rest:
            best, best_rest = t, rest
    return best
