"""Predicted costs: a CatBoost regression over kernels, summed over a network.

An artefact is two files side by side: ``NAME.json``, the target's card with a ``cost_model``
entry (what the model was trained on, how good it is, its vocabulary, baseline and coverage), and
``NAME.cbm``, the trees in CatBoost's own format. Loading either executes nothing.

The trees predict the natural logarithm of a kernel's cycles over its `Baseline`. Intervals are
split-conformal (Vovk et al., 2005): per operator, the error that 90 % of the kernels of held-out
networks keep; and for networks, the factor on the root sum of squares of those that 90 % keep.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.cost import Cost, KernelCost, KernelCostModel, SeenKernel, Target
from onnxnas.errors import UsageError
from onnxnas.hwmodels import ort_placement
from onnxnas.hwmodels.baseline import Baseline
from onnxnas.hwmodels.coverage import Coverage
from onnxnas.hwmodels.ethos_memory import Arrangement, System, arrange
from onnxnas.hwmodels.features import FEATURES, feature_matrix
from onnxnas.hwmodels.kernel_table import KernelTable
from onnxnas.hwmodels.peak_memory import live_bytes, stored_weights, with_memory
from onnxnas.hwmodels.placement import Placement, place
from onnxnas.hwmodels.processor import processor
from onnxnas.kernels import Kernel, split_kernels
from onnxnas.weight_statistics import WeightStatistics

FORMAT = 1
"""Of the card's ``cost_model`` entry; a card of another format is refused."""

_MEMORY_ENTRIES = 200_000


@dataclass(frozen=True)
class Interval:
    """How far predictions of kernels and networks are off in nine cases of ten.

    Attributes:
        operators: operator -> bound of the absolute error of the logarithm; ``*`` for all others.
        network: factor on `root_sum` that bounds the error of a network's total.
    """

    operators: Mapping[str, float]
    network: float

    def kernel(self, ops: NDArray[np.str_]) -> NDArray[np.float64]:
        """Bound of each row."""
        names, codes = np.unique(ops, return_inverse=True)
        bounds = [self.operators.get(str(n), self.operators["*"]) for n in names]
        return np.array(bounds, np.float64)[codes]


def root_sum(cycles: NDArray[np.float64], widths: NDArray[np.float64]) -> float:
    """Size of a network's error if its kernels' errors are independent, cycles."""
    return float(np.sqrt(((cycles * np.expm1(widths)) ** 2).sum()))


