"""Combinations out of what single choices save and harm: sums, exclusions, forced choices."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from fakes import ToyCostModel

from onnxnas.cost import Cost
from onnxnas.divergence import Divergence
from onnxnas.objectives import Goal
from onnxnas.pass_contract import Fitted
from onnxnas.recovery_search import RecoverySearch, Single
from onnxnas.search import Evaluator, Move, Trial, cost_from, cost_values
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
