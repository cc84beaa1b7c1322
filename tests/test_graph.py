"""A model goes into a graph and comes out as it was; shapes follow from what a rewrite did."""

from __future__ import annotations

from typing import Any

import models
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import oracle
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxnas import graph as graphs
from onnxnas.errors import UnsupportedError, UsageError
from onnxnas.graph import (
    LazyWeight,
    check_model,
    contract,
    from_model,
    infer_shapes,
    static_view,
    to_model,
    values_of,
)
from onnxnas.roundtrip import copy_graph


def text(body: str, opsets: str = '"" : 17', ir: int = 8, check: bool = True) -> onnx.ModelProto:
    model: onnx.ModelProto = onnx.parser.parse_model(
        f"<ir_version: {ir}, opset_import: [{opsets}]>" + body
    )
    if check:
        onnx.checker.check_model(model)
    return model


def through(model: onnx.ModelProto) -> onnx.ModelProto:
    """There and back; nothing on the way may change what was given."""
    before = model.SerializeToString()
    graph = from_model(model)
    result = to_model(graph, model)
    assert to_model(graph, model) == result
    assert model.SerializeToString() == before
    check_model(result, full=False)
    assert contract(result) == contract(model)
    return result


def conv_relu(batch: Any = 1) -> onnx.ModelProto:
    b = models.ModelBuilder([batch, 3, 8, 8])
    return b.build(b.op("Relu", b.conv(b.x, 3, 16, 3, pads=1, out="mid"), out="y"))


# There and back


def test_a_plain_model_survives_and_computes_the_same() -> None:
    oracle.assert_same_outputs(conv_relu("N"), through(conv_relu("N")))


def test_what_graphsurgeon_does_not_carry_is_put_back() -> None:
    model = conv_relu()
    model.producer_name, model.producer_version = "maker", "1.2"
    model.domain, model.model_version, model.doc_string = "com.example", 7, "about"
    model.graph.doc_string = "about the graph"
    model.metadata_props.add(key="names", value="{0: 'cat'}")
    model.graph.metadata_props.add(key="a", value="b")
    model.graph.node[0].doc_string = "about the node"
    model.graph.node[0].metadata_props.add(key="scope", value="block1")
    model.graph.input[0].doc_string = "an image"
    model.graph.input[0].type.denotation = "IMAGE"
    note = model.graph.quantization_annotation.add(tensor_name="mid")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    result = through(model)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(result, field) == getattr(model, field)
    assert result.metadata_props == model.metadata_props
    assert result.graph.input == model.graph.input
    assert result.graph.doc_string == "about the graph"
    assert result.graph.metadata_props == model.graph.metadata_props
    assert result.graph.node[0].doc_string == "about the node"
    assert result.graph.node[0].metadata_props == model.graph.node[0].metadata_props
    assert result.graph.quantization_annotation == model.graph.quantization_annotation


def test_provenance_is_in_the_node_and_the_runtime_still_reads_the_file() -> None:
    model = conv_relu()
    made = {"mid": "a-pass@mid=choice"}
    result = to_model(from_model(model), model, made)
    again = to_model(from_model(result), result, {"mid": "b-pass@mid=other"})
    for one, author in ((result, made["mid"]), (again, "b-pass@mid=other")):
        (entry,) = one.graph.node[0].metadata_props
        assert (entry.key, entry.value) == ("onnxnas.rewrite", author)
        assert one.ir_version == model.ir_version
        check_model(one)
    oracle.assert_same_outputs(model, again)


