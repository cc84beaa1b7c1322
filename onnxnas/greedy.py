"""Greedy search on real costs: every choice alone first, then what pays together.

The search is a best-improvement greedy. Rewrites of far-apart places hardly influence each other's
cost, so each round accepts all improving moves that do not interact, checks the sum by costing the
whole network, and costs again only the moves near what was just changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from onnxnas.ops import macs
from onnxnas.screening import Screen
from onnxnas.search import (
    AT_ONCE,
    MIN_GAIN,
    Evaluator,
    LedgerRow,
    Move,
    Progress,
    RuleOut,
    Status,
    Trial,
)
from onnxnas.sites import Candidate, Choice, Site


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        baseline: the unchanged model; always a candidate.
        best: lowest cost of all that were tried.
        trials: every candidate that was looked at, in order.
        ledger: one row per site and choice.
        stopped: why the search ended.
        counts: see `Evaluator.counts`.
    """

    baseline: Trial
    best: Trial
    trials: tuple[Trial, ...]
    ledger: tuple[LedgerRow, ...]
    stopped: Literal["converged", "budget", "interrupted"]
    counts: Mapping[str, int]


class _OutOfTime(Exception):
    """The budget is used up."""


Value = Callable[[Trial], float]
"""What is to be small; not negative, infinite where there is no cost."""


