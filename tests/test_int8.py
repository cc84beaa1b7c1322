"""What int8 costs: near nothing for tame networks, much for one whose scales are far apart."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxnas.calibration import Calibration, load_calibration
from onnxnas.errors import UnsupportedError
from onnxnas.graph import contract
from onnxnas.int8 import compare_int8
from onnxnas.quality import Task
from onnxnas.quantise import quantise

ROWS = np.random.default_rng(3).standard_normal((60, 3, 8, 8)).astype(np.float32)


def classifier(scale: float = 1.0) -> onnx.ModelProto:
    """Two channels of very different size meet in one tensor where `scale` is large."""
    b = models.ModelBuilder([1, 3, 8, 8])
    y = b.op("Relu", b.conv(b.x, 3, 8, k=3, pads=1))
    sizes = np.ones((1, 8, 1, 1), np.float32)
    sizes[0, 0] = scale
    y = b.op("Mul", y, b.const(sizes))
    y = b.op("Mul", y, b.const(1 / sizes))
    return b.build(b.op("Flatten", b.conv(b.op("GlobalAveragePool", y), 8, 5)))


def calibration(tmp_path: Path, model: onnx.ModelProto) -> Calibration:
    np.save(tmp_path / "rows.npy", ROWS)
    return load_calibration(tmp_path / "rows.npy", contract(model)[0])


def test_a_rewrite_that_only_int8_minds_is_seen(tmp_path: Path) -> None:
    tame, wild = classifier(), classifier(300.0)
    labels = np.zeros(60, np.int64)
    found = compare_int8(
        tame,
        wild,
        calibration(tmp_path, tame),
        Task("top1", {"inputs": ROWS, "labels": labels}),
    )
    assert len(found.original.rows) == 12
    assert 0 < found.original.value < 1e-3
    assert found.result.value < 1e-9
    assert found.result_int8.value > 20 * found.original.value
    report = found.to_dict()
    assert [n["network"] for n in report["networks"]] == [
        "original int8",
        "result float",
        "result int8",
    ]
    assert all("top1" in n["metric"] for n in report["networks"])


def test_weights_are_int8_per_channel(tmp_path: Path) -> None:
    model = classifier()
    made = quantise(model, calibration(tmp_path, model).batches())
    kinds = {t.data_type for t in made.graph.initializer if len(t.dims) == 4 and t.dims[2] == 3}
    assert kinds == {onnx.TensorProto.INT8}
    scales = [numpy_helper.to_array(t) for t in made.graph.initializer if "_scale" in t.name]
    assert any(s.shape == (8,) for s in scales)


def test_what_cannot_be_quantised_is_said_in_one_sentence(tmp_path: Path) -> None:
    model = classifier()
    with pytest.raises(UnsupportedError, match=r"^onnxruntime cannot quantise the model: "):
        quantise(model, [])
