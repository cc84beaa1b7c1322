"""Task metrics from outputs and truth, each with a bootstrap interval: top-1, mAP, mIoU.

A metric is kept as a function of row weights. Its value is that of equal weights, and a bootstrap
resample is a vector of counts, so an interval costs no inference and the difference of two models
on the same rows can be resampled in pairs, which is far narrower than two intervals side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.errors import UsageError

Array = NDArray[Any]

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""Those of COCO's mAP@0.5:0.95."""

_RESAMPLES = 200
_OVERLAP = 0.5  # two boxes of a class that overlap more are one detection
_FAINTEST = 0.01  # scores below it cannot change the average precision that is reported
_MOST_DETECTIONS = 100  # per image, as COCO counts


@dataclass(frozen=True)
class Score:
    """A metric over rows, in 0..1, higher is better.

    Attributes:
        name: e.g. ``top1``.
        rows: how many rows it was measured on.
        weighted: the metric when row i counts `weights[i]` times, weights (rows,).
    """

    name: str
    rows: int
    weighted: Callable[[NDArray[np.float64]], float]

    @property
    def value(self) -> float:
        """Every row counts once."""
        return self.weighted(np.ones(self.rows))

    def interval(self, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
        """Percentile bootstrap over rows (Efron 1979): low and high ends."""
        values = [self.weighted(counts) for counts in _resamples(self.rows, seed)]
        return _percentiles(values, level)


def difference(
    before: Score, after: Score, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """`after` minus `before` and its interval, resampling both on the same rows.

    Raises:
        ValueError: the two were not measured on equally many rows.
    """
    if before.rows != after.rows:
        raise ValueError(f"{before.rows} rows before, {after.rows} after")
    values = [
        after.weighted(counts) - before.weighted(counts) for counts in _resamples(before.rows, seed)
    ]
    return after.value - before.value, *_percentiles(values, level)


def top1(logits: Array, labels: Array) -> Score:
    """Share of rows whose largest logit is at the label.

    Args:
        logits: (rows, classes); trailing dimensions of size 1 are dropped.
        labels: (rows,) integers.

    Raises:
        UsageError: shapes do not fit or a label is out of range.
    """
    logits = logits.reshape(*logits.shape[:2], -1) if logits.ndim > 2 else logits[..., None]
    if logits.ndim != 3 or logits.shape[2] != 1 or labels.shape != logits.shape[:1]:
        raise UsageError(
            f"top1 needs outputs (rows, classes) and labels (rows,), not {logits.shape} and "
            f"{labels.shape}: give the model and labels of a classifier."
        )
    _refuse_labels(labels, logits.shape[1], ignored=False)
    right = (logits[:, :, 0].argmax(1) == labels).astype(np.float64)
    return Score("top1", len(labels), lambda weights: float(weights @ right / weights.sum()))


def mean_iou(logits: Array, labels: Array) -> Score:
    """Intersection over union of each class, over all pixels, averaged over the classes present.

    Args:
        logits: (rows, classes, height, width), (rows, height, width, classes), or the class of
            each pixel as integers (rows, height, width).
        labels: (rows, height, width) integers; pixels of -1 do not count.

    Raises:
        UsageError: shapes do not fit or a label is out of range.
    """
    if logits.shape == labels.shape and logits.dtype.kind in "iu":
        predicted, classes = logits, int(max(logits.max(), labels.max())) + 1
    elif logits.ndim == 4 and (*logits.shape[:1], *logits.shape[2:]) == labels.shape:
        predicted, classes = logits.argmax(1), logits.shape[1]
    elif logits.ndim == 4 and logits.shape[:3] == labels.shape:
        predicted, classes = logits.argmax(3), logits.shape[3]
    else:
        raise UsageError(
            f"miou needs outputs (rows, classes, height, width) and labels (rows, height, width), "
            f"not {logits.shape} and {labels.shape}: give labels at the size of the output."
        )
    _refuse_labels(labels, classes, ignored=True)
    confusion = np.zeros((len(labels), classes * classes))
    for row, (truth, guess) in enumerate(zip(labels, predicted, strict=True)):
        counted = truth >= 0
        cells = truth[counted].astype(np.int64) * classes + guess[counted]
        confusion[row] = np.bincount(cells, minlength=classes * classes)

    def weighted(weights: NDArray[np.float64]) -> float:
        total = (weights @ confusion).reshape(classes, classes)
        both = np.diag(total)
        either = total.sum(0) + total.sum(1) - both
        present = either > 0
        return float((both[present] / either[present]).mean()) if present.any() else 0.0

    return Score("miou", len(labels), weighted)


def mean_average_precision(
    boxes: Array, scores: Array, true_boxes: Array, labels: Array
) -> tuple[Score, Score]:
    """COCO's mAP, with 101-point interpolation: ``map50`` at IoU 0.5, ``map`` over 0.5:0.95.

    Detections of each class are first thinned by non-maximum suppression at IoU 0.5.

    Args:
        boxes: (rows, anchors, 4) as x0, y0, x1, y1, in the units of `true_boxes`.
        scores: (rows, anchors, classes).
        true_boxes: (rows, most, 4).
        labels: (rows, most) integers; -1 where a row has fewer boxes.

    Raises:
        UsageError: shapes do not fit, a label is out of range, or there is no box at all.
    """
    if (
        boxes.ndim != 3 or scores.ndim != 3 or boxes.shape[2] != 4
        or boxes.shape[:2] != scores.shape[:2]
    ):  # fmt: skip
        raise UsageError(
            f"map needs outputs boxes (rows, anchors, 4) and scores (rows, anchors, classes), not "
            f"{boxes.shape} and {scores.shape}: write a metric function that decodes the outputs."
        )
    if (
        true_boxes.ndim != 3 or true_boxes.shape[2] != 4
        or true_boxes.shape[:2] != labels.shape or len(labels) != len(boxes)
    ):  # fmt: skip
        raise UsageError(
            f"map needs boxes (rows, most, 4) and labels (rows, most) for {len(boxes)} rows, not "
            f"{true_boxes.shape} and {labels.shape}: pad rows with label -1."
        )
    classes = scores.shape[2]
    _refuse_labels(labels, classes, ignored=True)
    if not (labels >= 0).any():
        raise UsageError("map needs at least one true box: all labels are -1.")
    counts = np.stack([(labels == c).sum(1) for c in range(classes)], 1)  # (rows, classes)
    found = [_Detections.of(c, boxes, scores, true_boxes, labels) for c in range(classes)]

    def metric(name: str, thresholds: int) -> Score:
        def weighted(weights: NDArray[np.float64]) -> float:
            present = weights @ counts
            values = [
                f.average_precision(weights, n, thresholds)
                for f, n in zip(found, present, strict=True)
                if n > 0
            ]
            return float(np.mean(values)) if values else 0.0

        return Score(name, len(labels), weighted)

    return metric("map50", 1), metric("map", len(IOU_THRESHOLDS))


@dataclass(frozen=True)
class _Detections:
    """One class's detections over all rows, best score first: their rows (n,), and which of them
    are right at each IoU threshold (thresholds arrays of indices).
    """

    rows: Array
    rises: tuple[Array, ...]

    @classmethod
    def of(
        cls, label: int, boxes: Array, scores: Array, true_boxes: Array, labels: Array
    ) -> _Detections:
        rows, right, ranks = [], [], []
        for row in range(len(labels)):
            kept = suppress(boxes[row], scores[row, :, label])
            truth = true_boxes[row][labels[row] == label]
            rows.append(np.full(len(kept), row))
            right.append(_match(boxes[row][kept], truth))
            ranks.append(scores[row, kept, label])
        order = np.argsort(-np.concatenate(ranks), kind="stable")
        all_right = np.concatenate(right)[order]
        return cls(np.concatenate(rows)[order], tuple(map(np.flatnonzero, all_right.T)))

    def average_precision(
        self, weights: NDArray[np.float64], present: float, thresholds: int
    ) -> float:
        """Mean over the first IoU thresholds of the area under precision and recall."""
        if len(self.rows) == 0:
            return 0.0
        weight = weights[self.rows]
        all_found = np.maximum(np.cumsum(weight), 1e-9)
        points = np.linspace(0, 1, 101)
        areas = []
        for t in range(thresholds):
            # Recall rises, and precision is highest, where a right one comes: the rest can be left
            # out, which makes hundreds of resamples affordable.
            rises = self.rises[t]
            right = np.cumsum(weight[rises])
            precision = np.maximum.accumulate((right / all_found[rises])[::-1])[::-1]
            at = np.searchsorted(right / present, points - 1e-9)
            areas.append(np.append(precision, 0.0)[at].mean())
        return float(np.mean(areas))


def suppress(boxes: Array, scores: Array) -> Array:
    """Greedy non-maximum suppression: indices of the boxes (n, 4) kept, best score first."""
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= _FAINTEST][: 4 * _MOST_DETECTIONS]
    overlap = box_iou(boxes[order], boxes[order]) > _OVERLAP
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~overlap[i, i + 1 :]
    return order[alive][:_MOST_DETECTIONS]


def box_iou(a: Array, b: Array) -> Array:
    """Intersection over union of every box of `a` (n, 4) with every box of `b` (m, 4): (n, m)."""
    left, top, right, bottom = a.T[:, :, None]
    width = np.minimum(right, b[:, 2]) - np.maximum(left, b[:, 0])
    height = np.minimum(bottom, b[:, 3]) - np.maximum(top, b[:, 1])
    both = np.maximum(width, 0) * np.maximum(height, 0)
    overlap: Array = both / np.maximum(_areas(a)[:, None] + _areas(b) - both, 1e-12)
    return overlap


def _areas(boxes: Array) -> Array:
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas: Array = np.maximum(width, 0) * np.maximum(height, 0)
    return areas


def _match(found: Array, truth: Array) -> Array:
    """Which of the detections (n, 4), best first, are right: (n, thresholds) bool.

    Each takes the free true box it overlaps most, at each threshold by itself.
    """
    right = np.zeros((len(found), len(IOU_THRESHOLDS)), bool)
    if not len(truth):
        return right
    overlap = box_iou(found, truth)
    for t, threshold in enumerate(IOU_THRESHOLDS):
        free = np.ones(len(truth), bool)
        for i in np.flatnonzero(overlap.max(1) >= threshold):
            best = int(np.argmax(np.where(free, overlap[i], -1)))
            if free[best] and overlap[i, best] >= threshold:
                free[best], right[i, t] = False, True
    return right


def _refuse_labels(labels: Array, classes: int, *, ignored: bool) -> None:
    if labels.dtype.kind not in "iu":
        raise UsageError(f"The labels are {labels.dtype}: give class numbers as integers.")
    lowest = -1 if ignored else 0
    wrong = (labels < lowest) | (labels >= classes)
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        raise UsageError(
            f"Label {labels[wrong][0]} in row {row} is out of range: the model has classes 0 to "
            f"{classes - 1}" + (", and -1 means none." if ignored else ".")
        )


def _resamples(rows: int, seed: int) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return [
        np.bincount(rng.integers(rows, size=rows), minlength=rows).astype(np.float64)
        for _ in range(_RESAMPLES)
    ]


def _percentiles(values: list[float], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
