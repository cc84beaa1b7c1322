"""The greedy search against brute force on small spaces, its budget, its order, its ledger."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import models
import pytest
from fakes import TARGET, ToyCostModel

from onnxnas.cost import Cost
from onnxnas.errors import UnsupportedError, UsageError
from onnxnas.graph import from_model
from onnxnas.greedy import greedy
from onnxnas.pass_contract import Why
from onnxnas.passes.depthwise_to_standard import DepthwiseToStandard
from onnxnas.screening import Screen
from onnxnas.search import MIN_GAIN, Evaluator, Trial
from onnxnas.sites import Candidate, SearchSpace


def evaluator(cost_model: ToyCostModel | None = None, blocks: int = 3) -> Evaluator:
    b = models.ModelBuilder([1, 8, 12, 12])
    y = b.x
    for hidden in (16, 48, 160)[:blocks]:  # dense pays in the first, nothing does in the last
        y = b.ibn(y, 8, hidden, 8)
    graph = from_model(b.build(y))
    pass_ = DepthwiseToStandard()
    sites = tuple(pass_.find_sites(graph, TARGET, Why(pass_.name)))
    return Evaluator(
        graph, SearchSpace(sites), {pass_.name: pass_}, cost_model or ToyCostModel(), {}
    )


def all_candidates(space: SearchSpace) -> list[Candidate]:
    labels = [["keep", *(c.label for c in site.choices)] for site in space]
    ids = [site.id for site in space]
    return [
        Candidate.of(dict(zip(ids, combination, strict=True)))
        for combination in itertools.product(*labels)
    ]


def test_greedy_finds_what_brute_force_finds() -> None:
    ev = evaluator()
    candidates = all_candidates(ev.space)
    assert len(candidates) == ev.space.size() > 20
    best = min(t.cycles for t in ev.evaluate(candidates))
    found = greedy(evaluator())
    assert found.best.cycles == best < found.baseline.cycles
    assert found.stopped == "converged"


def test_greedy_is_deterministic_and_never_costs_a_candidate_twice() -> None:
    toy = ToyCostModel()
    first, second = greedy(evaluator(toy)), greedy(evaluator())
    assert first.best.candidate == second.best.candidate
    assert [t.candidate for t in first.trials] == [t.candidate for t in second.trials]
    assert toy.calls == len(first.trials) == len({t.candidate for t in first.trials})


def test_the_ledger_has_one_row_per_choice_with_a_reason() -> None:
    ev = evaluator()
    found = greedy(ev)
    rows = {(f"{r.pass_name}@{r.tensor}", r.choice): r for r in found.ledger}
    assert set(rows) == {(s.id, c.label) for s in ev.space for c in s.choices}
    applied = {key for key, row in rows.items() if row.status == "applied"}
    assert applied == set(found.best.candidate.decisions)
    assert all(row.reason for row in rows.values())
    assert {row.status for row in rows.values()} == {"applied", "not chosen"}


def test_a_choice_whose_macs_alone_take_longer_is_not_costed() -> None:
    found = greedy(evaluator())
    row = next(r for r in found.ledger if "extra MACs" in r.reason)
    assert row.choice == "dense"
    assert row.delta_cycles is None
    assert all(
        (f"{row.pass_name}@{row.tensor}", "dense") not in t.candidate.decisions
        for t in found.trials
    )


def test_a_used_up_budget_leaves_the_unchanged_model() -> None:
    found = greedy(evaluator(), budget_s=0.0)
    assert found.stopped == "budget"
    assert found.best == found.baseline
    assert {r.reason for r in found.ledger if "MACs" not in r.reason} == {
        "not costed before the search was stopped"
    }


def test_a_budget_that_ends_early_still_combines_what_is_known_to_pay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count()  # a second passes at each look: time for the first eight choices
    monkeypatch.setattr("onnxnas.greedy.time.monotonic", lambda: float(next(clock)))
    found = greedy(evaluator(), budget_s=1.5)
    singles = [t for t in found.trials if len(t.candidate.decisions) == 1]
    assert found.stopped == "budget"
    assert 0 < len(singles) < len(found.ledger)
    assert found.best.cycles < min(t.cycles for t in singles)


class Interrupting(ToyCostModel):
    """Ctrl-C after a number of networks."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def cost(self, graph: Any) -> Cost:
        if self.calls == self.after:
            raise KeyboardInterrupt
        return super().cost(graph)