class CatBoostCostModel(KernelCostModel):
    """The trained model of one target.

    Args:
        target: the card, of kind ``predicted``.
        trees: ``catboost.CatBoostRegressor`` or ``CatBoost``.
        entry: the ``cost_model`` entry of the card.
    """

    def __init__(self, target: Target, trees: Any, entry: Mapping[str, Any]) -> None:
        self.target = target
        self.entry = entry
        self._trees = trees
        self._ops: list[str] = list(entry["ops"])
        self._activations: list[str] = list(entry["activations"])
        self._baseline = Baseline.from_dict(entry["baseline"])
        names = list(FEATURES)
        self._columns = [names.index(name) for name in entry["features"]]
        self._coverage = Coverage.from_dict(entry["coverage"])
        self._interval = Interval(entry["interval"]["operators"], entry["interval"]["network"])
        self._statistics = WeightStatistics()
        self._system = System.of(target)
        self._known: dict[bytes, float] = {}

    def cost(self, graph: Any) -> Cost:
        """See `CostModel.cost`."""
        return self.cost_many([graph])[0]

    def caveats(self) -> tuple[str, ...]:
        """Says so where the figures are of a processor, and this is another."""
        there = self.target.config.get("processor")
        if there in (None, here := processor()):
            return ()
        return (
            f"The figures of {self.target.name} were measured on {there}, this is {here}: run "
            "'onnxnas target cpu' for figures of this processor.",
        )

    def cost_many(self, graphs: Sequence[Any]) -> list[Cost]:
        """Costs of several networks from one call of the regression."""
        networks, found, placements = self._split(graphs)
        costs = self.cost_kernels(networks, placements)
        return [
            with_memory(cost, self.target, graph, kernels, arrangement)
            for cost, graph, kernels, arrangement in zip(
                costs, graphs, networks, found, strict=True
            )
        ]

    def cost_kernels(
        self,
        networks: Sequence[Sequence[Kernel]],
        placements: Sequence[Placement] | None = None,
    ) -> list[Cost]:
        """Costs of networks that are split already, peak memory left out.

        Args:
            networks: kernels of each.
            placements: of each on the target; without, as if memory did not matter.
        """
        if not networks:
            return []
        table = KernelTable.of(networks, placements)
        cycles = self.predict(table)
        widths = self._interval.kernel(table.ops)
        gaps = self._coverage.gaps(table)
        ends = [*table.starts[1:], len(table)]
        costs = []
        for kernels, start, end in zip(networks, table.starts, ends, strict=True):
            rows = slice(int(start), int(end))
            costs.append(self._cost(kernels, cycles[rows], widths[rows], gaps[rows]))
        return costs

    def see(self, graphs: Sequence[Any]) -> list[list[SeenKernel]]:
        """See `KernelCostModel.see`."""
        networks, found, placements = self._split(graphs)
        table = KernelTable.of(networks, placements)
        matrix, base = self._features(table)
        keys = [r.tobytes() + b.tobytes() for r, b in zip(matrix, base, strict=True)]
        unknown = self._coverage.unknown
        seen, first = [], 0
        for graph, kernels, arrangement in zip(graphs, networks, found, strict=True):
            weights = stored_weights(self.target, kernels)
            live = live_bytes(self.target, graph, kernels, arrangement)
            own, first = keys[first : first + len(kernels)], first + len(kernels)
            rows = zip(kernels, own, weights, live, strict=True)
            seen.append(
                [
                    SeenKernel(k.output, None if unknown(k.op) else key, k.macs, stored, alive)
                    for k, key, stored, alive in rows
                ]
            )
        return seen

    def cycles_of(self, keys: Sequence[Hashable]) -> NDArray[np.float64]:
        """See `KernelCostModel.cycles_of`."""
        cycles = np.full(len(keys), np.nan)
        known = {i: key for i, key in enumerate(keys) if isinstance(key, bytes)}
        if known:
            base = np.frombuffer(b"".join(key[-8:] for key in known.values()), np.float64)
            logs = self._logs([key[:-8] for key in known.values()])
            cycles[list(known)] = base * np.exp(logs)
        return cycles

    def predict(self, table: KernelTable) -> NDArray[np.float64]:
        """Cycles of every row; kernels met before in the same context cost no evaluation."""
        if not len(table):
            return np.zeros(0)
        matrix, base = self._features(table)
        result: NDArray[np.float64] = base * np.exp(self._logs([r.tobytes() for r in matrix]))
        return result

    def _split(
        self, graphs: Sequence[Any]
    ) -> tuple[list[list[Kernel]], list[Arrangement | None], list[Placement]]:
        """Kernels of each network, its arrangement if the target has one, and its placement."""
        networks = [split_kernels(graph, self._statistics) for graph in graphs]
        if self.target.backend == "onnxruntime":
            networks = [ort_placement.alike(kernels) for kernels in networks]
        pairs = list(zip(graphs, networks, strict=True))
        system = self._system
        found = [None if system is None else arrange(g, kernels, system) for g, kernels in pairs]
        placements = [
            place(self.target, graph, kernels, arrangement)
            for (graph, kernels), arrangement in zip(pairs, found, strict=True)
        ]
        return networks, found, placements

    def _features(self, table: KernelTable) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Features and baseline of every row."""
        bounds = self._baseline.bounds(table)
        base = self._baseline.guess(table, bounds)
        matrix = feature_matrix(table, bounds, base, self._ops, self._activations)
        return np.ascontiguousarray(matrix[:, self._columns]), base

    def _logs(self, rows: Sequence[bytes]) -> NDArray[np.float64]:
        """What the trees say to rows of features."""
        if len(self._known) > _MEMORY_ENTRIES:
            self._known.clear()
        if new := list(dict.fromkeys(row for row in rows if row not in self._known)):
            matrix = np.frombuffer(b"".join(new), np.float32).reshape(len(new), -1)
            found = self._trees.predict(matrix, thread_count=1)
            self._known.update(zip(new, found.tolist(), strict=True))
        return np.array([self._known[row] for row in rows])

    def _cost(
        self,
        kernels: Sequence[Kernel],
        cycles: NDArray[np.float64],
        widths: NDArray[np.float64],
        gaps: Sequence[tuple[str, ...]],
    ) -> Cost:
        parts = []
        known = np.array([not self._coverage.unknown(k.op) for k in kernels], bool)
        for i, kernel in enumerate(kernels):
            value = float(cycles[i])
            factor = float(np.exp(widths[i]))
            activation = "" if kernel.activation == "none" else f"+{kernel.activation}"
            parts.append(
                KernelCost(
                    output=kernel.output,
                    op=f"{kernel.op}{activation}",
                    tensors=kernel.tensors,
                    cycles=value if known[i] else None,
                    macs=kernel.macs,
                    reason="" if known[i] else f"the cost model has never seen {kernel.op}",
                    interval=(value / factor, value * factor) if known[i] else None,
                    uncovered=gaps[i],
                )
            )
        total = float(cycles[known].sum())
        half = self._interval.network * root_sum(cycles[known], widths[known])
        return Cost(
            target=self.target.name,
            kind="predicted",
            cycles=total,
            seconds=total / self.target.clock_hz,
            macs=sum(k.macs for k in kernels),
            peak_bytes={},
            weight_bytes=None,
            kernels=tuple(parts),
            interval=(max(0.0, total - half), total + half),
        )


def load(card: Path) -> CatBoostCostModel:
    """The model of a card whose ``.cbm`` lies beside it.

    Raises:
        UsageError: the card has no trained model, or one this version cannot read.
    """
    fields: dict[str, Any] = json.loads(card.read_text(encoding="utf-8"))
    entry = fields.pop("cost_model", None)
    trees_file = card.with_suffix(".cbm")
    if entry is None or not trees_file.exists():
        raise UsageError(
            f"Target {card.stem!r} has no trained cost model: run 'onnxnas target train'."
        )
    if entry["format"] != FORMAT or not set(entry["features"]) <= set(FEATURES):
        raise UsageError(
            f"The cost model of {card.stem!r} was trained by another version of onnxnas: run "
            "'onnxnas target train' again."
        )
    from catboost import CatBoost  # a second of import time, only where it is needed

    trees = CatBoost()
    trees.load_model(blob=trees_file.read_bytes())  # by name it prints a warning of no use
    return CatBoostCostModel(read_target(fields), trees, entry)


def read_target(fields: Mapping[str, Any]) -> Target:
    """The target of a card's fields, of kind ``predicted``."""
    known = {k: v for k, v in fields.items() if k != "cost_model"}
    known["channel_multiples"] = tuple(known["channel_multiples"])
    return Target(**{**known, "kind": "predicted"})
