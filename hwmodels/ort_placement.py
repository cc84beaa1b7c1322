"""Which layout onnxruntime keeps a float network's tensors in, and how many nodes a kernel takes.

Convolutions run on channels in blocks where their numbers allow it, what follows them stays in
blocks if it can, and between the two layouts tensors are copied. The rules are those of
onnxruntime's NCHWc transformer (core/optimizer/nchwc_transformer.cc).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxnas.kernels import Kernel

_BLOCK = 16
_STEP = 4
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_FOLLOWS = frozenset(
    {"Add", "Sum", "Mul", "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid"}
)  # fmt: skip
"""Stay in blocks where all they read is."""


_ALIKE = {
    "ResizeNearestCorners": "ResizeNearest", "Squeeze": "Reshape", "Unsqueeze": "Reshape",
}  # fmt: skip
"""Pixels are looked up at no other cost where corners are corners; a view is a view."""


def alike(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels, each called like those that onnxruntime runs in the same way."""
    return [replace(k, op=_ALIKE[k.op]) if k.op in _ALIKE else k for k in kernels]


def columns(kernels: Sequence[Kernel], floating: bool) -> dict[str, list[float]]:
    """Columns of `placement.PLACEMENT` that say something about onnxruntime.

    `steps` are ONNX nodes, `stored_weights` bytes as they are, `rows_in` and `rows_out` bytes that
    are not in blocks, `far_in` and `far_out` bytes that are copied from one layout to the other.

    Args:
        kernels: of the network.
        floating: whether it runs in float; in int8 all tensors have channels last.
    """
    found: dict[str, list[float]] = {
        "steps": [len(k.tensors) for k in kernels],
        "stored_weights": [k.weights * (4 if floating else 1) for k in kernels],
    }
    if not floating:
        return found
    blocks = in_blocks(kernels)
    rows = [
        _layouts(kernel, bool(own), blocks) for kernel, own in zip(kernels, blocks, strict=True)
    ]
    names = ("rows_in", "rows_out", "far_in", "far_out")
    return {**found, **{name: [row[i] for row in rows] for i, name in enumerate(names)}}


def _layouts(
    kernel: Kernel, own: bool, blocks: NDArray[np.bool_]
) -> tuple[float, float, float, float]:
    producers = _distinct(kernel.producer, kernel.oldest_producer)
    consumers = _distinct(kernel.consumer, kernel.last_consumer)
    read = kernel.in_bytes + kernel.operand_bytes
    plain = sum(not blocks[p] for p in producers) / len(producers) if producers else 1.0
    narrow = kernel.op == "Conv" and kernel.in_channels < _BLOCK  # reads plain as it is
    copied_out = any(blocks[c] != own for c in consumers) or (own and kernel.writes_output)
    return (
        read * plain,
        0 if own else kernel.out_bytes,
        0 if own and narrow else read * (plain if own else 1 - plain),
        kernel.out_bytes * copied_out,
    )


def in_blocks(kernels: Sequence[Kernel]) -> NDArray[np.bool_]:
    """Whether each kernel writes its output in blocks of channels."""
    result = np.zeros(len(kernels), bool)
    for i, kernel in enumerate(kernels):
        before = _distinct(kernel.producer, kernel.oldest_producer)
        result[i] = _alone(kernel) or (
            _follows(kernel) and bool(before) and bool(result[before].all())
        )
    return result


def _alone(kernel: Kernel) -> bool:
    """Whether a kernel turns to blocks whatever it reads."""
    each_in, each_out = kernel.in_channels // kernel.groups, kernel.out_channels // kernel.groups
    if kernel.op == "Conv":
        return kernel.in_channels < _BLOCK or kernel.in_channels % _STEP == 0
    if kernel.op == "DepthwiseConv":
        return kernel.out_channels % _STEP == 0 and each_out == 1
    if kernel.op == "GroupedConv":
        return each_in % _BLOCK == each_out % _BLOCK == 0
    return kernel.op in _POOLS and kernel.in_channels % _BLOCK == 0


def _follows(kernel: Kernel) -> bool:
    if kernel.op.startswith("Resize"):
        whole = kernel.out_height % kernel.in_height == kernel.out_width % kernel.in_width == 0
        return whole and not kernel.op.startswith("ResizeCubic")
    if kernel.op == "Concat":
        return kernel.offset_step % _BLOCK == 0 and kernel.out_channels % _BLOCK == 0
    return kernel.op in _FOLLOWS


def _distinct(*indices: int) -> list[int]:
    return sorted({i for i in indices if i >= 0})
