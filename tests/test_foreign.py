"""Operators onnxruntime does not know: left as they are, and the rest is still compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxnas import pipeline
from onnxnas.calibration import load_calibration
from onnxnas.cli import main
from onnxnas.errors import UnsupportedError
from onnxnas.graph import contract
from onnxnas.loading import load_model
from onnxnas.verify import verify

Dims = list[int | str]


def with_foreign(
    where: str = "middle",
    declared: bool = True,
    batch: int | str = 1,
) -> onnx.ModelProto:
    """Two linear convs, an operator nobody knows, two linear convs; or it alone at an end.

    Weights are named w_1.. in order: the first four belong to what is before the operator.
    """
    b = models.ModelBuilder([batch, 8, 10, 10])
    shape: Dims = [batch, 8, 10, 10]
    boxes: Dims = [batch, "boxes", 6]
    attrs: dict[str, Any] = {"domain": "my.dom", "mode": "fast", "sizes": [1, 2]}
    y = b.x
    if where == "start":
        y = b.op("MyOp", y, out="alien", **attrs)
    y = b.op("Relu", b.conv(b.conv(y, 8, 12, 3, pads=1), 12, 8, out="before"), out="relu")
    if where != "start":
        y = b.op("MyOp", y, b.weight(3), out="alien", **attrs)
    if where == "middle":
        y = b.op("Sigmoid", b.conv(b.conv(y, 8, 12, 3, pads=1, out="behind"), 12, 8), out="y")
    graph = helper.make_graph(
        b.nodes,
        "g",
        [helper.make_tensor_value_info(b.x, TensorProto.FLOAT, [batch, 8, 10, 10])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, boxes if where == "end" else shape)],
        b.initializers,
    )
    if declared and where != "end":
        graph.value_info.append(helper.make_tensor_value_info("alien", TensorProto.FLOAT, shape))
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("my.dom", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def sabotaged(model: onnx.ModelProto, weight: int) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = changed.graph.initializer[weight]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[np.abs(values).argmax()] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return changed


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("where", ["start", "middle", "end"])
@pytest.mark.parametrize("batch", [1, "n"])
def test_every_sabotaged_weight_is_noticed(where: str, declared: bool, batch: int | str) -> None:
    model = with_foreign(where, declared, batch)
    same = verify(model, model)
    assert same.ok, same.lines()
    assert "my.dom:MyOp ('alien')" in same.notes[0]
    for weight in range(len(model.graph.initializer)):
        wrong = verify(model, sabotaged(model, weight))
        assert not wrong.ok, model.graph.initializer[weight].name
        assert wrong.lines()[-1].startswith("NOT the same")


def test_what_is_compared_and_what_is_not_is_said() -> None:
    middle = verify(with_foreign(), with_foreign())
    assert [d.name for d in middle.outputs] == ["y", "relu"]
    assert middle.random_inputs == 6
    assert "what is behind 'alien' was compared on random values of it" in middle.notes
    undeclared = verify(with_foreign(declared=False), with_foreign(declared=False))
    assert [d.name for d in undeclared.outputs] == ["relu"]
    assert "3 nodes from 'behind' on" in undeclared.notes[1]
    assert undeclared.notes[-1] == (
        "not compared by running: output 'y'; what goes into it was: 'relu'"
    )
    nothing = verify(with_foreign("start", False), with_foreign("start", False))
    assert (nothing.ok, nothing.outputs, nothing.random_inputs) == (True, (), 0)
    assert "nothing of it can be run" in nothing.lines()[-1]


@pytest.mark.parametrize("change", ["attribute", "name", "input", "gone"])
def test_the_operator_itself_must_stay_as_it_is(change: str) -> None:
    model, changed = with_foreign(), with_foreign()
    node = next(n for n in changed.graph.node if n.domain)
    if change == "attribute":
        node.attribute[0].CopyFrom(helper.make_attribute(node.attribute[0].name, "slow"))
    elif change == "name":
        node.op_type = "YourOp"
    elif change == "input":
        node.input[0] = "before"
    else:
        node.CopyFrom(helper.make_node("Relu", ["relu"], ["alien"]))
    result = verify(model, changed)
    assert not result.valid
    assert "MyOp (alien)" in result.failure()


def test_names_documentation_and_order_of_attributes_do_not_count() -> None:
    model, changed = with_foreign("end"), with_foreign("end")
    node = changed.graph.node[-1]
    node.name, node.doc_string = "other", "text"
    attributes = list(node.attribute)[::-1]
    copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in attributes]
    del node.attribute[:]
    node.attribute.extend(copies)
    assert verify(model, changed).ok


def test_a_rewrite_where_nothing_can_be_run_is_not_verified() -> None:
    model, changed = with_foreign(declared=False), with_foreign(declared=False)
    x = changed.graph.node[-1].input[0]  # two nodes that compute what one did
    del changed.graph.node[-1]
    for op, source, out in (("Identity", x, "same"), ("Sigmoid", "same", "y")):
        changed.graph.node.append(helper.make_node(op, [source], [out]))
    result = verify(model, changed)
    assert not result.ok
    assert "Sigmoid (y) is not the same, and cannot be compared by running" in result.failure()
    fed = with_foreign()
    del changed.graph.value_info[:]
    changed.graph.value_info.extend(fed.graph.value_info)
    assert verify(fed, changed).ok  # with a declared shape it can be run


@pytest.mark.parametrize("batch", [1, "n"])
def test_rows_of_real_data_are_compared_too(batch: int | str, tmp_path: Path) -> None:
    model = with_foreign(batch=batch)
    rows = np.random.default_rng(0).standard_normal((3, 8, 10, 10)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    data = load_calibration(tmp_path / "rows.npy", contract(model)[0])
    result = verify(model, model, calibration=data)
    assert result.ok
    assert result.calibration_rows == 3
    assert not verify(model, sabotaged(model, 5), calibration=data).ok


def test_a_function_and_a_branch_with_a_foreign_operator_inside_are_foreign() -> None:
    header = '<ir_version: 8, opset_import: ["" : 17, "my.dom" : 1, "local" : 1]>'
    function = """<domain: "local", opset_import: ["" : 17, "my.dom" : 1]>
        wrap (a) => (b) { c = Relu(a) b = my.dom.MyOp(c) }"""
    calling: onnx.ModelProto = onnx.parser.parse_model(
        f"{header} g (float[1, 4] x) => (float[1, 4] y)"
        f"{{ h = Sigmoid(x) y = local.wrap(h) }} {function}"
    )
    result = verify(calling, calling)
    assert result.ok
    assert [d.name for d in result.outputs] == ["h"]
    branching: onnx.ModelProto = onnx.parser.parse_model(
        f"""{header} g (float[1, 4] x, bool c) => (float[1, 4] y) {{
            h = Sigmoid(x)
            k = Tanh(x)
            y = If (c) <
                then_branch = one () => (float[1, 4] t) {{ t = my.dom.MyOp(h) }},
                else_branch = two () => (float[1, 4] e) {{ e = Relu(k) }}>
        }}"""
    )
    result = verify(branching, branching)
    assert result.ok
    assert {d.name for d in result.outputs} == {"h", "k"}
    changed = onnx.ModelProto()
    changed.CopyFrom(branching)
    changed.graph.node[1].op_type = "Sigmoid"
    assert not verify(branching, changed).ok


def test_operators_of_onnxruntime_itself_are_run() -> None:
    model: onnx.ModelProto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "my.dom" : 1]>
        g (float[1, 4] x) => (float[1, 4] y) {
            h = com.microsoft.Gelu(x)
            y = my.dom.MyOp(h)
        }"""
    )
    result = verify(model, model)
    assert [d.name for d in result.outputs] == ["h"]


