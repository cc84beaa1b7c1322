"""The independent truth of the tests: onnxruntime with every graph optimisation switched off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

EVALSET = Path(__file__).resolve().parents[2] / "shared" / "evalset"
Feeds = Mapping[str, NDArray[Any]]


def evalset_model(name: str) -> Path:
    """A real network that is not part of the repository; skips the test where it is absent."""
    path = EVALSET / "models" / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"real network {name} is not here ({path})")
    return path


def run(model: onnx.ModelProto, feeds: Feeds) -> dict[str, NDArray[Any]]:
    """Outputs of a model by name."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def random_feeds(
    model: onnx.ModelProto, seed: int = 0, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, NDArray[Any]]:
    """Standard normal inputs; a dynamic first dimension becomes 2 unless `shapes` says more."""
    rng = np.random.default_rng(seed)
    constants = {t.name for t in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        dims = [d.dim_value or (2 if i == 0 else 0) for i, d in enumerate(_dims(value))]
        shape = (shapes or {}).get(value.name, tuple(dims))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def assert_same_outputs(
    original: onnx.ModelProto,
    result: onnx.ModelProto,
    feeds: Feeds | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Outputs agree to `tolerance` times the largest magnitude of the original's output."""
    feeds = feeds or random_feeds(original)
    expected, actual = run(original, feeds), run(result, feeds)
    assert expected.keys() == actual.keys()
    for name, want in expected.items():
        got = actual[name]
        assert got.shape == want.shape, name
        limit = tolerance * max(float(np.abs(want).max()), 1e-30)
        worst = float(np.abs(got.astype(np.float64) - want).max())
        assert worst <= limit, f"{name}: off by {worst:.3g}, allowed {limit:.3g}"


def _dims(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim
