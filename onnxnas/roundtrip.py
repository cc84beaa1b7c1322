"""In and out of graphsurgeon without loss: what it cannot carry is put back, or refused."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, update_import_domains
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.misc import SynchronizedList

from onnxnas.errors import UnsupportedError
from onnxnas.protos import attribute_kind, first_line, walk


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep tools that log to the terminal quiet, those written in C++ too, while they run."""
    with (
        open(os.devnull, "w") as nowhere,
        _descriptor_to(nowhere.fileno(), sys.stdout, 1),
        _descriptor_to(nowhere.fileno(), sys.stderr, 2),
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        G_LOGGER.suppress(),
    ):
        yield


@contextlib.contextmanager
def _descriptor_to(nowhere: int, stream: Any, descriptor: int) -> Iterator[None]:
    """Send what a process writes to one of its own streams elsewhere."""
    stream.flush()
    try:
        terminal = os.dup(descriptor)
    except OSError:  # the process has no such stream
        yield
        return
    try:
        os.dup2(nowhere, descriptor)
        yield
    finally:
        if os.name == "posix":  # C keeps what is not for a terminal until its buffer is full
            ctypes.CDLL(None).fflush(None)
        os.dup2(terminal, descriptor)
        os.close(terminal)


def import_graph(model: onnx.ModelProto) -> Any:
    """What `gs.import_onnx` gives, sharing no list with the model.

    Raises:
        UnsupportedError: the model holds something that would be lost on the way.
    """
    _refuse_unrepresentable(model)
    try:
        with G_LOGGER.suppress():
            graph = gs.import_onnx(model)
    except Exception as error:  # of whatever kind: it was written for models as they should be
        raise UnsupportedError(
            f"The model cannot be rewritten: graphsurgeon does not read it "
            f"({type(error).__name__}: {first_line(error)})."
        ) from error
    # The list graphsurgeon keeps is the model's own, and it appends to it when it exports.
    graph.import_domains = [
        onnx.helper.make_opsetid(o.domain, o.version) for o in model.opset_import
    ]
    return graph


def copy_graph(graph: Any) -> Any:
    """What `gs.Graph.copy` gives, which copies every tensor twice."""
    copies = {name: _copy_tensor(tensor) for name, tensor in graph.tensors().items()}
    for tensor in [*graph.inputs, *graph.outputs]:
        copies.setdefault(tensor.name, tensor.copy())

    def own(tensors: Iterable[Any]) -> list[Any]:
        return [copies[t.name] if t.name else gs.Variable.empty() for t in tensors]

    nodes = [node.copy(own(node.inputs), own(node.outputs), copies) for node in graph.nodes]
    return _like(graph, nodes, own(graph.inputs), own(graph.outputs))


def _copy_tensor(tensor: Any) -> Any:
    """What its `copy` gives, past setters that look for edges: it has none yet."""
    new = object.__new__(type(tensor))
    own = vars(new)
    own.update(vars(tensor))
    own["inputs"] = SynchronizedList(new, "outputs", ())
    own["outputs"] = SynchronizedList(new, "inputs", ())
    if isinstance(tensor, gs.Constant):
        own["data_location"], own["_export_dtype"] = None, tensor.export_dtype
    else:
        own["type"] = "tensor_type"
    return new


def export_graph(graph: Any, *, consume: bool = False) -> onnx.ModelProto:
    """What `gs.export_onnx` gives, without its traps; the graph is not changed.

    Args:
        graph: `gs.Graph`.
        consume: the graph is not needed any more, so it need not be copied.
    """
    view = graph if consume else copy_graph(graph)
    for tensor in view.tensors().values():
        held = getattr(tensor, "_values", None)
        # Copies share the proto of an unread weight, and export writes the name into it.
        if held is not None and type(held) is LazyValues and held.tensor.name != tensor.name:
            proto = onnx.TensorProto()
            proto.CopyFrom(held.tensor)
            proto.name = tensor.name
            tensor.values = LazyValues(proto)
    empty = _take_empty_lists(view)
    with G_LOGGER.suppress():
        model: onnx.ModelProto = gs.export_onnx(view, do_type_check=False)
    nodes = list(walk(model, onnx.NodeProto)) if empty else []
    for node in nodes:
        for key, kind in empty.get(node.output[0] if node.output else "", {}).items():
            node.attribute.append(onnx.helper.make_attribute(key, [], attr_type=kind))
    return model


def export_skeleton(
    graph: Any, is_weight: Callable[[Any], bool], is_open: Callable[[Any], bool]
) -> onnx.ModelProto:
    """The graph as `export_graph` gives it, but for what shape inference has no need of.

    Args:
        graph: `gs.Graph`; is not changed, and no copy of it is made.
        is_weight: constants that become inputs: shape and dtype, no values.
        is_open: variables whose shape and dtype are left out.
    """
    inputs, constants, values = list(graph.inputs), list[Any](), list[Any]()
    edge = {t.name for t in [*graph.inputs, *graph.outputs]}
    for tensor in graph.tensors().values():
        if not isinstance(tensor, gs.Constant):
            known = tensor.dtype is not None or tensor.shape is not None
            if known and tensor.name not in edge and not is_open(tensor):
                values.append(tensor)
        elif is_weight(tensor):
            inputs.append(gs.Variable(tensor.name, tensor.export_dtype, tuple(tensor.shape)))
        else:
            constants.append(tensor)
    outputs = [gs.Variable(t.name) if is_open(t) else t for t in graph.outputs]
    with G_LOGGER.suppress():
        body = onnx.helper.make_graph(
            [_export_node(graph, node) for node in graph.nodes],
            graph.name,
            [_export_info(t) for t in inputs],
            [_export_info(t) for t in outputs],
            initializer=[_export_constant(t) for t in constants],
            value_info=[_export_info(t) for t in values],
        )
        functions = [OnnxExporter.export_function(function) for function in graph.functions]
        imports = update_import_domains(graph)
    model = onnx.helper.make_model(body, opset_imports=imports, functions=functions)
    if graph.ir_version is not None:
        model.ir_version = graph.ir_version
    return model


