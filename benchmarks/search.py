"""How well the strategies search: against brute force, and curated spaces against full ones.

    python benchmarks/search.py > benchmarks/search.md

Costs are those of the shipped cost models, in tables as the search uses them. What a choice harms
is made up (it would take hours of fitting, and the strategies only see a number): exact choices
nothing, others what they save as a share of the network, times a random factor around one.
"""

from __future__ import annotations

import argparse
import math
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxnas.cost_table import CostTable
from onnxnas.graph import static_view
from onnxnas.integer_program import Program
from onnxnas.objectives import METRICS, Goal, Limit
from onnxnas.plugins import load_predictor
from onnxnas.prepare import Prepared, prepare
from onnxnas.problem import Problem
from onnxnas.search import MIN_GAIN, Evaluator
from onnxnas.sites import Candidate, SearchSpace, Site
from onnxnas.strategies import make
from onnxnas.study import Study

MODELS = ("camera_classifier", "presence_detector", "room_segmenter")
TARGETS = ("ethos-u55-128", "ethos-u85-2048")
FOLDER = Path(__file__).parents[1] / "sample_models"
PARTS = ("small", "full", "seen")
CHOICES = 3
"""Of a site in a space that is enumerated."""
NEAR = 1.01
"""Within 1 % of the optimum."""

Array = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--size", type=int, default=20_000, help="of an enumerated space, at most")
    parser.add_argument("--evaluations", type=int, default=3000, help="in a full space, at most")
    parser.add_argument("--networks", type=int, default=400, help="looked at for a table, at most")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--looked-up", type=int, default=80_000, help="candidates of part seen")
    options = parser.parse_args()
    loaded = [
        (f"{model}, {target}", prepare(FOLDER / f"{model}.onnx", target))
        for model in options.models
        for target in options.targets
    ]
    print("# Search strategies\n\nMade by `python benchmarks/search.py`; what the columns mean and")
    print("how choices are said to harm is in its text.\n")
    if "small" in options.parts:
        print("## Spaces small enough to enumerate\n")
        spaces = [(name, p, cut(p, options.size)) for name, p in loaded]
        small = [(name, table_of(p, space, options.networks)[0]) for name, p, space in spaces]
        exact_against_brute_force(small)
        strategies_at_a_tenth(small, options.seeds)
    if "full" in options.parts:
        print("\n## Curated and full spaces\n")
        curated_against_full(loaded, options)
    if "seen" in options.parts:
        print("\n## After many candidates\n")
        after_many(*loaded[0], options.looked_up)


def cut(prepared: Prepared, most: int) -> SearchSpace:
    """Sites at the dearest kernels, up to `CHOICES` choices each, while few are possible."""
    predictor = load_predictor(prepared.cost_model.target.name)
    assert predictor is not None
    cost = predictor.cost(static_view(prepared.graph, prepared.input_shapes))
    dearest = sorted(cost.kernels, key=lambda k: -(k.cycles or 0.0))
    chosen: dict[str, Site] = {}
    tried: set[str] = set()
    for kernel in dearest:
        for site in prepared.space:
            if site.tensors & set(kernel.tensors) and site.id not in tried:
                tried.add(site.id)
                some = site.choices[:: math.ceil(len(site.choices) / CHOICES)]
                sites = (*chosen.values(), replace(site, choices=some))
                if len(possible(sites)) <= most:
                    chosen[site.id] = sites[-1]
    return SearchSpace(tuple(chosen[s.id] for s in prepared.space if s.id in chosen))


def possible(sites: Sequence[Site]) -> NDArray[np.intp]:
    """All candidates whose sites do not share a claim, the original first."""
    rows = np.zeros((1, 0), dtype=np.intp)
    for i, site in enumerate(sites):
        rivals = [j for j, other in enumerate(sites[:i]) if other.claims & site.claims]
        free = rows[(rows[:, rivals] == 0).all(axis=1)]
        new = [rows, *([free] * len(site.choices))]
        genes = np.concatenate([np.full(len(r), gene) for gene, r in enumerate(new)])
        rows = np.column_stack([np.concatenate(new), genes])
    return rows


def table_of(prepared: Prepared, space: SearchSpace, networks: int) -> tuple[CostTable, float]:
    """Of the shipped cost model; and seconds it took to make."""
    predictor = load_predictor(prepared.cost_model.target.name)
    assert predictor is not None
    start = time.monotonic()
    p = prepared
    view = Evaluator(p.graph, space, p.passes, predictor, p.input_shapes).view
    table = CostTable.build(p.graph, space, view, predictor, networks=networks)
    return table, time.monotonic() - start


