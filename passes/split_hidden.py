"""A block's wide hidden map computed in parts, one after another, so that each fits fast memory.

An inverted bottleneck is a sum over its hidden channels, and where its feature maps are large only
the hidden one does not fit beside what the accelerator works on: it is written to slow memory and
read back. Half of the channels at a time, expand to project, give the same sum. Parts are added, or
put together in front of `project` where the depthwise convolution has made them small. The
arithmetic is the same; what is read and written for it is not, and whether that pays, the cost
model says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.cost import Target
from onnxnas.graph import is_static, values_of
from onnxnas.ops import Conv, conv, sole_consumer
from onnxnas.pass_contract import Pass, Why
from onnxnas.pointwise import pointwise_after
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.sites import Choice, Site


@dataclass(frozen=True)
class Hidden:
    """What lies between two convolutions of one group.

    Attributes:
        first: writes the hidden channels.
        steps: depthwise convolutions on them, each with the elementwise nodes in front of it.
        run: elementwise nodes in front of `last`.
        last: reads them.
    """

    first: Conv
    steps: tuple[tuple[tuple[Any, ...], Conv], ...]
    run: tuple[Any, ...]
    last: Conv

    @property
    def nodes(self) -> list[Any]:
        """Everything that is computed in parts, in order."""
        inner = [n for run, depthwise in self.steps for n in (*run, depthwise.node)]
        return [self.first.node, *inner, *self.run]

    @property
    def shrinks(self) -> bool:
        """Whether the depthwise convolutions leave less to keep than they were given."""
        return any(math.prod(depthwise.strides) > 1 for _, depthwise in self.steps)


@dataclass(frozen=True)
class SplitHidden(Pass):
    """Offers hidden maps that are larger than what goes in and what comes out, in 2 to 4 parts."""

    name: ClassVar[str] = "split-hidden"
    summary: ClassVar[str] = "Compute a block's hidden map in parts that fit fast memory."
    order: ClassVar[int] = 65
    parts: tuple[int, ...] = (2, 3, 4)

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        step = max(target.channel_multiples)
        for node in graph.nodes:
            first = conv(node)
            if isinstance(first, str) or first.group != 1:
                continue
            found = _hidden(first, graph)
            if isinstance(found, str):
                why.miss(node, found)
                continue
            parts = [n for n in self.parts if len(_bounds(first.out_channels, n, step)) == n]
            if not _largest(found):
                why.miss(node, "what goes in or comes out is as large as what is between")
            elif not parts:
                why.miss(node, f"{first.out_channels} channels make no two parts of {step}")
            else:
                yield _site(self.name, found, parts, step)

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        first = conv(rw.node(site.tensor))
        found = first if isinstance(first, str) else _hidden(first, rw.graph)
        if isinstance(found, str):
            raise SiteGone(f"{site.tensor!r} {found}")
        # The width is read again here: a pass of earlier order may have left fewer parts, or one.
        bounds = _bounds(found.first.out_channels, choice.params["parts"], site.params["step"])
        if len(bounds) < 2:
            return
        ends = [_part(rw, found, i, *span) for i, span in enumerate(bounds, 1)]
        last, y = found.last, found.last.y
        if choice.params["concat"]:
            hint = f"{site.tensor}/parts"
            whole = rw.add_node("Concat", ends, {"axis": 1}, hint=hint, dtype=_type(last.x))
            rw.set_input(last.node, 0, whole)
            for node in found.nodes:
                rw.remove_node(node)
            return
        pairs = enumerate(zip(ends, bounds, strict=True), 1)
        total, *terms = [_layer(rw, last, x, span, i) for i, (x, span) in pairs]
        for node in (*found.nodes, last.node):
            rw.remove_node(node)
        for term in terms[:-1]:
            total = rw.add_node("Add", [total, term], hint=f"{y.name}/sum", dtype=_type(y))
        rw.add_node("Add", [total, terms[-1]], output=y)


def _hidden(first: Conv, graph: Any) -> Hidden | str:
    """What a convolution's channels go through up to the next one of one group, or why not."""
    steps: list[tuple[tuple[Any, ...], Conv]] = []
    tensor = first.y
    while True:
        run, end = pointwise_after(tensor, graph)
        node = sole_consumer(end, graph)
        if node is None:
            return "is read by several, or an output"
        view = conv(node)
        if isinstance(view, str) or view.x is not end:
            return f"goes into {node.op}, which is no convolution of known weights"
        if view.group == 1:
            return Hidden(first, tuple(steps), run, view)
        if not view.depthwise or view.out_channels != view.group:
            return "goes into a grouped convolution"
        steps.append((run, view))
        tensor = view.y


