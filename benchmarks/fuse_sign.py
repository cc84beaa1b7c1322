"""Fuse a block or not: does the predicted change of a network's cycles have the right sign?

    python benchmarks/fuse_sign.py --model ../shared/evalset/models/mobilenetv2_224.onnx

Each inverted bottleneck of the network is fused in turn: one dense convolution, whose weights are
the product of both, takes the place of the expanding and the depthwise one. Both networks are
predicted and compiled, for every target. Counted are blocks whose compiled difference is over
half a percent of the network; the others are ties.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.graph import from_model, static_view
from onnxnas.hwmodels import catboost_model
from onnxnas.loading import load_model
from onnxnas.normalise import normalise
from onnxnas.plugins import load_target

TARGETS = (
    "ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u65-512", "ethos-u85-512",
    "ethos-u85-2048",
)  # fmt: skip
TIE = 0.005
"""Of the network's cycles."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--blocks", action="store_true", help="a line for every block, too")
    options = parser.parse_args()
    clean = normalise(load_model(options.model), {}).model
    names = [conv.outputs[0].name for conv in depthwise(from_model(clean))]
    views = [static_view(from_model(clean), {})]
    views += [static_view(fused(from_model(clean), name), {}) for name in names]
    cards = Path(catboost_model.__file__).parent
    print(
        "| target | blocks | compiled change over 0.5 % | sign predicted right | error of change |"
    )
    print("|---|---|---|---|---|")
    for target in options.targets:
        predicted = _cycles(catboost_model.load(cards / f"{target}.json"), views)
        compiled = _cycles(load_target(target), views)
        guess, truth = predicted[1:] / predicted[0] - 1, compiled[1:] / compiled[0] - 1
        clear = np.abs(truth) > TIE
        right = np.sign(guess[clear]) == np.sign(truth[clear])
        print(
            f"| {target} | {len(names)} | {clear.sum()} | {right.sum()} "
            f"({right.mean():.0%}) | {np.abs(guess - truth).mean():.2%} of the network |",
            flush=True,
        )
        if options.blocks:
            for name, a, b in zip(names, truth, guess, strict=True):
                print(f"    {name}: compiled {a:+.2%}, predicted {b:+.2%}")


def depthwise(graph: Any) -> Iterator[Any]:
    """Depthwise convolutions that read a pointwise one, through at most one activation."""
    for node in graph.nodes:
        if node.op == "Conv" and int(node.attrs.get("group", 1)) > 1 and _expand(node) is not None:
            yield node


def _expand(node: Any) -> Any | None:
    """The pointwise convolution before a depthwise one, None where there is none."""
    if node.inputs[1].shape[1] != 1:
        return None
    before = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    if before is not None and before.op in ("Clip", "Relu", "HardSwish", "LeakyRelu"):
        before = before.inputs[0].inputs[0] if before.inputs[0].inputs else None
    if before is None or before.op != "Conv" or tuple(before.inputs[1].shape[2:]) != (1, 1):
        return None
    wider = before.inputs[1].shape[0] > before.inputs[1].shape[1]
    return before if wider and int(before.attrs.get("group", 1)) == 1 else None


def fused(graph: Any, name: str) -> Any:
    """The network with the block of a depthwise convolution fused; the activation after it stays.

    Args:
        graph: `gs.Graph`; is changed.
        name: of the convolution's output.
    """
    node = graph.tensors()[name].inputs[0]
    expand = _expand(node)
    assert expand is not None
    wide, deep = expand.inputs[1].values[:, :, 0, 0], node.inputs[1].values[:, 0]
    weights = wide[:, :, None, None] * deep[:, None]
    node.inputs[0] = expand.inputs[0]
    node.inputs[1] = gs.Constant(f"{name}/fused", weights.astype(np.float32))
    node.attrs["group"] = 1
    return graph.cleanup().toposort()


def _cycles(model: Any, views: list[Any]) -> NDArray[np.float64]:
    return np.array([cost.cycles for cost in model.cost_many(views)], np.float64)


if __name__ == "__main__":
    main()
