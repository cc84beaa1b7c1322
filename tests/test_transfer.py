"""A recipe of one model on another: what is found, what is translated, what is left out and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import onnx
import oracle
import pytest
from fakes import ToyCostModel

import onnxnas
from onnxnas import graph as graphs
from onnxnas import prepare as prepare_module
from onnxnas.errors import UsageError
from onnxnas.recipe import Recipe
from onnxnas.sites import Candidate, Choice, SearchSpace, Site
from onnxnas.transfer import fingerprints, match_recipe, matches


def network(widths: tuple[int, ...], prefix: str, size: int = 32) -> onnx.ModelProto:
    """3x3 convolutions, every other one of stride 2."""
    b = models.ModelBuilder([1, 3, size, size])
    y, channels = b.x, 3
    for i, width in enumerate(widths):
        y = b.op(
            "Relu", b.conv(y, channels, width, 3, pads=1, stride=1 + i % 2, out=f"{prefix}{i}")
        )
        channels = width
    return b.build(y)


def space(model: onnx.ModelProto) -> tuple[SearchSpace, Any]:
    """Every convolution may become narrower: half, or three quarters."""
    graph = graphs.from_model(model)
    sites = []
    for node in graph.nodes:
        if node.op == "Conv":
            name, width = node.outputs[0].name, int(node.outputs[0].shape[1])
            choices = tuple(Choice(f"to-{w}", {"width": w}) for w in (width * 3 // 4, width // 2))
            sites.append(Site("narrow", name, choices, frozenset({f"node:{name}"})))
    return SearchSpace(tuple(sites)), graph


def recipe_of(widths: tuple[int, ...], decisions: dict[str, str]) -> Recipe:
    model = network(widths, "a")
    sites, graph = space(model)
    candidate = Candidate.of(decisions)
    return Recipe(
        "toy", candidate, model_sha256="a", fingerprints=fingerprints(candidate, sites, graph)
    )


def test_places_are_found_by_their_looks_and_widths_by_their_share() -> None:
    recipe = recipe_of((16, 32, 32, 64), {"narrow@a1": "to-16", "narrow@a2": "to-24"})
    sites, graph = space(network((32, 64, 64, 128), "b", 48))
    candidate, missing = match_recipe(recipe, sites, graph)
    assert candidate == Candidate.of({"narrow@b1": "to-32", "narrow@b2": "to-48"})
    assert not missing
    assert all(m.moved for m in matches(recipe, sites, graph))


def test_names_go_before_looks_but_a_name_alone_is_no_place() -> None:
    recipe = recipe_of((16, 32, 32, 64), {"narrow@a1": "to-16"})
    same, graph = space(network((16, 32, 32, 64), "a", 64))
    assert match_recipe(recipe, same, graph)[0] == recipe.candidate
    # here a1 is a 1x1 convolution: its name means nothing
    b = models.ModelBuilder([1, 3, 32, 32])
    y = b.conv(b.conv(b.x, 3, 16, 3, pads=1, out="a0"), 16, 32, 1, out="a1")
    other, graph = space(b.build(b.conv(y, 32, 64, 3, pads=1, stride=2, out="a2")))
    assert match_recipe(recipe, other, graph)[0] == Candidate.of({"narrow@a2": "to-32"})


def test_what_has_no_like_is_listed_with_the_reason() -> None:
    deep = recipe_of(
        (16, 32, 32, 64, 64, 96), {"narrow@a1": "to-16", "narrow@a4": "to-48", "narrow@a5": "to-72"}
    )
    sites, graph = space(network((16, 32, 32), "b"))
    candidate, missing = match_recipe(deep, sites, graph)
    assert candidate == Candidate.of({"narrow@b1": "to-16"})
    assert [m.site for m in missing] == ["narrow@a4", "narrow@a5"]
    assert "no place for narrow like it (Conv 3x3 in stage 3)" in str(missing[0])


def test_a_place_with_no_choice_near_the_share_is_listed() -> None:
    recipe = recipe_of((16, 32), {"narrow@a1": "to-16"})
    looks = {s: replace(f, share=0.2) for s, f in recipe.fingerprints.items()}
    sites, graph = space(network((16, 32), "b"))
    candidate, (missing,) = match_recipe(replace(recipe, fingerprints=looks), sites, graph)
    assert not candidate.decisions
    assert "has no such choice; it has to-24, to-16" in missing.reason


def test_places_that_exclude_each_other_are_not_both_taken() -> None:
    recipe = recipe_of((16, 32, 32, 64), {"narrow@a1": "to-16", "narrow@a2": "to-24"})
    sites, graph = space(network((16, 32, 32, 64), "b"))
    shared = SearchSpace(tuple(replace(s, claims=s.claims | {"channels:b1"}) for s in sites))
    candidate, (missing,) = match_recipe(recipe, shared, graph)
    assert len(candidate.decisions) == 1
    assert "taken" in missing.reason


def test_a_recipe_without_looks_matches_names_only() -> None:
    recipe = Recipe("toy", Candidate.of({"narrow@a0": "to-8", "narrow@gone": "to-8"}))
    sites, graph = space(network((16, 32), "a"))
    candidate, (missing,) = match_recipe(recipe, sites, graph)
    assert candidate == Candidate.of({"narrow@a0": "to-8"})
    assert "does not say what it looks like" in missing.reason


def blocks(count: int, name: str, hidden: int = 24) -> onnx.ModelProto:
    b = models.ModelBuilder([1, 8, 12, 12])
    y = b.op("Relu", b.conv(b.x, 8, 8, 1), out=name)  # moves the numbers in the names below
    for _ in range(count):
        y = b.op("Identity", y) if name == "shifted" else y
        y = b.ibn(y, 8, hidden, 8)
    return b.build(y)


def test_apply_moves_a_recipe_only_when_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "load_target", lambda name: ToyCostModel())
    found = onnxnas.optimize(blocks(3, "same"), "toy", exact_only=True)
    (tmp_path / "r.toml").write_text(found.recipe.to_toml())
    other = blocks(2, "shifted", hidden=48)
    with pytest.raises(UsageError, match=r"another model's.*--transfer"):
        onnxnas.apply(other, tmp_path / "r.toml")
    moved = onnxnas.apply(other, tmp_path / "r.toml", transfer=True)
    oracle.assert_same_outputs(other, moved.model)
    assert len(moved.recipe.candidate.decisions) == 2
    assert moved.optimized.cost.cycles < moved.original.cost.cycles
    told = [w for w in moved.warnings if w.startswith("Recipe:")]
    assert sum("is made as" in w for w in told) == 2
    assert sum("is not made here: 2 of 3 places" in w for w in told) == 1
