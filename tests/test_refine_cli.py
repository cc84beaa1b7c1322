"""The verbs for what comes after a rewrite, as a user meets them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_cli import run
from test_distill import ROWS, damaged, network


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    original, result, rows = (tmp_path / n for n in ("a.onnx", "b.onnx", "rows.npy"))
    model = network()
    onnx.save(model, original)
    onnx.save(damaged(model, 0.2), result)
    np.save(rows, ROWS)
    return original, result, rows


def test_int8_shows_both(
    files: tuple[Path, Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original, result, rows = files
    report = tmp_path / "int8.json"
    assert run("int8", original, result, "--calibration", rows, "--json", report) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("KL divergence, nats, from the original in float, on 12 rows")
    assert [line[:14].strip() for line in lines[1:]] == [
        "original int8",
        "result float",
        "result int8",
    ]
    found = {n["network"]: n["divergence"] for n in json.loads(report.read_text())["networks"]}
    assert found["original int8"] < found["result float"]


def test_distill_without_pytorch_is_one_sentence(
    files: tuple[Path, Path, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, result, rows = files
    monkeypatch.setitem(sys.modules, "torch", None)
    out = tmp_path / "c.onnx"
    assert run("distill", original, result, "--calibration", rows, "-o", out) == 2
    assert "pip install 'onnxnas[train]'" in capfd.readouterr().err
    assert not out.exists()
    assert run("distill", original, result, "--calibration", rows, "-o", original) == 2


def test_distill_writes_what_is_nearer(
    files: tuple[Path, Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    original, result, rows = files
    out = tmp_path / "c.onnx"
    command = ("distill", original, result, "--calibration", rows, "-o", out)
    assert run(*command, "--steps", "60", "--rate", "1e-3", "--json", "-") == 0
    found = json.loads(capfd.readouterr().out)
    assert found["after"]["divergence"] < found["before"]["divergence"]
    onnx.checker.check_model(onnx.load(out))
