"""The report: JSON under its schema, Markdown, and one HTML file, with a front, rules and parts."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import models
import pytest
from fakes import ToyCostModel
from PIL import Image

from onnxnas import console, report, report_tables
from onnxnas import prepare as prepare_module
from onnxnas.attribution import attribute
from onnxnas.finishing import finish
from onnxnas.front_picture import draw_front
from onnxnas.front_point import FrontPoint, Loss
from onnxnas.page import to_markdown
from onnxnas.prepare import prepare
from onnxnas.report_page import page
from onnxnas.result import Result
from onnxnas.rule_costs import rule_costs
from onnxnas.search import Evaluator
from onnxnas.sites import Candidate

RULES = """
depthwise-to-standard = ["force groups-of-8 at *", "never dense"]
fuse-ibn = "never in haed*"
"*" = "never over 90% of cycles"
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "load_target", lambda _: ToyCostModel())
        yield _result(tmp_path_factory.mktemp("rules"))


@pytest.fixture(scope="module")
def files(result: Result) -> Mapping[str, bytes]:
    return report.files_of(result)


def _result(tmp_path: Path) -> Result:
    b = models.ModelBuilder([1, 6, 8, 8])
    model = b.build(b.ibn(b.ibn(b.x, 6, 32, 6), 6, 32, 6))
    (tmp_path / "rules.toml").write_text(RULES)
    made = prepare(model, "toy", rules=tmp_path / "rules.toml")
    assert made.ruled is not None
    search = {
        "strategy": "exact", "seed": 0, "evaluations": 7, "stopped": "converged", "seconds": 1.5,
        "space_size": 9.0, "cpu_seconds": 90.0,
        "objective": ["latency", "quality"], "limits": {"latency": "-30%"},
        "phases": [{"phase": "costing each choice", "seconds": 1.0, "evaluations": 5}],
    }  # fmt: skip
    found = finish(made, made.ruled.forced, search=search)
    evaluator = Evaluator(
        made.graph, made.ruled.before, made.passes, made.cost_model, made.input_shapes
    )
    loss = Loss("agreement", 0.02, (0.004, 0.036), 50)
    cost = found.optimized.cost
    chosen = found.recipe.candidate
    front = [
        FrontPoint.of(made.ruled.forced, cost, label="Z", evaluation="single-shot"),
        FrontPoint.of(Candidate(chosen.decisions[:1]), cost, (loss,), label="A"),
        FrontPoint.of(chosen, cost, (replace(loss, value=0.04),), label="B", chosen=True),
        replace(
            FrontPoint.of(Candidate(), cost, (Loss("agreement", 0.1, kind="estimate"),)),
            evaluation="zero-shot", weight_bytes=None,
        ),
    ]  # fmt: skip
    savings = {(s.id, c.label): 10.0 for s in made.ruled.before for c in s.choices}
    return replace(
        found,
        source="dir/net|work<b>.onnx",
        front=tuple(front),
        contributions=attribute(evaluator, _two_kinds(evaluator), alone={}, written={}),
        rule_costs=rule_costs(made.ruled, savings, {}, 0.5),
    )


def _two_kinds(evaluator: Evaluator) -> Candidate:
    exact = next(s for s in evaluator.space if s.pass_name == "depthwise-to-standard")
    other = [s for s in evaluator.space if s.pass_name == "resize-ibn"][-1]
    return Candidate.of({exact.id: "dense", other.id: other.choices[0].label})


def test_the_json_follows_its_schema(result: Result) -> None:
    found = result.to_dict()
    jsonschema.validate(found, report.schema())
    assert found["schema_version"] == report.schema()["properties"]["schema_version"]["const"]
    original, exact, a, b, estimated = found["front"]
    assert (original["label"], original["losses"]) == ("original", [])
    assert exact["losses"] == []
    assert a["losses"][0]["interval"] == [0.004, 0.036]
    assert (b["chosen"], b["label"]) == (True, "B")
    assert estimated["metrics"]["encoded_weights"]["unavailable"]
    assert [c["rewrites"] for c in found["contributions"]] == [
        "resize-ibn alone", "depthwise-to-standard alone", "all, as written"
    ]  # fmt: skip
    forced, never, warned, _ = found["rules"]
    assert forced["forced"] == 2
    assert never["removed"] > 0
    assert "they are" in warned["warning"]


def test_what_rules_took_out_is_in_the_ledger(result: Result) -> None:
    rows = [r for r in csv.DictReader(io.StringIO(report.ledger_csv(result)))]
    out = [r for r in rows if r["status"] == "ruled out"]
    assert {r["reason"] for r in out if r["choice"] == "dense"} == {
        'depthwise-to-standard = "never dense"'
    }
    assert any("forces groups-of-8" in r["reason"] for r in out)


