"""What argmax-first delivers: its costs on every kind of target, beside other passes, verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from fakes import TARGET, ToyCostModel
from oracle import random_feeds
from segmenters import CLASSES, PASS, applied, delivered, only, segmenter

import onnxnas
from onnxnas import prepare, report
from onnxnas.calibration import load_calibration
from onnxnas.graph import check_model, contract, from_model, to_model
from onnxnas.materialize import apply_candidate
from onnxnas.pass_contract import Why
from onnxnas.passes.resize_input import ResizeInput
from onnxnas.plugins import load_target
from onnxnas.sites import Candidate, SearchSpace
from onnxnas.verify import verify

TARGETS = ["ethos-u55-128", "ethos-u65-256", "ethos-u85-2048", "cpu-ort", "cpu-ort-int8"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("where", ["align_corners", "half_pixel"])
def test_everything_has_a_cost_and_runs_on_the_npu(target: str, where: str) -> None:
    model = segmenter(where=where, to=16, small=9, classes=12)
    if where == "half_pixel":  # a linear one of more than 2 is no operator of the older NPUs
        model = segmenter(where=where, to=8, small=9, classes=12, mode="nearest")
    backend, shapes = load_target(target), {"x": (1, 3, 18, 18)}
    before = backend.cost(applied(model, "keep").view(shapes))
    labels = ["repeat-classes"] if where == "half_pixel" else ["repeat-2", "repeat-8", "repeat-16"]
    for label in labels:
        cost = backend.cost(applied(model, label).view(shapes))
        assert not cost.unavailable
        assert cost.cycles < before.cycles
        argmax = next(k for k in cost.kernels if "am/small" in k.tensors)
        narrow = next(k for k in cost.kernels if "am/narrow" in k.tensors)
        assert argmax.cycles is not None
        assert narrow.cycles is not None
        if backend.target.kind != "predicted":
            assert argmax.cycles > narrow.cycles > 0


def test_wider_classes_are_not_enlarged_on_the_npu() -> None:
    model = segmenter(mode="nearest", to=4, classes=300)
    cost = load_target("ethos-u55-128").cost(
        applied(model, "repeat-classes").view({"x": (1, 3, 10, 10)})
    )
    assert {k.op: k.reason for k in cost.unavailable}["Resize"] == "works on int32 values"


def fixed_segmenter() -> onnx.ModelProto:
    """Its scores have the same size whatever that of the picture is."""
    return segmenter(where="align_corners", to=8, small=9, sizes=True)


def test_it_goes_together_with_smaller_pictures() -> None:
    model, passes = fixed_segmenter(), {p.name: p for p in (ResizeInput((0.5,)), PASS)}
    graph = from_model(model)
    sites = [s for p in passes.values() for s in p.find_sites(graph, TARGET, Why(""))]
    space = SearchSpace(tuple(sites))
    for label in ("repeat-4", "repeat-8"):
        both = Candidate.of({"resize-input@x": "to-9x9", "argmax-first@am": label})
        change = apply_candidate(graph, space, both, passes)
        result = change.model(model)
        check_model(result)
        assert contract(result) == contract(model)
        feeds = random_feeds(model)
        assert np.array_equal(
            only(to_model(change.graph, model, change.provenance), feeds), only(result, feeds)
        )
        shapes = {name: t.shape for name, t in change.graph.tensors().items()}
        assert tuple(shapes["low"][2:]) == (5, 5)
        noted = {p.value for node in result.graph.node for p in node.metadata_props}
        assert noted == {"resize-input@x=to-9x9", f"argmax-first@am={label}"}


def test_scores_that_shrink_with_the_picture_are_enlarged_by_one_of_both() -> None:
    graph = from_model(segmenter(to=2, small=8))
    sites = [s for p in (ResizeInput(), PASS) for s in p.find_sites(graph, TARGET, Why(""))]
    assert sites[0].claims & sites[1].claims


@pytest.fixture
def toy_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "load_target", lambda name: ToyCostModel())


@pytest.mark.usefixtures("toy_target")
def test_optimize_weighs_what_it_costs_and_apply_does_it_again(tmp_path: Path) -> None:
    model = segmenter(where="align_corners", to=8, small=9, sizes=True)
    coarse = np.random.default_rng(0).standard_normal((60, 3, 3, 3)).astype(np.float32)
    np.save(tmp_path / "rows.npy", coarse.repeat(6, 2).repeat(6, 3))
    data = load_calibration(tmp_path / "rows.npy", contract(model)[0])
    options: dict[str, Any] = {"calibration": data, "passes": ["argmax-first", "scale-width"]}
    strict = onnxnas.optimize(model, "toy", max_drop=0.08, **options)
    loose = onnxnas.optimize(model, "toy", max_drop=0.5, **options)
    assert loose.optimized.cost.cycles < strict.optimized.cost.cycles < strict.original.cost.cycles
    assert "argmax-first@am" in str(strict.recipe.candidate)
    assert [d.ok for d in strict.verification.outputs] == [False]  # but it need not be the same
    assert strict.verification.ok
    assert contract(strict.model) == contract(model)
    jsonschema.validate(strict.to_dict(), report.schema())
    strict.write(tmp_path / "out.onnx")
    again = onnxnas.apply(model, tmp_path / "out.run" / "recipe.toml", calibration=data)
    assert again.model.SerializeToString() == strict.model.SerializeToString()


def test_a_map_of_one_class_says_that_it_tells_nothing() -> None:
    model = segmenter(mode="nearest", to=2)
    bias = next(t for t in model.graph.initializer if list(t.dims) == [CLASSES])
    bias.CopyFrom(
        onnx.numpy_helper.from_array(np.eye(CLASSES, dtype=np.float32)[1] * 1e4, bias.name)
    )
    result = delivered(model, "repeat-classes")
    found = verify(model, result)
    assert found.ok
    assert [d.name for d in found.inner] == ["low"]
    assert found.lines()[-1].endswith("which tell nothing apart")
    weight = next(t for t in result.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.5)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    wrong = verify(model, result)
    assert wrong.outputs[0].ok  # the map is the same
    assert not wrong.ok
