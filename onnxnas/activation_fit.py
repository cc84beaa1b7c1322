"""Layers behind a tensor re-fitted for what a simpler function makes of it.

Who reads an activation can make up for a change of it: convolutions and gemms, depthwise
convolutions channel by channel, and layers that read its mean or read it scaled by a gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxnas.channel_fit import layer_weight, reader_of, reader_weights, together
from onnxnas.excerpt import dependents
from onnxnas.graph import values_of
from onnxnas.least_squares import RIDGE, best_ridge
from onnxnas.ops import conv, sole_consumer
from onnxnas.pass_contract import NotRecoverable
from onnxnas.samples import Part, Samples, Sampling, Window
from onnxnas.squeeze_excite import is_pool, squeeze_excite

Function = Literal["", "Relu", "Relu6", "HardSwish"]
Values = dict[str, NDArray[Any]]

_MOST_WINDOWS = 4_000
"""Samples that depthwise convolutions are fitted on: nine values or more for each channel."""


@dataclass(frozen=True)
class Follower:
    """A layer whose weights can make up for a change of a tensor it reads.

    Attributes:
        node: conv or gemm of the original.
        wanted: what it is fitted on, as it reads the tensor now.
        depthwise: it is fitted channel by channel.
    """

    node: Any
    wanted: tuple[Sampling, ...]
    depthwise: bool = False

    def samplings(self, tensor: str, function: Function) -> list[Sampling]:
        """The same where a function of another tensor is read instead."""
        return [
            replace(s, inputs=(replace(s.inputs[0], tensor=tensor, function=function),))
            for s in self.wanted
        ]


def followers(graph: Any, tensor: Any) -> tuple[Follower, ...] | str:
    """All layers that read a tensor, or why one of its readers cannot be fitted."""
    if any(tensor is t for t in graph.outputs):
        return "it is a graph output"
    after = dependents(graph, [tensor.name])
    gated = squeeze_excite(tensor, graph)
    found: list[Follower] = []
    for node in tensor.outputs:
        if is_pool(node):
            some = _of_mean(graph, node)
        elif not isinstance(gated, str) and node is gated.product:
            some = _of_product(graph, node, tensor, gated.gate, after)
        else:
            some = _layer(graph, node, after)
        if isinstance(some, str):
            return some
        found += some
    return tuple(found) or "nothing reads it"


def follower(graph: Any, node: Any) -> Follower | str:
    """A conv (not depthwise) or gemm by itself, or why it cannot be fitted."""
    found = _layer(graph, node, frozenset())
    if isinstance(found, str):
        return found
    return "is a depthwise conv" if found[0].depthwise else found[0]


def _layer(graph: Any, node: Any, after: frozenset[str]) -> list[Follower] | str:
    name = f"{node.op} {node.outputs[0].name!r}"
    if node.op not in ("Conv", "Gemm"):
        return f"{name}, which reads it, has no weights to make up for a change"
    view = conv(node) if node.op == "Conv" else ""
    if not isinstance(view, str) and view.depthwise and view.out_channels == view.group:
        if len(node.inputs[1].outputs) != 1:
            return f"{name} shares its weight with another layer"
        window = Window(view.x.name, view.kernel, view.strides, view.dilations, view.pads)
        wanted = Sampling((window,), view.y.name, patches=True, most=_MOST_WINDOWS)
        return [Follower(node, (wanted,), depthwise=True)]
    reader = reader_of(graph, node, _channels(node), after)
    return f"{name} {reader}" if isinstance(reader, str) else [Follower(node, reader.samplings)]


def _of_mean(graph: Any, pool: Any) -> list[Follower] | str:
    y = pool.outputs[0]
    while (node := sole_consumer(y, graph)) and node.op in ("Flatten", "Squeeze", "Reshape"):
        y = node.outputs[0]
    found = []
    for node in y.outputs:
        name = f"{node.op} {node.outputs[0].name!r}"
        if node.op not in ("Conv", "Gemm"):
            return f"{name}, which reads its mean, has no weights to make up for a change"
        reader = reader_of(graph, node, _channels(node))
        if isinstance(reader, str):
            return f"{name} {reader}"
        if len(reader.samplings) < 2:
            return f"{name} reads its mean in a form that is not known"
        found.append(Follower(node, reader.samplings[1:]))
    return found or "nothing reads its mean"


def _of_product(
    graph: Any, product: Any, x: Any, gate: Any, after: frozenset[str]
) -> list[Follower] | str:
    node = sole_consumer(product.outputs[0], graph)
    if node is None:
        return f"its product with a gate, {product.outputs[0].name!r}, is read by several"
    found = _layer(graph, node, after)
    if isinstance(found, str):
        return found
    if found[0].depthwise:
        return f"Conv {node.outputs[0].name!r}, which reads its product, is depthwise"
    window = replace(found[0].wanted[0].inputs[0], tensor=x.name, times=gate.name)
    return [Follower(node, (replace(found[0].wanted[0], inputs=(window,)),))]


def _channels(node: Any) -> NDArray[np.int64]:
    shape = node.inputs[1].shape
    count = int(shape[1 if node.op == "Conv" or node.attrs.get("transB") else 0])
    return np.arange(count)[:, None]


def fit_follower(
    found: Follower, samples: Sequence[Samples], prior: NDArray[Any] | None = None
) -> tuple[Values, float]:
    """New weights and bias of a layer, and the error on the rows to tune by.

    Args:
        samples: of its samplings.
        prior: weights that are pulled to, as the layer holds them; None means its own.

    Raises:
        NotRecoverable: the samples are not finite, or say nothing.
    """
    name = found.node.outputs[0].name
    if found.depthwise:
        weight, bias, error = _fit_depthwise(found.node, samples[0], prior)
        return {f"{name}:1": weight, f"{name}:2": bias}, error
    fit, tune = together([s.fit for s in samples]), together([s.tune for s in samples])
    if not (fit.finite and tune.finite):
        raise NotRecoverable("the samples hold NaN or infinite values")
    if not fit.variance() > 0:
        raise NotRecoverable("what is fitted to is the same on every sample")
    pull = reader_weights(found.node)[0].astype(np.float64)
    if prior is not None:
        pull = _features_of(found.node, prior)
    every = np.arange(len(pull))
    linear, error = best_ridge(fit, samples[0].tune.moments, every, pull, fit.plus(tune))
    weight = layer_weight(found.node, linear.weight)
    return {f"{name}:1": weight, f"{name}:2": linear.bias.astype(np.float32)}, error


def _features_of(node: Any, weight: NDArray[Any]) -> NDArray[np.float64]:
    if node.op == "Conv":
        weight = weight.reshape(len(weight), -1).T
    elif node.attrs.get("transB"):
        weight = weight.T
    return weight.astype(np.float64)


def _fit_depthwise(
    node: Any, samples: Samples, prior: NDArray[Any] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """One small ridge per channel, all at once."""
    old = np.asarray(values_of(node.inputs[1]) if prior is None else prior, np.float64)
    channels = len(old)
    pull = old.reshape(channels, -1)

    def split(part: Part) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        x = part.x.reshape(len(part.x), channels, -1)
        return x.astype(np.float64), part.y.astype(np.float64)

    x, y = split(samples.fit)
    if not (len(x) and np.isfinite(x).all() and np.isfinite(y).all()):
        raise NotRecoverable("the samples hold NaN or infinite values")
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    xx = np.einsum("nck,ncl->ckl", x, x, optimize=True) / len(x)
    xy = np.einsum("nck,nc->ck", x, y, optimize=True) / len(x)
    damping = RIDGE * np.maximum(np.trace(xx, axis1=1, axis2=2) / pull.shape[1], 1e-12)
    left = xx + damping[:, None, None] * np.eye(pull.shape[1])
    weight = np.linalg.solve(left, (xy + damping[:, None] * pull)[:, :, None])[:, :, 0]
    bias = y_mean - np.einsum("ck,ck->c", weight, x_mean)
    x, y = split(samples.tune)
    wrong = np.einsum("nck,ck->nc", x, weight) + bias - y
    error = float((wrong**2).mean(0).sum() / max(float(y.var(0).sum()), 1e-30))
    return weight.reshape(old.shape).astype(np.float32), bias.astype(np.float32), error
