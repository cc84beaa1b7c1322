"""Times ONNX models in onnxruntime, in a process of its own; started by `ort_cpu.py`.

Reads one line of JSON from standard input, answers with one line of JSON.

What is repeatable on a machine that does other things too: pinned to one core, one thread that
does not spin, short bursts of each model, round after round over all of them, and the smallest
time of each. Interleaving matters most: a disturbance then hits one burst of many models instead
of all bursts of one. Every model runs in two sessions, one as it is, and one that records the time
of every node with onnxruntime's own profiler and so takes longer.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

_FEWEST_RUNS = 3
_MOST_RECORDED = 12
"""Runs of a recording burst: every node of every run is kept in memory."""
_TYPES = {
    "tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(bool)": np.bool_,
}  # fmt: skip
_PATCH = 8
"""Pixels over which the random pictures change."""
_NOISE = 0.1
_RECORDED = "_kernel_time"
"""What the profiler appends to a node's name."""


def time_models(paths: Sequence[str], rounds: int, burst_seconds: float) -> list[dict[str, Any]]:
    """For each model the smallest seconds of one run, and of each node as recorded.

    A model that cannot run has a ``reason`` and nothing else. The graph that runs is written to
    the path with ``.ran`` appended.
    """
    answers: list[dict[str, Any]] = []
    for path in paths:
        try:
            plain, recording = _bound(path), _bound(path, record=True)
            answers.append({"reason": "", "seconds": float("inf"), "both": (plain, recording)})
        except Exception as error:
            answers.append({"reason": str(error).splitlines()[0]})
    running = [a for a in answers if not a["reason"]]
    for _ in range(rounds):
        for answer in running:
            plain, recording = answer["both"]
            answer["seconds"] = min(answer["seconds"], _burst(plain, burst_seconds))
            _burst(recording, burst_seconds, _MOST_RECORDED)
    for answer in running:
        session, _ = answer.pop("both")[1]
        answer["nodes"] = _recorded(Path(session.end_profiling()))
    return answers


def _bound(path: str, record: bool = False) -> tuple[Any, Any]:
    """A session with inputs and outputs in place, run once."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if record:
        options.enable_profiling = True
        options.profile_file_prefix = f"{path}.times"
        options.optimized_model_filepath = f"{path}.ran"
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    binding = session.io_binding()
    for value in session.get_inputs():
        dtype = _TYPES[value.type]
        if dtype == np.float32:
            values = picture(value.shape, rng)
        else:
            values = rng.integers(0, 2 if dtype == np.bool_ else 100, value.shape)
        binding.bind_cpu_input(value.name, np.ascontiguousarray(values, dtype))
    for value in session.get_outputs():
        binding.bind_output(value.name, "cpu")
    session.run_with_iobinding(binding)
    return session, binding


def picture(shape: Sequence[int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Random values that change smoothly along the last two of four axes, with a little noise.

    Operators that branch on signs (PRelu, ArgMax) take twice as long on white noise, which no
    processor can foresee, as on anything like a picture.
    """
    noise = rng.standard_normal(shape)
    if len(shape) != 4:
        return noise
    rows, columns = (size // _PATCH + 2 for size in shape[2:])
    coarse = rng.standard_normal((*shape[:2], rows, columns))
    down, across = _interpolation(shape[2], rows), _interpolation(shape[3], columns)
    result: NDArray[np.float64] = down @ coarse @ across.T + _NOISE * noise
    return result


def _interpolation(fine: int, coarse: int) -> NDArray[np.float64]:
    """Matrix of linear interpolation, [fine, coarse]."""
    places = np.linspace(0, coarse - 1, fine)
    result: NDArray[np.float64] = np.maximum(0.0, 1 - np.abs(places[:, None] - np.arange(coarse)))
    return result


def _burst(bound: tuple[Any, Any], seconds: float, most: int = sys.maxsize) -> float:
    session, binding = bound
    best, runs, after = float("inf"), 0, time.perf_counter()
    end = after + seconds
    while runs < _FEWEST_RUNS or (after < end and runs < most):
        busy = time.thread_time()
        before = time.perf_counter()
        session.run_with_iobinding(binding)
        after = time.perf_counter()
        # Where others share the core, no long run has it for itself: then its own time counts.
        best = min(best, after - before, time.thread_time() - busy)
        runs += 1
    return best


def _recorded(profile: Path) -> dict[str, float]:
    """Smallest seconds of each node."""
    best: dict[str, float] = {}
    for event in json.loads(profile.read_text(encoding="utf-8")):
        if event["cat"] == "Node" and event["name"].endswith(_RECORDED):
            name, seconds = event["name"].removesuffix(_RECORDED), event["dur"] * 1e-6
            best[name] = min(best.get(name, seconds), seconds)
    profile.unlink()
    return best


def main() -> None:
    """Serve one request."""
    request: Mapping[str, Any] = json.loads(sys.stdin.readline())
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[request["core"] % len(cores)]})
    models = time_models(request["paths"], request["rounds"], request["burst_seconds"])
    print(json.dumps({"models": models, "version": ort.__version__}), flush=True)


if __name__ == "__main__":
    main()
