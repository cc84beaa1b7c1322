"""Vela's costs equal the vela command's, are booked on the right tensors, and are kept safely."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxslim
import oracle
import pytest
from tflite_cases import CASES

from onnxnas.cost import Cost
from onnxnas.errors import UnsupportedError
from onnxnas.graph import from_model, static_view
from onnxnas.hwmodels import vela_compiler
from onnxnas.hwmodels.ethos_u import card
from onnxnas.hwmodels.tflite_lowering import lower
from onnxnas.hwmodels.vela import VelaCostModel
from onnxnas.plugins import load_target

TARGETS = (
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-512",
    "ethos-u85-2048",
)
NETWORKS = (
    "deeplabv3_mnv2_dm05_513",
    "minifasnet_v2_80",
    "mobilenetv2_224",
    "ppocrv2_cls_shipped",
    "vww_mobilenetv1_025_96",
    "yolo_fastest_1.1_320",
)


@pytest.fixture(scope="module")
def u55() -> VelaCostModel:
    return VelaCostModel(card("ethos-u55-128"))


def view(model: onnx.ModelProto) -> Any:
    return static_view(from_model(model), {})


def small() -> Any:
    b = models.ModelBuilder([1, 3, 32, 32])
    y = b.ibn(b.conv(b.x, 3, 16, 3, pads=1, stride=2), 16, 48, 16)
    return view(b.build(b.op("GlobalAveragePool", b.ibn(y, 16, 48, 24, stride=2))))


def real(name: str) -> Any:
    model = onnx.load(oracle.evalset_model(name))
    if name.startswith("ppocr"):
        model = onnxslim.slim(model, input_shapes=["x:1,3,48,192"])
    return view(model)


def command_summary(model: VelaCostModel, graph: Any, folder: Path) -> dict[str, str]:
    """What the vela command reports about the same file."""
    config = model.target.config
    (folder / "net.tflite").write_bytes(model.lower(graph).tflite)
    subprocess.run(
        [
            *(sys.executable, "-m", "ethosu.vela", str(folder / "net.tflite")),
            *("--accelerator-config", config["accelerator"]),
            *("--system-config", config["system_config"]),
            *("--memory-mode", config["memory_mode"]),
            *("--arena-cache-size", config["arena_bytes"], "--output-dir", str(folder)),
        ],
        check=True,
        capture_output=True,
    )
    with open(folder / f"net_summary_{config['system_config']}.csv", newline="") as file:
        return next(csv.DictReader(file))


def assert_equals_command(model: VelaCostModel, graph: Any, folder: Path) -> None:
    cost, row = model.cost(graph), command_summary(model, graph, folder)
    assert cost.cycles == float(row["cycles_total"])
    assert cost.seconds == pytest.approx(float(row["inference_time"]), rel=1e-12)
    assert cost.weight_bytes == int(row["total_npu_encoded_weights"])
    used = {name: cost.detail["memory_bytes"].get(key, 0) / 1024 for name, key in MEMORIES.items()}
    assert used == {name: float(row[f"{name}_memory_used"]) for name in MEMORIES}
    assert sum(k.cycles or 0 for k in cost.kernels) == cost.cycles > 0


MEMORIES = {"sram": "sram", "dram": "dram", "off_chip_flash": "offchipflash"}


@pytest.mark.parametrize("target", TARGETS)
def test_cost_equals_the_vela_command(target: str, tmp_path: Path) -> None:
    assert_equals_command(VelaCostModel(card(target)), small(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "target"),
    [
        ("mobilenetv2_224", "ethos-u55-128"),
        ("yolo_fastest_1.1_320", "ethos-u65-256"),
        ("ppocrv2_cls_shipped", "ethos-u85-512"),
    ],
)
def test_cost_of_a_real_network_equals_the_vela_command(
    network: str, target: str, tmp_path: Path
) -> None:
    assert_equals_command(VelaCostModel(card(target)), real(network), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_real_network_is_costed_whole(network: str, target: str) -> None:
    graph = real(network)
    model = VelaCostModel(card(target))
    cost = model.cost(graph)
    assert cost.unavailable == ()
    assert_books_balance(model, graph, cost)


def assert_books_balance(model: VelaCostModel, graph: Any, cost: Cost) -> None:
    """Every tensor is in one kernel, and the kernels add up to what Vela says in total."""
    computed = sorted(t.name for n in graph.nodes for t in n.outputs)
    assert sorted(t for k in cost.kernels for t in k.tensors) == computed
    compiled = model._compiler.submit(model.lower(graph).tflite).result()
    assert sum(k.cycles or 0 for k in cost.kernels) == cost.cycles == compiled.cycles
    assert all(k.output == k.tensors[-1] for k in cost.kernels)


@pytest.mark.parametrize("target", ["ethos-u55-128", "ethos-u65-512", "ethos-u85-512"])
def test_every_operator_form_runs_on_the_npu(target: str) -> None:
    model = VelaCostModel(card(target))
    graphs = [view(case.model()) for case in CASES.values()]
    for name, graph, cost in zip(CASES, graphs, model.cost_many(graphs), strict=True):
        assert cost.unavailable == (), name
        if cost.cycles:
            assert_books_balance(model, graph, cost)


def test_kernels_are_named_by_the_tensor_after_the_activation(u55: VelaCostModel) -> None:
    b = models.ModelBuilder([1, 8, 12, 12])
    first = b.conv(b.x, 8, 16, out="conv")
    y = b.op("HardSwish", b.op("Relu", first, out="relu"), out="swish")
    b.opset = 14
    cost = u55.cost(view(b.build(b.op("Add", y, y, out="sum"))))
    assert [k.output for k in cost.kernels][-1] == "sum"
    assert cost.kernels[0].tensors[:2] == ("conv", "relu")
    assert cost.kernels[0].macs == cost.macs == 12 * 12 * 8 * 16


def test_an_add_chained_into_a_convolution_joins_its_kernel() -> None:
    b = models.ModelBuilder([1, 16, 12, 12])
    x = b.op("Relu", b.conv(b.x, 16, 16))
    y = b.op("Add", b.conv(x, 16, 16, out="conv"), x, out="sum")
    graph = view(b.build(b.conv(y, 16, 16)))
    kernels = VelaCostModel(card("ethos-u85-512")).cost(graph).kernels
    (joined,) = [k for k in kernels if "sum" in k.tensors]
    assert joined.output == "sum"
    assert joined.tensors == ("conv", "sum")
    assert joined.cycles


def test_activation_scales_do_not_change_the_cost(u55: VelaCostModel) -> None:
    graph, rng = small(), np.random.default_rng(0)
    names = [t.name for n in graph.nodes for t in [*n.inputs, *n.outputs]]
    ranges = {n: (-float(rng.uniform(0, 8)), float(rng.uniform(1, 8))) for n in names}
    scaled = lower(graph, ranges=ranges).tflite
    assert scaled != u55.lower(graph).tflite
    assert u55._compiler.submit(scaled).result().cycles == u55.cost(graph).cycles


def test_weights_change_the_cost(u55: VelaCostModel) -> None:
    b = models.ModelBuilder([1, 64, 8, 8])
    y = b.conv(b.x, 64, 256, 3)
    model = b.build(y)
    dense = u55.cost(view(model))
    weight = model.graph.initializer[0]
    sparse = onnx.numpy_helper.to_array(weight) * (np.arange(256) % 2)[:, None, None, None]
    weight.CopyFrom(onnx.numpy_helper.from_array(sparse.astype(np.float32), weight.name))
    thin = u55.cost(view(model))
    assert (thin.weight_bytes or 0) < 0.7 * (dense.weight_bytes or 0)
    assert thin.cycles < dense.cycles


def with_middle(op: str, **attrs: Any) -> tuple[Any, str]:
    b = models.ModelBuilder([1, 8, 6, 6])
    y = b.op(op, b.op("Relu", b.conv(b.x, 8, 8)), out="middle", **attrs)
    return view(b.build(b.conv(y, 8, 4, 3))), y


def test_an_operator_without_a_form_is_cut_out_with_a_reason(u55: VelaCostModel) -> None:
    graph, y = with_middle("Erf")
    cost = u55.cost(graph)
    (missing,) = cost.unavailable
    assert (missing.output, missing.op) == (y, "Erf")
    assert "no int8 TFLite form" in missing.reason
    assert [k.output == y for k in cost.kernels] == [False, True, False]
    assert all(k.cycles for k in cost.kernels if k.output != y)


def test_recurrent_and_detection_operators_are_cut_out(u55: VelaCostModel) -> None:
    b = models.ModelBuilder([1, 4, 6, 4])
    x = b.conv(b.x, 4, 4)
    tokens = b.op("Squeeze", b.op("Slice", x, *(index(b, i) for i in (0, 1, 1))), index(b, 1))
    states = b.op("LSTM", tokens, b.weight(1, 20, 4), b.weight(1, 20, 5), out="lstm", hidden_size=5)
    boxes = b.op("Reshape", x, b.const(np.asarray([1, -1, 4])))
    scores = b.op("Reshape", b.conv(x, 4, 1), b.const(np.asarray([1, 1, -1])))
    found = b.op("NonMaxSuppression", boxes, scores, out="boxes")
    model = b.build(states, b.op("Cast", found, to=1), check=False)
    cost = u55.cost(view(model))
    assert {k.op for k in cost.unavailable} == {"LSTM", "NonMaxSuppression", "Cast"}
    assert cost.cycles > 0


def index(b: models.ModelBuilder, value: int) -> str:
    return b.const(np.asarray([value], np.int64))


def test_an_operator_left_to_the_cpu_is_unavailable_with_velas_reason(
    u55: VelaCostModel, capfd: pytest.CaptureFixture[str]
) -> None:
    b = models.ModelBuilder([1, 8, 32, 32])
    y = b.depthwise(b.op("Relu", b.conv(b.x, 8, 8)), 8, 5, stride=4, pads=0, out="far")
    cost = u55.cost(view(b.build(b.conv(y, 8, 8))))
    (missing,) = cost.unavailable
    assert (missing.output, missing.cycles) == ("far", None)
    assert "CPU" in missing.reason
    assert "stride" in missing.reason
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_nothing_to_cost_is_an_error_that_lists_the_operators(u55: VelaCostModel) -> None:
    b = models.ModelBuilder([1, 8])
    with pytest.raises(UnsupportedError, match="Erf"):
        u55.cost(view(b.build(b.op("Erf", b.x))))


def test_costs_come_in_the_order_of_the_graphs_and_repeat(u55: VelaCostModel) -> None:
    graphs = [view(CASES[n].model()) for n in ("gemm", "conv same", "softmax", "gemm")]
    costs = u55.cost_many(graphs)
    assert costs == [u55.cost(g) for g in graphs]
    assert costs == VelaCostModel(card("ethos-u55-128"), jobs=1).cost_many(graphs)
    assert costs[0] == costs[3] != costs[1]


def test_results_are_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small()
    first = VelaCostModel(card("ethos-u55-128"), tmp_path).cost(graph)
    (entry,) = (tmp_path / "vela").rglob("*.json")
    assert entry.stat().st_size < 20_000
    with monkeypatch.context() as patch:
        patch.setattr(vela_compiler, "_Worker", None)  # the cache must do without
        assert VelaCostModel(card("ethos-u55-128"), tmp_path).cost(graph) == first
    for damage in ("", "{", "[]", "null", json.dumps({"cycles": 1})):
        entry.write_text(damage)
        assert VelaCostModel(card("ethos-u55-128"), tmp_path).cost(graph) == first
        assert json.loads(entry.read_text())["cycles"] == first.cycles


def test_targets_do_not_share_results(tmp_path: Path) -> None:
    costs = {VelaCostModel(card(t), tmp_path).cost(small()).cycles for t in TARGETS[:2]}
    assert len(costs) == 2


def test_an_unwritable_cache_is_said_and_the_cost_given(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    model = VelaCostModel(card("ethos-u55-128"), blocked)
    with pytest.warns(UserWarning, match="not kept"):
        assert model.cost(small()).cycles > 0


def test_old_results_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vela_compiler, "_DISK_ENTRIES", 4)
    (tmp_path / "vela" / "ab").mkdir(parents=True)
    for i in range(8):
        (tmp_path / "vela" / "ab" / f"{i}.json").write_text("{}")
    VelaCostModel(card("ethos-u55-128"), tmp_path).cost(small())
    assert len(list((tmp_path / "vela").rglob("*.json"))) == 2


def test_a_crash_of_the_compiler_is_an_error_and_not_the_end(u55: VelaCostModel) -> None:
    with pytest.raises(UnsupportedError, match="ended with status"):
        u55._compiler.submit(b"not a file" * 100).result()
    assert u55.cost(small()).cycles > 0


def test_an_interrupt_leaves_a_model_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    model = VelaCostModel(card("ethos-u55-128"))
    graphs = [view(CASES[n].model()) for n in ("gemm", "conv same")]
    submit = model._compiler.submit
    calls = []

    def interrupted(tflite: bytes) -> Any:
        calls.append(tflite)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return submit(tflite)

    with monkeypatch.context() as patch:
        patch.setattr(model._compiler, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.cost_many(graphs)
    assert [c.cycles > 0 for c in model.cost_many(graphs)] == [True, True]


@pytest.mark.parametrize("name", TARGETS)
def test_the_card_agrees_with_vela(name: str) -> None:
    from ethosu.vela.architecture_features import CONFIG_FILES_PATH, ArchitectureFeatures

    target = card(name)
    config = target.config
    arch = ArchitectureFeatures(
        vela_config_files=[str(Path(CONFIG_FILES_PATH) / "Arm" / "vela.ini")],
        system_config=config["system_config"],
        memory_mode=config["memory_mode"],
        accelerator_config=config["accelerator"],
        max_blockdep=3,
        verbose_config=False,
        arena_cache_size=int(config["arena_bytes"]),
    )
    assert (target.name, target.kind, target.backend) == (name, "estimate", "vela")
    assert target.clock_hz == arch.core_clock
    assert int(config["macs_per_core"]) == arch.num_macs_per_cycle
    assert int(config["cores"]) == arch.ncores
    assert target.macs_per_cycle == arch.num_macs_per_cycle * arch.ncores
    assert list(target.channel_multiples) == sorted(target.channel_multiples)


def test_targets_load_by_name() -> None:
    for name in TARGETS:
        assert load_target(name).target.name == name
