"""Typed views of the operators rewrites care about: one reader of attributes for everybody."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.errors import UnsupportedError
from onnxnas.graph import is_static, values_of

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})

UNARY_ELEMENTWISE = frozenset(
    {
        "Abs", "Ceil", "Celu", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
        "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round",
        "Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
        "Dropout",
    }
)  # fmt: skip
"""Operators that map each element alone, the same way in every channel."""


@dataclass(frozen=True)
class Conv:
    """A 2-D convolution with constant weights, as a rewrite needs to see it.

    Attributes:
        node: the gs.Node.
        x, y: input and output variables.
        weight: constant [out_channels, in_channels / group, kh, kw].
        bias: constant [out_channels] or None.
        pads: top, left, bottom, right, with auto_pad resolved.
    """

    node: Any
    x: Any
    y: Any
    weight: Any
    bias: Any | None
    group: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def out_channels(self) -> int:
        return int(self.weight.shape[0])

    @property
    def in_channels(self) -> int:
        return int(self.weight.shape[1]) * self.group

    @property
    def depthwise(self) -> bool:
        """Each input channel is convolved on its own (a channel multiplier is allowed)."""
        return self.group > 1 and int(self.weight.shape[1]) == 1

    @property
    def pointwise(self) -> bool:
        """1x1, stride 1, no padding, one group."""
        return (
            self.kernel == (1, 1)
            and self.strides == (1, 1)
            and self.group == 1
            and not any(self.pads)
        )


def conv(node: Any) -> Conv | str:
    """View a node as a 2-D convolution with constant weights, or say why it is not one."""
    if node.op != "Conv" or (node.domain or "") not in STANDARD_DOMAINS:
        return "is not a Conv"
    weight = node.inputs[1]
    if not isinstance(weight, gs.Constant):
        return "its weight is not a constant"
    if len(weight.shape) != 4:
        return f"is a {len(weight.shape) - 2}-D convolution"
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if bias is not None and not isinstance(bias, gs.Constant):
        return "its bias is not a constant"
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    strides = pair(node.attrs.get("strides"), 1)
    dilations = pair(node.attrs.get("dilations"), 1)
    pads = resolve_pads(node.attrs, node.inputs[0].shape, kernel, strides, dilations)
    if isinstance(pads, str):
        return pads
    group = int(node.attrs.get("group", 1))
    return Conv(
        node, node.inputs[0], node.outputs[0], weight, bias, group, kernel, strides, dilations, pads
    )


def pair(value: Sequence[int] | None, default: int) -> tuple[int, int]:
    """A two-element attribute, or its default twice."""
    if not value:
        return default, default
    return int(value[0]), int(value[1])


def resolve_pads(
    attrs: Any,
    x_shape: Sequence[Any] | None,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
) -> tuple[int, int, int, int] | str:
    """Explicit (top, left, bottom, right) padding of a conv or pool, or why it is unknown.

    SAME_UPPER and SAME_LOWER depend on the input size (ONNX operator specification of Conv).
    """
    mode = attrs.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = [int(p) for p in attrs.get("pads") or (0, 0, 0, 0)]
        return pads[0], pads[1], pads[2], pads[3]
    if mode == "VALID":
        return 0, 0, 0, 0
    if x_shape is None or len(x_shape) != 4 or not all(isinstance(d, int) for d in x_shape[2:]):
        return f"auto_pad={mode} on an input of unknown size"
    ends = []
    for size, k, s, d in zip(x_shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        small, large = total // 2, total - total // 2
        ends.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def clip_bounds(node: Any) -> tuple[float, float] | None:
    """Bounds of a Clip (attributes before opset 11, inputs since), None where not constant."""
    low, high = -np.inf, np.inf
    if "min" in node.attrs or "max" in node.attrs:
        return float(node.attrs.get("min", low)), float(node.attrs.get("max", high))
    bounds = [low, high]
    for i, tensor in enumerate(node.inputs[1:3]):
        if isinstance(tensor, gs.Constant):
            bounds[i] = float(values_of(tensor).reshape(()))
        elif tensor.name:
            return None
    return bounds[0], bounds[1]


def sole_consumer(tensor: Any, graph: Any) -> Any | None:
    """The one node that reads a tensor, or None: several readers, or a graph output."""
    if any(tensor is out for out in graph.outputs):
        return None
    readers = tensor.outputs
    if len(readers) != 1 or sum(1 for t in readers[0].inputs if t is tensor) != 1:
        return None
    return readers[0]


def is_constant(tensor: Any) -> bool:
    """Whether a tensor is known before the network runs."""
    return isinstance(tensor, gs.Constant)


def stored_bytes(tensor: Any) -> int:
    """Bytes of one value as accelerators store it: int8 activations, integers at most int32."""
    dtype = np.dtype(np.float32 if tensor.dtype is None else tensor.dtype)
    return 1 if np.issubdtype(dtype, np.floating) else min(4, dtype.itemsize)


def producer(tensor: Any) -> Any | None:
    """The node that writes a tensor, or None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def macs(node: Any) -> int:
    """Multiply-accumulates of a node in a static view; 0 for data movement.

    Also 0 behind an operator of unknown shape: such a node has no cost either, with that reason.
    """
    known = [t.shape for t in (*node.inputs[:2], *node.outputs[:1])]
    if node.op not in _MAC_OPS or not all(s is not None and all(map(is_static, s)) for s in known):
        return 0
    x, w, y = known
    if node.op == "Conv":
        return _volume(y) * _volume(w[1:])
    if node.op == "ConvTranspose":
        return _volume(x) * _volume(w[1:])
    return _volume(y) * int(x[0 if node.attrs.get("transA") else -1])


_MAC_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def _volume(shape: Sequence[int]) -> int:
    return math.prod(int(d) for d in shape)


def merge_groups(weight: NDArray[Any], group: int, new_group: int) -> NDArray[Any]:
    """Weights of the same convolution written with fewer groups: zeros where channels do not meet.

    Args:
        weight: [out_channels, in_channels / group, ...].
        group: number of groups of `weight`.
        new_group: number of groups wanted; divides `group`.

    Returns:
        A new array [out_channels, in_channels / new_group, ...].
    """
    per_group, merged = weight.shape[1], group // new_group
    result = np.zeros((weight.shape[0], per_group * merged, *weight.shape[2:]), weight.dtype)
    for index, (new, old) in enumerate(
        zip(np.split(result, group), np.split(weight, group), strict=True)
    ):
        start = index % merged * per_group
        new[:, start : start + per_group] = old
    return result


def require_shapes(graph: Any) -> None:
    """Refuse a graph in which the shape of a node's output is not known.

    Raises:
        UnsupportedError: names the first, e.g. behind an operator of another domain.
    """
    for node in graph.nodes:
        if node.outputs and node.outputs[0].shape is None:
            raise UnsupportedError(
                f"The shape of {node.outputs[0].name!r}, which {node.op} writes, is not known: "
                "costs cannot be predicted."
            )
