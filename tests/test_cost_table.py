"""Look-ups against fresh predictions, on random networks and on a real one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
from fakes import ToyCostModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_cnn import random_cnn

from onnxnas.cost import Cost, KernelCostModel
from onnxnas.cost_table import CostTable
from onnxnas.graph import static_view
from onnxnas.materialize import apply_candidate
from onnxnas.plugins import load_predictor
from onnxnas.prepare import Prepared, prepare
from onnxnas.rewriter import SiteGone
from onnxnas.search import Evaluator, Trial
from onnxnas.sites import Candidate, SearchSpace

TARGET = "ethos-u55-128"
SAMPLE = Path(__file__).parents[1] / "sample_models" / "camera_classifier.onnx"


@cache
def predictor() -> KernelCostModel:
    learned = load_predictor(TARGET)
    assert learned is not None
    return learned


def ready(model: onnx.ModelProto | Path, sites: Iterable[int] | None = None) -> Prepared:
    """A model and its space, or some sites of it with two choices each."""
    prepared = prepare(model, TARGET)
    if sites is None:
        return prepared
    kept = sorted({i % len(prepared.space) for i in sites}) if len(prepared.space) else []
    few = tuple(prepared.space.sites[i] for i in kept)
    return replace(
        prepared, space=SearchSpace(tuple(replace(s, choices=s.choices[:2]) for s in few))
    )


def build(prepared: Prepared, **options: Any) -> CostTable:
    p = prepared
    view = Evaluator(p.graph, p.space, p.passes, predictor(), p.input_shapes).view
    return CostTable.build(p.graph, p.space, view, predictor(), **options)


def fresh(prepared: Prepared, candidate: Candidate) -> tuple[float, float, float, float]:
    """Cycles, bytes at the fullest moment, weight bytes and MACs, predicted anew."""
    applied = apply_candidate(prepared.graph, prepared.space, candidate, prepared.passes)
    view = static_view(applied.graph, prepared.input_shapes)
    (seen,) = predictor().see([view])
    cost = predictor().cost(view)
    live = max((k.live_bytes for k in seen), default=0)
    return cost.cycles, float(live), sum(k.weight_bytes for k in seen), float(cost.macs)


def possible(space: SearchSpace, table: CostTable) -> list[Candidate]:
    labels = [["keep", *(c.label for c in site.choices)] for site in space]
    found = []
    for chosen in itertools.product(*labels):
        candidate = Candidate.of(dict(zip((s.id for s in space), chosen, strict=True)))
        sites = [space.site(i) for i, _ in candidate.decisions]
        clash = any(a.claims & b.claims for a, b in itertools.combinations(sites, 2))
        if not clash and not any(gone <= set(candidate.decisions) for gone in table.impossible):
            found.append(candidate)
    return found


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(random_cnn(dead=True), st.sets(st.integers(0, 30), min_size=1, max_size=3))
def test_look_ups_equal_fresh_predictions(model: onnx.ModelProto, sites: set[int]) -> None:
    prepared = ready(model, sites)
    table = build(prepared, share=0.0, order=3, networks=10_000)
    candidates = possible(prepared.space, table)
    found = table.figures(table.genes(candidates))
    for candidate, row in zip(candidates, found, strict=True):
        assert row[:4].tolist() == pytest.approx(fresh(prepared, candidate), rel=1e-9, abs=1e-6)
    assert not found[:, 4].any()


def some(space: SearchSpace, table: CostTable, count: int, seed: int) -> list[Candidate]:
    """Random candidates that share no claim."""
    rng = np.random.default_rng(seed)
    found: list[Candidate] = []
    while len(found) < count:
        decisions: dict[str, str] = {}
        claims: frozenset[str] = frozenset()
        for i in rng.permutation(len(space)):
            site = space.sites[i]
            if rng.random() < 0.4 and not site.claims & claims:
                decisions[site.id] = site.choices[rng.integers(len(site.choices))].label
                claims |= site.claims
        candidate = Candidate.of(decisions)
        if not any(gone <= set(candidate.decisions) for gone in table.impossible):
            found.append(candidate)
    return found


@pytest.mark.slow
def test_a_table_of_a_real_network_is_close_and_needs_few_networks() -> None:
    # Another resolution changes every kernel, the other two meet in the middle of each block.
    passes = ["resize-ibn", "depthwise-to-standard", "resize-input"]
    prepared = prepare(SAMPLE, TARGET, passes=passes)
    assert {site.pass_name for site in prepared.space} == set(passes)
    told: list[tuple[str, int, int]] = []
    table = build(prepared, progress=lambda *now: told.append(now))
    assert table.left_out == 0
    assert table.networks < 2 * sum(len(s.choices) for s in prepared.space)
    assert table.kind == "predicted"
    assert told[-1][1] == told[-1][2]
    plain = replace(table, factors=tuple(f for f in table.factors if len(f.sites) < 2))
    errors = []
    for candidate in some(prepared.space, table, 12, seed=1):
        try:
            truth = fresh(prepared, candidate)
        except SiteGone:
            continue
        genes = table.genes([candidate])
        found = [*table.figures(genes)[0, :4], plain.figures(genes)[0, 0]]
        errors.append(np.abs(np.array(found) / [*truth, truth[0]] - 1))
    assert len(errors) > 6
    cycles, peak, weights, macs, cycles_added_up = np.mean(errors, axis=0)
    assert (cycles < 0.01, peak < 0.03) == (True, True)
    assert (weights < 1e-3, macs < 1e-3) == (True, True)
    assert cycles_added_up > 5 * cycles


def test_choices_that_exclude_each_other_are_reported() -> None:
    # The first bottleneck loses channels that groups of the second choice need to divide.
    b = models.ModelBuilder([1, 8, 12, 12])
    prepared = prepare(b.build(b.ibn(b.x, 8, 96, 8)), TARGET, passes=GROUPS_AND_WIDTHS)
    table = build(prepared)
    ids = {site.id for site in prepared.space}
    for gone in table.impossible:
        assert {site for site, _ in gone} <= ids
        with pytest.raises(SiteGone):
            fresh(prepared, Candidate.of(dict(gone)))
    assert table.impossible


GROUPS_AND_WIDTHS = ["resize-ibn", "depthwise-to-standard"]


def test_genes_and_candidates_are_each_others_reverse() -> None:
    b = models.ModelBuilder([1, 8, 12, 12])
    prepared = prepare(b.build(b.ibn(b.x, 8, 96, 8)), TARGET)
    table = CostTable.additive(prepared.space, *alone(prepared))
    candidates = some(prepared.space, table, 5, seed=0)
    genes = table.genes([Candidate(), *candidates])
    assert genes.shape == (6, len(prepared.space))
    assert not genes[0].any()
    assert table.candidates(genes) == [Candidate(), *candidates]


def alone(prepared: Prepared) -> tuple[Any, Any]:
    """Trials of the network as it is and of single choices, by made-up costs."""
    evaluator = Evaluator(
        prepared.graph, prepared.space, prepared.passes, ToyCostModel(), prepared.input_shapes
    )
    moves = [(s.id, c.label) for s in prepared.space for c in s.choices]
    first, *rest = evaluator.evaluate([Candidate(), *(Candidate.of(dict([m])) for m in moves)])
    return first, dict(zip(moves, rest, strict=True))


def test_an_additive_table_adds_what_single_choices_change() -> None:
    b = models.ModelBuilder([1, 8, 12, 12])
    y = b.ibn(b.ibn(b.x, 8, 48, 8), 8, 96, 8)
    prepared = prepare(b.build(y), TARGET, passes=["depthwise-to-standard"])
    before, trials = alone(prepared)
    missing = (prepared.space.sites[0].id, prepared.space.sites[0].choices[-1].label)
    del trials[missing]
    table = CostTable.additive(prepared.space, before, trials)
    moves = {s.id: s.choices[0].label for s in prepared.space}
    asked = [Candidate(), Candidate.of(moves), Candidate.of(dict([missing]))]
    found = table.figures(table.genes(asked))
    change = sum(trials[m].cycles - before.cycles for m in moves.items())
    assert found[0, 0] == before.cycles
    assert found[1, 0] == pytest.approx(before.cycles + change)
    assert found[1, 1] == 1024
    assert np.isinf(found[2, 0])
    assert (table.kind, len(table.factors)) == ("estimate", 1 + len(prepared.space))


def test_single_costs_may_come_from_elsewhere() -> None:
    """A compiler that says twice what is predicted, and a little more of one choice."""
    b = models.ModelBuilder([1, 8, 12, 12])
    prepared = prepare(b.build(b.ibn(b.x, 8, 96, 8)), TARGET, passes=GROUPS_AND_WIDTHS)
    table = build(prepared)
    assert any(len(f.sites) > 1 and f.cycles.any() for f in table.factors)
    keep = np.zeros((1, len(table.sites)), np.intp)
    trials: dict[Any, Trial] = {}
    for i, site in enumerate(table.sites):
        for k, choice in enumerate(site.choices, start=1):
            row = keep.copy()
            row[0, i] = k
            trials[site.id, choice.label] = twice(table.figures(row)[0])
    first = trials[next(iter(trials))]
    assert first.cost is not None
    trials[next(iter(trials))] = replace(first, cost=replace(first.cost, cycles=first.cycles + 7))
    before = twice(table.figures(keep)[0])
    found = table.anchored(CostTable.additive(prepared.space, before, trials))
    genes = table.genes(possible(prepared.space, table))
    wanted = table.figures(genes) * [2, 2, 2, 1, 0]
    wanted[:, 0] += 7 * (genes[:, 0] == 1)
    np.testing.assert_allclose(found.figures(genes), wanted, rtol=2e-4)
    assert found.kind == "estimate"
    assert found.live is not None


def twice(row: Any) -> Trial:
    """A compiled network of twice these cycles, bytes of memory and bytes of weights."""
    cycles, peak, weights, macs, _ = (float(figure) for figure in row)
    sizes = {"sram": round(2 * peak)}
    cost = Cost(TARGET, "estimate", 2 * cycles, 1.0, round(macs), sizes, round(2 * weights), ())
    return Trial(Candidate(), cost)


def test_a_space_without_sites_costs_what_the_network_costs() -> None:
    b = models.ModelBuilder([1, 3, 8, 8])
    prepared = ready(b.build(b.conv(b.x, 3, 4)), [])
    table = build(prepared)
    found = table.figures(np.zeros((2, 0), np.intp))
    assert found[0, :4].tolist() == pytest.approx(fresh(prepared, Candidate()))
    assert table.figures(np.zeros((0, 0), np.intp)).shape == (0, 5)
