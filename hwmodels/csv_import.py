"""A user's own device as a target: times measured there, read from a table.

`write_plan` writes the models to time and ``times.csv`` to fill in; `train` turns the filled table
and a card into an artefact, which `load` opens again. Times are of kernels alone. What they cost
inside a network differs by a factor that is much the same for all (caches are cold there, calls
are fewer), so one factor is fitted on whole networks, and predictions look at a kernel alone.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.cost import Cost
from onnxnas.errors import UsageError
from onnxnas.graph import from_model, static_view
from onnxnas.hwmodels import catboost_model, training
from onnxnas.hwmodels.accuracy import accuracy
from onnxnas.hwmodels.catboost_model import CatBoostCostModel
from onnxnas.hwmodels.dataset import Dataset
from onnxnas.hwmodels.kernel_table import NUMBERS, KernelTable
from onnxnas.hwmodels.placement import Placement
from onnxnas.hwmodels.timing_plan import KERNEL, NETWORK, OVERHEAD, Timed
from onnxnas.kernels import Kernel, split_kernels
from onnxnas.loading import load_model, save_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COLUMNS = ("file", "kind", "microseconds", "what")
"""Of ``times.csv``."""

_CARD = """\
# What onnxnas should know about your device. Keep it beside times.csv.
name = "my-board"                  # of the target; also of the files that are written
title = "My board, 256 MACs/cycle"
clock_hz = 500e6                   # cycles are shown at this clock; times are what counts
macs_per_cycle = 256               # at best; 1 if you do not know
channel_multiples = [{steps}]      # channel counts whose multiples run fast
notes = "Measured with ..."        # runtime, its version, precision
"""
_NEEDED = ("name", "title", "clock_hz", "macs_per_cycle", "channel_multiples")
LEAST = 0.02
"""Kernels cost at least this share of a call's overhead: differences below it are noise."""


@dataclass(frozen=True)
class Times:
    """A filled table.

    Attributes:
        kernels: kernel and seconds, what every call costs taken off.
        networks: name, kernels and seconds of whole networks, likewise.
        overhead: seconds of a call that does nothing.
        missing: rows without a time.
        sha256: of the table.
    """

    kernels: tuple[tuple[Kernel, float], ...]
    networks: tuple[tuple[str, tuple[Kernel, ...], float], ...]
    overhead: float
    missing: int
    sha256: str


class IsolatedCostModel(CatBoostCostModel):
    """A cost model trained on kernels that were timed alone: where one stands does not count."""

    def cost_kernels(
        self,
        networks: Sequence[Sequence[Kernel]],
        placements: Sequence[Placement] | None = None,
    ) -> list[Cost]:
        """See `CatBoostCostModel.cost_kernels`; placements are not looked at."""
        return super().cost_kernels([[alone(k) for k in kernels] for kernels in networks])

    def _features(self, table: KernelTable) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        numbers = table.numbers.copy()
        lone = KernelTable(table.ops, table.activations, numbers, np.arange(len(table)))
        for column in _PLACE.keys() & set(NUMBERS):
            lone[column][:] = _PLACE[column]
        for column in ("previous", "following"):
            lone[column][:] = -1
        return super()._features(lone)


_PLACE: Mapping[str, Any] = {f.name: f.default for f in fields(Kernel) if f.default is not MISSING}
"""What a kernel's place in its network adds, as for a kernel that has none."""


def alone(kernel: Kernel) -> Kernel:
    """The same kernel, wherever it stands."""
    return replace(kernel, **_PLACE)


def write_plan(timed: Sequence[Timed], folder: Path, steps: Sequence[int]) -> Path:
    """Write the models, ``times.csv`` and, unless there is one, ``card.toml``.

    Returns:
        Path of the table.

    Raises:
        UsageError: the folder has a table already, perhaps with times in it.
    """
    table = folder / "times.csv"
    if table.exists():
        raise UsageError(f"{table} exists already: choose another folder, or delete it first.")
    (folder / "models").mkdir(parents=True, exist_ok=True)
    rows = []
    for one in timed:
        path = folder / "models" / f"{one.name}.onnx"
        save_model(one.model, path)
        rows.append((f"models/{one.name}.onnx", one.kind, "", one.what))
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    card = folder / "card.toml"
    if not card.exists():
        card.write_text(_CARD.format(steps=", ".join(map(str, steps))), encoding="utf-8")
    return table


