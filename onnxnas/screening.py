"""Choices that a learned cost model says cannot pay, so that no backend is asked about them.

A prediction takes milliseconds where a compile takes a second, but is a few percent off. Between
two networks that share most of their kernels, errors of the shared ones cancel: only the kernels
that differ count, each with the interval of its own prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxnas.cost import Cost, CostModel
from onnxnas.search import MIN_GAIN

_OFF = 0.05
"""Of a network's cycles that a prediction may be off by, for differences to it to be relied on:
where it was 28 % off, combinations promised 6 % more than they kept; compiled alone, 1 %."""
_SURE = 0.95
"""Of a predicted peak, or predicted weights, that the backend hardly goes below."""


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

    def hopeless(
        self, before: Any, views: Sequence[Any], start: Cost, value: Callable[[Cost], float]
    ) -> list[str]:
        """Why each network cannot have less of any value by `MIN_GAIN`; empty where it may.

        Args:
            before: static view of the network to beat.
            views: of the others.
            start: what the backend says of `before`.
            value: what is to be small.
        """
        old, *new = self.predictor.cost_many([before, *views])
        reasons = []
        for cost in new:
            pays = value(_at_best(old, cost, start)) < (1 - MIN_GAIN) * value(start)
            reasons.append("" if pays else f"predicted not to pay: {_changes(old, cost)}")
        return reasons

    def predicted(self, before: Any, views: Sequence[Any]) -> list[tuple[str, Cost]]:
        """The same with the predicted costs."""
        old, *new = self.predictor.cost_many([before, *views])
        return [(_reason(old, cost), cost) for cost in new]

    def costs(self, start: Cost, before: Any, views: Sequence[Any]) -> list[Cost | None]:
        """Costs of rewritten networks without asking the target's backend.

        Args:
            start: what the backend says of `before`; predictions are scaled to it, so that
                differences can be read off, and peaks said of the same memories.
            before: static view of the network that was rewritten.
            views: of the others.

        Returns:
            None where the backend has to be asked: what was learned is off on the network as it is,
            or unsure, or an operator is new, and whether the target can run it at all is the
            backend's to say.
        """
        old, *new = self.predictor.cost_many([before, *views])
        if abs(old.cycles - start.cycles) > _OFF * start.cycles:
            return [None] * len(views)
        known = {node.op for node in before.nodes}
        found: list[Cost | None] = []
        for view, cost in zip(views, new, strict=True):
            if {node.op for node in view.nodes} - known or doubt(old, cost) == float("inf"):
                found.append(None)
            else:
                found.append(_scaled(cost, old, start))
        return found


def _scaled(cost: Cost, old: Cost, start: Cost) -> Cost:
    """A predicted cost times what the backend says of another network over its prediction."""

    def scale(before: float | None, after: float | None) -> float:
        return after / before if before and after else 1.0

    cycles = scale(old.cycles, start.cycles)
    peak = scale(old.peak_activation_bytes, start.peak_activation_bytes)
    weights = scale(old.weight_bytes, start.weight_bytes)
    stored = cost.weight_bytes
    return replace(
        cost,
        cycles=cycles * cost.cycles,
        seconds=cycles * cost.seconds,
        peak_bytes={name: round(peak * size) for name, size in cost.peak_bytes.items()},
        weight_bytes=None if stored is None else round(weights * stored),
    )


def _at_best(old: Cost, new: Cost, start: Cost) -> Cost:
    """What the backend may say of a network at best, every figure apart.

    Args:
        old, new: predicted costs of two networks.
        start: what the backend says of the first.
    """
    scaled = _scaled(new, old, start)
    scale = start.cycles / old.cycles if old.cycles else 1.0
    least = _SURE if new.peak_activation_bytes != old.peak_activation_bytes else 1.0
    stored, lighter = scaled.weight_bytes, _SURE if new.weight_bytes != old.weight_bytes else 1.0
    return replace(
        scaled,
        cycles=scaled.cycles - scale * doubt(old, new),
        peak_bytes={name: round(least * size) for name, size in scaled.peak_bytes.items()},
        weight_bytes=None if stored is None else round(lighter * stored),
    )


def _changes(old: Cost, new: Cost) -> str:
    """What is predicted to change, in words."""
    pairs = (
        ("cycles", old.cycles, new.cycles),
        ("peak memory", old.peak_activation_bytes, new.peak_activation_bytes),
        ("weights", old.weight_bytes or 0, new.weight_bytes or 0),
        ("MACs", old.macs, new.macs),
    )
    told = [f"{name} {after / was - 1:+.1%}" for name, was, after in pairs if was and after != was]
    return f"{', '.join(told) or 'nothing changes'}: not compiled"


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
