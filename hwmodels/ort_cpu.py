"""The processor this runs on as a target: onnxruntime, timed, in float or int8.

`OnnxruntimeCostModel` times whole networks and books the times of onnxruntime's nodes on their
kernels, so that the cost model learns what a kernel costs inside a network: with the layouts its
neighbours leave behind and in the caches they filled. Figures belong to one processor: the artefact
names it, and `CatBoostCostModel.caveats` speaks up where it is another.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxnas.cost import Cost, CostModel, KernelCost, Target
from onnxnas.errors import OnnxnasError, UnsupportedError
from onnxnas.graph import from_model, static_view
from onnxnas.hwmodels import csv_import, training
from onnxnas.hwmodels.catboost_model import CatBoostCostModel
from onnxnas.hwmodels.coverage import COLUMNS
from onnxnas.hwmodels.dataset import Dataset
from onnxnas.hwmodels.ort_profile import Recorder, kernel_seconds, nodes_of
from onnxnas.hwmodels.ort_worker import picture
from onnxnas.hwmodels.processor import processor
from onnxnas.hwmodels.sampling import sample_network
from onnxnas.hwmodels.timing_plan import export
from onnxnas.kernels import Kernel, split_kernels
from onnxnas.loading import load_model, save_model
from onnxnas.quantise import quantise

CLOCK_HZ = 1e9
"""Cycles of these targets are nanoseconds."""
BATCH = 36
"""Networks timed in turn: a disturbance hits one burst of each, not all bursts of one."""
_CHAIN = 64
"""Nodes of the network that shows what recording one adds."""
_REFERENCES = (("separable", 2), ("residual", 3), ("detector", 5))
"""Family and seed of the networks that tie batches together; each takes about a millisecond."""
_THRESHOLDS = {"mape": 0.06, "kendall": 0.9}
"""Times of one machine differ by some percent from one hour to the next."""
_BITS = 8.0
"""No weights are compressed: whatever their entropy is, it was covered."""
_LONG = 50_000
"""Nanoseconds of kernels that show how fast the processor can be."""
_TOO_SLOW = 1.08
_ATTEMPTS = 3


@dataclass(frozen=True)
class Protocol:
    """How to time.

    Attributes:
        rounds: over all models of a batch.
        burst_seconds: of one model in one round, once as it is and once recording.
        core: number of the core to run on, of those this process may use; the last by default,
            which has least to do with interrupts.
    """

    rounds: int = 10
    burst_seconds: float = 0.008
    core: int = -1


def quantised(model: Any, seed: int = 0) -> Any:
    """A network in int8; ranges come from one random picture, such as it is timed with."""
    rng = np.random.default_rng(seed)
    graph = from_model(model)
    feeds = {t.name: picture(t.shape, rng).astype(t.dtype) for t in graph.inputs}
    return quantise(model, [feeds], unsigned=True)


class OnnxruntimeCostModel(CostModel):
    """Times networks here. The same graph never costs quite the same twice.

    Args:
        int8: quantise each network first, see `onnxnas.quantise`.
        protocol: how to time.
    """

    def __init__(self, int8: bool = False, protocol: Protocol | None = None) -> None:
        self.target = _target(int8)
        self._int8 = int8
        self._protocol = protocol or Protocol()
        self._fastest = np.full(len(_REFERENCES), np.inf)

    def cost(self, graph: Any) -> Cost:
        """See `CostModel.cost`."""
        return self.cost_many([graph])[0]

    def cost_many(self, graphs: Sequence[Any]) -> list[Cost]:
        """Costs of several networks, timed in turn.

        Raises:
            UnsupportedError: onnxruntime cannot quantise or run one of them.
        """
        costs: list[Cost] = []
        for first in range(0, len(graphs), BATCH):
            costs += self._batch(graphs[first : first + BATCH])
        return costs

    def _batch(self, graphs: Sequence[Any]) -> list[Cost]:
        references = [static_view(sample_network(f, seed), {}) for f, seed in _REFERENCES]
        models = [_named(_chain(1)), _named(_chain(_CHAIN))]
        models += [self._model(g) for g in [*references, *graphs]]
        with tempfile.TemporaryDirectory(prefix="onnxnas-time-") as folder:
            paths = [Path(folder) / f"{i}.onnx" for i in range(len(models))]
            for path, model in zip(paths, models, strict=True):
                save_model(model, path)
            single, chain, *answers = self._answers(paths)
            answers = answers[len(references) :]
            ran = [load_model(f"{p}.ran") if not a["reason"] else None
                   for p, a in zip(paths[-len(graphs) :], answers, strict=True)]  # fmt: skip
        recorder = Recorder.of(single["seconds"], chain["seconds"], chain["nodes"])
        return [
            self._cost(graph, answer, model, recorder)
            for graph, answer, model in zip(graphs, answers, ran, strict=True)
        ]

    def _answers(self, paths: Sequence[Path]) -> list[dict[str, Any]]:
        """What the worker says about each model, at the speed of the quietest batch so far.

        Other work on the machine slows a whole batch down: networks that are in every batch show
        by how much. Where it is too much to be put right by a factor, the batch is timed again.
        """
        found = []
        for _ in range(_ATTEMPTS):
            answers = _run(paths, self._protocol)
            times = np.array([a["seconds"] for a in answers[2 : 2 + len(_REFERENCES)]])
            self._fastest = np.minimum(self._fastest, times)
            slow = float(np.median(times / self._fastest))
            found.append((slow, answers))
            if slow < _TOO_SLOW:
                break
        slow, answers = min(found, key=lambda pair: pair[0])
        return [_faster(answer, slow) for answer in answers]

    def _model(self, graph: Any) -> Any:
        model = _named(graph)
        return quantised(model) if self._int8 else model

    def _cost(self, graph: Any, answer: dict[str, Any], ran: Any, recorder: Recorder) -> Cost:
        if answer["reason"]:
            raise UnsupportedError(f"onnxruntime cannot run {graph.name!r}: {answer['reason']}.")
        kernels = split_kernels(graph)
        nodes = nodes_of(ran, answer["nodes"])
        seconds = kernel_seconds(kernels, nodes, answer["nodes"], answer["seconds"], recorder)
        return Cost(
            target=self.target.name,
            kind="measured",
            cycles=answer["seconds"] * CLOCK_HZ,
            seconds=answer["seconds"],
            macs=sum(k.macs for k in kernels),
            peak_bytes={},
            weight_bytes=None,
            kernels=tuple(map(_kernel_cost, kernels, (seconds * CLOCK_HZ).tolist())),
        )


def folder(data: Path, target: Target) -> Path:
    """Where measurements of this processor and this onnxruntime are kept."""
    what = f"{target.config['processor']} onnxruntime {target.config['onnxruntime']}"
    return data / target.name / re.sub(r"[^a-z0-9.]+", "-", what.lower())


def settings(seed: int = 0) -> training.Settings:
    """Of the regression: no roofline explains a processor as it does an NPU, so more trees."""
    return training.Settings(
        trees={"conv": 900, "depthwise": 300, "other": 250},
        learning_rate={"conv": 0.08, "depthwise": 0.08, "other": 0.12},
        seed=seed,
    )


def train(
    data: Dataset, target: Target, of: training.Settings | None = None
) -> tuple[training.Trained, dict[str, Any]]:
    """The model of a processor and its card.

    Args:
        data: labelled by an `OnnxruntimeCostModel`.
        target: of that.
        of: the regression; default: `settings`.
    """
    long = data.cycles > _LONG
    fastest = float((data.table["macs"][long] / data.cycles[long]).max()) if long.any() else 1.0
    card = replace(target, kind="predicted", macs_per_cycle=max(1, round(fastest))).to_dict()
    source = training.Source("onnxruntime", target.config["onnxruntime"], "measured")
    wanted = {"cost_model": {"thresholds": _THRESHOLDS}}
    trained = training.train(data, {**card, **wanted}, source, of or settings())
    for seen in trained.model.entry["coverage"]["operators"].values():
        seen["ranges"][COLUMNS.index("entropy_bits")] = [0.0, _BITS]
    return replace(
        trained, model=CatBoostCostModel(trained.model.target, trained.trees, trained.model.entry)
    ), card


def cpu_ort() -> CatBoostCostModel:
    """One core of the processor the shipped artefact names, float32."""
    return csv_import.load(Path(__file__).with_name("cpu-ort.json"))


def cpu_ort_int8() -> CatBoostCostModel:
    """One core of the processor the shipped artefact names, int8."""
    return csv_import.load(Path(__file__).with_name("cpu-ort-int8.json"))


def _target(int8: bool) -> Target:
    from onnxruntime import __version__ as version

    here, precision = processor(), "int8 (QDQ)" if int8 else "float32"
    return Target(
        name="cpu-ort-int8" if int8 else "cpu-ort",
        title=f"onnxruntime on one core of {here}, {precision}",
        backend="onnxruntime",
        kind="measured",
        clock_hz=CLOCK_HZ,
        macs_per_cycle=1,
        channel_multiples=(8, 16),
        config={"processor": here, "precision": precision, "onnxruntime": version},
        notes=f"Learned from times of onnxruntime {version} on {here}, one thread; cycles are "
        "nanoseconds, memory is that of one byte a value. They belong to this processor: "
        "'onnxnas target cpu' measures another.",
    )


def _kernel_cost(kernel: Kernel, cycles: float) -> KernelCost:
    activation = "" if kernel.activation == "none" else f"+{kernel.activation}"
    return KernelCost(
        kernel.output, f"{kernel.op}{activation}", kernel.tensors, cycles, kernel.macs
    )


def _named(graph: Any) -> Any:
    """The graph as a model whose nodes are called like what they write, as `ort_profile` needs."""
    model = export(graph)
    for node in model.graph.node:
        node.name = next(name for name in node.output if name)
    return model


def _chain(length: int) -> Any:
    """So many nodes that do next to nothing, one after the other."""
    x = gs.Variable("x", np.dtype(np.float32), [1, 1, 1, 1])
    nodes, tensor = [], x
    for i in range(length):
        y = gs.Variable(f"y{i}", np.dtype(np.float32), [1, 1, 1, 1])
        nodes.append(gs.Node("Sigmoid", f"y{i}", {}, [tensor], [y]))
        tensor = y
    return gs.Graph(nodes, [x], [tensor], name="chain", opset=17)


def _run(paths: Sequence[Path], protocol: Protocol) -> list[dict[str, Any]]:
    request = {
        "paths": [str(p) for p in paths],
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
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["models"]
    return answers


def _faster(answer: dict[str, Any], factor: float) -> dict[str, Any]:
    if answer["reason"]:
        return answer
    nodes = {name: seconds / factor for name, seconds in answer["nodes"].items()}
    return {**answer, "seconds": answer["seconds"] / factor, "nodes": nodes}
