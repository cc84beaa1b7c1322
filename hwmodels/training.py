"""Trains the cost model of a target on measured networks and writes its artefact."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.cost import Kind
from onnxnas.errors import UsageError
from onnxnas.hwmodels import grouped_trees
from onnxnas.hwmodels.accuracy import THRESHOLDS, Accuracy, accuracy
from onnxnas.hwmodels.baseline import Baseline
from onnxnas.hwmodels.catboost_model import FORMAT, CatBoostCostModel, read_target, root_sum
from onnxnas.hwmodels.coverage import Coverage
from onnxnas.hwmodels.dataset import Dataset
from onnxnas.hwmodels.features import FEATURES, GROUPS, feature_matrix
from onnxnas.hwmodels.kernel_table import KernelTable

MAX_BYTES = 2_000_000
"""Of the trees' file."""

_HELD_OUT = 10
"""One network in so many is held out to measure errors; the shipped trees see it again."""
_QUANTILE = 0.9
_FLOOR = 0.03
"""Kernels that cost nothing count as this part of their baseline: logarithms need a number, and
smaller ones would keep the trees busy with what adds next to nothing."""
_ROBUST: Mapping[str, Any] = {
    "loss_function": "Huber:delta=0.1",
    "leaf_estimation_method": "Gradient",
    "leaf_estimation_iterations": 1,
}
"""Newton's steps have no bound where all of a leaf is farther off than `delta`; these have."""
_ENOUGH = 20
"""Kernels of an operator that make a quantile of its own."""


@dataclass(frozen=True)
class Settings:
    """Of the regression.

    Attributes:
        trees: of each group of operators; groups that are not named take those of ``other``.
        depth: of the trees of each group.
        learning_rate: of each group.
        features_share: share of the features each split may choose from.
        seed: of all chance.
        threads: None for all cores.
    """

    trees: Mapping[str, int] = field(
        default_factory=lambda: {"conv": 300, "depthwise": 150, "other": 100}
    )
    depth: Mapping[str, int] = field(
        default_factory=lambda: {"conv": 6, "depthwise": 6, "other": 4}
    )
    learning_rate: Mapping[str, float] = field(
        default_factory=lambda: {"conv": 0.1, "depthwise": 0.1, "other": 0.12}
    )
    features_share: float = 0.4
    seed: int = 0
    threads: int | None = None

    def options(self, group: str, ruled: bool = False) -> dict[str, Any]:
        """Of ``catboost.CatBoostRegressor`` for one group.

        Args:
            group: of operators.
            ruled: the baseline knows how the compiler counts: most kernels need no correction,
                and the few that do must not pull on the others.
        """
        name = group if group in self.trees else "other"
        return {
            **(_ROBUST if ruled else {"loss_function": "RMSE"}),
            "iterations": self.trees[name],
            "depth": self.depth[name],
            "learning_rate": self.learning_rate[name],
            "rsm": self.features_share,
            "l2_leaf_reg": 1.0,
            "bootstrap_type": "No",
            "random_seed": self.seed,
            "thread_count": self.threads or -1,
            "allow_writing_files": False,
            "verbose": False,
        }


@dataclass(frozen=True)
class Source:
    """Where labels come from.

    Attributes:
        backend: its name.
        version: of it.
        kind: what its figures are.
    """

    backend: str
    version: str
    kind: Kind


@dataclass(frozen=True)
class Trained:
    """A trained model that is not written yet.

    Attributes:
        model: ready to use.
        trees: as CatBoost's regressor.
        errors: on held-out networks, by family and ``all``.
    """

    model: CatBoostCostModel
    trees: Any
    errors: Mapping[str, Accuracy]


