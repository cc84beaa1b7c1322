"""Cleaning a model before anything is measured: the baseline of every claim is the clean one.

The heavy lifting is onnxslim's; what it returns is used only if it passes our own check.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner

from onnxnas.errors import OnnxnasError, UnsupportedError, UsageError, VerificationError
from onnxnas.folding import fold_affine
from onnxnas.foreign import open_up
from onnxnas.graph import check_model, contract
from onnxnas.noise import Noise
from onnxnas.probes import differences
from onnxnas.protos import (
    MAX_PROTO_BYTES,
    constant_of,
    first_line,
    remove_dead,
    replace_items,
    walk,
    weight_bytes,
)
from onnxnas.roundtrip import restore, silenced
from onnxnas.runtime import KINDS, Feeds, Session, sample_feeds

_Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Normalised:
    """A cleaned model.

    Attributes:
        model: same inputs, outputs and metadata as the original, IR version at least 4.
        steps: what was done, what was left alone and why, in words.
    """

    model: onnx.ModelProto
    steps: tuple[str, ...]


def normalise(model: onnx.ModelProto, input_shapes: _Shapes | None = None) -> Normalised:
    """Fold constants and batch normalisation, remove dead nodes, name nodes, untie weights.

    Every stage is kept only if the model stays valid, its contract the same, and its outputs on
    random inputs too; otherwise the stage before it is handed back, and a step says so.

    Args:
        model: is not changed.
        input_shapes: fixes dynamic dimensions for the check; the model keeps them dynamic.

    Raises:
        UsageError: an input has dynamic dimensions besides the batch and no shape is given.
    """
    shapes = dict(input_shapes or {})
    steps: list[str] = []
    result = _stage(model, model, _inline, "writing functions out", shapes, steps)
    result = _stage(model, result, _tidy, "tidying up", shapes, steps)
    obstacle = _obstacle(result)
    if obstacle:
        steps.append(f"left alone otherwise: the model has {obstacle}")
    else:
        result = _stage(model, result, _slim, "cleaning with onnxslim", shapes, steps)
        result = _stage(model, result, fold_affine, "folding scalings and shifts", shapes, steps)
    return Normalised(result, tuple(steps))


def _stage(
    original: onnx.ModelProto,
    model: onnx.ModelProto,
    change: Callable[[onnx.ModelProto], tuple[onnx.ModelProto, list[str]]],
    what: str,
    shapes: _Shapes,
    steps: list[str],
) -> onnx.ModelProto:
    """The changed model if it is checked to be the same, else the model before."""
    try:
        changed, done = change(model)
    except Exception as error:  # a third-party tool may fail in any way; the model is fine as it is
        steps.append(f"not done: {what} failed ({first_line(error)})")
        return model
    if not done:
        return model
    try:
        doubt = _check(original, changed, shapes)
    except UsageError:
        raise
    except OnnxnasError as error:
        steps.append(f"not done: {what} was undone ({first_line(error)})")
        return model
    steps += done
    if doubt and not any(doubt in step for step in steps):
        steps.append(f"not verified beyond the ONNX checker: {doubt}")
    return changed


def _check(original: onnx.ModelProto, changed: onnx.ModelProto, shapes: _Shapes) -> str:
    """Whether two models are the same, as far as can be known.

    Returns:
        Why the outputs could not be compared, empty if they were.

    Raises:
        VerificationError: they are not the same.
        UsageError: a shape is missing.
    """
    check_model(changed, full=False)
    if contract(original) != contract(changed):
        raise VerificationError("its inputs or outputs changed")
    if opened := open_up(original, changed, shapes):
        if opened.problem:
            raise VerificationError(opened.problem)
        original, changed = opened.original, opened.result
        if not original.graph.output:
            return opened.notes[0]
    try:
        before = Session(original)
        pairs = []
        for number, feeds in enumerate(sample_feeds(contract(original)[0], shapes, seed=0)):
            try:
                pairs.append((feeds, before.run(feeds)))
            except UnsupportedError:
                if number < len(KINDS):  # not every model declared so can take another batch
                    raise
    except UnsupportedError as error:
        return first_line(error)
    outputs = before.outputs
    del before  # large models: never two in memory at once
    try:
        after = Session(changed)
        results = [after.run(feeds) for feeds, _ in pairs]
    except UnsupportedError as error:
        raise VerificationError(str(error)) from error
    for name, difference in differences(original, outputs).items():
        for (_, wanted), result in zip(pairs, results, strict=True):
            difference.add(wanted[name], result[name])
        if not difference.ok:
            difference.noise = _noise(original, name, pairs)
        if not difference.ok:
            raise VerificationError(f"it changed the outputs: {difference}")
    return ""


def _noise(
    original: onnx.ModelProto, name: str, pairs: Sequence[tuple[Feeds, Mapping[str, Any]]]
) -> float:
    noise = Noise(original, [name])
    for feeds, wanted in pairs:
        noise.add(feeds, wanted)
    return noise.of(name)


def _obstacle(model: onnx.ModelProto) -> str:
    """What onnxslim is not to be trusted with; empty if nothing."""
    ports = [*contract(model)[0], *contract(model)[1]]
    odd = [port for port in ports if "(" in port.dtype or port.dtype == "opaque"]
    found = {
        "functions": len(model.functions) > 0,
        "subgraphs": next(walk(model.graph, onnx.GraphProto), None) is not None,
        "sparse weights": len(model.graph.sparse_initializer) > 0,
        f"an input or output of type {odd[0].dtype if odd else ''}": bool(odd),
        "more than 2 GB of weights": weight_bytes(model) > MAX_PROTO_BYTES,
    }
    return " and ".join(name for name, true in found.items() if true)


def _slim(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    import onnxslim  # here, as it takes half a second to import

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    logger = logging.getLogger("onnxslim")
    level = logger.level
    with silenced():
        # Tied weights are one tensor with several readers, which most rewrites must decline.
        slim = onnxslim.slim(copy, skip_optimizations=["weight_tying"])
    logger.setLevel(level)
    if [v.name for v in slim.graph.output] != [v.name for v in model.graph.output] or [
        v.name for v in slim.graph.input
    ] != [v.name for v in model.graph.input]:
        raise VerificationError("its inputs or outputs changed")
    restore(slim, model)
    # Inference says the shapes again, but for what operators of other domains write.
    foreign = {o for n in model.graph.node if n.domain not in ("", "ai.onnx") for o in n.output}
    replace_items(slim.graph.value_info, [v for v in model.graph.value_info if v.name in foreign])
    makers = {output: node for node in model.graph.node for output in node.output if output}
    names = {node.name for node in model.graph.node}
    for node in slim.graph.node:
        # A fused node is named after the tensor its first part wrote: give it that part's name.
        if node.name not in names and node.name in makers:
            node.name = makers[node.name].name
    _name_nodes(slim)
    return slim, _difference_in_nodes(model, slim)


def _difference_in_nodes(before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    count = Counter(node.op_type for node in before.graph.node)
    count.subtract(node.op_type for node in after.graph.node)
    gone = [f"{n} {op}" for op, n in sorted(count.items()) if n > 0]
    new = [f"{-n} {op}" for op, n in sorted(count.items()) if n < 0]
    if not gone and not new:
        return []
    total = f"{len(before.graph.node)} nodes became {len(after.graph.node)}"
    parts = [f"gone: {', '.join(gone)}" if gone else "", f"new: {', '.join(new)}" if new else ""]
    return [f"folded and fused with onnxslim: {total} ({'; '.join(p for p in parts if p)})"]


def _inline(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Local functions written out where they are called: nothing else looks into them."""
    if not model.functions:
        return model, []
    inlined = onnx.inliner.inline_local_functions(model)
    return inlined, [f"{len(model.functions)} functions were written out where they are called"]


