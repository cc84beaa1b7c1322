"""What each rule of an expert costs: the best that is known without it, beside the best with it.

Both are estimates: savings and losses of single choices are summed, and what a rule took out was
never fitted, so where such a choice changes the outputs the figure is an upper bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from onnxnas.cost import CostModel
from onnxnas.errors import UnsupportedError, UsageError
from onnxnas.ops import require_shapes
from onnxnas.prepare import Prepared
from onnxnas.roundtrip import silenced
from onnxnas.rules import Move, Note, Ruled
from onnxnas.search import AT_ONCE, Evaluator, Progress
from onnxnas.sites import Candidate, SearchSpace, Site

MOST_COMPILED = 64
"""Choices that are compiled only to say what a rule costs: a second each."""


@dataclass(frozen=True)
class RuleCost:
    """What one rule costs.

    Attributes:
        rule: as written.
        removed: choices it took out.
        forced: choices it demanded.
        cycles: that the best known without it would save more; None where nothing is known.
        unfitted: choices it took out whose loss is not known; they count as harmless, so `cycles`
            is an upper bound where there are any.
        uncosted: choices it took out whose saving is not known; they count as saving nothing.
    """

    rule: str
    removed: int
    forced: int
    cycles: float | None
    unfitted: int = 0
    uncosted: int = 0


def savings_of_removed(prepared: Prepared, progress: Progress | None = None) -> dict[Move, float]:
    """Cycles that each choice takes off alone that rules took out.

    Predicted where the target's costs were learned; else only the `MOST_COMPILED` choices in the
    places that take longest are asked about.
    """
    if prepared.ruled is None:
        return {}
    predictor = _predictor(prepared)
    evaluator = Evaluator(
        prepared.graph,
        prepared.ruled.before,
        prepared.passes,
        predictor or prepared.cost_model,
        prepared.input_shapes,
    )
    (original,) = evaluator.evaluate([Candidate()])
    moves = list(prepared.ruled.removed)
    if predictor is None and original.cost is not None:
        kernels = original.cost.kernels
        taken = {
            s.id: sum(k.cycles or 0.0 for k in kernels if s.tensors & set(k.tensors))
            for s in prepared.ruled.before
        }
        moves = sorted(moves, key=lambda m: -taken[m[0]])[:MOST_COMPILED]
    found = {}
    for start in range(0, len(moves), AT_ONCE):
        if progress is not None:
            progress("costing what rules took out", start, len(moves))
        some = moves[start : start + AT_ONCE]
        trials = evaluator.evaluate([Candidate.of(dict([m])) for m in some])
        for move, trial in zip(some, trials, strict=True):
            if trial.cost is not None:
                found[move] = original.cycles - trial.cycles
    return found


def _predictor(prepared: Prepared) -> CostModel | None:
    try:
        require_shapes(prepared.graph)
        return prepared.cost_model.predictor()
    except (UsageError, UnsupportedError):  # the search has said why already
        return None


def rule_costs(
    ruled: Ruled,
    savings: Mapping[Move, float],
    losses: Mapping[Move, float] | None,
    budget: float,
) -> tuple[RuleCost, ...]:
    """Estimate the cost of each rule by leaving it out of the others.

    Args:
        ruled: the rules, applied.
        savings: cycles that a choice takes off alone; of choices that were taken out as well.
        losses: of `recovered` choices alone; None where nothing was fitted, so none can be made.
        budget: the most the losses may sum to, e.g. what they sum to in the result.
    """
    if not savings:
        return tuple(RuleCost(n.rule, len(n.gone), len(n.forced), None) for n in ruled.notes)
    exact = {(s.id, c.label) for s in ruled.before for c in s.choices if c.exactness == "exact"}
    able = exact if losses is None else {m for s in ruled.before for m in _moves(s)}
    usable = {m: saving for m, saving in savings.items() if m in able}
    known = {m: (losses or {}).get(m, 0.0) for m in usable}
    with_all = _under(ruled, ruled.notes)
    best = _most_saved(*with_all, usable, known, budget)
    found = []
    for note in ruled.notes:
        without = _under(ruled, tuple(n for n in ruled.notes if n is not note))
        more = _most_saved(*without, usable, known, budget)
        freed = (_possible(*without) - _possible(*with_all)) & able
        found.append(
            RuleCost(
                note.rule,
                len(note.gone),
                len(note.forced),
                None if best is None or more is None else max(0.0, more - best),
                len([m for m in freed - exact if m in usable and m not in (losses or {})]),
                len([m for m in freed if m not in usable]),
            )
        )
    return tuple(found)


def _under(ruled: Ruled, notes: tuple[Note, ...]) -> tuple[SearchSpace, frozenset[Move]]:
    """The space under some of the rules, and what they force."""
    gone = frozenset[Move]().union(*(n.gone for n in notes))
    sites = (
        replace(s, choices=tuple(c for c in s.choices if (s.id, c.label) not in gone))
        for s in ruled.before
    )
    return SearchSpace(tuple(sites)), frozenset[Move]().union(*(n.forced for n in notes))


def _possible(space: SearchSpace, forced: frozenset[Move]) -> set[Move]:
    """Choices that can be made beside the forced ones."""
    sites = [space.site(site_id) for site_id, _ in forced]
    return {
        move
        for site in space
        for move in _moves(site)
        if move in forced or not any(s.id == site.id or s.claims & site.claims for s in sites)
    }


def _moves(site: Site) -> list[Move]:
    return [(site.id, choice.label) for choice in site.choices]


def _most_saved(
    space: SearchSpace,
    forced: frozenset[Move],
    savings: Mapping[Move, float],
    losses: Mapping[Move, float],
    budget: float,
) -> float | None:
    """The largest sum of savings within a sum of losses; what is forced may lose what it does."""
    moves = sorted((s.id, c.label) for s in space for c in s.choices if (s.id, c.label) in savings)
    if not moves:
        return 0.0
    rows = [[losses.get(m, 0.0) for m in moves]]
    upper = [max(0.0, budget, sum(losses.get(m, 0.0) for m in forced)) + 1e-12]
    for clique in _exclusive_moves(space, moves):
        rows.append([float(m in clique) for m in moves])
        upper.append(1.0)
    least = np.array([float(m in forced) for m in moves])
    with silenced():  # the solver prints lines of its own
        solution = milp(
            -np.array([savings[m] for m in moves]),
            constraints=LinearConstraint(np.array(rows), -np.inf, upper),
            integrality=np.ones(len(moves)),
            bounds=Bounds(least, 1),
        )
    return None if solution.x is None else -float(solution.fun)


def _exclusive_moves(space: SearchSpace, moves: Sequence[Move]) -> list[frozenset[Move]]:
    """Sets of moves of which at most one can be made: of one site, or of a claim."""
    by_claim: dict[str, set[Move]] = {}
    for move in moves:
        site = space.site(move[0])
        for claim in (f"site:{site.id}", *site.claims):
            by_claim.setdefault(claim, set()).add(move)
    return list({frozenset(found) for found in by_claim.values() if len(found) > 1})
