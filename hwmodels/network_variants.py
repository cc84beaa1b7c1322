"""A network with other widths: what training data near to a user's own model is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxnas.channels import resize_group
from onnxnas.coupling import Coupling
from onnxnas.graph import LazyWeight, infer_shapes
from onnxnas.rewriter import Rewriter

_CHANGED = 0.6
"""Share of the channel groups that get another width."""
_STEPS = (4, 8, 16, 32)


def varied(graph: Any, rng: np.random.Generator) -> Any:
    """A copy in which most channel groups have another width; channels are drawn from the old ones.

    Args:
        graph: `gs.Graph` with static shapes; is not changed.
        rng: all chance comes from it.
    """
    result = graph.copy()
    rw = Rewriter(result, "variant", {})
    names = [g.name for g in Coupling.of(result).groups if g.name and not g.pins and g.size > 1]
    for name in names:
        if rng.random() > _CHANGED:
            continue
        group = Coupling.of(result).group(name)
        if group is None or group.pins:
            continue
        width = _width(group.size, rng)
        chosen = rng.integers(group.size, size=width) if width > group.size else None
        if chosen is None:
            chosen = rng.permutation(group.size)[:width]
        resize_group(rw, group, sorted(int(c) for c in chosen))
    result.cleanup().toposort()
    for tensor in result.tensors().values():
        # The values are the point here: compilers and weight statistics both look at them.
        if isinstance(tensor, gs.Constant) and isinstance(tensor._values, LazyWeight):
            tensor.values = np.array(tensor._values.load())
    infer_shapes(result)
    return result


def _width(size: int, rng: np.random.Generator) -> int:
    """Half to half as much again: a multiple of some step, or one beside it."""
    step = int(rng.choice(_STEPS))
    near = max(1, round(size * float(rng.uniform(0.5, 1.5)) / step)) * step
    return max(2, near + int(rng.choice([-1, 0, 0, 0, 1])))
