"""A network's operators in PyTorch, so that gradients of its weights can be had.

Covers what convolutional networks are made of; anything else is declined by name. Whether the
copy computes what the file says is for the caller to check against onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxnas.errors import UnsupportedError
from onnxnas.graph import values_of
from onnxnas.ops import clip_bounds, is_constant, pair, resolve_pads

Tensor = Any
"""`torch.Tensor`; PyTorch is imported only where a network is really trained."""

_TRAINED = {
    "Conv": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (1,),
    "PRelu": (1,),
    "BatchNormalization": (1, 2),
}
"""Inputs that are trained where they are constants."""


class TorchNetwork:
    """A graph of static shapes that PyTorch runs and differentiates; rows may be stacked.

    Args:
        graph: `gs.Graph` as `onnxnas.graph.static_view` gives it; is not changed.
        device: of PyTorch.

    Attributes:
        weights: what can be trained, by the name of the constant.

    Raises:
        UnsupportedError: an operator is not known, or used in a way that is not.
    """

    def __init__(self, graph: Any, device: Any) -> None:
        import torch

        self.graph = graph
        self.weights: dict[str, Tensor] = {}
        self.constants: dict[str, Tensor] = {}
        for node in graph.nodes:
            if node.op not in _OPERATORS:
                raise UnsupportedError(
                    f"Training cannot go through {node.op} ({node.outputs[0].name})."
                )
            for i, tensor in enumerate(node.inputs):
                if not is_constant(tensor) or not tensor.name:
                    continue
                values = values_of(tensor)
                if values.dtype.kind != "f":
                    continue
                held = torch.tensor(np.array(values, np.float32), device=device)
                if i in _TRAINED.get(node.op, ()):
                    self.weights[tensor.name] = held
                else:
                    self.constants[tensor.name] = held

    def __call__(
        self,
        feeds: Mapping[str, Tensor],
        wanted: Sequence[str],
        weights: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Values of some tensors, with other weights where some are given."""
        values: dict[str, Any] = {**self.constants, **(weights or self.weights), **feeds}
        for node in self.graph.nodes:
            inputs = [values.get(t.name) if t.name else None for t in node.inputs]
            outputs = _OPERATORS[node.op](node, inputs)
            for tensor, value in zip(node.outputs, outputs, strict=False):
                values[tensor.name] = value
        return {name: values[name] for name in wanted}


def _decline(node: Any, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"Training cannot go through {node.op} ({node.outputs[0].name}): {why}."
    )


def _stacked(shape: Sequence[Any], x: Any) -> list[int]:
    """A shape of the file for as many rows as `x` has."""
    sizes = [int(d) for d in shape]
    rows = x.numel() // max(1, int(np.prod(sizes)))
    return [sizes[0] * rows, *sizes[1:]] if sizes else sizes


def _padded(node: Any, x: Any, kernel: tuple[int, int], fill: float) -> Any:
    import torch.nn.functional as functional

    strides = pair(node.attrs.get("strides"), 1)
    dilations = pair(node.attrs.get("dilations"), 1)
    pads = resolve_pads(node.attrs, node.inputs[0].shape, kernel, strides, dilations)
    if isinstance(pads, str):
        raise _decline(node, pads)
    if node.attrs.get("ceil_mode"):
        raise _decline(node, "ceil_mode")
    top, left, bottom, right = pads
    return functional.pad(x, (left, right, top, bottom), value=fill) if any(pads) else x


def _conv(node: Any, inputs: Sequence[Any]) -> list[Any]:
    import torch.nn.functional as functional

    x, weight, bias = [*inputs, None][:3]
    if x.ndim != 4:
        raise _decline(node, "it is not 2-D")
    strides = pair(node.attrs.get("strides"), 1)
    dilations = pair(node.attrs.get("dilations"), 1)
    x = _padded(node, x, (weight.shape[2], weight.shape[3]), 0.0)
    group = int(node.attrs.get("group", 1))
    return [functional.conv2d(x, weight, bias, strides, 0, dilations, group)]


