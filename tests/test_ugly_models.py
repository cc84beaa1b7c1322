"""Valid files as they are found in the wild: the main job copes, and keeps what callers rely on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxnas
from onnxnas.graph import contract
from onnxnas.loading import external_files, load_model, save_model
from onnxnas.verify import verify

SHAPE = [1, 3, 16, 16]
Build = Callable[[], onnx.ModelProto]


def body(b: models.ModelBuilder, x: str, cin: int = 3) -> str:
    """A strided conv, then two with nothing between, which merge on every target."""
    x = b.op("Relu", b.conv(x, cin, 12, 3, pads=1, stride=2))
    return b.op("Relu", b.conv(b.conv(x, 12, 20, 3, pads=1), 20, 12))


def renamed(model: onnx.ModelProto, name: Callable[[int, str], str]) -> onnx.ModelProto:
    """The same model with other tensor names, and without node names."""
    names: dict[str, str] = {"": ""}
    graph = model.graph
    for node in graph.node:
        node.name = ""
        for names_of in (node.input, node.output):
            for i, old in enumerate(names_of):
                names_of[i] = names.setdefault(old, name(len(names), old))
    for value in [*graph.initializer, *graph.input, *graph.output]:
        value.name = names[value.name]
    return model


def assembled(
    b: models.ModelBuilder, outputs: dict[str, list[int]], **ports: Any
) -> onnx.ModelProto:
    """A model of given output shapes; `ports` are extra inputs or graph fields."""
    inputs = ports.pop("inputs", {b.x: b.shape})
    graph = helper.make_graph(
        b.nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        b.initializers,
        **ports,
    )
    imports = [helper.make_opsetid("", b.opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def old_file() -> onnx.ModelProto:
    """IR 3: weights are inputs too; Clip, Pad, Slice and Upsample in their opset 9 forms."""
    b = models.ModelBuilder(SHAPE, opset=9)
    x = b.op("Pad", b.x, pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="constant", value=0.0)
    x = b.op("Clip", body(b, b.op("Slice", x, starts=[1, 1], ends=[17, 17], axes=[2, 3])), max=6.0)
    scales = b.const(np.array([1, 1, 2, 2], np.float32))
    model = b.build(b.op("Upsample", x, scales, mode="nearest"))
    model.ir_version = 3
    for t in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    return model


def two_inputs_four_outputs() -> onnx.ModelProto:
    """Outputs in the middle, an input that is an output, a weight that is an output."""
    b = models.ModelBuilder(SHAPE)
    features = body(b, b.x)
    x = b.op("Add", b.conv(b.conv(features, 12, 20), 20, 8), "second")
    x = b.op("Relu", x)
    b.op("GlobalAveragePool", x, out="pooled")
    weight = b.initializers[0]
    outputs = {features: [1, 12, 8, 8], "pooled": [1, 8, 1, 1], "second": [1, 8, 8, 8]}
    inputs = {b.x: SHAPE, "second": [1, 8, 8, 8]}
    return assembled(b, outputs | {weight.name: list(weight.dims)}, inputs=inputs)


def odd_names() -> onnx.ModelProto:
    b = models.ModelBuilder(SHAPE)
    return renamed(b.build(body(b, b.x)), lambda i, old: f"слой {i}/a b;=@[0]\"'{old}")


def half_precision() -> onnx.ModelProto:
    b = models.ModelBuilder(SHAPE)
    model = b.build(body(b, b.x))
    for t in model.graph.initializer:
        t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def quantised() -> onnx.ModelProto:
    b = models.ModelBuilder(SHAPE)
    scale, zero = b.const(np.array(0.05, np.float32)), b.const(np.array(3, np.int8))
    x = b.x
    for cin, cout in ((3, 8), (8, 8)):
        weight = b.const(b.rng.integers(-127, 127, (cout, cin, 3, 3)).astype(np.int8))
        x = b.op("DequantizeLinear", b.op("QuantizeLinear", x, scale, zero), scale, zero)
        real = b.op(
            "DequantizeLinear",
            weight,
            b.const(np.array(0.01, np.float32)),
            b.const(np.array(0, np.int8)),
        )
        x = b.op("Relu", b.op("Conv", x, real, pads=[1] * 4))
    return b.build(b.conv(b.conv(x, 8, 20, 3), 20, 8))


def branch_that_reads_outer_tensors() -> onnx.ModelProto:
    b = models.ModelBuilder(SHAPE, opset=17)
    x = body(b, b.x)
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, [x] * count, [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name, op, count in (("then", "Relu", 1), ("else", "Mul", 2))
    }
    total = b.op("ReduceSum", b.x, keepdims=0)
    condition = b.op("Greater", total, b.const(np.array(0, np.float32)))
    return b.build(b.conv(b.op("If", condition, **branches), 12, 4))


def function() -> onnx.ModelProto:
    b = models.ModelBuilder(SHAPE, opset=17)
    b.op("Swish", body(b, b.x), out="swish", domain="local")
    y = b.conv("swish", 12, 4)
    nodes = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["c"])]
    imports = [helper.make_opsetid("", 17)]
    model = assembled(b, {y: [1, 4, 8, 8]})
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.functions.append(helper.make_function("local", "Swish", ["a"], ["c"], nodes, imports))
    return model


def sparse_weight() -> onnx.ModelProto:
    b = models.ModelBuilder(SHAPE)
    y = b.op("Add", body(b, b.x), "sparse")
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [2], [1.5, -2.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [2], [3, 5])
    sparse = helper.make_sparse_tensor(values, indices, [12, 1, 1])
    return assembled(b, {y: [1, 12, 8, 8]}, sparse_initializer=[sparse])


def empty_tensor() -> onnx.ModelProto:
    b = models.ModelBuilder(SHAPE)
    nothing = b.const(np.zeros((1, 0, 8, 8), np.float32))
    return b.build(b.conv(b.op("Concat", body(b, b.x), nothing, axis=1), 12, 4))


def exported_with_shape_arithmetic() -> onnx.ModelProto:
    b = models.ModelBuilder(["batch", *SHAPE[1:]])
    x = body(b, b.x)
    batch = b.op("Gather", b.op("Shape", x), b.const(np.array([0], np.int64)), axis=0)
    x = b.op("Reshape", x, b.op("Concat", batch, b.const(np.array([-1], np.int64)), axis=0))
    return b.build(b.op("Gemm", x, b.weight(7, 768), b.weight(7), transB=1))


def from_tensorflow() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 16, 16, 3])
    x = body(b, b.op("Transpose", b.x, perm=[0, 3, 1, 2]))
    x = b.op("Add", b.op("Transpose", x, perm=[0, 2, 3, 1]), b.weight(12))
    x = b.op("Relu", b.depthwise(b.op("Transpose", x, perm=[0, 3, 1, 2]), 12))
    x = b.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    return b.build(b.op("Softmax", b.op("Add", b.op("MatMul", x, b.weight(12, 6)), b.weight(6))))


def decoder() -> onnx.ModelProto:
    b = models.ModelBuilder(SHAPE)
    x = b.op("ConvTranspose", body(b, b.x), b.weight(12, 12, 2, 2), b.weight(12), strides=[2, 2])
    return b.build(b.conv(b.op("DepthToSpace", x, blocksize=2, mode="CRD"), 3, 3))


UGLY: list[Build] = [
    old_file, two_inputs_four_outputs, odd_names, half_precision, quantised,
    branch_that_reads_outer_tensors, function, sparse_weight, empty_tensor,
    exported_with_shape_arithmetic, from_tensorflow, decoder,
]  # fmt: skip


@pytest.mark.parametrize("build", UGLY)
@pytest.mark.parametrize("target", ["ethos-u55-128", "ethos-u85-512"])
def test_it_is_rewritten_verified_and_keeps_its_contract(
    build: Build, target: str, tmp_path: Path
) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(build(), path)
    result = onnxnas.optimize(path, target, passes=["merge-linear-convs"])
    result.write(out)
    original, written = load_model(path), load_model(out)
    assert contract(written) == contract(original)
    assert verify(original, written).ok
    merged = [d for d in result.recipe.candidate.decisions if d[0].startswith("merge-linear")]
    assert bool(merged) != (build is half_precision)  # rounding would show in merged weights


def test_weights_beside_the_model_stay_beside_it(tmp_path: Path) -> None:
    b = models.ModelBuilder(SHAPE)
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    save_model(b.build(body(b, b.x)), path, external=True)
    result = onnxnas.optimize(path, passes=["merge-linear-convs"])
    assert result.external
    result.write(out)
    assert external_files(out) == (tmp_path / "out.onnx.data",)
    assert verify(load_model(path), load_model(out)).ok
    assert not onnxnas.optimize(load_model(path), passes=[]).external
