"""The processor as a target: booking, layouts, timing, quantisation, the artefact, its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from onnxnas.cli import app
from onnxnas.cost import Cost, CostModel, KernelCost
from onnxnas.errors import OnnxnasError, UnsupportedError, UsageError
from onnxnas.graph import from_model, static_view
from onnxnas.hwmodels import csv_import, dataset, ort_cpu, training
from onnxnas.hwmodels.kernel_table import KernelTable
from onnxnas.hwmodels.ort_cpu import OnnxruntimeCostModel, Protocol, quantised
from onnxnas.hwmodels.ort_placement import columns, in_blocks
from onnxnas.hwmodels.ort_profile import Node, Recorder, kernel_seconds, nodes_of
from onnxnas.hwmodels.ort_worker import picture
from onnxnas.hwmodels.processor import processor
from onnxnas.hwmodels.sampling import sample_network
from onnxnas.kernels import Kernel, split_kernels
from onnxnas.plugins import load_target
from onnxnas.runtime import Session

SHORT = Protocol(rounds=1, burst_seconds=0.0005)
QUICK = training.Settings(
    trees={"conv": 40, "other": 20},
    depth={"conv": 4, "other": 3},
    learning_rate={"conv": 0.3, "other": 0.3},
    threads=1,
)
NOTHING = Recorder(call=0.0, event=0.0)


def _conv(channels: int, size: int) -> Any:
    rng = np.random.default_rng(channels)
    values = rng.standard_normal(channels * channels * 9).tolist()
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[1,{channels},{size},{size}] x) => '
        f"(float[1,{channels},{size},{size}] y) <float[{channels},{channels},3,3] w = "
        f"{{{','.join(f'{v:.4f}' for v in values)}}}> "
        "{ a = Conv<pads=[1,1,1,1]>(x, w) y = Relu(a) }"
    )


RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]> g (float[1,16,8,8] x) => (float[1,16,8,8] y)
<float[16,16,1,1] w, float[16,16,1,1] v> {
  a = Conv(x, w)
  b = Relu(a)
  c = Conv(b, v)
  d = Add(b, c)
  y = HardSwish(d)
}
"""


def _kernels(text: str) -> list[Kernel]:
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (16, 16, 1, 1)), ("v", (16, 16, 1, 1))):
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return split_kernels(static_view(from_model(model), {}))


def _node(name: str, op: str, reads: str, writes: str) -> Node:
    return Node(name, op, tuple(reads.split()), (writes,))


RAN = [
    _node("reorder", "ReorderInput", "x", "t0"),
    _node("b_nchwc", "Conv", "t0 w", "t1"),
    _node("c_nchwc", "Conv", "t1 v t1", "t2"),
    _node("reorder_1", "ReorderOutput", "t2", "d"),
    _node("HardSigmoid_7", "HardSigmoid", "d", "t3"),
    _node("y", "Mul", "d t3", "y"),
]
MICROSECOND = 1e-6


def _booked(nodes: Sequence[Node], times: Sequence[float], **options: Any) -> NDArray[np.float64]:
    recorded = {n.name: t * MICROSECOND for n, t in zip(nodes, times, strict=True)}
    total = options.get("total", sum(times)) * MICROSECOND
    recorder = options.get("recorder", NOTHING)
    return kernel_seconds(_kernels(RESIDUAL), nodes, recorded, total, recorder) / MICROSECOND


def test_every_node_is_booked_on_the_kernel_it_computes_for() -> None:
    first, second, rest = _booked(RAN, [1, 20, 30, 2, 3, 4])
    assert first == pytest.approx(21)  # with the copy that it reads
    assert second + rest == pytest.approx(39)


def test_a_sum_inside_a_convolution_gets_a_share_of_its_time() -> None:
    nodes = [n for n in RAN[:3]]
    first, second, rest = _booked([*nodes, _node("reorder_1", "ReorderOutput", "t2", "y")],
                                  [1, 20, 30, 2])  # fmt: skip
    assert first == pytest.approx(21)
    assert 0.2 * 32 < rest < 0.8 * 32
    assert second + rest == pytest.approx(32)


def test_what_recording_adds_is_taken_off() -> None:
    plain = _booked(RAN, [1, 20, 30, 2, 3, 4])
    recorder = Recorder(call=5 * MICROSECOND, event=2 * MICROSECOND)
    found = _booked(RAN, [3, 22, 32, 4, 5, 6], total=65, recorder=recorder)
    assert found - plain == pytest.approx([5, 0, 0], abs=1e-6)  # the first kernel pays the call


def test_what_is_left_over_goes_to_small_nodes_and_large_ones() -> None:
    recorder = Recorder(call=0.0, event=2 * MICROSECOND)
    times = [3, 1002, 32, 4, 5, 6]
    found = _booked(RAN, times, total=1000, recorder=recorder)
    assert found.sum() == pytest.approx(1000)
    assert (found > 0).all()


