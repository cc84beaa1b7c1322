"""Between ONNX protos and the graph that passes work on; shapes, the contract, validity.

Raw protos are touched in this layer only (`loading`, `normalise`, `graph`); everything above
works on plain `onnx_graphsurgeon.Graph`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxnas.errors import UsageError, VerificationError
from onnxnas.protos import (
    MAX_PROTO_BYTES,
    first_line,
    type_name,
    weight_bytes,
    without_weights,
)
from onnxnas.roundtrip import (
    copy_graph,
    export_graph,
    export_skeleton,
    import_graph,
    restore,
    silenced,
)

Shape = tuple[int | str | None, ...]
_SMALL = 1024
"""Constants up to this many elements keep their values during shape inference: they may be
shapes, axes or indices. Larger ones are weights, whose values no shape depends on."""


@dataclass(frozen=True)
class Port:
    """One graph input or output: what a caller of the model relies on.

    Attributes:
        name: as in the file.
        dtype: ``float``, ``int64``, ...; ``sequence(float)`` and the like for what is no tensor.
        shape: sizes, symbols, and None where open; None for a tensor of unknown rank.
    """

    name: str
    dtype: str
    shape: Shape | None

    def __str__(self) -> str:
        dims = (
            "?"
            if self.shape is None
            else ",".join("?" if d is None else str(d) for d in self.shape)
        )
        return f"{self.name}: {self.dtype}[{dims}]"


class LazyWeight(LazyValues):  # type: ignore[misc]
    """A constant whose values are computed at export, once, and never while costing structure.

    Args:
        shape: of the values.
        dtype: of the values.
        compute: returns the values; called at most once over all copies of the graph.
        density: share of the values that may differ from zero, where the structure says so;
            lets a cost model guess how well the values will compress.
        levels: distinct values of an output channel, likewise; 0 where any will be.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        compute: Callable[[], NDArray[Any]],
        density: float = 1.0,
        levels: int = 0,
    ) -> None:
        self.density, self.levels = density, levels
        self.shape = tuple(int(d) for d in shape)
        self.dtype = np.dtype(dtype)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self._compute: Callable[[], NDArray[Any]] | None = compute
        self._values: NDArray[Any] | None = None

    @property
    def evaluated(self) -> bool:
        """Whether the values were computed already."""
        return self._values is not None

    def load(self) -> NDArray[Any]:
        """The values, read-only."""
        if self._values is None:
            assert self._compute is not None
            # A copy: no weight of the result shares memory with one of the original.
            values = np.array(self._compute(), dtype=self.dtype, order="C")
            if values.shape != self.shape:
                raise ValueError(f"computed values of shape {values.shape}, not {self.shape}")
            values.flags.writeable = False
            self._values, self._compute = values, None
        return self._values

    @property
    def tensor(self) -> onnx.TensorProto:
        """The values as the exporter wants them."""
        return onnx.numpy_helper.from_array(self.load())


def values_of(constant: Any) -> NDArray[Any]:
    """Values of a graphsurgeon constant, read-only.

    Copies of a graph share weight arrays, so nothing may write into one; making them read-only
    turns that mistake into an error at once.
    """
    values: NDArray[Any] = constant.values
    values.flags.writeable = False
    return values


def from_model(model: onnx.ModelProto) -> Any:
    """Import a model with the shapes of all its tensors inferred, as `gs.Graph`.

    Raises:
        UnsupportedError: the model holds something that would be lost or changed on the way.
        UsageError: its operators contradict each other's shapes or types.
    """
    graph = import_graph(model)
    tensors = graph.tensors()
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        tensor = tensors.get(value.name)
        if not isinstance(tensor, gs.Variable):
            continue
        if value.type.WhichOneof("value") == "tensor_type":
            # graphsurgeon prefers a duplicate entry in value_info to the declared contract.
            shape = _shape(value)
            tensor.shape = None if shape is None else list(shape)
        else:
            # Copies would turn sequences into tensors; `to_model` restores those of the contract.
            tensor.dtype, tensor.shape = None, None
    try:
        infer_shapes(graph)
    except Exception as error:
        raise UsageError(f"The model contradicts itself: {first_line(error)}.") from error
    return graph


