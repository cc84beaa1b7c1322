"""Which choices to make: candidates are costed, and a greedy search keeps what pays.

The search is a best-improvement greedy. Every choice is first costed alone. Rewrites of far-apart
places hardly influence each other's cost, so each round accepts all improving moves that do not
interact, checks the sum by costing the whole network, and costs again only the moves near what
was just changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from onnxnas.cost import Cost, CostModel
from onnxnas.errors import UnsupportedError
from onnxnas.graph import static_view
from onnxnas.materialize import apply_candidate
from onnxnas.ops import macs
from onnxnas.pass_contract import Pass
from onnxnas.rewriter import SiteGone
from onnxnas.sites import Candidate, Choice, SearchSpace, Site

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, units done, units in all)."""

Status = Literal["applied", "not chosen", "rejected", "impossible"]

MIN_GAIN = 1e-3
"""A rewrite must save this share of the network to be worth a changed graph."""

_CHUNK = 8
"""Candidates costed between two looks at the clock."""


@dataclass(frozen=True)
class Trial:
    """One candidate that was looked at.

    Attributes:
        candidate: what was tried.
        cost: of the whole rewritten network, or None.
        reason: why there is no cost; empty otherwise.
    """

    candidate: Candidate
    cost: Cost | None
    reason: str = ""

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
    """

    graph: Any
    space: SearchSpace
    passes: Mapping[str, Pass]
    cost_model: CostModel
    input_shapes: Mapping[str, tuple[int, ...]]
    trials: dict[Candidate, Trial] = field(default_factory=dict)

    def view(self, candidate: Candidate) -> Any:
        """The rewritten graph as the cost model sees it.

        Raises:
            SiteGone: the candidate's rewrites exclude each other.
        """
        applied = apply_candidate(self.graph, self.space, candidate, self.passes)
        return static_view(applied.graph, self.input_shapes)

    def evaluate(self, candidates: Sequence[Candidate]) -> list[Trial]:
        """Cost several candidates in one batch, in order."""
        views: dict[Candidate, Any] = {}
        for candidate in candidates:
            if candidate in self.trials or candidate in views:
                continue
            try:
                views[candidate] = self.view(candidate)
            except SiteGone as gone:
                self.trials[candidate] = Trial(candidate, None, str(gone))
        for candidate, trial in zip(views, self._cost(views), strict=True):
            self.trials[candidate] = trial
        return [self.trials[candidate] for candidate in candidates]

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


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        baseline: the unchanged model; always a candidate.
        best: lowest cost of all that were tried.
        trials: every candidate that was looked at, in order.
        ledger: one row per site and choice.
        stopped: why the search ended.
    """

    baseline: Trial
    best: Trial
    trials: tuple[Trial, ...]
    ledger: tuple[LedgerRow, ...]
    stopped: Literal["converged", "budget", "interrupted"]


class _OutOfTime(Exception):
    """The budget is used up."""


Move = tuple[str, str]
"""(site id, choice label)."""


def greedy(
    evaluator: Evaluator, *, budget_s: float | None = None, progress: Progress | None = None
) -> SearchResult:
    """Best-improvement greedy over sites; deterministic unless the budget cuts it short.

    Args:
        evaluator: of the model and target.
        budget_s: stop starting new evaluations after this many seconds.
        progress: called before each batch.

    Ctrl-C ends the search early with the best so far (`stopped` says so).
    """
    search = _Greedy(evaluator, budget_s, progress or (lambda *_: None))
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
    )


