"""A pass and a target for onnxnas in one file: all that a plug-in needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from onnxnas.cost import Cost, CostModel, KernelCost, Target
from onnxnas.ops import macs, producer, sole_consumer
from onnxnas.pass_contract import Pass, Why
from onnxnas.rewriter import Rewriter
from onnxnas.sites import Choice, Site


class ReluBeforePool(Pass):
    """Moves a Relu behind the MaxPool that reads it: the same maximum of fewer values."""

    name: ClassVar[str] = "relu-before-pool"
    summary: ClassVar[str] = "Take the maximum first, then the Relu of what is left."
    order: ClassVar[int] = 90

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        for pool in graph.nodes:
            if pool.op != "MaxPool" or len(pool.outputs) != 1:
                continue
            relu = producer(pool.inputs[0])
            if relu is None or relu.op != "Relu":
                continue
            x, y = relu.outputs[0].name, pool.outputs[0].name
            if sole_consumer(relu.outputs[0], graph) is not pool:
                why.miss(pool, f"{x!r} is also needed elsewhere")
                continue
            claims = frozenset({f"node:{x}", f"node:{y}"})
            yield Site(self.name, y, (Choice("pool-first"),), claims, {"relu": x})

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        relu, pool = rw.node(site.params["relu"]), rw.node(site.tensor)
        x, y, attrs = relu.inputs[0], pool.outputs[0], dict(pool.attrs)
        rw.remove_node(relu)
        rw.remove_node(pool)
        pooled = rw.add_node("MaxPool", [x], attrs, hint=f"{site.tensor}/pooled", dtype=y.dtype)
        rw.add_node("Relu", [pooled], output=y)


class OneMac(CostModel):
    """One multiply-accumulate, or one value of anything else, per cycle."""

    target = Target(
        name="one-mac",
        title="One MAC per cycle",
        backend="example",
        kind="estimate",
        clock_hz=1e6,
        macs_per_cycle=1,
        channel_multiples=(1,),
        notes="Counts work; knows nothing about memory.",
    )

    def cost(self, graph: Any) -> Cost:
        kernels = tuple(_kernel(node) for node in graph.nodes)
        cycles = sum(k.cycles or 0.0 for k in kernels)
        return Cost(
            target=self.target.name,
            kind=self.target.kind,
            cycles=cycles,
            seconds=cycles / self.target.clock_hz,
            macs=sum(k.macs for k in kernels),
            peak_bytes={},
            weight_bytes=None,
            kernels=kernels,
        )


def one_mac() -> CostModel:
    """What the entry point names: called without arguments, returns the cost model."""
    return OneMac()


def _kernel(node: Any) -> KernelCost:
    tensors = tuple(t.name for t in node.outputs)
    work = 1
    for size in node.outputs[0].shape:
        work *= size
    cycles = float(macs(node) or work)
    return KernelCost(tensors[-1], node.op, tensors, cycles, macs(node))