def _gemm(node: Any, inputs: Sequence[Any]) -> list[Any]:
    a, b, c = [*inputs, None][:3]
    a = a.T if node.attrs.get("transA") else a
    b = b.T if node.attrs.get("transB") else b
    y = float(node.attrs.get("alpha", 1.0)) * (a @ b)
    return [y if c is None else y + float(node.attrs.get("beta", 1.0)) * c]


def _pool(node: Any, inputs: Sequence[Any]) -> list[Any]:
    import torch.nn.functional as functional

    kernel, strides = pair(node.attrs["kernel_shape"], 1), pair(node.attrs.get("strides"), 1)
    if node.op == "MaxPool":
        x = _padded(node, inputs[0], kernel, float("-inf"))
        return [functional.max_pool2d(x, kernel, strides, 0, pair(node.attrs.get("dilations"), 1))]
    x = _padded(node, inputs[0], kernel, 0.0)
    y = functional.avg_pool2d(x, kernel, strides)
    if x is not inputs[0] and not node.attrs.get("count_include_pad"):
        inside = _padded(node, inputs[0][:1, :1].detach() * 0 + 1, kernel, 0.0)
        y = y / functional.avg_pool2d(inside, kernel, strides)
    return [y]


def _resize(node: Any, inputs: Sequence[Any]) -> list[Any]:
    import torch.nn.functional as functional

    x, size = inputs[0], node.outputs[0].shape
    mode, how = node.attrs.get("mode", "nearest"), "asymmetric"
    if node.op == "Resize":
        how = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    size = [int(d) for d in size[2:]]
    if mode == "nearest":
        whole = all(s % int(d) == 0 for s, d in zip(size, x.shape[2:], strict=True))
        if not whole:
            raise _decline(node, "nearest neighbours at a broken ratio")
        return [functional.interpolate(x, size, mode="nearest")]
    if mode != "linear" or how not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise _decline(node, f"{mode}, {how}")
    corners = how == "align_corners"
    return [functional.interpolate(x, size, mode="bilinear", align_corners=corners)]


def _reshape(node: Any, inputs: Sequence[Any]) -> list[Any]:
    return [inputs[0].reshape(_stacked(node.outputs[0].shape, inputs[0]))]


def _reduce(node: Any, inputs: Sequence[Any]) -> list[Any]:
    axes = _ints(node, "axes", 1)
    if axes is None:
        raise _decline(node, "it takes the mean over everything")
    return [inputs[0].mean(axes, keepdim=bool(node.attrs.get("keepdims", 1)))]


def _ints(node: Any, name: str, index: int) -> list[int] | None:
    """An attribute of older opsets that became an input."""
    if name in node.attrs:
        return [int(i) for i in node.attrs[name]]
    if len(node.inputs) > index and node.inputs[index].name:
        if not is_constant(node.inputs[index]):
            raise _decline(node, f"its {name} are computed")
        return [int(i) for i in values_of(node.inputs[index]).reshape(-1)]
    return None


def _slice(node: Any, inputs: Sequence[Any]) -> list[Any]:
    x = inputs[0]
    starts, ends = _ints(node, "starts", 1), _ints(node, "ends", 2)
    axes, steps = _ints(node, "axes", 3), _ints(node, "steps", 4)
    assert starts is not None
    assert ends is not None
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = (axes[i] if axes else i), (steps[i] if steps else 1)
        if step < 1:
            raise _decline(node, "it goes backwards")
        index = [slice(None)] * x.ndim
        index[axis % x.ndim] = slice(start, end, step)
        x = x[tuple(index)]
    return [x]


def _split(node: Any, inputs: Sequence[Any]) -> list[Any]:
    axis = int(node.attrs.get("axis", 0))
    return list(inputs[0].split([int(t.shape[axis]) for t in node.outputs], axis))


