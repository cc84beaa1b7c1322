"""Channels that hold one value whatever the input is: found by following the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.channel_flow import channel_slice, given
from onnxnas.graph import is_static, values_of
from onnxnas.ops import clip_bounds, conv

Values = NDArray[np.float64]
"""One value per channel; NaN where it is not known to be constant."""


def constant_channels(graph: Any, opaque: frozenset[str]) -> dict[str, Values]:
    """For every tensor with channels: the value each channel has everywhere, NaN if it varies.

    A channel is constant where its filter is all zero, or reads constant channels only (and no
    border of zero padding lets the constant through in part). Reads every weight.

    Args:
        graph: `gs.Graph` in topological order, with inferred shapes.
        opaque: tensors written by nodes whose effect on channels is not understood.
    """
    known: dict[str, Values] = {}
    for node in graph.nodes:
        for index, tensor in enumerate(node.outputs):
            if tensor.shape is None or len(tensor.shape) < 2 or not is_static(tensor.shape[1]):
                continue
            found = None
            if tensor.name not in opaque:
                with np.errstate(all="ignore"):
                    found = _values(node, index, known)
            count = int(tensor.shape[1])
            values = np.full(count, np.nan)
            if found is not None:
                values[:] = np.where(np.isfinite(found), found, np.nan)
            known[tensor.name] = values
    return known


def pads_border(node: Any) -> bool:
    """Whether a convolution's sums take in fewer inputs near the border."""
    view = conv(node)
    return isinstance(view, str) or any(view.pads)


