"""What the README tells a newcomer to type works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def test_ci_runs_the_readmes_test_command() -> None:
    (tests,) = [c for c in COMMANDS if "pytest" in c]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert tests.rsplit("/", 1)[1] in ci
    assert '-e ".[dev]"' in tests
    assert '-e ".[dev]"' in ci


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("onnxnas")])
def test_every_command_and_option_exists(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command, comments=True)[1:]
    verb = words[:2] if words[0] == "target" else words[:1]
    assert run(*verb, "--help") == 0
    text = capfd.readouterr().out
    for option in (w for w in words if w.startswith("--")):
        assert option in text


def test_links_lead_somewhere() -> None:
    links = [x for x in re.findall(r"\]\(([^)]+)\)", README) if not x.startswith("http")]
    assert links
    assert [x for x in links if not (ROOT / x).exists()] == []


@pytest.mark.slow
def test_the_first_command_does_the_main_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first = next(c for c in COMMANDS if "bin/onnxnas optimize" in c)
    words = shlex.split(first.rpartition("bin/onnxnas ")[2])
    out, rows = tmp_path / "faster.onnx", tmp_path / "calibration.npz"
    words[words.index("-o") + 1] = str(out)
    words[words.index("--calibration") + 1] = str(rows)
    monkeypatch.chdir(ROOT)
    data = shlex.split(first.partition("bin/python ")[2].partition(" && ")[0])
    subprocess.run([sys.executable, *data[:-1], str(rows)], check=True)
    test = "top1=sample_models/datasets.py:camera_classifier"
    # As it stands it takes minutes; of one pass it shows the same.
    assert run(*words, "--passes", "simplify-activation", "--effort", "quick") == 0
    stdout = capfd.readouterr().out
    assert "exactness: recovered; verified" in stdout
    assert out.exists()
    assert run("evaluate", str(out), "--evaluate", test) == 0
    assert float(capfd.readouterr().out.split()[1]) > 0.88