def _tidy(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """What needs no tool: works on any model, whatever else is in it."""
    tidy = onnx.ModelProto()
    tidy.CopyFrom(model)
    graph, done = tidy.graph, []
    weights = {t.name for t in graph.initializer} | {
        t.values.name for t in graph.sparse_initializer
    }
    inputs = [value for value in graph.input if value.name not in weights]
    if moved := len(graph.input) - len(inputs):
        replace_items(graph.input, inputs)
        done.append(f"{moved} weights are not inputs of the graph any more")
    if tidy.ir_version < 4:
        done.append(f"IR version {tidy.ir_version} became 4")
        tidy.ir_version = 4
    if sparse := [_dense(tensor) for tensor in graph.sparse_initializer]:
        graph.initializer.extend(sparse)
        graph.ClearField("sparse_initializer")
        done.append(f"{len(sparse)} sparse weights became dense")
    nodes = [(node, constant_of(node)) for node in graph.node]
    if constants := [tensor for _, tensor in nodes if tensor is not None]:
        graph.initializer.extend(constants)
        replace_items(graph.node, [node for node, tensor in nodes if tensor is None])
        done.append(f"{len(constants)} Constant nodes became weights")
    if dead := remove_dead(graph):
        done.append(f"{dead} nodes that nothing reads were removed")
    if named := _name_nodes(tidy):
        done.append(f"{named} nodes without a name of their own got one")
    if tidy.training_info:
        tidy.ClearField("training_info")
        done.append("training information was removed: it names weights that rewriting replaces")
    return tidy, done


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    where = np.unravel_index(indices, dense.shape) if indices.ndim == 1 else tuple(indices.T)
    dense[where] = values
    return onnx.numpy_helper.from_array(dense, sparse.values.name)


def _name_nodes(model: onnx.ModelProto) -> int:
    """Give nodes that have none, or another's, a name after what they write; returns how many."""
    taken: set[str] = set()
    nameless = []
    for node in model.graph.node:
        if node.name and node.name not in taken:
            taken.add(node.name)
        else:
            nameless.append(node)
    for node in nameless:
        base = f"{next(filter(None, node.output), '')}/{node.op_type}"
        name, number = base, 1
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        node.name = name
        taken.add(name)
    return len(nameless)