def _largest(found: Hidden) -> bool:
    """Whether the hidden map holds more than the input and the output; by channels if unknown."""
    ends = (found.first.y, found.first.x, found.last.y)
    channels = found.first.out_channels, found.first.in_channels, found.last.out_channels
    sizes = [t.shape[2:] if t.shape is not None else [None] for t in ends]
    known = all(is_static(d) for size in sizes for d in size)
    areas = [math.prod(size) if known else 1 for size in sizes]
    hidden, *others = (c * a for c, a in zip(channels, areas, strict=True))
    return bool(hidden > max(others))


def _bounds(width: int, parts: int, step: int) -> list[tuple[int, int]]:
    """Where each part begins and ends, in whole steps as equal as can be; fewer if it is narrow."""
    units = -(-width // step)
    parts = min(parts, units)
    edges = [min(width, step * (units * i // parts)) for i in range(parts + 1)]
    return list(pairwise(edges))


def _site(name: str, found: Hidden, parts: Sequence[int], step: int) -> Site:
    concat = found.shrinks
    how = "put together" if concat else "added"
    choices = tuple(
        Choice(
            f"{'concat' if concat else 'add'}-{n}",
            {"parts": n, "concat": concat},
            note=f"{found.first.out_channels} hidden channels in {n} parts, {how}",
        )
        for n in parts
    )
    # Neither the hidden width nor what goes in is claimed: both may get smaller before.
    inner = {t.name for node in found.nodes[1:] for t in node.outputs}
    claims = {f"node:{name}" for name in inner}
    claims |= {f"weights:{layer.y.name}" for layer in (found.first, found.last)}
    return Site(name, found.first.y.name, choices, frozenset(claims), {"step": step})


def _part(rw: Rewriter, found: Hidden, number: int, low: int, high: int) -> Any:
    """Some of the hidden channels, up to the last elementwise node; the tensor they end in."""
    span, width = (low, high), found.first.out_channels
    y = _layer(rw, found.first, found.first.x, span, number)
    for run, depthwise in found.steps:
        y = _layer(rw, depthwise, _follow(rw, run, y, span, width, number), span, number)
    return _follow(rw, found.run, y, span, width, number)


def _layer(rw: Rewriter, view: Conv, x: Any, span: tuple[int, int], number: int) -> Any:
    """A convolution of some of the hidden channels, which it writes, or reads and sums up."""
    low, high = span
    reads = view.group == 1 and x is not view.x
    shape, name = list(view.weight.shape), f"{view.y.name}/part_{number}"
    shape[1 if reads else 0] = high - low
    weight = rw.constant(
        f"{name}/weight", shape, partial(_some, view.weight, int(reads), span), view.weight.dtype
    )
    inputs = [x, weight]
    if view.bias is not None and not reads:
        compute = partial(_some, view.bias, 0, span)
        inputs.append(rw.constant(f"{name}/bias", (high - low,), compute, view.bias.dtype))
    elif view.bias is not None and number == 1:
        inputs.append(view.bias)
    attrs = {**view.node.attrs, "group": 1 if view.group == 1 else high - low}
    return rw.add_node("Conv", inputs, attrs, hint=name, dtype=_type(view.y))


def _follow(
    rw: Rewriter, run: Sequence[Any], x: Any, span: tuple[int, int], width: int, number: int
) -> Any:
    """Elementwise nodes again, on some of the channels."""
    if not run:
        return x
    made = {id(t) for node in run for t in node.outputs}
    now: dict[int, Any] = {}
    for node in run:
        inputs = []
        for tensor in node.inputs:
            if id(tensor) in made:
                inputs.append(now[id(tensor)])
            elif isinstance(tensor, gs.Constant):
                inputs.append(_cut(rw, node, tensor, span, width, number))
            else:
                inputs.append(x if tensor.name else tensor)
        y = node.outputs[0]
        now[id(y)] = rw.add_node(
            node.op, inputs, node.attrs, hint=f"{y.name}/part_{number}", dtype=_type(y)
        )
    return now[id(run[-1].outputs[0])]


def _cut(
    rw: Rewriter, node: Any, tensor: Any, span: tuple[int, int], width: int, number: int
) -> Any:
    """A constant of an elementwise node for some of the channels; one for all stays."""
    shape = [int(d) for d in tensor.shape]
    if math.prod(shape) != width or width == 1:
        return tensor
    axis = shape.index(width)
    cut = [*shape[:axis], span[1] - span[0], *shape[axis + 1 :]]
    compute = partial(_some, tensor, axis, span)
    return rw.constant(f"{tensor.name}/part_{number}", cut, compute, tensor.dtype)


def _some(tensor: Any, axis: int, span: tuple[int, int]) -> NDArray[Any]:
    return np.take(values_of(tensor), range(*span), axis)


def _type(tensor: Any) -> Any:
    return tensor.dtype or np.float32
