"""Every registered pass and target, on every tiny model, keeps its contract."""

from __future__ import annotations

import models
import pytest
import rewriting
from fakes import TARGET

from onnxnas.graph import from_model, static_view
from onnxnas.plugins import load_passes, load_target, target_names
from onnxnas.testing import check_cost_model, check_pass

ZOO = models.zoo()
PASSES, BROKEN = load_passes()


def sizes(model: str) -> dict[str, tuple[int, ...]]:
    return {"x": (1, 3, 8, 8)} if model == "dynamic_size" else {}


def test_everything_registered_can_be_loaded() -> None:
    assert not BROKEN
    assert {
        "align-channels",
        "depthwise-to-standard",
        "merge-linear-convs",
        "remove-dead-channels",
        "rewrite-prelu",
    } <= PASSES.keys()


@pytest.mark.parametrize("model", ZOO)
@pytest.mark.parametrize("name", PASSES)
def test_pass(name: str, model: str) -> None:
    check_pass(PASSES[name], ZOO[model], TARGET, input_shapes=sizes(model))


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_fires_somewhere(name: str) -> None:
    assert any(rewriting.find(PASSES[name], model)[0] for model in ZOO.values())


@pytest.mark.parametrize("model", ZOO)
@pytest.mark.parametrize("name", target_names())
def test_target(name: str, model: str) -> None:
    view = static_view(from_model(ZOO[model]), sizes(model))
    check_cost_model(load_target(name), view)
