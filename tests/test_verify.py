"""What is the same is called the same, what is not goes red, and the guilty rewrite is named."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import oracle
import pytest
from onnx import TensorProto, numpy_helper

from onnxnas.calibration import load_calibration
from onnxnas.difference import OutputDifference
from onnxnas.errors import UnsupportedError, UsageError
from onnxnas.graph import contract
from onnxnas.probes import differences
from onnxnas.verify import Verification, find_guilty, verify


def scaled(model: onnx.ModelProto, by: float, weight: int = 0, at: int = 0) -> onnx.ModelProto:
    """Sabotage: one value of one weight, scaled."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = changed.graph.initializer[weight]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[at] *= by
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return changed


def reordered(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with the input channels of its second convolution in another order."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for number, axis in ((0, 0), (1, 0), (2, 1)):
        tensor = changed.graph.initializer[number]
        values = np.flip(numpy_helper.to_array(tensor), axis)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    return changed


def two_convs(*outputs: str, batch: int | str = 1) -> onnx.ModelProto:
    b = models.ModelBuilder([batch, 3, 9, 9])
    y = b.op("Relu", b.conv(b.x, 3, 64, 3))
    return b.build(b.conv(y, 64, 5, 3, out="y"))


def text(body: str) -> onnx.ModelProto:
    model: onnx.ModelProto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>' + body
    )
    return model


def test_a_model_equals_itself_exactly() -> None:
    result = verify(two_convs(), two_convs())
    assert result.ok
    assert result.valid
    assert result.outputs[0].error == 0
    assert result.outputs[0].snr_db == math.inf
    assert result.random_inputs == 6
    assert result.failure() == ""


def test_sums_in_another_order_are_the_same() -> None:
    model = two_convs()
    result = verify(model, reordered(model))
    assert result.ok
    assert 0 < result.outputs[0].error < 1e-6
    assert 120 < result.outputs[0].snr_db < 200


@pytest.mark.parametrize("by", [1.01, 1.001, 0.999])
def test_one_wrong_weight_is_noticed(by: float) -> None:
    b = models.ModelBuilder([1, 3, 9, 9])
    model = b.build(b.op("Relu", b.conv(b.x, 3, 5, 3), out="y"))
    result = verify(model, scaled(model, by))
    assert not result.ok
    assert result.valid
    assert "y: largest error" in result.failure()
    assert result.lines()[-1].startswith("NOT the same")


def test_the_tolerance_follows_the_noise_of_the_original_up_to_a_limit() -> None:
    quiet, noisy, broken = (OutputDifference("y", noise=n) for n in (1e-7, 4e-6, 1.0))
    for difference in (quiet, noisy, broken):
        difference.add(np.ones(3, np.float32), np.ones(3, np.float32))
    assert quiet.tolerance == 1e-5
    assert noisy.tolerance == pytest.approx(4e-5)
    assert broken.tolerance == pytest.approx(1e-3)


def test_contract_changes_are_problems() -> None:
    changed = two_convs()
    changed.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    changed.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    result = verify(two_convs(), changed)
    assert not result.valid
    assert result.outputs == ()
    assert "inputs are x: float[N,3,9,9] instead of x: float[1,3,9,9]" in result.failure()


def test_an_invalid_result_is_a_problem() -> None:
    changed = two_convs()
    changed.graph.node[0].attribute[0].name = "grup"
    assert "not valid ONNX" in verify(two_convs(), changed).failure()


