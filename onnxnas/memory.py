"""Peak memory of a network: when each tensor is alive, and which are alive when memory is fullest.

Activations of a network that runs kernel after kernel share one memory, the arena. A tensor needs
its place from the kernel that writes it to the last that reads it; the most bytes alive at once is
the least an arena can be, and offset planners come within a few percent of it or reach it.
Weights are not counted.

What a target does differently from kernel after kernel in the graph's order (its layout in memory,
other orders, rolling buffers between kernels) is for its cost model to say: it makes its own
`Buffer`s and asks for their peak here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxnas.kernels import Kernel
from onnxnas.ops import UNARY_ELEMENTWISE, stored_bytes

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast"})
"""Operators whose output is their input under another shape; Cast of int8 activations too."""

IN_PLACE = UNARY_ELEMENTWISE | {"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Pow", "PRelu"}
"""Operators that may write over an input nobody else reads."""


@dataclass(frozen=True)
class Buffer:
    """A piece of memory and how long it is needed.

    Attributes:
        name: what is in it: a tensor, or the tensors that follow each other in place.
        size: bytes.
        start, end: first and last moment it is needed, both included.
    """

    name: str
    size: int
    start: int
    end: int


@dataclass(frozen=True)
class Peak:
    """The moment when memory is fullest.

    Attributes:
        size: bytes alive, the least an arena can be.
        moment: when.
        tensors: name and bytes of everything alive then, largest first.
    """

    size: int
    moment: int
    tensors: tuple[tuple[str, int], ...]


def peak(buffers: Iterable[Buffer]) -> Peak:
    """The fullest moment, the earliest of several."""
    kept = [b for b in buffers if b.size > 0]
    if not kept:
        return Peak(0, 0, ())
    change = np.zeros(max(b.end for b in kept) + 2, np.int64)
    for b in kept:
        change[b.start] += b.size
        change[b.end + 1] -= b.size
    alive = np.cumsum(change)
    moment = int(alive.argmax())
    there = [(b.name, b.size) for b in kept if b.start <= moment <= b.end]
    return Peak(int(alive[moment]), moment, tuple(sorted(there, key=lambda t: (-t[1], t[0]))))


def place(buffers: Sequence[Buffer], alignment: int = 16) -> tuple[dict[str, int], int]:
    """Offsets of buffers in one arena, largest first, each at the lowest place free for its time.

    The greedy planner of Y. Pisarchyk and J. Lee, "Efficient Memory Management for Deep Neural
    Net Inference" (2020).

    Returns:
        Offset of each buffer, and the size of the arena, bytes.
    """
    placed: list[tuple[int, Buffer]] = []
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.start, b.name)):
        offset = 0
        for other_offset, other in sorted(placed, key=lambda p: p[0]):
            if other.start > buffer.end or other.end < buffer.start:
                continue
            if offset + buffer.size <= other_offset:
                break
            offset = max(offset, -(-(other_offset + other.size) // alignment) * alignment)
        placed.append((offset, buffer))
    arena = max((offset + b.size for offset, b in placed), default=0)
    return {b.name: offset for offset, b in placed}, arena


def activations(graph: Any, kernels: Sequence[Kernel], channel_multiple: int = 1) -> list[Buffer]:
    """Buffers of a network's activations, kernel after kernel in the graph's order.

    Moments are indices of kernels. Views share the memory of what they view, and an elementwise
    kernel writes over an input of the same size that nobody reads after it.

    Args:
        graph: `gs.Graph` with static shapes.
        kernels: its `onnxnas.kernels.split_kernels`.
        channel_multiple: channels of a tensor inside the network are rounded up to this.
    """
    flow = Flow(graph, kernels)
    home: dict[str, str] = {}

    def root(name: str) -> str:
        while name in home:
            name = home[name]
        return name

    last = _last_reads(flow)
    alive: dict[str, tuple[int, int]] = {root(t): (0, 0) for t in flow.inputs}
    for i, (reads, writes) in enumerate(zip(flow.reads, flow.writes, strict=True)):
        first = flow.nodes[i][0]
        if first.op in VIEWS and reads:
            home[writes[0]] = reads[0]
        elif first.op in IN_PLACE:
            for name in reads:
                over = root(name)
                dies = over not in flow.inputs and all(
                    last.get(t, -1) <= i for t in flow.bytes if root(t) == over
                )
                if dies and flow.bytes[name] == flow.bytes[writes[0]]:
                    home[writes[0]] = name
                    break
        for name in (*reads, *writes):
            start, end = alive.get(root(name), (i, i))
            alive[root(name)] = (min(start, i), max(end, i))
    for name in flow.outputs:
        if root(name) in alive:
            alive[root(name)] = (alive[root(name)][0], len(kernels))
    edge = {*flow.inputs, *flow.outputs}
    return [
        Buffer(name, flow.size(name, 1 if name in edge else channel_multiple), start, end)
        for name, (start, end) in alive.items()
    ]


class Flow:
    """Which tensors kernels read and write.

    Attributes:
        nodes: of each kernel, in order.
        reads: per kernel, computed tensors and network inputs it reads, each once.
        writes: per kernel, tensors that leave it.
        readers: tensor -> kernels that read it.
        shapes: of every variable.
        bytes: of every variable as int8, wider integers as int32.
        inputs, outputs: of the network.
    """

    def __init__(self, graph: Any, kernels: Sequence[Kernel]) -> None:
        self.inputs = tuple(t.name for t in graph.inputs)
        self.outputs = tuple(t.name for t in graph.outputs)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.bytes: dict[str, int] = {}
        for tensor in graph.tensors().values():
            if isinstance(tensor, gs.Variable) and tensor.shape is not None and tensor.name:
                shape = tuple(int(d) for d in tensor.shape)
                self.shapes[tensor.name] = shape
                self.bytes[tensor.name] = math.prod(shape) * stored_bytes(tensor)
        writer = {t.name: n for n in graph.nodes for t in n.outputs}
        self.nodes: list[list[Any]] = []
        self.reads: list[tuple[str, ...]] = []
        self.writes: list[tuple[str, ...]] = []
        self.readers: dict[str, list[int]] = {}
        for i, kernel in enumerate(kernels):
            nodes = list({id(writer[t]): writer[t] for t in kernel.tensors}.values())
            self.nodes.append(nodes)
            self.reads.append(self.read_by(nodes))
            self.writes.append(self.left_by(nodes))
            for name in self.reads[-1]:
                self.readers.setdefault(name, []).append(i)

    def read_by(self, nodes: Sequence[Any]) -> tuple[str, ...]:
        """Computed tensors and network inputs that nodes read from outside of themselves."""
        inside = {t.name for n in nodes for t in n.outputs}
        found = {
            t.name: None
            for n in nodes
            for t in n.inputs
            if t.name in self.shapes and t.name not in inside and not _constant(t)
        }
        return tuple(found)

    def left_by(self, nodes: Sequence[Any]) -> tuple[str, ...]:
        """Tensors of nodes that are read outside of them, or leave the network."""
        own = {id(n) for n in nodes}
        found = {
            t.name: None
            for n in nodes
            for t in n.outputs
            if t.name
            and (
                t.name in self.outputs or n is nodes[-1] or any(id(r) not in own for r in t.outputs)
            )
        }
        return tuple(found)

    def channels(self, name: str) -> int:
        """Size of the channel axis: the second, or the last of a matrix or vector."""
        shape = self.shapes[name]
        return 1 if not shape else shape[1] if len(shape) >= 3 else shape[-1]

    def size(self, name: str, channel_multiple: int = 1) -> int:
        """Bytes of a tensor with its channels rounded up."""
        channels = max(1, self.channels(name))
        up = -(-channels // channel_multiple) * channel_multiple
        return self.bytes[name] // channels * up


def _last_reads(flow: Flow) -> Mapping[str, int]:
    last = {name: max(readers) for name, readers in flow.readers.items()}
    for name in flow.outputs:
        last[name] = len(flow.reads)
    return last


def _constant(tensor: Any) -> bool:
    return bool(tensor.inputs) and tensor.inputs[0].op == "Constant"
