"""How well a model does its task: labelled rows in, a metric with its interval out.

A metric is a built-in name (`METRICS`) with data, or the user's own function
``module:function(session) -> float``. Data is an .npz file or ``module:function() -> arrays``;
a module is a dotted name or a path to a .py file. Arrays are named: ``inputs`` (or the model's own
input names), ``labels``, and ``boxes`` for detection; shapes are those in metrics.py.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.errors import UsageError, unknown_name
from onnxnas.graph import Port, contract
from onnxnas.metrics import Score, mean_average_precision, mean_iou, top1
from onnxnas.protos import first_line
from onnxnas.resized import as_original
from onnxnas.runtime import NUMPY_DTYPES, Session

Arrays = Mapping[str, NDArray[Any]]

METRICS = ("top1", "map", "miou")
_TRUTH = {"top1": ("labels",), "map": ("boxes", "labels"), "miou": ("labels",)}
_BATCH = 32


@dataclass(frozen=True)
class Measured:
    """One metric of one model.

    Attributes:
        name: ``top1``, ``map50``, ``map``, ``miou``, or the user's function.
        value: higher is better; 0..1 for the built-in metrics.
        interval: 95 % bootstrap ends; None for the user's function, which shows no rows.
        rows: how many rows were measured; None likewise.
        score: resamples in pairs with another model's (`metrics.difference`); None likewise.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    rows: int | None = None
    score: Score | None = None


@dataclass(frozen=True)
class Data:
    """Labelled rows, checked against a model's inputs: `inputs` by input name, and the truth."""

    inputs: dict[str, NDArray[Any]]
    truth: dict[str, NDArray[Any]]

    @property
    def rows(self) -> int:
        """How many."""
        return len(next(iter(self.inputs.values())))


def evaluate(
    model: Any, metric: str, arrays: Arrays | None = None, seed: int = 0
) -> list[Measured]:
    """Measure a model.

    Args:
        model: `onnx.ModelProto`; is run in onnxruntime with its optimisations, on one thread. One
            whose metadata says that it takes inputs of another size than the original is measured
            on data of either size: between that and its own it is resized (`onnxnas.resized`).
        metric: one of `METRICS`, or ``module:function`` called with an
            `onnxruntime.InferenceSession`.
        arrays: from `read_arrays`; needed by the built-in metrics.
        seed: of the bootstrap.

    Returns:
        One entry, or two for ``map``: ``map50`` (IoU 0.5) and ``map`` (IoU 0.5:0.95).

    Raises:
        UsageError: the metric is unknown, or the data does not fit the model or the metric.
        UnsupportedError: onnxruntime cannot run the model.
    """
    if ":" in metric:
        return [_own(as_original(model), metric)]
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    if arrays is None:
        raise UsageError(f"The metric {metric} needs data: name an .npz file or module:function.")
    model = _of_size(model, arrays)
    measured = []
    for score in scores(model, metric, checked(model, metric, arrays)):
        measured.append(Measured(score.name, score.value, score.interval(seed), score.rows, score))
    return measured


def scores(model: Any, metric: str, data: Data) -> list[Score]:
    """The built-in metric of a model on checked data."""
    outputs = predict(model, data.inputs)
    truth = data.truth
    if metric == "map":
        return list(mean_average_precision(*_boxes(outputs), truth["boxes"], truth["labels"]))
    measure: Callable[..., Score] = {"top1": top1, "miou": mean_iou}[metric]
    ranks = (2, 4) if metric == "top1" else (3, 4)
    fitting = [v for v in outputs.values() if v.ndim in ranks]
    if len(fitting) != 1:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in outputs.items())
        raise UsageError(
            f"{metric} needs one output to judge, and the model has {shapes}: "
            f"write a metric function."
        )
    return [measure(fitting[0], truth["labels"])]


def _of_size(model: Any, arrays: Arrays) -> Any:
    """The model, or with its data resized where that has the size of the original's inputs."""
    whole = as_original(model)
    given = [(port, arrays.get(port.name, arrays.get("inputs"))) for port in contract(whole)[0]]
    return whole if all(v is not None and _takes(port, v) for port, v in given) else model


def _takes(port: Port, rows: NDArray[Any]) -> bool:
    """Whether rows have the shape of an input; the first dimension counts them."""
    return port.shape is None or (
        rows.ndim == len(port.shape)
        and all(
            want == have
            for want, have in zip(port.shape[1:], rows.shape[1:], strict=True)
            if isinstance(want, int)
        )
    )


def predict(model: Any, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """The model's outputs for all rows, by name; a fixed batch size is filled up and cut.

    Raises:
        UsageError: an output has no row per input row.
        UnsupportedError: onnxruntime cannot run the model.
    """
    session = Session(model, optimised=True)
    ports = contract(model)[0]
    batch = next((p.shape[0] for p in ports if p.shape and isinstance(p.shape[0], int)), _BATCH)
    rows = len(next(iter(inputs.values())))
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in session.outputs}
    for start in range(0, rows, batch):
        wanted = np.minimum(np.arange(start, start + batch), rows - 1)
        if ports[0].shape and not isinstance(ports[0].shape[0], int):
            wanted = np.unique(wanted)
        for name, value in session.run({k: v[wanted] for k, v in inputs.items()}).items():
            if not isinstance(value, np.ndarray) or value.shape[:1] != wanted.shape:
                raise UsageError(
                    f"Output {name!r} has no row per input row: write a metric function."
                )
            parts[name].append(value)
    return {name: np.concatenate(values)[:rows] for name, values in parts.items()}


# --- data -----------------------------------------------------------------------------------


