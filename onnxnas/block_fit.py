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
from onnxnas.samples import Part, Samples, Sampling, Window

_LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class IbnBlock:
    """The layers of a block: expand, activation, depthwise, activation, project.

    Attributes:
        first, second: nodes of the activations.
    """

    expand: Conv
    first: tuple[Any, ...]
    depthwise: Conv
    second: tuple[Any, ...]
    project: Conv

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
    if len(group.producers) > 2 or len(group.consumers) != 1:
        return "other layers than one expand and one project use its hidden channels"
    expand = conv(group.producers[0].node)
    if isinstance(expand, str):
        return f"its first layer {expand}"
    if not expand.pointwise or any(use.node is not expand.node for use in group.producers):
        return "its first layer is no 1x1 conv"
    first, node = _until_conv(expand.y, graph)
    depthwise = conv(node) if node is not None else "is read by several"
    if isinstance(depthwise, str):
        return f"its second layer {depthwise}"
    if not depthwise.depthwise or depthwise.out_channels != depthwise.group:
        return "its second layer is no plain depthwise conv"
    second, node = _until_conv(depthwise.y, graph)
    project = conv(node) if node is not None else "is read by several"
    if isinstance(project, str):
        return f"its last layer {project}"
    if not project.pointwise or project.node is not group.consumers[0].node:
        return "its last layer is no 1x1 conv"
    if expand.bias is None or depthwise.bias is None:
        return "a layer has no bias"
    every = np.arange(group.size)
    for nodes in (first, second):
        known = activation(nodes, every)
        if isinstance(known, str):
            return known
    return IbnBlock(expand, first, depthwise, second, project)


def _until_conv(tensor: Any, graph: Any) -> tuple[tuple[Any, ...], Any | None]:
    nodes: list[Any] = []
    while (node := sole_consumer(tensor, graph)) is not None and node.op != "Conv":
        nodes.append(node)
        tensor = node.outputs[0]
    return tuple(nodes), node


def train_block(
    block: IbnBlock,
    values: dict[str, NDArray[Any]],
    samples: Samples,
    *,
    steps: int,
    seed: int = 0,
    tick: Tick = no_tick,
) -> tuple[dict[str, NDArray[Any]], float]:
    """Gradient steps from where least squares, or earlier steps, left a narrowed block.

    Args:
        block: the original.
        values: as `channel_fit.fit_widths` or this function gives them.
        samples: of `block.sampling`.

    Returns:
        Values for all three layers, and the error on the rows to tune by; the start where no step
        improved on it.
    """
    kept, project = values[KEPT], block.project.y.name
    first, second = activation(block.first, kept), activation(block.second, kept)
    assert not isinstance(first, str)
    assert not isinstance(second, str)

    def now(layer: Conv, index: int) -> NDArray[Any]:
        old = values_of(layer.weight if index == 1 else layer.bias)[kept]
        return np.asarray(values.get(f"{layer.y.name}:{index}", old))

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
        first,
        second,
    )
    fit, tune = windows_of(samples.fit, block), windows_of(samples.tune, block)
    refit_last(student, fit, tune)
    error = train(student, fit, tune, steps=steps, rate=_LEARNING_RATE, seed=seed, tick=tick)
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