def _values(node: Any, index: int, known: Mapping[str, Values]) -> Values | None:
    x, attrs = node.inputs[0], node.attrs
    v = _operand(x, len(node.outputs[0].shape), known)
    count = int(node.outputs[index].shape[1])
    if node.op in ("Conv", "ConvTranspose"):
        return _conv(node, v)
    if node.op in ("Gemm", "MatMul"):
        return _gemm(node, v)
    if node.op in _BINARY:
        other = _operand(node.inputs[1], len(node.outputs[0].shape), known)
        return _BINARY[node.op](v, other) if len(node.inputs) == 2 else None
    if node.op in _UNARY:
        return _UNARY[node.op](node, v)
    if node.op == "BatchNormalization":
        scale, bias, mean, var = (values_of(t).astype(np.float64) for t in node.inputs[1:5])
        slope = scale / np.sqrt(var + float(attrs.get("epsilon", 1e-5)))
        return np.where(scale == 0, bias, (v - mean) * slope + bias)
    if node.op == "AveragePool":
        # Its own padding is left out of the average, unless it says that zeros count.
        return np.where(v == 0, v, np.nan) if attrs.get("count_include_pad") else v
    if node.op == "Pad":
        return _pad(node, v)
    if node.op in _KEEP:
        return np.repeat(v, count // len(v))
    if node.op == "Concat":
        parts = [_operand(t, len(node.outputs[0].shape), known) for t in node.inputs]
        if int(attrs["axis"]) % len(x.shape) == 1:
            return np.concatenate(parts)
        return np.where(np.all([part == v for part in parts], axis=0), v, np.nan)
    if node.op == "Split":
        along = int(attrs.get("axis", 0)) % len(x.shape) == 1
        start = sum(int(t.shape[1]) for t in node.outputs[:index]) if along else 0
        return v[start : start + count]
    if node.op == "Slice":
        cut = channel_slice(node, len(v))
        return v[cut[0] : cut[1]] if isinstance(cut, tuple) else v
    return None


_KEEP = frozenset(
    {
        "Dropout", "Expand", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity",
        "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "Reshape", "Resize", "Squeeze",
        "Transpose", "Unsqueeze", "Upsample",
    }
)  # fmt: skip


def _operand(tensor: Any, rank: int, known: Mapping[str, Values]) -> Values:
    """Values per channel of a variable or a constant as it is broadcast to `rank` dimensions."""
    if not isinstance(tensor, gs.Constant):
        count = tensor.shape[1] if tensor.shape is not None and len(tensor.shape) > 1 else 1
        unknown = np.full(count if is_static(count) else 1, np.nan)
        return known.get(tensor.name, unknown)
    axis = len(tensor.shape) - rank + 1
    count = int(tensor.shape[axis]) if axis >= 0 else 1
    if math.prod(tensor.shape) != count:
        return np.full(count, np.nan)
    return values_of(tensor).astype(np.float64).reshape(-1)


def _linear(weight: Values, v: Values, border: bool) -> Values:
    """Sums over [out, in, ...] weights; unknown where a weight meets what is not constant."""
    usable = v == 0 if border else ~np.isnan(v)
    flat = weight.reshape(*weight.shape[:2], -1)
    varies = ((flat != 0).any(2) & ~usable).any(1)
    sums = flat.sum(2) @ np.where(usable, v, 0.0)
    return np.where(varies, np.nan, sums)


def _conv(node: Any, v: Values) -> Values:
    weight = values_of(node.inputs[1]).astype(np.float64)
    bias = given(node, 2)
    group, border = int(node.attrs.get("group", 1)), pads_border(node)
    if group > 1:  # depthwise, or it would be opaque
        weight = weight.reshape(-1, *weight.shape[2:])
        v = np.repeat(v, len(weight) // group)
        usable = v == 0 if border else ~np.isnan(v)
        flat = weight.reshape(len(weight), -1)
        out = np.where(usable, flat.sum(1) * v, np.where((flat != 0).any(1), np.nan, 0.0))
    else:
        if node.op == "ConvTranspose":
            weight = np.moveaxis(weight, 0, 1)
        out = _linear(weight, v, border)
    return out if bias is None else out + values_of(bias)


def _gemm(node: Any, v: Values) -> Values:
    weight = values_of(node.inputs[1]).astype(np.float64)
    weight = weight if node.attrs.get("transB") else weight.T
    out = _linear(weight[:, :, None], v, False) * float(node.attrs.get("alpha", 1.0))
    bias = given(node, 2)
    if bias is None:
        return out
    if math.prod(bias.shape) not in (1, len(out)):
        return np.full(len(out), np.nan)
    return out + float(node.attrs.get("beta", 1.0)) * values_of(bias).reshape(-1)


def _pad(node: Any, v: Values) -> Values:
    if node.attrs.get("mode", "constant") != "constant":
        return v
    value, tensor = float(node.attrs.get("value", 0.0)), given(node, 2)
    if tensor is not None:
        if not isinstance(tensor, gs.Constant):
            return np.full(len(v), np.nan)
        value = float(values_of(tensor).reshape(()))
    return np.where(v == value, v, np.nan)


def _multiply(a: Values, b: Values) -> Values:
    return np.where((a == 0) | (b == 0), 0.0, a * b)


def _prelu(v: Values, slope: Values) -> Values:
    return np.where(v >= 0, v, v * slope)


_BINARY: Mapping[str, Callable[[Values, Values], Values]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": _multiply,
    "Div": np.divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "Pow": np.power,
    "PRelu": _prelu,
}


def _clip(node: Any, v: Values) -> Values:
    bounds = clip_bounds(node)
    return np.full(len(v), np.nan) if bounds is None else np.clip(v, *bounds)


def _hard_sigmoid(node: Any, v: Values) -> Values:
    alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    return np.clip(alpha * v + beta, 0, 1)


def _leaky_relu(node: Any, v: Values) -> Values:
    return np.where(v >= 0, v, v * float(node.attrs.get("alpha", 0.01)))


def _sigmoid(v: Values) -> Values:
    return 1 / (1 + np.exp(-v))


_UNARY: Mapping[str, Callable[[Any, Values], Values]] = {
    "Abs": lambda _, v: np.abs(v),
    "Clip": _clip,
    "Exp": lambda _, v: np.exp(v),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _, v: v * np.clip(v / 6 + 0.5, 0, 1),
    "LeakyRelu": _leaky_relu,
    "Neg": lambda _, v: -v,
    "Relu": lambda _, v: np.maximum(v, 0),
    "Sigmoid": lambda _, v: _sigmoid(v),
    "Softplus": lambda _, v: np.log1p(np.exp(v)),
    "Sqrt": lambda _, v: np.sqrt(v),
    "Tanh": lambda _, v: np.tanh(v),
}
