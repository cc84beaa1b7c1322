"""Scalings and shifts disappear into weights, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import oracle
import pytest

from onnxnas.folding import fold_affine
from onnxnas.normalise import normalise

RNG = np.random.default_rng(0)


def build(body: str, **weights: Any) -> onnx.ModelProto:
    model: onnx.ModelProto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> ' + body
    )
    for name, value in weights.items():
        shape = value if isinstance(value, tuple) else None
        array = np.asarray(RNG.normal(size=shape) if shape is not None else value, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def positive(*shape: int) -> Any:
    return RNG.uniform(0.5, 2, shape).astype(np.float32)


def folded(model: onnx.ModelProto) -> str:
    """The operators that are left, in order, of a model that is checked against the original."""
    before = model.SerializeToString()
    changed, done = fold_affine(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(changed, full_check=True)
    assert bool(done) == (changed is not model)
    read = {name for node in changed.graph.node for name in node.input}
    assert {t.name for t in changed.graph.initializer} <= read
    oracle.assert_same_outputs(model, changed)
    return " ".join(node.op_type for node in changed.graph.node)


IMAGE = "g (float[2, 6, 7, 7] x) => (float[2, ?, ?, ?] y) "


@pytest.mark.parametrize("shape", [(), (1,), (8, 1, 1), (1, 8, 1, 1)])
@pytest.mark.parametrize(
    "line", ["Mul(c, a)", "Mul(a, c)", "Add(a, c)", "Sub(a, c)", "Sub(c, a)", "Div(a, c)"]
)
def test_constants_go_into_the_convolution_before(line: str, shape: tuple[int, ...]) -> None:
    body = IMAGE + "{ a = Conv<pads=[1,1,1,1]>(x, w)  y = " + line + " }"
    assert folded(build(body, w=(8, 6, 3, 3), c=positive(*shape))) == "Conv"


def test_a_chain_of_them_goes_with_a_bias_into_groups() -> None:
    body = IMAGE + (
        "{ a = Conv<group=2>(x, w, b)  m = Mul(a, c)  s = Add(d, m)"
        "  n = BatchNormalization(s, e, f, i, v)  y = Relu(n) }"
    )
    weights: dict[str, Any] = {"w": (8, 3, 3, 3), "b": (8,), "c": (), "d": (8, 1, 1)}
    weights |= {"e": (8,), "f": (8,), "i": (8,), "v": positive(8)}
    assert folded(build(body, **weights)) == "Conv Relu"


@pytest.mark.parametrize("group", [1, 2])
def test_into_a_transposed_convolution(group: int) -> None:
    body = IMAGE + (
        f"{{ a = ConvTranspose<group={group}, strides=[2,2]>(x, w)  s = Add(a, d)"
        "  n = BatchNormalization(s, e, f, i, v)  y = Relu(n) }"
    )
    weights: dict[str, Any] = {"w": (6, 4 // group, 2, 2), "d": (1, 4, 1, 1)}
    weights |= {"e": (4,), "f": (4,), "i": (4,), "v": positive(4)}
    assert folded(build(body, **weights)) == "ConvTranspose Relu"


@pytest.mark.parametrize("transposed", [0, 1])
def test_into_a_gemm(transposed: int) -> None:
    body = (
        "g (float[3, 5] x) => (float[3, 4] y) "
        f"{{ a = Gemm<transB={transposed}>(x, w, b)  m = Mul(a, c)  y = Add(m, d) }}"
    )
    shape = (4, 5) if transposed else (5, 4)
    assert folded(build(body, w=shape, b=(4,), c=(1, 4), d=(4,))) == "Gemm"


def test_a_gemm_with_factors_of_its_own_is_left_alone() -> None:
    body = "g (float[3, 5] x) => (float[3, 4] y) { a = Gemm<alpha=2.0>(x, w)  y = Mul(a, c) }"
    assert folded(build(body, w=(5, 4), c=(4,))) == "Gemm Mul"


@pytest.mark.parametrize("group", [1, 2, 6])
def test_into_the_convolution_behind_where_nothing_is_padded(group: int) -> None:
    body = IMAGE + (
        f"{{ r = Relu(x)  m = Mul(r, c)  s = Sub(m, d)  y = Conv<group={group}>(s, w, b) }}"
    )
    weights = {"c": (6, 1, 1), "d": (1, 6, 1, 1), "w": (12, 6 // group, 3, 3), "b": (12,)}
    assert folded(build(body, **weights)) == "Relu Conv"


def test_at_a_padded_border_the_shift_stays_and_the_scale_goes() -> None:
    body = IMAGE + (
        "{ r = Relu(x)  m = Div(r, c)  s = Add(m, d)  y = Conv<group=6, pads=[1,1,1,1]>(s, w) }"
    )
    assert (
        folded(build(body, c=positive(6, 1, 1), d=(1, 6, 1, 1), w=(6, 1, 3, 3))) == "Relu Add Conv"
    )
    body = IMAGE + '{ r = Relu(x)  s = Add(r, d)  y = Conv<auto_pad="SAME_UPPER">(s, w) }'
    assert folded(build(body, d=(), w=(8, 6, 3, 3))) == "Relu Add Conv"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("{ a = Conv(x, w)  y = Mul(a, c)  z = Relu(a) }", "Conv Mul Relu"),  # read twice
        ("{ z = Conv(x, w)  y = Mul(z, c) }", "Conv Mul"),  # an output
        ("{ a = Conv(x, w)  y = Mul(a, k)  z = Relu(x) }", "Conv Mul Relu"),  # along the width
        ("{ a = Conv(x, w)  y = Div(c, a)  z = Relu(x) }", "Conv Div Relu"),
        ("{ a = Conv(x, w)  y = Mul(a, a)  z = Relu(x) }", "Conv Mul Relu"),
        ("{ a = Conv(x, w)  y = Add(a, p)  z = Relu(x) }", "Conv Add Relu"),  # a plane
    ],
)
def test_what_must_stay_stays(body: str, left: str) -> None:
    head = "g (float[2, 6, 7, 7] x) => (float[2, ?, ?, ?] y, float[2, ?, ?, ?] z) "
    weights: dict[str, Any] = {"w": (8, 6, 3, 3), "c": (8, 1, 1), "k": (5,), "p": (1, 8, 5, 5)}
    used = {k: v for k, v in weights.items() if f" {k})" in body or f"({k}," in body}
    assert folded(build(head + body, **used)) == left


def test_a_constant_that_makes_three_channels_of_one_stays() -> None:
    body = "g (float[2, 1, 7, 7] x) => (float[2, 8, ?, ?] y) { m = Mul(x, c)  y = Conv(m, w) }"
    assert folded(build(body, c=(3, 1, 1), w=(8, 3, 3, 3))) == "Mul Conv"
    assert folded(build(body, c=(), w=(8, 1, 3, 3))) == "Conv"


def test_weights_that_two_convolutions_share_are_not_scaled() -> None:
    body = IMAGE + "{ a = Conv(x, w)  m = Mul(a, c)  b = Conv(x, w)  y = Add(m, b) }"
    assert folded(build(body, w=(8, 6, 3, 3), c=(8, 1, 1))) == "Conv Mul Conv Add"


def test_hard_sigmoids_and_hard_swishes_stay_recognisable() -> None:
    gate = IMAGE + (
        "{ a = Conv(x, w)  t = Add(a, three)  k = Clip(t, zero, six)  y = Div(k, six) }"
    )
    numbers = {"three": 3.0, "zero": 0.0, "six": 6.0}
    assert folded(build(gate, w=(8, 6, 3, 3), **numbers)) == "Conv Add Clip Div"
    swish = IMAGE + (
        "{ t = Add(x, three)  k = Clip(t, zero, six)  m = Mul(x, k)  d = Div(m, six)"
        "  y = Conv(d, w) }"
    )
    assert folded(build(swish, w=(8, 6, 1, 1), **numbers)) == "Add Clip Mul Div Conv"


def test_scales_of_zero_and_shared_constants() -> None:
    body = IMAGE + "{ a = Conv(x, w)  m = Mul(a, c)  r = Relu(m)  y = Mul(r, c) }"
    c = np.array([0, -1, 2, 3, 0, 1, 1, 1]).reshape(8, 1, 1)
    assert folded(build(body, w=(8, 6, 3, 3), c=c)) == "Conv Relu Mul"


def test_a_wrong_fold_would_be_seen() -> None:
    body = IMAGE + "{ a = Conv(x, w)  y = Mul(a, c) }"
    model = build(body, w=(8, 6, 3, 3), c=(8, 1, 1))
    changed, _ = fold_affine(model)
    weight = changed.graph.initializer[0]
    weight.CopyFrom(
        onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(weight) * np.float32(1.01), weight.name
        )
    )
    with pytest.raises(AssertionError):
        oracle.assert_same_outputs(model, changed)


def test_cleaning_does_it_and_says_so() -> None:
    body = IMAGE + "{ r = Relu(x)  m = Mul(c, r)  s = Add(m, d)  y = Conv(s, w) }"
    result = normalise(build(body, w=(8, 6, 1, 1), c=(), d=(1,)))
    assert [n.op_type for n in result.model.graph.node] == ["Relu", "Conv"]
    assert "folded into convolutions: 2 scalings and shifts of channels" in result.steps
