"""Time of a gradient step, by numpy and by PyTorch, on one core or on a GPU.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/steps.py [--device cuda]

Needs PyTorch. Blocks as MobileNetV2 has them, windows at random: a step costs what it costs
whatever the values are.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.gradient_fit import Activation, Block, FusedBlock, Windows, activation, train

CELLS = 9
BLOCKS = ((16, 96, 24), (24, 144, 24), (32, 192, 32))
"""Channels in, hidden and out."""
ROUNDS = 3
_RNG = np.random.default_rng(0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    print(f"| block | in, hidden, out | numpy, ms | PyTorch on {args.device}, ms | ratio |")
    print("|---|---|---:|---:|---:|")
    for kind in ("three layers", "fused"):
        for shape in BLOCKS:
            fit, tune = (_windows(n, shape) for n in (20_000, 100))
            spent: dict[str, list[float]] = {"": [], args.device: []}
            for _ in range(ROUNDS):  # in turn, so that both meet the same load
                for device, seconds in spent.items():
                    block = _block(kind, shape)
                    begin = time.perf_counter()
                    train(block, fit, tune, steps=args.steps, rate=0.01, seed=0, device=device)
                    seconds.append(1e3 * (time.perf_counter() - begin) / args.steps)
            numpy, torch = (min(s) for s in spent.values())
            sizes = ", ".join(map(str, shape))
            print(f"| {kind} | {sizes} | {numpy:.2f} | {torch:.2f} | {torch / numpy:.2f} |")


def _block(kind: str, shape: tuple[int, int, int]) -> Block | FusedBlock:
    c, hidden, out = shape
    act = _relu6(hidden)
    last = [_values(hidden, out), _values(out)]
    if kind == "fused":
        return FusedBlock([_values(CELLS * c, hidden), _values(hidden), *last], act)
    first = [_values(c, hidden), _values(hidden), _values(CELLS, hidden), _values(hidden)]
    return Block([*first, *last], act, act)


def _relu6(width: int) -> Activation:
    x, y = (gs.Variable(name, np.float32, [1, width, 1, 1]) for name in "xy")
    bounds = [gs.Constant(f"b{v}", np.array(v, np.float32)) for v in (0, 6)]
    return activation([gs.Node("Clip", inputs=[x, *bounds], outputs=[y])], np.arange(width))


def _values(*shape: int) -> NDArray[np.float32]:
    return _RNG.standard_normal(shape).astype(np.float32) * np.float32(0.1)


def _windows(count: int, shape: tuple[int, int, int]) -> Windows:
    inside = np.ones((count, CELLS), np.float32)
    return Windows(_values(count, CELLS, shape[0]), inside, _values(count, shape[2]))


if __name__ == "__main__":
    main()
