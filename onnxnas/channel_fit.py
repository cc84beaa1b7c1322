"""Fewer channels in a group, and the layers that read them re-fitted to say what they said.

Shared by the passes that change widths. Which channels stay, and the weights of their readers,
are found by least squares on samples; until then the first channels and their own weights stand
in, so that a width can be costed before anything is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.channel_flow import given
from onnxnas.channels import positions, resize_group
from onnxnas.coupling import Coupling, Group
from onnxnas.excerpt import dependents
from onnxnas.graph import values_of
from onnxnas.least_squares import Floats, Moments, best_ridge, removal_order
from onnxnas.ops import conv, is_constant, producer, sole_consumer
from onnxnas.pass_contract import Fitted, NotRecoverable, Tick, no_tick
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.samples import Part, Samples, Sampling, Window
from onnxnas.squeeze_excite import is_pool

KEPT = "kept"
"""Key of the fitted values that lists the channels which stay, ascending; the other keys are
``<output tensor of a node>:<index of the input that is fitted>``."""


@dataclass(frozen=True)
class Reader:
    """A conv or gemm that reads the group.

    Attributes:
        output: tensor it writes; names it.
        features: which of its inputs, windows flattened, each channel is [channels, repeat].
        samplings: what its weights are fitted on; the first decides how good a fit is.
    """

    output: str
    features: NDArray[np.int64]
    samplings: tuple[Sampling, ...]


def readers(graph: Any, group: Group) -> tuple[Reader, ...] | str:
    """How every reader of a group is fitted, or why one cannot be."""
    after = dependents(graph, [t.tensor.name for t in group.tensors])
    producing = {use.node.outputs[0].name for use in group.producers}
    found = []
    for use in group.consumers:
        if use.node.outputs[0].name in producing:
            return f"{use.node.outputs[0].name!r} both reads and writes these channels"
        every = np.arange(group.size)
        at = [positions(run, every).reshape(group.size, -1) for run in use.runs]
        reader = reader_of(graph, use.node, np.concatenate(at, 1), after)
        if isinstance(reader, str):
            return f"{use.node.outputs[0].name!r} {reader}"
        found.append(reader)
    return tuple(found) or "nothing with weights reads these channels"


def reader_of(
    graph: Any, node: Any, at: NDArray[np.int64], after: frozenset[str] = frozenset()
) -> Reader | str:
    """How a conv or gemm is fitted, or why it cannot be.

    Args:
        at: positions on its input's channel axis, [channels, repeat].
        after: tensors that the fit is not to be made up for by: they change with its input.
    """
    window = _window(node)
    if isinstance(window, str):
        return window
    if len(node.inputs[1].outputs) != 1:
        return "shares its weight with another layer"
    bias = given(node, 2)
    if bias is not None and not is_constant(bias):
        return "has a bias that is computed"
    cells = window.kernel[0] * window.kernel[1]
    features = (at[:, :, None] * cells + np.arange(cells)).reshape(len(at), -1)
    y = node.outputs[0]
    target, minus = y.name, tuple[str, ...]()
    add = sole_consumer(y, graph)
    if add is not None and add.op == "Add":
        other = add.inputs[0] if add.inputs[1] is y else add.inputs[1]
        alike = not is_constant(other) and other.shape == y.shape
        if alike and other.name not in after:
            target, minus = add.outputs[0].name, (other.name,)
    samplings = [Sampling((window,), target, minus)]
    pool = _pooled(node.inputs[0])
    if pool is not None and cells == 1 and at.shape[1] == 1:
        samplings.append(Sampling((Window(pool),), pool, through=reader_weights(node)))
    return Reader(y.name, features, tuple(samplings))


def _window(node: Any) -> Window | str:
    x = node.inputs[0].name
    if node.op == "Gemm":
        if not is_constant(node.inputs[1]):
            return "has a weight that is computed"
        plain = not node.attrs.get("transA") and node.attrs.get("alpha", 1.0) == 1.0
        return Window(x) if plain and node.attrs.get("beta", 1.0) == 1.0 else "scales or transposes"
    found = conv(node)
    if isinstance(found, str):
        return found
    if found.group != 1:
        return "is a grouped conv"
    return Window(x, found.kernel, found.strides, found.dilations, found.pads)


def _pooled(x: Any) -> str | None:
    """The tensor that `x` is the mean of over all positions, channel by channel."""
    node = producer(x)
    while node is not None and node.op in ("Flatten", "Squeeze", "Reshape"):
        node = producer(node.inputs[0])
    if node is None or not is_pool(node):
        return None
    source = node.inputs[0]
    known = source.shape is not None and len(source.shape) == 4
    return str(source.name) if known and source.shape[1] == x.shape[1] else None


def reader_weights(node: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight [features, outputs] and bias [outputs] of a conv or gemm. Reads its weights."""
    weight = _as_features(node, values_of(node.inputs[1]))
    bias = given(node, 2)
    values = np.zeros(weight.shape[1]) if bias is None else values_of(bias).reshape(-1)
    wide = np.broadcast_to(values, weight.shape[1])
    return np.asarray(weight, np.float32), np.asarray(wide, np.float32)


