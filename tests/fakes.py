"""Stand-ins for a target: costs anybody can work out by hand."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.cost import Cost, CostModel, KernelCost, KernelCostModel, SeenKernel, Target
from onnxnas.ops import macs

TARGET = Target("toy", "toy", "toy", "estimate", 1e9, 64, (4, 8), notes="made up")


class ToyCostModel(CostModel):
    """An array of 8 x 8 multipliers: channels of a group are worked on in eights.

    A conv takes H * W * kh * kw * groups * ceil(cin/8) * ceil(cout/8) cycles (channels per
    group), so a depthwise conv wastes 63 of 64 multipliers; every other node one per 64 values.
    """

    target = TARGET

    def __init__(self) -> None:
        self.calls = 0

    def cost(self, graph: Any) -> Cost:
        self.calls += 1
        kernels = []
        for node in graph.nodes:
            y = node.outputs[0]
            if node.op == "Conv":
                weight, group = node.inputs[1].shape, int(node.attrs.get("group", 1))
                steps = math.ceil(weight[1] / 8) * math.ceil(weight[0] / group / 8)
                cycles = math.prod(y.shape[2:]) * math.prod(weight[2:]) * group * steps
            else:
                cycles = math.ceil(math.prod(y.shape) / 64)
            kernels.append(KernelCost(y.name, node.op, (y.name,), float(cycles), macs(node)))
        total = sum(k.cycles or 0.0 for k in kernels)
        return Cost(
            self.target.name,
            self.target.kind,
            total,
            total / self.target.clock_hz,
            sum(k.macs for k in kernels),
            {"sram": 1024},
            1024,
            tuple(kernels),
        )


class LearnedToy(ToyCostModel, KernelCostModel):
    """A toy target that knows its kernels one by one, and what is read and written at each."""

    def cost(self, graph: Any) -> Cost:
        cost = super().cost(graph)
        live = [k.live_bytes for k in self.see([graph])[0]]
        sure = tuple(replace(k, interval=(k.cycles or 0.0, k.cycles or 0.0)) for k in cost.kernels)
        return replace(cost, peak_bytes={"sram": max(live)}, kernels=sure)

    def see(self, graphs: Sequence[Any]) -> list[list[SeenKernel]]:
        costs = [super(LearnedToy, self).cost(graph) for graph in graphs]
        return [
            [
                SeenKernel(k.output, k.cycles, k.macs, 0.0, _moved(node))
                for k, node in zip(cost.kernels, graph.nodes, strict=True)
            ]
            for cost, graph in zip(costs, graphs, strict=True)
        ]

    def cycles_of(self, keys: Sequence[Hashable]) -> NDArray[np.float64]:
        return np.array(keys, np.float64)


def _moved(node: Any) -> int:
    """Bytes of the activations that a node reads and writes."""
    tensors = [t for t in [*node.inputs, *node.outputs] if isinstance(t, gs.Variable) and t.name]
    return sum(math.prod(t.shape) for t in tensors)


class CompiledToy(LearnedToy):
    """The same as a compiler, which something was learned about."""

    def predictor(self) -> KernelCostModel:
        return LearnedToy()
