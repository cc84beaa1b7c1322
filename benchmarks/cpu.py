"""How well cpu-ort and cpu-ort-int8 predict what onnxruntime takes on this processor.

    python benchmarks/cpu.py --models ../shared/evalset/models/*.onnx

Times every network several times over, minutes apart, which gives the spread of the truth itself,
and compares the fastest with the prediction, beside the MACs-only and roofline baselines. The
networks are the given files, random ones of families that were held out of training, and random
ones of the families trained on, of numbers that were not. Nothing else should run on the core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.cost import Cost
from onnxnas.graph import from_model, static_view
from onnxnas.hwmodels import qualification
from onnxnas.hwmodels.accuracy import accuracy
from onnxnas.hwmodels.catboost_model import CatBoostCostModel
from onnxnas.hwmodels.ort_cpu import OnnxruntimeCostModel, Protocol
from onnxnas.hwmodels.sampling import sample_network, training_plan
from onnxnas.kernels import split_kernels
from onnxnas.loading import load_model, parse_input_shapes
from onnxnas.normalise import normalise
from onnxnas.plugins import load_target

UNSEEN = 50_000
"""Number of the first network of a family that was trained on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cpu-ort", choices=("cpu-ort", "cpu-ort-int8"))
    parser.add_argument("--card", type=Path, help="of a model of your own; default: as shipped")
    parser.add_argument("--models", nargs="*", type=Path, default=[])
    parser.add_argument("--input-shape", action="append", default=[], help="x:1,3,48,192")
    parser.add_argument("--sampled", type=int, default=28, help="networks of each kind")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each network")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--core", type=int, default=-1)
    parser.add_argument("--times", type=Path, help="where to keep the seconds, as JSON")
    options = parser.parse_args()
    model = load_target(str(options.card or options.target))
    assert isinstance(model, CatBoostCostModel)
    for caveat in model.caveats():
        print(caveat)
    networks = _networks(options)
    backend = OnnxruntimeCostModel(
        options.target.endswith("int8"), Protocol(options.rounds, core=options.core)
    )
    views = [view for _, _, view in networks]
    seconds = np.array(
        [[c.seconds for c in backend.cost_many(views)] for _ in range(options.repeats)]
    )
    if options.times:
        names = [name for _, name, _ in networks]
        kept = dict(zip(names, seconds.T.tolist(), strict=True))
        options.times.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    report([kind for kind, _, _ in networks], seconds, model.cost_many(views), views, model)


def report(
    kinds: list[str],
    seconds: NDArray[np.float64],
    costs: list[Cost],
    views: list[Any],
    model: CatBoostCostModel,
) -> None:
    """Print the table.

    Args:
        kinds: of each network.
        seconds: measured, [repeats, networks].
        costs: predicted.
        views: the networks.
        model: that predicted.
    """
    truth = seconds.min(axis=0)
    spread = (seconds.max(axis=0) - truth) / truth
    print(
        f"{model.target.config['processor']}, onnxruntime {model.target.config['onnxruntime']}: "
        f"{len(seconds)} measurements of a network span {np.median(spread):.1%} (median), "
        f"{np.quantile(spread, 0.9):.1%} (nine in ten)"
    )
    split = [split_kernels(view) for view in views]
    macs = np.array([float(sum(k.macs for k in kernels)) for kernels in split])
    roofline = np.array([qualification.roofline(kernels, model.target) for kernels in split])
    guesses = {
        "cost model": np.array([c.seconds for c in costs]),
        "MACs only": macs * np.median(truth / macs),
        "roofline": roofline * np.median(truth / roofline),
    }
    print("| networks | method | MAPE | median | worst | within 10 % | Kendall tau |")
    print("|---|---|---|---|---|---|---|")
    of = np.array(kinds)
    for kind in ["all", *dict.fromkeys(kinds)]:
        rows = (of == kind) | (kind == "all")
        for method, guess in guesses.items():
            a = accuracy(truth[rows], guess[rows])
            middle = np.median(np.abs(guess[rows] / truth[rows] - 1))
            print(
                f"| {kind} ({a.count}) | {method} | {a.mape:.1%} | {middle:.1%} | {a.worst:.0%} | "
                f"{a.within_10:.0%} | {a.kendall:.3f} |"
            )


def _networks(options: argparse.Namespace) -> list[tuple[str, str, Any]]:
    """Kind, name and static view of each."""
    found = []
    for path in options.models:
        model = load_model(path)
        shapes = parse_input_shapes(options.input_shape, model)
        graph = from_model(normalise(model, shapes).model)
        found.append(("files", path.stem, static_view(graph, shapes)))
    for subject in qualification.held_out(options.sampled):
        found.append(("held-out families", subject.name, static_view(subject.make(), {})))
    for family, number in training_plan(options.sampled, UNSEEN):
        view = static_view(sample_network(family, number), {})
        found.append(("trained families", f"{family}-{number}", view))
    return found


if __name__ == "__main__":
    main()
