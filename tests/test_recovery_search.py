"""The integer program finds the least damage for a saving, as trying everything does."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from onnxnas.recover import Move
from onnxnas.recovery_search import cheapest
from onnxnas.sites import Candidate, Choice, SearchSpace, Site

LABELS = ("a", "b")


def space() -> SearchSpace:
    claims = [{"x"}, {"y"}, {"x", "y"}, {"z"}, {"w"}]
    return SearchSpace(
        tuple(
            Site("p", f"t{i}", tuple(Choice(label) for label in LABELS), frozenset(claim))
            for i, claim in enumerate(claims)
        )
    )


def everything(where: SearchSpace) -> list[Candidate]:
    found = []
    for labels in product(("keep", *LABELS), repeat=len(where)):
        candidate = Candidate.of({s.id: c for s, c in zip(where, labels, strict=True)})
        sites = [where.site(s) for s, _ in candidate.decisions]
        if not any(a.claims & b.claims for i, a in enumerate(sites) for b in sites[:i]):
            found.append(candidate)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_least_damage_of_all_candidates(seed: int) -> None:
    where, rng = space(), np.random.default_rng(seed)
    moves: list[Move] = [(s.id, label) for s in where for label in LABELS]
    savings = dict(zip(moves, rng.uniform(0.01, 0.1, len(moves)), strict=True))
    damage = dict(zip(moves, rng.uniform(0.0, 0.2, len(moves)), strict=True))

    def total(of: dict[Move, float], candidate: Candidate) -> float:
        return sum(of[move] for move in candidate.decisions)

    for goal in (0.05, 0.1, 0.2):
        found = cheapest(where, savings, damage, goal)
        fits = [c for c in everything(where) if total(savings, c) >= goal]
        assert (found is None) == (not fits)
        if found is not None:
            assert total(savings, found) >= goal - 1e-9
            assert total(damage, found) == pytest.approx(min(total(damage, c) for c in fits))


def test_what_cannot_be_saved_is_said() -> None:
    where = space()
    move = ("p@t0", "a")
    assert cheapest(where, {move: 0.1}, {move: 0.0}, 0.2) is None
    assert cheapest(where, {}, {}, 0.1) is None
    assert cheapest(where, {move: 0.1}, {move: 0.0}, 0.1) == Candidate.of(dict([move]))
