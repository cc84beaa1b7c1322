"""Real networks, every target: the main job ends well, keeps the contract, never costs more."""

from __future__ import annotations

import onnx
import oracle
import pytest

import onnxnas
from onnxnas.graph import contract
from onnxnas.plugins import target_names

SHAPES = {"ppocrv2_cls_shipped": {"x": (1, 3, 48, 192)}}
NETWORKS = (
    "deeplabv3_mnv2_dm05_513",
    "minifasnet_v2_80",
    "mobilenetv2_224",
    "ppocrv2_cls_shipped",
    "vww_mobilenetv1_025_96",
    "yolo_fastest_1.1_320",
)


@pytest.mark.slow
@pytest.mark.parametrize("target", target_names())
@pytest.mark.parametrize("network", NETWORKS)
def test_a_real_network_is_verified_and_never_slower(network: str, target: str) -> None:
    path = oracle.evalset_model(network)
    # A short search: what must hold, holds whenever it is stopped.
    result = onnxnas.optimize(
        path, target, input_shapes=SHAPES.get(network), budget_s=3.0, max_uncovered=1.0
    )
    assert result.verification.ok
    assert contract(result.model) == contract(onnx.load(path))
    assert result.optimized.cost.cycles <= result.original.cost.cycles
    if result.original.cost.kind != "predicted":  # what was never timed has no prediction
        assert not result.original.cost.unavailable


@pytest.mark.slow
def test_minifasnet_gets_faster_with_the_same_outputs() -> None:
    path = oracle.evalset_model("minifasnet_v2_80")
    result = onnxnas.optimize(
        path, "ethos-u55-128", passes=["align-channels", "depthwise-to-standard"]
    )
    assert result.optimized.cost.cycles < 0.95 * result.original.cost.cycles
    oracle.assert_same_outputs(onnx.load(path), result.model)
