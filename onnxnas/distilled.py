"""The last step of a thorough search: finalists trained as a whole to answer as the original does.

Only where PyTorch is installed. Weights change, decisions do not; what training gains is seen on
rows that it did not see, and where it gains nothing it is not kept. Besides the result it is given
to those that would be better but lose a little too much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxnas.damage import Damage
from onnxnas.distill import RATE, STEPS, Trained, train
from onnxnas.divergence import Divergence
from onnxnas.errors import UnsupportedError, UsageError
from onnxnas.materialize import TRAINED, Applied, Weights, apply_candidate
from onnxnas.objectives import Goal, column
from onnxnas.outcome import Evaluated, distinct
from onnxnas.pass_contract import Fitted, OutOfTime
from onnxnas.recovery_search import RecoverySearch
from onnxnas.sites import Candidate
from onnxnas.version import __version__

_BEYOND = 2
"""Finalists beyond the limit that are trained, at most."""
_FAR = 3.0
"""Times the limit: what loses more than that is not brought below it."""
_DAMAGE = column("quality")


@dataclass
class Distillation:
    """What came of training the finalists of one search.

    Attributes:
        kept: those that are nearer to the original than they were.
        rows: for the report, one for each that was trained.
        why_not: why no others were; empty where nothing was in the way.
    """

    search: RecoverySearch
    damage: Damage
    goal: Goal
    seed: int
    kept: list[Evaluated] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    why_not: str = ""

    def run(self, everything: Sequence[Evaluated], chosen: Evaluated) -> None:
        """Train what was chosen, and what lacks little to be chosen instead."""
        picked = self._picked(everything, chosen)
        if not picked:
            self.why_not = "the result has no weights that were fitted together"
        try:
            for e in picked:
                self._one(e)
        except (UsageError, UnsupportedError) as error:
            self.why_not = str(error).rstrip(".")
        except OutOfTime:
            self.why_not = "the time was up"

    def to_dict(self, chosen: Evaluated) -> dict[str, Any]:
        """For the report: plain JSON values."""
        if not self.rows:
            return {"unavailable": True, "reason": self.why_not}
        result = str(chosen.candidate) if TRAINED in chosen.weights else None
        rows = [{**row, "chosen": row["candidate"] == result} for row in self.rows]
        return {"measure": self.damage.measure, "networks": rows, "ended": self.why_not}

    def _picked(self, everything: Sequence[Evaluated], chosen: Evaluated) -> list[Evaluated]:
        together = [e for e in everything if e.evaluation == "multishot" and e is not chosen]
        rest = [e for e in distinct(together, chosen) if e is not chosen]
        limit = self.goal.ceilings.get(_DAMAGE, np.inf)
        beyond = []
        for e in rest:
            damage = e.figures[_DAMAGE]
            # As it would be with as little loss as what was chosen: would it be better?
            row = [*e.figures[:_DAMAGE], chosen.figures[_DAMAGE]]
            both = np.array([chosen.figures, row])
            if limit < damage <= _FAR * limit and self.goal.order(both)[0] == 1:
                beyond.append(e)
        beyond.sort(key=lambda e: [loss.value for loss in e.losses])
        first = [chosen] if chosen.evaluation == "multishot" else []
        return first + beyond[:_BEYOND]

    def _one(self, e: Evaluated) -> None:
        before = self.search.held_out.divergence(self._applied(e.candidate, e.weights))
        weights, steps, device = trained_weights(self.search, e.candidate, e.weights, self.seed)
        applied = self._applied(e.candidate, weights)
        after = self.search.held_out.divergence(applied)
        kept = after.value < before.value
        row = {
            "candidate": str(e.candidate),
            "steps": steps,
            "device": device,
            "before": _figures(before),
            "after": _figures(after),
            "kept": kept,
        }
        self.rows.append(row)
        if kept:
            evaluator = self.search.evaluator
            cost = evaluator.cost_model.cost(applied.view(evaluator.input_shapes))
            losses = self.damage.losses(e.candidate, weights, after, "distilled")
            self.kept.append(Evaluated(e.candidate, cost, losses, "distilled", weights))

    def _applied(self, candidate: Candidate, weights: Weights) -> Applied:
        e = self.search.evaluator
        return apply_candidate(e.graph, e.space, candidate, e.passes, weights)


def trained_weights(
    search: RecoverySearch, candidate: Candidate, weights: Weights, seed: int
) -> tuple[Weights, int, str]:
    """All weights of a candidate trained towards the original; from the library where it has them.

    Args:
        weights: that were fitted for it in order.

    Returns:
        The weights, how many steps were made, and on what device.

    Raises:
        UsageError: PyTorch is not installed.
        UnsupportedError: gradients cannot go through an operator of it.
        OutOfTime: before it was done; half of it would be another result.
    """
    recovery, evaluator = search.recovery, search.evaluator
    key = _key(search, candidate, weights, seed)
    known = recovery.library.get(key)
    if known is None:
        applied = apply_candidate(
            evaluator.graph, evaluator.space, candidate, evaluator.passes, weights
        )

        def progress(what: str, done: int, total: int) -> None:
            recovery.tick()
            recovery.progress(what, done, total)

        judged = search.held_out.judged
        found = train(
            evaluator.graph, applied.graph, recovery.rows, judged, STEPS, RATE, None, seed, progress
        )
        known = _stored(found)
        recovery.library.put(key, known)
    found = _read(known)
    return {**weights, TRAINED: found.values}, found.steps, found.device


def _stored(found: Trained) -> Fitted:
    """As the library takes it, whose names are its own."""
    values = {f"values {i}": array for i, array in enumerate(found.values.values())}
    values["names"] = np.array([*found.values])
    values["steps"], values["device"] = np.array(found.steps), np.array(found.device)
    return Fitted(values, 0.0)


def _read(stored: Fitted) -> Trained:
    names = [str(name) for name in stored.values["names"]]
    values = {name: stored.values[f"values {i}"] for i, name in enumerate(names)}
    return Trained(values, int(stored.values["steps"]), str(stored.values["device"]))


def _key(search: RecoverySearch, candidate: Candidate, weights: Weights, seed: int) -> str:
    """Everything that training depends on."""
    recovery = search.recovery
    parts = "distilled", __version__, recovery.model_digest, recovery.rows.digest, str(seed)
    digest = hashlib.sha256("\n".join((*parts, str(STEPS), str(RATE), str(candidate))).encode())
    for move, values in sorted(weights.items()):
        for name, value in sorted(values.items()):
            digest.update(f"{move}{name}{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def _figures(found: Divergence) -> dict[str, Any]:
    return {
        "divergence": found.value,
        "divergence_standard_error": found.error,
        "agreement": found.agrees,
    }