@pytest.mark.parametrize(
    "model",
    [
        text("g (float[2] x) => (float[2] x) { }"),
        text("g (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) { y = Relu(x)\n z = Abs(y) }"),
        text("g () => (float[2] w) <float[2] w = {1.0, 2.0}> { }"),
        text("g (float x) => (float y) { y = Neg(x) }"),
        text("g (seq(float[3]) s, int64 i) => (float[3] y) { y = SequenceAt(s, i) }"),
        text("g (float[3] x) => (seq(float[3]) s) { e = Relu(x)\n s = SequenceConstruct(e, x) }"),
        text("g (optional(float[3]) o) => (bool b) { b = OptionalHasElement(o) }"),
        text(
            "g (float[3] x) => (float[3] y) { y = a.b.Op <k = 3> (x) }",
            '"" : 17, "a.b" : 4, "c" : 2',
        ),
        text(
            """g (float[3] x) => (float[3] y) { y = l.twice(x) }
            <domain: "l", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }""",
            '"" : 17, "l" : 1',
        ),
        text(
            """g (float[4] x) => (float[4] y, float[N] z) {
            y, m = Dropout(x)
            n = Constant <value_int = 1> ()
            z = Unsqueeze <axes: ints = [0]> (n2)
        }""".replace("z = Unsqueeze <axes: ints = [0]> (n2)", "z = Abs(y)")
        ),
    ],
    ids=lambda model: "",
)
def test_unusual_models_survive(model: onnx.ModelProto) -> None:
    result = through(model)
    assert result.opset_import == model.opset_import
    assert result.functions == model.functions
    assert result.graph.input == model.graph.input
    assert result.graph.output == model.graph.output
    wanted = [(n.op_type, n.domain, list(n.input), list(n.output)) for n in model.graph.node]
    got = [(n.op_type, n.domain, list(n.input), list(n.output)) for n in result.graph.node]
    assert got == wanted


def test_subgraphs_that_read_outer_tensors_survive() -> None:
    model = text("""
        g (bool c, float[3] x, int64 n) => (float[3] y, float[3] z) <float[3] k = {1.0, 2.0, 3.0}> {
            w = Mul(x, k)
            y = If(c) <then_branch = t () => (float[3] p) { p = Add(w, k) },
                       else_branch = e () => (float[3] q) { r = Neg(w)  q = Mul(r, k) }>
            z = Loop(n, c, x) <body = b (int64 i, bool u, float[3] s) => (bool v, float[3] o) {
                v = Identity(u)
                o = Add(s, w)
            }>
        }""")
    result = through(model)
    for choice in (True, False):
        feeds = {
            "c": np.array(choice), "x": np.array([1, -2, 5], np.float32), "n": np.array(3)
        }  # fmt: skip
        oracle.assert_same_outputs(model, result, feeds)


def test_a_duplicate_entry_in_value_info_does_not_win_over_the_contract() -> None:
    model = conv_relu("batch")
    model.graph.value_info.append(helper.make_tensor_value_info("x", 1, [None, 3, 8, 8]))
    model.graph.value_info.append(helper.make_tensor_value_info("y", 1, ["other", 16, 8, 8]))
    through(model)
    assert from_model(model).inputs[0].shape == ["batch", 3, 8, 8]


def test_attributes_that_are_empty_lists_survive() -> None:
    node = helper.make_node("Op", ["x"], ["y"], domain="a.b", k=3)
    node.attribute.append(helper.make_attribute("none", [], attr_type=onnx.AttributeProto.INTS))
    x = helper.make_tensor_value_info("x", 1, [3])
    y = helper.make_tensor_value_info("y", 1, [3])
    model = helper.make_model(
        helper.make_graph(
            [node, helper.make_node("Squeeze", ["y"], ["z"], axes=[0])], "g", [x], [y]
        ),
        opset_imports=[helper.make_opsetid("", 11), helper.make_opsetid("a.b", 1)],
        ir_version=8,
    )
    squeeze = model.graph.node[1].attribute[0]
    squeeze.ClearField("ints")
    result = through(model)
    assert {a.name: a.type for a in result.graph.node[0].attribute} == {"k": 2, "none": 7}
    assert result.graph.node[1].attribute[0].type == onnx.AttributeProto.INTS


