"""The command line as a user meets it: exit codes, streams, one sentence for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import models
import numpy as np
import onnx
import oracle
import pytest

from onnxnas import plan, report
from onnxnas.cli import main


def small_model(path: Path, shape: tuple[int | str, ...] = (1, 8, 16, 16)) -> Path:
    b = models.ModelBuilder(list(shape))
    y = b.ibn(b.conv(b.conv(b.x, 8, 12, 3, pads=1), 12, 12), 12, 40, 12)  # two convs to merge
    onnx.save(b.build(b.op("GlobalAveragePool", y, out="y")), path)
    return path


def run(*args: str | Path) -> int:
    """Run the command line in this process; returns the exit code."""
    argv = sys.argv
    sys.argv = ["onnxnas", *map(str, args)]
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        sys.argv = argv
    return end.value.code if isinstance(end.value.code, int) else 1


def test_optimize_writes_a_verified_model_and_its_reports(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, out = small_model(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    assert run("optimize", model, "-o", out, "--json", tmp_path / "r.json") == 0
    stdout, stderr = capfd.readouterr()
    assert "m.onnx on ethos-u55-128" in stdout
    assert "estimate" in stdout
    assert "each choice alone" in stderr
    oracle.assert_same_outputs(onnx.load(model), onnx.load(out))
    names = {p.name for p in (tmp_path / "out.run").iterdir()}
    assert names == {
        "recipe.toml", "report.json", "report.md", "report.html", "trials.jsonl", "ledger.csv",
        "front.png", "front-dark.png",
    }  # fmt: skip
    data = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(data, report.schema())
    assert data == json.loads((tmp_path / "out.run" / "report.json").read_text())
    before, after = (data[k]["metrics"]["cycles"]["value"] for k in ("original", "result"))
    assert after < before
    assert (data["status"], data["exactness"]) == ("improved", "exact")
    assert run("verify", model, out) == 0
    assert (
        run("apply", model, tmp_path / "out.run" / "recipe.toml", "-o", tmp_path / "again.onnx")
        == 0
    )
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()


def test_json_on_stdout_is_the_only_thing_on_stdout(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = small_model(tmp_path / "m.onnx")
    for args in (
        ("optimize", model, "-o", tmp_path / "o.onnx"),
        ("inspect", model),
        ("predict", model),
        ("verify", model, model),
        ("passes",),
        ("target", "list"),
        ("target", "show", "ethos-u85-512"),
    ):
        assert run(*args, "--json", "-") == 0, args
        json.loads(capfd.readouterr().out)


def test_verify_of_a_changed_weight_ends_with_4(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(small_model(tmp_path / "a.onnx"))
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(weight) * 1.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values.astype("float32"), weight.name))
    onnx.save(model, tmp_path / "b.onnx")
    assert run("verify", tmp_path / "a.onnx", tmp_path / "b.onnx") == 4
    assert "y" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["optimize", "missing.onnx"], 2, "missing.onnx"),
        (["optimize", "."], 2, "folder"),
        (["optimize", "empty.onnx"], 2, "empty"),
        (["optimize", "photo.onnx"], 2, "JPEG"),
        (["optimize", "cut.onnx"], 2, "cut.onnx"),
        (["optimize", "m.onnx", "--target", "ethos-u55-129"], 2, "did you mean 'ethos-u55-128'"),
        (["optimize", "m.onnx", "--passes", "align-chanels"], 2, "did you mean 'align-channels'"),
        (["optimize", "m.onnx", "--input-shape", "y:1,3"], 2, "'y'"),
        (["optimize", "m.onnx", "--input-shape", "x:1,8,16,17"], 2, "does not fit"),
        (["optimize", "m.onnx", "--input-shape", "x=1"], 2, "x:1,3,224,224"),
        (["optimize", "m.onnx", "--budget", "soon"], 2, "90s, 10m or 1h"),
        (["optimize", "m.onnx", "--max-latency", "soon"], 2, "8ms, 120us or -30%"),
        (["optimize", "m.onnx", "--max-macs", "-100%"], 2, "leaves nothing"),
        (["optimize", "m.onnx", "--max-latency", "-99%"], 3, "relax it to --max-latency -"),
        (["optimize", "m.onnx", "--objective", "speed"], 2, "Unknown metric 'speed'"),
        (["optimize", "m.onnx", "--objective", ","], 2, "Say what to minimise"),
        (["optimize", "m.onnx", "--strategy", "exakt"], 2, "did you mean 'exact'"),
        (["optimize", "m.onnx", "--effort", "quik"], 2, "quick"),
        (["optimize", "m.onnx", "--workers", "0"], 2, "greater than or equal to 1"),
        (["optimize", "m.onnx", "--start-from", "none.toml"], 2, "none.toml"),
        (["optimize", "m.onnx", "--max-uncovered", "all"], 2, "10% or 0.1"),
        (["optimize", "m.onnx", "-o", "m.onnx"], 2, "m.onnx"),
        (["optimize", "m.onnx", "-o", "no/where/o.onnx"], 2, "no/where"),
        (["optimize", "m.onnx", "--calibration", "none.npy"], 2, "none.npy"),
        (["apply", "m.onnx", "none.toml"], 2, "none.toml"),
        (["target", "show", "u55"], 2, "Unknown target"),
        (["optimise", "m.onnx"], 2, "optimi"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence_with_its_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    args: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = small_model(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "photo.onnx").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(100))
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    before = sorted(p.name for p in tmp_path.iterdir())
    assert run(*args) == code
    stdout, stderr = capfd.readouterr()
    assert says in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_dynamic_dimensions_need_a_shape_and_stay_dynamic(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = small_model(tmp_path / "m.onnx", ("N", 8, "H", "W"))
    assert run("optimize", model, "-o", tmp_path / "o.onnx") == 2
    assert "--input-shape x:1," in capfd.readouterr().err
    assert run("optimize", model, "-o", tmp_path / "o.onnx", "--input-shape", "x:1,8,16,16") == 0
    dims = onnx.load(tmp_path / "o.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["N", 8, "H", "W"]


def test_a_dry_run_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = small_model(tmp_path / "m.onnx")
    assert run("optimize", model, "--dry-run", "-o", tmp_path / "o.onnx") == 0
    assert "Nothing was done" in capfd.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_why_lists_the_declined_places(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = small_model(tmp_path / "m.onnx")
    assert run("inspect", model, "--why") == 0
    stdout = capfd.readouterr().out
    assert "depthwise-to-standard" in stdout
    assert "declined because" in stdout


def test_predict_prints_one_row_per_kernel(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = small_model(tmp_path / "m.onnx")
    assert run("predict", model, "--csv", "-") == 0
    rows = capfd.readouterr().out.splitlines()
    assert rows[0].startswith("output,op,cycles")
    assert len(rows) > 4


def test_help_and_version_answer_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "optimize" in capfd.readouterr().out
    assert run("--version") == 0
    assert capfd.readouterr().out.startswith("onnxnas 0.")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, onnxnas.cli\n"
        "print([m for m in ('onnxruntime', 'onnx', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("phase", ["reading", "each choice alone", "checking"])
def test_ctrl_c_leaves_a_whole_result_or_nothing(tmp_path: Path, phase: str) -> None:
    model, out = small_model(tmp_path / "m.onnx"), tmp_path / "o.onnx"
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxnas", "optimize", str(model), "-o", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        text=True,
    )
    assert process.stderr is not None
    assert any(line.startswith(phase) for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (0, 130), stderr
    assert "Traceback" not in stderr
    left = {p.name for p in tmp_path.iterdir()} - {"cache", "m.onnx"}
    assert left in (set(), {"o.onnx", "o.run"})
    if out.exists():
        oracle.assert_same_outputs(onnx.load(model), onnx.load(out))


@pytest.mark.parametrize("verb", ["inspect --why", "predict", "verify {model}"])
def test_a_closed_pipe_is_no_error(tmp_path: Path, verb: str) -> None:
    model = small_model(tmp_path / "m.onnx")
    command = f"'{sys.executable}' -m onnxnas {verb.format(model=model)} '{model}'"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_ctrl_c_says_so(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxnas.plugins.load_passes", interrupted)
    assert run("passes") == 130
    assert capfd.readouterr().err == "onnxnas: Interrupted; nothing was written.\n"


@pytest.mark.parametrize("which", ["first", "second"])
def test_verify_refuses_what_is_no_model(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], which: str
) -> None:
    model, bad = small_model(tmp_path / "m.onnx"), tmp_path / "bad.onnx"
    for content in (None, b"", b"\xff\xd8\xff", model.read_bytes()[:400]):
        if content is not None:
            bad.write_bytes(content)
        pair = (bad, model) if which == "first" else (model, bad)
        assert run("verify", *pair) == 2
        stderr = capfd.readouterr().err
        assert stderr.startswith("onnxnas: ")
        assert stderr.count("\n") == 1
        assert "bad.onnx" in stderr


def test_a_predicted_cost_says_how_far_off_it_may_be_and_what_fills_the_memory(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = small_model(tmp_path / "m.onnx")
    assert run("predict", model, "--predicted", "--max-uncovered", "1") == 0
    stdout = capfd.readouterr().out
    assert "figures of kind predicted" in stdout
    assert "90 %: " in stdout
    assert "alive at the peak of sram: " in stdout
    assert run("predict", model, "--predicted", "--max-uncovered", "100%", "--json", "-") == 0
    found = json.loads(capfd.readouterr().out)
    network = {k: v for k, v in found.items() if k not in ("schema_version", "target")}
    jsonschema.validate(network, {**report.schema(), "$ref": "#/$defs/network", **ANYTHING})
    low, high = found["metrics"]["cycles"]["interval"]
    assert low < found["metrics"]["cycles"]["value"] < high
    for kernel in found["kernels"]:
        assert kernel["interval"][0] <= kernel["cycles"] <= kernel["interval"][1]
    assert found["peak_tensors"]["sram"][0]["bytes"] > 0


ANYTHING = {"required": [], "properties": {}, "additionalProperties": True}
"""Of the report's schema at its top, where only a part of it is looked at."""