def test_a_node_of_no_kernel_is_an_error() -> None:
    alone = _node("else", "Mystery", "elsewhere", "nowhere")
    with pytest.raises(OnnxnasError, match="Mystery 'else', part of no kernel"):
        _booked([*RAN, alone], [1, 20, 30, 2, 3, 4, 5])
    with pytest.raises(OnnxnasError, match="unknown node 'y'"):
        kernel_seconds(_kernels(RESIDUAL), RAN[:-1], {"y": 1.0}, 1.0, NOTHING)


def test_nodes_without_a_name_are_found_by_their_numbers() -> None:
    model = onnx.parser.parse_model(RESIDUAL)
    for node, name in zip(model.graph.node, ("a", "", "c", "", ""), strict=True):
        node.name, node.op_type = name, node.op_type if name else "Relu"
    found = [n.name for n in nodes_of(model, ["a", "Relu_12", "Relu_9"])]
    assert found == ["a", "Relu_9", "c", "Relu_12", "unnamed 4"]


def test_the_recorder_is_read_off_a_chain() -> None:
    found = Recorder.of(5.0, 8.0, {"1": 3.0, "2": 3.0, "3": 3.0, "4": 3.0})
    assert (found.call, found.event) == pytest.approx((4.0, 2.0))


def test_blocks_follow_the_channels() -> None:
    kernels = _kernels(RESIDUAL)
    assert in_blocks(kernels).tolist() == [True, True, True]
    odd = [replace(kernels[0], in_channels=18), *kernels[1:]]
    assert in_blocks(odd).tolist() == [False, True, False]
    found = columns(odd, floating=True)
    assert found["steps"] == [2, 1, 2]
    assert found["rows_out"] == [1024, 0, 1024]
    assert found["far_in"] == [0, 1024, 1024]  # the sum reads one of its two in blocks
    assert found["far_out"] == [1024, 1024, 0]
    assert columns(odd, floating=False).keys() == {"steps", "stored_weights"}


def test_pictures_are_smooth_but_not_flat() -> None:
    values = picture((1, 3, 64, 64), np.random.default_rng(0))
    assert values.shape == (1, 3, 64, 64)
    assert 0.2 < values.std() < 2
    assert np.abs(np.diff(values, axis=3)).mean() < 0.5 * values.std()
    assert picture((2, 5), np.random.default_rng(0)).shape == (2, 5)


def test_more_work_takes_longer_and_kernels_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_cpu, "_ATTEMPTS", 1)
    models = [from_model(_conv(c, s)) for c, s in ((4, 6), (32, 48))]
    small, large = OnnxruntimeCostModel(protocol=SHORT).cost_many(models)
    assert large.cycles > 5 * small.cycles
    assert large.kind == "measured"
    for cost in (small, large):
        assert sum(k.cycles or 0.0 for k in cost.kernels) == pytest.approx(cost.cycles)


def test_what_cannot_run_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_cpu, "_ATTEMPTS", 1)
    bad = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "no" : 1]> g (float[2] x) => (float[2] y) '
        "{ y = no.Such(x) }"
    )
    with pytest.raises(UnsupportedError, match="cannot run 'g': "):
        OnnxruntimeCostModel(protocol=SHORT).cost(from_model(bad))


def test_a_slow_batch_is_timed_again_and_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([1.0, 1.5, 1.04])

    def run(paths: Sequence[Path], protocol: Protocol) -> list[dict[str, Any]]:
        speed = next(speeds)
        return [{"reason": "", "seconds": speed, "nodes": {"n": speed / 2}} for _ in paths]

    monkeypatch.setattr(ort_cpu, "_run", run)
    backend = OnnxruntimeCostModel()
    paths = [Path(str(i)) for i in range(7)]
    assert backend._answers(paths)[-1]["seconds"] == 1.0
    answer = backend._answers(paths)[-1]
    assert answer["seconds"] == pytest.approx(1.0)
    assert answer["nodes"]["n"] == pytest.approx(0.5)
    assert next(speeds, None) is None


