"""Tiny models for the tests, built node by node with random, non-symmetric weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


class ModelBuilder:
    """Collects nodes and random weights; every method returns the new tensor's name.

    >>> b = ModelBuilder([1, 3, 8, 8])
    >>> y = b.op("Relu", b.conv(b.x, 3, 16, 3, pads=1))
    >>> model = b.build(y)
    """

    def __init__(
        self, shape: Sequence[int | str], opset: int = 13, seed: int = 0, x: str = "x"
    ) -> None:
        self.x, self.shape, self.opset = x, list(shape), opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._count = 0

    def name(self, hint: str) -> str:
        self._count += 1
        return f"{hint}_{self._count}"

    def const(self, values: NDArray[Any], name: str | None = None) -> str:
        name = name or self.name("const")
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """Normal values around 0.1, so that no symmetry hides a mistake."""
        fan_in = max(1, int(np.prod(shape[1:]))) if len(shape) > 1 else 4
        values = self.rng.standard_normal(shape) * (scale or fan_in**-0.5) + 0.1 * fan_in**-0.5
        return self.const(values.astype(np.float32), self.name("w"))

    def op(self, op_type: str, *inputs: str, out: str | None = None, **attrs: Any) -> str:
        out = out or self.name(op_type.lower())
        self.nodes.append(helper.make_node(op_type, list(inputs), [out], **attrs))
        return out

    def conv(
        self,
        x: str,
        cin: int,
        cout: int,
        k: int = 1,
        *,
        group: int = 1,
        bias: bool = True,
        stride: int = 1,
        pads: int | Sequence[int] = 0,
        out: str | None = None,
        **attrs: Any,
    ) -> str:
        inputs = [x, self.weight(cout, cin // group, k, k)]
        if bias:
            inputs.append(self.weight(cout))
        padding = [pads] * 4 if isinstance(pads, int) else list(pads)
        if "auto_pad" not in attrs:
            attrs["pads"] = padding
        return self.op(
            "Conv",
            *inputs,
            out=out,
            group=group,
            strides=[stride] * 2,
            kernel_shape=[k] * 2,
            **attrs,
        )

    def depthwise(self, x: str, channels: int, k: int = 3, **kw: Any) -> str:
        kw.setdefault("pads", k // 2)
        return self.conv(x, channels, channels, k, group=channels, **kw)

    def ibn(self, x: str, cin: int, hidden: int, cout: int, k: int = 3, stride: int = 1) -> str:
        """Inverted bottleneck with Relu, with a residual where shapes allow."""
        y = self.op("Relu", self.conv(x, cin, hidden))
        y = self.op("Relu", self.depthwise(y, hidden, k, stride=stride))
        y = self.conv(y, hidden, cout)
        return self.op("Add", x, y) if stride == 1 and cin == cout else y

    def build(self, *outputs: str, check: bool = True) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(self.x, TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, None) for y in outputs],
            self.initializers,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        del model.graph.value_info[:]
        if check:
            onnx.checker.check_model(model, full_check=True)
        return model


def zoo() -> dict[str, onnx.ModelProto]:
    """One tiny model for every structure a pass must not trip over, by name."""
    made = {}
    for build in (
        plain_convs, inverted_bottlenecks, separable_convs, linear_pairs, odd_widths, grouped_convs,
        dilated_and_asymmetric, same_padding, dynamic_batch, dynamic_size, dead_channels,
        shared_weights, outputs_in_the_middle, split_and_concat, squeeze_excite, classifier_head,
        upsampling, class_map, parametric_activations, wide_layers, only_elementwise, oldest_opset,
        newest_opset,
    ):  # fmt: skip
        made[build.__name__] = build()
    return made


def plain_convs() -> onnx.ModelProto:
    b = ModelBuilder([1, 3, 9, 9])
    x = b.op("Relu", b.conv(b.x, 3, 16, 3, pads=1, stride=2))
    x = b.op("Relu", b.conv(x, 16, 24, 3, pads=1, bias=False))
    return b.build(b.conv(x, 24, 8))


def inverted_bottlenecks() -> onnx.ModelProto:
    b = ModelBuilder([1, 3, 10, 10])
    x = b.op("Relu", b.conv(b.x, 3, 8, 3, pads=1, stride=2))
    return b.build(b.ibn(b.ibn(b.ibn(x, 8, 32, 8), 8, 48, 12, stride=2), 12, 24, 12, k=5))


def separable_convs() -> onnx.ModelProto:
    b = ModelBuilder([1, 3, 8, 8])
    x = b.op("Relu", b.conv(b.x, 3, 16, 3, pads=1))
    for channels, stride in ((16, 1), (24, 2)):
        x = b.op("Relu", b.depthwise(x, channels, stride=stride))
        x = b.op("Relu", b.conv(x, channels, 24))
    return b.build(x)


def linear_pairs() -> onnx.ModelProto:
    """1x1 into 1x1 into a padded depthwise into 1x1, nothing between."""
    b = ModelBuilder([1, 6, 7, 8])
    x = b.conv(b.conv(b.x, 6, 10), 10, 12)
    return b.build(b.op("Relu", b.conv(b.depthwise(x, 12), 12, 5)))


def odd_widths() -> onnx.ModelProto:
    b = ModelBuilder([1, 3, 8, 8])
    x = b.op("Relu", b.conv(b.x, 3, 13, 3, pads=1))
    x = b.op("Add", x, b.op("Relu", b.conv(x, 13, 13, 3, pads=1)))
    return b.build(b.conv(b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 13, 7))


def grouped_convs() -> onnx.ModelProto:
    b = ModelBuilder([1, 16, 7, 7])
    x = b.op("Relu", b.conv(b.x, 16, 32, 3, group=4, pads=1))
    x = b.op("Relu", b.conv(x, 32, 64, 3, group=32, pads=1))  # channel multiplier 2
    return b.build(b.conv(x, 64, 16, 1, group=2))


def dilated_and_asymmetric() -> onnx.ModelProto:
    b = ModelBuilder([1, 4, 13, 11])
    x = b.op("Relu", b.conv(b.x, 4, 8, 3, pads=(0, 1, 2, 1), stride=2))
    x = b.op("Relu", b.depthwise(x, 8, pads=2, dilations=[2, 2]))
    return b.build(b.conv(x, 8, 6, 3, pads=(1, 3, 2, 0), dilations=[1, 2]))


def same_padding() -> onnx.ModelProto:
    b = ModelBuilder([1, 4, 10, 9])
    x = b.op("Relu", b.conv(b.x, 4, 8, 3, stride=2, auto_pad="SAME_UPPER"))
    x = b.op("Relu", b.depthwise(x, 8, stride=2, auto_pad="SAME_LOWER"))
    return b.build(b.conv(x, 8, 6, auto_pad="VALID"))


def dynamic_batch() -> onnx.ModelProto:
    b = ModelBuilder(["n", 3, 8, 8])
    return b.build(b.ibn(b.op("Relu", b.conv(b.x, 3, 8, 3, pads=1)), 8, 24, 8))


def dynamic_size() -> onnx.ModelProto:
    b = ModelBuilder([1, 3, "h", "w"])
    x = b.depthwise(b.conv(b.x, 3, 8), 8)
    return b.build(b.op("GlobalAveragePool", b.op("Relu", b.conv(x, 8, 8))))


def dead_channels() -> onnx.ModelProto:
    """Channels nothing can reach (zero filters) and channels nobody reads (zero columns)."""
    b = ModelBuilder([1, 3, 8, 8])
    first, second = b.weight(16, 3, 3, 3), b.weight(12, 16, 1, 1)
    for name, where in ((first, np.s_[[2, 7]]), (second, np.s_[:, [4, 5, 11]])):
        tensor = next(t for t in b.initializers if t.name == name)
        values = numpy_helper.to_array(tensor).copy()
        values[where] = 0
        tensor.CopyFrom(numpy_helper.from_array(values, name))
    x = b.op("Relu", b.op("Conv", b.x, first, b.weight(16), pads=[1] * 4))
    return b.build(b.op("Relu", b.op("Conv", x, second)))


def shared_weights() -> onnx.ModelProto:
    b = ModelBuilder([1, 8, 7, 7])
    depthwise, pointwise, bias = b.weight(8, 1, 3, 3), b.weight(8, 8, 1, 1), b.weight(8)
    x = b.x
    for _ in range(2):
        x = b.op("Relu", b.op("Conv", x, depthwise, bias, group=8, pads=[1] * 4))
        x = b.op("Relu", b.op("Conv", x, pointwise, bias))
    return b.build(x)


def outputs_in_the_middle() -> onnx.ModelProto:
    b = ModelBuilder([1, 3, 8, 8])
    stem = b.conv(b.x, 3, 8)
    features = b.op("Relu", b.depthwise(stem, 8))
    return b.build(b.conv(features, 8, 4), stem, features)


def split_and_concat() -> onnx.ModelProto:
    b = ModelBuilder([1, 3, 8, 8])
    x = b.op("Relu", b.conv(b.x, 3, 16))
    left, right = b.name("left"), b.name("right")
    sizes = b.const(np.array([6, 10], np.int64))
    b.nodes.append(helper.make_node("Split", [x, sizes], [left, right], axis=1))
    left = b.op("Relu", b.conv(left, 6, 10, 3, pads=1))
    x = b.op("Concat", left, b.depthwise(right, 10), axis=1)
    return b.build(b.conv(x, 20, 8))


def squeeze_excite() -> onnx.ModelProto:
    b = ModelBuilder([1, 3, 8, 8])
    x = b.op("Relu", b.depthwise(b.conv(b.x, 3, 16), 16))
    scale = b.op("Relu", b.conv(b.op("GlobalAveragePool", x), 16, 4))
    return b.build(b.conv(b.op("Mul", x, b.op("HardSigmoid", b.conv(scale, 4, 16))), 16, 8))


def classifier_head() -> onnx.ModelProto:
    b = ModelBuilder(["n", 3, 8, 8])
    x = b.op("Relu", b.conv(b.x, 3, 12, 3, pads=1, stride=2))
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    return b.build(b.op("Softmax", b.op("Gemm", x, b.weight(10, 12), b.weight(10), transB=1)))


def wide_layers() -> onnx.ModelProto:
    b = ModelBuilder([1, 3, 4, 4])
    x = b.conv(b.op("Relu", b.conv(b.x, 3, 128, 3, pads=1)), 128, 160, bias=False)
    x = b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", x)))
    return b.build(b.op("Gemm", x, b.weight(160, 128), b.weight(128)))


def upsampling() -> onnx.ModelProto:
    b = ModelBuilder([1, 3, 8, 8])
    x = b.op("Relu", b.conv(b.x, 3, 8, 3, pads=1, stride=2))
    scales = b.const(np.array([1, 1, 2, 2], np.float32))
    up = b.op("Resize", x, "", scales, mode="nearest")
    return b.build(b.op("Concat", b.x, b.op("Sigmoid", b.conv(up, 8, 4)), axis=1))


def class_map() -> onnx.ModelProto:
    """The class of each pixel, by scores enlarged by repetition."""
    b = ModelBuilder([1, 3, 8, 8])
    x = b.conv(b.op("Relu", b.conv(b.x, 3, 8, 3, pads=1, stride=2)), 8, 5)
    x = b.op("Resize", x, "", b.const(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    return b.build(b.op("Cast", b.op("ArgMax", x, axis=1, keepdims=0), to=TensorProto.FLOAT))


def parametric_activations() -> onnx.ModelProto:
    b = ModelBuilder([1, 3, 8, 8])
    x = b.op("PRelu", b.conv(b.x, 3, 10, 3, pads=1), b.weight(10, 1, 1))
    x = b.op("LeakyRelu", b.depthwise(x, 10), alpha=0.1)
    low, high = (b.const(np.array(bound, np.float32)) for bound in (0, 6))
    return b.build(b.op("Clip", b.conv(x, 10, 6), low, high))


def only_elementwise() -> onnx.ModelProto:
    b = ModelBuilder([1, 4, 5, 5])
    return b.build(b.op("Add", b.op("Relu", b.x), b.op("Sigmoid", b.x)))


def oldest_opset() -> onnx.ModelProto:
    b = ModelBuilder([1, 3, 8, 8], opset=9)
    x = b.op("Clip", b.conv(b.x, 3, 12, 3, pads=1), min=0.0, max=6.0)
    return b.build(b.conv(b.op("Clip", b.depthwise(x, 12), min=0.0, max=6.0), 12, 8))


def newest_opset() -> onnx.ModelProto:
    b = ModelBuilder([1, 3, 8, 8], opset=22)
    return b.build(b.ibn(b.op("HardSwish", b.conv(b.x, 3, 8, 3, pads=1)), 8, 24, 8))
