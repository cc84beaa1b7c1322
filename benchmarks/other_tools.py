"""The same networks through other ONNX optimisers, each result compiled for the same targets.

    pip install onnxsim onnxslim onnxscript
    python benchmarks/other_tools.py MODELS... [--target NAME ...] [--input-shape NAME:1,3,H,W]
        [--budget SECONDS]

Every figure is a whole-network estimate of the target's cost source, in thousand cycles; the
baseline is the cleaned original. "cannot be compiled" says why a tool's file has no figure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from onnxnas import optimize, predict
from onnxnas.errors import OnnxnasError
from onnxnas.loading import load_model, parse_input_shapes

TARGETS = (
    "ethos-u55-128", "ethos-u55-256", "ethos-u65-256",
    "ethos-u65-512", "ethos-u85-512", "ethos-u85-2048",
)  # fmt: skip


def onnxsim(path: Path) -> onnx.ModelProto:
    import onnxsim as tool

    return tool.simplify(str(path))[0]


def onnxslim(path: Path) -> onnx.ModelProto:
    import onnxslim as tool

    return tool.slim(str(path))


def onnxscript(path: Path) -> onnx.ModelProto:
    import onnxscript.optimizer

    return onnxscript.optimizer.optimize(onnx.load(path))


def onnxruntime_extended(path: Path) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = f"{folder}/out.onnx"
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


RIVALS: dict[str, Callable[[Path], onnx.ModelProto]] = {
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxscript": onnxscript,
    "onnxruntime extended": onnxruntime_extended,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--input-shape", action="append", default=[])
    parser.add_argument("--budget", type=float, help="seconds for each of our searches")
    args = parser.parse_args()
    targets = args.target or list(TARGETS)
    print("| network | target | cleaned original | " + " | ".join(RIVALS) + " | onnxnas |")
    print("|---|---|---:" + "|---:" * (len(RIVALS) + 1) + "|")
    for path in args.models:
        shapes = _shapes(args.input_shape, load_model(path))
        files = {name: _quietly(tool, path) for name, tool in RIVALS.items()}
        for target in targets:
            ours = optimize(path, target, input_shapes=shapes, budget_s=args.budget)
            base = ours.original.cost.cycles
            cells = [_cell(model, target, shapes, base) for model in files.values()]
            cells.append(_figure(ours.optimized.cost.cycles, base))
            row = [path.stem, target, f"{base / 1e3:,.0f}", *cells]
            print(f"| {' | '.join(row)} |", flush=True)


def _cell(model: onnx.ModelProto | str, target: str, shapes: Any, base: float) -> str:
    if isinstance(model, str):
        return model
    try:
        cost = predict(model, target, input_shapes=shapes, clean=False)[1].cost
    except OnnxnasError:
        cost = None
    if cost is not None and not cost.unavailable:
        return _figure(cost.cycles, base)
    foreign = {n.op_type for n in model.graph.node if n.domain not in ("", "ai.onnx")}
    missing = {k.op for k in cost.unavailable} if cost else {"any operator"}
    return f"cannot be compiled: {', '.join(sorted(foreign or missing))}"


def _quietly(tool: Callable[[Path], onnx.ModelProto], path: Path) -> onnx.ModelProto | str:
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return tool(path)
    except Exception as error:  # another tool's failure is a result here
        return f"tool failed: {type(error).__name__}"


def _shapes(texts: list[str], model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    inputs = {i.name for i in model.graph.input}
    return parse_input_shapes([t for t in texts if t.rsplit(":", 1)[0] in inputs], model)


def _figure(cycles: float, base: float) -> str:
    return f"{cycles / 1e3:,.0f} ({cycles / base - 1:+.1%})"


if __name__ == "__main__":
    main()
