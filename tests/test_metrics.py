"""Task metrics: values worked out by hand, and a resample equals a measurement of repeated rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxnas.errors import UsageError
from onnxnas.metrics import (
    Score,
    box_iou,
    difference,
    mean_average_precision,
    mean_iou,
    suppress,
    top1,
)

Arrays = tuple[NDArray[Any], ...]


def classifier_rows(rng: np.random.Generator, rows: int) -> Arrays:
    return rng.standard_normal((rows, 4)), rng.integers(4, size=rows)


def segmenter_rows(rng: np.random.Generator, rows: int) -> Arrays:
    return rng.standard_normal((rows, 3, 5, 6)), rng.integers(-1, 3, size=(rows, 5, 6))


def detector_rows(rng: np.random.Generator, rows: int) -> Arrays:
    low = rng.uniform(0, 0.6, (rows, 3, 2))
    truth = np.concatenate([low, low + rng.uniform(0.1, 0.4, (rows, 3, 2))], 2)
    boxes = np.repeat(truth, 2, 1) + rng.normal(0, 0.02, (rows, 6, 4))
    return boxes, rng.random((rows, 6, 2)), truth, rng.integers(-1, 2, size=(rows, 3))


MEASURES: dict[str, tuple[Callable[..., Arrays], Callable[..., Score]]] = {
    "top1": (classifier_rows, top1),
    "miou": (segmenter_rows, mean_iou),
    "map50": (detector_rows, lambda *arrays: mean_average_precision(*arrays)[0]),
    "map": (detector_rows, lambda *arrays: mean_average_precision(*arrays)[1]),
}


@pytest.mark.parametrize("name", MEASURES)
def test_weighting_rows_is_repeating_them(name: str) -> None:
    make, measure = MEASURES[name]
    rng = np.random.default_rng(3)
    rows = make(rng, 12)
    counts = rng.integers(0, 4, size=12)
    repeated = measure(*(np.repeat(part, counts, 0) for part in rows))
    score = measure(*rows)
    assert score.name == name
    assert score.weighted(counts.astype(float)) == pytest.approx(repeated.value, abs=1e-9)
    assert 0 < score.value < 1
    low, high = score.interval()
    assert low < score.value < high
    assert (low, high) == score.interval(seed=0)


def test_top1_counts_the_rows_that_are_right() -> None:
    logits = np.array([[3.0, 1, 2], [0, 5, 1], [0, 1, 2], [9, 1, 1]])
    assert top1(logits, np.array([0, 1, 1, 2])).value == 0.5
    assert top1(logits[:, :, None, None], np.array([0, 1, 2, 0])).value == 1.0


def test_top1_interval_is_that_of_a_share() -> None:
    logits = np.eye(2)[np.r_[np.zeros(300, int), np.ones(100, int)]]
    low, high = top1(logits, np.zeros(400, int)).interval()
    assert (low, high) == pytest.approx((0.75 - 0.0424, 0.75 + 0.0424), abs=0.01)  # 1.96 sigma


def test_mean_iou_by_hand_in_three_layouts() -> None:
    labels = np.array([[[0, 0, 1], [1, 1, -1]]])
    guess = np.array([[[0, 1, 1], [1, 0, 2]]])  # class 0: 1 of 3, class 1: 2 of 4, 2 not counted
    scores = np.eye(3)[guess]
    for outputs in (guess, scores, scores.transpose(0, 3, 1, 2)):
        assert mean_iou(outputs, labels).value == pytest.approx((1 / 3 + 1 / 2) / 2)


BOX = [0.1, 0.1, 0.5, 0.5]
AWAY = [0.6, 0.6, 0.9, 0.9]


def one_image(boxes: list[list[float]], scores: list[float]) -> tuple[Score, Score]:
    """The metrics of one image that holds `BOX`."""
    truth = np.array([[BOX]]), np.array([[0]])
    return mean_average_precision(np.array([boxes]), np.array(scores)[None, :, None], *truth)


@pytest.mark.parametrize(
    ("boxes", "scores", "map50"),
    [
        ([BOX], [0.9], 1.0),
        ([BOX, AWAY], [0.9, 0.8], 1.0),  # a fainter mistake comes too late to count
        ([BOX, AWAY], [0.8, 0.9], 0.5),
        ([BOX, BOX, AWAY], [0.7, 0.8, 0.9], 0.5),  # the double is suppressed
        ([AWAY], [0.9], 0.0),
        ([BOX], [0.001], 0.0),
    ],
)
def test_average_precision_by_hand(
    boxes: list[list[float]], scores: list[float], map50: float
) -> None:
    at_half, over_range = one_image(boxes, scores)
    assert at_half.value == pytest.approx(map50)
    assert over_range.value == pytest.approx(map50)  # the boxes are exact or far off


def test_a_loose_box_is_right_at_the_thresholds_it_reaches() -> None:
    loose = [0.1, 0.1, 0.5, 0.1 + 0.4 * 0.62]
    at_half, over_range = one_image([loose], [0.9])
    assert (at_half.value, over_range.value) == pytest.approx((1.0, 0.3))  # 0.5, 0.55, 0.6


def test_a_true_box_is_found_once() -> None:
    shifted = [0.1, 0.24, 0.5, 0.64]  # overlaps BOX by 0.48: survives suppression, finds nothing
    boxes, labels = np.array([[BOX, shifted]]), np.array([[0, -1]])
    scores = np.array([[[0.8], [0.9]]])
    assert mean_average_precision(boxes, scores, boxes, labels)[0].value == pytest.approx(0.5)


def test_suppression_keeps_the_best_of_each_heap() -> None:
    boxes = np.array([BOX, [0.12, 0.1, 0.5, 0.5], AWAY])
    assert suppress(boxes, np.array([0.5, 0.7, 0.6])).tolist() == [1, 2]
    assert box_iou(boxes[:1], boxes[:2])[0] == pytest.approx([1.0, 0.95])


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=500)
    logits = np.eye(4)[labels] + 0.7 * rng.standard_normal((500, 4))
    before, same = top1(logits, labels), top1(logits * 2, labels)
    after = top1(logits + 0.05 * rng.standard_normal(logits.shape), labels)
    assert difference(before, same) == (0, 0, 0)
    change, low, high = difference(before, after)
    assert low <= change <= high
    assert high - low < 0.5 * (before.interval()[1] - before.interval()[0])
    with pytest.raises(ValueError, match="500 rows before, 400 after"):
        difference(before, top1(logits[:400], labels[:400]))


@pytest.mark.parametrize(
    ("measure", "arrays", "said"),
    [
        (top1, (np.ones((2, 3)), np.array([0, 3])), "Label 3 in row 1 is out of range"),
        (top1, (np.ones((2, 3)), np.array([-1, 0])), "Label -1 in row 0"),
        (top1, (np.ones((2, 3)), np.zeros(2)), "labels are float64"),
        (top1, (np.ones((2, 3)), np.zeros((2, 3), int)), "labels of a classifier"),
        (mean_iou, (np.ones((1, 3, 4, 4)), np.zeros((1, 8, 8), int)), "at the size of the output"),
        (mean_iou, (np.ones((1, 3, 4, 4)), np.full((1, 4, 4), 7)), "Label 7 in row 0"),
        (
            mean_average_precision,
            (np.ones((1, 5, 4)), np.ones((1, 6, 2)), np.ones((1, 2, 4)), np.zeros((1, 2), int)),
            "decodes the outputs",
        ),
        (
            mean_average_precision,
            (np.ones((1, 5, 4)), np.ones((1, 5, 2)), np.ones((1, 2, 4)), np.zeros((1, 3), int)),
            "pad rows with label -1",
        ),
        (
            mean_average_precision,
            (np.ones((1, 5, 4)), np.ones((1, 5, 2)), np.ones((1, 2, 4)), np.full((1, 2), -1)),
            "at least one true box",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    measure: Callable[..., object], arrays: Arrays, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        measure(*arrays)
