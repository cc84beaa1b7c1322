"""One network that a user could have: what it costs, what it loses, how that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnxnas.cost import Cost, Kind
from onnxnas.divergence import Divergence
from onnxnas.quality import Quality
from onnxnas.sites import Candidate

_TWO_SIDED_95 = 1.959964
"""Standard errors to either side of a mean that a 95 % interval reaches (normal distribution)."""

Evaluation = Literal["original", "zero-shot", "single-shot", "multishot", "distilled"]
"""zero-shot: from tables, no network was built; single-shot: weights of the library as they were;
multishot: its weights were fitted together; distilled: and then trained as a whole."""


@dataclass(frozen=True)
class Loss:
    """How much worse than the original a network is, by one measure.

    Attributes:
        measure: e.g. ``agreement``, ``KL divergence, nats``, ``top1``.
        value: 0 is as good as the original, more is worse; ``agreement`` and task metrics count
            in their own units (0.01 is one point).
        interval: 95 % ends, None where unknown.
        rows: how many rows it was measured on; None where that is not known.
        kind: an estimate where it is a sum of single choices' losses.
    """

    measure: str
    value: float
    interval: tuple[float, float] | None = None
    rows: int | None = None
    kind: Kind = "measured"


@dataclass(frozen=True)
class FrontPoint:
    """One network on the front.

    Attributes:
        label: ``A`` to ``E`` for the named ones, ``original`` for the unchanged model, else empty.
        candidate: its decisions.
        cycles: of the whole network.
        seconds: `cycles` at the target's clock.
        peak_bytes: busiest memory that holds activations.
        weight_bytes: weights as stored; None where the cost source does not say.
        macs: multiply-accumulates.
        kind: of the cost figures.
        losses: the one that limits bind on first; empty where outputs are the original's.
        evaluation: how the figures came about.
        chosen: it is what was written as the result.
    """

    label: str
    candidate: Candidate
    cycles: float
    seconds: float
    peak_bytes: int
    weight_bytes: int | None
    macs: int
    kind: Kind
    losses: tuple[Loss, ...] = ()
    evaluation: Evaluation = "zero-shot"
    chosen: bool = False

    @property
    def lossless(self) -> bool:
        """Its outputs are the original's: it is that, or was made by exact rewrites."""
        return not self.losses and self.evaluation != "zero-shot"

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        cost: Cost,
        losses: tuple[Loss, ...] = (),
        *,
        label: str = "",
        evaluation: Evaluation = "multishot",
        chosen: bool = False,
    ) -> FrontPoint:
        """From the cost of a whole network."""
        return cls(
            label,
            candidate,
            cost.cycles,
            cost.seconds,
            cost.peak_activation_bytes,
            cost.weight_bytes,
            cost.macs,
            cost.kind,
            losses,
            evaluation,
            chosen,
        )

    @classmethod
    def unchanged(cls, cost: Cost) -> FrontPoint:
        """The original."""
        return cls.of(Candidate(), cost, label="original", evaluation="original")


def losses_of(divergence: Divergence, measure: str) -> tuple[Loss, ...]:
    """Held-out divergence as losses: agreement first, where outputs are classes.

    Args:
        measure: what `divergence.value` is, see `divergence.Judged.measure`.
    """
    rows = len(divergence.rows)
    found = [Loss(measure, divergence.value, _around(divergence.value, divergence.error), rows)]
    agrees = divergence.agrees
    if agrees is not None:
        lost = 1.0 - agrees
        found.insert(0, Loss("agreement", lost, _disagreement(divergence), rows))
    return tuple(found)


def loss_of(quality: Quality) -> Loss:
    """A task metric's drop as a loss."""
    return Loss(quality.original.name, quality.drop, quality.interval, quality.original.rows)


def measure_of(points: Sequence[FrontPoint]) -> str:
    """The measure of loss that most of a front is compared by; empty where nothing was lost."""
    found = [p.losses[0].measure for p in points if p.losses]
    return max(dict.fromkeys(found), key=found.count, default="")


def loss_by(point: FrontPoint, measure: str) -> Loss | None:
    """A point's loss by one measure, None where it is not known."""
    if point.lossless:
        return Loss(measure, 0.0)
    return next((loss for loss in point.losses if loss.measure == measure), None)


def loss_title(measure: str) -> str:
    """A measure in the words of a table's head."""
    if measure == "agreement":
        return "classes that differ, %"
    return measure if "/" in measure or "," in measure else f"{measure} lost"


def loss_scale(measure: str) -> float:
    """Agreement is shown in percent, everything else in its own unit."""
    return 100.0 if measure == "agreement" else 1.0


def _disagreement(divergence: Divergence) -> tuple[float, float]:
    """95 % ends of the share of disagreement.

    Rows that agree or do not are counted: Wilson's interval (Wilson 1927), which is right for few
    rows and never of no width. Rows of many positions have a share each: normal.
    """
    agreement = divergence.agreement
    lost = 1.0 - float(agreement.mean())
    if set(agreement.tolist()) - {0.0, 1.0}:
        return _around(lost, divergence.agreement_error)
    n, z = len(agreement), _TWO_SIDED_95
    middle = (lost + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (lost * (1 - lost) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def _around(value: float, error: float) -> tuple[float, float]:
    return max(0.0, value - _TWO_SIDED_95 * error), value + _TWO_SIDED_95 * error
