"""Latency against top-1 of MobileNetV2, weights fitted on unlabelled pictures.

    python benchmarks/recovery.py --target ethos-u85-2048 --json curve.json

Needs the evaluation set beside the repository (``../shared/evalset``; research terms, so it is
not part of it). Every other picture is for fitting, unlabelled; the rest is for scoring, never
looked at before: as it is, mirrored, and reduced to 112 x 112 and enlarged again. Latency is a
compile of the whole network with its fitted weights (Arm's estimate, not silicon).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxnas.calibration import load_calibration
from onnxnas.choose import recovery_search
from onnxnas.graph import contract, to_model
from onnxnas.materialize import apply_candidate
from onnxnas.prepare import prepare
from onnxnas.recover import values_only
from onnxnas.runtime import Session

EVALSET = Path(__file__).resolve().parents[2] / "shared" / "evalset"
GOALS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
Floats = NDArray[np.float32]


def pictures() -> tuple[Floats, NDArray[np.int64]]:
    """All pictures as the network takes them [500, 3, 224, 224], and their labels."""
    spec = importlib.util.spec_from_file_location("evaluate", EVALSET / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    evaluate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evaluate)
    archive = evaluate.PREPROCESS["imagenet"][0]
    labels = [int(name[:4]) for name, _ in evaluate._images(archive)]
    return evaluate.calibration("imagenet", len(labels)), np.array(labels)


def hard(rows: Floats) -> Floats:
    """Reduced to 112 x 112 and enlarged again."""
    results = []
    for row in rows:
        pixels = np.clip(row.transpose(1, 2, 0) * 128 + 128, 0, 255).round().astype(np.uint8)
        small = Image.fromarray(pixels).resize((112, 112), Image.Resampling.BILINEAR)
        large = np.asarray(small.resize((224, 224), Image.Resampling.BILINEAR), np.float32)
        results.append((large.transpose(2, 0, 1) - 128) / 128)
    return np.stack(results)


def logits(model: Any, rows: Floats) -> NDArray[np.float64]:
    session = Session(model, optimised=True)
    (name,) = [port.name for port in contract(model)[0]]
    runs = (next(iter(session.run({name: row[None]}).values())) for row in rows)
    return np.array([run.ravel() for run in runs], np.float64)


def log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def score(
    before: NDArray[np.float64], after: NDArray[np.float64], labels: NDArray[np.int64]
) -> dict[str, float]:
    """Top-1 and what was lost, paired, in points; agreement; divergence."""
    right = (after.argmax(1) == labels).astype(float)
    lost = (before.argmax(1) == labels) - right
    a, b = log_softmax(before), log_softmax(after)
    return {
        "top1": 100 * right.mean(),
        "drop": 100 * lost.mean(),
        "drop_standard_error": 100 * lost.std(ddof=1) / len(lost) ** 0.5,
        "agreement": 100 * float((before.argmax(1) == after.argmax(1)).mean()),
        "divergence": float((np.exp(a) * (a - b)).sum(1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", default="ethos-u55-128")
    parser.add_argument("--goals", type=float, nargs="+", default=GOALS)
    parser.add_argument("--library", type=Path, help="keeps what was fitted; default: nowhere")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    start = time.monotonic()

    def said(what: str, done: int, total: int) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {what} {done}/{total}", file=sys.stderr)

    rows, labels = pictures()
    model = EVALSET / "models" / "mobilenetv2_224.onnx"
    prepared = prepare(model, args.target)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "rows.npy", rows[0::2])
        calibration = load_calibration(Path(folder) / "rows.npy", contract(prepared.source)[0])
        search = recovery_search(prepared, calibration, args.library, 0, said)
        search.judge_alone()
        alone_s = time.monotonic() - start
        views = {"standard": rows[1::2], "mirrored": rows[1::2, :, :, ::-1].copy()}
        views["hard"] = hard(rows[1::2])
        base = {name: logits(prepared.source, view) for name, view in views.items()}
        points = []
        for goal in args.goals:
            begin = time.monotonic()
            candidate = search.solve(goal)
            if candidate is None:
                print(f"no choices save {goal:.0%}")
                break
            found = search.finalist(goal, candidate)
            fitted_s = time.monotonic() - begin
            applied = apply_candidate(
                prepared.graph,
                prepared.space,
                found.candidate,
                prepared.passes,
                values_only(found.weights),
            )
            result = to_model(applied.graph, prepared.normalised, applied.provenance)
            scores = {
                name: score(base[name], logits(result, view), labels[1::2])
                for name, view in views.items()
            }
            saving = 1 - found.trial.cycles / search.baseline.cycles
            points.append(
                {
                    "goal": goal,
                    "saving": saving,
                    "cycles": found.trial.cycles,
                    "seconds": fitted_s,
                    "held_out_divergence": found.divergence.value,
                    "held_out_agreement": found.divergence.agrees,
                    "sum_of_single_divergences": found.proxy,
                    "scores": scores,
                    "candidate": str(found.candidate),
                }
            )
            text = "  ".join(
                f"{n} {s['top1']:.1f} ({-s['drop']:+.1f} +- {s['drop_standard_error']:.1f})"
                for n, s in scores.items()
            )
            divergence = scores["standard"]["divergence"]
            print(f"{-saving:+.1%}  {text}  KL {divergence:.3f}  {fitted_s:.0f} s", flush=True)
    report = {
        "target": args.target,
        "original_cycles": search.baseline.cycles,
        "original_top1": {
            n: 100 * float((base[n].argmax(1) == labels[1::2]).mean()) for n in views
        },
        "seconds_until_every_choice_was_judged": alone_s,
        "seconds": time.monotonic() - start,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "points": points,
    }
    print({k: v for k, v in report.items() if k != "points"})
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