def test_a_prediction_that_knows_too_little_ends_with_6(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    b = models.ModelBuilder([1, 8, 16, 16])
    onnx.save(b.build(b.op("Erf", b.op("Erf", b.conv(b.x, 8, 8)), out="y")), tmp_path / "m.onnx")
    assert run("predict", tmp_path / "m.onnx", "--predicted") == 6
    stdout, stderr = capfd.readouterr()
    assert "total " in stdout
    last = stderr.splitlines()[-1]
    assert last.startswith("onnxnas: 2 of 2 kernels (100%, allowed are 10%)")
    assert "never seen Erf" in last
    assert run("predict", tmp_path / "m.onnx", "--predicted", "--max-uncovered", "1") == 0


@pytest.mark.parametrize("share", ["x", "-1%", "101%", "nan", ""])
def test_a_share_that_is_none_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], share: str
) -> None:
    assert run("predict", tmp_path / "m.onnx", f"--max-uncovered={share}") == 2
    assert capfd.readouterr().err == (
        f"onnxnas: Cannot read --max-uncovered {share!r}: write it as 10% or 0.1.\n"
    )


def test_a_target_shows_which_channel_counts_are_cheap(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "curve.png"
    assert run("target", "show", "ethos-u55-128", "--plot", picture, "--json", "-") == 0
    card = json.loads(capfd.readouterr().out)
    assert card["channel_multiples"] == card["channel_curve"]["steps"] == [8]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run("target", "show", "ethos-u55-128") == 0
    stdout = capfd.readouterr().out
    assert "channel steps: 8 (read off the learned model)" in stdout
    assert "▁" in stdout
    for wrong in (tmp_path / "curve.jpg", tmp_path / "no" / "curve.png"):
        assert run("target", "show", "ethos-u55-128", "--plot", wrong) == 2
        assert wrong.name in capfd.readouterr().err


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = small_model(tmp_path / "m.onnx")
    np.save(tmp_path / "rows.npy", np.zeros((60, 8, 16, 16), np.float32))
    data = ("--calibration", tmp_path / "rows.npy", "--max-drop", "1%")
    assert run("optimize", model, "-o", tmp_path / "o.onnx", "--dry-run", *data) == 0
    stdout, _ = capfd.readouterr()
    for phase in ("change nothing", "each fitted choice alone", "combinations", "Nothing was done"):
        assert phase in stdout
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "rows.npy"}


def test_a_dry_run_counts_distillation_where_pytorch_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(tmp_path / "m.onnx")
    np.save(tmp_path / "rows.npy", np.zeros((60, 8, 16, 16), np.float32))
    data = ("--calibration", tmp_path / "rows.npy", "--max-drop", "1%", "--effort", "thorough")
    for spec in (None, object()):
        monkeypatch.setattr(plan, "find_spec", lambda _, spec=spec: spec)
        assert run("optimize", model, "--dry-run", *data) == 0
        assert ("distilling finalists" in capfd.readouterr().out) == (spec is not None)


def test_inspect_shows_what_curation_leaves_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = small_model(tmp_path / "m.onnx")
    assert run("inspect", model, "--space", "--json", tmp_path / "space.json") == 0
    assert "combinations of" in capfd.readouterr().out
    space = json.loads((tmp_path / "space.json").read_text())["space"]
    assert 1 <= space["curated_size"] < space["size"]
    assert all(row["reason"] for row in space["removed"])