def _export_info(tensor: Any) -> onnx.ValueInfoProto:
    found: onnx.ValueInfoProto = OnnxExporter.export_value_info_proto(tensor, False)
    return found


def _export_constant(tensor: Any) -> onnx.TensorProto:
    held = tensor._values
    if type(held) is not LazyValues:
        found: onnx.TensorProto = OnnxExporter.export_tensor_proto(tensor)
        return found
    proto = onnx.TensorProto()  # copies of a graph share that of an unread weight
    proto.CopyFrom(held.tensor)
    proto.name = tensor.name
    return proto


def _export_node(graph: Any, node: Any) -> onnx.NodeProto:
    """One node of a graph as `export_graph` gives it."""
    found: onnx.NodeProto
    empty = any(isinstance(value, list) and not value for value in node.attrs.values())
    if empty or any(node.subgraphs()):
        ends = [[gs.Variable(t.name) for t in tensors] for tensors in (node.inputs, node.outputs)]
        (found,) = export_graph(_like(graph, [node.copy(*ends)], [], [])).graph.node
    else:
        found = OnnxExporter.export_node(node)
    return found


def _like(graph: Any, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """A graph of these, with everything else as in another."""
    return gs.Graph(
        nodes,
        inputs,
        outputs,
        name=graph.name,
        doc_string=graph.doc_string,
        opset=graph.opset,
        import_domains=graph.import_domains,
        functions=list(graph.functions),
        ir_version=graph.ir_version,
    )


def restore(model: onnx.ModelProto, like: onnx.ModelProto) -> None:
    """Give a model, in place, what a round trip lost of the one it came from.

    Inputs and outputs get back their exact declarations where their names are the same.
    """
    model.ir_version = max(like.ir_version, 4)  # from 4 on weights need not be inputs
    model.producer_name, model.producer_version = like.producer_name, like.producer_version
    model.domain, model.model_version = like.domain, like.model_version
    model.doc_string = like.doc_string
    for field in ("metadata_props", "functions"):
        model.ClearField(field)
        getattr(model, field).extend(getattr(like, field))
    model.graph.name, model.graph.doc_string = like.graph.name, like.graph.doc_string
    model.graph.ClearField("metadata_props")
    model.graph.metadata_props.extend(like.graph.metadata_props)
    declared = {v.name: v for v in [*like.graph.input, *like.graph.output]}
    for value in [*model.graph.input, *model.graph.output]:
        if value.name in declared:
            value.CopyFrom(declared[value.name])
    original = {output: node for node in like.graph.node for output in node.output if output}
    present = {*declared, *(t.name for t in model.graph.initializer)}
    for node in model.graph.node:
        present.update(node.output)
        source = original.get(node.output[0]) if node.output else None
        if source is None or (source.op_type, source.domain) != (node.op_type, node.domain):
            continue
        node.ClearField("metadata_props")
        node.metadata_props.extend(source.metadata_props)
        node.doc_string, node.overload = source.doc_string, source.overload
    model.graph.ClearField("quantization_annotation")
    model.graph.quantization_annotation.extend(
        a for a in like.graph.quantization_annotation if a.tensor_name in present
    )


def _take_empty_lists(graph: Any) -> dict[str, dict[str, int]]:
    """Remove attributes that are empty lists, whose type the exporter cannot tell.

    Returns:
        First output of the node -> attribute name -> attribute type.
    """
    taken: dict[str, dict[str, int]] = {}
    for node in graph.nodes:
        for key in [k for k, v in node.attrs.items() if isinstance(v, list) and not v]:
            domain = node.domain or ""
            kind: int = onnx.AttributeProto.INTS
            if onnx.defs.has(node.op, domain):
                declared = onnx.defs.get_schema(node.op, domain).attributes.get(key)
                if declared:
                    # the stubs do not know it is an enumeration
                    kind = onnx.AttributeProto.AttributeType.Value(declared.type.name)  # type: ignore[attr-defined]
            del node.attrs[key]
            taken.setdefault(node.outputs[0].name, {})[key] = kind
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                taken.update(_take_empty_lists(value))
    return taken


_LOST_ATTRIBUTES = frozenset({"TENSORS", "GRAPHS", "SPARSE_TENSOR", "SPARSE_TENSORS",
                              "TYPE_PROTO", "TYPE_PROTOS"})  # fmt: skip


def _refuse_unrepresentable(model: onnx.ModelProto) -> None:
    """The importer skips some attributes with a log line, and fails on others."""
    if model.graph.sparse_initializer:  # cleaning makes them dense
        raise UnsupportedError("The model cannot be rewritten: it has sparse weights.")
    for node in walk(model, onnx.NodeProto):
        name = f"{node.op_type} node {node.name or ', '.join(node.output)!r}"
        for attribute in node.attribute:
            kind = attribute_kind(attribute)
            texts = [attribute.s, *attribute.strings]
            if kind in _LOST_ATTRIBUTES or any(not _is_utf8(text) for text in texts):
                raise UnsupportedError(
                    f"The model cannot be rewritten: attribute {attribute.name!r} of {name} "
                    f"({kind}) cannot be carried over."
                )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
