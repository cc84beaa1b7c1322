"""Combinations out of what single choices save and harm: sums, exclusions, forced choices."""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import models
import numpy as np
import pytest
from fakes import CompiledToy, LearnedToy, ToyCostModel

from onnxnas.cost import Cost
from onnxnas.divergence import Divergence
from onnxnas.graph import from_model
from onnxnas.objectives import Goal
from onnxnas.pass_contract import Fitted, Pass, Why
from onnxnas.passes.depthwise_to_standard import DepthwiseToStandard
from onnxnas.passes.resize_ibn import ResizeIbn
from onnxnas.recovery_search import RecoverySearch, Single
from onnxnas.search import Evaluator, Move, Trial, cost_from, cost_values, figures_of
from onnxnas.sites import Candidate, Choice, SearchSpace, Site

LABELS = ("a", "b")
BASE = 1000.0


def space() -> SearchSpace:
    claims = [{"x"}, {"y"}, {"x", "y"}, {"z"}, {"w"}]
    choices = tuple(Choice(label, exactness="recovered") for label in LABELS)
    return SearchSpace(
        tuple(Site("p", f"t{i}", choices, frozenset(claim)) for i, claim in enumerate(claims))
    )


def cost(cycles: float) -> Cost:
    return Cost("toy", "estimate", cycles, cycles / 1e9, 100, {"sram": 10}, 10, ())


def search(savings: dict[Move, float], damage: dict[Move, float]) -> RecoverySearch:
    evaluator = Evaluator(None, space(), {}, ToyCostModel(), {})
    evaluator.trials[Candidate()] = Trial(Candidate(), cost(BASE))
    nothing: Any = None
    found = RecoverySearch(evaluator, nothing, nothing)
    for move, saving in savings.items():
        single = Candidate.of(dict([move]))
        found.alone[move] = Trial(single, cost(BASE * (1 - saving)))
        harm = Divergence(np.array([damage[move]]), np.zeros(0))
        found.singles[move] = Single(BASE * saving, Fitted({}, 0.0), harm)
    return found


def everything(where: SearchSpace) -> list[Candidate]:
    found = []
    for labels in product(("keep", *LABELS), repeat=len(where)):
        candidate = Candidate.of({s.id: c for s, c in zip(where, labels, strict=True)})
        sites = [where.site(s) for s, _ in candidate.decisions]
        if not any(a.claims & b.claims for i, a in enumerate(sites) for b in sites[:i]):
            found.append(candidate)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_least_damage_of_all_candidates(seed: int) -> None:
    where, rng = space(), np.random.default_rng(seed)
    moves: list[Move] = [(s.id, label) for s in where for label in LABELS]
    savings = dict(zip(moves, rng.uniform(0.01, 0.1, len(moves)), strict=True))
    damage = dict(zip(moves, rng.uniform(0.0, 0.2, len(moves)), strict=True))

    def total(of: dict[Move, float], candidate: Candidate) -> float:
        return sum(of[move] for move in candidate.decisions)

    for goal in (0.05, 0.1, 0.2):
        found = search(savings, damage).solve(goal)
        fits = [c for c in everything(where) if total(savings, c) >= goal]
        assert (found is None) == (not fits)
        if found is not None:
            assert total(savings, found) >= goal - 1e-9
            assert total(damage, found) == pytest.approx(min(total(damage, c) for c in fits))


def test_what_cannot_be_saved_is_said() -> None:
    move = ("p@t0", "a")
    assert search({move: 0.1}, {move: 0.0}).solve(0.2) is None
    assert search({}, {}).solve(0.1) is None
    assert search({move: 0.1}, {move: 0.0}).solve(0.1) == Candidate.of(dict([move]))


def test_forced_and_preferred_choices() -> None:
    cheap, dear = ("p@t0", "a"), ("p@t1", "a")
    found = search({cheap: 0.1, dear: 0.1}, {cheap: 0.1, dear: 0.3})
    assert found.solve(0.1) == Candidate.of(dict([cheap]))
    found.factors = {dear: 4.0}
    assert found.solve(0.1) == Candidate.of(dict([dear]))
    found.factors, found.forced = {}, Candidate.of(dict([dear]))
    assert found.solve(0.1) == Candidate.of(dict([dear]))
    goal = Goal(("latency",), (), (BASE, 10.0, 10.0, 100.0, 0.0), 1e9)
    assert not np.isfinite(found.problem(goal).damage[1][0])


