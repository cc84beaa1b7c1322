"""What the user wants of a search."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxnas.efforts import EffortName
from onnxnas.objectives import Limit
from onnxnas.sites import Candidate


@dataclass(frozen=True)
class Wanted:
    """What a search is to find, and how hard it is to look.

    Attributes:
        objective: metrics to minimise, the most important first; several ask for a front.
        limits: on metrics; the one on quality is `max_drop`.
        max_drop: the most that may be lost of the task metric; without a task of agreement with
            the original where outputs are classes, else squared error over variance. None allows
            no loss, unless quality is an objective: only exact rewrites are searched.
        effort: see `onnxnas.efforts`.
        strategy: of the search for combinations, a name from `onnxnas.strategies.STRATEGIES`.
        full: compile choices that are predicted not to pay as well.
        start: decisions to begin with.
        max_uncovered: share of the kernels that predictions may know nothing like; None is 10 %
            where there is nothing but predictions, else no limit.
        refit_front: fit the weights of every named candidate in order.
        workers: processes that fit side by side, see `onnxnas.recover.Recovery`.
    """

    objective: tuple[str, ...] = ("latency",)
    limits: tuple[Limit, ...] = ()
    max_drop: float | None = None
    effort: EffortName = "normal"
    strategy: str = "exact"
    full: bool = False
    start: Candidate = field(default_factory=Candidate)
    max_uncovered: float | None = None
    refit_front: bool = False
    workers: int = 1

    @property
    def allows_loss(self) -> bool:
        """Whether outputs may change."""
        return self.max_drop is not None or "quality" in self.objective

    @property
    def every_limit(self) -> tuple[Limit, ...]:
        """With the one on quality; without an allowance nothing may be lost."""
        if self.max_drop is None and self.allows_loss:
            return self.limits
        return (*self.limits, Limit("quality", self.max_drop or 0.0))
