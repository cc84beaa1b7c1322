"""Studies: budgets, the front, and a journal that survives kills and outlives goals."""

from __future__ import annotations

import gc
import itertools
import json
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from search_tables import MadeUp, brute_force

from onnxnas.errors import UsageError
from onnxnas.journal import Journal
from onnxnas.problem import Figures, Genes, Problem
from onnxnas.sites import Candidate
from onnxnas.strategies import make
from onnxnas.study import Study, StudyResult, journaled

CONTEXT = {"model": "a1", "target": "toy", "data": "d0"}
MADE_UP = MadeUp(seed=1)


class Real:
    """A real evaluation that counts, and can be killed."""

    def __init__(self, problem: Problem, dies_after: int = 10**9) -> None:
        self.problem = problem
        self.left = dies_after
        self.done: list[Candidate] = []

    def __call__(self, candidates: Sequence[Candidate]) -> Iterator[Sequence[float]]:
        genes = {str(self.problem.candidate(g)): g for g in self.problem.everything()}
        for candidate in candidates:
            if self.left == 0:
                raise RuntimeError("killed")
            self.left -= 1
            self.done.append(candidate)
            row: Figures = self.problem.evaluate(genes[str(candidate)][None])[0]
            yield list(row)


def search(
    path: Path, real: Real, strategy: str = "evolution", evaluations: int = 90
) -> StudyResult:
    with Journal(path, CONTEXT) as journal:
        evaluate = journaled(real.problem, journal, "compiled", real)
        return Study(real.problem, make(strategy, real.problem), evaluate).run(evaluations)


def same(a: StudyResult, b: StudyResult) -> bool:
    return np.array_equal(a.genes, b.genes) and np.array_equal(a.figures, b.figures)


@pytest.mark.parametrize("strategy", ["evolution", "greedy", "random"])
def test_a_killed_study_continues_to_the_same_result(tmp_path: Path, strategy: str) -> None:
    problem = MADE_UP.problem("latency,quality")
    whole = Real(problem)
    expected = search(tmp_path / "whole.jsonl", whole, strategy)
    killed = tmp_path / "killed.jsonl"
    first = Real(problem, dies_after=len(whole.done) // 2)
    with pytest.raises(RuntimeError, match="killed"):
        search(killed, first, strategy)
    cut = killed.read_bytes()
    killed.write_bytes(cut[:-7])  # and the last line did not make it to the disk
    second = Real(problem)
    assert same(search(killed, second, strategy), expected)
    assert len(first.done) + len(second.done) == len(whole.done) + 1
    assert killed.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_another_goal_pays_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    search(path, Real(MADE_UP.problem("latency")), evaluations=200)
    before = len(path.read_text().splitlines())
    again = Real(MADE_UP.problem("latency"))
    search(path, again, evaluations=200)
    assert again.done == []
    other = Real(MADE_UP.problem("weights"))
    search(path, other, evaluations=200)
    asked = {str(c) for c in other.done}
    known = {json.loads(line)["candidate"] for line in path.read_text().splitlines()[1:before]}
    assert asked
    assert not asked & known


def test_kinds_of_evaluation_are_kept_apart(tmp_path: Path) -> None:
    candidate = Candidate.parse("p@t=c")
    with Journal(tmp_path / "j", CONTEXT) as journal:
        journal.add("compiled", candidate, {"cycles": 5})
        assert journal.get("held-out", candidate) is None
    with Journal(tmp_path / "j", CONTEXT) as journal:
        assert journal.get("compiled", candidate) == {"cycles": 5}
        assert len(journal) == 1
        assert journal.get("compiled", Candidate()) is None


def test_each_evaluation_is_on_disk_before_the_next_one_starts(tmp_path: Path) -> None:
    path, seen = tmp_path / "trials.jsonl", []
    problem = MADE_UP.problem()

    def evaluate(candidates: Sequence[Candidate]) -> Iterator[Sequence[float]]:
        for _ in candidates:
            seen.append(len(path.read_text().splitlines()))
            yield [1.0, 2.0, np.nan, 3.0, np.inf]

    with Journal(path, CONTEXT) as journal:
        lookup = journaled(problem, journal, "compiled", evaluate)
        rows = list(lookup(problem.everything()[:4]))
        assert seen == [1, 2, 3, 4]
        np.testing.assert_array_equal(rows, list(lookup(problem.everything()[:4])))
    assert len(seen) == 4


def test_a_journal_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    Journal(path, CONTEXT).close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"trials.jsonl holds .* another model and data: remove"):
        Journal(path, {**CONTEXT, "model": "b2", "data": "d1"})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text", ["{}\n", "hello\n", '{"journal": 9, "context": {}}\n', "[]\n", "\xff\n", "3\n"]
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"Line 1 of .*trials.jsonl is not of a journal"):
        Journal(path, CONTEXT)
    assert path.read_text() == text


