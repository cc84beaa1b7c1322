"""What a network costs on a target: the words every cost source answers in.

A cost source (a vendor's compiler, a real run, a trained regression, an imported table) is a
`CostModel`. It takes a graph whose every tensor has a static shape and answers a `Cost`: one
`KernelCost` per kernel, the totals, and the peak memory. What it cannot cost it lists as
unavailable with the reason; an unknown kernel is never a silent zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxnas.errors import CoverageError

Kind = Literal["predicted", "estimate", "measured"]
"""Where a figure comes from: a regression, a vendor's static model, or a real run."""


@dataclass(frozen=True)
class Target:
    """One accelerator in one memory configuration: the card a cost model is loaded with.

    Attributes:
        name: kebab-case, equals the entry-point name, e.g. ``ethos-u55-128``.
        title: one line for people, e.g. ``Arm Ethos-U55, 128 MACs/cycle``.
        backend: name of the cost source, e.g. ``vela``.
        kind: what its figures are; no text may call an estimate a measurement.
        clock_hz: core clock; seconds = cycles / clock_hz.
        macs_per_cycle: int8 multiply-accumulates per cycle at best; gives a lower bound.
        channel_multiples: channel counts worth aligning to, ascending, e.g. ``(4, 8, 16)``.
        config: everything else the backend needs, as text, e.g. system configuration and
            memory mode; part of every cache key.
        notes: one or two sentences on what the figures do and do not say.
    """

    name: str
    title: str
    backend: str
    kind: Kind
    clock_hz: float
    macs_per_cycle: int
    channel_multiples: tuple[int, ...]
    config: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        return {
            "name": self.name,
            "title": self.title,
            "backend": self.backend,
            "kind": self.kind,
            "clock_hz": self.clock_hz,
            "macs_per_cycle": self.macs_per_cycle,
            "channel_multiples": list(self.channel_multiples),
            "config": dict(self.config),
            "notes": self.notes,
        }


@dataclass(frozen=True)
class KernelCost:
    """Cost of one kernel: a conv or gemm with its fused activation, or an op on its own.

    Attributes:
        output: name of the ONNX tensor the kernel writes (after a fused activation).
        op: what runs, in the backend's words, e.g. ``Conv2D`` or ``DepthwiseConv2D``.
        tensors: every ONNX tensor computed inside this kernel, `output` last.
        cycles: core cycles, or None where unavailable.
        macs: multiply-accumulates.
        reason: why `cycles` is None; empty otherwise.
        interval: lower and upper bound of `cycles` that a prediction is expected to keep, None
            for figures that are exact or of unknown precision.
        uncovered: what of the kernel lies outside the data its prediction was trained on, e.g.
            ``("out_channels 2048 > 1280",)``; empty for covered kernels and other kinds.
    """

    output: str
    op: str
    tensors: tuple[str, ...]
    cycles: float | None
    macs: int = 0
    reason: str = ""
    interval: tuple[float, float] | None = None
    uncovered: tuple[str, ...] = ()

    @property
    def covered(self) -> bool:
        """Whether the figure can be relied on as much as any other of its kind."""
        return self.cycles is not None and not self.uncovered


@dataclass(frozen=True)
class Cost:
    """Cost of a whole network on one target.

    Attributes:
        target: name of the target.
        kind: predicted, estimate or measured.
        cycles: total core cycles of everything that could be costed.
        seconds: `cycles` at the target's clock.
        macs: multiply-accumulates of the network.
        peak_bytes: peak use in bytes, per memory of the target, e.g. ``{"sram": 345600}``.
        weight_bytes: weights as the target stores them (encoded), or None where unknown.
        kernels: in execution order, the unavailable ones included.
        detail: anything else the backend says, plain JSON values.
        interval: lower and upper bound of `cycles` for predictions, else None.
    """

    target: str
    kind: Kind
    cycles: float
    seconds: float
    macs: int
    peak_bytes: Mapping[str, int]
    weight_bytes: int | None
    kernels: tuple[KernelCost, ...]
    detail: Mapping[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] | None = None

    @property
    def uncovered_share(self) -> float:
        """Share of the kernels whose cost is missing or outside the training data."""
        return sum(not k.covered for k in self.kernels) / max(1, len(self.kernels))

    @property
    def uncovered(self) -> tuple[KernelCost, ...]:
        """Kernels whose cost is missing or outside the training data, the costliest first."""
        found = [k for k in self.kernels if not k.covered]
        return tuple(sorted(found, key=lambda k: (k.cycles is not None, -(k.cycles or 0.0))))

    @property
    def unavailable(self) -> tuple[KernelCost, ...]:
        """Kernels that have no figure, each with its reason."""
        return tuple(k for k in self.kernels if k.cycles is None)

    @property
    def peak_activation_bytes(self) -> int:
        """Peak use of the busiest memory that holds activations, in bytes."""
        return max(self.peak_bytes.values(), default=0)


