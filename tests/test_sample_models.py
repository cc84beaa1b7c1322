"""The sample models are what their cards say: accuracy, size, structure, data."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxnas.evaluate import Measured, evaluate, find_function, read_arrays

FOLDER = Path(__file__).parents[1] / "sample_models"
METRICS = {"camera_classifier": "top1", "presence_detector": "map", "room_segmenter": "miou"}
HEADLINE = {"top1": "top1", "map": "map50", "miou": "miou"}
ROWS = {"camera_classifier": 300, "presence_detector": 120, "room_segmenter": 60}
MOST_BYTES = 3 * 2**20


@cache
def card(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


@cache
def model(name: str) -> onnx.ModelProto:
    return onnx.load(FOLDER / f"{name}.onnx")


@cache
def rows(name: str, split: str, count: int) -> dict[str, NDArray[Any]]:
    made: dict[str, NDArray[Any]] = find_function(f"{FOLDER / 'datasets.py'}:{name}")(split, count)
    return made


def operators(name: str) -> Counter[str]:
    return Counter(node.op_type for node in model(name).graph.node)


def agrees(name: str, measured: Measured) -> bool:
    """With the card: within three standard errors of the part and of the whole."""
    stated = card(name)["test"][measured.name]
    assert measured.interval is not None
    errors = [(high - low) / 3.92 for low, high in (measured.interval, stated["interval"])]
    return abs(measured.value - float(stated["value"])) < 3 * math.hypot(*errors)


@pytest.mark.parametrize("name", METRICS)
def test_the_cards_metric_is_seen_on_a_part_of_the_test_split(name: str) -> None:
    for measured in evaluate(model(name), METRICS[name], rows(name, "test", ROWS[name])):
        assert agrees(name, measured), measured
        stated = card(name)["test"][measured.name]
        assert stated["interval"][0] < stated["value"] < stated["interval"][1]


def test_a_damaged_network_does_not_agree_with_its_card() -> None:
    """One layer's depthwise kernels given to each other's channels."""
    name = "camera_classifier"
    damaged = onnx.ModelProto()
    damaged.CopyFrom(model(name))
    kernels = {t.name: t for t in damaged.graph.initializer}
    convs = (kernels[n.input[1]] for n in damaged.graph.node if n.op_type == "Conv")
    kernel = next(t for t in convs if t.dims[0] > t.dims[1] == 1)
    values = onnx.numpy_helper.to_array(kernel)[::-1].copy()
    kernel.CopyFrom(onnx.numpy_helper.from_array(values, kernel.name))
    (measured,) = evaluate(damaged, "top1", rows(name, "test", ROWS[name]))
    assert not agrees(name, measured)


@pytest.mark.parametrize("name", METRICS)
def test_width_matters(name: str) -> None:
    """At half of every width, trained again, the network loses at least three points."""
    metric = HEADLINE[METRICS[name]]
    loss = card(name)["test"][metric]["value"] - card(name)["test_at_half_width"][metric]["value"]
    assert loss >= 0.03


@pytest.mark.parametrize("name", METRICS)
def test_a_file_is_small_valid_and_as_its_card_says(name: str) -> None:
    assert (FOLDER / f"{name}.onnx").stat().st_size <= MOST_BYTES
    onnx.checker.check_model(model(name), full_check=True)
    opset = {o.domain: o.version for o in model(name).opset_import}[""]
    assert 13 <= opset <= 17
    held = sum(int(np.prod(t.dims)) for t in model(name).graph.initializer)
    assert held >= 0.95 * card(name)["parameters"]
    assert card(name)["seed"] == 0
    assert card(name)["command"] == f"python sample_models/train.py {name} --seed 0"


@pytest.mark.parametrize("name", METRICS)
def test_inverted_bottlenecks_with_strides_residuals_and_odd_widths(name: str) -> None:
    graph = model(name).graph
    weights = {t.name: tuple(t.dims) for t in graph.initializer}
    convs = [
        (
            weights[node.input[1]],
            {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
        )
        for node in graph.node
        if node.op_type == "Conv"
    ]
    depthwise = [(w, a) for w, a in convs if a.get("group", 1) == w[0] > 1]
    assert len(depthwise) >= 8
    assert sum(a["strides"][0] == 2 for _, a in depthwise) >= 3
    assert any(w[0] % 8 for w, _ in convs)
    expanded = [w for w, _ in convs if w[2:] == (1, 1) and w[0] >= 3 * w[1]]
    assert len(expanded) >= 6
    assert operators(name)["Add"] >= 3


def test_the_promised_operators_are_there() -> None:
    detector, classifier, segmenter = (
        operators(name) for name in ("presence_detector", "camera_classifier", "room_segmenter")
    )
    assert detector["BatchNormalization"] >= 20
    assert detector["Clip"] >= 20  # ReLU6
    assert classifier["HardSwish"] >= 10
    assert classifier["HardSigmoid"] == classifier["Mul"] >= 3  # squeeze-excite gates
    assert segmenter["Resize"] >= 3
    modes = {
        onnx.helper.get_attribute_value(a)
        for node in model("room_segmenter").graph.node
        if node.op_type == "Resize"
        for a in node.attribute
        if a.name == "mode"
    }
    assert modes == {b"linear"}


def test_the_tasks_are_as_large_as_promised() -> None:
    assert len(card("presence_detector")["classes"]) >= 2
    assert len(card("camera_classifier")["classes"]) >= 10
    assert len(card("room_segmenter")["classes"]) >= 6
    height, width = rows("room_segmenter", "test", 1)["image"].shape[2:]
    assert min(height, width) >= 160
    boxes = (rows("presence_detector", "test", 50)["labels"] >= 0).sum(1)
    assert boxes.mean() > 1.5


@pytest.mark.parametrize("name", METRICS)
def test_data_is_deterministic_and_splits_share_no_row(name: str) -> None:
    def prints(split: str, count: int) -> list[str]:
        return [
            hashlib.sha256(row.tobytes()).hexdigest() for row in rows(name, split, count)["image"]
        ]

    first = prints("test", 6)
    rows.cache_clear()
    assert prints("test", 6) == first
    assert prints("test", 4) == first[:4]
    everything = [p for split in ("train", "calibration", "test") for p in prints(split, 6)]
    assert len(set(everything)) == 18


@pytest.mark.parametrize("name", METRICS)
def test_data_is_what_the_models_were_trained_on(name: str) -> None:
    """Pixels may differ in rounding from machine to machine; labels and means may not."""
    made, stated = rows(name, "test", 4), card(name)["first_test_rows"]
    assert made["image"].dtype == np.float32
    assert made["image"].mean((1, 2, 3)) == pytest.approx(stated["mean_pixels"], abs=1e-3)
    assert [int(np.maximum(row + 1, 0).sum()) for row in made["labels"]] == pytest.approx(
        stated["label_sums"], rel=1e-3
    )


def test_the_data_script_writes_what_the_tool_reads(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    script = [sys.executable, str(FOLDER / "datasets.py"), "camera_classifier", "calibration"]
    subprocess.run([*script, "5", str(path)], check=True)
    written, made = read_arrays(str(path)), rows("camera_classifier", "calibration", 5)
    assert written.keys() == made.keys()
    for name, value in made.items():
        np.testing.assert_array_equal(written[name], value)
    measured = evaluate(model("camera_classifier"), "top1", written)
    assert measured[0].rows == 5
