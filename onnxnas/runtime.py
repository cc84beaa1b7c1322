"""Running a model in onnxruntime, which is the truth about what it computes."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import _pybind_state

from onnxnas.errors import UnsupportedError
from onnxnas.graph import Port, is_static, resolve_shape
from onnxnas.loading import save_model
from onnxnas.protos import MAX_PROTO_BYTES, first_line, weight_bytes

Feeds = Mapping[str, NDArray[Any]]
KINDS = ("normal", "unit", "byte", "smooth normal", "smooth unit", "smooth byte")
"""Kinds of random inputs: standard normal, uniform in 0..1 and in 0..255, and the same ranges with
most of the energy in low frequencies, as pictures have it. Networks differ in what they expect, and
on other inputs many saturate, or leave channels dead, and hide a difference."""

_FATAL_ONLY = 4


class Session:
    """One model in onnxruntime on the CPU, on one thread, so that runs repeat exactly.

    Args:
        model: is not changed.
        optimised: let onnxruntime rewrite the graph; off, every operator runs as it is written.

    Attributes:
        session: the `onnxruntime.InferenceSession`.
        outputs: names, in order.

    Raises:
        UnsupportedError: onnxruntime cannot run the model; names the operator if it says it.
    """

    def __init__(self, model: onnx.ModelProto, *, optimised: bool = False) -> None:
        options = ort.SessionOptions()
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
        )
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        try:
            if weight_bytes(model) > MAX_PROTO_BYTES:
                with tempfile.TemporaryDirectory(prefix="onnxnas-") as folder:
                    path = save_model(model, Path(folder) / "model.onnx")[0]
                    self.session = self._open(str(path), options)
            else:
                self.session = self._open(model.SerializeToString(), options)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise UnsupportedError(
                f"onnxruntime {ort.__version__} cannot load the model: {_reason(error)}."
            ) from error
        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Outputs by name: arrays, or lists for sequences.

        Raises:
            UnsupportedError: the model does not run on these inputs.
        """
        options = ort.RunOptions()
        options.log_severity_level = _FATAL_ONLY
        try:
            values = self.session.run(self.outputs, dict(feeds), options)
        except Exception as error:
            raise UnsupportedError(
                f"onnxruntime {ort.__version__} cannot run the model on these inputs: "
                f"{_reason(error)}."
            ) from error
        return dict(zip(self.outputs, values, strict=True))

    @staticmethod
    def _open(source: str | bytes, options: Any) -> Any:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def sample_feeds(
    inputs: Sequence[Port], input_shapes: Mapping[str, tuple[int, ...]], seed: int
) -> list[dict[str, NDArray[Any]]]:
    """Random inputs to compare two models on: one per kind, and, last, a batch of two.

    The last is left out where the batch is fixed or given.

    Raises:
        UsageError, UnsupportedError: as `random_feeds`.
    """
    rng = np.random.default_rng(seed)
    feeds = [random_feeds(inputs, input_shapes, rng, kind) for kind in KINDS]
    open_batch = {
        port.name: (2, *resolve_shape(port, input_shapes)[1:])
        for port in inputs
        if port.name not in input_shapes and port.shape and not is_static(port.shape[0])
    }
    if open_batch:
        feeds.append(random_feeds(inputs, {**input_shapes, **open_batch}, rng))
    return feeds


def random_feeds(
    inputs: Sequence[Port],
    input_shapes: Mapping[str, tuple[int, ...]],
    rng: np.random.Generator,
    kind: str = "normal",
) -> dict[str, NDArray[Any]]:
    """Random values for every input.

    Args:
        inputs: of the model's contract.
        input_shapes: fixes dynamic dimensions; a dynamic first one is 1 otherwise.
        rng: where the values come from.
        kind: one of `KINDS`; integers are full-range in 8 bits, 0 or 1 otherwise (they may be
            indices), truth values are either.

    Raises:
        UsageError: a dimension is dynamic and not given.
        UnsupportedError: an input is of a type that random values say nothing about.
    """
    feeds: dict[str, NDArray[Any]] = {}
    values: NDArray[Any]
    for port in inputs:
        if port.dtype not in NUMPY_DTYPES:
            raise UnsupportedError(f"There are no random inputs of type {port.dtype}.")
        dtype = NUMPY_DTYPES[port.dtype]
        shape = resolve_shape(port, input_shapes)
        if dtype.kind == "f":
            values = _random_floats(shape, rng, kind)
        elif dtype.itemsize == 1 and dtype.kind != "b":
            info = np.iinfo(dtype)
            values = rng.integers(info.min, info.max, shape, endpoint=True)
        else:
            values = rng.integers(0, 2, shape)
        feeds[port.name] = np.asarray(values).astype(dtype)
    return feeds


NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32), "double": np.dtype(np.float64),
    "float16": np.dtype(np.float16), "bool": np.dtype(np.bool_),
    "int8": np.dtype(np.int8), "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32), "int64": np.dtype(np.int64),
    "uint8": np.dtype(np.uint8), "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32), "uint64": np.dtype(np.uint64),
}  # fmt: skip


def known_operators() -> frozenset[tuple[str, str]]:
    """(domain, name) of every operator that onnxruntime has heard of; domain "" is ONNX's own."""
    schemas = _pybind_state.get_all_operator_schema()
    return frozenset((schema.domain, schema.name) for schema in schemas)


def _random_floats(
    shape: tuple[int, ...], rng: np.random.Generator, kind: str
) -> NDArray[np.float64]:
    smooth, _, scale = kind.rpartition(" ")
    top = 255.0 if scale == "byte" else 1.0
    if not smooth or len(shape) < 2:
        return (
            np.asarray(rng.standard_normal(shape))
            if scale == "normal"
            else np.asarray(rng.uniform(0, top, shape))
        )
    values = np.zeros(shape)
    for cells in (2, 4, 8, 16, 32):  # octaves; short axes, such as colours, are independent
        coarse = (shape[0], *(min(cells, d) if d > 4 else d for d in shape[1:]))
        cell = np.ix_(*(np.arange(d) * c // d for d, c in zip(shape, coarse, strict=True)))
        values += rng.standard_normal(coarse)[cell] / np.sqrt(cells)
    if scale == "normal":
        return np.asarray(values / (values.std() or 1.0))
    values -= values.min()
    return np.asarray(values * (top / (values.max() or 1.0)))


def _reason(error: Exception) -> str:
    """The error without onnxruntime's prefix, e.g. ``[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED``."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", first_line(error))
    # ... and without the place in its source: ``Load model from X failed:/a.cc:256 f(int&) text``
    return re.sub(r"^(?:Load model from .*? failed:)?\S+\.(?:cc|h):\d+ .*?\) (?=[A-Z])", "", text)
