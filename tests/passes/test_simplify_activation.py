"""Cheaper activations and gates: structure, and layers behind them that make up for the change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
import rewriting
from fitting import ROWS, error, fresh, recovery, result

from onnxnas.passes.simplify_activation import SimplifyActivation
from onnxnas.recover import values_only
from onnxnas.sites import Candidate

PASS = SimplifyActivation()


def silu(b: models.ModelBuilder, x: str, out: str | None = None) -> str:
    return b.op("Mul", x, b.op("Sigmoid", x), out=out)


def hard_swish(b: models.ModelBuilder, x: str, out: str | None = None) -> str:
    shifted = b.op("Add", x, b.const(np.array(3, np.float32)))
    bounds = [b.const(np.array(v, np.float32)) for v in (0, 6)]
    gate = b.op("Clip", shifted, *bounds)
    return b.op("Div", b.op("Mul", x, gate), b.const(np.array(6, np.float32)), out=out)


def network(act: Any = silu, opset: int = 14, residual: bool = True) -> onnx.ModelProto:
    """Conv, depthwise, a gate, a residual, a mean and a Gemm behind the same activation."""
    b = models.ModelBuilder([1, 6, 8, 8], opset=opset)
    y = act(b, b.conv(b.x, 6, 16, 3, pads=1), "a")
    y = act(b, b.depthwise(b.conv(y, 16, 16), 16, pads=[0, 1, 2, 1], bias=False), "b")
    gate = b.op("Relu", b.conv(b.op("GlobalAveragePool", y), 16, 8))
    y = b.op("Mul", y, b.op("Sigmoid", b.conv(gate, 8, 16, out="excite")), out="gated")
    y = b.conv(y, 16, 6, out="narrow")
    y = act(b, b.conv(b.op("Add", b.x, y) if residual else y, 6, 16), "c")
    y = act(b, b.depthwise(y, 16, dilations=[2, 2], pads=2, out="deep"), "d")
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    return b.build(b.op("Gemm", y, b.weight(10, 16), b.weight(10), transB=1))


def test_where_it_applies() -> None:
    sites, misses = rewriting.find(PASS, network())
    assert list(sites) == ["a", "b", "gated", "c", "d"]
    labels = {name: [c.label for c in site.choices] for name, site in sites.items()}
    assert labels["a"] == ["relu", "relu6", "hard-swish"]
    assert labels["gated"] == ["constant-gate", "hard-sigmoid-gate"]
    assert sites["b"].params["read_by"] == ("conv_20", "narrow") or not misses
    sites, _ = rewriting.find(PASS, network(hard_swish, opset=13))
    assert [c.label for c in sites["a"].choices] == ["relu", "relu6"]


@pytest.mark.parametrize("act", [silu, hard_swish])
@pytest.mark.parametrize(
    ("site", "label", "gone"),
    [
        ("a", "relu6", "Relu6"),
        ("b", "relu", "Relu"),
        ("c", "relu", "Relu"),
        ("d", "hard-swish", "HardSwish"),
        ("gated", "constant-gate", "gate"),
        ("gated", "hard-sigmoid-gate", "HardSigmoid"),
    ],
)
def test_fitted_is_better_than_merely_replaced(
    tmp_path: Path, act: Any, site: str, label: str, gone: str
) -> None:
    model = network(act)
    found = recovery(tmp_path, model, PASS, rows=ROWS)
    candidate = Candidate.of({f"simplify-activation@{site}": label})
    fits, refused = found.alone(list(candidate.decisions))
    assert not refused
    plain = result(found, model, None, candidate)
    fitted = result(found, model, values_only(fits), candidate)
    assert len(plain.graph.node) == len(fitted.graph.node) <= len(model.graph.node)
    wrong, merely = error(model, fitted, fresh()), error(model, plain, fresh())
    assert wrong < max(0.9 * merely, 1e-6)  # hard-swish in pieces is hard-swish
    assert wrong < 0.2
    if site != "d" and wrong > 1e-6:  # what reads d is a Gemm
        assert error(model, rewriting.scale_one_weight(fitted, 30.0), fresh()) > wrong


def test_all_at_once_and_in_order(tmp_path: Path) -> None:
    model = network()
    found = recovery(tmp_path, model, PASS, rows=ROWS)
    candidate, decided = Candidate(), found.space
    for site in decided:
        if not decided.conflicts(site, candidate):
            candidate = candidate.with_choice(site.id, site.choices[0].label)
    assert len(candidate.decisions) > 1
    ordered, refused = found.in_order(candidate)
    assert not refused
    plain = error(model, result(found, model, None, candidate), fresh())
    assert error(model, result(found, model, values_only(ordered), candidate), fresh()) < plain


def test_structure() -> None:
    model = network(opset=10)  # Clip has attributes here
    sites, _ = rewriting.find(PASS, model)
    six = rewriting.rewrite(PASS, model, {"a": "relu6"})
    assert rewriting.attribute(six, "a", "max") == 6.0
    assert rewriting.ops(six).count("Sigmoid") == rewriting.ops(model).count("Sigmoid") - 1
    flat = rewriting.rewrite(PASS, model, {"gated": "constant-gate"})
    assert rewriting.ops(flat).count("GlobalAveragePool") == 1
    assert "gated" not in {t for node in flat.graph.node for t in node.output}
    assert len(sites) == 5


def test_declines_with_a_reason() -> None:
    b = models.ModelBuilder([1, 6, 8, 8])
    y = silu(b, b.conv(b.x, 6, 6), "joined")
    two = silu(b, b.conv(b.op("Add", b.x, y), 6, 6), "shown")
    _, misses = rewriting.find(PASS, b.build(b.op("Relu", b.conv(two, 6, 4)), two))
    assert "no weights to make up for a change" in misses["joined"]
    assert "graph output" in misses["shown"]
    weight = models.ModelBuilder([1, 6, 8, 8])
    shared, y = weight.weight(6, 6, 1, 1), silu(weight, weight.conv(weight.x, 6, 6), "x1")
    for _ in range(2):
        y = weight.op("Conv", y, shared)
    _, misses = rewriting.find(PASS, weight.build(y))
    assert "shares its weight" in misses["x1"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [(np.zeros_like(ROWS), "is the same on every sample"), (ROWS * np.float32(5e37), "NaN")],
)
def test_useless_samples_are_refused(tmp_path: Path, rows: Any, reason: str) -> None:
    b = models.ModelBuilder([1, 6, 8, 8])
    y = silu(b, b.conv(b.x, 6, 16, bias=reason == "NaN"), "y")
    found = recovery(tmp_path, b.build(b.conv(y, 16, 6)), PASS, rows=rows)
    with np.errstate(all="ignore"):
        fits, refused = found.alone([("simplify-activation@y", "relu")])
    assert not fits
    assert reason in refused["simplify-activation@y", "relu"]
