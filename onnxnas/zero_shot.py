"""What zero-shot scores say about a search's own combinations, and what they are used for.

Combinations that were judged on data show whether a score ranks this model's candidates by what
they lose, at the same latency, better than their size and than the sum of what their choices lose
alone. One that does orders what is bred next; one that does not is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxnas.errors import UnsupportedError
from onnxnas.materialize import apply_candidate
from onnxnas.pass_contract import OutOfTime
from onnxnas.proxies import BASELINES, MIN_CANDIDATES, SCORES, SUM, Rank, assess, beside, zero_shot
from onnxnas.recover import values_only
from onnxnas.recovery_search import Finalist, RecoverySearch
from onnxnas.rewriter import SiteGone
from onnxnas.sites import Candidate

_MOST = 16
"""Combinations that are scored for an assessment: each takes as long as running 32 rows."""

_NOT_ASKED = "not looked at before the search ended"


@dataclass
class ZeroShot:
    """The scores of one search.

    Attributes:
        search: with every choice judged alone.
        seed: of the scores' random weights and inputs.
        ranks: how well each score ranked what was judged, see `proxies.Rank`.
        why_not: why there are no ranks; empty where there are.
        compared: of what.
        orders: name of the score that ordered candidates, if one did.
    """

    search: RecoverySearch
    seed: int = 0
    ranks: tuple[Rank, ...] = ()
    why_not: str = _NOT_ASKED
    compared: str = ""
    orders: str = ""
    _known: dict[Candidate, dict[str, float]] = field(default_factory=dict)

    def assess(self, judged: Sequence[Finalist]) -> None:
        """Compare the scores with what was really lost.

        All that is compared was fitted in one way: together if there is enough of that, and single
        choices, whose sum is no guess, only where combinations tell nothing.

        Args:
            judged: combinations.
        """
        self.ranks = ()
        groups = {
            "combinations fitted together": [f for f in judged if f.evaluation == "multishot"],
            "combinations fitted one by one": [f for f in judged if f.evaluation == "single-shot"],
            "single choices": self._singles(),
        }
        reasons = []
        for name, group in groups.items():
            found = list(
                {f.candidate: f for f in group if np.isfinite(f.divergence.value)}.values()
            )
            if len(found) < MIN_CANDIDATES:
                reasons.append(f"too few {name} ({len(found)} of {MIN_CANDIDATES})")
            elif not beside(*_lost_and_cycles(found)).any():
                reasons.append(f"of {len(found)} {name} each faster one loses more")
            else:
                self._rank(name, found)
                return
        self.why_not = "there is nothing to compare: " + ", ".join(reasons)

    def _rank(self, compared: str, found: list[Finalist]) -> None:
        at = np.linspace(0, len(found) - 1, min(_MOST, len(found))).round().astype(int)
        found = [found[i] for i in at]
        try:
            scores = [{**self._score(f.candidate), SUM: -f.proxy} for f in found]
        except (UnsupportedError, SiteGone) as error:
            self.why_not = f"they cannot be computed on this model: {error}"
            return
        except OutOfTime:
            self.why_not = "the time was up"
            return
        lost, cycles = _lost_and_cycles(found)
        self.ranks = assess(scores, cycles, lost)
        self.compared, self.why_not = compared, ""

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
        return {"candidates": self.ranks[0].count, "compared": self.compared, "scores": known}

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
            self.search.recovery.tick()
            self._known[candidate] = zero_shot(self._structure(candidate), self.seed)
        return self._known[candidate]

    def _structure(self, candidate: Candidate) -> Any:
        """A candidate's graph as it is costed; what is fitted beside weights counts in it."""
        singles, e = self.search.singles, self.search.evaluator
        found = {m: singles[m].fitted for m in candidate.decisions if m in singles}
        applied = apply_candidate(e.graph, e.space, candidate, e.passes, values_only(found))
        return applied.view(e.input_shapes)

    def _singles(self) -> list[Finalist]:
        """Every choice that was judged alone."""
        found = []
        for move, single in self.search.singles.items():
            lost, trial = single.divergence, self.search.alone[move]
            candidate, weights = Candidate.of(dict([move])), {move: single.fitted}
            found.append(Finalist(candidate, 0.0, trial, lost, lost.value, weights, "single-shot"))
        return found


def _lost_and_cycles(found: Sequence[Finalist]) -> tuple[list[float], list[float]]:
    return [f.divergence.value for f in found], [f.trial.cycles for f in found]
