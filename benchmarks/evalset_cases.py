"""Real networks of the evaluation set: what their weights are fitted on and how they are scored."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from onnxnas.graph import contract
from onnxnas.runtime import Session

EVALSET = Path(__file__).resolve().parents[2] / "shared" / "evalset"
Floats = NDArray[np.float32]
Scores = dict[str, dict[str, float]]
"""Reading -> its figures; ``metric`` in percent is always one."""


@dataclass(frozen=True)
class Case:
    """A network, what it is fitted on and how it is scored.

    Attributes:
        rows: unlabelled inputs.
        score: figures of a model beside those of the original, None for the original itself.
    """

    model: Path
    rows: Floats
    score: Callable[[onnx.ModelProto, Any], tuple[Any, Scores]]


def evaluation() -> Any:
    """The evaluation set's own script."""
    spec = importlib.util.spec_from_file_location("evaluate", EVALSET / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mobilenetv2(script: Any, fitted_on: int = 0) -> Case:
    """Fitted on one half of the pictures and scored on the other.

    Args:
        fitted_on: 0 for the 1st, 3rd, ... picture, 1 for the others.
    """
    archive = script.PREPROCESS["imagenet"][0]
    labels = np.array([int(name[:4]) for name, _ in script._images(archive)])
    rows = script.calibration("imagenet", len(labels))
    labels, scored = labels[1 - fitted_on :: 2], rows[1 - fitted_on :: 2].copy()
    views = {
        "as they are": scored,
        "mirrored": scored[..., ::-1].copy(),
        "hard": np.stack([_hard(r) for r in scored]),
    }

    def score(model: onnx.ModelProto, base: Any) -> tuple[Any, Scores]:
        logits = {name: _logits(model, view) for name, view in views.items()}
        known = base or logits
        found = {n: paired(known[n], logits[n], labels) for n in views}
        both = [(known[n], logits[n]) for n in ("as they are", "mirrored")]
        found["mean of both"] = _mean(both, labels)
        return logits, found

    return Case(EVALSET / "models" / "mobilenetv2_224.onnx", rows[fitted_on::2].copy(), score)


def on_other_pictures(script: Any, model: str, task: str, count: int) -> Case:
    """Fitted on ImageNet pictures with the task's preprocessing, scored by the task's script."""
    archive, folder, size, mean, scale = script.PREPROCESS[task]
    pictures = [im for _, im in script._images(script.PREPROCESS["imagenet"][0])]
    picked = pictures[:: len(pictures) // count][:count]
    rows = np.concatenate([script._nchw(im, size, mean, scale) for im in picked])
    scored = list(script._images(archive, folder=folder))
    everything = set(range(len(scored)))
    groups = [everything] + [everything - {*range(i, len(scored), _GROUPS)} for i in range(_GROUPS)]

    def score(changed: onnx.ModelProto, base: Any) -> tuple[Any, Scores]:
        """The metric, also without each tenth of the pictures: a jackknife of the change."""
        session, found = _Remembered(changed), []
        script._session = lambda model: (session, session.input)
        for group in groups:
            some = [scored[i] for i in sorted(group)]
            script._images = lambda *_, some=some, **__: iter(some)
            found.append(float(getattr(script, task)("")))
        lost = np.array(found if base is None else base) - np.array(found)
        error = float(np.sqrt((_GROUPS - 1) / _GROUPS * ((lost[1:] - lost[1:].mean()) ** 2).sum()))
        figures = {"metric": found[0], "drop": float(lost[0]), "drop_standard_error": error}
        return found, {"as they are": figures}

    return Case(EVALSET / "models" / model, rows, score)


_GROUPS = 10
"""Of scored pictures, each left out once."""


class _Remembered:
    """Stands in for the script's session: every picture is run once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._session = Session(model, optimised=True)
        (self.input,) = [port.name for port in contract(model)[0]]
        self._known: dict[bytes, list[Any]] = {}

    def run(self, _: None, feeds: dict[str, Floats]) -> list[Any]:
        key = hashlib.sha256(feeds[self.input].tobytes()).digest()
        if key not in self._known:
            found = self._session.run(feeds).values()
            kept = [v.astype(np.uint8) if v.dtype.kind == "i" else v for v in found]
            self._known[key] = [
                v.argmax(1) if v.ndim == 4 and v.shape[2] > 100 else v for v in kept
            ]
        return self._known[key]


CASES: Mapping[str, Callable[[Any], Case]] = {
    "mobilenetv2": mobilenetv2,
    "mobilenetv2-swapped": lambda s: mobilenetv2(s, fitted_on=1),
    "yolo": lambda s: on_other_pictures(s, "yolo_fastest_1.1_320.onnx", "coco", 100),
    "deeplab": lambda s: on_other_pictures(s, "deeplabv3_mnv2_dm05_513.onnx", "camvid", 60),
}


def _hard(row: Floats) -> Floats:
    """Reduced to 112 x 112 and enlarged again."""
    pixels = np.clip(row.transpose(1, 2, 0) * 128 + 128, 0, 255).round().astype(np.uint8)
    small = Image.fromarray(pixels).resize((112, 112), Image.Resampling.BILINEAR)
    large = np.asarray(small.resize((224, 224), Image.Resampling.BILINEAR), np.float32)
    return ((large.transpose(2, 0, 1) - 128) / 128).astype(np.float32)


def _logits(model: Any, rows: Floats) -> NDArray[np.float64]:
    session = Session(model, optimised=True)
    (name,) = [port.name for port in contract(model)[0]]
    runs = (next(iter(session.run({name: row[None]}).values())) for row in rows)
    return np.array([run.ravel() for run in runs], np.float64)


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def paired(
    before: NDArray[np.float64], after: NDArray[np.float64], labels: NDArray[np.int64]
) -> dict[str, float]:
    """Top-1 and what was lost, paired, in points; agreement; divergence."""
    right = (after.argmax(1) == labels).astype(float)
    lost = (before.argmax(1) == labels) - right
    a, b = _log_softmax(before), _log_softmax(after)
    return {
        "metric": 100 * right.mean(),
        "drop": 100 * lost.mean(),
        "drop_standard_error": 100 * lost.std(ddof=1) / len(lost) ** 0.5,
        "agreement": 100 * float((before.argmax(1) == after.argmax(1)).mean()),
        "divergence": float((np.exp(a) * (a - b)).sum(1).mean()),
    }


def _mean(
    pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], labels: NDArray[np.int64]
) -> dict[str, float]:
    """Top-1 and what was lost, the mean of several readings of each picture."""
    lost = np.mean([(b.argmax(1) == labels) - (a.argmax(1) == labels) * 1.0 for b, a in pairs], 0)
    right = np.mean([a.argmax(1) == labels for _, a in pairs])
    error = 100 * float(lost.std(ddof=1)) / len(lost) ** 0.5
    return {
        "metric": 100 * float(right),
        "drop": 100 * float(lost.mean()),
        "drop_standard_error": error,
    }
