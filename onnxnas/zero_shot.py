"""What zero-shot scores say about a search's own combinations, and what they are used for.

Combinations that were judged on data show whether a score ranks this model's candidates by what
they lose, at the same latency, better than their size and than the sum of what their choices lose
alone. One that does orders what is bred next; one that does not is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxnas.errors import UnsupportedError
from onnxnas.pass_contract import OutOfTime, Tick, no_tick
from onnxnas.proxies import BASELINES, MIN_CANDIDATES, SCORES, SUM, Rank, assess, beside, zero_shot
from onnxnas.recovery_search import Finalist
from onnxnas.rewriter import SiteGone
from onnxnas.sites import Candidate

_MOST = 16
"""Combinations that are scored for an assessment: each takes as long as running 32 rows."""

_NOT_ASKED = "not looked at before the search ended"


@dataclass
class ZeroShot:
    """The scores of one search.

    Attributes:
        view: a candidate's graph, with static shapes.
        seed: of the scores' random weights and inputs.
        tick: called between candidates.
        ranks: how well each score ranked what was judged, see `proxies.Rank`.
        why_not: why there are no ranks; empty where there are.
        fitted: how the weights of what was judged were.
        orders: name of the score that ordered candidates, if one did.
    """

    view: Callable[[Candidate], Any]
    seed: int = 0
    tick: Tick = no_tick
    ranks: tuple[Rank, ...] = ()
    why_not: str = _NOT_ASKED
    fitted: str = ""
    orders: str = ""
    _known: dict[Candidate, dict[str, float]] = field(default_factory=dict)

    def assess(self, judged: Sequence[Finalist]) -> None:
        """Compare the scores with what was really lost.

        All that is compared was fitted in one way, together if there is enough of that.
        """
        self.ranks, self.why_not = (), _NOT_ASKED
        sound = [f for f in judged if np.isfinite(f.divergence.value)]
        kinds = {
            kind: list({f.candidate: f for f in sound if f.evaluation == kind}.values())
            for kind in ("multishot", "single-shot")
        }
        enough = [kind for kind, found in kinds.items() if len(found) >= MIN_CANDIDATES]
        if not enough:
            count = max(len(found) for found in kinds.values())
            self.why_not = (
                f"too few candidates: {count} were judged in the same way, "
                f"a rank correlation needs {MIN_CANDIDATES}"
            )
            return
        found = kinds[enough[0]]
        at = np.linspace(0, len(found) - 1, min(_MOST, len(found))).round().astype(int)
        found = [found[i] for i in at]
        cycles, lost = [f.trial.cycles for f in found], [f.divergence.value for f in found]
        if not beside(lost, cycles).any():
            self.why_not = (
                f"of the {len(found)} candidates that were judged each faster one loses more: at "
                "the same latency there is nothing to tell apart"
            )
            return
        self.fitted = {"multishot": "together", "single-shot": "one by one"}[enough[0]]
        try:
            scores = [{**self._score(f.candidate), SUM: -f.proxy} for f in found]
        except (UnsupportedError, SiteGone) as error:
            self.why_not = f"they cannot be computed on this model: {error}"
            return
        except OutOfTime:
            self.why_not = "the time was up"
            return
        self.ranks = assess(scores, cycles, lost)
        self.why_not = ""

    def best_first(
        self, candidates: Sequence[Candidate], cycles: Sequence[float]
    ) -> Sequence[Candidate]:
        """Candidates in the order of the best score there is; as they are where none is of use.

        Latency is held fixed here too: a score speaks of what is lost at the same latency.
        """
        useful = [r for r in self.ranks if r.useful]
        if not useful or len(candidates) < 2:
            return candidates
        best = max(useful, key=lambda r: r.correlation).score
        try:
            values = [self._score(c).get(best, np.nan) for c in candidates]
        except (UnsupportedError, SiteGone):
            return candidates
        if not np.isfinite(values).all():
            return candidates
        self.orders = best
        return [candidates[i] for i in np.argsort(-beside(values, cycles), kind="stable")]

    def to_dict(self) -> dict[str, Any]:
        """For the report: plain JSON values."""
        if self.why_not:
            return {"unavailable": True, "reason": self.why_not}
        known: list[dict[str, Any]] = [
            {
                "score": rank.score,
                "rank_correlation": rank.correlation,
                "used": rank.score in (SUM, self.orders),
                "reason": self._reason(rank),
            }
            for rank in self.ranks
        ]
        unknown = [name for name in SCORES if name not in {rank.score for rank in self.ranks}]
        known += [
            {"score": name, "used": False, "reason": "not all candidates have it"}
            for name in unknown
        ]
        return {"candidates": self.ranks[0].count, "fitted": self.fitted, "scores": known}

    def _reason(self, rank: Rank) -> str:
        if rank.score == SUM:
            return "combinations are sought by it"
        if rank.score == self.orders:
            return "it ordered what was bred"
        if rank.score in BASELINES:
            return "a baseline"
        return rank.reason or "nothing was bred that it could order"

    def _score(self, candidate: Candidate) -> dict[str, float]:
        if candidate not in self._known:
            self.tick()
            self._known[candidate] = zero_shot(self.view(candidate), self.seed)
        return self._known[candidate]
