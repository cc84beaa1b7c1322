"""Predicted peak memory of Ethos-U targets, against their compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from onnxnas import graph as graphs
from onnxnas.cost import Target
from onnxnas.graph import static_view
from onnxnas.hwmodels.ethos_memory import System
from onnxnas.hwmodels.ethos_steps import Steps
from onnxnas.hwmodels.ethos_u import card
from onnxnas.hwmodels.peak_memory import peak_detail, peaks, weight_bytes
from onnxnas.hwmodels.sampling import sample_network
from onnxnas.hwmodels.vela import VelaCostModel
from onnxnas.kernels import split_kernels
from onnxnas.prepare import prepare

EVALSET = Path(__file__).parents[1].parent / "shared/evalset/models"
TARGETS = ("ethos-u55-128", "ethos-u65-256", "ethos-u65-512", "ethos-u85-512")


def _parsed(inputs: str, outputs: str, body: str, weights: dict[str, Any] | None = None) -> Any:
    made = "".join(
        f"{name} = Constant<value = float[{','.join(map(str, v.shape))}] "
        f"{{{','.join(str(x) for x in v.ravel())}}}>() "
        for name, v in (weights or {}).items()
    )
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {made}{body} }}'
    )
    return graphs.from_model(onnx.parser.parse_model(text))


def _both(graph: Any, target: str) -> tuple[dict[str, int], dict[str, int]]:
    kernels = split_kernels(graph)
    found = peaks(card(target), graph, kernels)
    truth = VelaCostModel(card(target), None, 1).cost(graph).peak_bytes
    return {m: p.size for m, p in found.items()}, dict(truth)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("inputs", "outputs", "body"),
    [
        pytest.param(
            "float[1,8,16,16] x, float[1,8,16,16] z", "float[1,8,8,8] y",
            "a = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) b = Add(a, z) "
            "y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)", id="in-place",
        ),
        pytest.param(
            "float[1,16,16,16] x", "float[1,32,8,8] y",
            "a = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) "
            "b = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(a) "
            "c = Concat<axis=1>(a, b) y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)",
            id="concat-of-a-tensor-read-twice",
        ),
        pytest.param(
            "float[1,16,16,16] x", "float[1,16,8,8] y",
            "a = MaxPool<kernel_shape=[1,1]>(x) "
            "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a)",
            id="padded-pool",
        ),
    ],
)  # fmt: skip
def test_small_networks_agree_with_the_compiler(
    target: str, inputs: str, outputs: str, body: str
) -> None:
    found, truth = _both(_parsed(inputs, outputs, body), target)
    busiest = max(truth, key=lambda m: truth[m])
    assert found[busiest] == pytest.approx(truth[busiest], rel=0.03)


def test_peaks_of_sampled_networks_are_within_three_percent() -> None:
    families = ("bottlenecks", "residual", "separable", "concatenating", "detector", "segmenter")
    errors = []
    for seed, family in enumerate(families):
        graph = static_view(sample_network(family, 7100 + seed), {})
        for target in ("ethos-u55-128", "ethos-u85-512"):
            found, truth = _both(graph, target)
            most = max(truth.values())
            errors.append(abs(max(found.values()) / most - 1))
    assert np.mean(errors) < 0.03
    assert np.median(errors) < 0.005


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv2_224", "yolo_fastest_1.1_320", "minifasnet_v2_80"])
@pytest.mark.parametrize("target", TARGETS)
def test_real_networks_agree_with_the_compiler(name: str, target: str) -> None:
    path = EVALSET / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{name} is not here")
    prepared = prepare(path, target, passes=[])
    found, truth = _both(static_view(prepared.graph, prepared.input_shapes), target)
    for memory, size in truth.items():
        assert found[memory] == pytest.approx(size, rel=0.01)


def test_one_scaled_tensor_moves_the_peak() -> None:
    body = "a = MaxPool<kernel_shape=[1,1]>(x) y = GlobalAveragePool(a)"
    small = _parsed("float[1,16,32,32] x", "float[1,16,1,1] y", body)
    large = _parsed("float[1,16,33,32] x", "float[1,16,1,1] y", body)
    target = card("ethos-u55-128")
    sizes = [peaks(target, g, split_kernels(g))["sram"].size for g in (small, large)]
    assert sizes[1] == pytest.approx(sizes[0] + 2 * 16 * 32, rel=0.01)  # and weights to average
    assert sizes[1] > sizes[0]


def test_activations_run_inside_the_step_before() -> None:
    graph = _parsed(
        "float[1,16,8,8] x", "float[1,16,8,8] y",
        "a = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) b = Sigmoid(a) y = Add(b, x)",
    )  # fmt: skip
    kernels = split_kernels(graph)
    plain = Steps(graph, kernels, chaining=False, weight_bytes=[0.0] * len(kernels))
    chained = Steps(graph, kernels, chaining=True, weight_bytes=[0.0] * len(kernels))
    assert [s.op for s in plain.steps] == ["MaxPool", "Add"]
    assert [s.op for s in chained.steps] == ["MaxPool"]


def test_weights_are_estimated_within_a_fifth() -> None:
    ratios = []
    for seed, family in enumerate(("bottlenecks", "residual", "plain")):
        graph = static_view(sample_network(family, 8200 + seed), {})
        for target in ("ethos-u55-128", "ethos-u85-512"):
            truth = VelaCostModel(card(target), None, 1).cost(graph).weight_bytes
            assert truth
            ratios.append(weight_bytes(card(target), split_kernels(graph)) / truth)
    assert np.mean(np.abs(np.array(ratios) - 1)) < 0.2


def test_detail_names_the_tensors_at_the_peak() -> None:
    graph = _parsed("float[1,16,8,8] x", "float[1,16,8,8] y", "y = MaxPool<kernel_shape=[1,1]>(x)")
    detail = peak_detail(peaks(card("ethos-u55-128"), graph, split_kernels(graph)))
    assert {row["tensor"] for row in detail["sram"]} == {"x", "y"}


def test_other_targets_are_one_arena() -> None:
    target = Target("board", "A board", "csv", "predicted", 1e6, 1, (8,))
    graph = _parsed("float[1,3,8,8] x", "float[1,3,8,8] y", "y = MaxPool<kernel_shape=[1,1]>(x)")
    assert peaks(target, graph, split_kernels(graph))["activations"].size == 2 * 192


def test_every_card_has_a_system() -> None:
    for name in TARGETS:
        system = System.of(card(name))
        assert system is not None
        assert system.spilling == ("Dedicated" in card(name).config["memory_mode"])
