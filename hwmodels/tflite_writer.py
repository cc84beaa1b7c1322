"""A small writer of int8 TFLite files, on the schema modules that ship with Vela.

Format: the TensorFlow Lite FlatBuffers schema, version 3. Tensors and operators are collected
first; `TfliteWriter.finish` writes only the tensors that an operator, an input or an output
refers to.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import flatbuffers
import numpy as np
from ethosu.vela.tflite import (
    ActivationFunctionType,
    Buffer,
    BuiltinOperator,
    BuiltinOptions,
    MirrorPadMode,
    Model,
    Operator,
    OperatorCode,
    Padding,
    QuantizationParameters,
    SubGraph,
    Tensor,
    TensorType,
)
from numpy.typing import NDArray

DataType = Literal["INT8", "INT32"]

_ALIGNMENT = 16
"""Bytes; the TFLite runtime reads constant data in place and expects this."""

_VERSIONS: Mapping[str, int] = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "TRANSPOSE_CONV": 3,
    "HARD_SWISH": 1,
    "PRELU": 1,
    "ELU": 1,
    "EXP": 1,
    "ABS": 2,
    "RELU_0_TO_1": 1,
    "RELU_N1_TO_1": 1,
    "GELU": 2,
    "RESHAPE": 1,
    "CAST": 1,
    "MIRROR_PAD": 1,
    "TILE": 1,
}
"""Operator versions that have an int8 kernel, where that is not 2."""


@dataclass(frozen=True)
class Quantization:
    """Affine quantisation, ``real = scale * (stored - zero_point)``.

    Attributes:
        scales: one, or one per element of dimension `axis`.
        zero_point: the same for all scales.
        axis: dimension the scales belong to.
    """

    scales: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: DataType
    quantization: Quantization | None
    data: bytes | None


@dataclass(frozen=True)
class _Operator:
    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    table: str
    options: Mapping[str, Any]


@dataclass
class TfliteWriter:
    """Collects tensors and operators of one subgraph and writes the file."""

    tensors: list[_Tensor] = field(default_factory=list)
    operators: list[_Operator] = field(default_factory=list)

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: DataType = "INT8",
        quantization: Quantization | None = None,
        data: bytes | None = None,
    ) -> int:
        """Add a tensor; constants carry their `data`, little-endian. Returns its number."""
        self.tensors.append(_Tensor(name, tuple(map(int, shape)), dtype, quantization, data))
        return len(self.tensors) - 1

    def operator(
        self,
        op: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        table: str = "",
        **options: Any,
    ) -> int:
        """Add an operator; returns its number.

        Args:
            op: name in the schema's BuiltinOperator, e.g. ``CONV_2D``.
            inputs: tensor numbers.
            outputs: tensor numbers.
            table: options table in the schema, e.g. ``Conv2DOptions``.
            options: fields of that table and members of enumerations in the schema's spelling,
                e.g. ``StrideW=2, Padding="SAME"``.
        """
        self.operators.append(_Operator(op, tuple(inputs), tuple(outputs), table, options))
        return len(self.operators) - 1

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The file, with the given tensors as the subgraph's inputs and outputs."""
        return _Serializer(self, inputs, outputs).file()


