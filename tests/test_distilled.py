"""Finalists trained as a whole: who is, what is kept, and that the same bytes come out again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import models
import numpy as np
import onnx
import pytest
from fakes import ToyCostModel

from onnxnas import distilled, gradient_fit, pipeline
from onnxnas import prepare as prepare_module
from onnxnas.calibration import Calibration, load_calibration
from onnxnas.cost import Cost
from onnxnas.distilled import Distillation
from onnxnas.errors import UsageError
from onnxnas.front_point import Evaluation, Loss
from onnxnas.graph import contract
from onnxnas.materialize import TRAINED
from onnxnas.objectives import Goal, Limit
from onnxnas.outcome import Evaluated
from onnxnas.report import markdown, schema
from onnxnas.result import Result
from onnxnas.sites import Candidate

Search = Callable[..., Result]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "load_target", lambda _: ToyCostModel())
    monkeypatch.setattr(gradient_fit, "_BATCH", 16)


def network() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 6, 8, 8])
    return b.build(b.op("Relu", b.ibn(b.ibn(b.x, 6, 32, 6), 6, 32, 6)))


def rows(tmp_path: Path, model: onnx.ModelProto) -> Calibration:
    values = np.random.default_rng(2).standard_normal((80, 6, 8, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", values)
    return load_calibration(tmp_path / "rows.npy", contract(model)[0])


@pytest.fixture
def search(tmp_path: Path) -> Search:
    def call(**options: Any) -> Result:
        model = network()
        options = {"library": tmp_path / "library", "effort": "thorough", **options}
        passes = ["depthwise-to-standard", "resize-ibn", "linearize-block"]
        data = rows(tmp_path, model)
        return pipeline.optimize(model, passes=passes, calibration=data, max_drop=0.004, **options)

    return call


def test_without_pytorch_it_is_said(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = search()
    assert any(w.startswith("Not distilled: Distillation needs PyTorch") for w in result.warnings)
    assert "pip install 'onnxnas[train]'" in result.search["recovery"]["distilled"]["reason"]
    assert "## Distilled finalists" in markdown(result)
    jsonschema.validate(result.to_dict(), schema())
    assert "distilled" not in search(effort="normal").search["recovery"]


@pytest.mark.slow
def test_what_training_gains_is_kept_and_replays(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(distilled, "STEPS", 20)
    monkeypatch.setattr(distilled, "RATE", 1e-3)
    result = search()
    found = result.search["recovery"]["distilled"]["networks"]
    kept = [n for n in found if n["kept"]]
    assert kept
    assert all(n["after"]["divergence"] < n["before"]["divergence"] for n in kept)
    (point,) = [p for p in result.front if p.candidate == Candidate.parse(kept[0]["candidate"])]
    assert point.evaluation == "distilled"
    assert point.losses[0].value == pytest.approx(kept[0]["after"]["divergence"])
    jsonschema.validate(result.to_dict(), schema())
    assert "| kept | " in markdown(result) or "| the result | " in markdown(result)
    assert result.search["by_kind"]["distilled"] == len(found)
    # what is given out has the trained weights, and replays to the same bytes
    label, recipe = point.label, result.recipe
    if not point.chosen:
        again = search(export_front=True)
        recipe = next(c.recipe for c in again.candidates if c.label == label)
        model = next(c.model for c in again.candidates if c.label == label)
    else:
        model = result.model
    assert recipe.fitted == "distilled"
    replayed = pipeline.apply(network(), recipe, calibration=rows(tmp_path, network()))
    assert replayed.model.SerializeToString() == model.SerializeToString()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxnas\[train\]'"):
        pipeline.apply(network(), recipe, calibration=rows(tmp_path, network()))


@pytest.mark.slow
def test_steps_made_by_pytorch_are_replayed(search: Search, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    result = search(effort="normal", device="cpu")
    assert result.recipe.device == "cpu"
    assert 'device = "cpu"' in result.recipe.to_toml()
    replayed = pipeline.apply(network(), result.recipe, calibration=rows(tmp_path, network()))
    assert replayed.model.SerializeToString() == result.model.SerializeToString()
    with pytest.raises(UsageError, match="leave --workers out"):
        search(device="cpu", workers=2)


def evaluated(
    name: str, cycles: float, lost: float, evaluation: Evaluation = "multishot"
) -> Evaluated:
    cost = Cost("toy", "estimate", cycles, cycles / 1e9, 10, {"sram": 10}, 10, ())
    weights = {("p@t", name): {"w": np.zeros(1)}}
    return Evaluated(Candidate.of({"p@t": name}), cost, (Loss("error", lost),), evaluation, weights)


def test_the_result_and_what_lacks_little_to_beat_it_are_trained() -> None:
    goal = Goal(("latency",), (Limit("quality", 0.1),), (100.0, 10.0, 10.0, 10.0, 0.0), 1e9)
    everything = [
        evaluated("chosen", 80, 0.05),
        evaluated("slower", 90, 0.11),
        evaluated("near", 70, 0.12),
        evaluated("nearer", 75, 0.11),
        evaluated("alone", 72, 0.11, "single-shot"),
        evaluated("near too", 60, 0.13),
        evaluated("far", 50, 0.31),
    ]
    picked = Distillation(None, None, goal, 0)._picked(everything, everything[0])  # type: ignore[arg-type]
    assert [e.candidate.decisions[0][1] for e in picked] == ["chosen", "nearer", "near"]
    alone = Distillation(None, None, goal, 0)  # type: ignore[arg-type]
    alone.run([everything[4]], everything[4])
    assert alone.to_dict(everything[4])["reason"] == (
        "the result has no weights that were fitted together"
    )
    assert everything[0].fitted == "in order"
    trained = Evaluated(Candidate(), everything[0].cost, weights={TRAINED: {"w": np.zeros(1)}})
    assert trained.fitted == "distilled"
