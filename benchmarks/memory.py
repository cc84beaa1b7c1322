"""Predicted peak memory and encoded weights against the compiler's own figures.

    python benchmarks/memory.py [--networks 30] [--targets ethos-u55-128,...]

Networks: the real ones of `../shared/evalset` where they are, and sampled ones. Errors are those
of the predicted peak relative to Vela's, per memory that holds activations: the SRAM where it is
shared; where it is dedicated, the SRAM that serves as a cache and the DRAM behind it. `busiest` is
the larger of them, `Cost.peak_activation_bytes`.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnxnas.graph import static_view
from onnxnas.hwmodels.ethos_u import card
from onnxnas.hwmodels.peak_memory import peaks, weight_bytes
from onnxnas.hwmodels.sampling import HELD_OUT_FAMILIES, TRAINING_FAMILIES, sample_network
from onnxnas.hwmodels.vela import VelaCostModel
from onnxnas.hwmodels.vela_compiler import default_cache_dir
from onnxnas.kernels import split_kernels
from onnxnas.prepare import prepare

EVALSET = Path(__file__).parents[1].parent / "shared/evalset/models"
SHAPES = {"ppocrv2_cls_shipped": {"x": (1, 3, 48, 192)}}
TARGETS = (
    "ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u65-512", "ethos-u85-512",
    "ethos-u85-2048",
)  # fmt: skip


def networks(sampled: int, first: int) -> Iterator[tuple[str, str, Any]]:
    """Group, name and static view of every network."""
    for path in sorted(EVALSET.glob("*.onnx")):
        prepared = prepare(path, TARGETS[0], passes=[], input_shapes=SHAPES.get(path.stem))
        yield "real", path.stem, static_view(prepared.graph, prepared.input_shapes)
    families = list(dict.fromkeys((*TRAINING_FAMILIES, *HELD_OUT_FAMILIES)))
    for n in range(sampled):
        family = families[n % len(families)]
        view = static_view(sample_network(family, first + n), {})
        yield "sampled", f"{family}-{first + n}", view


def main() -> None:
    """Print one line per target, group and memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", type=int, default=30, help="sampled networks")
    parser.add_argument("--first", type=int, default=600_000, help="number of the first one")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--worst", action="store_true", help="also print errors over 10 %%")
    args = parser.parse_args()
    errors: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    seconds: list[float] = []
    targets = args.targets.split(",")
    compilers = {name: VelaCostModel(card(name), default_cache_dir()) for name in targets}
    for group, name, view in networks(args.networks, args.first):
        kernels = split_kernels(view)
        for target in targets:
            truth = compilers[target].cost(view)
            start = time.perf_counter()
            found = {m: p.size for m, p in peaks(card(target), view, kernels).items()}
            seconds.append(time.perf_counter() - start)
            for memory, size in truth.peak_bytes.items():
                errors[target, group, memory].append(found.get(memory, 0) / size - 1)
                if args.worst and abs(errors[target, group, memory][-1]) > 0.1:
                    print(f"# {name} {target} {memory}: {found.get(memory)} for {size}")
            busiest = max(found.values()) / truth.peak_activation_bytes - 1
            errors[target, group, "busiest"].append(busiest)
            if truth.weight_bytes:
                predicted = weight_bytes(card(target), kernels)
                errors[target, group, "weights"].append(predicted / truth.weight_bytes - 1)
    print(f"{'target':15s} {'networks':9s} {'figure':9s} {'n':>3s} {'MAPE %':>8s} "
          f"{'median %':>9s} {'within 3 %':>10s}")  # fmt: skip
    for (target, group, figure), found_errors in sorted(errors.items()):
        e = 100 * np.abs(np.array(found_errors))
        print(f"{target:15s} {group:9s} {figure:9s} {len(e):3d} {e.mean():8.2f} "
              f"{np.median(e):9.2f} {100 * (e <= 3).mean():9.0f} %")  # fmt: skip
    print(f"{1000 * float(np.mean(seconds)):.1f} ms per prediction")


if __name__ == "__main__":
    main()
