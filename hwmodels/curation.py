"""Which channel counts suit a target: read off its cost curve, not typed by an expert."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.cost import CostModel

WIDEST = 96
_MULTIPLES = (4, 8, 16, 32)
_SMALL, _LARGE = 0.2, 0.4
"""Parts of what a whole multiple costs that are charged with the first channel past it. A
regression blurs steps and hints at some that are none, so the second needs more than the first."""
_SIZES = (7, 14, 28)
"""Images whose curves are averaged: a step that pays at one size only is no advice."""


@dataclass(frozen=True)
class ChannelCurve:
    """What a 3x3 convolution costs by its number of output channels.

    Attributes:
        widths: channel counts, from 1, without gaps.
        cost: of each, as a share of the widest's; averaged over images of several sizes.
    """

    widths: NDArray[np.int64]
    cost: NDArray[np.float64]

    @classmethod
    def of(cls, model: CostModel) -> ChannelCurve:
        """The curve of a target, by any of its cost models."""
        widths = np.arange(1, WIDEST + 2)
        curves = [cost_curve(model, size, widths) for size in _SIZES]
        return cls(widths, np.mean([curve / curve[-1] for curve in curves], axis=0))

    @property
    def steps(self) -> tuple[int, ...]:
        """Channel counts worth aligning to, ascending; empty if the curve has no steps.

        How much of a step a multiple is: what the first channel past it costs more than the
        first past a multiple of only half of it, as a share of what so many channels cost. The
        largest is a step unless it is small, and so is any other that is large.
        """
        jumps = np.diff(self.cost)  # jumps[w - 1]: what channel w + 1 costs more
        slope, before = jumps.mean(), max(0.0, jumps[1::4].mean())  # past 2, 6, 10...
        height: dict[int, float] = {}
        for multiple in _MULTIPLES:
            past = max(0.0, jumps[multiple - 1 :: 2 * multiple].mean())
            height[multiple] = float((past - before) / (multiple * slope))
            before = past
        highest = max(height.values())
        return tuple(m for m, h in height.items() if h > _LARGE or h == highest > _SMALL)


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


def write_steps(model: CostModel, card: Path) -> tuple[int, ...]:
    """Write the steps of a model's curve into a card, where it has any: passes round to them."""
    steps = ChannelCurve.of(model).steps
    if steps:
        fields = json.loads(card.read_text(encoding="utf-8"))
        fields["channel_multiples"] = list(steps)
        part = card.with_name(f".{card.name}.{os.getpid()}.part")
        part.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
        os.replace(part, card)
    return steps


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
