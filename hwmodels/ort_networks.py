"""What the cost models of a processor are trained on: sampled networks, ends included.

An accelerator's compiler is given a network up to its raw outputs; onnxruntime runs all of it. So
some of the sampled networks get the tails that detectors and segmenters ship with: axes turned,
maps flattened and joined, classes cast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxnas.hwmodels import measuring
from onnxnas.hwmodels.sampling import sample_network

_SHARES = {"maps": 8, "detector-tail": 16, "maps-tail": 24}
"""Of each, one network in so many. Short ones that end in maps hold operators that others have
one of: resizing to full size, classes per pixel."""
_FIRST = 20_000


def networks(count: int, first: int = 0) -> list[measuring.Named]:
    """Name of each network to train on, and what makes its graph.

    Args:
        count: how many.
        first: number of the first.
    """
    extra: list[measuring.Named] = []
    for family, share in _SHARES.items():
        start = _FIRST + first // share
        extra += [_named(family, number) for number in range(start, start + count // share)]
    return [*measuring.sampled(count - len(extra), first), *extra]


def _named(family: str, number: int) -> measuring.Named:
    base, _, tail = family.partition("-")
    made: Callable[[], Any] = lambda: sample_network(base, number)  # noqa: E731
    return f"{family}-{number}", (lambda: with_tail(made(), number)) if tail else made


def with_tail(graph: Any, seed: int) -> Any:
    """A sampled network with what follows its raw outputs in shipped ones, in place.

    Maps of class numbers are cast; the others get their channels last and are flattened, and
    joined where their channels agree.

    Args:
        graph: `gs.Graph` with static shapes.
        seed: of what is chosen.
    """
    rng = np.random.default_rng([seed, len(graph.nodes)])
    rows: dict[int, list[Any]] = {}
    outputs = []
    for y in graph.outputs:
        if y.dtype == np.int64:
            kind = (np.float32, np.int32)[int(rng.integers(2))]
            number = {np.float32: 1, np.int32: 6}[kind]
            outputs.append(_add(graph, "Cast", [y], list(y.shape), {"to": number}, kind))
        elif len(y.shape) == 4:
            n, c, h, w = y.shape
            turned = _add(graph, "Transpose", [y], [n, h, w, c], {"perm": [0, 2, 3, 1]})
            each = int(rng.choice([d for d in (1, 2, 3, c) if c % d == 0]))
            shape = [n, h * w * each, c // each]
            sizes = gs.Constant(f"{turned.name}_shape", np.array(shape, np.int64))
            flat = _add(graph, "Reshape", [turned, sizes], shape)
            rows.setdefault(c // each, []).append(flat)
        else:
            outputs.append(y)
    for width, parts in rows.items():
        whole = parts[0]
        if len(parts) > 1:
            shape = [parts[0].shape[0], sum(p.shape[1] for p in parts), width]
            whole = _add(graph, "Concat", parts, shape, {"axis": 1})
        if rng.random() < 0.5:
            whole = _add(graph, "Sigmoid", [whole], list(whole.shape))
        outputs.append(whole)
    graph.outputs = outputs
    return graph


def _add(
    graph: Any,
    op: str,
    inputs: list[Any],
    shape: list[int],
    attributes: dict[str, Any] | None = None,
    dtype: Any = np.float32,
) -> Any:
    y = gs.Variable(f"tail_{op.lower()}_{len(graph.nodes)}", np.dtype(dtype), shape)
    graph.nodes.append(gs.Node(op, y.name, attributes or {}, inputs, [y]))
    return y
