"""What lowering one graph to TFLite keeps track of: tensors, their layouts, fused nodes, weights.

TFLite is channels-last and ONNX channels-first. A tensor's `Layout` says which ONNX axis each
TFLite axis holds, so going from one convention to the other is a relabelling that costs
nothing; operators ask for the layout they need and get a TRANSPOSE only where a real converter
could not avoid one either.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import ArrayLike, NDArray

from onnxnas.graph import values_of
from onnxnas.hwmodels.tflite_writer import Quantization, TfliteWriter, int32
from onnxnas.ops import clip_bounds, sole_consumer

Layout = tuple[int, ...]
"""For each TFLite axis, the ONNX axis it holds."""

_T = TypeVar("_T")
_DUMMY = Quantization((0.05,), 0)
"""Activations of networks nobody calibrated. Scales do not change costs, see the tests."""


class CannotLower(Exception):
    """The reason why a node has no TFLite form; the caller reports it, never a user."""


def channels_last(rank: int) -> Layout:
    """Batch, then the spatial axes, then channels; the identity below three axes."""
    return (0, *range(2, rank), 1) if rank >= 3 else plain(rank)


def plain(rank: int) -> Layout:
    """The ONNX order itself."""
    return tuple(range(rank))


def same_order(shape: Sequence[int], one: Layout, other: Layout) -> bool:
    """Whether two layouts of a tensor place its elements in the same order in memory."""
    return [a for a in one if shape[a] != 1] == [a for a in other if shape[a] != 1]


def is_bytes(tensor: Any) -> bool:
    """Whether a tensor is of integers of eight bits."""
    dtype = None if tensor.dtype is None else np.dtype(tensor.dtype)
    return dtype is not None and dtype.kind in "iu" and dtype.itemsize == 1


def of_bytes(tensor: Any) -> Quantization:
    """What makes INT8 of the numbers of such a tensor."""
    return Quantization((1.0,), -128 if np.dtype(tensor.dtype).kind == "u" else 0)


class WeightCache:
    """Quantised weights by identity of the array they came from.

    Copies of a graph share weight arrays and nothing may write into one, so the candidates of a
    search need each weight quantised once. An entry goes when its array does.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[int, object], tuple[weakref.ref[Any], Any]] = {}

    def get(self, constant: Any, key: object, make: Callable[[NDArray[Any]], _T]) -> _T:
        """``make(values of constant)``, remembered under `key`."""
        source = constant._values  # lazy or an array; both are what copies of a graph share
        place = (id(source), key)
        found = self._entries.get(place)
        if found is not None and found[0]() is source:
            made: _T = found[1]
            return made
        made = make(values_of(constant))
        forget = weakref.ref(source, lambda _: self._entries.pop(place, None))
        self._entries[place] = (forget, made)
        return made