def _pad(node: Any, inputs: Sequence[Any]) -> list[Any]:
    import torch.nn.functional as functional

    pads = _ints(node, "pads", 1)
    if pads is None or node.attrs.get("mode", "constant") != "constant" or len(node.inputs) > 3:
        raise _decline(node, "it is not by a constant on known sides")
    fill = node.attrs.get("value", 0.0)
    if len(node.inputs) > 2 and node.inputs[2].name:
        fill = float(values_of(node.inputs[2]).reshape(()))
    rank = len(pads) // 2
    sides = [side for i in reversed(range(rank)) for side in (pads[i], pads[rank + i])]
    return [functional.pad(inputs[0], sides, value=fill)]


def _clip(node: Any, inputs: Sequence[Any]) -> list[Any]:
    bounds = clip_bounds(node)
    if bounds is None:
        raise _decline(node, "its bounds are computed")
    return [inputs[0].clamp(*bounds)]


def _normalised(node: Any, inputs: Sequence[Any]) -> list[Any]:
    x, scale, bias, mean, variance = (
        v if i == 0 else v[:, None, None] for i, v in enumerate(inputs)
    )
    return [(x - mean) / (variance + float(node.attrs.get("epsilon", 1e-5))) ** 0.5 * scale + bias]


def _each(function: Callable[[Any, Any], Any]) -> Callable[[Any, Sequence[Any]], list[Any]]:
    """An operator of one input and its attributes."""
    return lambda node, inputs: [function(inputs[0], node.attrs)]


def _two(function: Callable[[Any, Any], Any]) -> Callable[[Any, Sequence[Any]], list[Any]]:
    return lambda node, inputs: [function(inputs[0], inputs[1])]


_OPERATORS: Mapping[str, Callable[[Any, Sequence[Any]], list[Any]]] = {
    "Add": _two(lambda a, b: a + b),
    "AveragePool": _pool,
    "BatchNormalization": _normalised,
    "Cast": _each(lambda x, a: x),  # judged tensors lie before casts to other kinds of numbers
    "Clip": _clip,
    "Concat": lambda node, inputs: [_concat(inputs, int(node.attrs["axis"]))],
    "Conv": _conv,
    "Div": _two(lambda a, b: a / b),
    "Dropout": _each(lambda x, a: x),
    "Elu": _each(lambda x, a: x.clamp(min=0) + a.get("alpha", 1.0) * x.clamp(max=0).expm1()),
    "Exp": _each(lambda x, a: x.exp()),
    "Flatten": _reshape,
    "Gemm": _gemm,
    "GlobalAveragePool": _each(lambda x, a: x.mean((2, 3), keepdim=True)),
    "GlobalMaxPool": _each(lambda x, a: x.amax((2, 3), keepdim=True)),
    "HardSigmoid": _each(lambda x, a: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1)),
    "HardSwish": _each(lambda x, a: x * (x / 6 + 0.5).clamp(0, 1)),
    "Identity": _each(lambda x, a: x),
    "LeakyRelu": _each(lambda x, a: x.clamp(min=0) + a.get("alpha", 0.01) * x.clamp(max=0)),
    "LogSoftmax": _each(lambda x, a: x.log_softmax(int(a.get("axis", -1)))),
    "MatMul": _two(lambda a, b: a @ b),
    "MaxPool": _pool,
    "Mul": _two(lambda a, b: a * b),
    "PRelu": _two(lambda x, slope: x.clamp(min=0) + slope * x.clamp(max=0)),
    "Pad": _pad,
    "ReduceMean": _reduce,
    "Relu": _each(lambda x, a: x.clamp(min=0)),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _each(lambda x, a: x.sigmoid()),
    "Slice": _slice,
    "Softmax": _each(lambda x, a: x.softmax(int(a.get("axis", -1)))),
    "Split": _split,
    "Sqrt": _each(lambda x, a: x.sqrt()),
    "Squeeze": _reshape,
    "Sub": _two(lambda a, b: a - b),
    "Tanh": _each(lambda x, a: x.tanh()),
    "Transpose": _each(lambda x, a: x.permute([int(i) for i in a["perm"]])),
    "Unsqueeze": _reshape,
    "Upsample": _resize,
}


def _concat(inputs: Sequence[Any], axis: int) -> Any:
    import torch

    return torch.cat(list(inputs), axis)
