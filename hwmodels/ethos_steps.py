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
from onnxnas.hwmodels.ethos_array import BRICK
from onnxnas.hwmodels.ethos_shapes import deeper, line, odd_padding
from onnxnas.hwmodels.ethos_step import CLAMPS, Step, count, depth_first, fused
from onnxnas.kernels import Kernel
from onnxnas.memory import VIEWS, Flow

_POOLS = frozenset({"MaxPool", "AveragePool"})
APART = "/plain"
"""Ends the name of what an activation reads that is a step of its own."""
_LARGEST_FACTOR = 8
"""Of an enlargement that the compiler takes as one operator."""
_THIN = 8
_PHASE_WEIGHTS = 1.1
"""Encoded bytes per channel of what makes one pixel of four of an enlargement."""


class Steps:
    """The steps of one network, in the order in which they run.

    Args:
        graph: `gs.Graph` with static shapes.
        kernels: its kernels.
        chaining: the NPU passes results of a step to elementwise steps without storing them
            (Ethos-U85).
        weight_bytes: encoded weights of each kernel.

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
        self._same: dict[str, str] = {}
        self._on_cpu: set[str] = set()
        self._made: list[Step] = []
        self._late: set[int] = set()
        self._early: set[int] = set()
        self._joins: list[tuple[str, list[str]]] = []
        self._pieced: set[str] = set()
        self._lines: dict[str, set[tuple[int, int]]] = {}
        for i, kernel in enumerate(kernels):
            self._lower(i, kernel)
        for step in self._made:
            step.reads = tuple(dict.fromkeys(self.root(t) for t in step.reads))
            step.writes = tuple(dict.fromkeys(self.root(t) for t in step.writes))
            if step.op == "Conv" and step.part:  # it counts as writing all of a joined tensor
                channels = self.flow.channels(step.writes[0])
                step.shape = (step.shape[0], channels, *step.shape[2:])
                step.weight_bytes = _PHASE_WEIGHTS * channels
        self._rowwise |= {name for name, lines in self._lines.items() if len(lines) > 1}
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

    def tensors(self) -> set[str]:
        """All memories that steps read or write."""
        return {t for step in self.steps for t in (*step.reads, *step.writes)}

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
            for op, node in (("Sigmoid", gate), ("Mul", product)):
                made = self.flow.left_by([node])
                self._add(self._deep(Step(op, i, self.flow.read_by([node]), made)))
        elif first.op in VIEWS and reads:
            self._view(reads[0], writes[0])
        elif first.op == "Concat":
            self._concat(i, first, writes[0])
        elif first.op in ("Split", "Slice") and reads:
            for name in writes:
                self._part_of(i, reads[0], name)
        elif first.op in ("Resize", "Upsample"):
            self._resize(i, kernel, reads[0], writes[0], first)
        elif first.op in _POOLS and odd_padding(kernel):
            self._pad(i, kernel, reads[0], writes)
        elif first.op == "PRelu":
            self._prelu(i, first, reads, writes)
        elif first.op == "ArgMax" and self._chaining:
            self._rowwise.update(reads)
            self._simple(i, kernel, reads, writes)
        elif first.op == "ArgMax":
            self._largest(i, kernel, reads, writes)
        else:
            self._simple(i, kernel, reads, writes)

    def _simple(
        self, i: int, kernel: Kernel, reads: tuple[str, ...], writes: tuple[str, ...]
    ) -> None:
        rows = (kernel.window[0] - 1) * kernel.dilations[0] + 1
        op = self.flow.nodes[i][0].op
        weights = float(self._weight_bytes[i])
        step = Step(op, i, reads, writes, rows, kernel.strides[0], weights)
        grouped = kernel.op == "GroupedConv"
        thin = self._thin(writes[0])
        made = writes
        # Slices are joined before an activation sees them, and thin ones are reshaped for it.
        apart = kernel.activation not in ("none", "Silu") and (
            grouped or (thin and not step.elementwise)
        )
        if apart:
            made = (f"{writes[0]}{APART}",)
            self.flow.shapes[made[0]] = self.flow.shapes[writes[0]]
            self.flow.bytes[made[0]] = self.flow.bytes[writes[0]]
        step.writes = made
        self._add(self._deep(step) if step.elementwise and not grouped else step)
        if grouped:  # runs as slices of channels
            self._rowwise.update(reads)
            if kernel.out_channels // kernel.groups % BRICK:
                self._rowwise.update(made)
            self._pieced.update(made)
            step.weight_bytes /= kernel.groups
        if apart:
            op = "Clip" if kernel.activation in CLAMPS else "Abs"
            self._add(self._deep(Step(op, i, made, writes, apart=True)))

    def _deep(self, step: Step) -> Step:
        """The elementwise step, with more channels where its tensors have few and equal shapes."""
        shapes = {self.flow.shapes[t] for t in (*step.reads, *step.writes)}
        before = self._made[-1] if self._made else step
        joins = self._chaining and before.op in ("Resize", "Upsample") and not before.on_cpu
        joins = joins and before.writes == step.reads
        if len(shapes) == 1 and self._thin(step.writes[0]) and not joins:
            step.shape = step.source = deeper(self.flow.shapes[step.writes[0]])
        return step

    def _thin(self, name: str) -> bool:
        """Whether elementwise steps give a tensor more channels, which parts of another cannot."""
        shape = self.flow.shapes[name]
        if self.flow.channels(name) >= _THIN or math.prod(shape) <= BRICK:
            return False
        readers = self.flow.readers.get(name, ())
        joined = len(readers) == 1 and self.flow.nodes[readers[0]][0].op == "Concat"
        return not (joined and name not in self.flow.outputs)

    def _largest(
        self, i: int, kernel: Kernel, reads: tuple[str, ...], writes: tuple[str, ...]
    ) -> None:
        """Values and places are joined to 16 bits, the pool's results are told apart again."""
        wide, most, found = (f"{writes[0]}/{n}" for n in ("wide", "most", "found"))
        plane = (1, 1, kernel.in_height, kernel.in_width)
        for name, shape in ((wide, self.flow.shapes[reads[0]]), (most, plane), (found, plane)):
            self.flow.shapes[name] = shape
            self.flow.bytes[name] = 2 * math.prod(shape)
        self._rowwise |= {wide, most}
        self._add(Step("Conv", i, reads, (wide,)))
        self._simple(i, kernel, (wide,), (most,))
        deep = deeper(plane)
        for op, source, target in (("Abs", most, found), ("Add", found, writes[0])):
            self._add(Step(op, i, (source,), (target,), apart=True, shape=deep, source=deep))

    def _prelu(self, i: int, node: Any, reads: tuple[str, ...], writes: tuple[str, ...]) -> None:
        """max(x, slope * x) where no slope is over 1, else relu(x) + slope * min(x, 0)."""
        slope = node.inputs[1]
        if slope.inputs and slope.inputs[0].op == "Constant":
            slope = slope.inputs[0].attrs["value"]
        slopes = values_of(slope) if isinstance(slope, gs.Constant) else None
        simple = slopes is None or slopes.max() <= 1
        if simple and self._chaining and not self._thin(writes[0]):
            self._add(Step("PRelu", i, reads, writes, chained=True))
            return
        scaled = f"{writes[0]}/scaled"
        self.flow.shapes[scaled] = self.flow.shapes[writes[0]]
        self.flow.bytes[scaled] = self.flow.bytes[writes[0]]
        self._add(Step("Mul", i, reads, (scaled,)))
        self._add(self._deep(Step("Max" if simple else "PRelu", i, (scaled, *reads), writes)))

    def _add(self, step: Step) -> None:
        step.shape = step.shape or self.flow.shapes[step.reads[0] if step.part else step.writes[0]]
        deep = bool(step.source)
        if not deep:
            step.source = self.flow.shapes[step.reads[0]] if step.reads else step.shape
        for name in (*step.reads, *step.writes):
            shape = step.shape if deep else self.flow.shapes[name]
            self._lines.setdefault(name, set()).add(line(shape))
        self._made.append(step)

    def _view(self, source: str, view: str) -> None:
        """One memory under two shapes; bricks only where both agree on columns and channels."""
        largest = max(self.flow.bytes[source], self.flow.bytes[view])
        self.flow.bytes[source] = self.flow.bytes[view] = largest
        if line(self.flow.shapes[source]) != line(self.flow.shapes[view]):
            self._rowwise |= {source, view}
        if view in self.flow.outputs and self.root(source) not in self.flow.inputs:
            self._home[self.root(source)] = view
        else:
            self._home[view] = source

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
            if name in self._same and self._only_read_once(self._same[name]):
                name = self._same[name]
            if self._only_read_once(name) and self.root(name) == name:
                self._home[name] = joined
            else:
                self._add(Step("Copy", i, (name,), (joined,), part=True))
        self._pieced.add(joined)
        self._joins.append((joined, [t.name for t in node.inputs if t.name in self.flow.shapes]))

    def _only_read_once(self, name: str) -> bool:
        edge = name in (*self.flow.outputs, *self._on_cpu) or self.root(name) in self.flow.inputs
        return not edge and len(self.flow.readers.get(name, ())) == 1

    def _part_of(self, i: int, whole: str, part: str) -> None:
        if part in self.flow.outputs:
            self._add(Step("Copy", i, (whole,), (part,), shape=self.flow.shapes[part]))
            return
        self._home[part] = whole
        if line(self.flow.shapes[whole]) != line(self.flow.shapes[part]):
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
        for size, wide in ((top, True), (bottom, True), (left, False), (right, False)):
            if size:  # zeros, after the rest
                self._early.add(len(self._made))
                strip = (n, c, size, shape[3]) if wide else (n, c, shape[2], size)
                self._add(Step("Copy", i, (), (name,), part=True, shape=strip))
        self._simple(i, kernel, (name,), writes)

    def _tensor(self, name: str, shape: tuple[int, ...], rowwise: bool = False) -> None:
        n, c, h, w = shape
        self.flow.shapes[name] = shape
        self.flow.bytes[name] = n * c * h * w
        if rowwise:
            self._rowwise.add(name)

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
        if (h, w) == (height, width):
            self._home[target] = source
            self._same[target] = source
        elif (h, w) == (1, 1) or (self._chaining and not odd):
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
            for edge in ((n, c, 1, w), (n, c, h + 2, 1)):
                for _ in range(2):
                    self._add(Step("Copy", i, (padded,), (padded,), part=True, shape=edge))
            self._rowwise.add(target)
            for _ in range(4):
                self._late.add(len(self._made))
                phase = (n, c, 2 * h - 1, 2 * w - 1)
                self._add(Step("Conv", i, (padded,), (target,), part=True, shape=phase))
        else:
            while factor > 2:
                # Enlargements over 8 are done by means of two by two until 8 are left.
                corner = corner if factor > _LARGEST_FACTOR else 0
                h, w = 2 * (h - corner) + corner, 2 * (w - corner) + corner
                name = f"{target}/{h}x{w}"
                self._tensor(name, (n, c, h, w))
                window = 2 if corner and linear else 1
                self._add(Step("Resize", i, (source,), (name,), enlarges=2, window=window))
                source, factor = name, factor // 2
            self._late.add(len(self._made))
            window = min(int(factors[0]), _LARGEST_FACTOR) if linear else 1
            self._add(Step("Resize", i, (source,), (target,), enlarges=2, window=window))

    def _writers(self) -> dict[str, list[int]]:
        """Steps that write each memory, in the order in which the compiler lists them."""
        writers: dict[str, list[int]] = {}
        places = [(i in self._late) - (i in self._early) for i in range(len(self._made))]
        for i in sorted(range(len(self._made)), key=lambda i: (places[i], i)):
            for name in self._made[i].writes:
                writers.setdefault(name, []).append(i)
        for joined, parts in self._joins:
            order = {name: n for n, name in enumerate(parts)}
            writers[self.root(joined)] = sorted(
                writers.get(self.root(joined), ()), key=lambda i, p=order: self._rank(i, p)
            )
        return writers

    def _rank(self, i: int, places: Mapping[str, int]) -> tuple[int, int, int]:
        """Copies stay where they were put; the others come after them, the last part first."""
        step = self._made[i]
        copies = step.op == "Copy"
        names = step.reads if copies else self.flow.writes[step.kernel]
        place = min((places[t] for t in names if t in places), default=-1)
        if i in self._late:
            return 2, 0, i
        return (0, place, i) if copies else (1, -place, i)
