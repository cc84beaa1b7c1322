"""Give a channel group other channels: remove some, add zero ones, or both at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.channel_flow import Ids, channel_slice, constant_ints, given
from onnxnas.coupling import Group, Run, TensorAxis
from onnxnas.graph import values_of
from onnxnas.rewriter import Rewriter, SiteGone

NEW = -1
"""In an index map: a channel that was not there before."""


def padded(group: Group, multiple: int) -> list[int]:
    """The index map that keeps all channels and adds new ones up to a multiple."""
    return [*range(group.size), *[NEW] * (-group.size % multiple)]


def resize_group(rw: Rewriter, group: Group, index_map: Sequence[int]) -> None:
    """Let a group have exactly these channels, in this order, everywhere. Evaluates no weight.

    A new channel gets zero weights from its producers and to its consumers (and a neutral value
    in per-channel constants), so it changes no other value as long as it stays finite. Tensor
    shapes are updated, so the coupling can be found again at once.

    Args:
        group: of `rw.graph` as it is now.
        index_map: for each channel to be, the old channel it was, or `NEW`.

    Raises:
        SiteGone: the group is pinned.
        ValueError: an index is out of range, or nothing is left.
    """
    if group.pins:
        raise SiteGone(group.pins[0])
    if not index_map or not all(NEW <= i < group.size for i in index_map):
        raise ValueError(f"index map must list channels below {group.size}, or {NEW} for new ones")
    kept = np.asarray(index_map, np.int64)
    for use in group.constants:
        old = use.node.inputs[use.input]
        pick = picked(int(old.shape[use.axis]), use.runs, group.size, kept)
        shape = [len(pick) if i == use.axis else int(d) for i, d in enumerate(old.shape)]
        new = rw.constant(old.name, shape, _taking(old, pick, use.axis, use.fill), old.dtype)
        rw.set_input(use.node, use.input, new)
    before = {axis.tensor.name: int(axis.tensor.shape[1]) for axis in group.tensors}
    for axis in group.tensors:
        grown = (len(kept) - group.size) * sum(run.repeat for run in axis.runs)
        shape = list(axis.tensor.shape)
        axis.tensor.shape = [shape[0], before[axis.tensor.name] + grown, *shape[2:]]
    touched: dict[int, Any] = {}
    for axis in group.tensors:
        for node in (*axis.tensor.inputs, *axis.tensor.outputs):
            touched[id(node)] = node
    axes = {axis.tensor.name: axis for axis in group.tensors}
    for node in touched.values():
        _restate(rw, node, axes, before, group.size, len(kept))


def positions(run: Run, channels: Ids) -> Ids:
    """Where some of a group's channels lie in an axis."""
    return (run.start + channels[:, None] * run.repeat + np.arange(run.repeat)).reshape(-1)


def picked(length: int, runs: Sequence[Run], size: int, index_map: Ids) -> Ids:
    """For each position of the resized axis, the old position it takes, or `NEW`."""
    parts, end = [], 0
    for run in runs:
        parts.append(np.arange(end, run.start))
        cells = positions(run, index_map)
        parts.append(np.where(np.repeat(index_map, run.repeat) == NEW, NEW, cells))
        end = run.start + size * run.repeat
    return np.concatenate([*parts, np.arange(end, length)])


def _taking(old: Any, pick: Ids, axis: int, fill: float) -> Any:
    def compute() -> NDArray[Any]:
        values = values_of(old)
        new = np.take(values, np.maximum(pick, 0), axis=axis)
        if (pick == NEW).any():
            np.moveaxis(new, axis, 0)[pick == NEW] = fill
        return new

    return compute


def _restate(
    rw: Rewriter,
    node: Any,
    axes: dict[str, TensorAxis],
    before: dict[str, int],
    size: int,
    new_size: int,
) -> None:
    """Correct what a node itself says about channel counts (groups, sizes, bounds)."""
    x, y = node.inputs[0], node.outputs[0]
    if node.op in ("Conv", "ConvTranspose") and int(node.attrs.get("group", 1)) > 1:
        rw.set_attrs(node, group=int(x.shape[1]))
    elif node.op == "Split" and int(node.attrs.get("axis", 0)) % len(x.shape) == 1:
        _state_ints(rw, node, 1, "split", [int(t.shape[1]) for t in node.outputs])
        rw.set_attrs(node, num_outputs=None)
    elif node.op in ("Reshape", "Expand"):
        _state_count(rw, node, 1, "shape", int(y.shape[1]))
    elif node.op == "Resize":
        _state_count(rw, node, 3, "sizes", int(y.shape[1]))
    elif node.op == "Slice" and x.name in axes:
        found = channel_slice(node, before[x.name])
        if isinstance(found, tuple):
            start, _, place = found
            starts, ends = constant_ints(node, 1, "starts"), constant_ints(node, 2, "ends")
            assert starts is not None
            assert ends is not None
            ahead = [r for r in axes[x.name].runs if r.start + size * r.repeat <= start]
            starts[place] = start + (new_size - size) * sum(run.repeat for run in ahead)
            ends[place] = starts[place] + int(y.shape[1])
            _state_ints(rw, node, 1, "starts", starts)
            _state_ints(rw, node, 2, "ends", ends)


def _state_count(rw: Rewriter, node: Any, index: int, attr: str, count: int) -> None:
    """Write the channel count into a shape that names it (0 and -1 follow by themselves)."""
    values = constant_ints(node, index, attr)
    if values is not None and values[1] > 0 and (node.op != "Expand" or values[1] != 1):
        values[1] = count
        _state_ints(rw, node, index, attr, values)


def _state_ints(rw: Rewriter, node: Any, index: int, attr: str, values: list[int]) -> None:
    """Set integers where the node keeps them: an attribute, or a constant input of any type."""
    old = given(node, index)
    if attr in node.attrs:
        rw.set_attrs(node, **{attr: values})
    elif isinstance(old, gs.Constant):
        new = rw.small_constant(old.name, np.asarray(values, old.dtype))
        rw.set_input(node, index, new)
    elif node.op == "Split":  # equal parts were implied; they are equal no more
        if rw.graph.opset < 13:
            rw.set_attrs(node, **{attr: values})
        else:
            hint = f"{node.outputs[0].name}_{attr}"
            rw.set_input(node, index, rw.small_constant(hint, np.asarray(values, np.int64)))
