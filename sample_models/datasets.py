"""The sample models' data as arrays: `camera_classifier("test", 500)`, and so on for each model.

Each function returns `image` (rows, 3, size, size) float32 in 0..1, RGB, and the truth under the
names that `onnxnas evaluate` reads. Splits and rows are explained in scenes.py. To write a file:

    python sample_models/datasets.py camera_classifier calibration 200 calibration.npz
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scenes import classified, detected, row_rng, segmented

Arrays = dict[str, NDArray[Any]]


def camera_classifier(split: str = "test", rows: int = 2000) -> Arrays:
    """`labels` (rows,): index into scenes.OBJECTS."""
    return _scaled(render("camera_classifier", split, rows))


def presence_detector(split: str = "test", rows: int = 1000) -> Arrays:
    """`boxes` (rows, most, 4) as x0, y0, x1, y1 in 0..1 and `labels` (rows, most): index into
    scenes.DETECTED, -1 where an image has fewer boxes than `most`.
    """
    return _scaled(render("presence_detector", split, rows))


def room_segmenter(split: str = "test", rows: int = 400) -> Arrays:
    """`labels` (rows, 160, 160): index into scenes.REGIONS."""
    return _scaled(render("room_segmenter", split, rows))


def render(name: str, split: str, rows: int) -> Arrays:
    """As the functions above, with `image` in uint8: a quarter of the memory."""
    streams = (row_rng(split, i) for i in range(rows))
    if name == "presence_detector":
        found = [detected(rng, 128) for rng in streams]
        most = max(len(labels) for _, _, labels in found)
        boxes = np.zeros((rows, most, 4), np.float32)
        labels = np.full((rows, most), -1, np.int64)
        for row, (_, row_boxes, row_labels) in enumerate(found):
            boxes[row, : len(row_boxes)] = row_boxes
            labels[row, : len(row_labels)] = row_labels
        return {"image": _planes([f[0] for f in found]), "boxes": boxes, "labels": labels}
    drawn: list[tuple[Any, Any]] = (
        [classified(rng, 96) for rng in streams]
        if name == "camera_classifier"
        else [segmented(rng, 160) for rng in streams]
    )
    return {"image": _planes([d[0] for d in drawn]), "labels": np.array([d[1] for d in drawn])}


def _planes(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def _scaled(arrays: Arrays) -> Arrays:
    image = arrays["image"].astype(np.float32) / np.float32(255)
    return {**arrays, "image": image, "labels": arrays["labels"].astype(np.int64)}


if __name__ == "__main__":
    _name, _split, _rows, _path = sys.argv[1:]
    np.savez_compressed(_path, **_scaled(render(_name, _split, int(_rows))))  # type: ignore[arg-type]
