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
from fakes import CompiledToy, ToyCostModel
from oracle import run

from onnxnas import gradient_fit, pipeline, proxies
from onnxnas import prepare as prepare_module
from onnxnas.calibration import Calibration, load_calibration
from onnxnas.errors import InfeasibleError, UsageError
from onnxnas.graph import contract
from onnxnas.objectives import Limit
from onnxnas.prepare import prepare
from onnxnas.recipe import Recipe
from onnxnas.recovery_search import RecoverySearch
from onnxnas.report import markdown, schema
from onnxnas.result import Result
from onnxnas.sites import Candidate


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
        options = {"library": tmp_path / "library", **options}
        return pipeline.optimize(model, calibration=calibration, **options)

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
    judge = RecoverySearch.single_shot
    calls = []

    def interrupted(self: RecoverySearch, *args: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return judge(self, *args)

    monkeypatch.setattr(RecoverySearch, "single_shot", interrupted)
    result = optimize(network(), max_drop=0.3)
    assert result.interrupted
    assert result.exactness == "recovered"
    assert len(result.search["recovery"]["finalists"]) == 1


QUICK: dict[str, Any] = {
    "passes": ["depthwise-to-standard", "resize-ibn", "linearize-block"],
    "max_drop": 0.02,
}


def test_quick_takes_weights_as_they_were_fitted_alone(optimize: Optimize, tmp_path: Path) -> None:
    model = no_classes()
    result = optimize(model, effort="quick", **QUICK)
    assert {f["evaluation"] for f in result.search["recovery"]["finalists"]} == {"single-shot"}
    assert result.recipe.fitted == "alone"
    again = pipeline.apply(
        model, result.recipe, calibration=data(tmp_path, model), library=tmp_path / "other"
    )
    assert again.model.SerializeToString() == result.model.SerializeToString()
    assert not result.contributions
    assert result.search["recovery"]["zero_shot"]["reason"] == "effort is quick"


def test_the_front_holds_the_original_and_the_chosen_one(optimize: Optimize) -> None:
    result = optimize(no_classes(), **QUICK)
    assert [p.label for p in result.front].count("original") == 1
    (chosen,) = [p for p in result.front if p.chosen]
    assert chosen.candidate == result.recipe.candidate
    assert chosen.cycles == result.optimized.cost.cycles
    named = [p for p in result.front if p.label not in ("", "original")]
    assert [p.label for p in named] == list("ABCDE")[: len(named)]
    assert len(named) > 1
    jsonschema.validate(result.to_dict(), schema())
    assert next(p["phase"] for p in result.search["phases"]) == "reading the data"


def test_named_candidates_are_written_and_do_what_their_recipes_say(
    optimize: Optimize, tmp_path: Path
) -> None:
    model = no_classes()
    result = optimize(model, effort="quick", export_front=True, **QUICK)
    result.write(tmp_path / "out.onnx")
    folder = tmp_path / "out.run" / "candidates"
    labels = [p.label for p in result.front if p.label not in ("", "original")]
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        f"{label}.{suffix}" for label in labels for suffix in ("onnx", "toml")
    )
    calibration = data(tmp_path, model)
    again = pipeline.apply(
        model, folder / "A.toml", calibration=calibration, library=tmp_path / "library"
    )
    assert again.model.SerializeToString() == (folder / "A.onnx").read_bytes()


def test_thorough_tries_more_than_normal_and_needs_no_library(optimize: Optimize) -> None:
    options: dict[str, Any] = {**QUICK, "max_drop": 0.004}
    normal, thorough = (optimize(no_classes(), effort=e, **options) for e in ("normal", "thorough"))
    alone = optimize(no_classes(), effort="thorough", **{**options, "library": None})
    assert alone.model.SerializeToString() == thorough.model.SerializeToString()
    assert thorough.search["evaluations"] >= normal.search["evaluations"]
    assert thorough.search["by_kind"]["looked up"] > normal.search["by_kind"]["looked up"]
    assert thorough.optimized.cost.cycles <= normal.optimized.cost.cycles
    scored = thorough.search["recovery"]["zero_shot"]
    assert scored["compared"] == "combinations fitted together"
    assert {s["score"] for s in scored["scores"]} == {*proxies.BASELINES, *proxies.SCORES}
    assert {s["reason"] for s in scored["scores"] if "rank_correlation" not in s} == {
        "not all candidates have it"  # where both blocks are gone nothing is left to look at
    }
    jsonschema.validate(thorough.to_dict(), schema())
    assert "| zen | " in markdown(thorough)
    few = normal.search["recovery"]["zero_shot"]
    assert few.get("compared") == "single choices" or few["reason"] in markdown(normal)