def greedy(
    evaluator: Evaluator,
    *,
    value: Value | None = None,
    screen: Screen | None = None,
    start: Candidate | None = None,
    fixed: frozenset[str] = frozenset(),
    budget_s: float | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Best-improvement greedy over sites; deterministic unless the budget cuts it short.

    Args:
        evaluator: of the model and target.
        value: what to minimise; without, the cycles.
        screen: asked first; what it rules out is not costed.
        start: candidate to begin with, if it is better than the original.
        fixed: sites whose decisions in `start` stay as they are, whatever that costs.
        budget_s: stop starting new evaluations after this many seconds.
        progress: called before each batch.

    Ctrl-C ends the search early with the best so far (`stopped` says so).
    """
    search = _Greedy(evaluator, value, screen, budget_s, progress or (lambda *_: None))
    search.start, search.fixed = start or Candidate(), fixed
    stopped: Literal["converged", "budget", "interrupted"] = "converged"
    try:
        search.run()
    except _OutOfTime:
        stopped = "budget"
    except KeyboardInterrupt:
        stopped = "interrupted"
    if search.baseline is None:
        raise KeyboardInterrupt
    if stopped != "converged":
        search.settle(combine=stopped == "budget")
    return SearchResult(
        search.baseline,
        search.current,
        tuple(evaluator.trials.values()),
        tuple(search.ledger()),
        stopped,
        dict(evaluator.counts),
    )


class _Greedy:
    def __init__(
        self,
        evaluator: Evaluator,
        value: Value | None,
        screen: Screen | None,
        budget_s: float | None,
        progress: Progress,
    ) -> None:
        self.evaluator = evaluator
        self.only_cycles = value is None
        self.value: Value = value or (lambda trial: trial.cycles)
        self.screen = screen
        self.space = evaluator.space
        self.deadline = None if budget_s is None else time.monotonic() + budget_s
        self.progress = progress
        self.baseline: Trial | None = None
        self.current: Trial = Trial(Candidate(), None)
        self.alone: dict[Move, Trial] = {}
        self.start, self.fixed = Candidate(), frozenset[str]()
        self.macs: int | None = None
        self.dominated: set[Move] = set()
        self.near = {site.id: neighbourhood(evaluator.graph, site) for site in self.space}

    def run(self) -> None:
        (self.baseline,) = self.evaluator.evaluate([Candidate()])
        self.current = self.baseline
        (start,) = self.evaluator.evaluate([self.start])
        moves = self._moves()
        dominated = self._dominated if self.only_cycles else None
        self.alone = self._cost_moves(moves, "each choice alone", dominated)
        gains = self._gains(self.alone)
        if self.fixed or self.value(start) < self.value(self.baseline):
            self.current = start
        while stale := self._accept(gains):
            closed = self.current_moves | self.dominated
            moves = [m for m in self._moves() if m[0] in stale and m not in closed]
            gains.update(self._gains(self._cost_moves(moves, "choices beside the new ones", None)))
        self._try_without()

    def settle(self, combine: bool) -> None:
        """End early with the best that is known.

        Args:
            combine: cost one more network: all choices known to pay that do not interact.
        """
        assert self.baseline is not None
        known = self.evaluator.trials
        alone = {m: known.get(Candidate.of(dict([m]))) for m in self._moves()}
        self.alone = {m: trial for m, trial in alone.items() if trial is not None}
        gains = {m: self.value(self.baseline) - self.value(t) for m, t in self.alone.items()}
        batch = self._batch(gains, MIN_GAIN * self.value(self.baseline))
        if combine and batch and not self.current_moves:
            self.evaluator.evaluate([self._moved(batch)])
        (start,) = self.evaluator.evaluate([self.start])
        allowed = [t for t in known.values() if self._keeps_fixed(t.candidate)]
        self.current = min((start, *allowed), key=self.value)

    def _keeps_fixed(self, candidate: Candidate) -> bool:
        fixed = {move for move in self.start.decisions if move[0] in self.fixed}
        return fixed <= set(candidate.decisions)

    def _gains(self, trials: Mapping[Move, Trial]) -> dict[Move, float]:
        """What moves beside the current candidate save."""
        return {m: self.value(self.current) - self.value(t) for m, t in trials.items()}

    def _moves(self) -> list[Move]:
        return [(s.id, c.label) for s in self.space for c in s.choices]

    @property
    def current_moves(self) -> set[Move]:
        return set(self.current.candidate.decisions)

    def _accept(self, gains: dict[Move, float]) -> set[str]:
        """Accept what improves; returns the sites whose gains are no longer known."""
        assert self.baseline is not None
        floor = MIN_GAIN * self.value(self.baseline)
        while batch := self._batch(gains, floor):
            while True:
                (trial,) = self._cost([self._moved(batch)], "combinations")
                real = self.value(self.current) - self.value(trial)
                if real > floor and (len(batch) == 1 or real > 0.5 * sum(gains[m] for m in batch)):
                    self.current = trial
                    changed = set().union(*(self.near[m[0]] for m in batch))
                    gains.update(dict.fromkeys(batch, 0.0))
                    return {s.id for s in self.space if self.near[s.id] & changed}
                if len(batch) == 1:
                    gains[batch[0]] = real
                    break
                batch = batch[: len(batch) // 2]
        return set()

    def _batch(self, gains: Mapping[Move, float], floor: float) -> list[Move]:
        """The best improving move, and after it all that do not interact with those before."""
        batch: list[Move] = []
        for move in sorted(gains, key=lambda m: (-gains[m], m)):
            if gains[move] <= floor:
                break
            apart = not any(self.near[move[0]] & self.near[other[0]] for other in batch)
            if apart and move not in self.current_moves and move[0] not in self.fixed:
                batch.append(move)
        return batch

    def _try_without(self) -> None:
        """Undo decisions that no longer pay beside the later ones."""
        while decisions := self.current.candidate.decisions:
            fewer = [
                Candidate(tuple(d for d in decisions if d is not out))
                for out in decisions
                if out[0] not in self.fixed
            ]
            if not fewer:
                return
            best = min(self._cost(fewer, "leaving one out"), key=self.value)
            if self.value(best) > self.value(self.current):
                return
            self.current = best

    def _moved(self, moves: Iterable[Move]) -> Candidate:
        """The current candidate with these choices; decisions in conflict with them go."""
        candidate = self.current.candidate
        for site_id, label in moves:
            for other in self.space.conflicts(self.space.site(site_id), candidate):
                candidate = candidate.with_choice(other, "keep")
            candidate = candidate.with_choice(site_id, label)
        return candidate

    def _cost_moves(
        self, moves: Sequence[Move], what: str, dominated: RuleOut | None
    ) -> dict[Move, Trial]:
        """Cost moves beside the current candidate, those that may pay."""
        before = None if self.screen is None else self.evaluator.view(self.current.candidate)

        def rule_out(candidates: Sequence[Candidate], views: Sequence[Any]) -> list[str]:
            reasons = [""] * len(views) if dominated is None else [*dominated(candidates, views)]
            left = [i for i, reason in enumerate(reasons) if not reason]
            if self.screen is not None and left:
                predicted = self._hopeless(self.screen, before, [views[i] for i in left])
                for i, reason in zip(left, predicted, strict=True):
                    reasons[i] = reason
            return reasons

        trials = self._cost([self._moved([m]) for m in moves], what, rule_out)
        return dict(zip(moves, trials, strict=True))

    def _hopeless(self, screen: Screen, before: Any, views: Sequence[Any]) -> list[str]:
        """Why networks are predicted not to beat the current one."""
        if self.only_cycles:
            return screen.reasons(before, views)
        if self.current.cost is None:
            return [""] * len(views)
        return screen.hopeless(
            before, views, self.current.cost, lambda cost: self.value(Trial(Candidate(), cost))
        )

    def _cost(
        self, candidates: Sequence[Candidate], what: str, rule_out: RuleOut | None = None
    ) -> list[Trial]:
        trials: list[Trial] = []
        for start in range(0, len(candidates), AT_ONCE):
            self.progress(what, start, len(candidates))
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise _OutOfTime
            trials += self.evaluator.evaluate(candidates[start : start + AT_ONCE], rule_out)
        self.progress(what, len(candidates), len(candidates))
        return trials

    def _dominated(self, candidates: Sequence[Candidate], views: Sequence[Any]) -> list[str]:
        """Moves that cannot pay: their extra MACs alone outlast all kernels they can shorten."""
        assert self.baseline is not None
        assert self.baseline.cost is not None
        peak = self.evaluator.cost_model.target.macs_per_cycle
        if self.macs is None:
            self.macs = _total_macs(self.evaluator.view(Candidate()))
        reasons = []
        for candidate, view in zip(candidates, views, strict=True):
            (move,) = candidate.decisions
            near = self.near[move[0]]
            # An unavailable kernel may hold anything: then nothing can be ruled out.
            touched = [k.cycles for k in self.baseline.cost.kernels if near & set(k.tensors)]
            least = (_total_macs(view) - self.macs) / peak
            total = sum(c or 0.0 for c in touched)
            if None in touched or not touched or least <= total:
                reasons.append("")
                continue
            self.dominated.add(move)
            reasons.append(
                f"its extra MACs need at least {least:,.0f} cycles, "
                f"all kernels it touches take {total:,.0f}"
            )
        return reasons

    def ledger(self) -> Iterable[LedgerRow]:
        for site in self.space:
            for choice in site.choices:
                yield self._row(site, choice)

    def _row(self, site: Site, choice: Choice) -> LedgerRow:
        move = (site.id, choice.label)
        alone = self.alone.get(move)
        delta = None
        if alone is not None and alone.cost is not None and self.baseline is not None:
            delta = alone.cycles - self.baseline.cycles
        status: Status = "not chosen"
        chosen = dict(self.current.candidate.decisions)
        if move in self.current_moves:
            status, reason = "applied", choice.note
        elif alone is None:
            reason = "not costed before the search was stopped"
        elif alone.ruled_out:
            reason = alone.reason
        elif alone.cost is None:
            status, reason = "impossible", alone.reason
        elif site.id in chosen:
            reason = f"{chosen[site.id]} is better here"
        elif conflicts := self.space.conflicts(site, self.current.candidate):
            reason = f"{conflicts[0]} is better here"
        elif (
            delta is not None
            and self.baseline is not None
            and (delta > -MIN_GAIN * self.baseline.cycles)
        ):
            reason = "costs cycles" if delta > 0 else f"saves less than {MIN_GAIN:.1%}"
        else:
            reason = "does not pay beside the other choices"
        return LedgerRow(
            site.pass_name, site.tensor, choice.label, status, reason, choice.exactness, delta
        )


def neighbourhood(graph: Any, site: Site) -> frozenset[str]:
    """Tensors of the nodes a site claims and of the nodes next to them."""
    tensors = graph.tensors()
    claimed = {claim.split(":", 1)[1] for claim in site.claims} | {site.tensor}
    names = {name if name in tensors else name.rpartition("[")[0] for name in claimed}
    near = set(names)
    for name in names & tensors.keys():
        tensor = tensors[name]
        for node in [*tensor.inputs, *tensor.outputs]:
            near.update(t.name for t in node.outputs)
            near.update(t.name for t in node.inputs if t.inputs)
    return frozenset(near)


def _total_macs(view: Any) -> int:
    return sum(macs(node) for node in view.nodes)
