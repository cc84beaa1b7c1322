"""Operators that onnxruntime does not know: what else is in their model can still be compared.

A model is cut open at them: what they read is handed out, what they write is fed in. Where no
shape of what they write is declared, what is behind them is cut away too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from onnxnas.graph import contract, is_static, port_of
from onnxnas.probes import with_outputs
from onnxnas.protos import constant_of, remove_dead, replace_items, walk
from onnxnas.runtime import NUMPY_DTYPES, known_operators

_Shapes = Mapping[str, tuple[int, ...]]
_Key = tuple[str, str]
"""Domain and name of an operator."""
_Constant = onnx.TensorProto | onnx.SparseTensorProto


@dataclass(frozen=True)
class Opened:
    """Two models cut open at the same tensors.

    Attributes:
        original: what of the original can be run.
        result: the same of the result.
        handed_out: outputs of both that the whole models do not have: what is cut away reads them.
        problem: how what is cut away differs between the two; empty if it does not.
        notes: what is not run and what is therefore not compared.
    """

    original: onnx.ModelProto
    result: onnx.ModelProto
    handed_out: tuple[str, ...]
    problem: str
    notes: tuple[str, ...]


def open_up(
    original: onnx.ModelProto, result: onnx.ModelProto, input_shapes: _Shapes
) -> Opened | None:
    """Cut two models open at the foreign operators of the first; None if it has none.

    Args:
        original: is not changed.
        result: is not changed; same inputs and outputs.
        input_shapes: fixes dynamic dimensions, also of what foreign operators write.
    """
    foreign = _foreign_operators(original)
    if not foreign:
        return None
    fed = _declared(original, foreign, input_shapes)
    before, after = _cut(original, foreign, fed), _cut(result, foreign, fed)
    problem = _difference(before, after)
    handed_out = [] if problem else before.handed_out
    return Opened(
        with_outputs(before.model, handed_out),
        with_outputs(after.model, handed_out),
        tuple(handed_out),
        problem,
        tuple(_notes(before, foreign)),
    )


def unchecked_tensors(model: onnx.ModelProto, input_shapes: _Shapes) -> frozenset[str]:
    """What is written by nodes that cannot be run: nothing there may be rewritten."""
    foreign = _foreign_operators(model)
    if not foreign:
        return frozenset()
    cut = _cut(model, foreign, _declared(model, foreign, input_shapes))
    return frozenset(name for node in cut.removed for name in node.output if name)


@dataclass(frozen=True)
class _Cut:
    model: onnx.ModelProto
    removed: list[onnx.NodeProto]
    handed_out: list[str]
    fed: list[str]
    lost: list[str]
    constants: Mapping[str, _Constant]


def _foreign_operators(model: onnx.ModelProto) -> frozenset[_Key]:
    """(domain, operator) of what cannot be run, functions that hold such operators among them."""
    known = known_operators() | {(f.domain, f.name) for f in model.functions}
    nodes = walk(model.graph, onnx.NodeProto)
    foreign = {key for key in map(_key, nodes) if key not in known}
    bodies = {(f.domain, f.name): [*map(_key, walk(f, onnx.NodeProto))] for f in model.functions}
    foreign |= {key for body in bodies.values() for key in body if key not in known}
    while more := {f for f, body in bodies.items() if not foreign.isdisjoint(body)} - foreign:
        foreign |= more
    return frozenset(foreign)


def _key(node: onnx.NodeProto) -> _Key:
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)


def _is_foreign(node: onnx.NodeProto, foreign: frozenset[_Key]) -> bool:
    return _key(node) in foreign or any(_key(n) in foreign for n in walk(node, onnx.NodeProto))


def _declared(
    model: onnx.ModelProto, foreign: frozenset[_Key], input_shapes: _Shapes
) -> dict[str, onnx.ValueInfoProto]:
    """What foreign nodes write and the file says type and shape of, so that it can be fed."""
    values = {v.name: v for v in [*model.graph.value_info, *model.graph.output]}
    symbols: dict[object, int] = {}
    batch: int | None = None
    for port in contract(model)[0]:
        given = input_shapes.get(port.name)
        if given and port.shape:
            symbols |= {d: g for d, g in zip(port.shape, given, strict=False) if isinstance(d, str)}
            batch = batch or given[0]
    found = {}
    for node in model.graph.node:
        for name in node.output if _is_foreign(node, foreign) else ():
            if name in values:
                port = port_of(values[name])
                dims = [symbols.get(d, d) for d in port.shape or ()]
                if dims and not is_static(dims[0]):
                    dims[0] = batch or dims[0]
                if port.shape is None or port.dtype not in NUMPY_DTYPES:
                    continue
                if all(map(is_static, dims[1:])):
                    kind = values[name].type.tensor_type.elem_type
                    found[name] = onnx.helper.make_tensor_value_info(name, kind, dims)
    return found


def _cut(
    model: onnx.ModelProto,
    foreign: frozenset[_Key],
    declared: Mapping[str, onnx.ValueInfoProto],
) -> _Cut:
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    graph = cut.graph
    remove_dead(graph)
    constants: dict[str, _Constant] = {t.name: t for t in graph.initializer}
    constants |= {t.values.name: t for t in graph.sparse_initializer}
    kept: list[onnx.NodeProto] = []
    removed: list[onnx.NodeProto] = []
    gone: set[str] = set()
    for node in graph.node:
        if _is_foreign(node, foreign) or not gone.isdisjoint(_reads(node)):
            removed.append(node)
            gone.update(o for o in node.output if o and o not in declared)
            continue
        kept.append(node)
        if (tensor := constant_of(node)) is not None:
            constants[tensor.name] = tensor
    made = {name for node in kept for name in node.output if name}
    read = {name for node in kept for name in _reads(node)}
    fed = [o for node in removed for o in node.output if o in declared and o in read]
    cut_off = {o for node in removed for o in node.output}
    lost = [v.name for v in graph.output if v.name in cut_off]
    outputs = [v for v in graph.output if v.name not in cut_off]
    wanted = dict.fromkeys(name for node in removed for name in _reads(node))
    present = constants.keys() | {v.name for v in outputs}
    handed_out = [name for name in wanted if name in made and name not in present]
    functions = [f for f in cut.functions if (f.domain, f.name) not in foreign]
    removed = [_copy(node) for node in removed]
    for field, items in (
        (graph.node, kept),
        (graph.input, [*graph.input, *(declared[name] for name in fed)]),
        (graph.output, outputs),
        (cut.functions, functions),
    ):
        replace_items(field, items)
    graph.ClearField("value_info")
    return _Cut(cut, removed, handed_out, fed, lost, constants)


def _copy(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names a node reads, those its subgraphs read among them (and what they read of their own)."""
    yield from filter(None, node.input)
    for inner in walk(node, onnx.NodeProto):
        yield from filter(None, inner.input)
    for body in walk(node, onnx.GraphProto):
        yield from (value.name for value in body.output)


