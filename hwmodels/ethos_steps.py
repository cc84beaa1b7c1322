"""A network as the steps an Ethos-U compiler schedules, and the memory each tensor lives in.

Written from what Vela 5.2 reports about compiled networks: which operators become several steps
or none, which tensors share memory, in which order steps run and how tensors lie in memory.
Tensors between steps are stored in bricks of 16 channels; those of the interface, or with a
channel offset inside a brick, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_graphsurgeon as gs

from onnxnas.graph import values_of
from onnxnas.hwmodels.ethos_step import Step, count, depth_first, fused
from onnxnas.kernels import Kernel
from onnxnas.memory import VIEWS, Flow

BRICK = 16
"""Channels of a brick, the unit in which feature maps are stored."""

_POOLS = frozenset({"MaxPool", "AveragePool"})
_SAME_STRIDE = 3
_THIN = 8


class Steps:
    """The steps of one network, in the order in which they run.

    Args:
        graph: `gs.Graph` with static shapes.
        kernels: its kernels.
        chaining: the NPU passes results of a step to elementwise steps without storing them
            (Ethos-U85).
        weight_bytes: encoded weights and scales of each kernel.

    Attributes:
        flow: tensors of the network.
        steps: in order of execution.
    """

    def __init__(
        self, graph: Any, kernels: Sequence[Kernel], chaining: bool, weight_bytes: Sequence[float]
    ) -> None:
        self.flow = Flow(graph, kernels)
        self._chaining = chaining
        self._weight_bytes = weight_bytes
        self._home: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._rowwise = {*self.flow.inputs, *self.flow.outputs}
        self._on_cpu: set[str] = set()
        self._made: list[Step] = []
        self._late: set[int] = set()
        self._joins: list[tuple[str, list[str]]] = []
        self._pieced: set[str] = set()
        for i, kernel in enumerate(kernels):
            self._lower(i, kernel)
        for step in self._made:
            step.reads = tuple(dict.fromkeys(self.root(t) for t in step.reads))
            step.writes = tuple(dict.fromkeys(self.root(t) for t in step.writes))
        self._rowwise = {self.root(t) for t in self._rowwise}
        self._pieced = {self.root(t) for t in self._pieced}
        self.inputs = {self.root(t) for t in self.flow.inputs}
        self.outputs = {self.root(t) for t in self.flow.outputs}
        outputs = [self.root(t) for t in self.flow.outputs]
        order = depth_first(self._made, self._writers(), outputs)
        busy = [kernels[s.kernel].activation not in ("none", "Silu") for s in self._made]
        self.steps = fused(
            [self._made[i] for i in order],
            [busy[i] for i in order],
            chaining,
            self.outputs,
        )

    def root(self, name: str) -> str:
        """The memory a tensor lies in, called after the tensor that fills it."""
        while name in self._home:
            name = self._home[name]
        return name

    def bricks(self, memory: str) -> bool:
        """Whether a memory is stored in bricks, not row by row."""
        return memory not in self._rowwise

    def size(self, memory: str) -> int:
        """Bytes of a memory, whole 16-byte units."""
        size = self._sizes.get(memory)
        if size is None:
            size = self.flow.size(memory, BRICK if self.bricks(memory) else 1)
        return -(-size // BRICK) * BRICK

    def whole(self, memory: str) -> bool:
        """Whether a memory is written as a whole, not piece by piece."""
        return memory not in self._pieced

    def readers(self) -> dict[str, int]:
        """Number of steps that read each memory."""
        return count(t for step in self.steps for t in step.reads)

    def writers(self) -> dict[str, int]:
        """Number of steps that write each memory."""
        return count(t for step in self.steps for t in step.writes)

    # Operators become steps

    def _lower(self, i: int, kernel: Kernel) -> None:
        nodes, reads, writes = self.flow.nodes[i], self.flow.reads[i], self.flow.writes[i]
        first = nodes[0]
        if kernel.activation == "Silu" and len(nodes) >= 3:
            gate, product = nodes[-2], nodes[-1]
            head = self.flow.left_by(nodes[:-2])
            self._simple(i, kernel, reads, head)
            self._add(Step("Sigmoid", i, head, self.flow.left_by([gate])))
            self._add(Step("Mul", i, self.flow.read_by([product]), writes))
        elif first.op in VIEWS and reads:
            self._view(reads[0], writes[0])
        elif first.op == "Concat":
            self._concat(i, first, writes[0])
        elif first.op in ("Split", "Slice") and reads:
            for name in writes:
                self._part_of(reads[0], name, first)
        elif first.op in ("Resize", "Upsample"):
            self._resize(i, kernel, reads[0], writes[0], first)
        elif first.op in _POOLS and self._odd_padding(kernel):
            self._pad(i, kernel, reads[0], writes)
        elif first.op == "PRelu":
            self._prelu(i, first, reads, writes)
        elif first.op == "ArgMax" and self._chaining:
            self._rowwise.update(reads)
            self._simple(i, kernel, reads, writes)
        elif first.op == "ArgMax":
            wide = f"{writes[0]}/wide"
            self.flow.shapes[wide] = self.flow.shapes[reads[0]]
            self.flow.bytes[wide] = 2 * self.flow.bytes[reads[0]]
            self._rowwise.add(wide)
            self._add(Step("Conv", i, reads, (wide,)))
            self._simple(i, kernel, (wide,), writes)
        else:
            self._simple(i, kernel, reads, writes)

    def _simple(
        self, i: int, kernel: Kernel, reads: tuple[str, ...], writes: tuple[str, ...]
    ) -> None:
        rows = (kernel.window[0] - 1) * kernel.dilations[0] + 1
        op = self.flow.nodes[i][0].op
        self._add(Step(op, i, reads, writes, rows, kernel.strides[0], float(self._weight_bytes[i])))

        if kernel.op == "GroupedConv":  # runs as slices of channels
            self._rowwise.update(reads)
            self._pieced.update(writes)
            self._made[-1].weight_bytes /= kernel.groups
            if kernel.out_channels // kernel.groups % BRICK:
                self._rowwise.update(writes)
        thin = (
            self.flow.channels(writes[0]) < _THIN and math.prod(self.flow.shapes[writes[0]]) > BRICK
        )
        if thin and self._made[-1].elementwise:
            shapes = {self.flow.shapes[t] for t in (*reads, *writes)}
            if len(shapes) == 1:
                self._rowwise.update((*reads, *writes))
        if kernel.activation not in ("none", "Silu") and op != "Mul" and thin:
            # Vela reshapes thin elementwise steps to make them deep, so they cannot be fused.
            plain = f"{writes[0]}/plain"
            self.flow.shapes[plain] = self.flow.shapes[writes[0]]
            self.flow.bytes[plain] = self.flow.bytes[writes[0]]
            self._rowwise |= {plain, writes[0]}
            self._made[-1].writes = (plain,)
            self._add(Step("Abs", i, (plain,), writes, apart=True))

    def _prelu(self, i: int, node: Any, reads: tuple[str, ...], writes: tuple[str, ...]) -> None:
        """max(x, slope * x) where no slope is over 1, else relu(x) + slope * min(x, 0)."""
        slope = node.inputs[1]
        if slope.inputs and slope.inputs[0].op == "Constant":
            slope = slope.inputs[0].attrs["value"]
        slopes = values_of(slope) if isinstance(slope, gs.Constant) else None
        simple = slopes is None or slopes.max() <= 1
        if simple and self._chaining:
            self._add(Step("PRelu", i, reads, writes, chained=True))
            return
        scaled = f"{writes[0]}/scaled"
        self.flow.shapes[scaled] = self.flow.shapes[writes[0]]
        self.flow.bytes[scaled] = self.flow.bytes[writes[0]]
        self._add(Step("Mul", i, reads, (scaled,)))
        self._add(Step("Max" if simple else "PRelu", i, (scaled, *reads), writes))

    def _add(self, step: Step) -> None:
        step.shape = self.flow.shapes[step.writes[0]]
        self._made.append(step)

    def _view(self, source: str, view: str) -> None:
        """One memory under two shapes; bricks only where both agree on columns and channels."""
        largest = max(self.flow.bytes[source], self.flow.bytes[view])
        self.flow.bytes[source] = self.flow.bytes[view] = largest
        if self._line(source) != self._line(view):
            self._rowwise |= {source, view}
        if view in self.flow.outputs and self.root(source) not in self.flow.inputs:
            self._home[self.root(source)] = view
        else:
            self._home[view] = source

    def _line(self, name: str) -> tuple[int, int]:
        shape = self.flow.shapes[name]
        return self.flow.channels(name), shape[-1] if len(shape) >= 4 else 1

    def _concat(self, i: int, node: Any, joined: str) -> None:
        """Producers write into the joined tensor; what others read too is copied into it."""
        rank = len(self.flow.shapes[joined])
        axis = int(node.attrs["axis"]) % rank
        offset = 0
        for tensor in node.inputs:
            if axis == (1 if rank >= 3 else rank - 1) and offset % BRICK:
                self._rowwise.add(joined)
            offset += int(tensor.shape[axis])
            name = tensor.name
            if name not in self.flow.shapes:
                continue
            if self._only_read_once(name) and self.root(name) == name:
                self._home[name] = joined
            else:
                self._add(Step("Copy", i, (name,), (joined,), part=True))
        self._pieced.add(joined)
        self._joins.append((joined, [t.name for t in node.inputs if t.name in self.flow.shapes]))

    def _only_read_once(self, name: str) -> bool:
        edge = name in (*self.flow.outputs, *self._on_cpu) or self.root(name) in self.flow.inputs
        return not edge and len(self.flow.readers.get(name, ())) == 1

    def _part_of(self, whole: str, part: str, node: Any) -> None:
        if part in self.flow.outputs:
            self._add(Step("Copy", 0, (whole,), (part,)))
            return
        self._home[part] = whole
        a, b = self.flow.shapes[whole], self.flow.shapes[part]
        if len(a) >= 3 and a[1] != b[1] and b[1] % BRICK:
            self._rowwise.add(whole)

    def _pad(self, i: int, kernel: Kernel, source: str, writes: tuple[str, ...]) -> None:
        """A pool with padding that no TFLite form has: its input is padded in memory."""
        name = f"{source}/padded"
        n, c, h, w = self.flow.shapes[source]
        top, left, bottom, right = kernel.pads
        shape = (n, c, h + top + bottom, w + left + right)
        self._tensor(name, shape)
        self._pieced.add(name)
        if self._only_read_once(source) and self.root(source) == source:
            self._home[source] = name
        else:
            self._add(Step("Copy", i, (source,), (name,), part=True))
        self._simple(i, kernel, (name,), writes)

    def _tensor(self, name: str, shape: tuple[int, ...], rowwise: bool = False) -> None:
        n, c, h, w = shape
        self.flow.shapes[name] = shape
        self.flow.bytes[name] = n * c * h * w
        if rowwise:
            self._rowwise.add(name)

    @staticmethod
    def _odd_padding(kernel: Kernel) -> bool:
        if not any(kernel.pads):
            return False
        sizes = (kernel.in_height, kernel.in_width), (kernel.out_height, kernel.out_width)
        for axis in range(2):
            before, after, stride = sizes[0][axis], sizes[1][axis], kernel.strides[axis]
            both = kernel.pads[axis] + kernel.pads[axis + 2]
            if after != -(-before // stride) or kernel.pads[axis] != both // 2:
                return True
        return max(kernel.strides) > _SAME_STRIDE

    def _resize(self, i: int, kernel: Kernel, source: str, target: str, node: Any) -> None:
        """Ethos-U85 enlarges at once, U55 and U65 by two at a time, by powers of two only."""
        n, c, h, w = self.flow.shapes[source]
        where = str(node.attrs.get("coordinate_transformation_mode", "half_pixel"))
        linear = node.attrs.get("mode", b"nearest") not in ("nearest", b"nearest")
        height, width = kernel.out_height, kernel.out_width
        corner = 1 if where == "align_corners" else 0
        factors = [
            (after - corner) / max(1, before - corner)
            for before, after in ((h, height), (w, width))
        ]
        factor = int(factors[0])
        odd = any(f != int(f) or int(f) & (int(f) - 1) for f in factors)
        if (h, w) == (1, 1) or (self._chaining and not odd):
            self._late.add(len(self._made))
            self._simple(i, kernel, (source,), (target,))
        elif (
            odd
            or factors[0] != factors[1]
            or (linear and where.endswith("half_pixel") and factor != 2)
        ):
            self._rowwise |= {source, target}
            self._on_cpu.add(target)
            self._add(Step("Resize", i, (source,), (target,), on_cpu=True))
        elif linear and where.endswith("half_pixel"):
            padded = f"{source}/edges"
            self._tensor(padded, (n, c, h + 2, w + 2), rowwise=True)
            self._add(Step("Copy", i, (source,), (padded,), part=True))
            self._rowwise.add(target)
            for _ in range(4):
                self._late.add(len(self._made))
                self._add(Step("Conv", i, (padded,), (target,), part=True))
        else:
            while factor > 2:
                h, w = 2 * (h - corner) + corner, 2 * (w - corner) + corner
                name = f"{target}/{h}x{w}"
                self._tensor(name, (n, c, h, w))
                self._add(Step("Resize", i, (source,), (name,), enlarges=2))
                source, factor = name, factor // 2
            self._late.add(len(self._made))
            self._add(Step("Resize", i, (source,), (target,), enlarges=2))

    def _writers(self) -> dict[str, list[int]]:
        """Steps that write each memory; those of a joined tensor in the order of its parts."""
        writers: dict[str, list[int]] = {}
        for i in sorted(range(len(self._made)), key=lambda i: (i in self._late, i)):
            for name in self._made[i].writes:
                writers.setdefault(name, []).append(i)
        for joined, parts in self._joins:
            places = {name: n for n, name in enumerate(parts)}
            order = {i: self._place(i, places) for i in writers.get(self.root(joined), ())}
            writers[self.root(joined)] = sorted(order, key=lambda i: (order[i], i))
        return writers

    def _place(self, i: int, places: Mapping[str, int]) -> int:
        step = self._made[i]
        if i in self._late:
            return len(places)
        names = step.reads if step.op == "Copy" else self.flow.writes[step.kernel]
        return min((places[t] for t in names if t in places), default=-1)
