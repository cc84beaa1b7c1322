"""Measures in rounds: after each, a model trained on what is known picks what to measure next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxnas.cost import CostModel
from onnxnas.hwmodels import dataset, measuring, training

_QUICK = training.Settings(
    trees={"conv": 200, "other": 80}, depth={"conv": 6, "other": 4},
    learning_rate={"conv": 0.2, "other": 0.2},
)  # fmt: skip
"""Good enough to tell where a model is unsure."""

_CANDIDATES = 4
"""Networks looked at for each one that a round may measure."""


def measure_in_rounds(
    backend: CostModel,
    folder: Path,
    networks: Sequence[measuring.Named],
    rounds: int,
    source: training.Source,
    progress: measuring.MeasureProgress | None = None,
) -> measuring.Harvest:
    """Measure a plan; with several rounds, its later parts in order of what a model lacks.

    The first round takes the first networks of the plan. Each later one trains on all that is
    stored and takes, from the next networks of the plan, those whose predicted intervals are
    widest and that are least covered.

    Args:
        backend: the source of truth.
        folder: of the target's data.
        networks: the plan; with one round all of it is measured.
        rounds: one or more.
        source: of the labels, for the models in between.
        progress: see `measuring.measure`.
    """
    size = -(-len(networks) // rounds)
    total = measuring.measure(backend, folder, networks[:size], progress)
    rest = list(networks[size:])
    while rest:
        data = dataset.read(folder)
        model = training.train(data, backend.target.to_dict(), source, _QUICK).model
        chosen = measuring.hardest(rest[: size * _CANDIDATES], min(size, len(rest)), model)
        names = {name for name, _ in chosen}
        rest = [n for n in rest if n[0] not in names]
        more = measuring.measure(backend, folder, chosen, progress)
        total = measuring.Harvest(
            total.measured + more.measured, total.known + more.known, (*total.failed, *more.failed)
        )
    return total
