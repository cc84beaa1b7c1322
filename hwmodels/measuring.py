"""Harvests training data: whole networks through a cost source, costs booked on their kernels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.cost import Cost, CostModel
from onnxnas.errors import OnnxnasError
from onnxnas.graph import static_view
from onnxnas.hwmodels import dataset
from onnxnas.hwmodels.kernel_table import KernelTable
from onnxnas.hwmodels.placement import place
from onnxnas.hwmodels.sampling import sample_network, training_plan
from onnxnas.kernels import Kernel, split_kernels

MeasureProgress = Callable[[int, int, float], None]
"""Called with (networks done, networks in all, seconds left)."""

Named = tuple[str, Callable[[], Any]]
"""Name of a network and what makes its graph; made only if it is not measured yet."""

_BATCH = 8
"""Networks handed to the backend at once: it keeps its cores busy and little is lost by a kill."""


@dataclass(frozen=True)
class Harvest:
    """What a measurement did.

    Attributes:
        measured: networks that were costed now.
        known: networks whose file was there already.
        failed: network and reason, for those the backend refused.
        left: networks that there was no time for.
    """

    measured: int
    known: int
    failed: tuple[tuple[str, str], ...]
    left: int = 0


def measure(
    backend: CostModel,
    folder: Path,
    networks: Iterable[Named],
    progress: MeasureProgress | None = None,
    at_once: int = _BATCH,
    budget_s: float = math.inf,
) -> Harvest:
    """Cost networks and store their kernels, one file each; those stored already are skipped.

    Args:
        backend: the source of truth for one target.
        folder: of this target's data.
        networks: what to measure.
        progress: called after each batch.
        at_once: networks handed to the backend together.
        budget_s: seconds after which no batch is begun.
    """
    wanted = list(networks)
    pending = [(name, make) for name, make in wanted if not dataset.has(folder, name)]
    known, failed = len(wanted) - len(pending), list[tuple[str, str]]()
    start, left = time.monotonic(), 0
    for first in range(0, len(pending), at_once):
        if time.monotonic() - start > budget_s:
            left = len(pending) - first
            break
        chosen = pending[first : first + at_once]
        batch = [(name, static_view(make(), {})) for name, make in chosen]
        for (name, view), cost in zip(batch, _costs(backend, batch, failed), strict=True):
            if cost is not None:
                kernels = split_kernels(view)
                labels = kernel_cycles(kernels, cost)
                placed = place(backend.target, view, kernels)
                dataset.write(folder, name, KernelTable.of([kernels], [placed]), labels)
        if progress is not None:
            done = min(first + at_once, len(pending))
            spent = time.monotonic() - start
            rest = min(spent / done * (len(pending) - done), max(0.0, budget_s - spent))
            progress(known + done, len(wanted), rest)
    return Harvest(len(pending) - left - len(failed), known, tuple(failed), left)


def sampled(count: int, first: int = 0) -> list[Named]:
    """The first networks of the training plan, or later ones."""

    def named(family: str, seed: int) -> Named:
        return f"{family}-{seed}", lambda: sample_network(family, seed)

    return [named(family, seed) for family, seed in training_plan(count, first)]


def hardest(candidates: Sequence[Named], count: int, model: CostModel) -> list[Named]:
    """The networks a model is least sure of: the next ones to measure (uncertainty sampling).

    Args:
        candidates: networks that could be measured.
        count: how many to choose.
        model: trained on what was measured so far; its intervals say how sure it is, and a
            kernel outside its coverage counts as not known at all.
    """
    costs = model.cost_many([static_view(make(), {}) for _, make in candidates])
    doubt = [_doubt(cost) for cost in costs]
    order = sorted(range(len(candidates)), key=lambda i: (-doubt[i], candidates[i][0]))
    return [candidates[i] for i in sorted(order[:count])]


def kernel_cycles(kernels: Sequence[Kernel], cost: Cost) -> NDArray[np.float64]:
    """The backend's cycles booked on the kernels of our split, in their order.

    A backend may run several of our kernels as one: the one with most work gets the cycles, the
    others none. A kernel whose tensors the backend does not mention costs nothing. NaN where the
    backend has no figure.

    Raises:
        OnnxnasError: the backend costs a tensor that no kernel computes.
    """
    home = {tensor: i for i, kernel in enumerate(kernels) for tensor in kernel.tensors}
    cycles = np.zeros(len(kernels))
    for part in cost.kernels:
        places = sorted({home[t] for t in part.tensors if t in home})
        if not places:
            raise OnnxnasError(f"{cost.target} costs {part.output!r}, which no kernel computes.")
        if part.cycles is None:
            cycles[places] = np.nan
        else:
            cycles[max(places, key=lambda i: (kernels[i].macs, -i))] += part.cycles
    return cycles


def _costs(
    backend: CostModel, batch: Sequence[tuple[str, Any]], failed: list[tuple[str, str]]
) -> list[Cost | None]:
    try:
        return list(backend.cost_many([view for _, view in batch]))
    except OnnxnasError:
        pass  # one network spoils a batch: find out which
    costs: list[Cost | None] = []
    for name, view in batch:
        try:
            costs.append(backend.cost(view))
        except OnnxnasError as error:
            failed.append((name, str(error)))
            costs.append(None)
    return costs


def _doubt(cost: Cost) -> float:
    if not cost.cycles or cost.interval is None:
        return 1.0
    return (cost.interval[1] - cost.interval[0]) / cost.cycles + cost.uncovered_share