class _Serializer:
    """One pass over a `TfliteWriter`. FlatBuffers are written children first."""

    def __init__(self, source: TfliteWriter, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        used = {*inputs, *outputs}
        for operator in source.operators:
            used.update(operator.inputs, operator.outputs)
        kept = sorted(used)
        self.number = {old: new for new, old in enumerate(kept)}
        self.tensors = [source.tensors[i] for i in kept]
        self.operators = source.operators
        self.inputs, self.outputs = inputs, outputs
        self.builder = flatbuffers.Builder(sum(len(t.data or b"") + 256 for t in self.tensors))
        self.shared: dict[Any, int] = {}
        self.enums = {
            "Padding": Padding.Padding,
            "FusedActivationFunction": ActivationFunctionType.ActivationFunctionType,
            "Mode": MirrorPadMode.MirrorPadMode,
            "OutputType": TensorType.TensorType,
        }

    def file(self) -> bytes:
        b = self.builder
        codes = sorted({o.op for o in self.operators})
        buffers = [self._buffer(None)]
        places = []
        for tensor in self.tensors:
            places.append(0 if tensor.data is None else len(buffers))
            if tensor.data is not None:
                buffers.append(self._buffer(tensor.data))
        tensors = [self._tensor(t, p) for t, p in zip(self.tensors, places, strict=True)]
        operators = [self._operator(o, codes.index(o.op)) for o in self.operators]
        subgraph = self._subgraph(tensors, operators)
        code_vector = self._vector(
            [self._code(c) for c in codes], Model.ModelStartOperatorCodesVector
        )
        subgraph_vector = self._vector([subgraph], Model.ModelStartSubgraphsVector)
        buffer_vector = self._vector(buffers, Model.ModelStartBuffersVector)
        description = b.CreateString("onnxnas")
        Model.ModelStart(b)
        Model.ModelAddVersion(b, 3)
        Model.ModelAddOperatorCodes(b, code_vector)
        Model.ModelAddSubgraphs(b, subgraph_vector)
        Model.ModelAddDescription(b, description)
        Model.ModelAddBuffers(b, buffer_vector)
        b.Finish(Model.ModelEnd(b), file_identifier=b"TFL3")
        return bytes(b.Output())

    def _subgraph(self, tensors: list[int], operators: list[int]) -> int:
        b = self.builder
        tensor_vector = self._vector(tensors, SubGraph.SubGraphStartTensorsVector)
        operator_vector = self._vector(operators, SubGraph.SubGraphStartOperatorsVector)
        inputs = self._ints([self.number[i] for i in self.inputs])
        outputs = self._ints([self.number[i] for i in self.outputs])
        name = b.CreateString("main")
        SubGraph.SubGraphStart(b)
        SubGraph.SubGraphAddTensors(b, tensor_vector)
        SubGraph.SubGraphAddInputs(b, inputs)
        SubGraph.SubGraphAddOutputs(b, outputs)
        SubGraph.SubGraphAddOperators(b, operator_vector)
        SubGraph.SubGraphAddName(b, name)
        return int(SubGraph.SubGraphEnd(b))

    def _buffer(self, data: bytes | None) -> int:
        b = self.builder
        place = None
        if data:
            b.StartVector(1, len(data), _ALIGNMENT)
            b.head = b.head - len(data)
            b.Bytes[b.head : b.head + len(data)] = data
            place = b.EndVector()
        Buffer.BufferStart(b)
        if place is not None:
            Buffer.BufferAddData(b, place)
        return int(Buffer.BufferEnd(b))

    def _tensor(self, tensor: _Tensor, buffer: int) -> int:
        b = self.builder
        name = b.CreateString(tensor.name)
        shape = self._ints(tensor.shape)
        quantization = self._quantization(tensor.quantization)
        Tensor.TensorStart(b)
        Tensor.TensorAddShape(b, shape)
        Tensor.TensorAddType(b, getattr(TensorType.TensorType, tensor.dtype))
        Tensor.TensorAddBuffer(b, buffer)
        Tensor.TensorAddName(b, name)
        if quantization is not None:
            Tensor.TensorAddQuantization(b, quantization)
        return int(Tensor.TensorEnd(b))

    def _quantization(self, quantization: Quantization | None) -> int | None:
        if quantization is None or quantization in self.shared:
            return self.shared.get(quantization)
        b = self.builder
        count = len(quantization.scales)
        scales = b.CreateNumpyVector(np.asarray(quantization.scales, np.float32))
        zeros = b.CreateNumpyVector(np.full(count, quantization.zero_point, np.int64))
        QuantizationParameters.QuantizationParametersStart(b)
        QuantizationParameters.QuantizationParametersAddScale(b, scales)
        QuantizationParameters.QuantizationParametersAddZeroPoint(b, zeros)
        QuantizationParameters.QuantizationParametersAddQuantizedDimension(b, quantization.axis)
        place = int(QuantizationParameters.QuantizationParametersEnd(b))
        self.shared[quantization] = place
        return place

    def _operator(self, operator: _Operator, code: int) -> int:
        b = self.builder
        inputs = self._ints([self.number[i] for i in operator.inputs])
        outputs = self._ints([self.number[i] for i in operator.outputs])
        options = self._options(operator.table, operator.options) if operator.table else None
        Operator.OperatorStart(b)
        Operator.OperatorAddOpcodeIndex(b, code)
        Operator.OperatorAddInputs(b, inputs)
        Operator.OperatorAddOutputs(b, outputs)
        if options is not None:
            kind = getattr(BuiltinOptions.BuiltinOptions, operator.table)
            Operator.OperatorAddBuiltinOptionsType(b, kind)
            Operator.OperatorAddBuiltinOptions(b, options)
        return int(Operator.OperatorEnd(b))

    def _options(self, table: str, options: Mapping[str, Any]) -> int:
        schema: ModuleType = importlib.import_module(f"ethosu.vela.tflite.{table}")
        getattr(schema, f"{table}Start")(self.builder)
        for name, value in options.items():
            if name in self.enums:
                value = getattr(self.enums[name], value)
            getattr(schema, f"{table}Add{name}")(self.builder, value)
        return int(getattr(schema, f"{table}End")(self.builder))

    def _code(self, op: str) -> int:
        b = self.builder
        code = getattr(BuiltinOperator.BuiltinOperator, op)
        OperatorCode.OperatorCodeStart(b)
        # Old readers only know the one-byte field; 127 sends newer ones to the wide field.
        OperatorCode.OperatorCodeAddDeprecatedBuiltinCode(b, min(code, 127))
        OperatorCode.OperatorCodeAddBuiltinCode(b, code)
        OperatorCode.OperatorCodeAddVersion(b, _VERSIONS.get(op, 2))
        return int(OperatorCode.OperatorCodeEnd(b))

    def _ints(self, values: Sequence[int]) -> int:
        key = tuple(values)
        if key not in self.shared:
            self.shared[key] = self.builder.CreateNumpyVector(np.asarray(key, np.int32))
        return self.shared[key]

    def _vector(self, places: list[int], start: Callable[[Any, int], None]) -> int:
        start(self.builder, len(places))
        for place in reversed(places):
            self.builder.PrependUOffsetTRelative(place)
        return int(self.builder.EndVector())


def int32(values: Sequence[int] | NDArray[Any]) -> bytes:
    """Data of an INT32 constant."""
    return np.ascontiguousarray(values, dtype="<i4").tobytes()
