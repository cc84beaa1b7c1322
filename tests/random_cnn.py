"""Random small networks made of the blocks real ones are made of, for property tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import strategies as st
from models import ModelBuilder
from onnx import helper, numpy_helper

Block = Callable[[ModelBuilder, str, int, int], tuple[str, int]]
"""Adds a block after a tensor of some channels, with a width of its own; returns what it gives."""


def _conv(b: ModelBuilder, x: str, channels: int, width: int) -> tuple[str, int]:
    return b.op("LeakyRelu", b.conv(x, channels, width, 3, pads=1, bias=False)), width


def _prelu(b: ModelBuilder, x: str, channels: int, width: int) -> tuple[str, int]:
    return b.op("PRelu", b.conv(x, channels, width), b.weight(width, 1, 1)), width


def _hard_swish(b: ModelBuilder, x: str, channels: int, width: int) -> tuple[str, int]:
    x = b.conv(x, channels, width)
    zero, three, six = (b.const(np.asarray(v, np.float32)) for v in (0, 3, 6))
    gate = b.op("Clip", b.op("Add", x, three), zero, six)
    return b.op("Div", b.op("Mul", x, gate), six), width


def _bottleneck(b: ModelBuilder, x: str, channels: int, width: int) -> tuple[str, int]:
    return b.ibn(x, channels, width, channels), channels


def _strided(b: ModelBuilder, x: str, channels: int, width: int) -> tuple[str, int]:
    return b.op("Sigmoid", b.depthwise(x, channels, stride=2)), channels


def _multiplier(b: ModelBuilder, x: str, channels: int, width: int) -> tuple[str, int]:
    return b.conv(x, channels, 2 * channels, 3, group=channels, pads=1), 2 * channels


def _squeeze_excite(b: ModelBuilder, x: str, channels: int, width: int) -> tuple[str, int]:
    s = b.op("Relu", b.conv(b.op("GlobalAveragePool", x), channels, width))
    return b.op("Mul", b.op("HardSigmoid", b.conv(s, width, channels)), x), channels


def _concat(b: ModelBuilder, x: str, channels: int, width: int) -> tuple[str, int]:
    y = b.op("Concat", b.conv(x, channels, width), x, b.conv(x, channels, 3), axis=1)
    return b.op("Relu", y), width + channels + 3


def _split(b: ModelBuilder, x: str, channels: int, width: int) -> tuple[str, int]:
    x, parts = b.conv(x, channels, width + 2), [b.name("part"), b.name("part")]
    sizes = b.const(np.asarray([width, 2]))
    b.nodes.append(helper.make_node("Split", [x, sizes], parts, axis=1))
    return b.op("Concat", parts[1], b.op("Tanh", parts[0]), axis=1), width + 2


def _batch_norm(b: ModelBuilder, x: str, channels: int, width: int) -> tuple[str, int]:
    x, variance = b.conv(x, channels, width), b.const(np.linspace(0.5, 2, width, dtype=np.float32))
    return b.op("BatchNormalization", x, *(b.weight(width) for _ in range(3)), variance), width


def _pool(b: ModelBuilder, x: str, channels: int, width: int) -> tuple[str, int]:
    return b.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), channels


BLOCKS: tuple[Block, ...] = (
    _conv, _prelu, _hard_swish, _bottleneck, _strided, _multiplier, _squeeze_excite, _concat,
    _split, _batch_norm, _pool,
)  # fmt: skip


@st.composite
def random_cnn(draw: st.DrawFn, dead: bool = False) -> onnx.ModelProto:
    """A network of a stem, up to five blocks and a head.

    Args:
        draw: given by hypothesis.
        dead: set the filters of some channels to zero, and what reads some others.
    """
    seed = draw(st.integers(0, 99))
    b = ModelBuilder([1, 3, 8, 8], seed=seed)
    x, channels = _conv(b, b.x, 3, draw(st.integers(1, 9)))
    for block in draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=5)):
        x, channels = block(b, x, channels, draw(st.integers(1, 9)))
    if draw(st.booleans()):
        y = b.conv(x, channels, 5)
    else:
        x = b.op("Flatten", b.op("AveragePool", x, kernel_shape=[2, 2], pads=[0, 0, 1, 1]))
        model = b.build(x)
        features = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        y = b.op("Gemm", x, b.weight(5, features), b.weight(5), transB=1)
    if dead:
        _kill_some(b)
    return b.build(y)


def _kill_some(b: ModelBuilder) -> None:
    for tensor in b.initializers:
        if len(tensor.dims) == 4:
            values = numpy_helper.to_array(tensor).copy()
            values[b.rng.random(values.shape[0]) < 0.3] = 0
            values[:, b.rng.random(values.shape[1]) < 0.1] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
