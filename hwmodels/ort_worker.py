"""Times ONNX models in onnxruntime, in a process of its own; started by `ort_cpu.py`.

Reads one line of JSON from standard input, answers with one line of JSON.

What is repeatable on a machine that does other things too: pinned to one core, one thread that
does not spin, short bursts of each model, round after round over all of them, and the smallest
time of each. Interleaving matters most: a disturbance then hits one burst of many models instead
of all bursts of one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

_FEWEST_RUNS = 3
_TYPES = {
    "tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(bool)": np.bool_,
}  # fmt: skip


def time_models(
    paths: Sequence[str], rounds: int, burst_seconds: float
) -> tuple[list[float | None], list[str]]:
    """Smallest seconds of one run of each model, None where it cannot run; and why not."""
    bound: list[tuple[Any, Any] | None] = []
    reasons = []
    for path in paths:
        try:
            bound.append(_bound(path))
            reasons.append("")
        except Exception as error:
            bound.append(None)
            reasons.append(str(error).splitlines()[0])
    best: list[float | None] = [None] * len(paths)
    for _ in range(rounds):
        for i, pair in enumerate(bound):
            if pair is not None:
                found = _burst(*pair, burst_seconds)
                best[i] = found if best[i] is None else min(found, best[i] or found)
    return best, reasons


def _bound(path: str) -> tuple[Any, Any]:
    """A session with inputs and outputs in place, run once."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    binding = session.io_binding()
    for value in session.get_inputs():
        dtype = _TYPES[value.type]
        values = rng.standard_normal(value.shape)
        if dtype != np.float32:
            values = rng.integers(0, 2 if dtype == np.bool_ else 100, value.shape)
        binding.bind_cpu_input(value.name, np.ascontiguousarray(values, dtype))
    for value in session.get_outputs():
        binding.bind_output(value.name, "cpu")
    session.run_with_iobinding(binding)
    return session, binding


def _burst(session: Any, binding: Any, seconds: float) -> float:
    best, runs, start = float("inf"), 0, time.perf_counter()
    before = start
    while runs < _FEWEST_RUNS or before - start < seconds:
        session.run_with_iobinding(binding)
        after = time.perf_counter()
        best = min(best, after - before)
        before, runs = after, runs + 1
    return best


def main() -> None:
    """Serve one request."""
    request: Mapping[str, Any] = json.loads(sys.stdin.readline())
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[request["core"] % len(cores)]})
    times, reasons = time_models(request["paths"], request["rounds"], request["burst_seconds"])
    print(json.dumps({"times": times, "reasons": reasons, "version": ort.__version__}), flush=True)


if __name__ == "__main__":
    main()
