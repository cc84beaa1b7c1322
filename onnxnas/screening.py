"""Choices that a learned cost model says cannot pay, so that no backend is asked about them.

A prediction takes milliseconds where a compile takes a second, but is a few percent off. Between
two networks that share most of their kernels, errors of the shared ones cancel: only the kernels
that differ count, each with the interval of its own prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxnas.cost import Cost, CostModel
from onnxnas.search import MIN_GAIN


@dataclass(frozen=True)
class Screen:
    """Rules out rewritten networks by prediction alone.

    Attributes:
        predictor: of the target; its kernels' costs have intervals.
    """

    predictor: CostModel

    @classmethod
    def of(cls, cost_model: CostModel) -> Screen | None:
        """By what was learned about a cost source; None where nothing was, or it is that itself.

        Raises:
            UsageError: something was learned, and cannot be used here.
        """
        predictor = cost_model.predictor()
        return None if predictor is None or predictor is cost_model else cls(predictor)

    def reasons(self, before: Any, views: Sequence[Any]) -> list[str]:
        """Why each network cannot be faster than another by `MIN_GAIN`; empty where it may be.

        Args:
            before: static view of the network to beat.
            views: of the others.
        """
        return [reason for reason, _ in self.predicted(before, views)]

    def predicted(self, before: Any, views: Sequence[Any]) -> list[tuple[str, Cost]]:
        """The same with the predicted costs."""
        old, *new = self.predictor.cost_many([before, *views])
        return [(_reason(old, cost), cost) for cost in new]

    def costs(self, start: Cost, before: Any, views: Sequence[Any]) -> list[Cost | None]:
        """Costs of rewritten networks without asking the target's backend.

        Args:
            start: what the backend says of `before`; predictions are scaled to it, so that
                differences can be read off.
            before: static view of the network that was rewritten.
            views: of the others.

        Returns:
            None where the backend has to be asked: what was learned is unsure, or an operator is
            new, and whether the target can run it at all is the backend's to say.
        """
        old, *new = self.predictor.cost_many([before, *views])
        known = {node.op for node in before.nodes}
        scale = start.cycles / old.cycles if old.cycles else 1.0
        found: list[Cost | None] = []
        for view, cost in zip(views, new, strict=True):
            if {node.op for node in view.nodes} - known or doubt(old, cost) == float("inf"):
                found.append(None)
            else:
                cycles, seconds = scale * cost.cycles, scale * cost.seconds
                found.append(replace(cost, cycles=cycles, seconds=seconds))
        return found


def _reason(old: Cost, new: Cost) -> str:
    change = (new.cycles - old.cycles) / old.cycles if old.cycles else 0.0
    best = change - doubt(old, new) / old.cycles if old.cycles else -float("inf")
    if best < -MIN_GAIN:
        return ""
    return f"predicted to change the cycles by {change:+.1%}, at best by {best:+.2%}: not compiled"


def dominated(costs: Mapping[str, Cost]) -> dict[str, str]:
    """Of one site's choices that change the function those that another beats: label -> why.

    One that is no slower and computes more is taken to harm less.
    """
    found: dict[str, str] = {}
    for label, cost in costs.items():
        for other, better in costs.items():
            more = better.macs > cost.macs and better.cycles <= cost.cycles
            if more and other not in found:
                found[label] = f"{other} is as fast and keeps more"
                break
    return found


def doubt(old: Cost, new: Cost) -> float:
    """How far a predicted difference of two networks may be off, cycles; infinite if not known.

    Kernels are told apart by their outputs; their errors are taken as independent.
    """
    before = {kernel.output: kernel for kernel in old.kernels}
    after = {kernel.output: kernel for kernel in new.kernels}
    squares = 0.0
    for output in {**before, **after}:
        pair = [k for k in (before.get(output), after.get(output)) if k is not None]
        if len(pair) == 2 and pair[0].cycles == pair[1].cycles:
            continue
        for kernel in pair:
            if not kernel.covered or kernel.interval is None:
                return float("inf")
            low, high = kernel.interval
            squares += ((high - low) / 2) ** 2
    return float(squares**0.5)
