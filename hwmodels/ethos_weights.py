"""Encoded weights on Ethos-U: how large they become.

The NPU streams weights through a Golomb-Rice decoder. The encoder pads channels and window
elements to what the hardware works on at once, and each piece carries a header; the constants
below were fitted to sizes that Vela 5.2 reported for 85 sampled networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnxnas.kernels import Kernel

SCALE_BYTES = 10
"""Bias, multiplier and shift of one output channel."""

_SIZES: Mapping[tuple[str, str], tuple[float, float, float, float]] = {
    ("ethos-u55", "depthwise"): (1.222, -0.222, 0.017, 18.7),
    ("ethos-u55", "pointwise"): (1.077, 0.197, 0.118, 8.5),
    ("ethos-u55", "window"): (1.133, 0.064, 0.069, 34.8),
    ("ethos-u65", "depthwise"): (1.217, -0.210, 0.041, 20.6),
    ("ethos-u65", "pointwise"): (1.076, 0.197, 0.121, 9.3),
    ("ethos-u65", "window"): (1.134, 0.055, 0.085, 31.5),
    ("ethos-u85", "depthwise"): (1.224, -0.168, 0.125, 76.7),
    ("ethos-u85", "pointwise"): (1.109, 0.166, 0.205, 108.4),
    ("ethos-u85", "window"): (1.113, 0.088, 0.368, 111.8),
}
"""Family and kind of kernel -> bytes per byte of Golomb-Rice code; the same for the padding of
input channels and window, and for that of output channels, relative to the code; bytes each."""

_POOLING: Mapping[str, float] = {"ethos-u55": 0.127, "ethos-u65": 0.130, "ethos-u85": 0.190}
"""A global average is a depthwise convolution with equal weights: bytes for each of them."""


def encoded_bytes(kernel: Kernel, family: str) -> float:
    """Estimated size of a kernel's encoded weights, biases and scales left out.

    Counts the weights that averaging over a whole map is done with.

    Args:
        kernel: any kernel.
        family: ``ethos-u55``, ``ethos-u65`` or ``ethos-u85``.
    """
    window = kernel.window[0] * kernel.window[1]
    if kernel.op == "GlobalAveragePool":
        return _POOLING[family] * _up(kernel.in_channels, 8) * window
    if not kernel.weights:
        return 0.0
    inner = kernel.in_channels / kernel.groups
    block = 64 if family == "ethos-u85" else 32
    if kernel.op == "DepthwiseConv":
        kind, padding = "depthwise", _up(window, 4) / window
    elif window == 1:
        kind, padding = "pointwise", _up(inner, block) / inner
    else:
        kind = "window"
        padding = min(_up(inner, block) / inner, _up(inner, 8) / inner * _up(window, 4) / window)
    code, inside, outside, header = _SIZES[family, kind]
    rounded = _up(kernel.out_channels, 16) / kernel.out_channels
    return kernel.weight_bytes * (code + inside * (padding - 1) + outside * (rounded - 1)) + header


def _up(value: float, step: int) -> float:
    return math.ceil(value / step) * step