def problem_of(table: CostTable, minimise: str, **limits: float) -> Problem:
    """Limits by metric, in the units of its column."""
    keep = np.zeros((1, len(table.sites)), dtype=np.intp)
    original = tuple(float(figure) for figure in table.figures(keep)[0])
    bound = tuple(Limit(metric.replace("_", "-"), most) for metric, most in limits.items())
    goal = Goal((minimise,), bound, original, 1.0)  # a hertz: seconds are cycles
    factor = np.random.default_rng(0).lognormal(0.0, 0.7, sum(len(s.choices) for s in table.sites))
    damage = {}
    for i, (site, number, cycles) in enumerate(alone(table)):
        choice = site.choices[number - 1]
        saved = max(0.002, 1 - cycles / original[0])
        damage[site.id, choice.label] = 0.0 if choice.exactness == "exact" else saved * factor[i]
    return Problem.of(table, damage, goal)


def alone(table: CostTable) -> Iterator[tuple[Site, int, float]]:
    """Every choice, and the network's cycles with it alone."""
    for i, site in enumerate(table.sites):
        genes = np.zeros((len(site.choices), len(table.sites)), dtype=np.intp)
        genes[:, i] = np.arange(1, len(site.choices) + 1)
        for number, row in enumerate(table.figures(genes), start=1):
            yield site, number, float(row[0])


def goals(table: CostTable, figures: Array) -> dict[str, Problem]:
    """What people ask for, as tight as it binds: limits halfway to the best there is."""
    original = figures[0]
    fastest = figures[np.argmin(figures[:, 0])]
    halfway = (original + figures.min(axis=0)) / 2
    loss = fastest[4] / 4
    return {
        "latency, loss": problem_of(table, "latency", quality=loss),
        "loss, latency": problem_of(table, "quality", latency=halfway[0]),
        "latency, loss and memory": problem_of(
            table, "latency", quality=loss, peak_memory=halfway[1]
        ),
        "memory, latency": problem_of(table, "peak-memory", latency=original[0]),
        "weights, loss and latency": problem_of(
            table, "weights", quality=loss, latency=(original[0] + halfway[0]) / 2
        ),
        "MACs, latency": problem_of(table, "macs", latency=halfway[0]),
    }


def exact_against_brute_force(tables: Sequence[tuple[str, CostTable]]) -> None:
    print("`exact` and brute force: the least of the first within limits on the others.\n")
    print("| space | sites | combinations | of them possible | goals | equal | proven | slowest |")
    print("|---|---|---|---|---|---|---|---|")
    for name, table in tables:
        free = problem_of(table, "latency")
        figures = everything(free)
        equal, proven, slowest, asked = 0, 0, 0.0, goals(table, figures)
        for what, problem in asked.items():
            feasible = figures[problem.goal.feasible(figures)]
            (at,) = problem.goal.columns
            start = time.monotonic()
            found = Program(problem).best(at, problem.goal.ceilings)
            slowest = max(slowest, time.monotonic() - start)
            best = feasible[:, at].min(initial=math.inf)
            same = found.value == best or math.isclose(found.value, best, rel_tol=1e-9)
            equal, proven = equal + same, proven + found.proven
            if not same:
                print(f"NOT EQUAL: {name}: {what}: {METRICS[at]} {found.value} instead of {best}")
        print(
            f"| {name} | {len(table.sites)} | {free.size:,.0f} | {len(figures):,} | "
            f"{len(asked)} | {equal} | {proven} | {slowest:.2f} s |",
            flush=True,
        )


def everything(problem: Problem) -> Array:
    """Figures of all candidates that are possible, the original first."""
    figures = problem.evaluate(possible(problem.table.sites))
    return figures[np.isfinite(figures[:, 0])]


def strategies_at_a_tenth(tables: Sequence[tuple[str, CostTable]], seeds: int) -> None:
    print("\nAfter a tenth of the evaluations (greedy: when it ends), least latency within a loss:")
    print("how far above the optimum, median (and worst) of the seeds.\n")
    print("| space | optimum | evaluations | evolution | random | greedy (evaluations) |")
    print("|---|---|---|---|---|---|")
    for name, table in tables:
        figures = everything(problem_of(table, "latency"))
        problem = goals(table, figures)["latency, loss"]
        best = figures[problem.goal.feasible(figures), 0].min()
        budget = len(figures) // 10
        cells = []
        for strategy in ("evolution", "random"):
            traces = [walk(problem, strategy, seed, budget) for seed in range(seeds)]
            above = np.array([trace[-1][1] / best - 1 for trace in traces])
            cells.append(f"{np.median(above):.2%} ({above.max():.2%})")
        last, value = walk(problem, "greedy", 0, budget)[-1]
        cells.append(f"{value / best - 1:.2%} ({last})")
        saved = 1 - best / problem.goal.original[0]
        print(f"| {name} | -{saved:.1%} | {budget:,} | {' | '.join(cells)} |", flush=True)


def walk(problem: Problem, strategy: str, seed: int, budget: int) -> list[tuple[int, float]]:
    """(evaluations so far, least of what is minimised so far) whenever it fell, and at the end."""
    walker, goal = make(strategy, problem, seed), problem.goal
    (at,) = goal.columns
    done, best, trace = 0, math.inf, list[tuple[int, float]]()
    while done < budget and len(genes := walker.ask()):
        figures = problem.evaluate(genes)
        walker.tell(genes, figures)
        for value in np.where(goal.feasible(figures), figures[:, at], math.inf)[: budget - done]:
            done += 1
            if value < best:
                best = float(value)
                trace.append((done, best))
    return [*trace, (done, best)]


