"""Which channels must change together, and every place that has to follow when they do.

The idea of dependency groups is that of DepGraph (Fang et al., "DepGraph: Towards Any Structural
Pruning", CVPR 2023); here a group is a run of channels that always appears whole and in order, so
a Concat input or a Split output is a group of its own, wherever it lies in a wider axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.channel_flow import Flow, Ids, Layout, Role
from onnxnas.channel_rules import RULES


@dataclass(frozen=True)
class Run:
    """Where a group lies in one axis: its channels in order from `start`, `repeat` places each."""

    start: int
    repeat: int


@dataclass(frozen=True, eq=False)
class TensorAxis:
    """A tensor whose channel axis holds the group.

    Attributes:
        tensor: the gs.Variable.
        runs: a Concat may hold a group more than once.
        whole: the axis holds nothing but this group, once.
    """

    tensor: Any
    runs: tuple[Run, ...]
    whole: bool


@dataclass(frozen=True, eq=False)
class ConstantAxis:
    """An axis of a constant that the group's channels index.

    Attributes:
        node, input: the reader, and which of its inputs the constant is.
        axis: the indexed axis.
        runs: where the group lies on that axis.
        role: ``produces``, ``consumes`` or ``per-channel``.
        fill: what a new channel gets here, so that it adds nothing and stays finite.
    """

    node: Any
    input: int
    axis: int
    runs: tuple[Run, ...]
    role: Role
    fill: float


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that can only be added or removed together, all over the graph.

    Attributes:
        name: the first tensor, in topological order, that consists of this group alone; empty
            if there is none.
        size: number of channels.
        tensors: in topological order.
        constants: in topological order of their readers.
        pins: why the number of channels cannot change; empty if it can.
        unpaddable: why new zero channels could break it though channels may be removed.
    """

    name: str
    size: int
    tensors: tuple[TensorAxis, ...]
    constants: tuple[ConstantAxis, ...]
    pins: tuple[str, ...]
    unpaddable: tuple[str, ...]

    @property
    def producers(self) -> tuple[ConstantAxis, ...]:
        """Output axes of conv and gemm weights, and their biases."""
        return tuple(c for c in self.constants if c.role == "produces")

    @property
    def consumers(self) -> tuple[ConstantAxis, ...]:
        """Input axes of conv and gemm weights."""
        return tuple(c for c in self.constants if c.role == "consumes")

    @property
    def claims(self) -> frozenset[str]:
        """What a site that resizes this group claims.

        A tensor that holds other groups too (the output of a Concat) is claimed in part, so
        that its groups can be resized independently.
        """
        found = set()
        for axis in self.tensors:
            for run in axis.runs:
                part = "" if axis.whole else f"[{run.start}:{run.start + self.size * run.repeat}]"
                found.add(f"channels:{axis.tensor.name}{part}")
        return frozenset(found)


@dataclass(frozen=True, eq=False)
class Coupling:
    """All channel groups of one graph.

    Attributes:
        groups: in topological order of their first tensors.
        opaque: names of tensors written by nodes whose effect on channels is not understood.
    """

    groups: tuple[Group, ...]
    opaque: frozenset[str]
    _by_name: Mapping[str, Group] = field(repr=False)

    @classmethod
    def of(cls, graph: Any) -> Coupling:
        """Find the groups. Evaluates no weight.

        Args:
            graph: `gs.Graph` in topological order, with inferred shapes (the batch and the
                spatial size may be dynamic).
        """
        flow = Flow(graph, RULES)
        groups = _groups(flow)
        by_name = {a.tensor.name: g for g in groups for a in g.tensors if a.whole}
        return cls(groups, frozenset(flow.opaque), by_name)

    def group(self, tensor: str) -> Group | None:
        """The group that a tensor's channel axis consists of; None if of several, or of none."""
        return self._by_name.get(tensor)


@dataclass
class _Draft:
    tensors: list[TensorAxis] = field(default_factory=list)
    constants: list[ConstantAxis] = field(default_factory=list)
    pins: dict[str, None] = field(default_factory=dict)
    unpaddable: dict[str, None] = field(default_factory=dict)


