"""The processor as a target: timing, quantisation, the artefact and where it belongs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from onnxnas.errors import OnnxnasError
from onnxnas.graph import from_model, static_view
from onnxnas.hwmodels import csv_import, ort_cpu, timing_plan, training
from onnxnas.hwmodels.ort_cpu import Protocol, measure, quantised
from onnxnas.hwmodels.processor import processor
from onnxnas.hwmodels.sampling import sample_network
from onnxnas.hwmodels.timing_plan import KERNEL, Timed
from onnxnas.kernels import split_kernels
from onnxnas.runtime import Session

SHORT = Protocol(rounds=1, burst_seconds=0.0005)
QUICK = training.Settings(
    trees={"conv": 60, "other": 30},
    depth={"conv": 4, "other": 3},
    learning_rate={"conv": 0.2, "other": 0.2},
    threads=1,
)


def _conv(channels: int, size: int) -> Any:
    rng = np.random.default_rng(channels)
    values = rng.standard_normal(channels * channels * 9).tolist()
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[1,{channels},{size},{size}] x) => '
        f"(float[1,{channels},{size},{size}] y) <float[{channels},{channels},3,3] w = "
        f"{{{','.join(f'{v:.4f}' for v in values)}}}> "
        "{ a = Conv<pads=[1,1,1,1]>(x, w) y = Relu(a) }"
    )


def _timed(model: Any, name: str = "k") -> Timed:
    return Timed(name, KERNEL, model, name)


def test_a_hundred_times_the_work_takes_longer() -> None:
    found = measure([_timed(_conv(4, 6)), _timed(_conv(32, 24))], protocol=SHORT)
    small, large = (seconds for _, seconds in found.times.kernels)
    assert large > 5 * small
    assert found.spread >= 0
    assert not found.failed
    assert found.version


def test_what_cannot_run_is_named_and_left_out() -> None:
    bad = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "no" : 1]> g (float[2] x) => (float[2] y) '
        "{ y = no.Such(x) }"
    )
    found = measure([_timed(_conv(4, 6), "good"), _timed(bad, "bad")], protocol=SHORT)
    assert [name for name, _ in found.failed] == ["bad"]
    assert len(found.times.kernels) == 1
    assert found.times.missing == 1
    with pytest.raises(OnnxnasError, match="none of the models"):
        measure([_timed(bad)], protocol=SHORT)


def test_quantised_models_are_int8_from_end_to_end() -> None:
    model = _conv(8, 10)
    small = quantised(model)
    assert {v.type.tensor_type.elem_type for v in (*small.graph.input, *small.graph.output)} == {2}
    x = np.random.default_rng(0).standard_normal((1, 8, 10, 10)).astype(np.float32)
    kinds = [node.op_type for node in small.graph.node]
    assert "Conv" in kinds
    reference = Session(model).run({"x": x})["y"]
    graph = from_model(small)
    steps = {n.op: n for n in graph.nodes}
    first = next(
        n
        for n in graph.nodes
        if n.op == "DequantizeLinear" and n.inputs[0].name == graph.inputs[0].name
    )
    scale, zero = (float(t.values) for t in first.inputs[1:3])
    fed = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8)
    (out,) = Session(small).run({graph.inputs[0].name: fed}).values()
    last = steps["QuantizeLinear"]
    scale, zero = (float(t.values) for t in last.inputs[1:3])
    found = (out.astype(np.float32) - zero) * scale
    assert np.abs(found - reference).max() < 0.1 * np.abs(reference).max()
    assert np.abs(1.5 * found - reference).max() > 0.1 * np.abs(reference).max()


def test_the_processor_has_a_name() -> None:
    assert processor()
    assert processor() == processor()


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cpu") / "cpu-ort.json"
    measured = measure(timing_plan.plan((8,), (), 34, 2), protocol=SHORT)
    trained, card = ort_cpu.train(measured, settings=QUICK)
    csv_import.write(trained, card, path)
    return path


@pytest.mark.slow
def test_the_artefact_costs_networks_and_names_its_processor(artefact: Path) -> None:
    model = csv_import.load(artefact)
    assert model.target.config["processor"] == processor()
    graph = static_view(sample_network("bottlenecks", 1), {})
    cost = model.cost(graph)
    assert cost.kind == "predicted"
    assert len(cost.kernels) == len(split_kernels(graph))
    assert cost.seconds > 0
    assert model.entry["label_kind"] == "measured"
    assert 0 <= model.entry["isolated"]["spread"] < 1


@pytest.mark.slow
def test_on_another_processor_it_says_so(artefact: Path, tmp_path: Path) -> None:
    fields = json.loads(artefact.read_text())
    fields["config"]["processor"] = "Abacus 2000"
    other = tmp_path / artefact.name
    other.write_text(json.dumps(fields))
    other.with_suffix(".cbm").write_bytes(artefact.with_suffix(".cbm").read_bytes())
    with pytest.warns(UserWarning, match="measured on Abacus 2000"):
        csv_import.load(other)
