"""A search gives the same bytes twice, with any number of workers, and after it was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxslim  # noqa: F401 (takes a second: once, before processes are copied)
import pytest
from fakes import ToyCostModel

from onnxnas import gradient_fit, pipeline, prepare, report, result
from onnxnas.calibration import load_calibration
from onnxnas.graph import contract
from onnxnas.journal import Journal
from onnxnas.sites import Candidate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are not copied here"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

PHASES = {"exact": "compiled", "singles": "alone", "ladder": "single-shot", "refits": "multishot"}
"""A phase of a search -> the kind of evaluation that the journal takes down in it."""


def network() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 6, 8, 8])
    y = b.x
    for _ in range(2):
        y = b.ibn(y, 6, 32, 6)
    return b.build(b.op("Relu", y))


def search(folder: Path, killed_in: str = "", workers: int = 1) -> None:
    """Optimise and write; dies by its own hand at the second step of a phase."""
    gradient_fit._BATCH = 16
    report.draw_front = lambda *_, **__: b""  # type: ignore[attr-defined]
    prepare.load_target = lambda _: ToyCostModel()  # type: ignore[attr-defined, assignment]
    if killed_in == "export":
        result.write_file = die_in_the_middle
    elif killed_in:
        Journal.add = dying(PHASES[killed_in])  # type: ignore[method-assign]
    rows = np.random.default_rng(2).standard_normal((60, 6, 8, 8)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    model = network()
    found = pipeline.optimize(
        model,
        passes=["depthwise-to-standard", "resize-ibn", "linearize-block"],
        calibration=load_calibration(folder / "rows.npy", contract(model)[0]),
        max_drop=0.02,
        library=folder / "library",
        workers=workers,
        export_front=True,
    )
    found.write(folder / "out.onnx")


def die_in_the_middle(path: Path, content: bytes) -> None:
    (path.parent / f".{path.name}.tmp").write_bytes(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def dying(at: str) -> Any:
    """A journal that lives to take down one evaluation of a kind, and half of the second."""
    add, seen = Journal.add, Counter[str]()

    def stop(self: Journal, kind: str, candidate: Candidate, values: Mapping[str, Any]) -> None:
        seen[kind] += 1
        if kind == at and seen[kind] == 2:
            with self.path.open("a") as file:
                file.write('{"kind": "' + kind)
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, kind, candidate, values)

    return stop


def run(folder: Path, **options: Any) -> int:
    """In a process of its own; returns how it ended."""
    folder.mkdir(exist_ok=True)
    process = multiprocessing.get_context("fork").Process(
        target=search, args=(folder,), kwargs=options
    )
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def written(folder: Path) -> dict[str, bytes]:
    """What is to be the same; reports hold times."""
    (journal,) = (folder / "library").glob("evaluations-*.jsonl")
    files = [folder / "out.onnx", folder / "out.run" / "recipe.toml", journal]
    files += (folder / "out.run" / "candidates").iterdir()
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return written(folder)


@pytest.mark.parametrize("phase", [*PHASES, "export"])
def test_a_search_that_was_killed_ends_as_if_it_was_not(
    tmp_path: Path, whole: Mapping[str, bytes], phase: str
) -> None:
    assert run(tmp_path, killed_in=phase) == -signal.SIGKILL
    assert not (tmp_path / "out.onnx").exists()
    (journal,) = (tmp_path / "library").glob("evaluations-*.jsonl")
    known = journal.read_bytes().count(b"\n")
    assert run(tmp_path, workers=2) == 0
    assert written(tmp_path) == whole
    assert 1 < known <= journal.read_bytes().count(b"\n")
    assert not [*tmp_path.rglob(".*.tmp")]


def test_workers_change_nothing(tmp_path: Path, whole: Mapping[str, bytes]) -> None:
    assert run(tmp_path, workers=3) == 0
    assert written(tmp_path) == whole
