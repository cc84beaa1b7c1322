"""Which channel counts suit a target: read off its cost curve, not typed by an expert."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.cost import CostModel

_WIDEST = 96
_MULTIPLES = (2, 4, 8, 16, 32)
_STEP = 0.5
"""A width is a step where passing it costs this part of a whole multiple at once."""
_SIZES = (7, 14, 28)
"""Images whose curves are averaged: a step that pays at one size only is no advice."""


def cost_curve(model: CostModel, size: int, widths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cycles of a 3x3 convolution from 64 channels to each width, inside a small network.

    Args:
        model: of the target.
        size: rows and columns of the image.
        widths: channel counts.
    """
    graphs = [_network(size, int(width)) for width in widths]
    costs = model.cost_many(graphs)
    return np.array(
        [sum(k.cycles or 0.0 for k in c.kernels if "probe" in k.tensors) for c in costs]
    )


def channel_steps(model: CostModel) -> tuple[int, ...]:
    """Channel counts worth aligning to, ascending; empty if the curve has no steps.

    A multiple m is one if the cost of the channels from one multiple to the next comes mostly
    at once, with the first channel past it.
    """
    widths = np.arange(1, _WIDEST + 2)
    jumps = np.zeros(len(widths) - 1)
    for size in _SIZES:
        curve = cost_curve(model, size, widths)
        jumps += np.diff(curve) / curve[-1]
    jumps /= len(_SIZES)
    found = []
    for multiple in _MULTIPLES:
        places = np.arange(multiple, _WIDEST, multiple)
        # jumps[w - 1] is the price of channel w + 1.
        past = np.array([jumps[p - 1] for p in places])
        whole = np.array([jumps[p - 1 : p - 1 + multiple].sum() for p in places[:-1]])
        rest = whole - past[:-1]
        odd = np.array([p for p in places[:-1] if p % (2 * multiple)])
        own = np.array([jumps[p - 1] for p in odd])
        if own.mean() > _STEP * whole.mean() and own.mean() > 2 * rest.mean() / (multiple - 1):
            found.append(multiple)
    return tuple(found)


def _network(size: int, width: int) -> Any:
    """Conv 16 -> 64, the probe 64 -> width, conv width -> 16; typical random weights."""
    rng = np.random.default_rng(width)
    x = gs.Variable("x", np.dtype(np.float32), [1, 16, size, size])
    nodes, before, channels = [], x, 16
    for name, wide, window in (("first", 64, 1), ("probe", width, 3), ("last", 16, 1)):
        values = rng.standard_normal((wide, channels, window, window)).astype(np.float32)
        weight = gs.Constant(f"{name}/weight", values)
        y = gs.Variable(name, np.dtype(np.float32), [1, wide, size, size])
        attrs = {"kernel_shape": [window] * 2, "pads": [window // 2] * 4, "strides": [1, 1]}
        nodes.append(gs.Node("Conv", name, attrs, [before, weight], [y]))
        before, channels = y, wide
    return gs.Graph(nodes, [x], [before], name=f"probe-{width}", opset=17)
