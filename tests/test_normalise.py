"""Cleaning keeps what a model does and is called, whatever the tool behind it does."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import onnx
import oracle
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxnas.errors import UnsupportedError, UsageError
from onnxnas.graph import check_model, contract, from_model, to_model
from onnxnas.normalise import normalise

REAL = [
    "deeplabv3_mnv2_dm05_513", "minifasnet_v2_80", "mobilenetv2_224", "ppocrv2_cls_shipped",
    "vww_mobilenetv1_025_96", "yolo_fastest_1.1_320",
]  # fmt: skip


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def conv_bn(opset: int = 13) -> onnx.ModelProto:
    b = models.ModelBuilder(["N", 3, 8, 8], opset=opset)
    y = b.conv(b.x, 3, 5, 3, pads=1, bias=False)
    mean, scale, shift = b.weight(5), b.weight(5), b.weight(5)
    variance = b.const(np.linspace(0.5, 2, 5, dtype=np.float32))
    y = b.op("BatchNormalization", y, scale, shift, mean, variance, epsilon=1e-3)
    return b.build(b.op("Relu", y, out="result"))


def text(body: str, header: str = '<ir_version: 8, opset_import: ["" : 17]>') -> onnx.ModelProto:
    model: onnx.ModelProto = onnx.parser.parse_model(header + body)
    return model


def test_batch_normalisation_is_folded_and_the_caller_keeps_its_model() -> None:
    model = conv_bn()
    before = model.SerializeToString()
    result = normalise(model)
    assert operators(result.model) == ["Conv", "Relu"]
    assert any("BatchNormalization" in step for step in result.steps)
    assert contract(result.model) == contract(model)
    oracle.assert_same_outputs(model, result.model)
    assert model.SerializeToString() == before


def test_a_clean_model_is_left_as_it_is() -> None:
    clean = normalise(conv_bn()).model
    again = normalise(clean)
    assert again.steps == ()
    assert again.model == clean


def test_old_files_have_their_weights_taken_out_of_the_inputs() -> None:
    model = conv_bn(9)
    model.ir_version = 3
    for t in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    result = normalise(model)
    assert [v.name for v in result.model.graph.input] == ["x"]
    assert result.model.ir_version == 4
    assert any("not inputs" in step for step in result.steps)
    oracle.assert_same_outputs(model, result.model)


def test_constant_nodes_of_every_form_become_weights() -> None:
    model = text("""
        g (float[3] x) => (float[3] y, int64[2] z) {
            a = Constant <value: tensor = float[3] {1.5, 2.5, 3.5}> ()
            b = Constant <value_float: float = 0.25> ()
            c = Constant <value_floats: floats = [1.0, 2.0, 4.0]> ()
            z = Constant <value_ints: ints = [7, 8]> ()
            p = Add(x, a)
            q = Mul(p, b)
            y = Add(q, c)
        }""")
    result = normalise(model)
    assert "Constant" not in operators(result.model)
    oracle.assert_same_outputs(model, result.model)


def test_dead_nodes_go_and_nodes_without_a_name_get_a_stable_one() -> None:
    b = models.ModelBuilder([1, 3, 8, 8])
    b.op("Relu", b.conv(b.x, 3, 4), out="dead")
    model = b.build(b.op("Sigmoid", b.conv(b.x, 3, 6, out="mid"), out="y"))
    first, second = normalise(model), normalise(model)
    assert first == second
    assert [n.name for n in first.model.graph.node] == ["mid/Conv", "y/Sigmoid"]
    assert any("2 nodes that nothing reads" in step for step in first.steps)


def test_names_the_user_gave_survive() -> None:
    model = conv_bn()
    for node in model.graph.node:
        node.name = f"my_{node.op_type}"
    result = normalise(model).model
    assert {n.name for n in result.graph.node} <= {n.name for n in model.graph.node}
    outputs = {o for n in result.graph.node for o in n.output}
    assert outputs <= {o for n in model.graph.node for o in n.output}


@pytest.mark.parametrize(
    ("what", "model"),
    [
        (
            "subgraphs",
            text("""g (bool c, float[3] x) => (float[3] y) {
                k = Constant <value: tensor = float[3] {1.0, 2.0, 3.0}> ()
                y = If(c) <then_branch = t () => (float[3] p) { p = Add(x, k) },
                           else_branch = e () => (float[3] q) { q = Mul(x, k) }>
            }"""),
        ),
        (
            "sequence(float)",
            text("""g (seq(float[3]) s, int64 i) => (float[3] y) { y = SequenceAt(s, i) }"""),
        ),
    ],
)
def test_what_is_unusual_is_left_alone_and_goes_through_unchanged(
    what: str, model: onnx.ModelProto
) -> None:
    result = normalise(model)
    assert any("left alone" in step and what in step for step in result.steps)
    through = to_model(from_model(result.model), result.model)
    check_model(through)
    assert contract(through) == contract(model)
    assert [(o.domain, o.version) for o in through.opset_import] == [
        (o.domain, o.version) for o in model.opset_import
    ]
    if what != "sequence(float)":
        feeds: dict[str, Any] = {"x": np.array([-1.0, 2.0, 3.0], np.float32)}
        for choice in [True, False] if what == "subgraphs" else [None]:
            one = feeds if choice is None else feeds | {"c": np.array(choice)}
            oracle.assert_same_outputs(model, through, one)


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_weights_become_dense(linear: bool) -> None:
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [3.0, 5.0])
    shape = [2] if linear else [2, 1]
    indices = helper.make_tensor(
        "i", TensorProto.INT64, shape, np.array([1, 2]).tobytes(), raw=True
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    result = normalise(model)
    assert "1 sparse weights became dense" in result.steps
    with pytest.raises(UnsupportedError, match="sparse weights"):
        from_model(model)
    oracle.assert_same_outputs(model, to_model(from_model(result.model), result.model))


def test_functions_are_written_out_where_they_are_called() -> None:
    model = text(
        """g (float[3] x) => (float[3] y) { h = local.twice(x) y = local.both(h) }
        <domain: "local", opset_import: ["" : 17]>
        twice (a) => (b) { c = Add(a, a) b = Relu(c) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]>
        both (a) => (b) { c = local.twice(a) b = Sigmoid(c) }""",
        '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>',
    )
    result = normalise(model)
    assert operators(result.model) == ["Add", "Relu", "Add", "Relu", "Sigmoid"]
    assert not result.model.functions
    assert contract(result.model) == contract(model)
    assert "2 functions were written out where they are called" in result.steps
    oracle.assert_same_outputs(model, to_model(from_model(result.model), result.model))


def test_a_function_that_cannot_be_run_is_kept() -> None:
    model = text(
        """g (float[3] x) => (float[3] y) { h = Sigmoid(x) y = local.magic(h) }
        <domain: "local", opset_import: ["" : 17, "com.example" : 1]>
        magic (a) => (b) { c = Add(a, a) b = com.example.Magic(c) }""",
        '<ir_version: 8, opset_import: ["" : 17, "local" : 1, "com.example" : 1]>',
    )
    result = normalise(model)
    assert operators(result.model) == ["Sigmoid", "magic"]
    assert any("undone" in step and "local:magic" in step for step in result.steps)


def test_what_onnxruntime_cannot_run_is_checked_by_the_checker_and_says_so() -> None:
    model = text(
        """g (float[3] x) => (float[3] y) {
            k = Constant <value: tensor = float[3] {1.0, 2.0, 3.0}> ()
            p = com.example.Magic(x)
            y = Add(p, k)
        }""",
        '<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>',
    )
    result = normalise(model)
    assert operators(result.model) == ["Magic", "Add"]
    assert any("not verified" in step and "Magic" in step for step in result.steps)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(("op", "domain"), [("Magic", "com.example"), ("Gelu", "com.microsoft")])
def test_operators_of_other_domains_are_left_as_they_are(
    op: str, domain: str, declared: bool
) -> None:
    b = models.ModelBuilder([1, 3, 8, 8])
    y = b.x
    for channels, out in ((3, "between"), (5, "y")):
        variance = b.const(np.linspace(0.5, 2, 5, dtype=np.float32))
        y = b.conv(y, channels, 5, 3, pads=1)
        y = b.op("BatchNormalization", y, b.weight(5), b.weight(5), b.weight(5), variance)
        y = b.op(op, y, out=out, domain=domain) if out == "between" else b.op("Relu", y, out=out)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, c, 8, 8])
        for name, c in ((b.x, 3), ("y", 5), ("between", 5))
    ]
    graph = helper.make_graph(b.nodes, "g", values[:1], values[1:2], b.initializers)
    graph.value_info.extend(values[2:] if declared else [])
    imports = [helper.make_opsetid("", 13), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    result = normalise(model)
    if declared or op == "Gelu":
        assert operators(result.model) == ["Conv", op, "Conv", "Relu"]
        shape = from_model(result.model).tensors()["between"].shape
        assert shape == ([1, 5, 8, 8] if declared else None)
    else:  # nothing behind it can be run, so nothing may change there
        assert operators(result.model) == operators(model)
        assert any("undone" in step and "Conv" in step for step in result.steps)
    if op == "Gelu":
        oracle.assert_same_outputs(model, result.model)


def sabotage_weight(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def swap_outputs(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "other"
    model.graph.node[-1].output[0] = "other"


def break_model(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (sabotage_weight, "changed the outputs"),
        (swap_outputs, "inputs or outputs changed"),
        (break_model, "not valid ONNX"),
    ],
)
def test_a_tool_that_spoils_the_model_is_undone(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[onnx.ModelProto], None],
    reason: str,
) -> None:
    import onnxslim

    def spoil(model: onnx.ModelProto, **_: Any) -> onnx.ModelProto:
        model.graph.node.insert(0, helper.make_node("Identity", ["x"], ["unused"]))
        damage(model)
        print("chatter")
        os.write(2, b"chatter of a library")
        return model

    monkeypatch.setattr(onnxslim, "slim", spoil)
    model = conv_bn()
    result = normalise(model)
    assert capfd.readouterr() == ("", "")
    assert operators(result.model) == ["Conv", "Relu"]  # what is folded afterwards needs no tool
    assert any("onnxslim" in step and reason in step for step in result.steps)
    oracle.assert_same_outputs(model, result.model)


def test_a_tool_that_crashes_is_survived_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnxslim

    normalise(conv_bn())
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(onnxslim, "slim", lambda *_, **__: 1 / 0)
    result = normalise(conv_bn())
    assert any("onnxslim failed (division by zero)" in step for step in result.steps)


def test_dynamic_dimensions_stay_dynamic_and_must_be_given_for_the_check() -> None:
    b = models.ModelBuilder(["batch", 3, "height", 8])
    y = b.conv(b.x, 3, 5)
    shift = b.op("Constant", value=numpy_helper.from_array(np.ones(5, np.float32)), out="k")
    y = b.op("BatchNormalization", y, b.weight(5), shift, b.weight(5), shift)
    model = b.build(y)
    result = normalise(model, {"x": (2, 3, 6, 8)})
    assert contract(result.model) == contract(model)
    assert operators(result.model) == ["Conv"]
    with pytest.raises(UsageError, match="--input-shape x"):
        normalise(model)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_survive(dtype: type[np.floating[Any]]) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((3, 4)).astype(dtype), "w")
    bias = numpy_helper.from_array(rng.standard_normal(4).astype(dtype), "b")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [2, 3])],
        [helper.make_tensor_value_info("y", kind, [2, 4])],
        [weight, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = normalise(model).model
    through = to_model(from_model(result), result)
    assert contract(through) == contract(model)
    oracle.assert_same_outputs(model, through, tolerance=2e-3)


def test_a_quantised_model_survives() -> None:
    b = models.ModelBuilder([1, 3, 6, 6])
    scale, zero = b.const(np.array(0.05, np.float32)), b.const(np.array(128, np.uint8))
    x = b.op("DequantizeLinear", b.op("QuantizeLinear", b.x, scale, zero), scale, zero)
    w = b.const(b.rng.integers(-127, 127, (4, 3, 3, 3)).astype(np.int8))
    wq = b.op(
        "DequantizeLinear", w, b.const(np.array(0.01, np.float32)), b.const(np.array(0, np.int8))
    )
    y = b.op("Conv", x, wq, kernel_shape=[3, 3])
    y = b.op("DequantizeLinear", b.op("QuantizeLinear", y, scale, zero), scale, zero)
    model = b.build(y)
    result = normalise(model).model
    through = to_model(from_model(result), result)
    oracle.assert_same_outputs(model, through)
    kinds = [t.data_type for t in through.graph.initializer if len(t.dims) == 4]
    assert kinds == [TensorProto.INT8]


@pytest.mark.parametrize("name", REAL)
def test_real_networks_keep_contract_names_and_outputs(name: str) -> None:
    model = onnx.load(oracle.evalset_model(name))
    shapes = {"x": (1, 3, 48, 192)} if name.startswith("ppocr") else {}
    result = normalise(model, shapes).model
    assert contract(result) == contract(model)
    tensors = {o for n in model.graph.node for o in n.output}
    assert {o for n in result.graph.node for o in n.output} <= tensors
    assert all(n.name for n in result.graph.node)
    assert len(result.graph.node) <= len(model.graph.node)
    check_model(to_model(from_model(result), result))
    oracle.assert_same_outputs(model, result, oracle.random_feeds(model, shapes=shapes))