class _Greedy:
    def __init__(self, evaluator: Evaluator, budget_s: float | None, progress: Progress) -> None:
        self.evaluator = evaluator
        self.space = evaluator.space
        self.deadline = None if budget_s is None else time.monotonic() + budget_s
        self.progress = progress
        self.baseline: Trial | None = None
        self.current: Trial = Trial(Candidate(), None)
        self.alone: dict[Move, Trial] = {}
        self.dominated: dict[Move, str] = {}
        self.near = {site.id: _neighbourhood(evaluator.graph, site) for site in self.space}

    def run(self) -> None:
        (self.baseline,) = self.evaluator.evaluate([Candidate()])
        self.current = self.baseline
        self.dominated = self._dominated(self._moves())
        open_moves = [m for m in self._moves() if m not in self.dominated]
        trials = self._cost([Candidate.of(dict([m])) for m in open_moves], "each choice alone")
        self.alone = dict(zip(open_moves, trials, strict=True))
        gains = {m: self.baseline.cycles - t.cycles for m, t in self.alone.items()}
        while stale := self._accept(gains):
            moves = [m for m in open_moves if m[0] in stale and m not in self.current_moves]
            trials = self._cost([self._moved([m]) for m in moves], "choices beside the new ones")
            gains.update(
                (m, self.current.cycles - t.cycles) for m, t in zip(moves, trials, strict=True)
            )
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
        gains = {m: self.baseline.cycles - trial.cycles for m, trial in self.alone.items()}
        batch = self._batch(gains, MIN_GAIN * self.baseline.cycles)
        if combine and batch and not self.current_moves:
            self.evaluator.evaluate([self._moved(batch)])
        self.current = min((self.current, *known.values()), key=lambda trial: trial.cycles)

    def _moves(self) -> list[Move]:
        return [(s.id, c.label) for s in self.space for c in s.choices]

    @property
    def current_moves(self) -> set[Move]:
        return set(self.current.candidate.decisions)

    def _accept(self, gains: dict[Move, float]) -> set[str]:
        """Accept what improves; returns the sites whose gains are no longer known."""
        assert self.baseline is not None
        floor = MIN_GAIN * self.baseline.cycles
        while batch := self._batch(gains, floor):
            while True:
                (trial,) = self._cost([self._moved(batch)], "combinations")
                real = self.current.cycles - trial.cycles
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
            if apart and move not in self.current_moves:
                batch.append(move)
        return batch

    def _try_without(self) -> None:
        """Undo decisions that no longer pay beside the later ones."""
        while decisions := self.current.candidate.decisions:
            fewer = [Candidate(tuple(d for d in decisions if d is not out)) for out in decisions]
            best = min(self._cost(fewer, "leaving one out"), key=lambda t: t.cycles)
            if best.cycles > self.current.cycles:
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

    def _cost(self, candidates: Sequence[Candidate], what: str) -> list[Trial]:
        trials: list[Trial] = []
        for start in range(0, len(candidates), _CHUNK):
            self.progress(what, start, len(candidates))
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise _OutOfTime
            trials += self.evaluator.evaluate(candidates[start : start + _CHUNK])
        self.progress(what, len(candidates), len(candidates))
        return trials

    def _dominated(self, moves: Sequence[Move]) -> dict[Move, str]:
        """Moves that cannot pay: their extra MACs alone outlast all kernels they can shorten."""
        assert self.baseline is not None
        assert self.baseline.cost is not None
        peak = self.evaluator.cost_model.target.macs_per_cycle
        kernels = self.baseline.cost.kernels
        before = _total_macs(self.evaluator.view(Candidate()))
        out: dict[Move, str] = {}
        for move in moves:
            near = self.near[move[0]]
            # An unavailable kernel may hold anything: then nothing can be ruled out.
            touched = [k.cycles for k in kernels if near & set(k.tensors)]
            try:
                after = _total_macs(self.evaluator.view(Candidate.of(dict([move]))))
            except SiteGone:
                continue
            least = (after - before) / peak
            if None not in touched and touched and least > sum(c or 0.0 for c in touched):
                out[move] = (
                    f"its extra MACs need at least {least:,.0f} cycles, "
                    f"all kernels it touches take {sum(c or 0.0 for c in touched):,.0f}"
                )
        return out

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
        elif move in self.dominated:
            reason = self.dominated[move]
        elif alone is None:
            reason = "not costed before the search was stopped"
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


def _neighbourhood(graph: Any, site: Site) -> frozenset[str]:
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