def _groups(flow: Flow) -> tuple[Group, ...]:
    root = _roots(flow.ids, flow.pairs)
    layouts = {id(layout): layout for layout in flow.layouts.values()}
    layouts.update((id(use.layout), use.layout) for use in flow.uses)
    head, place = _chains(flow.ids, [root[layout.ids] for layout in layouts.values()])
    sizes = np.bincount(head, minlength=flow.ids + 1)
    # Roots stand for all ids tied to them; the others are in no chain but their own.
    runs = {key: _runs(root[layout.ids], layout, head, place) for key, layout in layouts.items()}
    drafts: dict[int, _Draft] = {}
    for tensor in flow.tensors:
        layout = flow.layouts[tensor.name]
        for first, found in runs[id(layout)].items():
            whole = len(found) == 1 and int(sizes[first]) == len(layout.ids)
            drafts.setdefault(first, _Draft()).tensors.append(TensorAxis(tensor, found, whole))
    for use in flow.uses:
        for first, found in runs[id(use.layout)].items():
            axis = ConstantAxis(use.node, use.input, use.axis, found, use.role, use.fill)
            drafts[first].constants.append(axis)
    for ids, reason in flow.pins:
        for first in np.unique(head[root[ids]]):
            drafts[int(first)].pins[reason] = None
    for ids, reason in flow.unpaddable:
        for first in np.unique(head[root[ids]]):
            drafts[int(first)].unpaddable[reason] = None
    return tuple(
        Group(
            next((a.tensor.name for a in draft.tensors if a.whole), ""),
            int(sizes[first]),
            tuple(draft.tensors),
            tuple(draft.constants),
            tuple(draft.pins),
            tuple(draft.unpaddable),
        )
        for first, draft in drafts.items()
    )


def _roots(count: int, pairs: Sequence[tuple[Ids, Ids]]) -> Ids:
    """The smallest id tied to each id, directly or through others."""
    root = np.arange(count)
    if not pairs:
        return root
    left = np.concatenate([a for a, _ in pairs])
    right = np.concatenate([b for _, b in pairs])
    while True:
        a, b = root[left], root[right]
        if np.array_equal(a, b):
            return root
        low = np.minimum(a, b)
        np.minimum.at(root, a, low)
        np.minimum.at(root, b, low)
        while not np.array_equal(root, root[root]):
            root = root[root]


def _chains(count: int, axes: Sequence[Ids]) -> tuple[Ids, Ids]:
    """For each channel: the first channel of its group, and its place in the group.

    Two channels are neighbours in a group if the second follows the first, and nothing else
    does, wherever either appears.
    """
    edge = np.full(1, count)
    line = np.concatenate([edge, *(part for axis in axes for part in (axis, edge))])
    before, after = line[:-1], line[1:]
    following = _only(count, before, after)
    leading = _only(count, after, before)
    second = following[leading]  # follows its only leader, and is all that follows it
    linked = (second == np.arange(count + 1)) & (leading != np.arange(count + 1))
    linked[count] = False
    linked &= leading != count
    head, place = np.where(linked, leading, np.arange(count + 1)), linked.astype(np.int64)
    while not np.array_equal(head, head[head]):
        head, place = head[head], place + place[head]
    return head, place


def _only(count: int, keys: Ids, values: Ids) -> Ids:
    """The one value each key comes with; `count` where it comes with several or none."""
    low, high = np.full(count + 1, count), np.full(count + 1, -1)
    np.minimum.at(low, keys, values)
    np.maximum.at(high, keys, values)
    only: Ids = np.where(low == high, low, count)
    return only


def _runs(
    channels: Ids, layout: Layout, head: Ids, place: NDArray[np.int64]
) -> dict[int, tuple[Run, ...]]:
    starts = np.cumsum(layout.repeats) - layout.repeats
    found: dict[int, tuple[Run, ...]] = {}
    for k in np.flatnonzero(place[channels] == 0):
        first = int(head[channels[k]])
        run = Run(int(starts[k]), int(layout.repeats[k]))
        found[first] = (*found.get(first, ()), run)
    return found
