"""Float networks in int8 as onnxruntime's own static quantiser makes them."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.graph import from_model
from onnxnas.hwmodels.ort_worker import picture
from onnxnas.loading import load_model, save_model


def quantised(model: Any, seed: int = 0) -> Any:
    """The model in int8 (QDQ): activations uint8, weights int8 per channel.

    Inputs and outputs stay float. Ranges come from one random picture, such as it is timed with.

    Args:
        model: `onnx.ModelProto` with static shapes.
        seed: of the input.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(prefix="onnxnas-int8-") as folder:
        path, result = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        save_model(model, path)
        with _advice_muted():
            quantize_static(
                str(path),
                str(result),
                _OneInput(model, seed),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        return load_model(result)


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


class _OneInput:
    """onnxruntime's CalibrationDataReader with one random input."""

    def __init__(self, model: Any, seed: int) -> None:
        rng = np.random.default_rng(seed)
        graph = from_model(model)
        self._feeds = iter([{t.name: picture(t.shape, rng).astype(t.dtype) for t in graph.inputs}])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)
