"""Training data on disk: one small file per network and target.

Each file holds the network's kernels as columns and the cycles of each (`numpy.savez`, read with
pickling off, so loading executes nothing). One file per network is what makes a measurement
resumable: it appears whole, by renaming, or not at all. No library beyond numpy reads it.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.errors import UsageError
from onnxnas.hwmodels.kernel_table import INDICES, NUMBERS, KernelTable

_SUFFIX = ".npz"


@dataclass(frozen=True)
class Dataset:
    """Labelled kernels of many networks.

    Attributes:
        names: of the networks, ``family-seed``.
        table: their kernels.
        cycles: of each kernel, NaN where the backend has no figure.
        sha256: of all files, in order of names.
    """

    names: tuple[str, ...]
    table: KernelTable
    cycles: NDArray[np.float64]
    sha256: str

    @property
    def families(self) -> tuple[str, ...]:
        """Family of each network."""
        return tuple(family(name) for name in self.names)

    def counts(self) -> dict[str, int]:
        """Networks per family."""
        return dict(sorted(Counter(self.families).items()))

    def network_cycles(self) -> NDArray[np.float64]:
        """Total of each network over the kernels that have a figure."""
        totals = np.bincount(
            self.table.network, np.nan_to_num(self.cycles), minlength=len(self.names)
        )
        return totals.astype(np.float64)

    def select(self, keep: Callable[[str], bool]) -> Dataset:
        """The networks whose name is wanted."""
        chosen = [i for i, name in enumerate(self.names) if keep(name)]
        return _joined([(self.names[i], *self._network(i)) for i in chosen], self.sha256)

    def _network(self, i: int) -> tuple[KernelTable, NDArray[np.float64]]:
        ends = [*self.table.starts[1:], len(self.table)]
        rows = slice(int(self.table.starts[i]), int(ends[i]))
        numbers = self.table.numbers[rows].copy()
        for name in INDICES:
            column = numbers[:, NUMBERS.index(name)]
            column[column >= 0] -= rows.start
        part = KernelTable(
            self.table.ops[rows], self.table.activations[rows], numbers, np.zeros(1, np.int64)
        )
        return part, self.cycles[rows]


def family(name: str) -> str:
    """``bottlenecks`` of ``bottlenecks-17``."""
    return name.rsplit("-", 1)[0]


def has(folder: Path, name: str) -> bool:
    """Whether a network was measured already."""
    return (folder / f"{name}{_SUFFIX}").exists()


def write(folder: Path, name: str, table: KernelTable, cycles: NDArray[np.float64]) -> None:
    """Store one network; replaces an earlier file of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}.{os.getpid()}.part"
    columns: Mapping[str, Any] = {
        "columns": np.array(NUMBERS),
        "ops": table.ops,
        "activations": table.activations,
        "numbers": table.numbers,
        "cycles": cycles,
    }
    with open(part, "wb") as file:
        np.savez_compressed(file, **columns)
    os.replace(part, folder / f"{name}{_SUFFIX}")


def read(folder: Path) -> Dataset:
    """All networks of a folder, in order of family and number.

    Raises:
        UsageError: there are none, or one was written by another version.
    """
    paths = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda p: (family(p.stem), _number(p.stem)))
    if not paths:
        raise UsageError(f"There is no training data in {folder}: run 'onnxnas target measure'.")
    digest = hashlib.sha256()
    networks = []
    for path in paths:
        digest.update(path.stem.encode())
        with np.load(path, allow_pickle=False) as file:
            if tuple(file["columns"].tolist()) != NUMBERS:
                raise UsageError(
                    f"{path} was written by another version of onnxnas: measure again into an "
                    "empty folder."
                )
            for column in ("ops", "activations", "numbers", "cycles"):
                digest.update(np.ascontiguousarray(file[column]).tobytes())
            table = KernelTable(
                file["ops"], file["activations"], file["numbers"], np.zeros(1, np.int64)
            )
            networks.append((path.stem, table, file["cycles"]))
    return _joined(networks, digest.hexdigest())


def _joined(networks: list[tuple[str, KernelTable, NDArray[np.float64]]], sha256: str) -> Dataset:
    return Dataset(
        tuple(name for name, _, _ in networks),
        KernelTable.join(table for _, table, _ in networks),
        np.concatenate([cycles for _, _, cycles in networks]),
        sha256,
    )


def _number(name: str) -> int:
    tail = name.rsplit("-", 1)[-1]
    return int(tail) if tail.isdigit() else -1
