"""Every operator rule: channels followed exactly, or pinned with the node's name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from channel_tools import resized
from models import ModelBuilder
from onnx import TensorProto, helper
from oracle import assert_same_outputs

from onnxnas.channels import NEW
from onnxnas.coupling import Coupling, Group
from onnxnas.graph import from_model

C = 6
Wire = Callable[[ModelBuilder, str], str]


def ints(b: ModelBuilder, *values: int) -> str:
    return b.const(np.asarray(values, np.int64))


def floats(b: ModelBuilder, *values: float) -> str:
    return b.const(np.asarray(values, np.float32))


def batch_norm(b: ModelBuilder, x: str) -> str:
    variance = b.const(b.rng.uniform(0.5, 2, C).astype(np.float32))
    return b.op("BatchNormalization", x, b.weight(C), b.weight(C), b.weight(C), variance)


def squeeze_excite(b: ModelBuilder, x: str) -> str:
    s = b.op("Relu", b.conv(b.op("GlobalAveragePool", x), C, 3))
    return b.op("Mul", x, b.op("HardSigmoid", b.conv(s, 3, C)))


def split(b: ModelBuilder, x: str) -> str:
    left, right = b.name("left"), b.name("right")
    b.nodes.append(helper.make_node("Split", [x, ints(b, 2, C - 2)], [left, right], axis=1))
    return b.op("Concat", b.op("Relu", right), left, axis=-3)


def split_along_height(b: ModelBuilder, x: str) -> str:
    top, bottom = b.name("top"), b.name("bottom")
    b.nodes.append(helper.make_node("Split", [x], [top, bottom], axis=2))
    return b.op("Concat", bottom, top, axis=2)


def transposed_conv(b: ModelBuilder, x: str) -> str:
    y = b.op("ConvTranspose", x, b.weight(C, 4, 2, 2), b.weight(4), strides=[2, 2])
    return b.conv(y, 4, C)


# name: (opset, what lies between two convolutions of 6 channels on an 8 x 8 map)
FOLLOWED: dict[str, tuple[int, Wire]] = {
    "relu": (9, lambda b, x: b.op("Relu", x)),
    "clip-attributes": (9, lambda b, x: b.op("Clip", x, min=0.0, max=6.0)),
    "clip-inputs": (13, lambda b, x: b.op("Clip", x, floats(b, 0.1), "")),
    "sigmoid": (13, lambda b, x: b.op("Sigmoid", x)),
    "identity-dropout": (13, lambda b, x: b.op("Dropout", b.op("Identity", x))),
    "prelu": (13, lambda b, x: b.op("PRelu", x, b.weight(C, 1, 1))),
    "prelu-shared": (13, lambda b, x: b.op("PRelu", x, b.weight(1))),
    "batch-norm": (9, batch_norm),
    "batch-norm-15": (15, batch_norm),
    "add-constant": (13, lambda b, x: b.op("Add", x, b.weight(C, 1, 1))),
    "mul-constant": (13, lambda b, x: b.op("Mul", b.weight(1, C, 1, 1), x)),
    "sub-from-scalar": (13, lambda b, x: b.op("Sub", floats(b, 1.0), x)),
    "div-constant": (13, lambda b, x: b.op("Div", x, b.weight(C, 1, 1, scale=9.0))),
    "add-map-constant": (13, lambda b, x: b.op("Add", x, b.weight(1, C, 8, 8))),
    "hard-swish": (
        11,
        lambda b, x: b.op(
            "Div",
            b.op("Mul", x, b.op("Clip", b.op("Add", x, floats(b, 3)), floats(b, 0), floats(b, 6))),
            floats(b, 6),
        ),
    ),
    "square": (13, lambda b, x: b.op("Pow", x, floats(b, 2.0))),
    "residual": (13, lambda b, x: b.op("Add", x, b.conv(x, C, C))),
    "residual-3x3": (13, lambda b, x: b.op("Add", b.conv(x, C, C, 3, pads=1), x)),
    "own-double": (13, lambda b, x: b.op("Add", x, x)),
    "squeeze-excite": (13, squeeze_excite),
    "spatial-attention": (13, lambda b, x: b.op("Mul", x, b.op("Sigmoid", b.conv(x, C, 1)))),
    "depthwise": (13, lambda b, x: b.depthwise(x, C)),
    "depthwise-dilated": (13, lambda b, x: b.depthwise(x, C, dilations=[2, 2], pads=2)),
    "depthwise-multiplier": (
        13,
        lambda b, x: b.conv(
            b.op("Relu", b.conv(x, C, 2 * C, 3, group=C, pads=[0, 1, 2, 1])), 2 * C, C
        ),
    ),
    "same-upper": (13, lambda b, x: b.depthwise(x, C, auto_pad="SAME_UPPER")),
    "transposed-conv": (13, transposed_conv),
    "max-pool": (13, lambda b, x: b.op("MaxPool", x, kernel_shape=[2, 2])),
    "average-pool": (13, lambda b, x: b.op("AveragePool", x, kernel_shape=[3, 3])),
    "global-pool": (13, lambda b, x: b.op("GlobalAveragePool", x)),
    "reduce-mean": (13, lambda b, x: b.op("ReduceMean", x, axes=[2, -1])),
    "reduce-mean-18": (18, lambda b, x: b.op("ReduceMean", x, ints(b, 2, 3))),
    "reduce-squeeze": (
        13,
        lambda b, x: b.op(
            "Unsqueeze", b.op("ReduceMean", x, axes=[2, 3], keepdims=0), ints(b, -1, 2)
        ),
    ),
    "squeeze-11": (
        11,
        lambda b, x: b.op(
            "Unsqueeze", b.op("Squeeze", b.op("GlobalMaxPool", x), axes=[2, 3]), axes=[2, 3]
        ),
    ),
    "reshape-spatial": (13, lambda b, x: b.op("Reshape", x, ints(b, -1, C, 4, 16))),
    "reshape-copied": (13, lambda b, x: b.op("Reshape", x, ints(b, 0, 0, 16, -1))),
    "reshape-inferred": (13, lambda b, x: b.op("Reshape", x, ints(b, 0, -1, 16, 4))),
    "pad": (11, lambda b, x: b.op("Pad", x, ints(b, 0, 0, 1, 1, 0, 0, 2, 0), floats(b, 0.5))),
    "pad-attribute": (9, lambda b, x: b.op("Pad", x, pads=[0, 0, 1, 1, 0, 0, 2, 0], mode="edge")),
    "pad-axes": (18, lambda b, x: b.op("Pad", x, ints(b, 1, 2), "", ints(b, 3))),
    "resize-scales": (11, lambda b, x: b.op("Resize", x, floats(b), floats(b, 1, 1, 2, 2))),
    "resize-sizes": (13, lambda b, x: b.op("Resize", x, "", "", ints(b, 1, C, 12, 12))),
    "upsample": (9, lambda b, x: b.op("Upsample", x, floats(b, 1, 1, 2, 2))),
    "expand": (
        13,
        lambda b, x: b.op("Expand", b.op("GlobalAveragePool", x), ints(b, 1, C, 3, 3)),
    ),
    "transpose-spatial": (13, lambda b, x: b.op("Transpose", x, perm=[0, 1, 3, 2])),
    "split": (13, split),
    "split-height": (13, split_along_height),
    "slice": (
        13,
        lambda b, x: b.op(
            "Concat",
            b.op("Slice", x, ints(b, 4), ints(b, 999), ints(b, -3)),
            b.op("Relu", b.op("Slice", x, ints(b, 0, 0), ints(b, 4, 99), ints(b, 1, 2))),
            axis=1,
        ),
    ),
    "slice-9": (9, lambda b, x: b.op("Slice", x, starts=[1], ends=[7], axes=[2])),
    "concat-twice": (13, lambda b, x: b.conv(b.op("Concat", x, b.op("Neg", x), axis=1), 2 * C, C)),
    "concat-constant": (
        13,
        lambda b, x: b.conv(b.op("Concat", b.weight(1, 2, 8, 8), x, axis=1), C + 2, C),
    ),
    "cast": (
        13,
        lambda b, x: b.op(
            "Cast", b.op("Cast", x, to=TensorProto.DOUBLE), to=TensorProto.FLOAT
        ),
    ),
}  # fmt: skip


def network(opset: int, wire: Wire) -> onnx.ModelProto:
    b = ModelBuilder([1, 3, 8, 8], opset=opset)
    y = wire(b, b.conv(b.x, 3, C, 3, pads=1, out="first"))
    return b.build(b.conv(y, C, 5, out="last"), check=False)


def groups_of(model: onnx.ModelProto, tensor: str) -> list[Group]:
    """All groups on a tensor's channel axis."""
    groups = Coupling.of(from_model(model)).groups
    return [g for g in groups if any(a.tensor.name == tensor for a in g.tensors)]


