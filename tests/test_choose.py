"""The whole job with data: what is chosen, what the limit binds on, and what the ledger says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import models
import numpy as np
import onnx
import pytest
from fakes import ToyCostModel
from oracle import run

from onnxnas import gradient_fit, pipeline
from onnxnas import prepare as prepare_module
from onnxnas.calibration import Calibration, load_calibration
from onnxnas.errors import UsageError
from onnxnas.graph import contract
from onnxnas.prepare import prepare
from onnxnas.recovery_search import RecoverySearch
from onnxnas.report import markdown, schema
from onnxnas.result import Result


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "load_target", lambda _: ToyCostModel())
    monkeypatch.setattr(gradient_fit, "_BATCH", 16)


def network(outputs: int = 5) -> onnx.ModelProto:
    """Two blocks and a classifier, with dead hidden channels that can go for nothing."""
    b = models.ModelBuilder([1, 6, 8, 8])
    y = b.ibn(b.ibn(b.x, 6, 32, 6), 6, 32, 6)
    y = b.op("GlobalAveragePool", b.op("Relu", b.conv(y, 6, 32, out="features")))
    return b.build(b.op("Flatten", b.conv(y, 32, outputs)))


def data(tmp_path: Path, model: onnx.ModelProto, rows: int = 80) -> Calibration:
    values = np.random.default_rng(2).standard_normal((rows, 6, 8, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", values)
    return load_calibration(tmp_path / "rows.npy", contract(model)[0])


Optimize = Callable[..., Result]


@pytest.fixture
def optimize(tmp_path: Path) -> Optimize:
    def call(model: onnx.ModelProto, rows: int = 80, **options: Any) -> Result:
        calibration = data(tmp_path, model, rows) if rows else None
        return pipeline.optimize(
            model, calibration=calibration, library=tmp_path / "library", **options
        )

    return call


def test_data_buys_what_exact_rewrites_cannot(optimize: Optimize) -> None:
    model = network()
    exact = optimize(model, rows=0)
    fitted = optimize(model, max_drop=0.3)
    assert fitted.exactness == "recovered"
    assert fitted.optimized.cost.cycles < exact.optimized.cost.cycles
    assert fitted.verification.ok
    assert "runs as the original does" in fitted.verification.lines()[-1]
    found = fitted.search["recovery"]
    assert found["bound"] == {"on": "agreement", "max_drop": 0.3}
    assert found["rows_fitted_on"] == 52
    assert found["rows_tuned_by"] == 12
    assert found["rows_held_out"] == 16
    (chosen,) = [f for f in found["finalists"] if f["chosen"]]
    assert chosen["drop"] <= 0.3
    assert fitted.optimized.cost.cycles <= chosen["cycles"]
    jsonschema.validate(fitted.to_dict(), schema())
    assert "## Fitted weights" in markdown(fitted)


def test_a_tighter_limit_costs_latency(optimize: Optimize) -> None:
    loose, tight = (optimize(no_classes(), max_drop=drop) for drop in (0.5, 1e-4))
    assert loose.optimized.cost.cycles < tight.optimized.cost.cycles
    for result, drop in ((loose, 0.5), (tight, 1e-4)):
        found = result.search["recovery"]
        assert found["bound"] == {"on": "error", "max_drop": drop}
        assert all(f["agreement"] is None for f in found["finalists"])
        assert all(f["divergence"] <= drop for f in found["finalists"] if f["chosen"])


def no_classes() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 6, 8, 8])
    return b.build(b.op("Relu", b.ibn(b.ibn(b.x, 6, 32, 6), 6, 32, 6)))


def test_the_result_is_near_the_original(optimize: Optimize) -> None:
    model = network()
    result = optimize(model, max_drop=0.1)
    rows = np.random.default_rng(9).standard_normal((40, 1, 6, 8, 8)).astype(np.float32)
    want, have = (
        np.array([next(iter(run(m, {"x": r}).values())).ravel() for r in rows])
        for m in (model, result.model)
    )
    assert np.mean((want - have) ** 2) < 0.1 * want.var()
    assert (want.argmax(1) == have.argmax(1)).mean() > 0.8


def test_the_ledger_has_a_row_for_every_choice(optimize: Optimize) -> None:
    result = optimize(network(), max_drop=0.3)
    prepared = prepare(network())
    wanted = {(s.pass_name, s.tensor, c.label) for s in prepared.space for c in s.choices}
    rows = {(r.pass_name, r.tensor, r.choice): r for r in result.ledger}
    skipped = wanted - rows.keys()
    decided = {site for site, _ in result.recipe.candidate.decisions}
    for pass_name, tensor, _ in skipped:  # only what excludes the decided sites is left out
        site = prepared.space.site(f"{pass_name}@{tensor}")
        assert set(prepared.space.conflicts(site, result.recipe.candidate)) & decided
    assert all(row.reason for row in rows.values() if row.status != "applied")
    applied = {f"{r.pass_name}@{r.tensor}" for r in rows.values() if r.status == "applied"}
    assert applied == decided


@pytest.mark.parametrize(("rows", "reason"), [(0, "--calibration"), (20, "50 rows or more")])
def test_without_enough_data_nothing_is_fitted(optimize: Optimize, rows: int, reason: str) -> None:
    result = optimize(network(), rows=rows)
    assert result.exactness == "exact"
    unfitted = [r for r in result.ledger if r.exactness == "recovered"]
    assert unfitted
    assert all(reason in r.reason and r.status == "not chosen" for r in unfitted)


def test_exact_only_ignores_the_data(optimize: Optimize) -> None:
    with_data = optimize(network(), exact_only=True)
    without = optimize(network(), rows=0, exact_only=True)
    assert with_data.model.SerializeToString() == without.model.SerializeToString()
    assert "recovery" not in with_data.search


def test_a_recipe_replays_to_the_same_bytes(optimize: Optimize, tmp_path: Path) -> None:
    model = network()
    result = optimize(model, max_drop=0.3)
    calibration = data(tmp_path, model)
    again = pipeline.apply(
        model, result.recipe, calibration=calibration, library=tmp_path / "other"
    )
    assert again.model.SerializeToString() == result.model.SerializeToString()
    with pytest.raises(UsageError, match="give --calibration"):
        pipeline.apply(model, result.recipe)


def test_out_of_time_keeps_what_there_is(optimize: Optimize) -> None:
    result = optimize(network(), max_drop=0.3, budget_s=0.0)
    assert result.search["stopped"] == "budget"
    assert not result.search["recovery"]["finalists"]
    unfitted = [r for r in result.ledger if r.exactness == "recovered"]
    assert {r.reason for r in unfitted} == {"not costed before the time was up"}


def test_an_interrupted_search_hands_out_the_best_so_far(
    optimize: Optimize, monkeypatch: pytest.MonkeyPatch
) -> None:
    finalist = RecoverySearch.finalist
    calls = []

    def interrupted(self: RecoverySearch, *args: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return finalist(self, *args)

    monkeypatch.setattr(RecoverySearch, "finalist", interrupted)
    result = optimize(network(), max_drop=0.3)
    assert result.interrupted
    assert result.exactness == "recovered"
    assert len(result.search["recovery"]["finalists"]) == 1