@dataclass
class Context:
    """State of lowering one graph.

    Attributes:
        graph: the `gs.Graph`, every variable with a static shape.
        weights: shared between graphs.
        ranges: real minimum and maximum per ONNX tensor; the file then computes what the
            network computes. Tensors without one get a dummy scale, which is enough for costs.
        largest_resize: factor up to which the target resizes in one operator.
    """

    graph: Any
    weights: WeightCache
    ranges: Mapping[str, tuple[float, float]]
    largest_resize: int = 8
    writer: TfliteWriter = field(default_factory=TfliteWriter)
    inputs: list[int] = field(default_factory=list)
    layouts: dict[str, Layout] = field(default_factory=dict)
    absorbed: list[Any] = field(default_factory=list)
    flattened: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Flattened tensor -> ONNX shape it had, where its elements lie in channels-last order."""
    _numbers: dict[tuple[str, Layout], int] = field(default_factory=dict)

    # Constants

    def constant(self, tensor: Any) -> Any | None:
        """The gs.Constant behind a tensor, also that of a Constant node, or None."""
        if isinstance(tensor, gs.Constant):
            return tensor
        if tensor.inputs and tensor.inputs[0].op == "Constant":
            value = tensor.inputs[0].attrs.get("value")
            return value if isinstance(value, gs.Constant) else None
        return None

    def values(self, tensor: Any) -> NDArray[Any] | None:
        """Values of a constant tensor, or None. Not for weights: see `weights`."""
        constant = self.constant(tensor)
        return None if constant is None else values_of(constant)

    def scalar(self, tensor: Any) -> float | None:
        """Value of a constant with one element, or None."""
        constant = self.constant(tensor)
        if constant is None or int(np.prod(constant.shape, dtype=np.int64)) != 1:
            return None
        return float(values_of(constant).reshape(()))

    def argument(self, node: Any, index: int, attribute: str | None = None) -> NDArray[Any] | None:
        """A parameter that is an attribute in old opsets and a constant input in new ones.

        Returns None where it is left out.

        Raises:
            CannotLower: the input is computed by the graph.
        """
        if attribute is not None and attribute in node.attrs:
            return np.asarray(node.attrs[attribute])
        if len(node.inputs) <= index or not node.inputs[index].name:
            return None
        values = self.values(node.inputs[index])
        if values is None:
            raise CannotLower(f"input {node.inputs[index].name!r} is computed, not constant")
        return values

    # Tensors

    def shape(self, tensor: Any) -> tuple[int, ...]:
        """Static ONNX shape.

        Raises:
            CannotLower: the shape is not known.
        """
        shape = tensor.shape
        if shape is None or not all(isinstance(d, (int, np.integer)) and d > 0 for d in shape):
            raise CannotLower(f"the shape of {tensor.name!r} is not static: {shape}")
        return tuple(int(d) for d in shape)

    def layout(self, tensor: Any) -> Layout:
        """Layout a tensor has now; inputs are images, channels-last, from three axes on."""
        rank = len(self.shape(tensor))
        if self.constant(tensor) is not None:
            return plain(rank)
        return self.layouts.get(tensor.name) or (channels_last(rank) if rank >= 4 else plain(rank))

    def read(self, tensor: Any, layout: Layout | None = None) -> int:
        """Number of a tensor in the layout it has, or in the given one."""
        wanted = layout or self.layout(tensor)
        key = (tensor.name, wanted)
        if key in self._numbers:
            return self._numbers[key]
        if self.constant(tensor) is not None:
            number = self.quantized_constant(tensor, wanted)
        elif wanted == self.layout(tensor):
            # Nothing lowered so far made it: an input of the graph, or of what comes after a cut.
            number = self.new(tensor, wanted)
            self.inputs.append(number)
        else:
            number = self._converted(tensor, wanted)
        self._numbers[key] = number
        return number

    def _converted(self, tensor: Any, wanted: Layout) -> int:
        if tensor.name in self.flattened:
            raise CannotLower(f"{tensor.name!r} was flattened channels-last")
        shape, layout = self.shape(tensor), self.layout(tensor)
        source = self.read(tensor)
        target = self.like(source, f"{tensor.name}/layout", [shape[a] for a in wanted])
        if same_order(shape, layout, wanted):
            self.reshape(source, target)
        else:
            permutation = [layout.index(a) for a in wanted]
            self.op("TRANSPOSE", [source, self.ints(permutation)], [target], "TransposeOptions")
        return target

    def write(
        self,
        tensor: Any,
        layout: Layout | None = None,
        like: int | None = None,
        quantization: Quantization | None = None,
    ) -> int:
        """Declare a tensor that the operator at hand computes; returns its number.

        Args:
            tensor: the ONNX variable.
            layout: of the result; default: channels-last from four axes on.
            like: take the quantisation and type of that tensor, for operators that only move
                elements.
            quantization: prescribed by the operator.
        """
        rank = len(self.shape(tensor))
        layout = layout or (channels_last(rank) if rank >= 4 else plain(rank))
        self.layouts[tensor.name] = layout
        shape = [self.shape(tensor)[a] for a in layout]
        if quantization is not None:
            number = self.writer.tensor(tensor.name, shape, "INT8", quantization)
        elif like is not None:
            number = self.like(like, tensor.name, shape)
        else:
            number = self.new(tensor, layout)
        self._numbers[tensor.name, layout] = number
        return number

    def alias(self, tensor: Any, source: Any, layout: Layout | None = None) -> None:
        """Let a tensor be another one under a new name: the node computes nothing."""
        number = self.read(source)
        self.layouts[tensor.name] = layout or self.layout(source)
        self._numbers[tensor.name, self.layouts[tensor.name]] = number

    def new(self, tensor: Any, layout: Layout) -> int:
        """A tensor quantised after its range; integer ONNX tensors become INT32, or stay bytes."""
        shape = [self.shape(tensor)[a] for a in layout]
        if is_bytes(tensor):
            return self.writer.tensor(tensor.name, shape, "INT8", of_bytes(tensor))
        if tensor.dtype is not None and not np.issubdtype(tensor.dtype, np.floating):
            return self.writer.tensor(tensor.name, shape, "INT32")
        return self.writer.tensor(tensor.name, shape, "INT8", self.quantization(tensor.name))

    def like(self, number: int, name: str, shape: Sequence[int]) -> int:
        """A new tensor with the type and quantisation of another."""
        other = self.writer.tensors[number]
        return self.writer.tensor(name, shape, other.dtype, other.quantization)

    def temporary(self, name: str, shape: Sequence[int], quantization: Quantization) -> int:
        """A tensor that no ONNX tensor corresponds to."""
        return self.writer.tensor(name, shape, "INT8", quantization)

    def quantization(self, name: str) -> Quantization:
        """Of an activation: int8 over its real range, or the dummy."""
        if name not in self.ranges:
            return _DUMMY
        low, high = min(0.0, self.ranges[name][0]), max(0.0, self.ranges[name][1])
        scale = max(high - low, 1e-6) / 255
        return Quantization((scale,), int(np.clip(round(-128 - low / scale), -128, 127)))

    def quantization_of(self, number: int) -> Quantization:
        """Of a tensor already added."""
        quantization = self.writer.tensors[number].quantization
        if quantization is None:
            raise CannotLower(f"{self.writer.tensors[number].name!r} is not quantised")
        return quantization

    def shape_of(self, number: int) -> tuple[int, ...]:
        """TFLite shape of a tensor already added."""
        return self.writer.tensors[number].shape

    def quantized_constant(self, tensor: Any, layout: Layout) -> int:
        """A float constant as INT8 with one symmetric scale, in a layout of its rank or more."""
        constant = self.constant(tensor)
        assert constant is not None
        if not np.issubdtype(constant.dtype, np.floating):
            raise CannotLower(f"constant {tensor.name!r} is {constant.dtype}")
        shape = [1] * (len(layout) - len(constant.shape)) + [int(d) for d in constant.shape]

        def make(values: NDArray[Any]) -> tuple[bytes, float]:
            scale = (float(np.abs(values).max()) if values.size else 0.0) / 127 or 1.0
            stored = np.clip(np.rint(values.reshape(shape).transpose(layout) / scale), -127, 127)
            return stored.astype(np.int8).tobytes(), scale

        data, scale = self.weights.get(constant, ("plain", layout), make)
        placed = [shape[a] for a in layout]
        return self.writer.tensor(tensor.name, placed, "INT8", Quantization((scale,)), data)

    def filled(self, name: str, value: float, like: Quantization | None = None) -> int:
        """A constant with one element, quantised on its own or like another tensor."""
        quantization = like or Quantization((abs(value) / 127 or 1.0,))
        stored = round(value / quantization.scales[0]) + quantization.zero_point
        data = np.int8(np.clip(stored, -128, 127)).tobytes()
        return self.writer.tensor(name, [1], "INT8", quantization, data)

    def ints(self, values: ArrayLike, scalar: bool = False) -> int:
        """An INT32 parameter of an operator: axes, paddings, a shape."""
        array = np.asarray(values, np.int32)
        shape = [] if scalar else array.shape
        name = f"ints/{len(self.writer.tensors)}"
        return self.writer.tensor(name, shape, "INT32", None, int32(array))

    # Operators

    def op(
        self,
        op: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        table: str = "",
        **options: Any,
    ) -> int:
        """Add an operator; see `TfliteWriter.operator`."""
        return self.writer.operator(op, inputs, outputs, table, **options)

    def requantized(self, number: int, quantization: Quantization) -> int:
        """A tensor in the given quantisation; a QUANTIZE only where it has another."""
        tensor = self.writer.tensors[number]
        if tensor.dtype != "INT8" or tensor.quantization == quantization:
            return number
        target = self.writer.tensor(
            f"{tensor.name}/requantized", tensor.shape, "INT8", quantization
        )
        self.op("QUANTIZE", [number], [target], "QuantizeOptions")
        return target

    def reshape(self, source: int, target: int) -> None:
        """Add a RESHAPE to the shape of `target`."""
        shape = self.ints(self.shape_of(target))
        self.op("RESHAPE", [source, shape], [target], "ReshapeOptions")

    # Fusion

    def only_reader(self, tensor: Any) -> Any | None:
        """The node that alone reads a tensor, or None."""
        return sole_consumer(tensor, self.graph)

    def absorb(self, *nodes: Any) -> None:
        """Count nodes as done by the operator at hand."""
        self.absorbed.extend(nodes)

    def fused_activation(self, output: Any) -> tuple[Any, str]:
        """The activation that the operator computing `output` can apply itself.

        Returns:
            the tensor the operator then writes, and the schema's name of the activation.
        """
        reader = self.only_reader(output)
        kind = None if reader is None else activation(reader)
        if reader is None or kind is None:
            return output, "NONE"
        self.absorb(reader)
        return reader.outputs[0], kind


def activation(node: Any) -> str | None:
    """The schema's fused activation a node corresponds to, or None."""
    if node.op == "Relu":
        return "RELU"
    if node.op != "Clip":
        return None
    bounds = clip_bounds(node)
    if bounds == (0.0, 6.0):
        return "RELU6"
    if bounds == (-1.0, 1.0):
        return "RELU_N1_TO_1"
    # Any other upper bound is where the int8 range of the output ends: it costs nothing.
    return "RELU" if bounds is not None and bounds[0] == 0.0 else None