def as_built(graph: Any, sampling: Sampling, stands_for: Callable[[str], str]) -> Sampling:
    """A sampling of a layer whose weights are asked for, reading what the layer reads now.

    Args:
        stands_for: what is read in a graph where the original has a tensor.

    Raises:
        SiteGone: it has no such layer.
    """
    if not sampling.layer:
        return sampling
    tensors = graph.tensors()
    layer = tensors.get(sampling.layer)
    if layer is None or not layer.inputs:
        raise SiteGone(f"nothing computes {sampling.layer!r} any more")
    (window,) = sampling.inputs
    if sampling.target != sampling.layer and stands_for(window.tensor) in tensors:
        return sampling  # what a mean is taken of
    reads = replace(window, tensor=layer.inputs[0].inputs[0].name)
    return replace(sampling, inputs=(reads,), target=sampling.layer)


def same_layers(original: Any, graph: Any, samplings: Sequence[Sampling]) -> bool:
    """Whether every layer whose weights are asked for has those of the original."""
    before, after = original.tensors(), graph.tensors()
    for name in (s.layer for s in samplings):
        found = (before.get(name), after.get(name))
        pair = [t.inputs[0] for t in found if t is not None and t.inputs]
        values = [(node.op, reader_weights(node)) for node in pair if len(node.inputs) > 1]
        if len(values) < 2 or values[0][0] != values[1][0]:
            return False
        if not all(map(np.array_equal, values[0][1], values[1][1])):
            return False
    return True


def with_layers(
    graph: Any, samplings: Sequence[Sampling], samples: Sequence[Samples]
) -> list[Samples]:
    """Samples with the weights of the layers that were asked for, as they are in a graph."""
    tensors = graph.tensors() if any(s.layer for s in samplings) else {}
    return [
        replace(found, layer=reader_weights(tensors[s.layer].inputs[0])) if s.layer else found
        for s, found in zip(samplings, samples, strict=True)
    ]


def check_samples(data: Sequence[Samples]) -> None:
    """Refuse samples that no weights can be fitted on.

    Raises:
        NotRecoverable: they are not finite, or say nothing.
    """
    if not all(p.moments.finite for samples in data for p in (samples.fit, samples.tune)):
        raise NotRecoverable("the samples hold NaN or infinite values")
    if not any(samples.fit.moments.variance() > 0 for samples in data):
        raise NotRecoverable("what is fitted to is the same on every sample")


def fit_widths(
    graph: Any,
    found: Sequence[Reader],
    widths: Sequence[int],
    data: Sequence[Samples],
    start: Sequence[Fitted] | None = None,
    tick: Tick = no_tick,
) -> list[tuple[dict[str, NDArray[Any]], float]]:
    """Which channels to keep at each width, and the weights of their readers.

    Args:
        graph: the original; for the weights that the fits start from.
        found: the group's readers.
        widths: channels to be left.
        data: samples of all their samplings, in order.
        start: fits for these widths whose channels are kept and whose weights are pulled to.

    Returns:
        For each width the fitted values, and the error on rows to tune by (the mean over the
        readers, relative to the variance of what each is fitted to).
    """
    tensors, left = graph.tensors(), iter(data)
    fits: list[tuple[Reader, Moments, Moments, Moments, Floats]] = []
    for reader in found:
        samples = [next(left) for _ in reader.samplings]
        moments, tune = together([s.fit for s in samples]), together([s.tune for s in samples])
        prior = reader_weights(tensors[reader.output].inputs[0])[0].astype(np.float64)
        fits.append((reader, moments, samples[0].tune.moments, moments.plus(tune), prior))
    every = np.arange(len(found[0].features))
    order: list[int] = []
    if start is None:
        order = removal_order([(m, r.features, w) for r, *_, m, w in fits], min(widths), tick=tick)
    results = []
    for k, width in enumerate(widths):
        if start is None:
            kept = np.setdiff1d(every, order[: len(every) - width])
        else:
            kept = np.asarray(start[k].values[KEPT], np.int64)
        gone = np.setdiff1d(every, kept)
        values: dict[str, NDArray[Any]] = {KEPT: kept}
        errors = []
        for reader, moments, tune, whole, prior in fits:
            dropped = reader.features[gone].reshape(-1)
            features = np.setdiff1d(np.arange(len(prior)), dropped)
            node = tensors[reader.output].inputs[0]
            pull = prior.copy()
            if start is not None:
                pull[features] = _as_features(node, start[k].values[f"{reader.output}:1"])
            tick()
            linear, error = best_ridge(moments, tune, features, pull, whole)
            errors.append(error)
            values[f"{reader.output}:1"] = layer_weight(node, linear.weight[features])
            values[f"{reader.output}:2"] = linear.bias.astype(np.float32)
        results.append((values, float(np.mean(errors))))
    return results