def read_arrays(source: str) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, or those that ``module:function()`` returns.

    Raises:
        UsageError: there is no such file or function, or it holds no named arrays.
    """
    if source.endswith(".npz"):
        try:
            file = np.load(source, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise UsageError(f"{source} is one array without a name: write it by np.savez.")
            with file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UsageError(f"{source} cannot be read as .npz: {first_line(error)}.") from error
    if ":" not in source:
        raise UsageError(f"{source!r} is no data: name an .npz file or module:function.")
    try:
        made = find_function(source)()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{source} failed: {type(error).__name__}: {first_line(error)}."
        ) from error
    if not isinstance(made, Mapping) or not all(isinstance(v, np.ndarray) for v in made.values()):
        raise UsageError(
            f"{source} returned {type(made).__name__}: return a dict of numpy arrays by name."
        )
    return {str(name): value for name, value in made.items()}


def checked(model: Any, metric: str, arrays: Arrays) -> Data:
    """Arrays sorted into inputs and truth, once they fit the model and the metric.

    Raises:
        UsageError: an array is missing, empty, of the wrong shape or type, or not finite.
    """
    ports = contract(model)[0]
    inputs = {}
    for port in ports:
        name = "inputs" if len(ports) == 1 and port.name not in arrays else port.name
        inputs[port.name] = _fitting(port, name, _named(name, arrays))
    truth = {name: _named(name, arrays) for name in _TRUTH[metric]}
    rows = {name: len(value) for name, value in (inputs | truth).items()}
    if len(set(rows.values())) != 1:
        counts = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise UsageError(f"The arrays have different numbers of rows: {counts}.")
    for name, value in truth.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UsageError(f"The data's {name!r} holds NaN or infinity in row {_bad_row(value)}.")
    return Data(inputs, truth)


def refuse_shared_rows(calibration: Arrays, test: Arrays) -> None:
    """Refuse calibration rows among the test rows: a fit would be judged on what it has seen.

    Rows are compared by the bytes of their arrays of the same name.

    Raises:
        UsageError: names how many rows are shared and the first of them.
    """
    for name in calibration.keys() & test.keys():
        seen = {_digest(row) for row in calibration[name]}
        shared = [i for i, row in enumerate(test[name]) if _digest(row) in seen]
        if shared:
            raise UsageError(
                f"{len(shared)} test rows are also calibration rows, the first is row "
                f"{shared[0]} of {name!r}: keep the two apart."
            )


def _named(name: str, arrays: Arrays) -> NDArray[Any]:
    if name not in arrays:
        have = ", ".join(sorted(arrays)) or "nothing"
        raise UsageError(f"The data has no array {name!r}: it has {have}.")
    value = arrays[name]
    if value.ndim == 0 or value.size == 0:
        raise UsageError(f"The data's {name!r} is empty: shape {value.shape}.")
    return value


def _fitting(port: Port, name: str, value: NDArray[Any]) -> NDArray[Any]:
    dtype = NUMPY_DTYPES.get(port.dtype)
    if dtype is not None and value.dtype != dtype:
        raise UsageError(
            f"The data's {name!r} is {value.dtype} and the model's input {port.name!r} is {dtype}: "
            f"convert it, scaled as in training."
        )
    if not _takes(port, value):
        raise UsageError(
            f"The data's {name!r} has shape {value.shape} and the model takes {port}: "
            f"the first dimension counts rows, the others must agree."
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise UsageError(f"The data's {name!r} holds NaN or infinity in row {_bad_row(value)}.")
    return value


def _bad_row(value: NDArray[Any]) -> int:
    return int(np.argwhere(~np.isfinite(value))[0][0])


def _digest(row: NDArray[Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()


def _boxes(outputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The boxes and the scores among a detector's outputs: by name, else by shape."""
    if outputs.keys() >= {"boxes", "scores"}:
        return outputs["boxes"], outputs["scores"]
    triples = [v for v in outputs.values() if v.ndim == 3]
    boxes = [v for v in triples if v.shape[2] == 4]
    others = [v for v in triples if v.shape[2] != 4]
    if len(boxes) != 1 or len(others) != 1:
        raise UsageError(
            "map needs outputs named 'boxes' (rows, anchors, 4) and 'scores' (rows, anchors, "
            f"classes), and the model has {', '.join(outputs)}: write a metric function."
        )
    return boxes[0], others[0]


# --- the user's functions -------------------------------------------------------------------


def find_function(entry: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; the module is dotted or a path to a .py file.

    A file's folder is searched first for what it imports, as when Python runs it.

    Raises:
        UsageError: there is no such module or function, or the module fails when imported.
    """
    where, _, name = entry.rpartition(":")
    try:
        module = _import_file(Path(where)) if where.endswith(".py") else _import_name(where)
    except Exception as error:
        raise UsageError(
            f"{where} cannot be imported: {type(error).__name__}: {first_line(error)}."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{where} has no function {name!r}.")
    found: Callable[..., Any] = function
    return found


def _import_name(name: str) -> ModuleType:
    """A dotted module; the current folder is searched too, as `python -m` does."""
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove("")


def _import_file(path: Path) -> ModuleType:
    name = f"_onnxnas_user_{path.stem}"  # may not take the place of an installed module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _own(model: Any, entry: str) -> Measured:
    function = find_function(entry)
    session = Session(model, optimised=True)
    try:
        value = function(session.session)
    except Exception as error:
        raise UsageError(f"{entry} failed: {type(error).__name__}: {first_line(error)}.") from error
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise UsageError(f"{entry} returned {type(value).__name__}, not a number.")
    if array.size != 1 or not np.isfinite(array).all():
        raise UsageError(f"{entry} returned {_brief(value)}, not one finite number.")
    return Measured(entry, float(array.reshape(())))


def _brief(value: Any) -> str:
    shape = np.shape(value)
    return f"an array of shape {shape}" if shape else str(value)