def test_the_markdown_shows_front_parts_and_rules(result: Result) -> None:
    text = report.markdown(result)
    assert "| B (chosen) |" in text
    assert "classes that differ, % (95 %, 50 rows)" in text
    assert re.search(r"\| Z \|.*\| none \| the original's \|", text)
    assert "| 4.0 (0.4 to 3.6) | fitted together |" in text
    assert "not made: sums" not in text, "points without a name are not in the table"
    assert "| depthwise-to-standard alone (1) |" in text
    assert '| `depthwise-to-standard = "never dense"` | 2 |' in text
    assert "![Latency against classes that differ, %: the original and 4 other networks" in text
    assert "To be small: latency, then quality; limits: latency -30%." in text
    assert "7 networks costed in 1.5 s (1.5 CPU minutes)" in text
    assert "| costing each choice | 1.0 s |  | 5 |" in text


def test_the_console_shows_front_and_rules(
    result: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    console.show_result(result, Path("out.onnx"), Path("out.run"), ["optimize", "net.onnx"])
    text = capsys.readouterr().out
    assert "could be had instead" in text
    assert "B (chosen)" in text
    assert 'rule depthwise-to-standard = "never dense": 2 choices out, 0 forced; estimated' in text
    assert "haed" not in text, "what did nothing is a warning"


def test_a_result_that_was_not_taken_apart_says_why(result: Result) -> None:
    late = {**result.search, "effort": "normal", "stopped": "budget"}
    recipe = replace(result.recipe, candidate=Candidate.of({"a@x": "1", "b@y": "2"}))
    plain = replace(result, contributions=(), recipe=recipe, search=late)
    assert "Not looked at: the search was stopped (budget)." in to_markdown(page(plain, []))
    quick = replace(plain, search={**late, "effort": "quick", "stopped": "converged"})
    assert "Not looked at: effort is quick." in to_markdown(page(quick, []))


class _Reader(HTMLParser):
    """Collects what a page refers to, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.alts: list[str] = []
        self.headers = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
        values = dict(attrs)
        self.links += [v for k, v in attrs if k in ("src", "srcset", "href") and v]
        self.headers += tag == "th" and "scope" in values
        if tag == "img":
            self.alts.append(values.get("alt") or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_html_needs_nothing_else_and_can_be_read_by_all(files: Mapping[str, bytes]) -> None:
    text = files["report.html"].decode()
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    assert len(reader.links) == 2, "a light and a dark picture"
    assert all(link.startswith("data:image/png;base64,") for link in reader.links)
    assert len(reader.alts[0]) > 40
    assert reader.headers > 20
    assert "prefers-color-scheme: dark" in text
    assert "<b>.onnx" not in text, "names are data, not markup"
    assert "net|work&lt;b&gt;.onnx" in text
    assert not re.search(r"https?://", text)


def test_the_pictures_are_the_same_bytes_every_time(
    result: Result, files: Mapping[str, bytes]
) -> None:
    assert report.files_of(result) == files
    for name in ("front.png", "front-dark.png"):
        with Image.open(io.BytesIO(files[name])) as image:
            assert min(image.size) > 500
    assert files["front.png"] != files["front-dark.png"]


def test_a_front_of_exact_rewrites_is_drawn_over_peak_memory(result: Result) -> None:
    exact = replace(
        result,
        front=tuple(replace(p, losses=()) for p in result.front[1:3]),
        search={**result.search, "objective": ["quality", "macs"]},
    )
    text = report.markdown(exact)
    assert "Macs against peak memory: the original and 2" in text
    assert "classes that differ" not in text
    points = report_tables.front_points(exact)
    drawn = [draw_front(points, "", x=x) for x in ("latency", "peak-memory", "weights", "macs")]
    assert len(set(drawn)) == 4


def test_without_a_front_nothing_of_it_is_said(result: Result, tmp_path: Path) -> None:
    plain = replace(result, front=(), contributions=(), ruled=None, rule_costs=())
    jsonschema.validate(plain.to_dict(), report.schema())
    text = report.markdown(plain)
    assert "could be had" not in text
    assert "contributes" not in text, "a recipe was replayed, nothing was searched"
    assert "## Rules" not in text
    result.write(tmp_path / "out.onnx")
    (tmp_path / "out.run" / "candidates").mkdir()
    (tmp_path / "out.run" / "candidates" / "D.onnx").write_bytes(b"of an earlier run")
    plain.write(tmp_path / "out.onnx")
    assert list((tmp_path / "out.run" / "candidates").iterdir()) == []
    names = {path.name for path in (tmp_path / "out.run").iterdir()}
    assert names == {
        "candidates", "recipe.toml", "report.json", "report.md", "report.html", "trials.jsonl",
        "ledger.csv",
    }  # fmt: skip


def test_the_manual_names_every_file_and_every_key(
    result: Result, files: Mapping[str, bytes]
) -> None:
    text = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    for name in files:
        assert f"`{name}`" in text, name
    for key in report.schema()["properties"]:
        assert f"`{key}`" in text, key
    code = text.partition("```python\n")[2].partition("```")[0]
    data = json.dumps(result.to_dict())
    shown: list[tuple[object, ...]] = []
    scope = {"open": lambda _: io.StringIO(data), "print": lambda *x: shown.append(x)}
    exec(compile(code, "report.md", "exec"), scope)
    assert shown[2] == ("A", result.front[1].seconds, "s", 0.02)
