"""An inverted bottleneck seen as one block, all three of its layers trained on sampled windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.channel_fit import KEPT, Reader
from onnxnas.coupling import Group
from onnxnas.gradient_fit import Block, Windows, activation, refit_last, train
from onnxnas.graph import values_of
from onnxnas.ops import Conv, conv, sole_consumer
from onnxnas.pass_contract import Tick, no_tick
from onnxnas.pointwise import pointwise_after
from onnxnas.samples import Part, Samples, Sampling, Window
from onnxnas.squeeze_excite import SqueezeExcite, squeeze_excite

LONGER = 2
"""Times the steps, and the samples they are made on, where PyTorch makes them."""

_RATE = 0.03


@dataclass(frozen=True)
class IbnBlock:
    """The layers of a block: expand, activation, depthwise, activation, project.

    Attributes:
        first, second: nodes of the activations.
        deep: what the second activation gives.
        gate: squeeze-excite between that and `project`, or None.
    """

    expand: Conv
    first: tuple[Any, ...]
    depthwise: Conv
    second: tuple[Any, ...]
    project: Conv
    deep: Any
    gate: SqueezeExcite | None

    @property
    def size(self) -> int:
        """Multiply-accumulates of its first two layers for one output position."""
        cells = self.depthwise.kernel[0] * self.depthwise.kernel[1]
        return cells * self.expand.in_channels * self.expand.out_channels

    @property
    def window(self) -> Window:
        """What one output position sees of the block's input."""
        d = self.depthwise
        return Window(self.expand.x.name, d.kernel, d.strides, d.dilations, d.pads)

    def fits(self, samples: Samples) -> bool:
        """Whether the block's input still has all its channels."""
        cells = self.depthwise.kernel[0] * self.depthwise.kernel[1]
        return bool(samples.fit.x.shape[1] == cells * self.expand.in_channels)

    def sampling(self, reader: Reader, most: int) -> Sampling:
        """Windows of the block's input, and what it is to answer."""
        plain = reader.samplings[0]
        return Sampling((self.window,), plain.target, plain.minus, patches=True, most=most)


def ibn_block(graph: Any, group: Group) -> IbnBlock | str:
    """The block whose hidden channels are a group, or why it is not of that form."""
    expand = conv(group.producers[0].node)
    if isinstance(expand, str):
        return f"its first layer {expand}"
    if not expand.pointwise:
        return "its first layer is no 1x1 conv"
    first, end = pointwise_after(expand.y, graph)
    node = sole_consumer(end, graph)
    depthwise = conv(node) if node is not None else "is read by several"
    if isinstance(depthwise, str):
        return f"its second layer {depthwise}"
    if not depthwise.depthwise or depthwise.out_channels != depthwise.group:
        return "its second layer is no plain depthwise conv"
    second, deep = pointwise_after(depthwise.y, graph)
    gate, end = None, deep
    if len(deep.outputs) > 1:
        gated = squeeze_excite(deep, graph)
        if isinstance(gated, str):
            return f"{deep.name!r} {gated}"
        gate, end = gated, pointwise_after(gated.product.outputs[0], graph)[1]
    node = sole_consumer(end, graph)
    project = conv(node) if node is not None else "is read by several"
    if isinstance(project, str):
        return f"its last layer {project}"
    if not project.pointwise:
        return "its last layer is no 1x1 conv"
    own = {id(expand.node), id(project.node), *(id(n) for n in (gate.nodes if gate else ()))}
    if any(id(use.node) not in own for use in (*group.producers, *group.consumers)):
        return "other layers than one expand and one project use its hidden channels"
    return IbnBlock(expand, first, depthwise, second, project, deep, gate)


def train_block(
    block: IbnBlock,
    values: dict[str, NDArray[Any]],
    samples: Samples,
    *,
    steps: int,
    seed: int = 0,
    device: str = "",
    tick: Tick = no_tick,
) -> tuple[dict[str, NDArray[Any]], float]:
    """Gradient steps from where least squares, or earlier steps, left a narrowed block.

    Args:
        block: the original.
        values: as `channel_fit.fit_widths` or this function gives them.
        samples: of `block.sampling`.
        device: of PyTorch, which then makes the steps; empty for numpy.

    Returns:
        Values for all three layers, and the error on the rows to tune by; the start where no step
        improved on it.
    """
    kept, project = values[KEPT], block.project.y.name

    def now(layer: Conv, index: int) -> NDArray[Any]:
        found = values.get(f"{layer.y.name}:{index}")
        if found is None and index == 2 and layer.bias is None:
            return np.zeros(len(kept), np.float32)
        old = layer.weight if index == 1 else layer.bias
        return values_of(old)[kept] if found is None else found

    depthwise = now(block.depthwise, 1)
    student = Block(
        [
            np.array(now(block.expand, 1)[:, :, 0, 0].T, np.float32),
            np.array(now(block.expand, 2), np.float32),
            np.array(depthwise.reshape(len(kept), -1).T, np.float32),
            np.array(now(block.depthwise, 2), np.float32),
            np.array(values[f"{project}:1"][:, :, 0, 0].T, np.float32),
            np.array(values[f"{project}:2"], np.float32),
        ],
        activation(block.first, kept),
        activation(block.second, kept),
    )
    fit, tune = windows_of(samples.fit, block), windows_of(samples.tune, block)
    refit_last(student, fit, tune)
    error = train(student, fit, tune, steps=steps, rate=_RATE, seed=seed, device=device, tick=tick)
    refit_last(student, fit, tune, whole=True)
    w = [np.ascontiguousarray(v) for v in student.weights]
    return {
        KEPT: kept,
        f"{block.expand.y.name}:1": w[0].T[:, :, None, None],
        f"{block.expand.y.name}:2": w[1],
        f"{block.depthwise.y.name}:1": w[2].T.reshape(depthwise.shape),
        f"{block.depthwise.y.name}:2": w[3],
        f"{project}:1": w[4].T[:, :, None, None],
        f"{project}:2": w[5],
    }, error


def windows_of(part: Part, block: IbnBlock) -> Windows:
    """Samples of `block.sampling`, as gradient steps take them."""
    channels = block.expand.in_channels
    x = part.x.reshape(len(part.x), channels, -1).transpose(0, 2, 1)
    inside = part.inside.reshape(len(part.x), -1).astype(np.float32)
    return Windows(np.ascontiguousarray(x), inside, part.y)