def test_a_broken_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    Journal(path, CONTEXT).close()
    with path.open("a") as file:
        file.write('{"kind": "compiled"}\n{"kind": "com')
    with pytest.raises(UsageError, match="Line 2"):
        Journal(path, CONTEXT)


def test_a_file_cut_in_its_first_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text('{"journal": 1, "con')
    with Journal(path, CONTEXT) as journal:
        journal.add("compiled", Candidate(), {})
    with Journal(path, CONTEXT) as journal:
        assert len(journal) == 1


def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot use .* as a journal"):
        Journal(tmp_path, CONTEXT)
    with pytest.raises(UsageError, match=r"Cannot use .* as a journal"):
        Journal(tmp_path / "none" / "trials.jsonl", CONTEXT)


def test_the_front_is_that_of_everything_asked() -> None:
    problem = MADE_UP.problem("latency,quality", peak_memory="+0%")
    found = Study(problem, make("random", problem)).run(5000)
    assert (found.stopped, found.evaluations) == ("evaluations", 5000)
    assert problem.goal.feasible(found.figures).all()
    np.testing.assert_array_equal(problem.evaluate(found.genes), found.figures)
    assert found.figures[0, 0] == brute_force(problem)[1][0, 0]
    assert found.nearest_figures is not None
    assert found.nearest_figures[0] == found.figures[0, 0]


def test_budgets_end_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = MADE_UP.problem()
    found = Study(problem, make("random", problem)).run(10)
    assert (found.stopped, found.evaluations) == ("evaluations", 10)
    clock = itertools.count()
    monkeypatch.setattr("onnxnas.study.time.monotonic", lambda: float(next(clock)))
    found = Study(problem, make("random", problem)).run(10**6, deadline=99.5)
    assert (found.stopped, found.evaluations) == ("budget", 100)
    found = Study(problem, make("random", problem)).run(10**6, deadline=-1.0)
    assert (found.stopped, found.evaluations, found.nearest) == ("budget", 0, None)


def test_an_interrupt_keeps_what_was_found() -> None:
    problem = MADE_UP.problem()
    calls = itertools.count()

    def evaluate(genes: Genes) -> Figures:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return problem.evaluate(genes)

    found = Study(problem, make("random", problem), evaluate).run(10**6)
    assert (found.stopped, found.evaluations) == ("interrupted", 128)
    assert len(found.figures) == 1


@pytest.mark.parametrize("strategy", ["evolution", "random"])
def test_a_study_holds_no_more_after_many_candidates(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxnas.strategy.Recent.LARGEST", 50)
    problem = MadeUp(choices=(3,) * 12, shared=()).problem()  # its front is one candidate
    tracemalloc.start()
    try:
        study = Study(problem, make(strategy, problem))
        held = []
        for evaluations in (400, 1600):
            study.run(evaluations)
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert (held[1] - held[0]) / 1200 < 48  # bytes: to remember a candidate takes over 100


@pytest.mark.parametrize("strategy", ["evolution", "random"])
def test_a_candidate_costs_no_more_after_many_others(strategy: str) -> None:
    problem = MadeUp(choices=(3,) * 40, shared=()).problem("latency,quality")
    study = Study(problem, make(strategy, problem))
    seconds = []
    for tenth in range(1, 11):
        start = time.process_time()
        study.run(500 * tenth)
        seconds.append(time.process_time() - start)
    # Work for each one seen so far would make the last tenth cost 19 times the first.
    assert np.median(seconds[-3:]) < 4 * np.median(seconds[:3])
