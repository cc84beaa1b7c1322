"""Networks in int8, as onnxruntime's static quantiser makes them."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import version_converter

from onnxnas.errors import UnsupportedError
from onnxnas.loading import load_model, save_model
from onnxnas.protos import first_line

_PER_CHANNEL = 13
"""The opset since which weights can have a scale for every channel."""


def quantise(
    model: onnx.ModelProto, rows: Iterable[Mapping[str, Any]], *, unsigned: bool = False
) -> onnx.ModelProto:
    """The model in int8 (QDQ), weights per channel; inputs and outputs stay float.

    Args:
        model: with BatchNormalization folded.
        rows: inputs that the ranges of activations are read from.
        unsigned: activations in uint8, for which more processors have fast kernels.

    Raises:
        UnsupportedError: the quantiser cannot take the model.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    try:
        if opset < _PER_CHANNEL:
            model = version_converter.convert_version(model, _PER_CHANNEL)
        with tempfile.TemporaryDirectory(prefix="onnxnas-int8-") as folder, _advice_muted():
            path, result = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            save_model(model, path)
            quantize_static(
                str(path),
                str(result),
                _Reader(iter(rows)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            return load_model(result)
    except Exception as error:  # the quantiser's and converter's errors have no common base
        raise UnsupportedError(
            f"onnxruntime cannot quantise the model: {first_line(error)}."
        ) from error


@dataclass
class _Reader:
    """onnxruntime's CalibrationDataReader over rows."""

    rows: Iterator[Mapping[str, Any]]

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self.rows, None)


@contextlib.contextmanager
def _advice_muted() -> Iterator[None]:
    """Without the quantiser's advice to preprocess: it goes to the root logger, per model."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
