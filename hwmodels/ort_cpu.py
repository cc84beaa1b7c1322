"""The processor this runs on as a target: onnxruntime, timed, in float or int8.

`measure` times single kernels and whole networks of a `timing_plan` and returns what
`csv_import.train` takes. Figures belong to one processor: the artefact names it, and
`csv_import.load` warns where it is another.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.errors import OnnxnasError
from onnxnas.excerpt import excerpt
from onnxnas.graph import from_model, static_view
from onnxnas.hwmodels import csv_import, training
from onnxnas.hwmodels.catboost_model import CatBoostCostModel
from onnxnas.hwmodels.csv_import import Times, alone
from onnxnas.hwmodels.processor import processor
from onnxnas.hwmodels.timing_plan import KERNEL, OVERHEAD, Timed
from onnxnas.kernels import split_kernels
from onnxnas.loading import load_model, save_model

CLOCK_HZ = 1e9
"""Cycles of these targets are nanoseconds."""
LARGEST = 400_000_000
"""Multiply-accumulates of a kernel that is timed: some ten milliseconds."""
_ROUNDS = 10
_BURST_SECONDS = 0.01
_SPREAD = 0.03
"""Two measurements of a model that differ by more make it doubtful."""
_BATCH = 400
"""Models in memory at once."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Protocol:
    """How to time.

    Attributes:
        rounds: over all models, in each of two processes.
        burst_seconds: of one model in one round.
        core: number of the core to run on, of those this process may use; the last by default,
            which has least to do with interrupts.
    """

    rounds: int = _ROUNDS
    burst_seconds: float = _BURST_SECONDS
    core: int = -1


@dataclass(frozen=True)
class Measured:
    """What a measurement found.

    Attributes:
        times: for `csv_import.train`.
        spread: median over models of how far two processes differ, relative to the smaller.
        doubtful: share of models that differ by more than 3 %.
        failed: model and reason, for those that cannot run.
        version: of onnxruntime.
    """

    times: Times
    spread: float
    doubtful: float
    failed: tuple[tuple[str, str], ...]
    version: str


def measure(
    timed: Sequence[Timed],
    int8: bool = False,
    protocol: Protocol | None = None,
    tell: Tell | None = None,
) -> Measured:
    """Time models here, each in two processes, the smaller time counts.

    Args:
        timed: what to time.
        int8: quantise each model first: static, weights per channel, inputs and outputs int8.
        protocol: how.
        tell: called with a line now and then.

    Raises:
        OnnxnasError: the timing process fails.
    """
    protocol, tell = protocol or Protocol(), tell or (lambda line: None)
    seconds: list[NDArray[np.float64]] = []
    failed: list[tuple[str, str]] = []
    version = ""
    for first in range(0, len(timed), _BATCH):
        batch = timed[first : first + _BATCH]
        with tempfile.TemporaryDirectory(prefix="onnxnas-time-") as folder:
            paths = list(_prepared(batch, int8, Path(folder)))
            tell(f"{first} of {len(timed)} models timed")
            one = _run([p for p, _ in paths], protocol)
            two = _run([p for p, _ in paths], protocol)
        version = one["version"]
        reasons = [early or late for (_, early), late in zip(paths, one["reasons"], strict=True)]
        failed += [(t.name, why) for t, why in zip(batch, reasons, strict=True) if why]
        seconds.append(np.array([one["times"], two["times"]], np.float64).T)
    pairs = np.concatenate(seconds)
    best = pairs.min(axis=1)
    spread = np.abs(pairs[:, 0] - pairs[:, 1]) / best
    known = spread[~np.isnan(spread)]
    if not len(known):
        raise OnnxnasError(f"onnxruntime could run none of the models: {failed[0][1]}.")
    return Measured(
        _times(timed, best),
        float(np.median(known)),
        float((known > _SPREAD).mean()),
        tuple(failed),
        version,
    )


def train(
    measured: Measured, int8: bool = False, settings: training.Settings | None = None
) -> tuple[training.Trained, dict[str, Any]]:
    """The model of this processor and its card."""
    fastest = max((k.macs / s for k, s in measured.times.kernels), default=1.0)
    here = processor()
    precision = "int8 (QDQ)" if int8 else "float32"
    card = {
        "name": "cpu-ort-int8" if int8 else "cpu-ort",
        "title": f"onnxruntime on one core, {precision}",
        "backend": "onnxruntime",
        "kind": "predicted",
        "clock_hz": CLOCK_HZ,
        "macs_per_cycle": max(1, round(fastest / CLOCK_HZ)),
        "channel_multiples": [8, 16],
        "config": {"processor": here, "precision": precision},
        "notes": f"Measured with onnxruntime {measured.version} on {here}, one thread; cycles are "
        "nanoseconds. Figures belong to this processor: 'onnxnas target cpu' measures another.",
    }
    source = training.Source("onnxruntime", measured.version, "measured")
    trained = csv_import.train(measured.times, card, settings, source)
    trained.model.entry["isolated"].update(
        processor=here, spread=measured.spread, doubtful=measured.doubtful
    )
    return trained, card