@pytest.mark.parametrize("name", FOLLOWED)
def test_channels_can_be_reordered_and_padded(name: str) -> None:
    model = network(*FOLLOWED[name])
    rng = np.random.default_rng(1)
    found = groups_of(model, "first")
    result = model
    for group in found:
        assert not group.pins
        assert not group.unpaddable
        assert group.name, "every part is some tensor"
        order = rng.permutation(group.size).tolist()
        result = resized(result, group.name, [NEW, *order[:2], NEW, NEW, *order[2:], NEW])
    weight = next(n for n in result.graph.node if n.output[0] == "first").input[1]
    (width,) = (w.dims[0] for w in result.graph.initializer if w.name == weight)
    assert width == C + 4 * len(found)
    assert_same_outputs(model, result)


def shuffle(b: ModelBuilder, x: str) -> str:
    y = b.op("Reshape", x, ints(b, 1, 2, C // 2, 8, 8))
    y = b.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    return b.op("Reshape", y, ints(b, 1, C, 8, 8))


def conditional(b: ModelBuilder, x: str) -> str:
    bodies = {
        key: helper.make_graph(
            [helper.make_node("Neg", [x], [f"{key}_y"])],
            key,
            [],
            [helper.make_tensor_value_info(f"{key}_y", TensorProto.FLOAT, [1, C, 8, 8])],
        )
        for key in ("then_branch", "else_branch")
    }
    return b.op("If", b.const(np.asarray(True)), **bodies)


def shared_weight(b: ModelBuilder, x: str) -> str:
    w = b.weight(C, C, 1, 1)
    return b.op("Conv", b.op("Relu", b.op("Conv", x, w)), w)


def computed_weight(b: ModelBuilder, x: str) -> str:
    return b.op("Conv", x, b.op("Neg", b.weight(C, C, 1, 1)))


PINNED: dict[str, tuple[Wire, str]] = {
    "grouped": (lambda b, x: b.conv(x, C, C, group=2, out="y"), "Conv 'y' is a grouped conv"),
    "shared-weight": (shared_weight, "shares its weight"),
    "computed-weight": (computed_weight, "has a computed weight"),
    "softmax": (lambda b, x: b.op("Softmax", x, axis=1, out="y"), "Softmax 'y' may mix channels"),
    "reduce-channels": (
        lambda b, x: b.op("Mul", x, b.op("ReduceMean", x, axes=[1], out="y")),
        "ReduceMean 'y' is not over spatial axes only",
    ),
    "shuffle": (shuffle, "rearranges channels"),
    "transpose": (
        lambda b, x: b.op("Transpose", b.op("Transpose", x, perm=[0, 2, 3, 1], out="y"),
                          perm=[0, 3, 1, 2]),
        "Transpose 'y' moves the channel axis",
    ),
    "space-to-depth": (
        lambda b, x: b.op("SpaceToDepth", x, blocksize=2, out="y"), "SpaceToDepth 'y' may mix"
    ),
    "pad-channels": (
        lambda b, x: b.op("Pad", x, ints(b, 0, 1, 0, 0, 0, 0, 0, 0)), "pads the channel axis"
    ),
    "slice-steps": (
        lambda b, x: b.op("Slice", x, ints(b, 0), ints(b, 9), ints(b, 1), ints(b, 2)),
        "takes channels in steps",
    ),
    "subgraph": (conditional, "a subgraph reads 'first'"),
    "shape": (
        lambda b, x: b.op("Reshape", x, b.op("Shape", x, out="y")), "Shape 'y'"
    ),
    "height-as-channels": (
        lambda b, x: b.op("Add", x, b.op("ReduceMean", x, axes=[0], keepdims=0)), "ReduceMean"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PINNED)
def test_pinned_with_a_reason(name: str) -> None:
    wire, reason = PINNED[name]
    b = ModelBuilder([1, 3, 8, 8])
    y = wire(b, b.conv(b.x, 3, C, 3, pads=1, out="first"))
    (group,) = groups_of(b.build(b.op("Relu", y), check=False), "first")
    assert any(reason in pin for pin in group.pins), group.pins


@pytest.mark.parametrize(
    "wire",
    [
        lambda b, x: b.op("Reciprocal", x),
        lambda b, x: b.op("Log", x),
        lambda b, x: b.op("Sqrt", x),
        lambda b, x: b.op("Pow", x, floats(b, -1.0)),
        lambda b, x: b.op("Div", b.conv(b.x, 3, C, 3, pads=1), x),
    ],
)
def test_zero_channels_may_not_reach_what_is_not_finite_at_zero(wire: Wire) -> None:
    (group,) = groups_of(network(13, wire), "first")
    assert not group.pins
    assert "finite" in group.unpaddable[0]


def test_operators_of_other_domains_pin_even_with_a_known_name() -> None:
    model = network(13, lambda b, x: b.op("Relu", x, out="y"))
    next(n for n in model.graph.node if n.op_type == "Relu").domain = "my.ops"
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    (group,) = groups_of(model, "first")
    assert group.pins == ("Relu 'y' may mix channels or depend on their number",)


def test_flatten_repeats_each_channel_by_its_map() -> None:
    b = ModelBuilder(["n", 3, 8, 8])
    y = b.op("Flatten", b.op("Relu", b.conv(b.x, 3, C, 5, out="first")))
    y = b.op("Gemm", y, b.weight(C * 16, 7), b.weight(7), out="gemm")
    model = b.build(b.op("Gemm", y, b.weight(5, 7), b.weight(1, 5), transB=1, alpha=0.5, beta=2.0))
    (group,) = groups_of(model, "first")
    (use,) = group.consumers
    assert [(run.start, run.repeat) for run in use.runs] == [(0, 16)]
    result = resized(model, "first", [3, NEW, 0, 1, 2, 4, 5])
    assert_same_outputs(model, resized(result, "gemm", [NEW, *range(6, -1, -1)]))