def _difference(before: _Cut, after: _Cut) -> str:
    """How the two parts that were cut away differ; they cannot be run, so nothing in them may."""
    ours = {tuple(n.output): _fingerprint(n, before.constants) for n in before.removed}
    theirs = {tuple(n.output): _fingerprint(n, after.constants) for n in after.removed}
    for outputs in dict.fromkeys([*ours, *theirs]):
        if ours.get(outputs) != theirs.get(outputs):
            node = next(n for n in [*before.removed, *after.removed] if tuple(n.output) == outputs)
            what = (
                "is gone" if outputs not in theirs else
                "is new" if outputs not in ours else "is not the same"
            )  # fmt: skip
            return (
                f"{_name(_key(node))} ({', '.join(filter(None, outputs))}) {what}, and cannot be "
                "compared by running it: onnxruntime does not know it or something before it"
            )
    if before.handed_out != after.handed_out or before.fed != after.fed:
        return "what onnxruntime does not know is connected in another way"
    return ""


def _fingerprint(node: onnx.NodeProto, constants: Mapping[str, _Constant]) -> list[object]:
    """All of a node that counts, and the constants it reads."""
    copy: onnx.NodeProto = _copy(node)
    for inner in [copy, *walk(copy, onnx.NodeProto)]:
        inner.ClearField("name")
        inner.ClearField("doc_string")
        inner.ClearField("metadata_props")
        for field in ("domain", "overload"):  # absent and empty are the same
            if not getattr(inner, field):
                inner.ClearField(field)
        attributes = sorted(inner.attribute, key=lambda a: a.name)
        for attribute in attributes:
            attribute.ClearField("doc_string")
        attributes = [_copy(a) for a in attributes]
        del inner.attribute[:]
        inner.attribute.extend(attributes)
    for body in walk(copy, onnx.GraphProto):
        for field in ("name", "doc_string", "value_info", "metadata_props"):
            body.ClearField(field)
    for tensor in walk(copy, onnx.TensorProto):
        tensor.CopyFrom(_plain(tensor))
    while copy.input and not copy.input[-1]:
        del copy.input[-1]
    read = dict.fromkeys(name for name in _reads(copy) if name in constants)
    return [
        _key(copy),
        copy.SerializeToString(deterministic=True),
        *(_plain(constants[name]).SerializeToString(deterministic=True) for name in read),
    ]


def _plain(constant: _Constant) -> _Constant:
    """The same values in the one form they are compared in."""
    if isinstance(constant, onnx.SparseTensorProto) or constant.data_type == constant.STRING:
        return constant
    plain = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(constant))
    plain.name = constant.name
    return plain


def _name(key: _Key) -> str:
    return f"{key[0]}:{key[1]}" if key[0] else key[1]


def _notes(cut: _Cut, foreign: frozenset[_Key]) -> Iterator[str]:
    alien = [node for node in cut.removed if _is_foreign(node, foreign)]
    places = ", ".join(f"{_name(_key(n))} ({_quoted(n.output)})" for n in alien)
    yield f"not run, as onnxruntime does not know it: {places}; the same in both models"
    behind = [node for node in cut.removed if not _is_foreign(node, foreign)]
    if behind:
        yield (
            "not run, as no shape is declared for what such an operator writes: "
            f"{len(behind)} nodes from {_quoted(behind[0].output[:1])} on; the same in both models"
        )
    if cut.fed:
        yield f"what is behind {_quoted(cut.fed)} was compared on random values of it"
    instead = f"; what goes into it was: {_quoted(cut.handed_out)}" if cut.handed_out else ""
    if cut.lost:
        yield f"not compared by running: output {_quoted(cut.lost)}{instead}"
    elif instead:
        yield f"not compared end to end{instead}"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names if name)