def test_an_interrupt_keeps_the_best_so_far() -> None:
    whole = len(greedy(evaluator()).trials)
    found = greedy(evaluator(Interrupting(whole - 1)))
    assert found.stopped == "interrupted"
    assert found.best.cycles <= found.baseline.cycles
    with pytest.raises(KeyboardInterrupt):  # nothing is known yet: nothing to keep
        greedy(evaluator(Interrupting(0)))


class Picky(ToyCostModel):
    """Cannot cost a network with a dense 3x3 convolution, as a compiler may crash on one."""

    def cost(self, graph: Any) -> Cost:
        for node in graph.nodes:
            if node.op == "Conv" and tuple(node.inputs[1].shape[1:]) == (16, 3, 3):
                raise UnsupportedError("too dense")
        return super().cost(graph)


def test_a_candidate_that_cannot_be_costed_is_said_and_left_out() -> None:
    found = greedy(evaluator(Picky(), blocks=2))
    row = next(r for r in found.ledger if r.reason == "too dense")
    assert (row.choice, row.status) == ("dense", "impossible")
    assert found.best.cycles < found.baseline.cycles


def test_candidates_of_another_space_are_refused() -> None:
    ev = evaluator(blocks=1)
    with pytest.raises(UsageError, match="no site"):
        ev.evaluate([Candidate.of({"depthwise-to-standard@nowhere": "dense"})])
    site = next(iter(ev.space))
    with pytest.raises(UsageError, match="has no choice 'wide'"):
        ev.evaluate([Candidate.of({site.id: "wide"})])


class Learned(ToyCostModel):
    """Predicts what the toy target says, off by a known share, and says so."""

    def __init__(self, off: float = 1.0, doubt: float = 0.0, covered: bool = True) -> None:
        super().__init__()
        self.off, self.doubt, self.covered = off, doubt, covered

    def cost(self, graph: Any) -> Cost:
        cost = super().cost(graph)
        kernels = []
        for k in cost.kernels:
            cycles = (k.cycles or 0.0) * self.off
            interval = (cycles * (1 - self.doubt), cycles * (1 + self.doubt))
            gaps = () if self.covered else ("never seen",)
            kernels.append(replace(k, cycles=cycles, interval=interval, uncovered=gaps))
        return replace(cost, cycles=cost.cycles * self.off, kernels=tuple(kernels))


def test_what_is_predicted_not_to_pay_is_not_compiled() -> None:
    whole, toy = greedy(evaluator()), ToyCostModel()
    found = greedy(evaluator(toy), screen=Screen(Learned(off=0.9, doubt=0.01)))
    assert found.best.candidate == whole.best.candidate
    assert toy.calls == len(found.trials) < len(whole.trials)
    moves = [(s.id, c.label) for s in evaluator().space for c in s.choices]
    ev = evaluator()
    before, views = ev.view(Candidate()), [ev.view(Candidate.of(dict([m]))) for m in moves]
    reasons = Screen(Learned()).reasons(before, views)
    costs = [ToyCostModel().cost(view).cycles for view in [before, *views]]
    pays = [cycles < costs[0] * (1 - MIN_GAIN) for cycles in costs[1:]]
    assert [not reason for reason in reasons] == pays
    assert not all(pays)
    assert all("predicted" in reason for reason in reasons if reason)


@pytest.mark.parametrize("predictor", [Learned(doubt=9.0), Learned(covered=False)])
def test_a_prediction_that_is_not_sure_rules_nothing_out(predictor: Learned) -> None:
    found = greedy(evaluator(), screen=Screen(predictor))
    assert [t.candidate for t in found.trials] == [t.candidate for t in greedy(evaluator()).trials]


def test_another_value_can_be_minimised() -> None:
    """MACs: no dense convolution is worth it then."""
    found = greedy(evaluator(), value=lambda t: float("inf") if t.cost is None else t.cost.macs)
    assert found.best.candidate == Candidate()


def test_what_is_predicted_not_to_lower_another_value_is_not_compiled() -> None:
    """Cycles that count for little beside MACs: dense convolutions are asked about in vain."""

    def value(trial: Trial) -> float:
        return float("inf") if trial.cost is None else trial.cost.macs + 1e-3 * trial.cycles

    whole, toy = greedy(evaluator(), value=value), ToyCostModel()
    found = greedy(evaluator(toy), value=value, screen=Screen(Learned(off=0.97, doubt=0.01)))
    assert found.best.candidate == whole.best.candidate == Candidate()
    assert toy.calls < len(whole.trials) / 2
    said = {row.reason.split(":")[0] for row in found.ledger}
    assert "predicted not to pay" in said
