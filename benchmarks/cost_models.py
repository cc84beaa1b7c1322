"""How well the shipped cost models predict: the table of the cards, and what a prediction costs.

    python benchmarks/cost_models.py --models ../shared/evalset/models/*.onnx

For each target: whole-network error and rank correlation on the given files and on random networks
of the families that were held out of training, beside the MACs-only and roofline baselines; the
error of the predicted peak memory; what kinds of kernels the error comes from; then the time of a
prediction and of a compile.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from onnxnas.cost import CostModel
from onnxnas.errors import OnnxnasError
from onnxnas.graph import from_model, static_view
from onnxnas.hwmodels import catboost_model, qualification
from onnxnas.hwmodels.qualification import FLOPS, PREDICTED, ROOFLINE, Subject
from onnxnas.loading import load_model, parse_input_shapes
from onnxnas.normalise import normalise
from onnxnas.plugins import load_target

TARGETS = (
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-512",
    "ethos-u85-2048",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", type=Path, default=[])
    parser.add_argument("--input-shape", action="append", default=[], help="x:1,3,48,192")
    parser.add_argument("--sampled", type=int, default=24, help="networks of held-out families")
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--regions", type=int, default=0, help="kinds of kernels to list")
    options = parser.parse_args()
    subjects = [_subject(path, options.input_shape) for path in options.models]
    subjects += qualification.held_out(options.sampled)
    cards = Path(catboost_model.__file__).parent
    print("| target | networks | method | MAPE | worst | within 10 % | Kendall tau |")
    print("|---|---|---|---|---|---|---|")
    for name in options.targets:
        model = catboost_model.load(cards / f"{name}.json")
        result = qualification.qualify(model, load_target(name), subjects)
        for method in (PREDICTED, FLOPS, ROOFLINE):
            for family, a in result.errors[method].items():
                print(
                    f"| {name} | {family} ({a.count}) | {method} | {a.mape:.2%} | {a.worst:.1%} | "
                    f"{a.within_10:.0%} | {a.kendall:.3f} |"
                )
        inside = sum(row.inside for row in result.rows) / max(1, len(result.rows))
        print(f"| {name} | truth inside the 90 % interval | | {inside:.0%} | | | |", flush=True)
        peaks = _peak_errors(model, load_target(name), subjects)
        within = np.mean([e <= 0.10 for e in peaks]) if peaks else 0.0
        print(
            f"| {name} | peak memory ({len(peaks)}) | {PREDICTED} | {np.mean(peaks):.2%} | "
            f"{max(peaks, default=0.0):.1%} | {within:.0%} | |",
            flush=True,
        )
        for region in result.regions[: options.regions]:
            print(f"    {region.share:.2%} {region.op}: {region.example}")
        for failed, reason in result.failed:
            print(f"not compared on {name}: {failed}: {reason}")
    for path in options.models:
        _speed(_subject(path, options.input_shape), options.targets[0], cards)


def _peak_errors(model: CostModel, backend: CostModel, subjects: list[Subject]) -> list[float]:
    """Of the memory that activations need most of, relative to the compiler's figure."""
    errors = []
    for subject in subjects:
        view = static_view(subject.make(), subject.input_shapes)
        try:
            truth = backend.cost(view).peak_activation_bytes
        except OnnxnasError:
            continue  # `qualify` has named it already
        found = model.cost(view).peak_activation_bytes
        if truth and found is not None:
            errors.append(abs(found - truth) / truth)
    return errors


def _subject(path: Path, shapes: list[str]) -> Subject:
    model = load_model(path)
    names = {port.name for port in model.graph.input}
    given = parse_input_shapes([s for s in shapes if s.split(":")[0] in names], model)
    clean = normalise(model, given).model
    return Subject(path.stem, "files", lambda: from_model(clean), given)


def _speed(subject: Subject, target: str, cards: Path) -> None:
    view = static_view(subject.make(), subject.input_shapes)
    model = catboost_model.load(cards / f"{target}.json")
    model.cost(view)
    start = time.perf_counter()
    for _ in range(10):
        model._known.clear()
        model.cost(view)
    each = (time.perf_counter() - start) / 10
    backend = load_target(target)
    start = time.perf_counter()
    backend.cost(view)
    print(
        f"{subject.name} on {target}: predicted in {each * 1e3:.0f} ms, "
        f"{backend.target.backend} {time.perf_counter() - start:.2f} s (cached if compiled before)"
    )


if __name__ == "__main__":
    main()