@pytest.mark.parametrize("strategy", ["greedy", "random", "evolution"])
def test_other_strategies_find_something_too(optimize: Optimize, strategy: str) -> None:
    result = optimize(no_classes(), effort="quick", strategy=strategy, **QUICK)
    assert result.exactness == "recovered"
    assert result.search["strategy"].startswith(strategy)


def test_limits_decide_what_is_chosen(optimize: Optimize) -> None:
    model = no_classes()
    macs = optimize(model, rows=0).original.cost.macs
    limits = [Limit.parse("macs", "-60%")]
    result = optimize(model, objective=["quality"], limits=limits, passes=QUICK["passes"])
    assert result.optimized.cost.macs <= 0.4 * macs
    milder = [Limit.parse("macs", "-20%")]
    other = optimize(model, objective=["quality"], limits=milder, passes=QUICK["passes"])
    assert 0.4 * macs < other.optimized.cost.macs <= 0.8 * macs

    def lost(found: Result) -> float:
        return next(p for p in found.front if p.chosen).losses[0].value

    assert lost(other) < lost(result)


def test_a_limit_on_memory_is_looked_up_and_kept(
    optimize: Optimize, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single choices are predicted, and peaks of combinations are those of their kernels."""
    monkeypatch.setattr(prepare_module, "load_target", lambda _: CompiledToy())
    problems: list[Any] = []
    build = RecoverySearch.problem

    def kept(search: RecoverySearch, goal: Any) -> Any:
        problems.append(build(search, goal))
        return problems[-1]

    monkeypatch.setattr(RecoverySearch, "problem", kept)
    options: dict[str, Any] = {**QUICK, "effort": "quick", "max_drop": 2.0}
    result = optimize(no_classes(), limits=[Limit.parse("peak-memory", "-30%")], **options)
    before = result.original.cost.peak_activation_bytes
    assert result.optimized.cost.peak_activation_bytes <= 0.7 * before
    (problem,) = problems
    assert problem.table.live is not None
    for found in result.search["recovery"]["finalists"]:
        genes = problem.genes([Candidate.parse(found["candidate"])])
        assert problem.evaluate(genes)[0, 0] == pytest.approx(found["cycles"])
    assert result.search["by_kind"]["predicted"] > 0
    least = optimize(no_classes(), objective=["peak-memory", "latency"], **options)
    assert least.optimized.cost.peak_activation_bytes <= 0.7 * before
    with pytest.raises(InfeasibleError, match="relax it to --max-peak-memory"):
        optimize(no_classes(), limits=[Limit.parse("peak-memory", "10B")], **options)


def test_what_cannot_be_met_is_said_with_the_way_out(optimize: Optimize) -> None:
    with pytest.raises(InfeasibleError, match=r"--max-latency -99%.*relax it to --max-latency -8"):
        optimize(no_classes(), rows=0, limits=[Limit.parse("latency", "-99%")])
    with pytest.raises(UsageError, match="Unknown effort 'quik': did you mean 'quick'"):
        optimize(no_classes(), rows=0, effort="quik")


def test_a_search_starts_from_a_recipe(optimize: Optimize) -> None:
    model = no_classes()
    sites = [s.id for s in prepare(model).space if s.pass_name == "linearize-block"]
    start = Recipe("toy", Candidate.of({sites[0]: "shortcut", "linearize-block@nowhere": "linear"}))
    again = optimize(model, effort="quick", start_from=start, **QUICK)
    tried = [f["candidate"] for f in again.search["recovery"]["finalists"]]
    assert any(f"{sites[0]}=shortcut" in text for text in tried)
    assert any("nowhere" in warning for warning in again.warnings)
