"""What each operator does to channels: one small function per kind, listed at the end.

A rule sets the layouts of the node's outputs and says what its constants are indexed by, or
returns why it cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxnas.channel_flow import Flow, Layout, Rule, channel_slice, constant_ints, given
from onnxnas.graph import is_static, values_of
from onnxnas.ops import UNARY_ELEMENTWISE


def _bad_weight(flow: Flow, node: Any, index: int) -> str | None:
    weight = node.inputs[index]
    if not isinstance(weight, gs.Constant):
        return "has a computed weight"
    return f"shares its weight {weight.name!r}" if flow.shared(weight) else None


def _bad_vectors(node: Any, first: int) -> str | None:
    if all(isinstance(t, gs.Constant) for t in node.inputs[first:] if t.name):
        return None
    return "has computed parameters"


def _conv(flow: Flow, node: Any) -> str | None:
    x, layout = node.inputs[0], flow.of(node.inputs[0])
    bad = _bad_weight(flow, node, 1) or _bad_vectors(node, 2)
    if bad or layout is None:
        return bad or f"reads {x.name!r}, whose channel count is unknown"
    transposed = node.op == "ConvTranspose"
    shape, group = [int(d) for d in node.inputs[1].shape], int(node.attrs.get("group", 1))
    if group == 1:
        y = flow.fresh(shape[1] if transposed else shape[0])
        flow.use(node, 1, 0 if transposed else 1, layout, "consumes")
        flow.use(node, 1, 1 if transposed else 0, y, "produces")
    elif group == layout.length and shape[1] == 1:
        y = layout.expanded(shape[0] // group)
        flow.use(node, 1, 0, y, "per-channel")
    else:
        return "is a grouped convolution, which ties channels in blocks"
    if given(node, 2) is not None:
        flow.use(node, 2, 0, y, "produces" if group == 1 else "per-channel")
    flow.put(node.outputs[0], y)
    return None


def _gemm(flow: Flow, node: Any) -> str | None:
    x, layout = node.inputs[0], flow.of(node.inputs[0])
    bad = _bad_weight(flow, node, 1) or _bad_vectors(node, 2)
    if bad or layout is None:
        return bad or f"reads {x.name!r}, whose channel count is unknown"
    weight = node.inputs[1]
    if node.attrs.get("transA") or len(x.shape) != 2 or len(weight.shape) != 2:
        return "does not multiply [batch, channels] with a weight matrix"
    into = 1 if node.attrs.get("transB") else 0
    y = flow.fresh(int(weight.shape[1 - into]))
    flow.use(node, 1, into, layout, "consumes")
    flow.use(node, 1, 1 - into, y, "produces")
    bias = given(node, 2)
    if bias is not None and bias.shape and bias.shape[-1] != 1:
        flow.use(node, 2, len(bias.shape) - 1, y, "produces")
    flow.put(node.outputs[0], y)
    return None


def _batch_norm(flow: Flow, node: Any) -> str | None:
    layout = flow.of(node.inputs[0])
    bad = _bad_vectors(node, 1)
    if bad or layout is None or node.attrs.get("training_mode") or len(node.outputs) > 1:
        return bad or "is not a plain inference BatchNormalization"
    for index, fill in ((1, 0.0), (2, 0.0), (3, 0.0), (4, 1.0)):  # scale, bias, mean, variance
        flow.use(node, index, 0, layout, "per-channel", fill)
    flow.put(node.outputs[0], layout)
    return None


_FILLS = {("Div", 1): 1.0, ("Pow", 0): 1.0, ("Pow", 1): 1.0}


def _elementwise(flow: Flow, node: Any) -> str | None:
    y = node.outputs[0]
    if y.shape is None or len(y.shape) < 2 or not is_static(y.shape[1]):
        return "has an output of unknown shape"
    channels, layouts, constants, broadcast = int(y.shape[1]), [], [], []
    for index, tensor in enumerate(node.inputs):
        axis = len(tensor.shape) - len(y.shape) + 1 if tensor.shape is not None else None
        layout = flow.of(tensor)
        if axis is None:
            return f"reads {tensor.name!r}, whose shape is unknown"
        width = tensor.shape[axis] if axis >= 0 else 1
        if isinstance(tensor, gs.Constant):
            if width != 1:
                constants.append((index, axis))
        elif layout is not None and axis != 1:
            return f"aligns the channels of {tensor.name!r} with another dimension"
        elif layout is not None and width == channels:
            layouts.append(layout)
        elif width == 1:
            broadcast.append(layout)
        else:
            return f"reads {tensor.name!r}, whose channel count is unknown"
    if not layouts or not all(flow.tie(layouts[0], other) for other in layouts[1:]):
        return "joins tensors whose channels do not correspond"
    for layout in broadcast:
        flow.pin(layout, f"{node.op} {y.name!r} spreads it over channels")
    for index, axis in constants:
        fill = _FILLS.get((node.op, index), 0.0)
        flow.use(node, index, axis, layouts[0], "per-channel", fill)
    if _unsafe_at_zero(node):
        reason = f"{node.op} {y.name!r} need not be finite where a new channel is zero"
        flow.unpaddable.append((layouts[0].ids, reason))
    flow.put(y, layouts[0])
    return None


def _unsafe_at_zero(node: Any) -> bool:
    """Whether a new channel may become infinite or NaN here, which zero weights do not stop."""
    if node.op == "Div":
        return not isinstance(node.inputs[1], gs.Constant)
    if node.op == "Pow":
        power = node.inputs[1]
        if not isinstance(power, gs.Constant) or math.prod(power.shape) != 1:
            return True
        value = float(values_of(power).reshape(()))
        return value < 0 or value != int(value)
    return node.op in ("Log", "Reciprocal", "Sqrt")


def _same(flow: Flow, node: Any) -> str | None:
    """Every channel stays what it was; a second output would not (masks, indices)."""
    layout = flow.of(node.inputs[0])
    if layout is None or any(t.name for t in node.outputs[1:]):
        return "has an input or outputs without plain channels"
    if _unsafe_at_zero(node):
        reason = f"{node.op} {node.outputs[0].name!r} is not finite where a new channel is zero"
        flow.unpaddable.append((layout.ids, reason))
    flow.put(node.outputs[0], layout)
    return None


def _over_axes(flow: Flow, node: Any) -> str | None:
    """Reductions, Squeeze, Unsqueeze: fine while all their axes lie behind the channels."""
    shape = (node.outputs if node.op == "Unsqueeze" else node.inputs)[0].shape
    axes = constant_ints(node, 1, "axes")
    if shape is None or not axes or any(a % len(shape) < 2 for a in axes):
        return "is not over spatial axes only"
    return _same(flow, node)


def _flatten(flow: Flow, node: Any) -> str | None:
    x, layout = node.inputs[0], flow.of(node.inputs[0])
    if layout is None or int(node.attrs.get("axis", 1)) % len(x.shape) != 1:
        return "does not keep the batch dimension"
    return _expand_spatial(flow, node, layout)


def _expand_spatial(flow: Flow, node: Any, layout: Layout) -> str | None:
    spatial = node.inputs[0].shape[2:]
    if not all(is_static(d) for d in spatial):
        return "flattens an unknown spatial size"
    flow.put(node.outputs[0], layout.expanded(math.prod(spatial)))
    return None


def _reshape(flow: Flow, node: Any) -> str | None:
    x, layout = node.inputs[0], flow.of(node.inputs[0])
    target = constant_ints(node, 1, "shape")
    if layout is None or target is None or len(target) < 2:
        return "has a computed shape or no channels"
    if node.attrs.get("allowzero") or not all(is_static(d) for d in x.shape[2:]):
        return "has a spatial size that is unknown"
    per_sample = layout.length * math.prod(x.shape[2:])
    tail = [x.shape[i] if d == 0 else d for i, d in enumerate(target) if i]
    if -1 in tail:
        rest = -math.prod(tail)
        tail = [per_sample // rest if d == -1 and rest else d for d in tail]
    kept = target[0] in (0, -1) or target[0] == x.shape[0]
    if not kept or math.prod(tail) != per_sample:
        return "does not keep the batch dimension"
    if tail[0] == layout.length:
        flow.put(node.outputs[0], layout)
        return None
    return "rearranges channels" if len(tail) > 1 else _expand_spatial(flow, node, layout)


def _concat(flow: Flow, node: Any) -> str | None:
    y = node.outputs[0]
    if y.shape is None or any(t.shape is None or len(t.shape) < 2 for t in node.inputs):
        return "has an input of unknown shape"
    along_channels = int(node.attrs["axis"]) % len(y.shape) == 1
    layouts = []
    for tensor in node.inputs:
        layout = flow.of(tensor)
        if layout is None:
            if not isinstance(tensor, gs.Constant) or not along_channels:
                return f"reads {tensor.name!r}, which has no known channels"
            layout = flow.fresh(int(tensor.shape[1]))
            flow.pin(layout, f"{tensor.name!r} is a constant")
        layouts.append(layout)
    if along_channels:
        ids = np.concatenate([layout.ids for layout in layouts])
        flow.put(y, Layout.of(ids, np.concatenate([layout.repeats for layout in layouts])))
        return None
    if not all(flow.tie(layouts[0], other) for other in layouts[1:]):
        return "joins tensors whose channels do not correspond"
    flow.put(y, layouts[0])
    return None


def _split(flow: Flow, node: Any) -> str | None:
    layout = flow.of(node.inputs[0])
    if layout is None:
        return "reads a tensor without known channels"
    pieces: list[Layout | None] = [layout] * len(node.outputs)
    if int(node.attrs.get("axis", 0)) % len(node.inputs[0].shape) == 1:
        if not all(t.shape is not None and is_static(t.shape[1]) for t in node.outputs):
            return "has parts of unknown size"
        ends = np.cumsum([0, *(int(t.shape[1]) for t in node.outputs)])
        pieces = [layout.cut(int(a), int(b)) for a, b in pairwise(ends)]
        if ends[-1] != layout.length or any(piece is None for piece in pieces):
            return "cuts a repeated channel in two"
    for tensor, piece in zip(node.outputs, pieces, strict=True):
        assert piece is not None
        flow.put(tensor, piece)
    return None


def _slice(flow: Flow, node: Any) -> str | None:
    layout = flow.of(node.inputs[0])
    if layout is None:
        return "reads a tensor without known channels"
    found = channel_slice(node, layout.length)
    if isinstance(found, str):
        return found
    piece = layout if found is None else layout.cut(found[0], found[1])
    if piece is None or not piece.length:
        return "cuts a repeated channel in two"
    flow.put(node.outputs[0], piece)
    return None


def _pad(flow: Flow, node: Any) -> str | None:
    x, pads, axes = node.inputs[0], constant_ints(node, 1, "pads"), constant_ints(node, 3, "axes")
    if pads is None or x.shape is None or (given(node, 3) is not None and axes is None):
        return "has computed pads"
    axes = axes if axes is not None else list(range(len(x.shape)))
    at = [i for i, a in enumerate(axes) if a % len(x.shape) == 1]
    if any(pads[i] or pads[i + len(axes)] for i in at):
        return "pads the channel axis"
    return _same(flow, node)


def _resize(flow: Flow, node: Any) -> str | None:
    """Resize, Upsample and Expand: the channel count may be stated, but must not change."""
    layout, y = flow.of(node.inputs[0]), node.outputs[0]
    if layout is None or y.shape is None or len(y.shape) < 2 or y.shape[1] != layout.length:
        return "has channels of unknown or changed number"
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "crops with a region that may span channels"
    if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch" or node.attrs.get("axes"):
        return "has axes or an aspect policy that is not handled"
    if any(t.name and not isinstance(t, gs.Constant) for t in node.inputs[1:]):
        return "has a computed size"
    stated = constant_ints(node, 1, "shape") if node.op == "Expand" else None
    if len(node.inputs[0].shape) != len(y.shape) or (stated and len(stated) != len(y.shape)):
        return "adds dimensions"
    return _same(flow, node)


def _transpose(flow: Flow, node: Any) -> str | None:
    perm: Sequence[int] = node.attrs.get("perm") or ()
    return _same(flow, node) if len(perm) > 1 and perm[1] == 1 else "moves the channel axis"


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(UNARY_ELEMENTWISE, _same),
    **dict.fromkeys(("Cast", "MaxPool", "AveragePool", "LpPool"), _same),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _same),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum"), _elementwise),
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2"), _over_axes),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _over_axes),
    **dict.fromkeys(("Resize", "Upsample", "Expand"), _resize),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("Gemm", "MatMul"), _gemm),
    "PRelu": _elementwise,
    "BatchNormalization": _batch_norm,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Transpose": _transpose,
}