def test_models_that_cannot_run_for_other_reasons_stay_refused() -> None:
    model: onnx.ModelProto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "my.dom" : 1]>
        g (bfloat16[1, 4] x) => (bfloat16[1, 4] y) {
            h = Sigmoid(x)
            y = my.dom.MyOp(h)
        }"""
    )
    with pytest.raises(UnsupportedError):
        verify(model, model)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("where", ["start", "middle", "end"])
def test_what_is_around_it_is_rewritten_and_verified(where: str, declared: bool) -> None:
    model = with_foreign(where, declared)
    if where == "start" and not declared:  # no shape is known anywhere
        with pytest.raises(UnsupportedError, match=r"'alien' is not static.*MyOp"):
            pipeline.optimize(model)
        return
    result = pipeline.optimize(model, passes=["merge-linear-convs"])
    checkable = 1 + declared if where == "middle" else 1
    assert len(result.recipe.candidate.decisions) == checkable
    assert result.verification.ok
    assert any("my.dom:MyOp" in warning for warning in result.warnings)
    alien = [n for n in result.model.graph.node if n.domain]
    assert [n.op_type for n in alien] == ["MyOp"]
    hidden = [m for m in result.misses if "could not be checked" in m.reason]
    assert bool(hidden) == (not declared and where != "end")


def test_optimize_says_on_stderr_what_was_not_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(with_foreign("end"), path)
    monkeypatch.setattr("sys.argv", ["onnxnas", "optimize", str(path), "-o", str(out)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    stderr = capfd.readouterr().err
    assert "my.dom:MyOp ('alien')" in stderr
    assert verify(load_model(path), load_model(out)).ok
