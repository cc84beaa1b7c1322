"""Do zero-shot scores rank the candidates of a model? Against their real damage, at fixed latency.

    python sample_models/datasets.py camera_classifier calibration 200 calibration.npz
    python benchmarks/zero_shot.py sample_models/camera_classifier.onnx calibration.npz

Every choice that saves time on the target is fitted once; random combinations of them are put
together and judged on held-out rows (divergence of the outputs). Each is scored from its structure
alone, and the scores' rank correlations with the damage, latency held fixed, stand beside those of
the baselines: multiply-accumulates, parameters, and the sum of the single choices' divergences,
which is what the search goes by (and needs the fits).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from onnxnas.calibration import load_calibration
from onnxnas.fitting import recovery_search
from onnxnas.forks import default_workers
from onnxnas.graph import contract
from onnxnas.materialize import apply_candidate
from onnxnas.prepare import prepare
from onnxnas.proxies import SUM, assess, zero_shot
from onnxnas.rewriter import SiteGone
from onnxnas.screening import Screen
from onnxnas.sites import Candidate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--target", default="ethos-u55-128")
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", type=Path, help="keeps what was fitted; default: nowhere")
    args = parser.parse_args()
    start = time.monotonic()

    def said(what: str, done: int, total: int) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {what} {done}/{total}", file=sys.stderr)

    prepared = prepare(args.model, args.target)
    calibration = load_calibration(args.calibration, contract(prepared.source)[0])
    search = recovery_search(prepared, calibration, args.library, 0, said)
    search.recovery.workers = default_workers()
    search.screen = Screen.of(prepared.cost_model)
    search.judge_alone()
    rng = np.random.default_rng(args.seed)
    scores: list[dict[str, float]] = []
    cycles: list[float] = []
    damage: list[float] = []
    seconds: list[float] = []
    moves = sorted(search.singles)
    while moves and len(scores) < args.candidates:
        candidate = Candidate()
        for i in rng.permutation(len(moves))[: rng.integers(1, max(2, len(moves) // 3))]:
            site, label = moves[i]
            taken = site in dict(candidate.decisions)
            if not taken and not search.space.conflicts(search.space.site(site), candidate):
                candidate = candidate.with_choice(site, label)
        weights = {m: search.singles[m].fitted.values for m in candidate.decisions}
        try:
            applied = apply_candidate(
                prepared.graph, prepared.space, candidate, prepared.passes, weights
            )
        except SiteGone:
            continue
        view = applied.view(prepared.input_shapes)
        known = sum(search.singles[m].divergence.value for m in candidate.decisions)
        begin = time.process_time()
        scores.append({**zero_shot(view, args.seed), SUM: -known})
        seconds.append(time.process_time() - begin)
        cycles.append(prepared.cost_model.cost(view).cycles)
        damage.append(search.held_out.divergence(applied).value)
        said("candidates", len(scores), args.candidates)
    saved = 1 - np.array(cycles) / search.baseline.cycles
    print(
        f"{args.model.stem}, {args.target}: {len(scores)} candidates, {saved.min():.1%} to "
        f"{saved.max():.1%} faster (estimate); scores of one take {np.mean(seconds):.1f} s of "
        "processor time.\n"
    )
    print("| score | rank correlation with less damage, latency held fixed | use |\n|---|---|---|")
    for rank in assess(scores, cycles, damage):
        print(f"| {rank.score} | {rank.correlation:+.2f} | {rank.reason or 'yes'} |")
    print()


if __name__ == "__main__":
    main()
