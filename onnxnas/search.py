"""What searches share: candidates that were looked at, what became of choices, and the costing.

Every candidate is costed at most once. Where the target's costs were learned, candidates that
cannot pay can be ruled out before the target's own backend is asked, which takes long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from onnxnas.cost import Cost, CostModel
from onnxnas.errors import UnsupportedError
from onnxnas.graph import static_view
from onnxnas.materialize import apply_candidate
from onnxnas.pass_contract import Pass
from onnxnas.rewriter import SiteGone
from onnxnas.sites import Candidate, SearchSpace

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, units done, units in all)."""

Status = Literal["applied", "not chosen", "rejected", "impossible"]

Move = tuple[str, str]
"""(site id, choice label)."""

MIN_GAIN = 1e-3
"""A rewrite must save this share of the network to be worth a changed graph."""

AT_ONCE = 8
"""Candidates costed between two looks at the clock."""

RuleOut = Callable[[Sequence[Candidate], Sequence[Any]], Sequence[str]]
"""For candidates and their rewritten graphs, why each cannot pay; empty where it may."""


@dataclass(frozen=True)
class Trial:
    """One candidate that was looked at.

    Attributes:
        candidate: what was tried.
        cost: of the whole rewritten network, or None.
        reason: why there is no cost; empty otherwise.
        ruled_out: its cost was not asked for, because it cannot pay.
    """

    candidate: Candidate
    cost: Cost | None
    reason: str = ""
    ruled_out: bool = False

    @property
    def cycles(self) -> float:
        """Total cycles; infinite where there is no cost."""
        return float("inf") if self.cost is None else self.cost.cycles


@dataclass(frozen=True)
class LedgerRow:
    """What became of one choice at one site, and why.

    Attributes:
        delta_cycles: change of the whole network by this choice alone, None where not costed.
    """

    pass_name: str
    tensor: str
    choice: str
    status: Status
    reason: str
    exactness: str = ""
    delta_cycles: float | None = None


@dataclass
class Evaluator:
    """Costs candidates of one model on one target; every candidate at most once.

    Attributes:
        graph: the normalised original; is not changed.
        input_shapes: static shapes for costing.
        counts: how many networks were looked at, by what was asked (a `Kind` of cost).
    """

    graph: Any
    space: SearchSpace
    passes: Mapping[str, Pass]
    cost_model: CostModel
    input_shapes: Mapping[str, tuple[int, ...]]
    trials: dict[Candidate, Trial] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def view(self, candidate: Candidate) -> Any:
        """The rewritten graph as the cost model sees it.

        Raises:
            SiteGone: the candidate's rewrites exclude each other.
        """
        applied = apply_candidate(self.graph, self.space, candidate, self.passes)
        return static_view(applied.graph, self.input_shapes)

    def evaluate(
        self, candidates: Sequence[Candidate], rule_out: RuleOut | None = None
    ) -> list[Trial]:
        """Cost several candidates in one batch, in order.

        Args:
            rule_out: asked first about those that were not costed yet. What it rules out is not
                remembered: beside other choices it may pay.
        """
        views: dict[Candidate, Any] = {}
        for candidate in candidates:
            if candidate in self.trials or candidate in views:
                continue
            try:
                views[candidate] = self.view(candidate)
            except SiteGone as gone:
                self.trials[candidate] = Trial(candidate, None, str(gone))
        ruled_out: dict[Candidate, Trial] = {}
        if rule_out is not None and views:
            asked = list(views)
            for candidate, reason in zip(asked, rule_out(asked, list(views.values())), strict=True):
                if reason:
                    ruled_out[candidate] = Trial(candidate, None, reason, True)
                    del views[candidate]
        for candidate, trial in zip(views, self._cost(views), strict=True):
            self.trials[candidate] = trial
        self.counts[self.cost_model.target.kind] += len(views)
        return [ruled_out.get(c) or self.trials[c] for c in candidates]

    def _cost(self, views: Mapping[Candidate, Any]) -> list[Trial]:
        try:
            costs = self.cost_model.cost_many(list(views.values()))
        except UnsupportedError as error:
            if Candidate() in views and len(views) == 1:
                raise
            if len(views) == 1:  # the cost source chokes on this rewrite, not on the model
                return [Trial(candidate, None, str(error)) for candidate in views]
            return [self._cost({candidate: views[candidate]})[0] for candidate in views]
        return [Trial(candidate, cost) for candidate, cost in zip(views, costs, strict=True)]