def test_a_result_that_does_not_run_is_a_problem() -> None:
    model = text("""g (float[N] x, int64[2] s) => (float[A, B] y) { y = Reshape(x, s) }""")
    changed = text("""g (float[N] x, int64[2] s) => (float[A, B] y) {
        k = Constant <value: tensor = int64[2] {3, 2}> ()
        y = Reshape(x, k)
    }""")
    with pytest.raises(UnsupportedError, match="runs on no random input"):
        verify(model, model, input_shapes={"x": (7,)})
    original = text("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    wrong = text("""g (float[N] x) => (float[N] y) {
        k = Constant <value: tensor = int64[1] {4}> ()
        y = Reshape(x, k)
    }""")
    assert "cannot run" in verify(original, wrong, input_shapes={"x": (5,)}).failure()
    assert changed.graph.output[0].name == "y"


def test_a_batch_that_got_fixed_inside_is_noticed() -> None:
    original = text("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    fixed = text("""g (float[N, 4] x) => (float[N, 4] y) {
        s = Constant <value: tensor = int64[2] {1, 4}> ()
        r = Relu(x)
        y = Reshape(r, s)
    }""")
    result = verify(original, fixed)
    assert not result.valid
    assert verify(original, original).random_inputs == 7


def test_several_inputs_and_outputs_of_every_type() -> None:
    body = """g (float[2, 3] a, int64[2, 3] i, bool[2, 3] c, uint8[2, 3] u) =>
        (float[2, 3] f, int64[2, 3] n, bool[2, 3] o, double[2, 3] d) {
        h = Cast <to = 1> (i)
        v = Cast <to = 1> (u)
        s = Add(h, v)
        f = Mul(a, s)
        n = Add(i, i)
        o = Not(c)
        d = Cast <to = 11> (f)
    }"""
    result = verify(text(body), text(body))
    assert result.ok
    assert [d.name for d in result.outputs] == ["f", "n", "o", "d"]
    assert [d.by_magnitude for d in result.outputs] == [True, False, False, True]
    wrong = verify(text(body), text(body.replace("Not(c)", "Identity(c)")))
    assert [d.ok for d in wrong.outputs] == [True, True, False, True]


def segmenter(bias: float = 0.0) -> onnx.ModelProto:
    """Class 2 wins everywhere, so the class map says nothing about the scores."""
    b = models.ModelBuilder([1, 3, 8, 8])
    weight = b.weight(3, 3, 1, 1, scale=1e-3)
    shift = b.const(np.array([bias, 0.0, 1e4], np.float32))
    scores = b.op("Conv", b.x, weight, shift, out="scores")
    classes = b.op("ArgMax", scores, axis=1)
    return b.build(b.op("Cast", classes, to=TensorProto.FLOAT, out="map"))


def test_scores_under_a_class_map_are_compared() -> None:
    result = verify(segmenter(), segmenter(bias=5.0))
    assert result.outputs[0].ok
    assert result.outputs[0].constant
    assert not result.outputs[0].by_magnitude
    assert [d.name for d in result.inner] == ["scores"]
    assert not result.ok
    assert "scores" in result.failure()


def test_logits_under_a_saturated_softmax_are_compared() -> None:
    b = models.ModelBuilder([1, 4])
    logits = b.op("Gemm", b.x, b.weight(4, 3, scale=200.0), out="logits")
    model = b.build(b.op("Softmax", logits))
    result = verify(model, scaled(model, 1.001))
    assert [d.name for d in result.inner] == ["logits"]
    assert not result.ok


def test_classes_may_differ_where_scores_tie_but_hardly_ever() -> None:
    classes = np.zeros(100_000, np.int64)
    for wrong, expected in ((10, True), (11, False)):
        other = classes.copy()
        other[:wrong] = 1
        difference = OutputDifference("map")
        difference.add(classes, other)
        assert difference.ok is expected


def test_nan_and_infinity_must_be_where_they_were() -> None:
    body = "g (float[1, 3] x) => (float[1, 3] y) { y = Log(x) }"
    assert verify(text(body), text(body)).ok  # logarithms of negative numbers
    want = np.array([np.nan, np.inf, 1.0], np.float32)
    for have, expected in (
        ([np.nan, np.inf, 1.0], True),
        ([np.nan, -np.inf, 1.0], False),
        ([0.0, np.inf, 1.0], False),
        ([np.nan, np.inf, np.nan], False),
    ):
        difference = OutputDifference("y")
        difference.add(want, np.array(have, np.float32))
        assert difference.ok is expected, have
        json.dumps(difference.to_dict(), allow_nan=False)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e37])
def test_outputs_of_any_magnitude(size: float) -> None:
    want = (np.linspace(-1, 1, 999) * size).astype(np.float32)
    for error, expected in ((1e-7, True), (1e-4, False)):
        difference = OutputDifference("y")
        difference.add(want, want * np.float32(1 + error))
        assert difference.ok is expected
        assert difference.snr_db == pytest.approx(-20 * math.log10(error), abs=2)


def test_a_run_of_only_zeros_is_judged_by_the_other_runs() -> None:
    difference = OutputDifference("y")
    difference.add(np.zeros(4, np.float32), np.full(4, 1e-7, np.float32))
    assert not difference.ok
    difference.add(np.ones(4, np.float32), np.ones(4, np.float32))
    assert difference.ok


def test_half_precision_is_allowed_its_own_rounding() -> None:
    want = np.linspace(1, 2, 50).astype(np.float16)
    for ulps, expected in ((1, True), (16, False)):
        difference = OutputDifference("y")
        difference.add(want, want + np.float16(ulps * 2**-10))
        assert difference.ok is expected


def test_faint_probabilities_are_allowed_the_rounding_of_parts_of_one() -> None:
    model = text(
        "g (float[1, 4] x) => (float[4, 1] p, float[1, 4] y) "
        "{ s = Sigmoid(x)  p = Transpose(s)  y = Relu(x) }"
    )
    found = differences(model, ["p", "y"])
    for name, difference in found.items():
        want = np.full(4, 1e-3, np.float32)
        difference.add(want, want + np.float32(2e-7))
        assert difference.ok is (name == "p")
        difference.add(want, want + np.float32(1e-6))
        assert not difference.ok


def test_weights_fitted_to_data_are_compared_on_data(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((4, 3, 9, 9), np.float32))
    model = two_convs()
    calibration = load_calibration(path, contract(model)[0])
    changed = scaled(model, 3.0)  # of a weight, which zeros do not meet
    found = verify(model, changed, calibration=calibration, exact=False)
    assert found.ok
    assert found.outputs[0].error == 0
    assert "need not be the same: y: largest error 0" in "\n".join(found.lines())
    assert verify(model, changed, exact=False).outputs[0].error > 0


def test_empty_and_reshaped_outputs() -> None:
    difference = OutputDifference("y")
    difference.add(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))
    assert difference.ok
    difference.add(np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32))
    assert not difference.ok
    assert "float32[3,2] instead of float32[2,3]" in str(difference)


def test_the_figures_of_a_known_difference() -> None:
    want = np.array([[1.0, 2.0, -4.0], [3.0, 0.0, 1.0]], np.float32)
    have = want + np.array([[0.0, 0.0, 0.5], [0.0, 3.5, 0.0]], np.float32)
    difference = OutputDifference("y")
    difference.add(want, have)
    assert difference.max_abs_error == 3.5
    assert difference.max_reference == 4.0
    assert difference.error == 0.875
    assert difference.argmax_agreement == 0.5
    assert difference.snr_db == pytest.approx(10 * math.log10(31 / 12.5))


def test_what_onnxruntime_cannot_run_is_unsupported_and_named() -> None:
    model = text("g (bfloat16[3] x) => (bfloat16[3] y) { y = Sigmoid(x) }")
    with pytest.raises(UnsupportedError, match="Sigmoid"):
        verify(model, model)


def test_dynamic_sizes_must_be_given() -> None:
    model = text("g (float[N, H] x) => (float[N, H] y) { y = Relu(x) }")
    with pytest.raises(UsageError, match="--input-shape"):
        verify(model, model)
    assert verify(model, model, input_shapes={"x": (2, 5)}).ok


def test_the_report_is_plain_json_and_repeats_with_the_seed() -> None:
    model = two_convs(batch="N")
    first, second = (verify(model, reordered(model), seed=3).to_dict() for _ in range(2))
    assert json.loads(json.dumps(first, allow_nan=False)) == second
    other = verify(model, reordered(model), seed=4).to_dict()
    assert other["outputs"][0]["max_abs_reference"] != first["outputs"][0]["max_abs_reference"]


def test_a_verification_of_nothing_is_no_success_line() -> None:
    lines = Verification(("the reason",)).lines()
    assert lines[-1] == "NOT the same: the reason"


@pytest.mark.parametrize("guilty", range(7))
def test_the_guilty_decision_is_found_with_few_builds(guilty: int) -> None:
    decisions, built = list("abcdefg"), []

    def build(prefix: Sequence[str]) -> list[str]:
        built.append(len(prefix))
        return list(prefix)

    found = find_guilty(decisions, build, lambda model: decisions[guilty] not in model)
    assert found == decisions[guilty]
    assert len(built) <= 4


def test_nobody_is_guilty_of_what_was_wrong_before() -> None:
    assert find_guilty("abc", list, lambda _: False) is None


def test_real_class_map_sabotage_is_noticed() -> None:
    model: Any = onnx.load(oracle.evalset_model("deeplabv3_mnv2_dm05_513"))
    first = next(n.input[1] for n in model.graph.node if n.op_type == "Conv")
    number = [t.name for t in model.graph.initializer].index(first)
    values = numpy_helper.to_array(model.graph.initializer[number])
    sabotaged = scaled(model, 1.01, number, int(np.abs(values).argmax()))
    result = verify(model, sabotaged)
    assert not result.ok
    assert result.valid
