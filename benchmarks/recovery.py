"""Latency against accuracy of real networks, weights fitted on unlabelled pictures.

    python benchmarks/recovery.py --network mobilenetv2 --target ethos-u85-2048 --json curve.json

Needs the evaluation set beside the repository (``../shared/evalset``; research terms, so it is
not part of it). Latency is a compile of the whole network with its fitted weights (Arm's estimate,
not silicon). Exact rewrites are made as well, where nothing else is in their way. Networks:

    mobilenetv2   fitted on every other ImageNet picture; top-1 on the rest, as they are, mirrored,
                  and reduced to 112 x 112 and enlarged again. The pictures are one per class, so
                  those scored are of other classes than those fitted on.
    mobilenetv2-swapped  the same with the two halves of the pictures exchanged.
    yolo          yolo-fastest, fitted on ImageNet pictures; AP50 of persons on 50 of COCO.
    deeplab       deeplab v3, fitted on ImageNet pictures; IoU of cars on 101 of CamVid.

With --device PyTorch makes the gradient steps, and more of them; with --distill every point is also
trained end to end (needs PyTorch as well). Each point is quantised to
int8 as the original is, and both are scored. With --library what was fitted and judged is kept,
and points that are in the --json file already stay: a run that was stopped goes on. What
`onnxnas optimize` fitted on the same rows serves as a library too. The tables of several runs:

    python benchmarks/recovery.py --table curve-1.json curve-2.json

and of both halves of the pictures together, --pooled curve.json swapped.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from evalset_cases import CASES, Case, Scores, evaluation

from onnxnas.calibration import Calibration, load_calibration
from onnxnas.distill import distill
from onnxnas.errors import InfeasibleError
from onnxnas.exact_search import ExactSearch
from onnxnas.fitting import open_journal, recovery_search
from onnxnas.graph import contract
from onnxnas.int8 import MOST_ROWS
from onnxnas.materialize import apply_candidate
from onnxnas.outcome import goal_of
from onnxnas.prepare import prepare
from onnxnas.quantise import quantise
from onnxnas.recover import values_only
from onnxnas.recovery_search import RecoverySearch
from onnxnas.screening import Screen
from onnxnas.sites import Candidate

GOALS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)


def table(files: Sequence[Path]) -> str:
    """What several runs on one network and target found, in Markdown."""
    runs = [json.loads(file.read_text()) for file in files]
    points = sorted((p for run in runs for p in run["points"]), key=lambda p: float(p["saving"]))
    if not points:
        return "no points yet"
    views = list(points[0]["float"])
    head = ["cycles", *views, *(f"int8: {v}" for v in views if v != "hard")]
    trained = any("distilled" in p for p in points)
    head += [f"distilled: {views[-1]}"] if trained else []
    head += ["held out: divergence", "agreement"]
    lines = [f"| {' | '.join(head)} |", f"|{'---:|' * len(head)}"]
    for p in points:
        cells = [_change(p["float"][v]) for v in views]
        cells += [_change(p["int8"][v]) for v in views if v != "hard"]
        cells += [_distilled_change(p.get("distilled"), views[-1])] if trained else []
        agrees = p["held_out_agreement"]
        cells += [f"{p['held_out_divergence']:.3f}", "" if agrees is None else f"{agrees:.1%}"]
        lines.append(f"| {-p['saving']:+.1%} | {' | '.join(cells)} |".replace("%", " %"))
    start = runs[0]
    exact = start.get("exact", {"saving": 0.0})["saving"]
    original = ", ".join(f"{v} {f['metric']:.1f}" for v, f in start["original"].items())
    int8 = ", ".join(f"{v} {f['metric']:.1f}" for v, f in start["original_int8"].items())
    return (
        f"Original: {start['original_cycles']:,.0f} cycles; {original}; in int8 {int8}. "
        f"Exact rewrites alone: {-exact:+.1%}.\n\n".replace("%", " %")
        + "\n".join(lines)
    )


def pooled(files: Sequence[Path]) -> str:
    """The points of runs on both halves of the pictures, goal by goal, in Markdown.

    Each half was scored by networks fitted on the other, so that all pictures count, once each.
    """
    runs = [{p["goal"]: p for p in json.loads(file.read_text())["points"]} for file in files]
    lines = ["| cycles | mean of both readings | in int8 |", "|---:|---:|---:|"]
    for goal in sorted(set(runs[0]).intersection(*runs[1:])):
        points = [run[goal] for run in runs]
        cells = []
        for kind in ("float", "int8"):
            scores = [p[kind]["mean of both"] for p in points]
            drop = sum(s["drop"] for s in scores) / len(scores)
            error = sum(s["drop_standard_error"] ** 2 for s in scores) ** 0.5 / len(scores)
            cells.append(_change({"drop": drop, "drop_standard_error": error}))
        saving = sum(p["saving"] for p in points) / len(points)
        lines.append(f"| {-saving:+.1%} | {' | '.join(cells)} |".replace("%", " %"))
    return "\n".join(lines)


def _distilled_change(found: Mapping[str, Any] | None, view: str) -> str:
    if found is None:
        return ""
    return _change(found[view]) if found["gained"] else "no gain"


def _change(scores: Mapping[str, float]) -> str:
    return f"{0.0 - scores['drop']:+.1f} +- {scores['drop_standard_error']:.1f}"


def _said(name: str, scores: Scores) -> str:
    parts = []
    for view, s in scores.items():
        error = f" +- {s['drop_standard_error']:.1f}" if "drop_standard_error" in s else ""
        parts.append(f"{view} {s['metric']:.1f} ({-s['drop']:+.1f}{error})")
    return f"{name}: " + "  ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--network", choices=CASES, default="mobilenetv2")
    parser.add_argument("--target", default="ethos-u55-128")
    parser.add_argument("--goals", type=float, nargs="+", default=GOALS)
    parser.add_argument("--library", type=Path, help="keeps what was fitted; default: nowhere")
    parser.add_argument(
        "--choices", type=Path, help="report of an earlier run: its choices again, not searched"
    )
    parser.add_argument("--table", type=Path, nargs="+", metavar="CURVE.json")
    parser.add_argument(
        "--pooled", type=Path, nargs=2, metavar="CURVE.json", help="of mobilenetv2 and -swapped"
    )
    parser.add_argument(
        "--alone", type=float, metavar="SECONDS", help="for choices alone, what saves most first"
    )
    parser.add_argument("--workers", type=int, default=1, help="that fit; needs --library")
    parser.add_argument(
        "--device", default="", help="PyTorch makes gradient steps there: cpu, cuda"
    )
    parser.add_argument("--distill", type=int, default=0, metavar="STEPS")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.table:
        print(table(args.table))
    if args.pooled:
        print(pooled(args.pooled))
    if args.table or args.pooled:
        return
    start = time.monotonic()

    def said(what: str, done: int, total: int) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {what} {done}/{total}", file=sys.stderr)

    case = CASES[args.network](evaluation())
    prepared = prepare(case.model, args.target, device=args.device)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "rows.npy", case.rows)
        calibration = load_calibration(Path(folder) / "rows.npy", contract(prepared.source)[0])
        for report in curve(case, prepared, calibration, args, start, said):
            if args.json:
                args.json.write_text(json.dumps(report, indent=1) + "\n")
    print({k: v for k, v in report.items() if k not in ("points", "original")})


def curve(
    case: Case,
    prepared: Any,
    calibration: Calibration,
    args: argparse.Namespace,
    start: float,
    said: Callable[[str, int, int], None],
) -> Iterator[dict[str, Any]]:
    """One point per goal; the report again and again, with a point more."""
    search = recovery_search(prepared, calibration, args.library, 0, said)
    search.screen = Screen.of(prepared.cost_model)
    if args.library is not None:
        journal = open_journal(prepared, search.recovery.rows, args.library, 0)
        search.journal = search.evaluator.journal = journal
    exact = _exact(prepared, search, said)
    search.base = exact.run(None, Candidate()).best.candidate
    ranges = list(search.recovery.rows.fitted(MOST_ROWS))
    search.recovery.workers = args.workers
    begin, cpu = time.monotonic(), time.process_time()
    known = json.loads(args.choices.read_text())["points"] if args.choices else []
    if not known:
        if args.alone is not None:
            search.deadline = search.recovery.deadline = begin + args.alone
        search.judge_alone()
        search.deadline = search.recovery.deadline = None
    alone = {
        "exact": {
            "saving": 1 - search.start.cycles / search.baseline.cycles,
            "candidate": str(search.base),
        },
        "seconds_fitting_and_judging_alone": time.monotonic() - begin,
        "cpu_seconds_fitting_and_judging_alone": time.process_time() - cpu,
    }
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    base, original = case.score(prepared.source, None)
    base_int8, original_int8 = case.score(quantise(prepared.normalised, ranges), base)
    print(_said("original, int8", original_int8))
    points: list[dict[str, Any]] = []
    if args.json and args.json.exists():
        points = json.loads(args.json.read_text())["points"]

    def report() -> dict[str, Any]:
        return {
            "network": args.network,
            "target": args.target,
            "rows_fitted_on": search.recovery.rows.roles.count("fit"),
            "original_cycles": search.baseline.cycles,
            "original": original,
            "original_int8": original_int8,
            **alone,
            "seconds": time.monotonic() - start,
            "peak_memory_mib_of_fitting_alone": memory,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "points": points,
        }

    yield report()
    asked = [(p["goal"], Candidate.parse(p["candidate"])) for p in known]
    solved = [(g, search.solve(g)) for g in (() if known else args.goals)]
    asked += [(g, search.beside(c)) for g, c in solved if c is not None]
    asked = [(goal, c) for goal, c in asked if goal not in (p["goal"] for p in points)]
    for number, (goal, candidate) in enumerate(asked):
        begin, cpu = time.monotonic(), time.process_time()
        if number % args.workers == 0:
            search.recovery.ahead((), [c for _, c in asked[number : number + args.workers]])
        found = search.finalist(goal, candidate)
        seconds, cpu = time.monotonic() - begin, time.process_time() - cpu
        weights = values_only(found.weights)
        made, paying = Candidate.of(dict(weights.keys())), frozenset(search.base.decisions)
        best = exact.run(None, search.base, made, weights, "multishot", paying).best
        applied = apply_candidate(
            prepared.graph, prepared.space, best.candidate, prepared.passes, weights
        )
        result = applied.model(prepared.normalised)
        saving = 1 - best.cycles / search.baseline.cycles
        print(f"{-saving:+.1%}  {seconds:.0f} s")
        point = {
            "goal": goal,
            "saving": saving,
            "cycles": best.cycles,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "held_out_divergence": found.divergence.value,
            "held_out_agreement": found.divergence.agrees,
            "sum_of_single_divergences": found.proxy,
            "float": case.score(result, base)[1],
            "int8": case.score(quantise(result, ranges), base_int8)[1],
            "candidate": str(best.candidate),
        }
        print(_said("  float", point["float"]))
        print(_said("  int8, beside the original in int8", point["int8"]), flush=True)
        if args.distill:
            point["distilled"] = _distilled(case, prepared, result, calibration, base, args.distill)
        points.append(point)
        yield report()


def _exact(
    prepared: Any, search: RecoverySearch, said: Callable[[str, int, int], None]
) -> ExactSearch:
    """The search for what changes nothing: of the original, and beside what was fitted."""
    cost = search.baseline.cost
    assert cost is not None
    goal = goal_of(("latency",), (), cost, prepared.cost_model.target.clock_hz)
    return ExactSearch(prepared, goal, search.screen, search.journal, Candidate(), said)


def _distilled(
    case: Case,
    prepared: Any,
    result: onnx.ModelProto,
    calibration: Calibration,
    base: Any,
    steps: int,
) -> dict[str, Any]:
    begin = time.monotonic()
    try:
        found = distill(prepared.normalised, result, calibration, steps=steps)
    except InfeasibleError as reason:
        print(f"  {reason}", flush=True)
        return {"gained": False, "seconds": time.monotonic() - begin}
    scores = case.score(found.model, base)[1]
    print(_said("  distilled", scores), flush=True)
    return {"gained": True, "seconds": time.monotonic() - begin, "steps": found.steps, **scores}


if __name__ == "__main__":
    main()
