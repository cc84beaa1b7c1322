"""What a search ends with: the front of all that was evaluated, the best, or what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.cost import Cost
from onnxnas.damage import damage_of
from onnxnas.errors import InfeasibleError, UsageError
from onnxnas.front import named, pareto
from onnxnas.front_point import Evaluation, FrontPoint, Loss
from onnxnas.materialize import TRAINED, Weights
from onnxnas.objectives import FIGURES, METRICS, Goal, Limit, column
from onnxnas.recovery_search import RecoverySearch
from onnxnas.search import LedgerRow, Trial, figures_of
from onnxnas.sites import Candidate

OPTIONS = {metric: f"--max-{metric}" for metric in METRICS} | {"quality": "--max-drop"}
"""What limits are called on the command line."""

_QUALITY = column("quality")


@dataclass(frozen=True)
class Evaluated:
    """A candidate whose cost is that of the whole network, and whose losses were measured.

    Attributes:
        candidate: its decisions.
        cost: with its own weights.
        losses: what limits bind on first; empty where outputs are the original's.
        evaluation: how its weights came about.
        weights: what was fitted.
    """

    candidate: Candidate
    cost: Cost
    losses: tuple[Loss, ...] = ()
    evaluation: Evaluation = "original"
    weights: Weights = field(default_factory=dict)

    @property
    def fitted(self) -> str:
        """How its weights were, see `onnxnas.recipe.Recipe.fitted`."""
        if TRAINED in self.weights:
            return "distilled"
        return "alone" if self.weights and self.evaluation == "single-shot" else "in order"

    @property
    def figures(self) -> tuple[float, ...]:
        """A row of `FIGURES`."""
        return figures_of(self.cost, damage_of(self.losses))


@dataclass(frozen=True)
class Chosen:
    """What to make of a model.

    Attributes:
        best: the decisions, their weights and figures.
        original: cost of the unchanged model.
        ledger: one row per site and choice.
        trials: every candidate that was costed.
        search: for the report.
        notes: warnings for people.
        front: networks that could be had instead, the chosen one among them.
        named: those of the front that have a name.
        recovery: of the fitted choices; None where nothing was fitted.
    """

    best: Evaluated
    original: Cost
    ledger: tuple[LedgerRow, ...]
    trials: tuple[Trial, ...]
    search: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    named: Mapping[str, Evaluated] = field(default_factory=dict)
    recovery: RecoverySearch | None = None


def goal_of(
    minimise: Sequence[str], limits: Sequence[Limit], original: Cost, clock_hz: float
) -> Goal:
    """What is wanted of one model on one target.

    Raises:
        UsageError: a metric is limited or minimised of which the target says nothing.
    """
    row = figures_of(original)
    for metric in (*minimise, *(limit.metric for limit in limits)):
        if metric != "quality" and not row[column(metric)]:
            raise UsageError(
                f"Target {original.target} says nothing about {metric} of this model: "
                f"leave {OPTIONS[metric]} and --objective {metric} out."
            )
    return Goal(tuple(minimise), tuple(limits), row, clock_hz)


def best_of(everything: Sequence[Evaluated], goal: Goal) -> Evaluated:
    """The best candidate that meets all limits.

    Raises:
        InfeasibleError: none does; names the nearest, what it misses, and by how much.
    """
    figures = _figures(everything)
    best = int(goal.order(figures)[0])
    if goal.feasible(figures)[best]:
        return everything[best]
    raise InfeasibleError(_missing(figures, goal))


def _missing(figures: NDArray[np.float64], goal: Goal) -> str:
    nearest = figures[goal.order(figures)[0]]
    relaxed = goal.relaxed(tuple(nearest))
    words = [f"{OPTIONS[limit.metric]} {limit}" for limit in relaxed]
    asked = [
        f"{OPTIONS[limit.metric]} {limit}" for limit in goal.limits if limit.metric in _of(relaxed)
    ]
    ways = [" and ".join(words)] if words else []
    missed = goal.violations(figures)
    for i, limit in enumerate(goal.limits):  # what one of them alone would have to be
        others = np.delete(missed, i, axis=1).max(axis=1, initial=0.0) == 0
        reached = figures[others, column(limit.metric)]
        if len(reached) and np.isfinite(reached.min()):
            least = limit.admitting(float(reached.min()), goal.original, goal.clock_hz)
            ways.append(f"{OPTIONS[limit.metric]} {least}")
    return (
        f"No candidate meets {' and '.join(asked)}: the nearest has {_in_words(nearest, goal)}; "
        f"relax it to {', or '.join(dict.fromkeys(ways))}."
    )


def _of(limits: Sequence[Limit]) -> set[str]:
    return {limit.metric for limit in limits}


def _in_words(row: NDArray[np.float64], goal: Goal) -> str:
    """The figures that are minimised or limited, beside the original's."""
    parts = []
    for at in dict.fromkeys([*goal.columns, *goal.ceilings]):
        if at == _QUALITY:
            parts.append(f"a drop of {row[at]:.4f}")
        else:
            parts.append(f"{METRICS[at]} {row[at] / goal.original[at] - 1:+.1%}")
    return ", ".join(parts)


