"""Models of another size than their original: what they say of it, and how they are run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import models
import numpy as np
import onnx
import pytest
from fakes import ToyCostModel
from oracle import random_feeds, run
from test_cli import run as command

import onnxnas
from onnxnas import prepare as prepare_module
from onnxnas import report
from onnxnas.calibration import load_calibration
from onnxnas.errors import UsageError
from onnxnas.evaluate import evaluate
from onnxnas.graph import contract
from onnxnas.int8 import compare_int8
from onnxnas.quality import Task
from onnxnas.resized import as_original, declare, in_words
from onnxnas.verify import verify


def segmenter(size: int = 16, batch: int | str = 1, opset: int = 13) -> onnx.ModelProto:
    """Scores of five classes, at half the size of the picture."""
    b = models.ModelBuilder([batch, 3, size, size], opset=opset)
    y = b.op("Relu", b.conv(b.x, 3, 16, 3, stride=2, pads=1))
    return b.build(b.conv(b.op("Relu", b.conv(y, 16, 16, 3, pads=1)), 16, 5, out="scores"))


def smooth(size: int, rows: int = 60, seed: int = 0) -> Any:
    coarse = np.random.default_rng(seed).standard_normal((rows, 3, 4, 4)).astype(np.float32)
    return coarse.repeat(size // 4, 2).repeat(size // 4, 3)


def small(size: int = 12, **options: Any) -> onnx.ModelProto:
    """The segmenter at another size, which says what it was made of."""
    model = segmenter(16, **options)
    batch = options.get("batch", 1)
    shapes = {"x": [batch, 3, size, size], "scores": [batch, 5, size // 2, size // 2]}
    declare(model, shapes)
    return model


def resized(values: Any, size: int) -> Any:
    """By the operator itself."""
    b = models.ModelBuilder(list(values.shape))
    sizes = b.const(np.array([*values.shape[:2], size, size], np.int64))
    model = b.build(b.op("Resize", b.x, "", "", sizes, mode="linear"))
    return next(iter(run(model, {"x": values}).values()))


@pytest.mark.parametrize("opset", [11, 13, 19])
@pytest.mark.parametrize("batch", [1, "n"])
def test_the_original_s_pictures_are_resized_there_and_back(opset: int, batch: int | str) -> None:
    model = small(opset=opset, batch=batch)
    assert [p.shape for side in contract(model) for p in side] == [
        (batch, 3, 12, 12), (batch, 5, 6, 6),
    ]  # fmt: skip
    whole = as_original(model)
    onnx.checker.check_model(whole, full_check=True)
    assert contract(whole) == contract(segmenter(16, batch, opset))
    feeds = random_feeds(whole)
    inner = run(model, {"x": resized(feeds["x"], 12)})
    np.testing.assert_allclose(
        run(whole, feeds)["scores"], resized(inner["scores"], 8), rtol=1e-4, atol=1e-5
    )
    assert in_words(whole, segmenter(16, batch, opset)) == ""
    assert as_original(whole) is whole


def test_what_was_not_resized_is_left_alone() -> None:
    model = segmenter()
    assert as_original(model) is model
    declare(model, {"x": [1, 3, 16, 16]})
    assert as_original(model) is model
    for odd in ("no JSON", "[1]", '{"x": 3}', '{"x": [1, 3]}', '{"gone": [1, 3, 8, 8]}'):
        other = segmenter()
        other.metadata_props.add(key="onnxnas.original_shapes", value=odd)
        assert as_original(other) is other


def test_verify_compares_at_the_original_s_size_or_says_why_not() -> None:
    original = segmenter()
    found = verify(original, small(), exact=False)
    assert found.ok
    assert found.outputs[0].max_abs_error > 0
    assert found.lines()[0] == (
        "valid ONNX; resized as its metadata says: x [1,3,12,12] instead of [1,3,16,16], "
        "scores [1,5,6,6] instead of [1,5,8,8]"
    )
    assert not verify(original, small()).ok  # nobody may take it for the same
    unsaid = small()
    del unsaid.metadata_props[:]
    assert "instead of" in verify(original, unsaid, exact=False).failure()
    assert "instead of" in verify(segmenter(20), small(), exact=False).failure()


def test_a_resized_model_can_be_an_original_itself() -> None:
    assert verify(small(), small()).ok
    assert verify(small(), small()).resized == ""
    again = small()
    declare(again, {"x": [1, 3, 8, 8], "scores": [1, 5, 4, 4]})
    assert verify(small(), again, exact=False).ok
    assert in_words(again, small()).startswith("x [1,3,8,8] instead of [1,3,12,12]")


def test_evaluate_takes_data_of_either_size() -> None:
    model, rng = small(), np.random.default_rng(0)
    pictures = smooth(16, 6)
    labels = rng.integers(0, 5, (6, 8, 8))
    (large,) = evaluate(model, "miou", {"inputs": pictures, "labels": labels})
    (plain,) = evaluate(as_original(model), "miou", {"inputs": pictures, "labels": labels})
    assert large.value == plain.value
    own = {"inputs": smooth(12, 6), "labels": rng.integers(0, 5, (6, 6, 6))}
    assert evaluate(model, "miou", own)[0].rows == 6
    with pytest.raises(UsageError, match=r"model takes x: float\[1,3,12,12\]"):
        evaluate(model, "miou", {"inputs": smooth(20, 6), "labels": labels})


def test_int8_compares_at_the_original_s_size(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", smooth(16))
    data = load_calibration(tmp_path / "rows.npy", contract(segmenter())[0])
    found = compare_int8(segmenter(), small(), data)
    assert 0 < found.result.value < 2


@pytest.fixture
def toy_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "load_target", lambda name: ToyCostModel())


@pytest.mark.usefixtures("toy_target")
def test_optimize_delivers_a_smaller_input_and_apply_does_it_again(tmp_path: Path) -> None:
    model, pictures = segmenter(32), smooth(32)
    np.save(tmp_path / "rows.npy", pictures)
    data = load_calibration(tmp_path / "rows.npy", contract(model)[0])
    fresh = smooth(32, 8, seed=5)
    labels = np.concatenate([run(model, {"x": p[None]})["scores"].argmax(1) for p in fresh])
    task = Task("miou", {"inputs": fresh, "labels": labels})
    options: dict[str, Any] = {"calibration": data, "passes": ["resize-input"], "max_drop": 10.0}
    kept = onnxnas.optimize(model, "toy", task=task, **options)
    assert contract(kept.model) == contract(model)
    assert not kept.to_dict()["contract"]["changed"]
    assert not kept.recipe.input_resize
    found = onnxnas.optimize(model, "toy", task=task, allow_input_resize=True, **options)
    (image,), (maps,) = contract(found.model)
    assert image.shape is not None
    height, width = map(int, map(str, image.shape[2:]))
    assert height < 32
    assert maps.shape == (1, 5, height // 2, width // 2)
    assert found.optimized.cost.cycles < kept.optimized.cost.cycles  # nothing in front
    assert found.quality[0].result.rows == 8
    said = found.to_dict()
    jsonschema.validate(said, report.schema())
    assert said["contract"]["changed"]
    assert said["contract"]["inputs"][0]["shape"] == list(image.shape)
    assert "The contract changed" in report.markdown(found)
    assert any("The contract changed" in warning for warning in found.warnings)
    found.write(tmp_path / "out.onnx")
    text = (tmp_path / "out.run" / "recipe.toml").read_text()
    assert "input_resize = true" in text
    again = onnxnas.apply(model, tmp_path / "out.run" / "recipe.toml", calibration=data)
    assert again.model.SerializeToString() == found.model.SerializeToString()


def test_the_option_reaches_the_search(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(segmenter(32), tmp_path / "m.onnx")
    np.save(tmp_path / "rows.npy", smooth(32))
    asked = ("--calibration", tmp_path / "rows.npy", "--max-drop", "10", "--effort", "quick")
    out, told = tmp_path / "o.onnx", tmp_path / "r.json"
    args = ("optimize", tmp_path / "m.onnx", "--passes", "resize-input", *asked, "-o", out)
    assert command(*args, "--allow-input-resize", "--json", told) == 0
    assert json.loads(told.read_text())["contract"]["changed"]
    assert "warning: The contract changed: x [1,3," in capfd.readouterr().err
    assert command("verify", tmp_path / "m.onnx", out) == 4
    assert "resized as its metadata says" in capfd.readouterr().out
