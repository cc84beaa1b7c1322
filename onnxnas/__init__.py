"""onnxnas: fits a trained ONNX network to the accelerator it has to run on.

>>> result = onnxnas.optimize("model.onnx", target="ethos-u55-128")
>>> result.model, result.to_dict()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxnas.pipeline import apply, optimize, predict
    from onnxnas.result import Result

__all__ = ["Result", "apply", "optimize", "predict"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `onnxnas --help` must not wait for onnxruntime.
    if name in __all__:
        from onnxnas import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'onnxnas' has no attribute {name!r}")
