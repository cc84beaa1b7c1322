"""Shapes as an Ethos-U compiler sees them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxnas.hwmodels.ethos_array import BRICK, Size
from onnxnas.kernels import Kernel

_SAME_STRIDE = 3


def size(shape: Sequence[int]) -> Size:
    """(height, width, channels) of a tensor's shape; matrices are one pixel."""
    if len(shape) < 3:
        return 1, 1, int(shape[-1]) if shape else 1
    height, width = (shape[2], shape[3]) if len(shape) >= 4 else (1, shape[2])
    return int(height), int(width), int(shape[1])


def line(shape: Sequence[int]) -> tuple[int, int]:
    """Channels and columns: tensors in bricks must agree on them."""
    channels = 1 if not shape else shape[1] if len(shape) >= 3 else shape[-1]
    return channels, shape[-1] if len(shape) >= 4 else 1


def deeper(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of as many values with 16 channels or a few more, and about as high as wide."""
    left, factor = math.prod(shape), 2
    channels, width, height = 1, 1, 1
    while left > 1:
        while left % factor:
            factor += 1
        left //= factor
        if channels < BRICK:
            channels *= factor
        elif width < height:
            width *= factor
        else:
            height *= factor
    return 1, channels, max(width, height), min(width, height)


def odd_padding(kernel: Kernel) -> bool:
    """Whether a pool has padding that no TFLite form has."""
    if not any(kernel.pads):
        return False
    sizes = (kernel.in_height, kernel.in_width), (kernel.out_height, kernel.out_width)
    for axis in range(2):
        before, after, stride = sizes[0][axis], sizes[1][axis], kernel.strides[axis]
        both = kernel.pads[axis] + kernel.pads[axis + 2]
        if after != -(-before // stride) or kernel.pads[axis] != both // 2:
            return True
    return max(kernel.strides) > _SAME_STRIDE