def curated_against_full(
    loaded: Sequence[tuple[str, Prepared]], options: argparse.Namespace
) -> None:
    seeds, budget = options.seeds, options.evaluations
    print(f"Curated: only choices that alone save at least {MIN_GAIN:.1%} of the cycles. Least")
    print("latency within a loss by `evolution`: how many seeds come within 1 % of the proven")
    print("optimum of the full space, after how many evaluations (median and quartiles, those")
    print(f"that do not counted as {budget:,}), and how far above it they end.\n")
    print(
        "| network, target | space | log10 size | table | optimum | reached | evaluations | end |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, prepared in loaded:
        table, seconds = table_of(prepared, prepared.space, options.networks)
        fastest = Program(problem_of(table, "latency")).best(0, {})
        assert fastest.figures is not None
        problem = problem_of(table, "latency", quality=float(fastest.figures[4]) / 4)
        best = Program(problem).best(0, problem.goal.ceilings).value
        for space in ("curated", "full"):
            if space == "curated":
                searched = curated(problem)
                end = Program(searched).best(0, searched.goal.ceilings).value
            else:
                searched, end = problem, best
            allowed = sum(math.log10(1 + np.isfinite(d[1:]).sum()) for d in searched.damage)
            traces = [walk(searched, "evolution", seed, budget) for seed in range(seeds)]
            reached = [
                next((done for done, value in trace if value <= NEAR * best), budget)
                for trace in traces
            ]
            hits = sum(trace[-1][1] <= NEAR * best for trace in traces)
            low, middle, high = np.percentile(reached, [25, 50, 75])
            above = np.array([trace[-1][1] / best - 1 for trace in traces])
            print(
                f"| {name} | {space} | {allowed:.1f} | {seconds:.0f} s | "
                f"-{1 - end / problem.goal.original[0]:.1%} | {hits} of {seeds} | "
                f"{middle:,.0f} ({low:,.0f} to {high:,.0f}) | "
                f"{np.median(above):.2%} (± {above.std():.2%}) |",
                flush=True,
            )


def after_many(name: str, prepared: Prepared, count: int) -> None:
    """What a candidate costs, and what is held, as more and more have been seen."""
    p = prepared
    predictor = load_predictor(p.cost_model.target.name)
    assert predictor is not None
    evaluator = Evaluator(p.graph, p.space, p.passes, predictor, p.input_shapes)
    singles = [Candidate.of({s.id: c.label}) for s in p.space for c in s.choices]
    trials = evaluator.evaluate([Candidate(), *singles])
    known = {t.candidate.decisions[0]: t for t in trials[1:] if t.cost is not None}
    sites = (
        replace(s, choices=tuple(c for c in s.choices if (s.id, c.label) in known)) for s in p.space
    )
    space = SearchSpace(tuple(s for s in sites if s.choices))
    problem = problem_of(CostTable.additive(space, trials[0], known), "latency")
    problem = replace(problem, goal=replace(problem.goal, minimise=("latency", "quality")))
    print(f"{name}, {len(space)} sites, sums of single choices; a front of latency and loss.")
    print("Processor time for a candidate and memory held (not both in one run), after so many:\n")
    tenths = [count * i // 10 for i in (1, 2, 4, 6, 8, 10)]
    print(f"| strategy | {' | '.join(f'{n:,}' for n in tenths)} |\n|---{'|---' * len(tenths)}|")
    for strategy in ("evolution", "random"):
        cells = []
        for measured in (False, True):
            if measured:
                tracemalloc.start()
            study, done, row = Study(problem, make(strategy, problem)), 0, []
            for upto in tenths:
                start = time.process_time()
                study.run(upto)
                each = (time.process_time() - start) / (upto - done)
                done = upto
                held = tracemalloc.get_traced_memory()[0] if measured else 0
                row.append(f"{held / 2**20:.1f} MiB" if measured else f"{each * 1e6:.0f} us")
            tracemalloc.stop()
            cells.append(row)
        joined = " | ".join(f"{us}, {held}" for us, held in zip(*cells, strict=True))
        print(f"| {strategy} | {joined} |", flush=True)


def curated(problem: Problem) -> Problem:
    """The same without choices that do not save enough alone."""
    damage = [d.copy() for d in problem.damage]
    index = {site.id: i for i, site in enumerate(problem.table.sites)}
    assert isinstance(problem.table, CostTable)
    for site, number, cycles in alone(problem.table):
        if cycles > (1 - MIN_GAIN) * problem.goal.original[0]:
            damage[index[site.id]][number] = math.inf
    return replace(problem, damage=tuple(damage))


if __name__ == "__main__":
    main()