def train(
    data: Dataset, card: Mapping[str, Any], source: Source, settings: Settings | None = None
) -> Trained:
    """Fit the regression, first without one network in ten to learn its errors, then on all.

    Args:
        data: labelled networks.
        card: fields of the target's card; thresholds of an earlier model in it are kept.
        source: of the labels.
        settings: of the regression.

    Raises:
        UsageError: there is too little data, or CatBoost is not installed.
    """
    settings = settings or Settings()
    held = {name for i, name in enumerate(data.names) if i % _HELD_OUT == _HELD_OUT // 2}
    if len(data.names) < 2 or not held:
        raise UsageError(
            f"{len(data.names)} networks are too few to train on: measure at least {_HELD_OUT}."
        )
    kept = data.select(lambda name: name not in held)
    test = data.select(lambda name: name in held)
    target = read_target(card)
    entry = _entry(kept, source)
    model = CatBoostCostModel(target, _fit(kept, entry, settings), entry)
    predicted = model.predict(test.table)
    errors = by_family(test, predicted)
    entry = _entry(data, source)
    entry["interval"] = _interval(test, predicted)
    entry["thresholds"] = dict(card.get("cost_model", {}).get("thresholds", THRESHOLDS))
    entry["errors"] = {name: value.to_dict() for name, value in errors.items()}
    trees = _fit(data, entry, settings)
    return Trained(CatBoostCostModel(target, trees, entry), trees, errors)


def write(trained: Trained, card: Path) -> None:
    """Write the trees beside a card and the ``cost_model`` entry into it.

    Raises:
        UsageError: the trees are larger than an artefact may be.
    """
    trees = card.with_suffix(".cbm")
    part = trees.with_name(f".{trees.name}.{os.getpid()}.part")
    trained.trees.save_model(str(part))
    if part.stat().st_size > MAX_BYTES:
        size = part.stat().st_size
        part.unlink()
        raise UsageError(f"The trees take {size:,} bytes, {MAX_BYTES:,} are allowed: use fewer.")
    fields: dict[str, Any] = json.loads(card.read_text(encoding="utf-8"))
    fields["cost_model"] = trained.model.entry
    text = card.with_name(f".{card.name}.{os.getpid()}.part")
    text.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    os.replace(part, trees)
    os.replace(text, card)


def by_family(data: Dataset, predicted: NDArray[np.float64]) -> dict[str, Accuracy]:
    """Accuracy over all networks and over those of each family."""
    known = ~np.isnan(data.cycles)
    network = data.table.network
    count = len(data.names)
    true = np.bincount(network[known], data.cycles[known], minlength=count).astype(np.float64)
    guess = np.bincount(network[known], predicted[known], minlength=count).astype(np.float64)
    families = np.array(data.families)
    result = {"all": accuracy(true, guess)}
    for name in sorted(set(data.families)):
        rows = families == name
        result[name] = accuracy(true[rows], guess[rows])
    return result


def _entry(data: Dataset, source: Source) -> dict[str, Any]:
    """The card's entry, without what only held-out networks can tell."""
    known = ~np.isnan(data.cycles)
    seen = KernelTable(
        data.table.ops[known],
        data.table.activations[known],
        data.table.numbers[known],
        np.zeros(1, np.int64),
    )
    baseline = Baseline.fit(data.table, data.cycles)
    return {
        "format": FORMAT,
        "backend": source.backend,
        "backend_version": source.version,
        "label_kind": source.kind,
        "label": "cycles of each kernel inside its whole network",
        "trained": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "data_sha256": data.sha256,
        "networks": len(data.names),
        "kernels": int(known.sum()),
        "families": data.counts(),
        "features": list(FEATURES),
        "ops": sorted(set(seen.ops.tolist())),
        "activations": sorted(set(seen.activations.tolist())),
        "baseline": baseline.to_dict(),
        "coverage": Coverage.of(seen).to_dict(),
        "interval": {"operators": {"*": 0.0}, "network": 1.0},
        "errors": {},
    }


def _fit(data: Dataset, entry: Mapping[str, Any], settings: Settings) -> Any:
    known = ~np.isnan(data.cycles)
    baseline = Baseline.from_dict(entry["baseline"])
    bounds = baseline.bounds(data.table)
    base = baseline.guess(data.table, bounds)
    matrix = feature_matrix(data.table, bounds, base, entry["ops"], entry["activations"])
    cycles = np.nan_to_num(data.cycles)
    target = np.log(np.maximum(cycles, base * _FLOOR) / base)
    # Errors matter in proportion to a kernel's part of its network; the root keeps small ones
    # from being ignored: they are large in other networks.
    share = cycles / np.maximum(data.network_cycles()[data.table.network], 1.0)
    weight = np.sqrt(np.maximum(share, 1e-4))
    columns = list(FEATURES)
    ruled = bool((data.table["modelled"] > 0).any())
    groups = {columns.index(f"group_{g}"): settings.options(g, ruled) for g in GROUPS}
    return grouped_trees.fit(matrix[known], target[known], weight[known], groups)


def _interval(test: Dataset, predicted: NDArray[np.float64]) -> dict[str, Any]:
    """Bounds that nine tenths of the held-out kernels and networks keep."""
    rows = (np.nan_to_num(test.cycles) > 0) & (predicted > 0)
    errors = np.abs(np.log(predicted[rows] / test.cycles[rows]))
    ops = test.table.ops[rows]
    operators = {"*": _quantile(errors)}
    for op in sorted(set(ops.tolist())):
        if (ops == op).sum() >= _ENOUGH:
            operators[op] = _quantile(errors[ops == op])
    widths = np.array([operators.get(op, operators["*"]) for op in test.table.ops.tolist()])
    known = ~np.isnan(test.cycles)
    ratios = []
    for n in range(len(test.names)):
        own = (test.table.network == n) & known
        size = root_sum(predicted[own], widths[own])
        if size > 0:
            ratios.append(abs(float(predicted[own].sum() - test.cycles[own].sum())) / size)
    return {"operators": operators, "network": _quantile(np.array(ratios))}


def _quantile(errors: NDArray[np.float64]) -> float:
    """The conformal quantile: a little above the empirical one when errors are few."""
    if not len(errors):
        return 1.0
    level = min(1.0, _QUANTILE * (1 + 1 / len(errors)))
    return float(f"{np.quantile(errors, level):.4g}")
