"""Distillation brings a damaged network back, keeps nothing that does not help, and says so."""

from __future__ import annotations

import sys
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from oracle import run

from onnxnas.calibration import Calibration, load_calibration
from onnxnas.distill import distill
from onnxnas.errors import InfeasibleError, UnsupportedError, UsageError
from onnxnas.graph import contract, from_model, static_view

ROWS = np.random.default_rng(3).standard_normal((60, 3, 8, 8)).astype(np.float32)


def network() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 3, 8, 8])
    y = b.op("Relu", b.conv(b.x, 3, 8, k=3, pads=1))
    y = b.op("Add", y, b.conv(b.op("Relu", b.conv(y, 8, 16)), 16, 8))
    return b.build(b.op("Flatten", b.conv(b.op("GlobalAveragePool", y), 8, 5)))


def damaged(model: onnx.ModelProto, by: float) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rng = np.random.default_rng(1)
    for tensor in copy.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4:
            noise = by * values.std() * rng.standard_normal(values.shape)
            tensor.CopyFrom(
                numpy_helper.from_array((values + noise).astype(np.float32), tensor.name)
            )
    return copy


def calibration(tmp_path: Path, model: onnx.ModelProto) -> Calibration:
    np.save(tmp_path / "rows.npy", ROWS)
    return load_calibration(tmp_path / "rows.npy", contract(model)[0])


def test_without_pytorch_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    model = network()
    with pytest.raises(UsageError, match=r"pip install 'onnxnas\[train\]'"):
        distill(model, model, calibration(tmp_path, model))


def test_a_damaged_network_is_brought_nearer(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = network()
    broken = damaged(model, 0.2)
    found = distill(model, broken, calibration(tmp_path, model), steps=60, rate=1e-3)
    assert found.after.value < 0.8 * found.before.value
    assert found.steps <= 60
    assert [n.op_type for n in found.model.graph.node] == [n.op_type for n in model.graph.node]
    assert found.to_dict()["rows"] == 12
    again = distill(model, broken, calibration(tmp_path, model), steps=60, rate=1e-3)
    assert again.model.SerializeToString() == found.model.SerializeToString()


def test_weights_of_few_values_stay_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    b = models.ModelBuilder([1, 3, 8, 8])
    wide = b.op("Relu", b.conv(b.x, 3, 72))
    y = b.op("Relu", b.conv(wide, 72, 8, out="clustered"))
    model = b.build(b.op("Flatten", b.conv(b.op("GlobalAveragePool", y), 8, 5)))
    broken = damaged(model, 0.2)
    (tensor,) = (t for t in broken.graph.initializer if t.dims[:2] == [8, 72])
    few = np.rint(numpy_helper.to_array(tensor) * 20) / np.float32(20)
    tensor.CopyFrom(numpy_helper.from_array(few, tensor.name))
    found = distill(model, broken, calibration(tmp_path, model), steps=40, rate=1e-3)
    (after,) = (t for t in found.model.graph.initializer if t.name == tensor.name)
    assert np.array_equal(numpy_helper.to_array(after), few)
    assert found.after.value < found.before.value


def test_nothing_gained_is_nothing_kept(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = network()
    with pytest.raises(InfeasibleError, match="gained nothing"):
        distill(model, model, calibration(tmp_path, model), steps=5)
    with pytest.raises(InfeasibleError, match="gained nothing"):
        distill(model, damaged(model, 0.2), calibration(tmp_path, model), budget_s=0.0)


def test_operators_compute_what_onnxruntime_does() -> None:
    torch = pytest.importorskip("torch")
    from onnxnas.torch_network import TorchNetwork

    declined = {}
    for name, model in models.zoo().items():
        shapes = {
            port.name: tuple(d if isinstance(d, int) else 8 for d in port.shape or ())
            for port in contract(model)[0]
        }
        if name == "dynamic_size":
            shapes = {"x": (1, 3, 8, 8)}
        feeds: dict[str, NDArray[np.float32]] = {
            n: np.random.default_rng(2).standard_normal(s).astype(np.float32)
            for n, s in shapes.items()
        }
        try:
            copy = TorchNetwork(static_view(from_model(model), shapes), "cpu")
            found = copy(
                {n: torch.tensor(v) for n, v in feeds.items()}, [o.name for o in model.graph.output]
            )
        except UnsupportedError as reason:
            declined[name] = str(reason)
            continue
        for output, want in run(model, feeds).items():
            np.testing.assert_allclose(
                found[output].numpy(), want, atol=1e-4 * max(1.0, abs(want).max()), err_msg=name
            )
    assert len(declined) < 0.3 * len(models.zoo()), declined
