"""What a whole search finds for MobileNetV2, and how long each phase of it takes.

    python benchmarks/effort.py --target ethos-u85-2048

One `onnxnas optimize` on 250 unlabelled pictures; its result and the named candidates of its front
are scored on 250 others as in `recovery.py`, whose curve is what to compare with. Needs the
evaluation set beside the repository. Latency is the estimate of the target's compiler.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from evalset_cases import evaluation, mobilenetv2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", default="ethos-u85-2048")
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--max-drop", default="8%", help="of agreement with the original")
    parser.add_argument("--folder", type=Path, help="keeps everything; default: nowhere")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        _run(args, args.folder or Path(scratch))


def _run(args: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    case = mobilenetv2(evaluation())
    rows, result = folder / "rows.npy", folder / f"mobilenetv2-{args.target}.onnx"
    np.save(rows, case.rows)
    command = [
        sys.executable, "-m", "onnxnas", "optimize", str(case.model), "-t", args.target, "-o",
        str(result), "--calibration", str(rows), "--max-drop", args.max_drop, "--effort",
        args.effort, "--export-front", "--json", "-",
    ]  # fmt: skip
    begin = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.monotonic() - begin
    if run.returncode:
        sys.exit(f"exit {run.returncode}: {run.stderr.strip().splitlines()[-1:]}")
    report = json.loads(run.stdout)
    print("| phase | wall, s | processor, s | networks |\n|---|---|---|---|")
    for p in report["search"]["phases"]:
        figures = f"{p['seconds']:.0f} | {p['cpu_seconds']:.0f} | {p['evaluations']}"
        print(f"| {p['phase']} | {figures} |")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent, most = used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20
    print(f"| everything, files read and written | {wall:.0f} | {spent:.0f} | |\n")
    print(f"Largest process: {most:.2f} GiB.\n")
    base, _ = case.score(onnx.load(case.model), None)
    print("| candidate | latency | as they are | mirrored | mean of both | agreement, held out |")
    print("|---|---|---|---|---|---|")
    first = report["front"][0]["metrics"]["latency"]["value"]
    for point in report["front"][1:]:
        path = folder / f"{result.stem}.run" / "candidates" / f"{point['label']}.onnx"
        path = result if point["chosen"] else path
        if path.exists():
            _, scores = case.score(onnx.load(path), base)
            drops = [
                f"{-scores[view]['drop']:+.1f} +- {scores[view]['drop_standard_error']:.1f}"
                for view in ("as they are", "mirrored", "mean of both")
            ]
            change = point["metrics"]["latency"]["value"] / first - 1
            agreement = 100 * (1 - point["losses"][0]["value"]) if point["losses"] else 100
            name = f"{point['label']} (chosen)".strip() if point["chosen"] else point["label"]
            print(f"| {name} | {100 * change:+.1f} % | {' | '.join(drops)} | {agreement:.0f} % |")


if __name__ == "__main__":
    main()
