"""How channels travel through a graph, node by node; `onnxnas.coupling` makes groups of it.

The channel axis is axis 1. Every channel of every tensor carries an id. A rule (see
`onnxnas.channel_rules`) says which ids a node passes on, which must stay equal (a residual Add),
and which axes of the node's constants they index. A node without a rule, or whose rule declines,
pins what it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.graph import is_static, values_of
from onnxnas.ops import STANDARD_DOMAINS

Ids = NDArray[np.int64]
Role = Literal["produces", "consumes", "per-channel"]
"""produces: output channels of a conv or gemm and its bias; consumes: its input channels;
per-channel: one value or filter for each channel that passes (depthwise, BatchNorm, slopes)."""


@dataclass(frozen=True, eq=False)
class Layout:
    """What lies along one axis: channel `ids[k]` takes `repeats[k]` consecutive positions.

    A channel repeats where [C, H, W] was flattened (H * W positions) or a depthwise conv has a
    multiplier.
    """

    ids: Ids
    repeats: Ids
    length: int

    @classmethod
    def of(cls, ids: Ids, repeats: Ids) -> Layout:
        return cls(ids, repeats, int(repeats.sum()))

    def expanded(self, times: int) -> Layout:
        """Every position becomes `times` consecutive ones."""
        return self if times == 1 else Layout.of(self.ids, self.repeats * times)

    def cut(self, start: int, stop: int) -> Layout | None:
        """Positions start to stop, None where that would cut a repeated channel in two."""
        ends = np.concatenate(([0], np.cumsum(self.repeats)))
        first, last = np.searchsorted(ends, (start, stop))
        if last >= len(ends) or ends[first] != start or ends[last] != stop:
            return None
        return Layout.of(self.ids[first:last], self.repeats[first:last])


@dataclass(frozen=True, eq=False)
class AxisUse:
    """One axis of a node's constant input that channels index."""

    node: Any
    input: int
    axis: int
    layout: Layout
    role: Role
    fill: float


class Flow:
    """Walks a graph once and collects what the rules say.

    Args:
        graph: `gs.Graph` in topological order, with inferred shapes.
        rules: by operator; each returns None, or a clause why the node is not understood.
    """

    def __init__(self, graph: Any, rules: Mapping[str, Rule]) -> None:
        self._rules = rules
        self.layouts: dict[str, Layout] = {}
        self.tensors: list[Any] = []
        self.uses: list[AxisUse] = []
        self.pairs: list[tuple[Ids, Ids]] = []
        self.pins: list[tuple[Ids, str]] = []
        self.unpaddable: list[tuple[Ids, str]] = []
        self.opaque: set[str] = set()
        self.ids = 0
        captured: set[str] = set()
        for tensor in graph.inputs:
            self._pin_new(tensor, "it is a graph input")
        for node in graph.nodes:
            captured |= _captured(node)
        self._captured = captured | {t.name for t in graph.outputs}
        for node in graph.nodes:
            self._visit(node)
        for name in sorted(captured):
            self.pin(self.layouts.get(name), f"a subgraph reads {name!r}")
        for tensor in graph.outputs:
            self.pin(self.layouts.get(tensor.name), f"{tensor.name!r} is a graph output")

    def of(self, tensor: Any) -> Layout | None:
        """Layout of a variable's channel axis, None where it has none of known size."""
        return None if isinstance(tensor, gs.Constant) else self.layouts.get(tensor.name)

    def put(self, tensor: Any, layout: Layout) -> None:
        """Say what lies along a tensor's channel axis."""
        self.layouts[tensor.name] = layout
        self.tensors.append(tensor)

    def fresh(self, count: int) -> Layout:
        """New channels, tied to none so far."""
        self.ids += count
        return Layout(np.arange(self.ids - count, self.ids), np.ones(count, np.int64), count)

    def tie(self, a: Layout, b: Layout) -> bool:
        """Channels of both, position by position, are one from now on; False if they cannot be."""
        if a is not b and not np.array_equal(a.ids, b.ids):
            if not np.array_equal(a.repeats, b.repeats):
                return False
            self.pairs.append((a.ids, b.ids))
        return a is b or np.array_equal(a.repeats, b.repeats)

    def use(
        self, node: Any, index: int, axis: int, layout: Layout, role: Role, fill: float = 0.0
    ) -> None:
        """Axis `axis` of constant input `index` is indexed by these channels."""
        self.uses.append(AxisUse(node, index, axis, layout, role, fill))

    def pin(self, layout: Layout | None, reason: str) -> None:
        """These channels must stay as many as they are."""
        if layout is not None:
            self.pins.append((layout.ids, reason))

    def shared(self, weight: Any) -> bool:
        """Whether a weight has readers beside its one node."""
        return len(weight.outputs) != 1 or weight.name in self._captured

    def _visit(self, node: Any) -> None:
        rule = self._rules.get(node.op) if (node.domain or "") in STANDARD_DOMAINS else None
        reason = "may mix channels or depend on their number" if rule is None else rule(self, node)
        if reason is None:
            return
        reason = f"{node.op} {node.outputs[0].name!r} {reason}"
        for tensor in node.inputs:
            self.pin(self.of(tensor), reason)
        for tensor in node.outputs:
            self.opaque.add(tensor.name)
            self._pin_new(tensor, reason)

    def _pin_new(self, tensor: Any, reason: str) -> None:
        if tensor.shape is not None and len(tensor.shape) > 1 and is_static(tensor.shape[1]):
            layout = self.fresh(int(tensor.shape[1]))
            self.put(tensor, layout)
            self.pin(layout, reason)


Rule = Callable[[Flow, Any], "str | None"]


def constant_ints(node: Any, index: int, attr: str) -> list[int] | None:
    """Integers given as constant input `index` or, in older opsets, as an attribute."""
    if attr in node.attrs:
        return [int(v) for v in node.attrs[attr]]
    if len(node.inputs) > index and isinstance(node.inputs[index], gs.Constant):
        return [int(v) for v in values_of(node.inputs[index]).reshape(-1)]
    return None


def given(node: Any, index: int) -> Any | None:
    """Input `index` of a node, None where it is omitted."""
    tensor = node.inputs[index] if len(node.inputs) > index else None
    return tensor if tensor is not None and tensor.name else None


def channel_slice(node: Any, channels: int) -> tuple[int, int, int] | str | None:
    """Start, stop and the place in its lists of a Slice's cut along axis 1; None: no such cut."""
    starts, ends = constant_ints(node, 1, "starts"), constant_ints(node, 2, "ends")
    if starts is None or ends is None:
        return "has computed bounds"
    axes, steps = constant_ints(node, 3, "axes"), constant_ints(node, 4, "steps")
    if (given(node, 3) is not None and axes is None) or (given(node, 4) and steps is None):
        return "has computed axes or steps"
    axes = axes if axes is not None else list(range(len(starts)))
    rank = len(node.inputs[0].shape)
    places = [i for i, a in enumerate(axes) if a % rank == 1]
    if not places:
        return None
    i = places[0]
    if steps is not None and steps[i] != 1:
        return "takes channels in steps"
    start, stop, _ = slice(starts[i], ends[i]).indices(channels)
    return start, stop, i


def _captured(node: Any) -> set[str]:
    """Names a node's subgraphs read from outside (and their own)."""
    names: set[str] = set()
    for value in node.attrs.values():
        for body in value if isinstance(value, list) else [value]:
            if isinstance(body, gs.Graph):
                names |= {t.name for t in body.outputs}
                for inner in body.nodes:
                    names |= {t.name for t in inner.inputs} | _captured(inner)
    return names
