"""Splits a network into kernels: what an accelerator's runtime executes as one piece of work.

A convolution or matrix product takes its activation along, written in one node or, like
hard-swish, in several; a residual Add, a pool, a resize or a concatenation is a kernel of its
own. The split is the same for every target. Which of these a given target fuses further (a
residual chained to its convolution, say) is for its cost model to learn: kernels know their
neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from onnxnas.fusion import ARITHMETIC, CONVOLUTIONS, group_from, is_constant
from onnxnas.ops import macs, require_shapes, stored_bytes
from onnxnas.weight_statistics import WeightStatistics

_LARGEST_STEP = 8
"""Larger enlargements are done in several steps, of which the last dominates."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a static-shape network, and where it stands in it.

    Sizes are those of the first input and of the output, as batch, channels, height, width;
    tensors of lower rank have ones at the end, of higher rank their last axes joined. Bytes are
    those of int8 activations (int32 for integers that are no bytes).

    Attributes:
        output: tensor it writes, after the activation.
        tensors: every tensor computed inside, in order, `output` last.
        op: ONNX operator, made specific where costs differ in kind: ``DepthwiseConv``,
            ``GroupedConv``, ``Gemm`` (also MatMul by a constant), ``MulBroadcast``,
            ``AddConstant``, ``ResizeNearest``.
        activation: fused activation, ``none`` without; Clip is ``Relu6`` or ``Relu`` where it
            begins at 0, SiLU and hard-swish are recognised also in pieces.
        window, strides, dilations: (height, width); of a linear resize, the window is its
            enlargement, at most 8: that many times the values go into one step.
        pads: (top, left, bottom, right) that windows really read, auto_pad resolved.
        offset_step: of a concatenation, the largest power of two up to 32 that divides the
            places where its inputs begin; 0 for all else.
        macs: multiply-accumulates.
        in_bytes: of the first input that is computed by the network.
        operand_bytes: of the other such inputs.
        operands: number of such inputs, the first included.
        out_bytes: of the output.
        weights: number of constant weights, bias not counted.
        entropy_bits: Shannon entropy of one int8-quantised weight, bits; 0 without weights.
        rice_bits: bits per weight of the best Golomb-Rice code, at most 8.
        shared_bytes: inputs that other kernels read too, or that are inputs of the network.
        live_bytes: activations that exist while it runs, its own included.
        live_blocks: the same, channels rounded up to 16 as blocked layouts store them.
        reads_input, writes_output: it touches an input or output of the network.
        readers: number of kernels that read the output.
        producer: index of the last kernel whose result it reads, -1 if none.
        oldest_producer: index of the first such kernel, -1 if none.
        consumer: index of the first kernel that reads the output, -1 if none.
        last_consumer: index of the last such kernel, -1 if none.
    """

    output: str
    tensors: tuple[str, ...]
    op: str
    activation: str
    batch: int
    in_channels: int
    in_height: int
    in_width: int
    out_channels: int
    out_height: int
    out_width: int
    window: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int
    offset_step: int
    macs: int
    in_bytes: int
    operand_bytes: int
    operands: int
    out_bytes: int
    weights: int
    entropy_bits: float
    rice_bits: float
    shared_bytes: int = 0
    live_bytes: int = 0
    live_blocks: int = 0
    reads_input: bool = False
    writes_output: bool = False
    readers: int = 0
    producer: int = -1
    oldest_producer: int = -1
    consumer: int = -1
    last_consumer: int = -1

    @property
    def key(self) -> tuple[object, ...]:
        """What the kernel is, wherever it stands and whatever its tensors are called."""
        return tuple(getattr(self, name) for name in _OWN)

    @property
    def weight_bytes(self) -> float:
        """Estimated size of the entropy-coded weights."""
        return self.weights * self.rice_bits / 8


_PLACE = frozenset(
    {
        "output",
        "tensors",
        "shared_bytes",
        "live_bytes",
        "live_blocks",
        "reads_input",
        "writes_output",
        "readers",
        "producer",
        "oldest_producer",
        "consumer",
        "last_consumer",
    }
)
_OWN = tuple(f.name for f in fields(Kernel) if f.name not in _PLACE)


def split_kernels(graph: Any, statistics: WeightStatistics | None = None) -> list[Kernel]:
    """Kernels of a network in execution order; every computed tensor is in exactly one.

    Args:
        graph: `gs.Graph` with static shapes; is not changed, no lazy weight of it is computed.
        statistics: remembers what it learned about weights between graphs that share them.

    Raises:
        UnsupportedError: a shape is not known.
    """
    require_shapes(graph)
    return _Split(graph, statistics or WeightStatistics()).kernels()


class _Split:
    def __init__(self, graph: Any, statistics: WeightStatistics) -> None:
        self.graph = graph
        self.statistics = statistics
        self.outputs = {id(t) for t in graph.outputs}
        self.inputs = {id(t) for t in graph.inputs}

    def kernels(self) -> list[Kernel]:
        absorbed: set[int] = set()
        groups: list[list[Any]] = []
        alone: list[Kernel] = []
        for node in self.graph.nodes:
            if id(node) in absorbed or node.op == "Constant" or not node.outputs:
                continue
            nodes, activation = group_from(node, self.outputs)
            absorbed.update(id(n) for n in nodes)
            groups.append(nodes)
            alone.append(self._kernel(nodes, activation))
        return self._placed(alone, groups)

    def _kernel(self, nodes: Sequence[Any], activation: str) -> Kernel:
        first = nodes[0]
        inside = {id(t) for n in nodes for t in n.outputs}
        variables = _distinct(
            t
            for n in nodes
            for t in n.inputs
            if id(t) not in inside and not is_constant(t) and t.name
        )
        y, made = nodes[-1].outputs[0], (t for n in nodes for t in n.outputs)
        x_shape = _four(variables[0].shape if variables else first.outputs[0].shape)
        y_shape = _four(_kept(first, variables))
        weight = _weight(first)
        bits = (0.0, 0.0) if weight is None else self.statistics.bits(weight[0], weight[1])
        window = _window(first, x_shape, y_shape)
        attrs = first.attrs
        return Kernel(
            output=y.name,
            tensors=(*(t.name for t in made if t.name and t is not y), y.name),
            op=_op(first, variables),
            activation=activation,
            batch=x_shape[0],
            in_channels=x_shape[1],
            in_height=x_shape[2],
            in_width=x_shape[3],
            out_channels=y_shape[1],
            out_height=y_shape[2],
            out_width=y_shape[3],
            window=window,
            strides=_two(attrs.get("strides")),
            dilations=_two(attrs.get("dilations")),
            pads=_pads(first, x_shape, y_shape, window),
            groups=int(attrs.get("group", 1)),
            offset_step=_offset_step(first),
            macs=macs(first),
            in_bytes=_bytes(variables[0]) if variables else 0,
            operand_bytes=sum(_bytes(t) for t in variables[1:]),
            operands=len(variables),
            out_bytes=_bytes(y),
            weights=0 if weight is None else math.prod(weight[0].shape),
            entropy_bits=bits[0],
            rice_bits=bits[1],
        )

    def _placed(self, alone: Sequence[Kernel], groups: Sequence[Sequence[Any]]) -> list[Kernel]:
        """The kernels with what their place in the network adds."""
        writer: dict[int, int] = {}
        reads: list[list[Any]] = []
        last_use: dict[int, int] = {}
        size: dict[int, int] = {}
        blocks: dict[int, int] = {}
        readers: list[list[int]] = [[] for _ in groups]
        read_by: dict[int, int] = {}
        for i, nodes in enumerate(groups):
            inside = {id(t) for n in nodes for t in n.outputs}
            tensors = _distinct(
                t
                for n in nodes
                for t in n.inputs
                if id(t) not in inside and not is_constant(t) and t.name
            )
            reads.append(tensors)
            for tensor in tensors:
                last_use[id(tensor)] = i
                read_by[id(tensor)] = read_by.get(id(tensor), 0) + 1
                size[id(tensor)], blocks[id(tensor)] = _bytes(tensor), _blocks(tensor)
                if id(tensor) in writer:
                    readers[writer[id(tensor)]].append(i)
            for tensor in _written(nodes, inside, self.outputs):
                writer[id(tensor)] = i
                last_use.setdefault(id(tensor), i)
                size[id(tensor)], blocks[id(tensor)] = _bytes(tensor), _blocks(tensor)
        for key in self.outputs:
            if key in writer:
                last_use[key] = len(groups)
        change, block_change = [0] * (len(groups) + 1), [0] * (len(groups) + 1)
        for key, last in last_use.items():
            begin, end = writer.get(key, 0), min(last + 1, len(groups))
            change[begin] += size[key]
            change[end] -= size[key]
            block_change[begin] += blocks[key]
            block_change[end] -= blocks[key]
        placed, alive, alive_blocks = [], 0, 0
        for i, kernel in enumerate(alone):
            alive += change[i]
            alive_blocks += block_change[i]
            producers = [writer[id(t)] for t in reads[i] if id(t) in writer]
            placed.append(
                replace(
                    kernel,
                    shared_bytes=sum(
                        size[id(t)]
                        for t in reads[i]
                        if read_by[id(t)] > 1 or id(t) in self.inputs or id(t) in self.outputs
                    ),
                    live_bytes=alive,
                    live_blocks=alive_blocks,
                    reads_input=any(id(t) in self.inputs for t in reads[i]),
                    writes_output=any(id(t) in self.outputs for n in groups[i] for t in n.outputs),
                    readers=len(readers[i]),
                    producer=max(producers, default=-1),
                    oldest_producer=min(producers, default=-1),
                    consumer=readers[i][0] if readers[i] else -1,
                    last_consumer=readers[i][-1] if readers[i] else -1,
                )
            )
        return placed


def _op(node: Any, variables: Sequence[Any]) -> str:
    op = str(node.op)
    if op == "Conv":
        group = int(node.attrs.get("group", 1))
        if group == 1:
            return "Conv"
        return "DepthwiseConv" if int(node.inputs[1].shape[1]) == 1 else "GroupedConv"
    if op == "MatMul" and is_constant(node.inputs[1]):
        return "Gemm"
    if op in ("Resize", "Upsample"):
        corners = node.attrs.get("coordinate_transformation_mode") == "align_corners"
        mode = str(node.attrs.get("mode", "nearest")).capitalize()
        return f"Resize{mode}{'Corners' if corners else ''}"
    if op in ARITHMETIC:
        if len(variables) < 2:
            return f"{op}Constant"
        shapes = {tuple(t.shape) for t in variables}
        return op if len(shapes) == 1 else f"{op}Broadcast"
    if op == "ReduceMean" and len(variables[0].shape) == 4:
        height, width = node.outputs[0].shape[2:] if len(node.outputs[0].shape) == 4 else (1, 1)
        return "GlobalAveragePool" if (height, width) == (1, 1) else op
    return op


def _weight(node: Any) -> tuple[Any, int] | None:
    """The weight constant of a kernel and the axis of its output channels."""
    if node.op not in (*CONVOLUTIONS, "Gemm", "MatMul") or not is_constant(node.inputs[1]):
        return None
    if node.op == "ConvTranspose":
        axis = 1
    elif node.op == "Conv" or node.attrs.get("transB"):
        axis = 0
    else:
        axis = len(node.inputs[1].shape) - 1
    return node.inputs[1], axis


def _window(node: Any, x: Sequence[int], y: Sequence[int]) -> tuple[int, int]:
    if node.op in ("Resize", "Upsample") and node.attrs.get("mode") == "linear":
        height, width = (
            1 if x[a] == 1 else min(_LARGEST_STEP, max(1, round(y[a] / x[a]))) for a in (2, 3)
        )
        return height, width
    if node.op in CONVOLUTIONS:
        return _two(node.inputs[1].shape[2:])
    if node.op.startswith("Global"):
        return _two(node.inputs[0].shape[2:])
    return _two(node.attrs.get("kernel_shape"))


def _pads(
    node: Any, x: Sequence[int], y: Sequence[int], window: tuple[int, int]
) -> tuple[int, int, int, int]:
    if node.op not in ("Conv", "MaxPool", "AveragePool"):
        return 0, 0, 0, 0
    strides, dilations = _two(node.attrs.get("strides")), _two(node.attrs.get("dilations"))
    begins, ends = [], []
    declared = [int(p) for p in node.attrs.get("pads") or (0, 0, 0, 0)]
    mode = node.attrs.get("auto_pad", "NOTSET")
    for i in range(2):
        needed = (y[2 + i] - 1) * strides[i] + (window[i] - 1) * dilations[i] + 1 - x[2 + i]
        if mode == "NOTSET":
            begin = declared[i] if len(declared) == 4 else i * declared[0]
        else:
            half = max(0, needed) // 2
            begin = {"SAME_UPPER": half, "SAME_LOWER": max(0, needed) - half}.get(mode, 0)
        begins.append(begin)
        ends.append(max(0, needed - begin))
    return begins[0], begins[1], ends[0], ends[1]


def _written(nodes: Sequence[Any], inside: set[int], outputs: set[int]) -> list[Any]:
    """Tensors that leave the kernel: read outside of it, or outputs of the network."""
    own = {id(n) for n in nodes}
    return [
        t
        for n in nodes
        for t in n.outputs
        if t.name
        and (id(t) in outputs or n is nodes[-1] or any(id(r) not in own for r in t.outputs))
    ]


def _distinct(tensors: Any) -> list[Any]:
    return list({id(t): t for t in tensors}.values())


def _bytes(tensor: Any) -> int:
    return math.prod(int(d) for d in tensor.shape or ()) * stored_bytes(tensor)


def _offset_step(node: Any) -> int:
    if node.op != "Concat":
        return 0
    axis = int(node.attrs.get("axis", 1))
    return math.gcd(32, *(int(t.shape[axis]) for t in node.inputs[:-1]))


def _kept(node: Any, variables: Sequence[Any]) -> list[int]:
    """Output shape; an axis that a reduction drops stays, of size 1."""
    shape = list(node.outputs[0].shape)
    axis = node.attrs.get("axis")
    if node.op in ("ArgMax", "ArgMin") and variables and len(shape) == len(variables[0].shape) - 1:
        shape.insert(int(axis or 0) % (len(shape) + 1), 1)
    return shape


def _blocks(tensor: Any) -> int:
    shape: Sequence[int] = tensor.shape or ()
    channels = int(shape[1]) if len(shape) > 1 else 1
    return _bytes(tensor) // channels * -(-channels // 16) * 16


def _four(shape: Sequence[int] | None) -> tuple[int, int, int, int]:
    sizes = [int(d) for d in shape or ()]
    sizes += [1] * (4 - len(sizes))
    return sizes[0], sizes[1], sizes[2], math.prod(sizes[3:])


def _two(value: Sequence[Any] | None) -> tuple[int, int]:
    """(height, width); a 1-D window is one row high."""
    if not value:
        return 1, 1
    return (1, int(value[0])) if len(value) == 1 else (int(value[0]), int(value[1]))