def test_attributes_that_would_be_lost_are_refused_by_name() -> None:
    optional = text(
        "g () => (optional(float[3]) o) { o = Optional <type: type_proto = float[3]> () }",
        check=False,
    )
    with pytest.raises(UnsupportedError, match="'type' of Optional node 'o'"):
        from_model(optional)
    blob = text("g (float[3] x) => (float[3] y) { y = a.b.Engine(x) }", '"" : 17, "a.b" : 1')
    blob.graph.node[0].attribute.append(helper.make_attribute("plan", b"\xff\xfe\x00"))
    with pytest.raises(UnsupportedError, match="'plan' of Engine"):
        from_model(blob)


KINDS = ["FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT4", "INT4", "FLOAT8E4M3FN", "FLOAT8E5M2",
         "FLOAT8E4M3FNUZ", "BOOL", "STRING", "COMPLEX64"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_every_type_keep_their_bytes(kind: str) -> None:
    number = TensorProto.DataType.Value(kind)
    values: list[Any] = [b"a", b"b", b"c"] if kind == "STRING" else [0, 1, 1]
    weight = helper.make_tensor("w", number, [3], values)
    y = helper.make_tensor_value_info("y", number, [3])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert through(model).graph.initializer == model.graph.initializer


def test_a_renamed_weight_does_not_rename_its_copies_in_other_graphs() -> None:
    model = conv_relu()
    graph = from_model(model)
    other = graph.copy()
    weight = other.nodes[0].inputs[1]
    old = weight.name
    weight.name = "renamed"
    before = model.SerializeToString()
    assert "renamed" in {t.name for t in to_model(other, model).graph.initializer}
    assert old in {t.name for t in to_model(graph, model).graph.initializer}
    assert model.SerializeToString() == before


def test_values_of_a_weight_cannot_be_written_to() -> None:
    graph = from_model(conv_relu())
    values = values_of(graph.nodes[0].inputs[1])
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    model = text("""g (float[N, 3] x) => (float[A, B] y) {
        s = Shape(x)
        y = Reshape(x, s)
    }""")
    for node in model.graph.node:
        node.name = "twice"
    through(model)
    static_view(from_model(model), {})
    assert capfd.readouterr() == ("", "")


# Lazy weights and shapes


def lazy_graph(calls: list[int], batch: Any = 1) -> tuple[Any, onnx.ModelProto]:
    """A graph whose first convolution got a lazy weight with twice the channels."""
    model = conv_relu(batch)
    graph = from_model(model)

    def compute() -> Any:
        calls.append(1)
        return np.ones((32, 3, 3, 3))

    conv = graph.nodes[0]
    conv.inputs[1] = gs.Constant("lazy", LazyWeight((32, 3, 3, 3), np.dtype(np.float32), compute))
    conv.inputs.pop()
    return graph, model


def test_a_lazy_weight_is_computed_once_at_export_and_never_before() -> None:
    calls: list[int] = []
    graph, model = lazy_graph(calls, "N")
    copies = [graph.copy() for _ in range(5)]
    for copy in copies:
        infer_shapes(copy)
        static_view(copy, {"x": (4, 3, 8, 8)})
    assert calls == []
    for copy in copies:
        weight = to_model(copy, model).graph.initializer[0]
        assert numpy_helper.to_array(weight).dtype == np.float32
    assert calls == [1]


def test_shapes_follow_a_rewrite() -> None:
    graph, _ = lazy_graph([], "N")
    infer_shapes(graph)
    assert graph.tensors()["mid"].shape == ["N", 32, 8, 8]
    assert graph.tensors()["y"].shape == [
        "N",
        16,
        8,
        8,
    ]  # the contract is not inference's to change
    assert static_view(graph, {}).tensors()["y"].shape == [1, 32, 8, 8]


def test_a_static_view_fixes_every_shape_and_leaves_the_graph_alone() -> None:
    model = text("""g (float[N, 4, H, W] x) => (float[A, B] flat)
        <int64[1] zero = {0}, int64[1] rest = {-1}> {
            r = Relu(x)
            s = Shape(r)
            n = Gather(s, zero)
            t = Concat <axis = 0> (n, rest)
            flat = Reshape(r, t)
        }""")
    graph = from_model(model)
    view = static_view(graph, {"x": (2, 4, 5, 6)})
    assert [n.op for n in view.nodes] == ["Relu", "Reshape"]
    assert view.tensors()["flat"].shape == [2, 120]
    assert graph.inputs[0].shape == ["N", 4, "H", "W"]
    assert len(graph.nodes) == 5
    with pytest.raises(UsageError, match="dynamic dimensions \\[1,4,\\?,\\?\\]"):
        static_view(graph, {})


def test_shapes_a_model_does_not_accept_are_a_users_mistake() -> None:
    model = text("g (float[A, B] x, float[C, D] w) => (float[E, F] y) { y = MatMul(x, w) }")
    graph = from_model(model)
    with pytest.raises(UsageError, match="does not accept inputs of shape x:2,3, w:4,5"):
        static_view(graph, {"x": (2, 3), "w": (4, 5)})
    assert static_view(graph, {"x": (2, 3), "w": (3, 5)}).outputs[0].shape == [2, 5]


def test_operators_that_onnx_does_not_know_keep_the_shapes_they_were_declared_with() -> None:
    model = text(
        """g (float[N, 3] x) => (float[A, B] y)  {
            h = a.b.Op(x)
            m = MatMul(h, w)
            y = Relu(m)
        }""",
        '"" : 17, "a.b" : 1',
        check=False,
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((5, 2), np.float32), "w"))
    assert from_model(model).tensors()["m"].shape is None
    model.graph.value_info.append(helper.make_tensor_value_info("h", 1, [7, 5]))
    graph = from_model(model)
    assert graph.tensors()["m"].shape == [7, 2]
    assert static_view(graph, {}).tensors()["y"].shape == [7, 2]


