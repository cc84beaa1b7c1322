"""What each kind of rewrite contributes to a result: made alone, and left out of all.

Every row is a network of its own, compiled whole and judged on held-out rows. Nothing is fitted
again: each choice has the weights that were fitted for it alone, so rows differ by the rewrites
and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from onnxnas.divergence import Divergence
from onnxnas.errors import UnsupportedError
from onnxnas.front_point import Evaluation, FrontPoint, Loss, losses_of
from onnxnas.held_out import HeldOut
from onnxnas.materialize import Weights, apply_candidate
from onnxnas.pass_contract import OutOfTime
from onnxnas.rewriter import SiteGone
from onnxnas.search import Evaluator, Progress
from onnxnas.sites import Candidate

LossesOf = Callable[[Candidate, Weights, Divergence, str], tuple[Loss, ...]]
"""What a candidate with weights loses, given its divergence and how they came about."""

ALL = "all, each fitted alone"
AS_WRITTEN = "all, as written"


@dataclass(frozen=True)
class Contribution:
    """One row.

    Attributes:
        label: ``fuse-ibn alone``, ``all but fuse-ibn``, `ALL` or `AS_WRITTEN`.
        rewrites: how many decisions are made in it.
        point: its figures; None where there are none.
        reason: why; empty otherwise.
    """

    label: str
    rewrites: int
    point: FrontPoint | None
    reason: str = ""


def attribute(
    evaluator: Evaluator,
    candidate: Candidate,
    *,
    alone: Weights,
    written: Weights,
    fitted: Evaluation = "multishot",
    held_out: HeldOut | None = None,
    losses: LossesOf | None = None,
    deadline: float | None = None,
    progress: Progress | None = None,
) -> tuple[Contribution, ...]:
    """Take a candidate apart by kind of rewrite.

    Args:
        evaluator: of the model and target; its space holds the candidate.
        candidate: what was chosen; with rewrites of one kind there is nothing to take apart.
        alone: what was fitted for each `recovered` choice alone.
        written: the weights of the result.
        fitted: how those came about; where each was fitted alone, they are the others' too.
        held_out: judges; None where there is no data, then rows have costs only.
        losses: knows more than the divergence, e.g. the user's task; None for that alone.
        deadline: by `time.monotonic`; rows that are not begun by then say so.
        progress: called with (what, done, total).
    """
    kinds = list(dict.fromkeys(s.pass_name for s, _ in evaluator.space.decided(candidate)))
    if len(kinds) < 2:
        return ()
    parts: list[tuple[str, Candidate, Weights, Evaluation]] = []
    for kind in kinds:
        parts.append((f"{kind} alone", _of(candidate, kind, True), alone, "single-shot"))
    for kind in kinds if len(kinds) > 2 else ():  # all but one of two is the other one alone
        parts.append((f"all but {kind}", _of(candidate, kind, False), alone, "single-shot"))
    together = bool(written) and fitted != "single-shot"
    if together:
        parts.append((ALL, candidate, alone, "single-shot"))
    how: Evaluation = fitted if together else "single-shot"
    parts.append((AS_WRITTEN, candidate, written, how))
    rows = []
    for i, (label, part, weights, came) in enumerate(parts):
        if progress is not None:
            progress("taking the result apart", i, len(parts))
        rewrites = len(part.decisions)
        if deadline is not None and time.monotonic() > deadline:
            rows.append(Contribution(label, rewrites, None, "the time was up"))
            continue
        try:
            point = _point(evaluator, part, weights, came, held_out, losses)
        except OutOfTime:
            rows.append(Contribution(label, rewrites, None, "the time was up"))
        except (SiteGone, UnsupportedError) as error:
            rows.append(Contribution(label, rewrites, None, str(error)))
        else:
            rows.append(Contribution(label, rewrites, point))
    return tuple(rows)


def _of(candidate: Candidate, kind: str, alone: bool) -> Candidate:
    return Candidate(
        tuple(d for d in candidate.decisions if (d[0].partition("@")[0] == kind) == alone)
    )


def _point(
    evaluator: Evaluator,
    candidate: Candidate,
    weights: Weights,
    how: Evaluation,
    held_out: HeldOut | None,
    losses: LossesOf | None,
) -> FrontPoint:
    applied = apply_candidate(
        evaluator.graph, evaluator.space, candidate, evaluator.passes, weights
    )
    cost = evaluator.cost_model.cost(applied.view(evaluator.input_shapes))
    lost: tuple[Loss, ...] = ()
    if held_out is not None:
        divergence = held_out.divergence(applied)
        measure = " and ".join(sorted({j.measure for j in held_out.judged}))
        lost = (
            losses_of(divergence, measure)
            if losses is None
            else losses(candidate, weights, divergence, how)
        )
    return FrontPoint.of(candidate, cost, lost, evaluation=how)
