"""One tiny network per operator form, by name: what lowering to TFLite must handle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from models import ModelBuilder as Builder
from onnx import helper

IMAGE = (1, 8, 10, 12)


@dataclass(frozen=True)
class Case:
    """A network's input shape, opset, and what builds it, returning its output's name."""

    body: Callable[[Builder], str]
    shape: Sequence[int] = IMAGE
    opset: int = 13

    def model(self) -> onnx.ModelProto:
        b = Builder(list(self.shape), self.opset)
        return b.build(self.body(b))


def ints(b: Builder, *values: int) -> str:
    return b.const(np.asarray(values, np.int64))


def number(b: Builder, value: float) -> str:
    return b.const(np.asarray(value, np.float32))


def scales(b: Builder, factor: float) -> str:
    return b.const(np.asarray([1, 1, factor, factor], np.float32))


def op(name: str, **attrs: Any) -> Callable[[Builder], str]:
    return lambda b: b.op(name, b.x, **attrs)


def binary(name: str, *constant: int) -> Callable[[Builder], str]:
    """With a constant of that shape, or without one with a second variable."""
    return lambda b: b.op(name, b.x, b.weight(*constant) if constant else b.op("Sigmoid", b.x))


def conv(cout: int, k: int, **attrs: Any) -> Callable[[Builder], str]:
    return lambda b: b.conv(b.x, int(b.shape[1]), cout, k, **attrs)


def deconv(k: int, **attrs: Any) -> Callable[[Builder], str]:
    return lambda b: b.op(
        "ConvTranspose", b.x, b.weight(8, 4, k, k), b.weight(4), strides=[2, 2], **attrs
    )


def clip(low: float | None, high: float | None) -> Callable[[Builder], str]:
    def body(b: Builder) -> str:
        bounds = ["" if v is None else number(b, v) for v in (low, high)]
        return b.op("Clip", b.x, *bounds)

    return body


def hard_swish(spelling: str) -> Callable[[Builder], str]:
    def body(b: Builder) -> str:
        x = b.conv(b.x, 8, 8)
        if spelling == "gate":
            return b.op("Mul", b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5), x)
        gate = b.op("Clip", b.op("Add", x, number(b, 3)), number(b, 0), number(b, 6))
        if spelling == "divide last":
            return b.op("Div", b.op("Mul", x, gate), number(b, 6))
        if spelling == "divide first":
            return b.op("Mul", x, b.op("Div", gate, number(b, 6)))
        return b.op("Mul", b.op("Mul", gate, x), number(b, 1 / 6))

    return body


def split(*sizes: int, **attrs: Any) -> Callable[[Builder], str]:
    def body(b: Builder) -> str:
        parts = [b.name("part"), b.name("part")]
        inputs = [b.x, *([ints(b, *sizes)] if sizes else [])]
        b.nodes.append(helper.make_node("Split", inputs, parts, axis=1, **attrs))
        return b.op("Concat", parts[1], parts[0], axis=1)

    return body


def resize(mode: str, where: str, factor: float = 2.0, **attrs: Any) -> Callable[[Builder], str]:
    return lambda b: b.op(
        "Resize",
        b.x,
        "",
        scales(b, factor),
        mode=mode,
        coordinate_transformation_mode=where,
        **attrs,
    )


def corners(size: int, mode: str = "linear", **attrs: Any) -> Callable[[Builder], str]:
    return lambda b: b.op(
        "Resize",
        b.x,
        "",
        "",
        ints(b, 1, 4, size, size),
        mode=mode,
        coordinate_transformation_mode="align_corners",
        **attrs,
    )


def reshaped(*shape: int) -> Callable[[Builder], str]:
    return lambda b: b.op("Reshape", b.x, ints(b, *shape))


def shuffle(b: Builder) -> str:
    y = b.op("Reshape", b.conv(b.x, 8, 8), ints(b, 1, 2, 4, 10, 12))
    return b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3, 4]), ints(b, 1, 8, 10, 12))


def attention(b: Builder) -> str:
    tokens = b.op("Transpose", b.op("Reshape", b.x, ints(b, 1, 8, 120)), perm=[0, 2, 1])
    query, key = (b.op("MatMul", tokens, b.weight(8, 8)) for _ in range(2))
    scores = b.op("MatMul", query, b.op("Transpose", key, perm=[0, 2, 1]))
    y = b.op("MatMul", b.op("Softmax", scores, axis=-1), tokens)
    return b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1]), ints(b, 1, 8, 10, 12))


def batch_normalization(b: Builder) -> str:
    parts = [b.weight(8), b.weight(8), b.weight(8), b.const(np.full(8, 1.3, np.float32))]
    return b.op("Relu", b.op("BatchNormalization", b.x, *parts))


def squeeze_excite(b: Builder) -> str:
    gate = b.op("HardSigmoid", b.conv(b.op("GlobalAveragePool", b.x), 8, 8))
    return b.op("Mul", b.x, gate)


def batch_of_four(b: Builder) -> str:
    y = b.op("GlobalAveragePool", b.op("Add", b.depthwise(b.x, 8), b.x))
    return b.op("Gemm", b.op("Flatten", y), b.weight(8, 5))


def lower_rank(b: Builder) -> str:
    return b.op("Add", b.x, b.op("Reshape", b.op("GlobalAveragePool", b.x), ints(b, 8, 1, 1)))


def head(b: Builder) -> str:
    y = b.op("Transpose", b.conv(b.x, 8, 12), perm=[0, 2, 3, 1])
    return b.op("Reshape", y, ints(b, 1, -1, 4))


SAME = {"pads": [1, 1, 1, 1]}
POOL = {"kernel_shape": [3, 3], "strides": [2, 2], **SAME}
ROWS = (3, 20)
SMALL = (1, 4, 5, 5)
TINY = (1, 8, 6, 7)

CASES: dict[str, Case] = {
    **{name: Case(op(name)) for name in (
        "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Exp", "Abs", "Neg", "HardSigmoid",
        "GlobalAveragePool", "GlobalMaxPool", "Identity",
    )},
    "HardSwish": Case(op("HardSwish"), opset=14),
    "Gelu": Case(op("Gelu"), opset=20),
    "conv same": Case(lambda b: b.op("Relu", b.conv(b.x, 8, 16, 3, pads=1))),
    "conv stride 2": Case(conv(16, 3, pads=1, stride=2)),
    "conv stride 2, odd": Case(conv(16, 3, pads=1, stride=2), (1, 8, 11, 13)),
    "conv stride 4": Case(conv(16, 5, pads=2, stride=4)),
    "pad, conv stride 4": Case(
        lambda b: b.conv(b.op("Pad", b.x, ints(b, 0, 0, 2, 2, 0, 0, 1, 1)), 8, 16, 5, stride=4)
    ),
    "conv asymmetric": Case(conv(16, 3, pads=[0, 2, 1, 0])),
    "conv dilated": Case(conv(16, 3, pads=2, dilations=[2, 2])),
    "conv grouped": Case(conv(16, 3, pads=1, group=2)),
    "conv SAME_UPPER": Case(conv(16, 3, stride=2, auto_pad="SAME_UPPER")),
    "conv SAME_LOWER": Case(conv(16, 3, stride=2, auto_pad="SAME_LOWER"), opset=9),
    "conv 1-D": Case(
        lambda b: b.op("Conv", b.x, b.weight(16, 8, 3), b.weight(16), pads=[1, 1]), (1, 8, 20)
    ),
    "depthwise": Case(lambda b: b.depthwise(b.x, 8)),
    "depthwise multiplier": Case(conv(24, 3, pads=1, group=8)),
    "depthwise dilated": Case(conv(8, 3, pads=2, group=8, dilations=[2, 2])),
    "deconv same": Case(deconv(4, **SAME), TINY),
    "deconv valid": Case(deconv(3), TINY),
    "deconv cropped": Case(deconv(3, **SAME), TINY),
    "deconv output padding": Case(deconv(3, output_padding=[1, 1], **SAME), TINY),
    "gemm": Case(lambda b: b.op("Gemm", b.x, b.weight(20, 7), b.weight(7)), ROWS),
    "gemm scaled": Case(
        lambda b: b.op("Gemm", b.x, b.weight(7, 20), b.weight(7), transB=1, alpha=2.0, beta=0.5),
        ROWS,
    ),
    "flatten gemm": Case(
        lambda b: b.op("Gemm", b.op("Flatten", b.x), b.weight(960, 7), b.weight(7))
    ),
    "matmul bias": Case(
        lambda b: b.op("Relu", b.op("Add", b.op("MatMul", b.x, b.weight(20, 7)), b.weight(7))),
        (1, 5, 20),
    ),
    "matmul": Case(lambda b: b.op("MatMul", b.x, b.op("Sigmoid", b.x)), (1, 2, 5, 5)),
    "attention": Case(attention),
    "batch normalization": Case(batch_normalization),
    "clip 0..6": Case(clip(0, 6)),
    "clip 0..6, opset 9": Case(op("Clip", min=0.0, max=6.0), opset=9),
    "clip 0..1": Case(clip(0, 1)),
    "clip both": Case(clip(-0.5, 0.7)),
    "clip above": Case(clip(None, 0.4)),
    "prelu": Case(binary("PRelu", 8, 1, 1)),
    **{f"{n} variable": Case(binary(n)) for n in ("Add", "Sub", "Mul", "Max", "Min")},
    **{f"{n} constant": Case(binary(n, 8, 1, 1)) for n in ("Add", "Sub", "Mul")},
    "constant first": Case(lambda b: b.op("Sub", b.weight(1, 8, 1, 1), b.x)),
    "divide": Case(
        lambda b: b.op("Div", b.x, b.const(np.linspace(0.5, 2, 8, dtype=np.float32)[:, None, None]))
    ),
    "square": Case(lambda b: b.op("Pow", b.x, number(b, 2))),
    "lower rank": Case(lower_rank),
    **{f"hard-swish, {s}": Case(hard_swish(s)) for s in (
        "divide last", "divide first", "multiply", "gate",
    )},
    "silu": Case(lambda b: b.op("Mul", b.x, b.op("Sigmoid", b.x))),
    "squeeze-excite": Case(squeeze_excite),
    "max pool": Case(op("MaxPool", kernel_shape=[2, 2], strides=[2, 2])),
    "max pool padded": Case(op("MaxPool", **POOL)),
    "max pool ceil": Case(
        op("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), (1, 8, 11, 13)
    ),
    "average pool": Case(op("AveragePool", kernel_shape=[3, 3], **SAME)),
    "average pool, pads counted": Case(op("AveragePool", count_include_pad=1, **POOL)),
    "mean of image": Case(op("ReduceMean", axes=[2, 3], keepdims=0)),
    "mean of image, opset 18": Case(
        lambda b: b.op("ReduceMean", b.x, ints(b, -2, -1)), opset=18
    ),
    "mean of channels": Case(op("ReduceMean", axes=[1])),
    "maximum of image": Case(op("ReduceMax", axes=[2, 3])),
    "sum of image": Case(lambda b: b.op("ReduceSum", b.x, ints(b, 2, 3))),
    "softmax": Case(op("Softmax", axis=1)),
    "softmax, opset 11": Case(op("Softmax"), (1, 10), 11),
    "arg-max": Case(lambda b: b.op("Cast", b.op("ArgMax", b.x, axis=1, keepdims=0), to=1)),
    "arg-max kept": Case(lambda b: b.op("Cast", b.op("ArgMax", b.x, axis=1), to=1)),
    "concat": Case(lambda b: b.op("Concat", b.x, b.op("Relu", b.x), axis=1)),
    "concat last": Case(lambda b: b.op("Concat", b.x, b.op("Relu", b.x), axis=-1)),
    "split": Case(split(3, 5)),
    "split, opset 11": Case(split(split=[2, 6]), opset=11),
    "split, opset 18": Case(split(num_outputs=2), opset=18),
    "slice": Case(
        lambda b: b.op("Slice", b.x, ints(b, 1, 2), ints(b, 7, -1), ints(b, 1, -1))
    ),
    "slice steps": Case(
        lambda b: b.op("Slice", b.x, ints(b, 0, 1), ints(b, 99, 99), ints(b, 2, 3), ints(b, 2, 2))
    ),
    "slice, opset 9": Case(op("Slice", starts=[1, 0], ends=[5, 8], axes=[2, 3]), opset=9),
    "gather": Case(lambda b: b.op("Gather", b.x, b.const(np.asarray(2)), axis=2)),
    "pad": Case(lambda b: b.op("Pad", b.x, ints(b, 0, 0, 1, 2, 0, 0, 0, 1))),
    "pad, opset 9": Case(op("Pad", pads=[0, 0, 1, 2, 0, 0, 0, 1]), opset=9),
    "pad value": Case(lambda b: b.op("Pad", b.x, ints(b, 0, 1, 1, 2, 0, 0, 0, 1), number(b, 0.5))),
    "pad reflect": Case(
        lambda b: b.op("Pad", b.x, ints(b, 0, 0, 1, 2, 0, 0, 1, 1), mode="reflect")
    ),
    "nearest": Case(resize("nearest", "asymmetric", nearest_mode="floor")),
    "nearest half pixel": Case(resize("nearest", "half_pixel")),
    "nearest corners": Case(corners(9, "nearest", nearest_mode="round_prefer_ceil"), SMALL),
    "nearest corners, 8 times": Case(
        corners(33, "nearest", nearest_mode="round_prefer_ceil"), SMALL
    ),
    "linear": Case(resize("linear", "asymmetric")),
    "linear half pixel": Case(resize("linear", "half_pixel")),
    "linear 16 times": Case(resize("linear", "asymmetric", 16.0), SMALL),
    "linear corners": Case(corners(9), SMALL),
    "linear corners, 16 times": Case(corners(65), SMALL),
    "upsample, opset 9": Case(lambda b: b.op("Upsample", b.x, scales(b, 2)), opset=9),
    "resize, opset 10": Case(lambda b: b.op("Resize", b.x, scales(b, 2)), opset=10),
    "flatten": Case(op("Flatten")),
    "join spatial axes": Case(reshaped(1, 8, -1)),
    "reshape": Case(reshaped(1, 4, 20, 12)),
    "squeeze": Case(lambda b: b.op("Squeeze", b.op("GlobalAveragePool", b.x), ints(b, 2, 3))),
    "squeeze, opset 9": Case(
        lambda b: b.op("Squeeze", b.op("GlobalAveragePool", b.x), axes=[2, 3]), opset=9
    ),
    "unsqueeze": Case(lambda b: b.conv(b.op("Unsqueeze", b.x, ints(b, 2, 3)), 8, 4), (1, 8)),
    "to channels-last": Case(op("Transpose", perm=[0, 2, 3, 1])),
    "from channels-last": Case(
        lambda b: b.conv(b.op("Transpose", b.x, perm=[0, 3, 1, 2]), 8, 4), (1, 10, 12, 8)
    ),
    "transpose image": Case(op("Transpose", perm=[0, 1, 3, 2])),
    "detection head": Case(head),
    "channel shuffle": Case(shuffle),
    "depth to space": Case(op("DepthToSpace", blocksize=2)),
    "depth to space, CRD": Case(op("DepthToSpace", blocksize=2, mode="CRD")),
    "space to depth": Case(op("SpaceToDepth", blocksize=2)),
    "tile": Case(lambda b: b.op("Tile", b.x, ints(b, 1, 1, 2, 2))),
    "expand": Case(lambda b: b.op("Expand", b.x, ints(b, 1, 8, 3, 4)), (1, 8, 1, 1)),
    "batch of four": Case(batch_of_four, (4, 8, 10, 12)),
}  # fmt: skip
