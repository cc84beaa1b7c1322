"""The main job from Python, on a toy target: result, replay, blame, and what is left unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import models
import onnx
import oracle
import pytest
from fakes import TARGET, ToyCostModel

import onnxnas
from onnxnas import prepare as prepare_module
from onnxnas import report
from onnxnas.errors import UsageError, VerificationError
from onnxnas.pass_contract import Pass, Why
from onnxnas.passes.depthwise_to_standard import DepthwiseToStandard
from onnxnas.rewriter import Rewriter
from onnxnas.sites import Choice, Site


@pytest.fixture(autouse=True)
def toy_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "load_target", lambda name: ToyCostModel())


def block(hidden: int = 24, seed: int = 0) -> onnx.ModelProto:
    b = models.ModelBuilder([1, 8, 12, 12], seed=seed)
    return b.build(b.ibn(b.ibn(b.x, 8, hidden, 8), 8, hidden, 8))


def test_the_result_is_faster_and_the_same() -> None:
    model = block()
    result = onnxnas.optimize(model, "toy")
    assert result.status == "improved"
    assert result.optimized.cost.cycles < result.original.cost.cycles
    assert result.optimized.cost.cycles == min(t.cycles for t in result.trials)
    oracle.assert_same_outputs(model, result.model)
    jsonschema.validate(result.to_dict(), report.schema())
    made_by = [p.value for n in result.model.graph.node for p in n.metadata_props]
    assert set(made_by) == {f"{s}={c}" for s, c in result.recipe.candidate.decisions}
    stamped = {p.key: p.value for p in result.model.metadata_props}
    assert stamped["onnxnas.recipe"] == str(result.recipe.candidate)


def test_a_recipe_replays_to_the_same_bytes_and_can_be_edited(tmp_path: Path) -> None:
    model = block()
    result = onnxnas.optimize(model, "toy")
    result.write(tmp_path / "out.onnx")
    text = (tmp_path / "out.run" / "recipe.toml").read_text()
    again = onnxnas.apply(model, tmp_path / "out.run" / "recipe.toml")
    assert again.model.SerializeToString() == result.model.SerializeToString()
    (tmp_path / "less.toml").write_text(text[: text.rindex("[[rewrite]]")])
    less = onnxnas.apply(model, tmp_path / "less.toml")
    assert len(less.recipe.candidate.decisions) == len(result.recipe.candidate.decisions) - 1
    oracle.assert_same_outputs(model, less.model)
    (tmp_path / "wrong.toml").write_text(text.replace("standard@", "standard@not_"))
    with pytest.raises(UsageError, match="no site 'depthwise-to-standard@not_"):
        onnxnas.apply(model, tmp_path / "wrong.toml")


def test_a_model_where_nothing_pays_comes_back_unchanged() -> None:
    b = models.ModelBuilder([1, 8, 12, 12])
    model = b.build(b.op("Relu", b.conv(b.x, 8, 8, 3, pads=1)))
    result = onnxnas.optimize(model, "toy")
    assert (result.status, str(result.recipe.candidate)) == ("unchanged", "")
    assert result.original.cost == result.optimized.cost
    assert "nothing: no choice pays on this target" in report.markdown(result)
    oracle.assert_same_outputs(model, result.model, tolerance=0)


def test_the_markdown_report_names_what_was_done(tmp_path: Path) -> None:
    result = onnxnas.optimize(block(), "toy")
    text = report.markdown(result)
    assert result.headline() in text
    assert "depthwise-to-standard: groups-of-8 at 2 sites" in text
    assert report.ledger_csv(result).count("\n") == 1 + len(report.ledger_rows(result))


@dataclass(frozen=True)
class Sabotage(Pass):
    """Claims to be exact and scales a weight."""

    name = "sabotage"
    summary = "breaks one convolution"
    order = 90

    def find_sites(self, graph: Any, target: Any, why: Why) -> list[Site]:
        last = [n for n in graph.nodes if n.op == "Conv"][-1].outputs[0].name
        return [Site(self.name, last, (Choice("scale"),), frozenset({f"node:{last}"}))]

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        node = rw.node(site.tensor)
        weight = node.inputs[1]
        wrong = rw.constant("wrong", weight.shape, lambda: weight.values * 1.01)
        rw.set_input(node, 1, wrong)


class CheaperWhenBroken(ToyCostModel):
    target = TARGET

    def cost(self, graph: Any) -> Any:
        cost = super().cost(graph)
        if "wrong" in graph.tensors():
            object.__setattr__(cost, "cycles", cost.cycles * 0.5)
        return cost


def test_a_rewrite_that_changes_the_outputs_is_found_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: dict[str, Pass] = {p.name: p for p in (DepthwiseToStandard(), Sabotage())}
    monkeypatch.setattr(prepare_module, "load_passes", lambda: (passes, ()))
    monkeypatch.setattr(prepare_module, "load_target", lambda name: CheaperWhenBroken())
    with pytest.raises(VerificationError, match=r"guilty rewrite is sabotage@.*=scale"):
        onnxnas.optimize(block(), "toy")


def test_predict_costs_the_cleaned_model() -> None:
    b = models.ModelBuilder([1, 8, 12, 12])
    model = b.build(b.op("Relu", b.op("Identity", b.conv(b.x, 8, 8, 3, pads=1))))
    _, cleaned = onnxnas.predict(model, "toy")
    _, as_is = onnxnas.predict(model, "toy", clean=False)
    assert cleaned.operators == {"Conv": 1, "Relu": 1}
    assert as_is.cost.cycles > cleaned.cost.cycles
