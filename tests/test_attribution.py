"""A result taken apart by kind of rewrite: each row is the network it says, compiled and judged."""

from __future__ import annotations

import time
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from fakes import ToyCostModel

from onnxnas import prepare as prepare_module
from onnxnas.attribution import ALL, AS_WRITTEN, attribute
from onnxnas.calibration import load_calibration
from onnxnas.fit_rows import FitRows
from onnxnas.front_point import Evaluation, Loss
from onnxnas.graph import contract
from onnxnas.held_out import HeldOut
from onnxnas.materialize import Weights
from onnxnas.prepare import prepare
from onnxnas.search import Evaluator
from onnxnas.sites import Candidate

KINDS = ["depthwise-to-standard", "resize-ibn", "fuse-ibn"]


@pytest.fixture
def evaluator(monkeypatch: pytest.MonkeyPatch) -> Evaluator:
    monkeypatch.setattr(prepare_module, "load_target", lambda _: ToyCostModel())
    b = models.ModelBuilder([1, 6, 8, 8])
    model = b.build(b.ibn(b.ibn(b.ibn(b.x, 6, 32, 6), 6, 32, 6), 6, 32, 6))
    made = prepare(model, "toy", passes=KINDS)
    return Evaluator(made.graph, made.space, made.passes, made.cost_model, made.input_shapes)


@pytest.fixture
def held_out(evaluator: Evaluator, tmp_path: Path) -> HeldOut:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> g (float[1,6,8,8] x) => (float[1,6,8,8] y) '
        "{ y = Identity(x) }"
    )
    rows = np.random.default_rng(2).standard_normal((60, 6, 8, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    calibration = load_calibration(tmp_path / "rows.npy", contract(model)[0])
    return HeldOut.of(evaluator.graph, FitRows.of(calibration))


def chosen(evaluator: Evaluator, *kinds: str) -> Candidate:
    """The first choice of each kind, each in a block of its own."""
    decisions = {}
    for block, kind in enumerate(kinds):
        site = [s for s in evaluator.space if s.pass_name == kind][block]
        decisions[site.id] = site.choices[-1].label
    return Candidate.of(decisions)


def test_every_row_is_the_network_it_says(evaluator: Evaluator, held_out: HeldOut) -> None:
    candidate = chosen(evaluator, *KINDS)
    rows = attribute(evaluator, candidate, alone={}, written={}, held_out=held_out)
    order = ["resize-ibn", "fuse-ibn", "depthwise-to-standard"]
    assert [r.label for r in rows] == [
        *(f"{kind} alone" for kind in order),
        *(f"all but {kind}" for kind in order),
        AS_WRITTEN,
    ]
    for row in rows:
        assert row.point is not None
        made = row.point.candidate
        (trial,) = evaluator.evaluate([made])
        assert row.point.cycles == trial.cycles
        kinds = {site.partition("@")[0] for site, _ in made.decisions}
        name = row.label.removeprefix("all but ").removesuffix(" alone")
        without = {name} if row.label.startswith("all but") else set()
        assert kinds == ({name} if row.label.endswith(" alone") else {*order} - without)
        exact = kinds == {"depthwise-to-standard"}
        assert (row.point.losses[-1].value < 1e-4) == exact


def test_of_two_kinds_each_is_shown_alone_once(evaluator: Evaluator) -> None:
    rows = attribute(evaluator, chosen(evaluator, *KINDS[:2]), alone={}, written={})
    assert [r.label for r in rows] == [
        "resize-ibn alone", "depthwise-to-standard alone", AS_WRITTEN
    ]  # fmt: skip


def test_without_data_rows_have_costs_only(evaluator: Evaluator) -> None:
    for row in attribute(evaluator, chosen(evaluator, *KINDS[:2]), alone={}, written={}):
        assert row.point is not None
        assert row.point.losses == ()


def test_rewrites_of_one_kind_are_not_taken_apart(evaluator: Evaluator) -> None:
    candidate = chosen(evaluator, KINDS[0])
    assert attribute(evaluator, candidate, alone={}, written={}) == ()
    assert attribute(evaluator, Candidate(), alone={}, written={}) == ()


def test_rows_after_the_deadline_say_so(evaluator: Evaluator, held_out: HeldOut) -> None:
    late = attribute(
        evaluator,
        chosen(evaluator, *KINDS[:2]),
        alone={},
        written={},
        deadline=time.monotonic() - 1,
    )
    assert {r.reason for r in late} == {"the time was up"}
    assert {r.point for r in late} == {None}


@pytest.mark.parametrize(("fitted", "rows"), [("multishot", 2), ("single-shot", 1)])
def test_the_whole_is_shown_as_it_was_fitted(
    evaluator: Evaluator, fitted: Evaluation, rows: int
) -> None:
    candidate = chosen(evaluator, *KINDS[:2])
    weights: Weights = {move: {} for move in candidate.decisions}
    found = attribute(evaluator, candidate, alone={}, written=weights, fitted=fitted)
    whole = [r.point for r in found if r.label in (ALL, AS_WRITTEN)]
    assert len(whole) == rows
    assert whole[-1] is not None
    assert whole[-1].evaluation == fitted


def test_rows_are_judged_by_the_users_task_where_there_is_one(
    evaluator: Evaluator, held_out: HeldOut
) -> None:
    def losses(candidate: Candidate, *_: object) -> tuple[Loss, ...]:
        return (Loss("top1", float(len(candidate.decisions))),)

    rows = attribute(
        evaluator,
        chosen(evaluator, *KINDS[:2]),
        alone={},
        written={},
        held_out=held_out,
        losses=losses,
    )
    assert [r.point.losses[0].value for r in rows if r.point] == [1.0, 1.0, 2.0]