def test_a_shape_that_became_unknown_is_not_kept() -> None:
    graph = from_model(conv_relu())
    graph.nodes[0].op = "Unheard"
    graph.nodes[0].outputs[0].shape = None
    infer_shapes(graph)
    assert graph.tensors()["mid"].shape is None


def test_parameters_are_counted_in_every_float_type() -> None:
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [3], [0.0, 1.0, 2.0])
    other = numpy_helper.from_array(np.ones(4, np.int64), "i")
    y = helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [3])
    z = helper.make_tensor_value_info("z", TensorProto.INT64, [4])
    nodes = [
        helper.make_node("Identity", ["w"], ["y"]),
        helper.make_node("Identity", ["i"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "g", [], [y, z], [weight, other])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert graphs.count_parameters(from_model(model)) == 3
    assert graphs.count_parameters(from_model(conv_relu())) == 16 * 3 * 9 + 16


def test_a_copy_is_what_graphsurgeon_copies() -> None:
    """Tensor by tensor, edges included, and nothing of it is shared but values and attributes."""
    graph = from_model(conv_relu())
    graph.tensors()["mid"].type = "sequence_type"
    ours, theirs = copy_graph(graph), graph.copy()
    assert [n.op for n in ours.nodes] == [n.op for n in theirs.nodes]
    found, wanted = ours.tensors(), theirs.tensors()
    assert list(found) == list(wanted)
    for name, tensor in found.items():
        assert tensor is not graph.tensors()[name]
        fields, others = vars(tensor), vars(wanted[name])
        assert fields.keys() == others.keys()
        for field in fields.keys() - {"inputs", "outputs"}:
            assert fields[field] is others[field] or fields[field] == others[field]
        for end in ("inputs", "outputs"):
            assert [n.name for n in fields[end]] == [n.name for n in others[end]]
            assert all(any(n is own for own in ours.nodes) for n in fields[end])
    reader = found["mid"].outputs[0]
    reader.inputs.clear()
    assert not found["mid"].outputs
    assert graph.tensors()["mid"].outputs