def front_of(
    everything: Sequence[Evaluated], chosen: Evaluated, goal: Goal
) -> tuple[tuple[FrontPoint, ...], Mapping[str, Evaluated]]:
    """The candidates that nothing beats, and the original; and the named ones by their names.

    Compared are latency and damage, and whatever else is minimised or limited. Where the damage
    that binds is the same, which a share of few rows often is, the next measure decides.
    """
    figures = _figures(everything)
    first = next((c for c in goal.columns if c != _QUALITY), 0)
    figures[:, _QUALITY] = _ranks(everything)
    damaged = bool(figures[:, _QUALITY].any())
    columns = list(dict.fromkeys((first, *goal.columns, *goal.ceilings, _QUALITY)))
    columns = [c for c in columns if c != _QUALITY or damaged]
    on_front = pareto(figures, columns)
    changed = [i for i, e in enumerate(everything) if e.candidate.decisions]
    kept = [i for i in changed if on_front[i] or everything[i] is chosen]
    own = next((at for at, i in enumerate(kept) if everything[i] is chosen), None)
    found = named(figures[kept], columns, own) if kept else {}
    names = {kept[row]: name for name, row in found.items()}
    points = [
        FrontPoint.of(
            e.candidate,
            e.cost,
            e.losses,
            label="original" if not e.candidate.decisions else names.get(i, ""),
            evaluation=e.evaluation,
            chosen=e is chosen,
        )
        for i, e in enumerate(everything)
        if i in kept or not e.candidate.decisions
    ]
    points.sort(key=lambda p: (p.label != "original", -p.cycles, str(p.candidate)))
    return tuple(points), {name: everything[i] for i, name in names.items()}


def distinct(everything: Sequence[Evaluated], chosen: Evaluated) -> list[Evaluated]:
    """One of each candidate: the chosen one, else the one with the least damage."""
    found: dict[Candidate, Evaluated] = {}
    for e in everything:
        known = found.get(e.candidate)
        if known is None or e.figures[_QUALITY] < known.figures[_QUALITY]:
            found[e.candidate] = e
    return list({**found, chosen.candidate: chosen}.values())


def _ranks(everything: Sequence[Evaluated]) -> NDArray[np.intp]:
    """From the least damage to the most, by all measures in their order."""
    measures = max((len(e.losses) for e in everything), default=0)
    rows = np.zeros((len(everything), measures + 1))
    for row, e in zip(rows, everything, strict=True):
        row[: len(e.losses)] = [loss.value for loss in e.losses]
    ranks: NDArray[np.intp] = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    return ranks


def _figures(everything: Sequence[Evaluated]) -> NDArray[np.float64]:
    return np.array([e.figures for e in everything], np.float64).reshape(-1, len(FIGURES))
