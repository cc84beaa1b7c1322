"""Many channel groups narrowed together, and the layers between them re-fitted one after another.

A layer may read one group and write another; so its weights lose inputs and outputs at once. Each
layer is first fitted alone, on what the original's tensors hold. Then the layers are fitted again
in execution order, each on what the narrowed network really gives it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.channel_fit import (
    Reader,
    check_samples,
    install,
    layer_weight,
    reader_of,
    reader_weights,
    together,
)
from onnxnas.channels import positions, resize_group
from onnxnas.coupling import ConstantAxis, Coupling, Group
from onnxnas.least_squares import Floats, Indices, Moments, best_ridge, removal_order
from onnxnas.pass_contract import Fitted, Tick, no_tick
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.samples import Samples, Sampling

Values = dict[str, NDArray[Any]]
Rounds = Generator[tuple[Fitted, Sequence[Sampling]], Sequence[Samples], Fitted]

_MOST_ROUNDS = 16
"""Each runs all rows through the network; more layers than this share rounds."""


@dataclass(frozen=True)
class Layer:
    """A conv or gemm that reads some of the groups.

    Attributes:
        node: of the original.
        reader: how it is fitted, all its inputs together.
        reads: group -> the features that each of its channels is, [channels, repeat].
        writes: group -> where its channels lie among the outputs, [channels, repeat].
    """

    node: Any
    reader: Reader
    reads: Mapping[int, Indices]
    writes: Mapping[int, Indices]


def layers_of(graph: Any, groups: Sequence[Group]) -> tuple[Layer, ...] | str:
    """The layers that read some groups, in execution order, or why one cannot be fitted."""
    reads, writes, nodes = dict[str, dict[int, Any]](), dict[str, dict[int, Any]](), {}
    for i, group in enumerate(groups):
        for use in group.consumers:
            name = use.node.outputs[0].name
            nodes[name] = use.node
            reads.setdefault(name, {})[i] = _places(use, group.size)
        for use in group.producers:
            if use.input == 1:
                writes.setdefault(use.node.outputs[0].name, {})[i] = _places(use, group.size)
    found = []
    order = {node.outputs[0].name: i for i, node in enumerate(graph.nodes)}
    for name in sorted(nodes, key=lambda output: order[output]):
        node = nodes[name]
        shape = node.inputs[1].shape
        inputs = int(shape[1 if node.op == "Conv" or node.attrs.get("transB") else 0])
        reader = reader_of(graph, node, np.arange(inputs)[:, None])
        if isinstance(reader, str):
            return f"{name!r} {reader}"
        cells = int(np.prod(shape[2:])) if node.op == "Conv" else 1
        features = {
            i: (at[:, :, None] * cells + np.arange(cells)).reshape(len(at), -1)
            for i, at in reads[name].items()
        }
        found.append(Layer(node, reader, features, writes.get(name, {})))
    return tuple(found) or "nothing with weights reads these channels"


def _places(use: ConstantAxis, size: int) -> Indices:
    every = np.arange(size)
    return np.concatenate([positions(run, every).reshape(size, -1) for run in use.runs], 1)


def _left(length: int, of: Mapping[int, Indices], kept: Sequence[Indices]) -> Indices:
    """Positions of an axis without those of the channels that go."""
    left = np.ones(length, bool)
    for i, at in of.items():
        left[at] = False
        left[at[kept[i]]] = True
    return np.flatnonzero(left)


def fit_alone(
    layers: Sequence[Layer],
    sizes: Sequence[int],
    choices: Sequence[Sequence[int]],
    data: Sequence[Samples],
    tick: Tick = no_tick,
) -> list[Fitted]:
    """Which channels of every group stay, and all layers fitted on the original's tensors.

    Args:
        layers: as `layers_of` gives them.
        sizes: of the groups now.
        choices: for each choice the width of every group.
        data: of all samplings of the layers' readers, in order.
    """
    check_samples(data)
    rest = iter(data)
    seen = []
    for layer in layers:
        samples = [next(rest) for _ in layer.reader.samplings]
        prior = reader_weights(layer.node)[0].astype(np.float64)
        seen.append((layer, *_moments(samples), prior))
    orders = []
    for i, size in enumerate(sizes):
        fits = [(m, layer.reads[i], w) for layer, *_, m, w in seen if i in layer.reads]
        least = min(widths[i] for widths in choices)
        orders.append(removal_order(fits, least, tick=tick) if least < size else [])
    found = []
    for widths in choices:
        kept = [
            np.setdiff1d(np.arange(size), order[: size - width])
            for size, width, order in zip(sizes, widths, orders, strict=True)
        ]
        values: Values = {f"kept{i}": at for i, at in enumerate(kept)}
        errors = []
        for layer, *moments, prior in seen:
            tick()
            features = _left(len(prior), layer.reads, kept)
            outputs = _left(prior.shape[1], layer.writes, kept)
            fit, tune, both = (_of_outputs(m, outputs) for m in moments)
            linear, error = best_ridge(fit, tune, features, prior[:, outputs], both)
            _store(values, layer, linear.weight[features], linear.bias)
            errors.append(error)
        found.append(Fitted(values, float(np.mean(errors))))
    return found


def fit_in_rounds(layers: Sequence[Layer], start: Fitted, tick: Tick = no_tick) -> Rounds:
    """Fit the layers again in order.

    Yields:
        The weights so far, with which the network is to be built, and the samplings to read there.
        Samples of those are to be sent back.

    Returns:
        The weights of the last round.
    """
    values, errors = dict(start.values), list[float]()
    kept = [values[f"kept{i}"] for i in range(sum(":" not in name for name in values))]
    per_round = -(-len(layers) // _MOST_ROUNDS)
    for first in range(0, len(layers), per_round):
        some = layers[first : first + per_round]
        asked = []
        for layer in some:
            outputs = _left(len(reader_weights(layer.node)[1]), layer.writes, kept)
            asked.append([replace(s, only=outputs) for s in layer.reader.samplings])
        data = iter((yield Fitted(values, start.error), [s for part in asked for s in part]))
        values = dict(values)
        for layer, part in zip(some, asked, strict=True):
            tick()
            samples = [next(data) for _ in part]
            check_samples(samples)
            prior = _stored(values, layer)
            fit, tune, both = _moments(samples)
            linear, error = best_ridge(fit, tune, np.arange(len(prior)), prior, both)
            _store(values, layer, linear.weight, linear.bias)
            errors.append(error)
    return Fitted(values, float(np.mean(errors)))


def _moments(samples: Sequence[Samples]) -> tuple[Moments, Moments, Moments]:
    """Of the rows to fit on, of those to tune by, and of both."""
    fit, tune = together([s.fit for s in samples]), together([s.tune for s in samples])
    return fit, samples[0].tune.moments, fit.plus(tune)


def _of_outputs(m: Moments, outputs: Indices) -> Moments:
    return Moments(m.count, m.x, m.y[outputs], m.xx, m.xy[:, outputs], m.yy[outputs])


def _store(values: Values, layer: Layer, weight: Floats, bias: Floats) -> None:
    values[f"{layer.reader.output}:1"] = layer_weight(layer.node, weight)
    values[f"{layer.reader.output}:2"] = bias.astype(np.float32)


def _stored(values: Values, layer: Layer) -> Floats:
    """Weights of a layer as it is now, [features, outputs]."""
    weight = values[f"{layer.reader.output}:1"]
    if layer.node.op == "Conv":
        weight = weight.reshape(len(weight), -1).T
    elif layer.node.attrs.get("transB"):
        weight = weight.T
    return weight.astype(np.float64)


def resize_together(
    rw: Rewriter,
    names: Sequence[str],
    sizes: Sequence[int],
    widths: Sequence[int],
    read_by: Sequence[str],
) -> None:
    """Leave fewer channels in several groups, with fitted weights where the rewriter has them.

    Raises:
        SiteGone: a group, or a layer whose weights were fitted, is not what it was.
    """
    for i, (name, size, width) in enumerate(zip(names, sizes, widths, strict=True)):
        rw.tensor(name)
        group = Coupling.of(rw.graph).group(name)
        if group is None or group.size != size or group.pins:
            raise SiteGone(f"the channels of {name!r} are not what they were")
        kept = rw.fitted.get(f"kept{i}", np.arange(width))
        if len(kept) < size:
            resize_group(rw, group, kept.tolist())
    install(rw, read_by)
