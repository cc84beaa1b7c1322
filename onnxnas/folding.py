"""Scalings and shifts of channels, folded into the convolution before or after them.

BatchNormalization behind a ConvTranspose, learned affine blocks and exporters that write a bias as
an Add leave them in the graph; on a target they are passes over memory that compute nothing the
weights could not.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxnas.protos import replace_items

Array = NDArray[np.float64]

_LINEAR = ("Conv", "ConvTranspose", "Gemm")
_EPSILON = 1e-5
"""Of BatchNormalization, where it says none (ONNX operator specification)."""


@dataclass(frozen=True)
class _Affine:
    """``scale * x + shift``, each a scalar () or per channel (channels,)."""

    x: str
    scale: Array
    shift: Array


def fold_affine(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Fold what scales and shifts channels into Conv, ConvTranspose and Gemm.

    Args:
        model: without subgraphs; is not changed.

    Returns:
        The model itself if nothing was found, else a changed copy; and what was done, in words.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    folding = _Folding(copy)
    count = 0
    while folding.step():
        count += 1
    if not count:
        return model, []
    folding.finish()
    return copy, [f"folded into convolutions: {count} scalings and shifts of channels"]


class _Folding:
    """One graph, changed in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.nodes = list(self.graph.node)
        self.given = {v.name for v in [*self.graph.input, *self.graph.output]}
        self.tensors = {t.name: t for t in self.graph.initializer}
        self.inputs = {v.name: v.type.tensor_type.shape.dim for v in self.graph.input}

    def step(self) -> bool:
        """Fold one node away, if there is one to fold."""
        self.makers = {o: n for n in self.nodes for o in n.output if o}
        self.readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        ways = (self._into_before, self._into_after, self._past_a_shift)
        return any(way(node) for node in self.nodes for way in ways)

    def finish(self) -> None:
        """Write nodes and weights that are left back to the graph."""
        replace_items(self.graph.node, self.nodes)
        used = {name for node in self.nodes for name in node.input} | self.given
        kept = [tensor for name, tensor in self.tensors.items() if name in used]
        replace_items(self.graph.initializer, kept)
        made = {name for node in self.nodes for name in node.output}
        replace_items(self.graph.value_info, [v for v in self.graph.value_info if v.name in made])

    def _into_before(self, node: onnx.NodeProto) -> bool:
        """``affine(conv(x))`` as one convolution."""
        for name in node.input:
            maker = self.makers.get(name)
            if maker is None or maker.op_type not in _LINEAR or not self._only(name, node):
                continue
            tensor = self._weight(maker)
            if tensor is None or self._is_half_a_gate(node):
                continue
            channels = _channels_out(maker, tensor)
            found = self._affine(node, name, channels, len(tensor.dims))
            bias = self._bias(maker, channels)
            if found is None or bias is None:
                continue
            weight = numpy_helper.to_array(tensor)
            scale = np.broadcast_to(found.scale, (channels,))
            self._put(maker, 1, _scaled_outputs(maker, weight, scale), weight.dtype)
            self._put(maker, 2, bias * scale + found.shift, weight.dtype)
            maker.output[0] = node.output[0]
            self._remove(node)
            return True
        return False

    def _into_after(self, node: onnx.NodeProto) -> bool:
        """``conv(affine(x))`` as one convolution; a shift only where no border is padded."""
        reader = self._sole_reader(node)
        if reader is None or reader.op_type != "Conv" or reader.input[0] != node.output[0]:
            return False
        tensor = self._weight(reader)
        if tensor is None:
            return False
        group = _integer(reader, "group", 1)
        outputs, channels = tensor.dims[0], tensor.dims[1] * group
        for name in node.input:
            found = self._affine(node, name, channels, len(tensor.dims))
            bias = self._bias(reader, outputs)
            if found is None or bias is None or not self._may_lose(name, channels):
                continue
            if found.shift.any() and _pads(reader):
                continue
            weight = numpy_helper.to_array(tensor)
            scale, shift = (_by_input(v, weight.shape, group) for v in (found.scale, found.shift))
            if found.shift.any():
                moved = (weight * shift).reshape(outputs, -1).sum(1)
                self._put(reader, 2, bias + moved, weight.dtype)
            self._put(reader, 1, weight * scale, weight.dtype)
            reader.input[0] = name
            self._remove(node)
            return True
        return False

    def _past_a_shift(self, node: onnx.NodeProto) -> bool:
        """``conv(scale * x + shift)``, border padded: ``conv(x + shift / scale)``."""
        between = self._sole_reader(node)
        reader = None if between is None else self._sole_reader(between)
        if between is None or reader is None or reader.op_type != "Conv":
            return False
        tensor = self._weight(reader) if reader.input[0] == between.output[0] else None
        if tensor is None:
            return False
        group, rank = _integer(reader, "group", 1), len(tensor.dims)
        channels = tensor.dims[1] * group
        shifted = self._affine(between, node.output[0], channels, rank)
        for name in node.input:
            found = self._affine(node, name, channels, rank)
            if found is None or shifted is None or not self._may_lose(name, channels):
                continue
            if found.shift.any() or not found.scale.all() or (shifted.scale != 1).any():
                continue
            weight = numpy_helper.to_array(tensor)
            shift = (shifted.shift / found.scale).reshape(-1, *(1,) * (rank - 2))
            self._put(reader, 1, weight * _by_input(found.scale, weight.shape, group), weight.dtype)
            between.op_type = "Add"
            between.input[:] = [name, ""]
            self._put(between, 1, shift, weight.dtype)
            self._remove(node)
            return True
        return False

    def _affine(self, node: onnx.NodeProto, x: str, channels: int, rank: int) -> _Affine | None:
        """What a node makes of `x`, if it scales and shifts channels by constants."""
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "BatchNormalization":
            return self._normalisation(node, x, channels)
        if node.op_type not in ("Add", "Sub", "Mul", "Div") or list(node.input).count(x) != 1:
            return None
        other = node.input[1 if node.input[0] == x else 0]
        value = self._per_channel(other, channels, rank)
        if value is None:
            return None
        first, one, zero = node.input[0] == x, np.ones(()), np.zeros(())
        if node.op_type == "Add":
            return _Affine(x, one, value)
        if node.op_type == "Sub":
            return _Affine(x, one, -value) if first else _Affine(x, -one, value)
        if node.op_type == "Mul":
            return _Affine(x, value, zero)
        return _Affine(x, 1 / value, zero) if first and value.all() else None

    def _normalisation(self, node: onnx.NodeProto, x: str, channels: int) -> _Affine | None:
        if node.input[0] != x or len(node.output) != 1 or _integer(node, "training_mode", 0):
            return None
        values = [self._per_channel(name, channels, 1) for name in node.input[1:]]
        if any(v is None for v in values):
            return None
        scale, bias, mean, variance = (v for v in values if v is not None)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), _EPSILON)
        scale = scale / np.sqrt(variance + epsilon)
        return _Affine(x, scale, bias - mean * scale)

    def _per_channel(self, name: str, channels: int, rank: int) -> Array | None:
        """A constant as a scalar or one value per channel; the channels are axis 1 of `rank`."""
        tensor = self.tensors.get(name)
        if tensor is None or len(tensor.dims) > rank or not _is_float(tensor):
            return None
        values = numpy_helper.to_array(tensor).astype(np.float64)
        if values.size == 1:
            return values.reshape(())
        axis = 0 if rank == 1 else values.ndim - rank + 1
        if values.size != channels or axis < 0 or values.shape[axis] != channels:
            return None
        return values.reshape(-1)

    def _weight(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """The weights of a node, if they are constant and its own."""
        tensor = self.tensors.get(node.input[1])
        plain = node.op_type != "Gemm" or all(
            a.f == 1 for a in node.attribute if a.name in ("alpha", "beta")
        )
        own = tensor is not None and len(self.readers[tensor.name]) == 1
        return tensor if tensor is not None and own and plain and _is_float(tensor) else None

    def _bias(self, node: onnx.NodeProto, channels: int) -> Array | None:
        if len(node.input) < 3 or not node.input[2]:
            return np.zeros(channels)
        found = self._per_channel(node.input[2], channels, 2 if node.op_type == "Gemm" else 1)
        return None if found is None else np.broadcast_to(found, (channels,))

    def _put(
        self, node: onnx.NodeProto, at: int, values: NDArray[Any], dtype: np.dtype[Any]
    ) -> None:
        """Give a node another weight; under the old name where nobody else reads that."""
        old = node.input[at] if len(node.input) > at else ""
        name = old
        if not old or len(self.readers[old]) > 1 or old in self.given:
            name = f"{node.output[0]}/{'weight' if at == 1 else 'bias'}"
            while name in self.tensors or name in self.makers:
                name += "_folded"
        self.tensors[name] = numpy_helper.from_array(values.astype(dtype), name)
        if len(node.input) > at:
            node.input[at] = name
        else:
            node.input.append(name)

    def _remove(self, node: onnx.NodeProto) -> None:
        self.nodes = [n for n in self.nodes if n is not node]

    def _only(self, name: str, node: onnx.NodeProto) -> bool:
        readers = self.readers[name]
        return len(readers) == 1 and readers[0] is node and name not in self.given

    def _sole_reader(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        readers = self.readers[node.output[0]] if len(node.output) == 1 else []
        return readers[0] if len(readers) == 1 and node.output[0] not in self.given else None

    def _is_half_a_gate(self, node: onnx.NodeProto) -> bool:
        """``x + 3`` before a Clip: hard-sigmoids are to be recognised as such."""
        readers = self.readers[node.output[0]]
        return node.op_type == "Add" and any(r.op_type == "Clip" for r in readers)

    def _may_lose(self, name: str, channels: int) -> bool:
        """Whether what scales or shifts a tensor may go, and the next convolution read the tensor.

        Not where it makes several channels of an input's one, and not where it ends an activation:
        what divides ``x * clip(x + 3, 0, 6)`` by 6 belongs to a hard-swish.
        """
        sizes = self.inputs.get(name)
        if sizes is not None and (len(sizes) < 2 or sizes[1].dim_value not in (0, channels)):
            return False
        maker = self.makers.get(name)
        if maker is None or maker.op_type not in ("Mul", "Clip"):
            return True
        return any(i in self.tensors for i in maker.input[:2])


def _scaled_outputs(node: onnx.NodeProto, weight: NDArray[Any], scale: Array) -> NDArray[Any]:
    if node.op_type == "ConvTranspose":
        groups = _integer(node, "group", 1)
        split = weight.reshape(groups, -1, *weight.shape[1:])
        by = scale.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))
        return np.asarray((split * by).reshape(weight.shape))
    axis = _out_axis(node)
    return np.asarray(weight * scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]))


def _out_axis(node: onnx.NodeProto) -> int:
    return 1 if node.op_type == "Gemm" and not _integer(node, "transB", 0) else 0


def _channels_out(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    if node.op_type == "ConvTranspose":
        return int(weight.dims[1]) * _integer(node, "group", 1)
    return int(weight.dims[_out_axis(node)])


def _by_input(values: Array, shape: tuple[int, ...], group: int) -> Array:
    """What belongs to input channels, as it meets weights (outputs, inputs / group, ...)."""
    each = np.broadcast_to(values, (shape[1] * group,)).reshape(group, -1)
    return np.repeat(each, shape[0] // group, 0).reshape(*shape[:2], *(1,) * (len(shape) - 2))


def _pads(node: onnx.NodeProto) -> bool:
    mode = next((a.s for a in node.attribute if a.name == "auto_pad"), b"NOTSET")
    pads = next((list(a.ints) for a in node.attribute if a.name == "pads"), [])
    return mode not in (b"NOTSET", b"VALID") or any(pads)


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _is_float(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