def test_quantised_models_are_int8_inside() -> None:
    model = _conv(8, 10)
    small = quantised(model)
    kinds = {node.op_type for node in small.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    x = picture((1, 8, 10, 10), np.random.default_rng(0)).astype(np.float32)
    reference = Session(model).run({"x": x})["y"]
    found = Session(small).run({"x": x})["y"]
    assert np.abs(found - reference).max() < 0.1 * np.abs(reference).max()
    assert np.abs(1.5 * found - reference).max() > 0.1 * np.abs(reference).max()


def test_the_processor_is_named_as_the_system_names_it() -> None:
    info = Path("/proc/cpuinfo")
    if not info.exists() or "model name" not in info.read_text():
        pytest.skip("the system does not say which processor this is")
    name = next(line for line in info.read_text().splitlines() if line.startswith("model name"))
    assert processor().startswith(name.partition(":")[2].strip())


class Pretended(CostModel):
    """Times that follow from a kernel's work: nothing is run."""

    def __init__(self, int8: bool = False, protocol: Protocol | None = None) -> None:
        self.target = OnnxruntimeCostModel(int8).target

    def cost(self, graph: Any) -> Cost:
        parts = tuple(
            KernelCost(k.output, k.op, k.tensors, 300.0 + k.macs / 20 + k.out_bytes, k.macs)
            for k in split_kernels(graph)
        )
        total = sum(k.cycles or 0.0 for k in parts)
        return Cost(self.target.name, "measured", total, total * 1e-9, 0, {}, None, parts)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cpu") / "cpu-ort.json"
    backend, tables, cycles = Pretended(), [], []
    names = [f"{f}-{i}" for i in range(3) for f in ("bottlenecks", "plain", "separable", "maps")]
    for name in names:
        family, _, seed = name.partition("-")
        kernels = split_kernels(static_view(sample_network(family, int(seed)), {}))
        tables.append(KernelTable.of([kernels]))
        cycles += [300.0 + k.macs / 20 + k.out_bytes for k in kernels]
    data = dataset.Dataset(tuple(names), KernelTable.join(tables), np.array(cycles), "none")
    trained, card = ort_cpu.train(data, backend.target, QUICK)
    csv_import.write(trained, card, path)
    return path


def test_the_artefact_costs_networks_and_names_its_processor(artefact: Path) -> None:
    model = load_target(str(artefact))
    assert model.target.config["processor"] == processor()
    assert model.target.macs_per_cycle > 1
    assert model.caveats() == ()
    assert model.cost_many([]) == []
    graph = static_view(sample_network("bottlenecks", 1), {})
    cost = model.cost(graph)
    assert cost.kind == "predicted"
    assert cost.cycles == pytest.approx(Pretended().cost(graph).cycles, rel=0.5)
    assert json.loads(artefact.read_text())["cost_model"]["thresholds"]["mape"] == 0.06


def test_on_another_processor_it_says_so(artefact: Path, tmp_path: Path) -> None:
    fields = json.loads(artefact.read_text())
    fields["config"]["processor"] = "Abacus 2000"
    other = tmp_path / artefact.name
    other.write_text(json.dumps(fields))
    other.with_suffix(".cbm").write_bytes(artefact.with_suffix(".cbm").read_bytes())
    (caveat,) = load_target(str(other)).caveats()
    assert "measured on Abacus 2000, this is" in caveat
    assert "'onnxnas target cpu'" in caveat


@pytest.mark.parametrize("name", ["cpu-ort", "cpu-ort-int8"])
def test_shipped_models_cost_networks(name: str) -> None:
    model = load_target(name)
    cost = model.cost(static_view(sample_network("bottlenecks", 1), {}))
    assert cost.kind == "predicted"
    assert cost.target == name
    assert not cost.unavailable
    assert 1e-5 < cost.seconds < 1e-2
    trees = Path(ort_cpu.__file__).with_name(f"{name}.cbm")
    assert trees.stat().st_size <= training.MAX_BYTES
    macs = [model.cost(from_model(_conv(c, 32))).cycles for c in (16, 64)]
    assert macs[1] > 3 * macs[0]


def test_where_no_card_can_be_written_nothing_is_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ort_cpu, "OnnxruntimeCostModel", Pretended)
    data = tmp_path / "data"
    found = CliRunner().invoke(
        app, ["target", "cpu", str(tmp_path / "none" / "a.json"), "--data", str(data)]
    )
    assert isinstance(found.exception, UsageError)
    assert "does not exist: create it first" in str(found.exception)
    assert not data.exists()


def test_the_command_measures_trains_and_resumes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ort_cpu, "OnnxruntimeCostModel", Pretended)
    monkeypatch.setattr(ort_cpu, "settings", lambda seed: QUICK)
    card, data = tmp_path / "mine.json", tmp_path / "data"
    arguments = ["target", "cpu", str(card), "--networks", "12", "--data", str(data)]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert f"12 networks timed on {processor()}" in first.stdout
    assert "12 of 12 networks timed, about 0 min left" in first.stderr
    assert load_target(str(card)).target.name == "cpu-ort"
    monkeypatch.setattr(Pretended, "cost", None)
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    late = CliRunner().invoke(app, [*arguments, "--networks", "20", "--minutes", "0"])
    assert late.exit_code == 0, late.output
    assert "0 minutes are over, 8 of 20 networks are left" in late.stderr
    assert f"12 networks timed on {processor()}" in late.stdout


@pytest.mark.parametrize("verb", ["measure", "train"])
def test_predictions_are_nothing_to_learn_from(verb: str) -> None:
    found = CliRunner().invoke(app, ["target", verb, "cpu-ort"])
    assert found.exit_code != 0
    assert "onnxnas target cpu" in f"{found.output}{found.exception}"
