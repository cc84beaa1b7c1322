"""What quantisation to int8 costs a network, and what it costs its rewritten form.

Accelerators run int8. A rewrite that is harmless in float can cost accuracy there: wider ranges,
channels of very different scales. So the original and the result are both quantised, by
onnxruntime's static quantiser (QDQ, weights per channel, ranges from the user's rows), and each
is compared with the original in float.
"""

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

from onnxnas.calibration import Calibration
from onnxnas.divergence import Divergence
from onnxnas.errors import UnsupportedError
from onnxnas.fit_rows import FitRows
from onnxnas.graph import from_model, infer_shapes
from onnxnas.held_out import HeldOut
from onnxnas.loading import load_model, save_model
from onnxnas.normalise import normalise
from onnxnas.protos import first_line
from onnxnas.quality import Quality, Task, compare

MOST_ROWS = 100
"""Rows that ranges are read from."""

_PER_CHANNEL = 13
"""The opset since which weights can have a scale for every channel."""


@dataclass(frozen=True)
class Int8:
    """How far three networks are from the original in float, on rows no range was read from.

    Attributes:
        measure: what a divergence is, in words.
        original: the original in int8.
        result: the result in float.
        result_int8: the result in int8.
        quality: task metrics, the original in float against each of the three in that order;
            empty without a task.
    """

    measure: str
    original: Divergence
    result: Divergence
    result_int8: Divergence
    quality: tuple[Quality, ...] = ()

    @property
    def networks(self) -> tuple[tuple[str, Divergence], ...]:
        """The three, named."""
        return (
            ("original int8", self.original),
            ("result float", self.result),
            ("result int8", self.result_int8),
        )

    def lines(self) -> list[str]:
        """For people."""
        rows = len(self.original.rows)
        said = [f"{self.measure}, from the original in float, on {rows} rows:"]
        for i, (name, found) in enumerate(self.networks):
            agrees = "" if found.agrees is None else f", same class on {found.agrees:.1%}"
            task = f"; {self.quality[i]}" if self.quality else ""
            said.append(f"{name:14} {found.value:.4f} +- {found.error:.4f}{agrees}{task}")
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "measure": self.measure,
            "rows": len(self.original.rows),
            "against": "original float",
            "networks": [
                {
                    "network": name,
                    "divergence": found.value,
                    "divergence_standard_error": found.error,
                    "agreement": found.agrees,
                    "agreement_standard_error": found.agreement_error,
                    **({"metric": str(self.quality[i])} if self.quality else {}),
                }
                for i, (name, found) in enumerate(self.networks)
            ],
        }


def compare_int8(
    original: onnx.ModelProto,
    result: onnx.ModelProto,
    calibration: Calibration,
    task: Task | None = None,
    seed: int = 0,
) -> Int8:
    """Quantise a model and its rewritten form, and compare both with the model in float.

    Args:
        calibration: the rows that weights were fitted on, if any were: judged are those that the
            fit did not see.

    Raises:
        UsageError: there are too few rows.
        UnsupportedError: the quantiser cannot take one of the models.
    """
    rows = FitRows.of(calibration)
    float_model, float_result = normalise(original).model, normalise(result).model
    held_out = HeldOut.of(from_model(float_model), rows)
    networks = (
        quantise(float_model, rows.fitted(MOST_ROWS)),
        float_result,
        quantise(float_result, rows.fitted(MOST_ROWS)),
    )
    found = [held_out.divergence_of(_graph(model)) for model in networks]
    quality = tuple(
        compare(task, original, model, seed)[0] for model in networks if task is not None
    )
    measure = " and ".join(sorted({j.measure for j in held_out.judged}))
    original_int8, result_float, result_int8 = found
    return Int8(measure, original_int8, result_float, result_int8, quality)


def quantise(model: onnx.ModelProto, rows: Iterable[Mapping[str, Any]]) -> onnx.ModelProto:
    """The model in int8 (QDQ): activations and weights int8, weights per channel.

    Args:
        model: with BatchNormalization folded.
        rows: inputs that the ranges of activations are read from.

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
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            return load_model(result)
    except Exception as error:  # the quantiser's and converter's errors have no common base
        raise UnsupportedError(
            f"onnxruntime cannot quantise the model: {first_line(error)}."
        ) from error


def _graph(model: onnx.ModelProto) -> Any:
    graph = from_model(model)
    infer_shapes(graph)
    return graph


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