def cpu_ort() -> CatBoostCostModel:
    """One core of the processor the shipped artefact names, float32."""
    return csv_import.load(Path(__file__).with_name("cpu-ort.json"))


def cpu_ort_int8() -> CatBoostCostModel:
    """One core of the processor the shipped artefact names, int8."""
    return csv_import.load(Path(__file__).with_name("cpu-ort-int8.json"))


def quantised(model: Any, seed: int = 0) -> Any:
    """The model in int8 (QDQ), its inputs and outputs int8 too, as inside a larger network.

    Activations are uint8, weights int8 per channel; ranges come from one random input.

    Args:
        model: `onnx.ModelProto` with static shapes.
        seed: of the input.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(prefix="onnxnas-int8-") as folder:
        path = Path(folder) / "float.onnx"
        save_model(model, path)
        result = Path(folder) / "int8.onnx"
        with _advice_muted():
            quantize_static(
                str(path),
                str(result),
                _OneInput(model, seed),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        graph = from_model(load_model(result))
    inputs = [_behind_quantize(t) for t in graph.inputs]
    outputs = [_before_dequantize(t) for t in graph.outputs]
    return excerpt(graph, [t.name for t in outputs], [t.name for t in inputs])


@contextlib.contextmanager
def _advice_muted() -> Iterator[None]:
    """Without the quantiser's advice to preprocess: it goes to the root logger, per model."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


class _OneInput:
    """onnxruntime's CalibrationDataReader with one random input."""

    def __init__(self, model: Any, seed: int) -> None:
        rng = np.random.default_rng(seed)
        graph = from_model(model)
        self._feeds = iter(
            [{t.name: rng.standard_normal(t.shape).astype(t.dtype) for t in graph.inputs}]
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)


def _behind_quantize(tensor: Any) -> Any:
    readers = tensor.outputs
    if len(readers) == 1 and readers[0].op == "QuantizeLinear":
        return readers[0].outputs[0]
    return tensor


def _before_dequantize(tensor: Any) -> Any:
    if tensor.inputs and tensor.inputs[0].op == "DequantizeLinear":
        return tensor.inputs[0].inputs[0]
    return tensor


def _prepared(batch: Sequence[Timed], int8: bool, folder: Path) -> Iterator[tuple[str, str]]:
    """Path of each model, and why it could not be made ready."""
    for i, one in enumerate(batch):
        path, reason = folder / f"{i}.onnx", ""
        try:
            save_model(quantised(one.model) if int8 and one.kind != OVERHEAD else one.model, path)
        except Exception as error:  # onnxruntime's quantiser raises what its parts raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        yield str(path), reason


def _run(paths: Sequence[str], protocol: Protocol) -> dict[str, Any]:
    request = {
        "paths": list(paths),
        "rounds": protocol.rounds,
        "burst_seconds": protocol.burst_seconds,
        "core": protocol.core,
    }
    # Started by file, not as a module: nothing but onnxruntime may load or warm anything up.
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ort_worker.py"))],
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise OnnxnasError(f"Timing on the processor failed: {last}.")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _times(timed: Sequence[Timed], seconds: NDArray[np.float64]) -> Times:
    overhead = [s for t, s in zip(timed, seconds, strict=True) if t.kind == OVERHEAD]
    call = float(np.nanmin(overhead)) if overhead else 0.0
    kernels, networks = [], []
    for one, total in zip(timed, seconds.tolist(), strict=True):
        if np.isnan(total) or one.kind == OVERHEAD:
            continue
        own = max(total - call, csv_import.LEAST * call)
        found = split_kernels(static_view(from_model(one.model), {}))
        if one.kind == KERNEL:
            kernels.append((alone(found[0]), own))
        else:
            networks.append((one.name, tuple(alone(k) for k in found), own))
    missing = int(np.isnan(seconds).sum())
    return Times(tuple(kernels), tuple(networks), call, missing, csv_import.digest(seconds))