def to_model(
    graph: Any, like: onnx.ModelProto, provenance: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """Export a graph; all that graphsurgeon does not carry is taken from the model it came from.

    Args:
        graph: `gs.Graph`; is not changed.
        like: the model the graph was imported from: contract, IR version, metadata, functions,
            documentation. Training information is not taken over: it names weights.
        provenance: output tensor -> what made the node, written to the node's metadata. Readers
            of files older than IR 10 skip it, so the IR version stays what the user's runtime
            reads.
    """
    model = export_graph(graph)
    restore(model, like)
    made = provenance or {}
    for node in model.graph.node:
        made_by = next((made[o] for o in node.output if o in made), None)
        if made_by:
            set_metadata(node, {"onnxnas.rewrite": made_by})
    return model


def infer_shapes(graph: Any, *, strict: bool = False) -> None:
    """Set shape and dtype of every intermediate tensor, in place.

    Runs ONNX shape inference on a skeleton in which weights are bare shapes, so no lazy weight
    is computed and the cost does not depend on the model's size. Tensors inference says nothing
    about become unknown (`shape` None), but what operators unknown to ONNX write keeps the shape
    it was declared with. Declared shapes of graph outputs stay; only open ones are filled in.

    Args:
        graph: `gs.Graph`.
        strict: fail where operators do not fit together, rather than leave shapes open.

    Raises:
        Exception: onnx's own, of several kinds, where the graph contradicts itself.
    """
    inferred = onnx.shape_inference.infer_shapes(
        _skeleton(graph), strict_mode=strict, data_prop=True
    )
    known = {v.name: v for v in [*inferred.graph.value_info, *inferred.graph.output]}
    outputs = {id(t) for t in graph.outputs}
    for node in graph.nodes:
        for tensor in node.outputs:
            info = known.get(tensor.name)
            if info is not None and info.type.WhichOneof("value") not in (None, "tensor_type"):
                continue  # a sequence, an optional
            shape = None if info is None else _shape(info)
            if id(tensor) in outputs and tensor.shape is not None:
                shape = _filled_in(tuple(tensor.shape), shape)
            if shape is not None or not _is_opaque(node):
                tensor.shape = None if shape is None else list(shape)
            kind = 0 if info is None else info.type.tensor_type.elem_type
            if kind:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
                # graphsurgeon keeps the number where NumPy itself lacks the type.
                tensor.dtype = dtype if dtype.isbuiltin == 1 else kind


def _filled_in(declared: Shape, inferred: Shape | None) -> Shape:
    if inferred is None or len(inferred) != len(declared):
        return declared
    return tuple(
        new if old is None and is_static(new) else old
        for old, new in zip(declared, inferred, strict=True)
    )


def _is_opaque(node: Any) -> bool:
    """Whether shape inference cannot know what a node writes."""
    return not onnx.defs.has(node.op, node.domain or "")


def static_view(graph: Any, input_shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """A copy in which every input has a fixed shape, and all others follow from it.

    This is what a cost model sees; where a shape depends on data, it stays unknown. The graph
    itself, and so the exported contract, keeps its dynamic dimensions. Shape computations that
    become constant are folded.

    Raises:
        UsageError: an input stays dynamic, or the operators do not accept the shapes.
    """
    view = copy_graph(graph)
    for tensor in view.inputs:
        tensor.shape = list(resolve_shape(tensor, input_shapes))
    declared = {id(tensor) for tensor in view.outputs}
    for tensor in view.tensors().values():
        made = isinstance(tensor, gs.Variable) and bool(tensor.inputs)
        if made and (id(tensor) in declared or not _is_opaque(tensor.inputs[0])):
            tensor.shape = None
    _infer_or_refuse(view)
    if any(node.op in _SHAPE_OPS for node in view.nodes):
        with silenced():
            view.fold_constants(size_threshold=1 << 20).cleanup()
        _infer_or_refuse(view)
    view.cleanup().toposort()
    return view


_SHAPE_OPS = frozenset({"Constant", "Shape", "ConstantOfShape", "Range", "NonZero", "Size"})


def _infer_or_refuse(view: Any) -> None:
    try:
        infer_shapes(view, strict=True)
    except Exception as error:
        sizes = ", ".join(f"{t.name}:{','.join(map(str, t.shape))}" for t in view.inputs)
        raise UsageError(
            f"The model does not accept inputs of shape {sizes}: {first_line(error)}; "
            "give shapes it accepts with --input-shape name:1,3,224,224."
        ) from error


def resolve_shape(tensor: Any, input_shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The static shape of one graph input: as given, or as declared with a batch of 1.

    Raises:
        UsageError: the given shape contradicts the declared one, or a dimension other than the
            first is dynamic and not given.
    """
    declared = tensor.shape
    given = input_shapes.get(tensor.name)
    sizes = "1,3,224,224" if declared is None else _example(declared)
    example = f"--input-shape {tensor.name}:{sizes}"
    if given is not None:
        if declared is not None and (
            len(given) != len(declared)
            or any(is_static(d) and d != g for d, g in zip(declared, given, strict=True))
        ):
            wanted = ",".join(str(d) for d in declared)
            raise UsageError(
                f"Input {tensor.name!r} is declared as [{wanted}], "
                f"which --input-shape {','.join(map(str, given))} does not fit."
            )
        return given
    if declared is None:
        raise UsageError(f"Input {tensor.name!r} has no declared shape: give one, e.g. {example}.")
    shape = [1 if i == 0 and not is_static(d) else d for i, d in enumerate(declared)]
    if not all(is_static(d) for d in shape):
        text = ",".join(str(d) if is_static(d) else "?" for d in shape)
        raise UsageError(
            f"Input {tensor.name!r} has dynamic dimensions [{text}]: fix them for costing, "
            f"e.g. {example} (the exported model keeps them dynamic)."
        )
    return tuple(int(d) for d in shape)


def _example(declared: Sequence[object]) -> str:
    return ",".join(
        str(d if is_static(d) else 1 if i == 0 else 224) for i, d in enumerate(declared)
    )


def is_static(dimension: object) -> TypeGuard[int]:
    """Whether a dimension is a known size (symbols, None and the odd -1 or 0 are not)."""
    return isinstance(dimension, int) and dimension > 0


def contract(model: onnx.ModelProto) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs (initializers not counted) and outputs of a model, in order."""
    constants = {t.name for t in model.graph.initializer}
    constants |= {t.values.name for t in model.graph.sparse_initializer}
    return (
        tuple(port_of(v) for v in model.graph.input if v.name not in constants),
        tuple(port_of(v) for v in model.graph.output),
    )


def check_model(model: onnx.ModelProto, *, full: bool = True) -> None:
    """ONNX checker; a model too large to be serialised is checked without its weights.

    Args:
        model: is not changed.
        full: also run strict shape inference.

    Raises:
        VerificationError: the model is not valid; the message is the checker's.
    """
    if weight_bytes(model) > MAX_PROTO_BYTES:
        model = without_weights(model)
    try:
        onnx.checker.check_model(model, full_check=full)
    except Exception as error:
        raise VerificationError(f"The model is not valid ONNX: {first_line(error)}.") from error


def set_metadata(holder: onnx.ModelProto | onnx.NodeProto, values: Mapping[str, str]) -> None:
    """Set metadata entries of a model or node; entries of the same key are replaced."""
    kept = [p for p in holder.metadata_props if p.key not in values]
    pairs = [(p.key, p.value) for p in kept] + list(values.items())
    del holder.metadata_props[:]
    for key, value in pairs:
        holder.metadata_props.add(key=key, value=value)


def count_parameters(graph: Any) -> int:
    """Number of values in all floating-point constants."""
    return sum(
        int(np.prod(t.shape, dtype=np.int64))
        for t in graph.tensors().values()
        if isinstance(t, gs.Constant) and _is_float(t.dtype)
    )


def _is_float(dtype: Any) -> bool:
    if isinstance(dtype, int):  # the ONNX number of a type that NumPy lacks
        return "FLOAT" in onnx.TensorProto.DataType.Name(dtype)
    return bool(np.dtype(dtype).kind == "f")


def port_of(value: onnx.ValueInfoProto) -> Port:
    """What a declaration of an input, an output or an inner tensor says."""
    dtype = type_name(value.type)
    return Port(value.name, dtype, _shape(value) if value.type.HasField("tensor_type") else None)


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims: list[int | str | None] = []
    for dim in value.type.tensor_type.shape.dim:
        kind = dim.WhichOneof("value")
        dims.append(dim.dim_value if kind == "dim_value" else dim.dim_param or None)
    return tuple(dims)


def _skeleton(graph: Any) -> onnx.ModelProto:
    """The graph as a proto in which weights are inputs: shape and dtype, no values."""
    made = {id(t) for node in graph.nodes if not _is_opaque(node) for t in node.outputs}
    return export_skeleton(graph, _is_weight, lambda tensor: id(tensor) in made)


def _is_weight(constant: Any) -> bool:
    lazy = isinstance(constant._values, LazyWeight)
    return lazy or int(np.prod(constant.shape, dtype=np.int64)) > _SMALL