MAX_UNCOVERED = 0.1
"""Share of a network's kernels that a prediction may know nothing about, unless one says else."""


def refuse_uncovered(cost: Cost, target: Target, limit: float = MAX_UNCOVERED) -> None:
    """Refuse a prediction that rests on guesses; figures of other kinds are never refused.

    Args:
        cost: of a network.
        target: whose cost it is.
        limit: largest `Cost.uncovered_share`.

    Raises:
        CoverageError: more is not covered; names the worst kernels.
    """
    if cost.kind != "predicted" or cost.uncovered_share <= limit:
        return
    found = cost.uncovered
    worst = "; ".join(f"{k.output} ({k.reason or ', '.join(k.uncovered)})" for k in found[:3])
    raise CoverageError(
        f"{len(found)} of {len(cost.kernels)} kernels ({cost.uncovered_share:.0%}, allowed are "
        f"{limit:.0%}) lie outside what the cost model of {cost.target} was trained on, first of "
        f"all {worst}: train it on networks like this one with {_trained_by(target)}, or allow "
        "more with --max-uncovered."
    )


def _trained_by(target: Target) -> str:
    """The commands that train a target on a network of the user's."""
    name, like = target.name, "--like MODEL"
    if target.backend == "onnxruntime":  # this machine's own processor
        int8 = " --int8" if "int8" in target.config.get("precision", "") else ""
        return f"'onnxnas target cpu {name}.json{int8} {like}'"
    if target.backend == "csv":  # times that the user brings
        return f"'onnxnas target plan FOLDER {like}' and 'onnxnas target import'"
    return f"'onnxnas target measure {name} {like}' and 'onnxnas target train {name}'"


class CostModel(ABC):
    """A source of costs for one target.

    Implementations must be deterministic: the same graph gives the same `Cost`.
    """

    target: Target

    @abstractmethod
    def cost(self, graph: Any) -> Cost:
        """Cost one network.

        Args:
            graph: `onnx_graphsurgeon.Graph`, topologically sorted, every variable with a
                static integer shape (see `onnxnas.graph.static_view`), weights as constants.

        Raises:
            UnsupportedError: nothing in the graph can be costed.
        """

    def caveats(self) -> tuple[str, ...]:
        """What users should know about its figures where they are now, one sentence each."""
        return ()

    def cost_many(self, graphs: Sequence[Any]) -> list[Cost]:
        """Cost several networks; backends override it to work in parallel or interleaved."""
        return [self.cost(graph) for graph in graphs]

    def predictor(self) -> KernelCostModel | None:
        """What was learned from this source: answers at once, kernel by kernel; None if nothing.

        Raises:
            UsageError: there is a learned model, but it cannot be used here.
        """
        return None


@dataclass(frozen=True, slots=True)
class SeenKernel:
    """One kernel as a `KernelCostModel` sees it.

    Attributes:
        output: name of the ONNX tensor it writes; tells kernels of one network apart.
        key: everything its cycles depend on, its surroundings included.
        macs: multiply-accumulates.
        weight_bytes: of its weights as the target stores them.
        live_bytes: activations in the fullest memory while it runs.
    """

    output: str
    key: Hashable
    macs: int
    weight_bytes: float
    live_bytes: int


class KernelCostModel(CostModel):
    """A cost model whose figure for a network is the sum of its kernels'.

    `CostTable` builds on it: it looks at networks, which is slow, without costing them, and costs
    the kernels of all of them in one go.
    """

    @abstractmethod
    def see(self, graphs: Sequence[Any]) -> list[list[SeenKernel]]:
        """The kernels of each network, in order; graphs as for `cost`."""

    @abstractmethod
    def cycles_of(self, keys: Sequence[Hashable]) -> NDArray[np.float64]:
        """Cycles of kernels by their `SeenKernel.key`; NaN where there is no figure.

        The cycles of a network's keys sum up to `Cost.cycles`, those without a figure left out.
        """

    def predictor(self) -> KernelCostModel | None:
        """It is one itself."""
        return self