def read_card(path: Path) -> dict[str, Any]:
    """Fields of a `Target` from a card in TOML.

    Raises:
        UsageError: it cannot be read, or an entry is missing or of the wrong kind.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read the card {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    if missing := [name for name in _NEEDED if name not in fields]:
        raise UsageError(f"{path} lacks {', '.join(missing)}.")
    if unknown := sorted(set(fields) - {*_NEEDED, "notes"}):
        raise UsageError(f"{path} has an entry {unknown[0]!r}, known: {', '.join(_NEEDED)}, notes.")
    multiples = fields["channel_multiples"]
    positive = (fields["clock_hz"], fields["macs_per_cycle"], *multiples)
    if not all(isinstance(v, (int, float)) and v > 0 for v in positive):
        raise UsageError(
            f"{path}: clock_hz, macs_per_cycle and channel_multiples must be positive numbers."
        )
    return {
        "name": str(fields["name"]),
        "title": str(fields["title"]),
        "backend": "csv",
        "kind": "predicted",
        "clock_hz": float(fields["clock_hz"]),
        "macs_per_cycle": int(fields["macs_per_cycle"]),
        "channel_multiples": sorted(int(v) for v in multiples),
        "config": {},
        "notes": str(fields.get("notes", "")),
    }


def read_times(table: Path) -> Times:
    """The kernels and networks of a filled table.

    Raises:
        UsageError: a row, a time or a model cannot be used; says which row.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read {table}: {error}.") from error
    reader = csv.DictReader(text.splitlines())
    if missing := {"file", "kind", "microseconds"} - set(reader.fieldnames or ()):
        raise UsageError(f"{table} has no column {sorted(missing)[0]!r}.")
    kernels: list[tuple[Kernel, float]] = []
    networks: list[tuple[str, tuple[Kernel, ...], float]] = []
    overhead, unfilled = 0.0, 0
    for number, row in enumerate(reader, start=2):
        where = f"{table}, line {number}"
        if not (row["microseconds"] or "").strip():
            unfilled += 1
            continue
        seconds = _seconds(row["microseconds"], where)
        if row["kind"] == OVERHEAD:
            overhead = seconds
            continue
        if row["kind"] not in (KERNEL, NETWORK):
            raise UsageError(f"{where}: kind is {row['kind']!r}, not {KERNEL} or {NETWORK}.")
        found = split_kernels(static_view(from_model(load_model(table.parent / row["file"])), {}))
        if row["kind"] == NETWORK:
            networks.append((Path(row["file"]).stem, tuple(alone(k) for k in found), seconds))
        elif len(found) == 1:
            kernels.append((alone(found[0]), seconds))
        else:
            raise UsageError(f"{where}: {row['file']} has {len(found)} kernels, not one.")
    least = LEAST * overhead
    return Times(
        tuple((k, max(s - overhead, least)) for k, s in kernels),
        tuple((n, k, max(s - overhead, least)) for n, k, s in networks),
        overhead,
        unfilled,
        hashlib.sha256(text.encode()).hexdigest(),
    )


def train(
    times: Times,
    card: Mapping[str, Any],
    settings: training.Settings | None = None,
    source: training.Source | None = None,
) -> training.Trained:
    """Train on kernels, fit the factor on networks, train again on the scaled times.

    The model's ``entry`` gains ``isolated``: overhead in seconds, the factor, and, over the
    networks, what errors remain when each is predicted with a factor fitted on the others.

    Raises:
        UsageError: there are too few times.
    """
    if len(times.kernels) < _FEWEST:
        raise UsageError(
            f"{len(times.kernels)} timed kernels are too few to train on: fill in at least "
            f"{_FEWEST} rows of kind {KERNEL}."
        )
    source = source or training.Source("csv", "1", "measured")
    clock = float(card["clock_hz"])
    first = training.train(_dataset(times, clock, 1.0), card, source, settings)
    lone = IsolatedCostModel(first.model.target, first.trees, first.model.entry)
    factors = np.array([s * clock / _total(lone, k) for _, k, s in times.networks])
    factor = float(np.exp(np.median(np.log(factors)))) if len(factors) else 1.0
    trained = training.train(_dataset(times, clock, factor), card, source, settings)
    entry: dict[str, Any] = {"overhead_seconds": times.overhead, "factor": factor}
    if len(factors) > 1:
        others = [np.exp(np.median(np.log(np.delete(factors, i)))) for i in range(len(factors))]
        true = np.array([s for _, _, s in times.networks])
        entry["networks"] = accuracy(true, true / factors * np.array(others)).to_dict()
    labelled = {**trained.model.entry, "isolated": entry}
    model = IsolatedCostModel(trained.model.target, trained.trees, labelled)
    return replace(trained, model=model)


_FEWEST = 30


def write(trained: training.Trained, card: Mapping[str, Any], path: Path) -> None:
    """Write ``path`` (JSON) and the trees beside it."""
    path.write_text(json.dumps(dict(card), indent=1) + "\n", encoding="utf-8")
    training.write(trained, path)


def load(path: Path) -> CatBoostCostModel:
    """The cost model of an artefact: a card in JSON with its trees beside it.

    Raises:
        UsageError: it is not there, or is not such a card.
    """
    try:
        model = catboost_model.load(path)
    except OSError as error:
        raise UsageError(f"Cannot read the target {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not the card of a target: {error!r}.") from error
    if "isolated" in model.entry:
        return IsolatedCostModel(model.target, model._trees, model.entry)
    return model


def _dataset(times: Times, clock: float, factor: float) -> Dataset:
    """Each kernel as a network of its own, so that errors are counted per operator."""
    names, counts = [], dict[str, int]()
    for kernel, _ in times.kernels:
        counts[kernel.op] = counts.get(kernel.op, 0) + 1
        names.append(f"{kernel.op}-{counts[kernel.op]}")
    table = KernelTable.of([[kernel] for kernel, _ in times.kernels])
    cycles = np.array([seconds for _, seconds in times.kernels]) * clock * factor
    return Dataset(tuple(names), table, cycles, times.sha256)


def digest(seconds: NDArray[np.float64]) -> str:
    """SHA-256 of times."""
    return hashlib.sha256(np.ascontiguousarray(seconds).tobytes()).hexdigest()


def _total(model: IsolatedCostModel, kernels: Sequence[Kernel]) -> float:
    """Cycles of a network; kernels without a figure count as free."""
    return float(model.cost_kernels([kernels])[0].cycles) or 1.0


def _seconds(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0 or math.isinf(value):
        raise UsageError(f"{where}: microseconds is {text!r}, not a positive number.")
    return value * 1e-6