def test_exact_choices_give_way_to_fitted_ones() -> None:
    move = ("p@t2", "a")
    found = search({move: 0.1}, {move: 0.1})
    found.base = Candidate.of({"p@t0": "b", "p@t3": "a"})
    together = found.beside(Candidate.of(dict([move])))
    assert together == Candidate.of({"p@t2": "a", "p@t3": "a"})


def test_what_a_journal_keeps_comes_back() -> None:
    judged = Divergence(np.array([0.1, 1 / 3]), np.array([1.0, 0.0]))
    back = Divergence.from_dict(judged.to_dict())
    assert back.rows.tolist() == judged.rows.tolist()
    assert back.agrees == judged.agrees
    whole = cost(123.0)
    assert cost_from(cost_values(whole), ToyCostModel.target) == whole


def blocks() -> RecoverySearch:
    """Two bottlenecks in a row; what goes in between belongs to both."""
    b = models.ModelBuilder([1, 6, 8, 8])
    graph = from_model(b.build(b.op("Relu", b.ibn(b.ibn(b.x, 6, 32, 6), 6, 32, 6))))
    passes: dict[str, Pass] = {p.name: p for p in (ResizeIbn(), DepthwiseToStandard())}
    sites = [s for p in passes.values() for s in p.find_sites(graph, LearnedToy.target, Why("x"))]
    evaluator = Evaluator(graph, SearchSpace(tuple(sites)), passes, CompiledToy(), {})
    nothing: Any = None
    found = RecoverySearch(evaluator, nothing, nothing, predictor=LearnedToy())
    for site in sites:
        for choice in site.choices:
            move = site.id, choice.label
            (found.alone[move],) = evaluator.evaluate([Candidate.of(dict([move]))])
            found.singles[move] = Single(0.0, Fitted({}, 0.0), Divergence(np.ones(1), np.zeros(0)))
    return found


GOAL = Goal(("latency", "quality"), (), (1.0, 1.0, 1.0, 1.0, 0.0), 1.0)


def test_what_choices_do_to_each_other_is_predicted() -> None:
    found = blocks()
    problem = found.problem(GOAL)
    rng = np.random.default_rng(0)
    genes = problem.repaired(problem.drawn(rng, 12), rng)
    trials = found.evaluator.evaluate([problem.candidate(row) for row in genes])
    made = [i for i, t in enumerate(trials) if t.cost is not None]
    compiled = np.array([figures_of(t.cost)[:2] for t in trials if t.cost is not None])
    np.testing.assert_allclose(problem.table.figures(genes[made])[:, :2], compiled, rtol=1e-9)
    found.predictor = None
    sums = found.problem(GOAL).table.figures(genes[made])[:, :2]
    assert (np.abs(sums / compiled - 1).max(axis=0) > 0.1).all()


def test_without_time_for_that_costs_add_up() -> None:
    found = blocks()
    found.deadline = time.monotonic() - 1
    assert found.problem(GOAL).table.live is None


def test_decisions_that_stand_in_any_case_are_part_of_every_cost() -> None:
    """One that a choice excludes is undone with it."""
    found = blocks()
    sites = {s.pass_name: s for s in found.space}
    stands = sites["depthwise-to-standard"]
    found.base = Candidate.of({stands.id: stands.choices[0].label})
    move = next(m for m in found.singles if m[0] == sites["resize-ibn"].id)
    found.singles = {move: found.singles[move]}
    both = found.beside(Candidate.of(dict([move])))
    (found.alone[move],) = found.evaluator.evaluate([both])
    problem = found.problem(GOAL)
    costs = problem.table.figures(np.array([[0], [problem.choices[0]]]))[:, 0]
    assert costs.tolist() == [found.start.cycles, found.alone[move].cycles]
