"""The article's three cases on the sample models: what the tool makes of them, on data no step saw.

    python benchmarks/article.py --target ethos-u65-512

A detector, a classifier and a segmenter by changed widths alone, by fused inverted bottlenecks
alone, by both, and by everything; the classifier made smaller too. Weights are fitted on 500
unlabelled pictures; 1,000 labelled ones of the same split bind `--max-drop`; the metric is
reported on the test split, which nothing before has seen. Every run is one `onnxnas optimize`
whose command is printed.
Latency and memory are estimates of the target's compiler, metrics are measured.

The article: "Optimizing neural networks for special-purpose hardware", Amazon Science, 2023. Its
networks were searched and trained anew; these are files whose weights are carried over and fitted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "sample_models"
FITTED, BINDING = 500, 1000
METRICS = {"presence_detector": "map", "camera_classifier": "top1", "room_segmenter": "miou"}
ALL: tuple[str, ...] = ()
WIDTHS = ("--passes", "resize-ibn,scale-width")
FUSED = ("--passes", "fuse-ibn")
BOTH = ("--passes", "resize-ibn,scale-width,fuse-ibn")
CASES: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("presence_detector", "widths alone", WIDTHS, "latency -14 %"),
    ("presence_detector", "fused blocks alone", FUSED, "latency -35 %"),
    ("presence_detector", "widths and fused blocks", BOTH, "latency -53 %"),
    ("presence_detector", "everything", ALL, "latency -53 %"),
    ("camera_classifier", "widths alone", WIDTHS, ""),
    ("camera_classifier", "fused blocks alone", FUSED, ""),
    ("camera_classifier", "widths and fused blocks", BOTH, ""),
    ("camera_classifier", "everything", ALL, ""),
    (
        "camera_classifier",
        "smallest",
        ("--objective", "weights", "--max-peak-memory", "-45%"),
        "parameters and peak activations -47 %",
    ),
    ("room_segmenter", "widths alone", WIDTHS, ""),
    ("room_segmenter", "fused blocks alone", FUSED, ""),
    ("room_segmenter", "widths and fused blocks", BOTH, ""),
    ("room_segmenter", "everything", ALL, "five networks, latency -27 to -51 %"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", default="ethos-u65-512")
    parser.add_argument("--max-drop", default="1%")
    parser.add_argument("--budget", default="10m", help="of each run")
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--cases", nargs="*", default=sorted({case for _, case, *_ in CASES}))
    parser.add_argument("--models", nargs="*", default=sorted(METRICS))
    parser.add_argument("--folder", type=Path, help="keeps everything; default: nowhere")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print(
            "| model | case | latency | peak memory | weights | metric, test | drop | the article |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for model, case, options, claim in CASES:
            if model in args.models and case in args.cases:
                print(_row(folder, model, case, options, claim, args), flush=True)


def _row(
    folder: Path, model: str, case: str, options: tuple[str, ...], claim: str, args: Any
) -> str:
    data = folder / f"{model}.calibration.npz"
    binding, test = folder / f"{model}.binding.npz", folder / f"{model}.test.npz"
    if not test.exists():
        _render(model, data, binding, test)
    metric = METRICS[model]
    name = f"{model}-{args.target}-{case.replace(' ', '-')}"
    begin = time.monotonic()
    report = _onnxnas(
        "optimize", str(SAMPLES / f"{model}.onnx"), "-t", args.target, "-o",
        str(folder / f"{name}.onnx"), "--calibration", str(data), "--evaluate",
        f"{metric}={binding}", "--max-drop", args.max_drop, "--budget", args.budget,
        "--effort", args.effort, *options,
    )  # fmt: skip
    seconds = time.monotonic() - begin
    before, after = report["original"]["metrics"], report["result"]["metrics"]
    peak = max((n for n in before if n.startswith("peak_memory")), key=lambda n: before[n]["value"])
    measured = [
        _onnxnas("evaluate", path, "--evaluate", f"{metric}={test}")[0]
        for path in (str(SAMPLES / f"{model}.onnx"), str(folder / f"{name}.onnx"))
    ]
    changes = [_change(before, after, key) for key in ("latency", peak, "encoded_weights")]
    first, second = (m["value"] for m in measured)
    low, high = measured[1].get("interval", (float("nan"), float("nan")))
    print(f"{case}: {seconds:.0f} s, {report['recipe'] or 'unchanged'}", file=sys.stderr)
    return (
        f"| {model} | {case} | {' | '.join(changes)} | {second:.3f} ({low:.3f} to {high:.3f}), "
        f"{measured[1]['rows']} rows | {100 * (first - second):+.1f} points | {claim} |"
    )


def _render(model: str, data: Path, binding: Path, test: Path) -> None:
    sys.path.insert(0, str(SAMPLES))
    datasets = importlib.import_module("datasets")

    rows = getattr(datasets, model)("calibration", FITTED + BINDING)
    np.savez_compressed(data, image=rows["image"][:FITTED])
    np.savez_compressed(binding, **{n: v[FITTED:] for n, v in rows.items()})
    np.savez_compressed(test, **getattr(datasets, model)("test"))


def _onnxnas(*arguments: str) -> Any:
    command = [sys.executable, "-m", "onnxnas", *arguments, "--json", "-"]
    print("onnxnas " + shlex.join(command[3:]), file=sys.stderr, flush=True)
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if run.returncode:
        sys.exit(f"exit {run.returncode}: {run.stderr.strip().splitlines()[-1:]}")
    return json.loads(run.stdout)


def _change(before: dict[str, Any], after: dict[str, Any], key: str) -> str:
    if "value" not in before.get(key, {}) or "value" not in after.get(key, {}):
        return "not known"
    return f"{100 * (after[key]['value'] / before[key]['value'] - 1):+.1f} %"


if __name__ == "__main__":
    main()