def together(parts: Sequence[Part]) -> Moments:
    """What one reader is fitted on: all its samplings, each counting as much as the first."""
    moments = parts[0].moments
    for more in parts[1:]:
        weight = moments.count / max(1, more.moments.count)
        moments = moments.plus(more.moments, weight)
    return moments


def _as_features(node: Any, weight: NDArray[Any]) -> Floats:
    """Weights in the layout of a conv or gemm as [features, outputs]."""
    if node.op == "Conv":
        weight = weight.reshape(len(weight), -1).T
    elif node.attrs.get("transB"):
        weight = weight.T
    return weight.astype(np.float64)


def layer_weight(node: Any, features: Floats) -> NDArray[np.float32]:
    """Weights [features, outputs] in the layout of a conv or gemm."""
    weight = features.astype(np.float32)
    if node.op == "Conv":
        return weight.T.reshape(weight.shape[1], -1, *(int(d) for d in node.inputs[1].shape[2:]))
    return weight.T if node.attrs.get("transB") else weight


def resize(rw: Rewriter, name: str, size: int, width: int, read_by: Sequence[str]) -> None:
    """Leave `width` channels in a group, with fitted weights where the rewriter has them.

    Args:
        name: tensor that names the group.
        size: channels it has now.
        width: channels to be left.
        read_by: outputs of its readers.

    Raises:
        SiteGone: the group, or a layer whose weights were fitted, is not what it was.
    """
    rw.tensor(name)
    group = Coupling.of(rw.graph).group(name)
    if group is None or group.size != size or group.pins:
        raise SiteGone(f"the channels of {name!r} are not what they were")
    resize_group(rw, group, rw.fitted.get(KEPT, np.arange(width)).tolist())
    install(rw, read_by)


def install(rw: Rewriter, read_by: Sequence[str]) -> None:
    """Give layers the weights that the rewriter has for them, and readers a bias in any case.

    Raises:
        SiteGone: a layer is not what it was when its weights were fitted.
    """
    for output in read_by:
        node = rw.node(output)
        if given(node, 2) is None:  # fitted or not, the structure is the same
            weight = node.inputs[1]
            across = node.op == "Gemm" and not node.attrs.get("transB")
            shape = (int(weight.shape[1 if across else 0]),)
            bias = rw.constant(f"{output}/bias", shape, _zeros(shape), weight.dtype)
            rw.set_input(node, 2, bias)
    for key, values in rw.fitted.items():
        output, colon, index = key.rpartition(":")
        if colon:
            _install(rw, rw.node(output), int(index), values)


def _install(rw: Rewriter, node: Any, index: int, values: NDArray[Any]) -> None:
    output, old = node.outputs[0].name, given(node, index)
    shape = (node.inputs[1].shape[0],) if old is None else old.shape
    if tuple(int(d) for d in shape) != values.shape:
        raise SiteGone(f"{output!r} is not what it was when its weights were fitted")
    name, dtype = (f"{output}/bias" if old is None else old.name), node.inputs[1].dtype
    rw.set_input(node, index, rw.constant(name, values.shape, lambda: values, dtype))


def _zeros(shape: tuple[int, ...]) -> Callable[[], NDArray[Any]]:
    return lambda: np.zeros(shape)
