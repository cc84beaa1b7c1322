"""Every pass on real networks, alone and with the others, at all sites that go together."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import onnx
import pytest
from fakes import TARGET
from oracle import assert_same_outputs, evalset_model, random_feeds, run

from onnxnas.graph import check_model, contract, from_model, to_model
from onnxnas.materialize import apply_candidate
from onnxnas.normalise import normalise
from onnxnas.pass_contract import Why
from onnxnas.plugins import load_passes
from onnxnas.rewriter import SiteGone
from onnxnas.sites import Candidate, Choice, SearchSpace, Site

NETWORKS = {
    "mobilenetv2_224": {},
    "yolo_fastest_1.1_320": {},
    "deeplabv3_mnv2_dm05_513": {},
    "vww_mobilenetv1_025_96": {},
    "minifasnet_v2_80": {},
    "ppocrv2_cls_shipped": {"x": (1, 3, 48, 192)},
}
PASSES, _ = load_passes()


@cache
def cleaned(network: str) -> tuple[onnx.ModelProto, Any]:
    model = normalise(onnx.load(evalset_model(network)), NETWORKS[network]).model
    return model, from_model(model)


@pytest.mark.slow
@pytest.mark.parametrize("pick", [0, -1], ids=["first-choice", "last-choice"])
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("network", NETWORKS)
def test_all_sites_of_a_pass(network: str, name: str, pick: int) -> None:
    check_all_sites(network, {name: pick})


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_all_sites_of_all_passes(network: str) -> None:
    # Last choices: `dense` fits whatever width dead channels leave, `groups-of-8` does not. Of a
    # PRelu the first: the last needs the depthwise convolutions around it as they were.
    check_all_sites(network, dict.fromkeys(PASSES, -1) | {"rewrite-prelu": 0})


def check_all_sites(network: str, picks: dict[str, int]) -> None:
    """With their exact choices, of which a pass may have none."""
    model, graph = cleaned(network)
    sites = (s for n in picks for s in PASSES[n].find_sites(graph, TARGET, Why(n)))
    space = SearchSpace(tuple(s for s in sites if exact_choices(s)))
    candidate = Candidate()
    for site in space:
        if not space.conflicts(site, candidate):
            choice = exact_choices(site)[picks[site.pass_name]]
            candidate = candidate.with_choice(site.id, choice.label)
    applied = apply_candidate(graph, space, candidate, PASSES)
    result = to_model(applied.graph, model, applied.provenance)
    check_model(result)
    assert contract(result) == contract(model)
    assert bool(applied.provenance) == bool(len(space))
    assert_same_outputs(model, result, random_feeds(model, shapes=NETWORKS[network]))


def exact_choices(site: Site) -> list[Choice]:
    return [c for c in site.choices if c.exactness == "exact"]


@pytest.mark.slow
@pytest.mark.parametrize("pick", [0, -1], ids=["first-choice", "last-choice"])
@pytest.mark.parametrize("network", NETWORKS)
def test_structure_of_fitted_choices(network: str, pick: int) -> None:
    """Every pass by itself, at as many sites as go together, nothing fitted."""
    model, graph = cleaned(network)
    for name in PASSES:
        why = Why(name)
        space = SearchSpace(tuple(PASSES[name].find_sites(graph, TARGET, why)))
        assert all(miss.reason for miss in why.misses)
        candidate = Candidate()
        for site in sorted(space, key=lambda s: len(s.claims)):  # a whole network comes last
            if not space.conflicts(site, candidate):
                candidate = candidate.with_choice(site.id, site.choices[pick].label)
        check_form(network, model, apply_candidate(graph, space, candidate, PASSES))


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_choices_of_all_passes_at_random(network: str) -> None:
    """Choices that claim nothing in common go together, or say what is gone."""
    model, graph = cleaned(network)
    order = sorted(PASSES.values(), key=lambda p: (p.order, p.name))
    space = SearchSpace(tuple(s for p in order for s in p.find_sites(graph, TARGET, Why(p.name))))
    done = 0
    for seed in range(6):
        rng, sites, candidate = random.Random(seed), list(space), Candidate()
        rng.shuffle(sites)
        for site in sites[: (5, 200)[seed % 2]]:
            if not space.conflicts(site, candidate):
                candidate = candidate.with_choice(site.id, rng.choice(site.choices).label)
        try:
            applied = apply_candidate(graph, space, candidate, PASSES)
        except SiteGone:
            continue
        check_form(network, model, applied)
        done += 1
    assert done


def check_form(network: str, model: onnx.ModelProto, applied: Any) -> None:
    result = to_model(applied.graph, model, applied.provenance)
    check_model(result)
    assert contract(result) == contract(model)
    feeds = random_feeds(model, shapes=NETWORKS[network])
    shapes = [{k: v.shape for k, v in run(m, feeds).items()} for m in (model, result)]
    assert shapes[0] == shapes[1]
