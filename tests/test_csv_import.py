"""A device of one's own: plan, table, training, use; the example of the documentation."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxnas.errors import UsageError
from onnxnas.graph import from_model, static_view
from onnxnas.hwmodels import csv_import, timing_plan, training
from onnxnas.hwmodels.sampling import sample_network
from onnxnas.kernels import Kernel, split_kernels
from onnxnas.loading import load_model
from onnxnas.plugins import load_target
from onnxnas.runtime import Session

GUIDE = Path(__file__).parents[1] / "docs/add-a-target.md"
QUICK = training.Settings(
    trees={"conv": 150, "other": 60},
    depth={"conv": 5, "other": 4},
    learning_rate={"conv": 0.15, "other": 0.15},
    threads=1,
)
CARD = """
name = "my-board"
title = "My board"
clock_hz = 1e9
macs_per_cycle = 64
channel_multiples = [16, 8]
"""


def _seconds(kernel: Kernel) -> float:
    """A machine that fills 16 output channels at once."""
    filled = -(-kernel.out_channels // 16) * 16 / kernel.out_channels
    moved = kernel.in_bytes + kernel.operand_bytes + kernel.out_bytes
    return (max(kernel.macs * filled / 64, moved / 2) + 1000) * 1e-9


def _fill(table: Path, factor: float) -> None:
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        graph = static_view(from_model(load_model(table.parent / row["file"])), {})
        alone = sum(_seconds(k) for k in split_kernels(graph))
        extra = {"network": factor * alone, "kernel": alone, "overhead": 0.0}[row["kind"]]
        row["microseconds"] = f"{1e6 * (30e-6 + extra):.4f}"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, csv_import.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained artefact of a board whose networks cost 1.25 times their kernels."""
    folder = tmp_path_factory.mktemp("board")
    table = csv_import.write_plan(timing_plan.plan((16,), (), 110, 3), folder, (16,))
    _fill(table, 1.25)
    (folder / "card.toml").write_text(CARD)
    card = csv_import.read_card(folder / "card.toml")
    trained = csv_import.train(csv_import.read_times(table), card, QUICK)
    csv_import.write(trained, card, folder / "my-board.json")
    return folder


def test_the_factor_of_whole_networks_is_found(board: Path) -> None:
    model = csv_import.load(board / "my-board.json")
    isolated = model.entry["isolated"]
    assert isolated["factor"] == pytest.approx(1.25, rel=0.12)
    assert isolated["overhead_seconds"] == pytest.approx(30e-6)
    assert isolated["networks"]["count"] == 3


def test_a_path_is_a_target_and_its_figures_are_predictions(board: Path) -> None:
    model = load_target(str(board / "my-board.json"))
    assert model.target.name == "my-board"
    assert model.target.kind == "predicted"
    assert model.target.channel_multiples == (8, 16)
    errors = []
    for seed in range(4):
        graph = static_view(sample_network("bottlenecks", 9_000 + seed), {})
        cost = model.cost(graph)
        assert not cost.unavailable
        true = 1.25 * sum(_seconds(k) for k in split_kernels(graph))
        errors.append(abs(cost.seconds / true - 1))
    assert float(np.mean(errors)) < 0.2


def test_costs_name_what_is_alive_at_the_peak(board: Path) -> None:
    cost = load_target(str(board / "my-board.json")).cost(
        static_view(sample_network("residual", 9_050), {})
    )
    alive = cost.detail["peak_tensors"]["activations"]
    assert sum(row["bytes"] for row in alive) == cost.peak_bytes["activations"]
    assert cost.weight_bytes


def test_where_a_kernel_stands_does_not_count(board: Path) -> None:
    model = csv_import.load(board / "my-board.json")
    graph = static_view(sample_network("separable", 9_100), {})
    kernels = split_kernels(graph)
    together = model.cost_kernels([kernels])[0]
    apart = model.cost_kernels([[k] for k in kernels])
    assert [k.cycles for k in together.kernels] == [c.kernels[0].cycles for c in apart]


def test_plans_repeat_and_their_models_run() -> None:
    one = timing_plan.plan((8,), (), 12, 1, seed=3)
    two = timing_plan.plan((8,), (), 12, 1, seed=3)
    assert [t.what for t in one] == [t.what for t in two]
    assert [t.model.SerializeToString() for t in one] == [t.model.SerializeToString() for t in two]
    assert [t.kind for t in one].count(timing_plan.KERNEL) == 12
    for timed in one:
        Session(timed.model)


def test_every_kernel_of_a_users_model_is_timed() -> None:
    graph = static_view(sample_network("bottlenecks", 42), {})
    wanted = {k.op for k in split_kernels(graph)}
    made = timing_plan.plan((8,), [("mine", graph)], kernels=1, networks=0)
    assert wanted <= {t.what.split(" ")[0].strip(",") for t in made}
    assert [t.name for t in made if t.kind == timing_plan.NETWORK] == ["whole-mine"]


def test_a_second_plan_does_not_destroy_a_filled_table(tmp_path: Path) -> None:
    timed = timing_plan.plan((8,), (), 1, 0)
    csv_import.write_plan(timed, tmp_path, (8,))
    with pytest.raises(UsageError, match="exists already"):
        csv_import.write_plan(timed, tmp_path, (8,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("microseconds", "time"), "no column 'microseconds'"),
        (lambda t: t.replace(",kernel,,", ",kernel,fast,"), "line 3: microseconds is 'fast'"),
        (lambda t: t.replace(",kernel,,", ",kernel,-1,"), "not a positive number"),
        (lambda t: t.replace(",kernel,,", ",kernle,3,"), "kind is 'kernle'"),
        (lambda t: t.replace("kernel-0001.onnx,kernel,", "none.onnx,kernel,3"), "none.onnx"),
    ],
)
def test_a_bad_table_is_one_clear_sentence(tmp_path: Path, change: Any, message: str) -> None:
    table = csv_import.write_plan(timing_plan.plan((8,), (), 1, 0), tmp_path, (8,))
    table.write_text(change(table.read_text()))
    with pytest.raises(UsageError, match=re.escape(message)):
        csv_import.read_times(table)


def test_empty_rows_are_counted_and_too_few_are_refused(tmp_path: Path) -> None:
    table = csv_import.write_plan(timing_plan.plan((8,), (), 3, 0), tmp_path, (8,))
    times = csv_import.read_times(table)
    assert times.missing == 4
    with pytest.raises(UsageError, match="0 timed kernels are too few"):
        csv_import.train(times, {"clock_hz": 1e9})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not valid TOML"),
        ("name = 'x'", "lacks title, clock_hz"),
        (CARD + "colour = 1", "an entry 'colour'"),
        (CARD.replace("1e9", "0"), "must be positive"),
    ],
)
def test_a_bad_card_is_one_clear_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "card.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)):
        csv_import.read_card(path)


def test_a_file_that_is_no_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no target file"):
        load_target(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UsageError, match="not the card of a target"):
        load_target(str(tmp_path / "bad.json"))


@pytest.mark.slow
def test_the_guide_runs_as_written(tmp_path: Path) -> None:
    blocks = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```", GUIDE.read_text(), re.M | re.S)
    assert [kind for kind, _, _ in blocks] == ["sh", "python", "toml", "sh", "sh"]
    said = ""
    for kind, name, text in blocks:
        if kind == "toml":
            (tmp_path / name).write_text(text)
            continue
        command = [sys.executable, "-c", text]
        if kind == "sh":
            command = [sys.executable, "-m", *text.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said += done.stdout
    assert (tmp_path / "board/my-board.cbm").exists()
    assert "times the sum of their kernels" in said
    assert "total" in said
