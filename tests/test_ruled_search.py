"""Rules in a whole run: what is forced is made, what is ruled out is not, and the price is told."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import models
import onnx
import oracle
import pytest
from fakes import ToyCostModel
from test_cli import run

import onnxnas
from onnxnas import prepare as prepare_module
from onnxnas import report
from onnxnas.errors import UsageError
from onnxnas.result import Result


@pytest.fixture(autouse=True)
def toy_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "load_target", lambda _: ToyCostModel())


def model() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 8, 12, 12])
    return b.build(b.ibn(b.ibn(b.x, 8, 24, 8), 8, 24, 8))


def ruled(tmp_path: Path, rules: str) -> Result:
    (tmp_path / "rules.toml").write_text(rules)
    return onnxnas.optimize(model(), "toy", rules=tmp_path / "rules.toml")


def test_rules_bind_the_search_and_their_price_is_told(tmp_path: Path) -> None:
    free = onnxnas.optimize(model(), "toy")
    first, second = (s for s, c in free.recipe.candidate.decisions if c == "groups-of-8")
    names = [s.partition("@")[2] for s in (first, second)]
    found = ruled(
        tmp_path,
        f'depthwise-to-standard = ["force dense at {names[0]}", "never at {names[1]}"]',
    )
    made = dict(found.recipe.candidate.decisions)
    assert made[first] == "dense"
    assert second not in made
    oracle.assert_same_outputs(model(), found.model)
    data = found.to_dict()
    jsonschema.validate(data, report.schema())
    for rule in data["rules"]:
        assert rule["cost"]["value"] > 0
        assert rule["cost"]["kind"] == "estimate"
        assert (rule["unfitted"], rule["uncosted"]) == (0, 0)
    lost = found.optimized.cost.cycles - free.optimized.cost.cycles
    assert sum(r["cost"]["value"] for r in data["rules"]) == pytest.approx(lost)


def test_a_start_keeps_to_the_rules(tmp_path: Path) -> None:
    free = onnxnas.optimize(model(), "toy")
    (tmp_path / "r.toml").write_text('depthwise-to-standard = "never"')
    found = onnxnas.optimize(model(), "toy", rules=tmp_path / "r.toml", start_from=free.recipe)
    assert not any("depthwise" in site for site, _ in found.recipe.candidate.decisions)
    assert sum("a rule takes depthwise-to-standard@" in w for w in found.warnings) == 2


def test_forcing_what_has_to_be_fitted_needs_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Rules force .*--calibration"):
        ruled(tmp_path, 'resize-ibn = "force to-16"')


def test_the_command_line_refuses_a_misspelt_pass(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    (tmp_path / "rules.toml").write_text('fuse-inb = "never"')
    args = ["inspect", str(tmp_path / "m.onnx"), "--rules", str(tmp_path / "rules.toml")]
    assert run(*args) == 2
    assert "did you mean 'fuse-ibn'" in capfd.readouterr().err
    (tmp_path / "rules.toml").write_text('fuse-ibn = "never in haed*"')
    assert run(*args) == 0
    captured = capfd.readouterr()
    assert 'rule fuse-ibn = "never in haed*": 0 sites' in captured.out
    assert "warning: Rule fuse-ibn" in captured.err
    assert "stages, for rules: 1 = 12x12" in captured.out
