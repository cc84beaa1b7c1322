"""Every strategy against the conformance checks and brute force; the integer program exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from search_tables import MadeUp, Part, brute_force

from onnxnas.cost import Cost
from onnxnas.cost_table import CostTable
from onnxnas.errors import UsageError
from onnxnas.front import pareto
from onnxnas.integer_program import Program
from onnxnas.problem import Figures, Genes, Problem
from onnxnas.search import Trial
from onnxnas.sites import SearchSpace
from onnxnas.strategies import STRATEGIES, make
from onnxnas.strategy import Recent, Strategy
from onnxnas.study import Study
from onnxnas.testing import check_strategy

MADE_UP = MadeUp(seed=1)
GOALS = {
    "fastest": {},
    "fastest within a loss": {"quality": "1.0"},
    "best within a time": {"minimise": "quality", "latency": "-10%"},
    "smallest within both": {"minimise": "weights", "latency": "-3%", "quality": "1.5"},
    "fastest within memory": {"peak_memory": "-10%"},
    "least memory": {"minimise": "peak-memory", "quality": "1.5"},
    "least work within memory": {"minimise": "macs", "quality": "0.9", "peak_memory": "-5%"},
    "out of reach": {"latency": "-90%"},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_conform(name: str) -> None:
    for problem in (
        MADE_UP.problem("latency,quality"),
        MADE_UP.problem(quality="1.0"),
        MADE_UP.problem(latency="-90%"),  # nothing is feasible
        MadeUp(choices=(1,), shared=()).problem(),
        MadeUp(choices=(2, 0, 1), shared=((0, 2),)).problem(),
    ):
        asked = check_strategy(STRATEGIES[name], problem, repeats=name == "random")
        assert len(asked) >= 1


class Careless(Strategy):
    """Asks for conflicts, or for the same again, or for anything without its seed."""

    name = "careless"
    fault = ""

    def ask(self) -> Genes:
        genes = np.zeros((1, len(self.problem.choices)), dtype=np.intp)
        if self.fault == "exclude":
            genes[0] = 1
        if self.fault == "exist":
            genes[0, 0] = 9
        if self.fault == "something else":
            genes[0, 0] = np.random.default_rng().integers(2)
        if self.fault == "nothing":
            return genes[:0]
        return genes

    def tell(self, genes: Genes, figures: Figures) -> None:
        pass


@pytest.mark.parametrize("fault", ["exclude", "exist", "something else", "nothing", "twice"])
def test_the_checks_see_a_strategy_that_breaks_a_rule(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Careless, "fault", fault)
    with pytest.raises(AssertionError, match=fault):
        check_strategy(Careless, MADE_UP.problem())


@pytest.mark.parametrize("limits", GOALS.values(), ids=GOALS)
@pytest.mark.parametrize("arity", [1, 2, 3])
def test_the_integer_program_finds_what_brute_force_finds(
    limits: dict[str, str], arity: int
) -> None:
    for seed in range(2):
        problem = MadeUp(seed, arity=arity).problem(**limits)
        _, figures = brute_force(problem)
        at = problem.goal.columns[0]
        found = Program(problem).best(at, problem.goal.ceilings)
        assert found.proven
        if not len(figures):
            assert found.genes is None
            continue
        assert found.genes is not None
        assert found.value == pytest.approx(figures[0, at], rel=1e-12)
        assert found.gap < 1e-6
        np.testing.assert_array_equal(problem.evaluate(found.genes[None])[0], found.figures)


@pytest.mark.parametrize(
    "limits", [{"peak_memory": "-10%"}, {"minimise": "peak-memory"}, {"peak_memory": "-80%"}]
)
def test_a_table_that_cannot_explain_its_peak_is_searched_without_proof(
    limits: dict[str, str],
) -> None:
    for seed in range(3):
        made_up = MadeUp(seed)
        problem = made_up.problem(**limits)
        problem = replace(problem, table=replace(made_up.table, says_live=False))
        _, figures = brute_force(problem)
        at = problem.goal.columns[0]
        found = Program(problem).best(at, problem.goal.ceilings)
        assert not found.proven
        assert (found.genes is None) == (not len(figures))
        if len(figures):
            assert found.value == pytest.approx(figures[0, at], rel=1e-12)


def test_what_cannot_be_made_together_is_not() -> None:
    made_up = MadeUp(seed=2, shared=())
    free = made_up.problem()
    best = brute_force(free)[0][0]
    made = [(free.table.sites[i].id, f"c{g - 1}") for i, g in enumerate(best) if g]
    problem = replace(free, gone=(frozenset(made[:2]),))
    assert problem.conflicting(best[None]).all()
    assert np.isinf(problem.evaluate(best[None])).all()
    found = Program(problem).best(0, {})
    assert found.value == brute_force(problem)[1][0, 0] > brute_force(free)[1][0, 0]
    repaired = problem.repaired(best[None], np.random.default_rng(0))
    assert not problem.conflicting(repaired).any()
    listed = replace(made_up.table, impossible=problem.gone)
    assert Program(replace(free, table=listed)).best(0, {}).value == found.value


def test_memory_that_nothing_changes_is_no_obstacle() -> None:
    made_up = MadeUp(seed=4)
    fixed = Part((), *np.full((3,), 900.0))
    table = replace(made_up.table, tensors=(fixed, *made_up.table.tensors))
    problem = replace(made_up.problem("peak-memory"), table=table)
    found = Program(problem).best(1, {})
    assert found.proven
    assert found.value == brute_force(problem)[1][0, 1] >= 900


def test_a_site_that_may_not_be_kept_is_rewritten() -> None:
    problem = MADE_UP.problem()
    damage = [d.copy() for d in problem.damage]
    damage[3][0] = np.inf
    problem = replace(problem, damage=tuple(damage))
    genes, figures = brute_force(problem)
    assert (genes[:, 3] > 0).all()
    found = Program(problem).best(4, {})
    assert found.value == pytest.approx(figures[:, 4].min())


def test_unknown_figures_matter_only_to_those_who_ask_for_them() -> None:
    made_up = MadeUp(seed=3)
    lost = tuple(replace(p, weight_bytes=p.weight_bytes * np.nan) for p in made_up.table.factors)
    problem = made_up.problem(quality="1.0")
    blind = replace(problem, table=replace(made_up.table, factors=lost))
    assert Program(blind).best(0, {4: 1.0}).value == Program(problem).best(0, {4: 1.0}).value
    assert Study(blind, make("evolution", blind)).run(200).nearest is not None
    assert brute_force(replace(blind, goal=made_up.goal("weights")))[0].size == 0


def test_the_ladder_is_on_the_front() -> None:
    problem = MADE_UP.problem("latency,quality")
    strategy = make("exact", problem)
    found = Study(problem, strategy).run(100)
    assert found.stopped == "finished"
    _, figures = brute_force(problem)
    true = {tuple(row) for row in figures[pareto(figures, (0, 4))][:, [0, 4]].round(6)}
    assert {tuple(row) for row in found.figures[:, [0, 4]].round(6)} <= true
    assert len(found.figures) >= len(true) / 2 > 1


@pytest.mark.parametrize(("name", "share"), [("evolution", 1.01), ("greedy", 1.05)])
def test_searches_come_close_to_the_optimum(name: str, share: float) -> None:
    problem = MadeUp(5, choices=(2, 3, 2, 2, 3, 2, 1)).problem(quality="1.2")
    best = brute_force(problem)[1][0, 0]
    found = [Study(problem, make(name, problem, seed)).run(300) for seed in range(3)]
    values = [f.nearest_figures[0] for f in found if f.nearest_figures is not None]
    assert np.median(values) <= share * best
    assert all(problem.goal.feasible(f.figures).all() for f in found)


def test_greedy_finds_its_way_into_the_limits() -> None:
    problem = MADE_UP.problem("quality", latency="-5%")
    found = Study(problem, make("greedy", problem)).run(500)
    assert found.stopped == "finished"
    assert len(found.figures) > 0


def test_names_are_checked() -> None:
    with pytest.raises(UsageError, match="did you mean 'evolution'"):
        make("evolutoin", MADE_UP.problem())


def test_what_a_strategy_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recent, "LARGEST", 10)
    recent = Recent()
    genes = np.arange(25)[:, None]
    assert len(recent.fresh(genes)) == 25
    assert len(recent.fresh(genes[-10:])) == 0
    assert len(recent.fresh(genes[:5])) == 5


def test_repair_keeps_what_it_can() -> None:
    problem: Problem = MadeUp(choices=(1, 1, 1, 1), shared=((0, 1, 2),)).problem()
    rng = np.random.default_rng(0)
    genes = np.ones((200, 4), dtype=np.intp)
    repaired = problem.repaired(genes, rng)
    assert (repaired.sum(axis=1) == 2).all()
    assert (repaired[:, 3] == 1).all()
    assert genes.all()


@pytest.mark.parametrize(
    "limits",
    [
        {"latency": "-90%", "quality": "0.01"},
        {"latency": "-20%", "peak_memory": "-60%", "macs": "-50%"},
        {"quality": "0", "latency": "-30%"},
    ],
)
def test_where_nothing_meets_the_limits_the_nearest_is_found(limits: dict[str, str]) -> None:
    for seed in range(4):
        problem = MadeUp(seed).problem(**limits)
        goal = problem.goal
        figures = problem.evaluate(problem.everything())
        misses = goal.violations(figures[goal.possible(figures)]).max(axis=1)
        found = Study(problem, make("exact", problem)).run(10)
        assert len(found.figures) == 0
        assert found.nearest_figures is not None
        miss = goal.violations(found.nearest_figures[None]).max()
        assert miss == pytest.approx(misses.min(), rel=1e-5)
        assert miss > 0
        loose = replace(goal, limits=goal.relaxed(tuple(found.nearest_figures)))
        assert loose.feasible(found.nearest_figures[None]).all()


def test_repair_makes_what_must_be_made_and_nothing_impossible() -> None:
    problem = MadeUp(choices=(2, 2, 2), shared=((0, 1),)).problem()
    damage = (np.array([np.inf, 0.1, np.inf]), problem.damage[1], np.array([0, np.inf, 0.2]))
    problem = replace(problem, damage=damage)
    repaired = problem.repaired(problem.everything(), np.random.default_rng(0))
    assert not problem.conflicting(repaired).any()
    assert {tuple(row) for row in repaired} == {(1, 0, 0), (1, 0, 2)}
    check_strategy(STRATEGIES["greedy"], problem)
    assert brute_force(problem)[1][0, 0] == Program(problem).best(0, {}).value


def test_tables_of_whole_networks_are_searched_too() -> None:
    made_up = MADE_UP.problem(quality="1.0")
    space = SearchSpace(made_up.table.sites)

    def trial(row: np.ndarray) -> Trial:
        cycles, peak, weights, macs = (int(f) for f in made_up.table.figures(row[None])[0, :4])
        cost = Cost("toy", "estimate", cycles, 1.0, macs, {"sram": peak}, weights, ())
        return Trial(made_up.candidate(row), cost)

    keep = np.zeros(len(space), dtype=np.intp)
    alone = {
        (site.id, choice.label): trial(np.where(np.arange(len(space)) == i, k, 0))
        for i, site in enumerate(space)
        for k, choice in enumerate(site.choices, start=1)
    }
    for missing in (None, (space.sites[0].id, "c0")):
        known = {move: t for move, t in alone.items() if move != missing}
        table = CostTable.additive(space, trial(keep), known)
        problem = replace(made_up, table=table)
        for goal in (MADE_UP.goal(quality="1.0"), MADE_UP.goal("peak-memory", latency="+2%")):
            problem = replace(problem, goal=goal)
            (at,) = goal.columns
            found = Program(problem).best(at, goal.ceilings)
            assert found.value == pytest.approx(brute_force(problem)[1][0, at], rel=1e-12)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("choices", [(), (0, 0)])
def test_a_space_with_nothing_in_it_holds_the_original(name: str, choices: tuple[int, ...]) -> None:
    problem = MadeUp(choices=choices, shared=()).problem("latency,quality")
    found = Study(problem, make(name, problem)).run(70)
    assert len(found.figures) == 1
    assert tuple(found.figures[0]) == problem.goal.original
