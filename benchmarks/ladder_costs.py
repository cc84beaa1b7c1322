"""What combinations are promised to cost, and what the compiler then says of them.

    onnxnas optimize MODEL.onnx -t TARGET --calibration DATA --max-drop 4% -o out.onnx
    python benchmarks/ladder_costs.py MODEL.onnx --target TARGET --run out.run

Takes the choices that a run judged alone, and what they harm, from its journal. Two ladders are
climbed from there, 5 % of the cycles a rung: with costs of single choices added up, and with what
the learned model says that they do to each other. Every rung is compiled whole, with stand-ins for
fitted weights. Rungs at more than `--most` summed harm are left out: no search gets there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np

from onnxnas.divergence import Divergence
from onnxnas.integer_program import Program
from onnxnas.objectives import Goal, column
from onnxnas.prepare import Prepared, prepare
from onnxnas.recovery_search import RecoverySearch, Single
from onnxnas.screening import Screen
from onnxnas.search import Evaluator, Move, figures_of
from onnxnas.sites import Candidate

_CYCLES, _PEAK, _DAMAGE = column("latency"), column("peak-memory"), column("quality")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--target", required=True)
    parser.add_argument("--run", type=Path, required=True, help="run folder of the model")
    parser.add_argument("--most", type=float, default=1.0, help="summed divergence")
    options = parser.parse_args()
    prepared = prepare(options.model, options.target)
    (journal,) = (options.run / "fitted").glob("*.jsonl")
    search = searched(prepared, journal)
    learned = search.predictor
    print(
        "| singles | combinations | rungs | cycles: mean, largest error, bias | peak memory | s |"
    )
    print("|---" * 6 + "|")
    for predicted in (True, False):
        search.screen = Screen(learned) if predicted and learned is not None else None
        search.alone = alone(search)
        for search.predictor in (None, learned):
            print(row(search, "predicted" if predicted else "compiled", options.most), flush=True)


def searched(prepared: Prepared, journal: Path) -> RecoverySearch:
    """A search where choices were judged alone already; the exact ones beside them as well."""
    known = {(s.id, c.label): c for s in prepared.space for c in s.choices}
    harms: dict[Move, Single] = {}
    beside: Counter[Move] = Counter()
    count = 0
    for line in journal.read_text(encoding="utf-8").splitlines()[1:]:
        record = json.loads(line)
        moves = Candidate.parse(record["candidate"]).decisions
        if record["kind"] == "alone" and moves[0] in known:
            harms[moves[0]] = Single(0.0, cast(Any, None), Divergence.from_dict(record["values"]))
        elif record["kind"] == "single-shot":
            count += 1
            beside.update(m for m in moves if m in known and known[m].exactness == "exact")
    p = prepared
    search = RecoverySearch(
        Evaluator(p.graph, p.space, p.passes, p.cost_model, p.input_shapes),
        recovery=cast(Any, None),
        held_out=cast(Any, None),
        predictor=p.cost_model.predictor(),
        base=Candidate.of({m[0]: m[1] for m, n in beside.items() if n > count / 2}),
    )
    search.singles = harms
    return search


def alone(search: RecoverySearch) -> dict[Move, Any]:
    """What each choice costs alone, as the search would find out."""
    moves = list(search.singles)
    before = search.evaluator.view(search.base)
    asked = [search.beside(Candidate.of(dict([m]))) for m in moves]
    return dict(zip(moves, search._costed(asked, before), strict=True))


def row(search: RecoverySearch, singles: str, most: float) -> str:
    """One ladder."""
    start = search.start.cost
    assert start is not None
    begin = time.process_time()
    goal = Goal(("latency", "quality"), (), figures_of(start), 1.0)
    problem = search.problem(goal)
    program, found = Program(problem), dict[Candidate, Any]()
    for step in range(1, 20):
        best = program.best(_DAMAGE, {_CYCLES: start.cycles * (1 - 0.05 * step)})
        if best.genes is not None and best.value <= most:
            found[search.beside(problem.candidate(best.genes))] = best.figures
    spent = time.process_time() - begin
    trials = search.evaluator.evaluate(list(found))
    pairs = [(said, figures_of(t.cost)) for said, t in zip(found.values(), trials, strict=True)
             if t.cost is not None]  # fmt: skip
    said, true = (np.array(rows) for rows in zip(*pairs, strict=True))
    cycles, peak = (said[:, at] / true[:, at] - 1 for at in (_CYCLES, _PEAK))
    how = "looked up" if problem.table.live else "added up"
    return (
        f"| {singles} | {how} | {len(pairs)} | {np.abs(cycles).mean():.2%}, "
        f"{np.abs(cycles).max():.1%}, {cycles.mean():+.2%} | {np.abs(peak).mean():.2%}, "
        f"{np.abs(peak).max():.1%} | {spent:.0f} |"
    )


if __name__ == "__main__":
    main()
