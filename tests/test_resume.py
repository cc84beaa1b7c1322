"""A search gives the same bytes twice, and after it was killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""On a busy machine threads that wait for each other take most of the time."""
SEARCH = """
import sys
from pathlib import Path

import models
import numpy as np
import onnx
from fakes import ToyCostModel

from onnxnas import pipeline, prepare
from onnxnas.calibration import load_calibration
from onnxnas.graph import contract

prepare.load_target = lambda _: ToyCostModel()
folder = Path(sys.argv[1])
b = models.ModelBuilder([1, 6, 8, 8])
y = b.x
for _ in range(2):
    y = b.ibn(y, 6, 32, 6)
model = b.build(b.op("Relu", y))
rows = np.random.default_rng(2).standard_normal((60, 6, 8, 8)).astype(np.float32)
np.save(folder / "rows.npy", rows)
result = pipeline.optimize(
    model,
    passes=["depthwise-to-standard", "resize-ibn", "linearize-block"],
    calibration=load_calibration(folder / "rows.npy", contract(model)[0]),
    max_drop=0.02,
    library=folder / "library",
)
result.write(folder / "out.onnx")
"""


def search(folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    return subprocess.Popen(
        [sys.executable, "-c", SEARCH, folder], env={**os.environ, "PYTHONPATH": path, **ONE_THREAD}
    )


def written(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "out.onnx").read_bytes(), (folder / "out.run" / "recipe.toml").read_bytes()


def test_the_same_bytes_twice_and_after_a_kill(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first, second = search(whole), search(killed)
    while second.poll() is None:
        begun = [*(killed / "library").glob("evaluations-*.jsonl")]
        if begun and b'"multishot"' in begun[0].read_bytes():
            second.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert second.wait() == -signal.SIGKILL, "it ended before it was killed: make the job longer"
    assert first.wait() == 0
    assert not (killed / "out.onnx").exists()
    (journal,) = (killed / "library").glob("evaluations-*.jsonl")
    known = journal.read_bytes().count(b"\n")
    journal.write_bytes(journal.read_bytes() + b'{"kind": "multi')  # the line that was cut
    assert search(killed).wait() == 0
    assert written(killed) == written(whole)
    (other,) = (whole / "library").glob("evaluations-*.jsonl")
    assert journal.read_bytes() == other.read_bytes()
    assert 0 < known < journal.read_bytes().count(b"\n")
