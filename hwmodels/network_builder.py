"""Builds one random network layer by layer, with the habits of one author.

A builder draws its habits once (activation, rounding of widths, padding convention, spread of the
weights) and then keeps to them, breaking them now and then as rewrites do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

OPSET = 17
_MAX_WIDTH = 1280
_MAX_WEIGHTS = 600_000
"""Per layer: compilers spend their time on packing weights, and larger layers teach nothing new
about width that their cost per weight does not."""


_ACTIVATIONS = (
    "Relu6", "Relu", "HardSwish", "HardSwishParts", "LeakyRelu", "Silu", "PRelu", "Gelu",
)  # fmt: skip
_HOW_OFTEN = (0.3, 0.25, 0.1, 0.08, 0.1, 0.07, 0.08, 0.02)
_MAX_ARGMAX = 40_000
"""Pixels: some compilers schedule the arg-max of each one alone, which takes them minutes."""


class NetworkBuilder:
    """Methods add nodes and return the new tensor; sizes are tracked in `Variable.shape`.

    Attributes:
        rng: all chance comes from it.
        aspect: width over height of the image; 0 draws it.
        stems: widths of the first convolution to choose from.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.graph = gs.Graph(opset=OPSET)
        self._count = 0
        self.activation = str(rng.choice(_ACTIVATIONS, p=_HOW_OFTEN))
        self.divisor = int(rng.choice([8, 8, 8, 16, 4, 32, 1]))
        self.symmetric = bool(rng.random() < 0.6)
        self.windows = rng.choice([3, 5, 7, 1], size=3, p=[0.62, 0.23, 0.1, 0.05])
        self.breaks = float(rng.choice([0.0, 0.1, 0.3]))
        self.spread = float(rng.choice([0.0, 0.5, 1.0]))
        self.aspect = 0.0
        self.stems: tuple[int, ...] = (8, 16, 16, 24, 32, 32)

    # Chance

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, *values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def window(self) -> int:
        return int(self.rng.choice(self.windows))

    def round(self, width: float) -> int:
        """A width in this network's habit; sometimes one beside a multiple, or any."""
        if width <= 16 and self.chance(0.12):
            return int(self.rng.integers(2, 9))
        divisor = self.divisor
        rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
        if self.chance(self.breaks):
            step = int(self.pick(8, 16, 32))
            near = max(step, round(width / step) * step)
            rounded = int(self.pick(near - 1, near, near + 1, int(width) + 1))
        return int(np.clip(rounded, 2, _MAX_WIDTH))

    def stages(self, base: int, count: Any) -> list[tuple[int, int, int]]:
        """(width, repeats, stride) of each stage; sizes halve while they are large enough."""
        stages, width = [], float(base)
        for n in range(int(count)):
            stride = 2 if n == 0 or self.chance(0.65) else 1
            stages.append((self.round(width), int(self.rng.integers(1, 4)), stride))
            width *= float(self.rng.uniform(1.15, 2.0))
        return stages

    # Tensors

    def image(self, stem: bool, largest: int = 352, halvings: int = 0, odd: float = 0.25) -> Any:
        """The network's input, and its first strided convolution.

        Args:
            stem: with that convolution.
            largest: rows at most.
            halvings: times the size can be halved without a remainder, or with one of 1 always.
            odd: probability of the latter.
        """
        height = int(self.rng.choice([48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 352, 416]))
        width = height if self.chance(0.75) else int(height * self.rng.choice([0.5, 0.75, 1.5]))
        if self.aspect:
            height = min(height, 112)
            width, largest = int(height * self.aspect), 1024
        step = 2**halvings
        height, width = (max(step, min(v, largest) // step * step) for v in (height, width))
        if self.chance(odd):
            height, width = height + 1, width + 1
        channels = int(self.rng.choice([3, 3, 3, 1, 4]))
        x = gs.Variable("image", np.dtype(np.float32), [1, channels, height, width])
        self.graph.inputs.append(x)
        if not stem:
            return x
        width = int(self.rng.choice(self.stems))
        return self.activate(self.conv(x, width, self.pick(3, 3, 3, 5, 7), 2))

    def channels(self, x: Any) -> int:
        return int(x.shape[1])

    def size(self, x: Any) -> tuple[int, int]:
        """(height, width)"""
        return int(x.shape[2]), int(x.shape[3])

    def op(
        self,
        op: str,
        inputs: Sequence[Any],
        shape: Sequence[int],
        dtype: Any = np.float32,
        **attrs: Any,
    ) -> Any:
        self._count += 1
        y = gs.Variable(f"{op.lower()}_{self._count}", np.dtype(dtype), [int(d) for d in shape])
        self.graph.nodes.append(gs.Node(op, y.name, attrs, list(inputs), [y]))
        return y

    def constant(self, values: NDArray[Any]) -> Any:
        self._count += 1
        return gs.Constant(f"constant_{self._count}", values)

    def values(self, shape: Sequence[int], groups: int = 1) -> NDArray[Any]:
        """Weights as training leaves them: from nearly normal to heavy-tailed and sparse.

        Args:
            shape: [out_channels, in_channels, kh, kw].
            groups: blocks on the diagonal that are not zero.
        """
        tail = self.rng.choice(["normal", "student", "laplace"], p=[0.5, 0.3, 0.2])
        if tail == "student":
            w = self.rng.standard_t(float(self.rng.choice([3, 5, 8])), size=shape)
        else:
            w = getattr(self.rng, {"normal": "standard_normal"}.get(tail, tail))(size=shape)
        if self.spread and self.chance(0.6):  # input channels of unequal importance
            w *= np.exp(self.spread * self.rng.standard_normal((1, shape[1], 1, 1)))
        if self.chance(0.08):
            w *= self.rng.random(shape) > self.rng.choice([0.2, 0.5, 0.8])
        if groups > 1:
            mask = np.zeros(shape[:2])
            rows, columns = shape[0] // groups, shape[1] // groups
            for i in range(groups):
                mask[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns] = 1
            w *= mask[:, :, None, None]
        elif self.chance(0.03):
            w[shape[0] - shape[0] // 8 :] = 0.0  # channels added to reach a multiple
        scaled: NDArray[Any] = (w * float(np.prod(shape[1:])) ** -0.5).astype(np.float32)
        return scaled

    # Layers

    def conv(
        self,
        x: Any,
        width: int,
        window: int = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        blocks: int = 1,
    ) -> Any:
        cin = self.channels(x)
        window = min(window, 2 * min(self.size(x)) - 1)
        if groups > 1 and (cin % groups or width % groups):
            groups = 1
        # Nothing larger than a device of this class would run.
        while groups == 1 and cin * width * window * window > _MAX_WEIGHTS and window > 1:
            window -= 2
        w = self.constant(self.values((width, cin // groups, window, window), blocks))
        bias = self.constant((0.1 * self.rng.standard_normal(width)).astype(np.float32))
        return self._windowed(
            "Conv",
            [x, w, bias],
            width,
            window,
            stride,
            dilation,
            group=groups,
        )

    def depthwise(self, x: Any, window: int, stride: int, dilation: int = 1) -> Any:
        c = self.channels(x)
        window = max(window, 3)
        if self.chance(0.05 * self.breaks * 10) and c <= 256 and c * c * window**2 <= _MAX_WEIGHTS:
            return self.conv(x, c, window, stride, dilation=dilation, blocks=c)
        return self.conv(x, c, window, stride, groups=c, dilation=dilation)

    def _windowed(
        self,
        op: str,
        inputs: list[Any],
        width: int,
        window: int,
        stride: int,
        dilation: int,
        **attrs: Any,
    ) -> Any:
        x = inputs[0]
        extent = (window - 1) * dilation + 1
        begins, ends, sizes = [], [], []
        for size in self.size(x):
            out = -(-size // stride)
            total = max(0, (out - 1) * stride + extent - size)
            begins.append((extent - 1) // 2 if self.symmetric else total // 2)
            ends.append((extent - 1) // 2 if self.symmetric else total - total // 2)
            sizes.append((size + begins[-1] + ends[-1] - extent) // stride + 1)
        if op == "Conv":
            attrs["dilations"] = [dilation] * 2
        return self.op(
            op,
            inputs,
            [1, width, *sizes],
            kernel_shape=[window] * 2,
            strides=[stride] * 2,
            pads=[*begins, *ends],
            **attrs,
        )

    def activate(self, x: Any) -> Any:
        """This network's activation, sometimes another."""
        name = self.activation
        if self.chance(0.04):
            name = self.pick("Relu", "Relu6", "HardSwish", "Sigmoid", "Tanh", "Elu", "LeakyRelu")
        return self.apply(name, x)

    def apply(self, name: str, x: Any) -> Any:
        shape = x.shape
        if name == "Relu6":
            return self.op("Clip", [x, self._scalar(0), self._scalar(6)], shape)
        if name == "HardSwishParts":
            moved = self.op("Add", [x, self._scalar(3)], shape)
            gate = self.op("Clip", [moved, self._scalar(0), self._scalar(6)], shape)
            product = self.op("Mul", [x, gate], shape)
            return self.op("Div", [product, self._scalar(6)], shape)
        if name == "Silu":
            return self.op("Mul", [x, self.op("Sigmoid", [x], shape)], shape)
        if name == "PRelu":
            slopes = self.rng.uniform(0.05, 0.4, (self.channels(x), 1, 1)).astype(np.float32)
            return self.op("PRelu", [x, self.constant(slopes)], shape)
        attrs: dict[str, Any] = {"alpha": 0.1} if name == "LeakyRelu" else {}
        if name == "Gelu":  # a standard operator since opset 20; written out before
            return self.apply("Silu", x)
        return self.op(name, [x], shape, **attrs)

    def _scalar(self, value: float) -> Any:
        return self.constant(np.asarray(value, np.float32))

    def add(self, a: Any, b: Any) -> Any:
        return self.op("Add", [a, b], a.shape)

    def concat(self, tensors: Sequence[Any]) -> Any:
        first = tensors[0]
        width = sum(self.channels(t) for t in tensors)
        return self.op("Concat", tensors, [1, width, *self.size(first)], axis=1)

    def pool(self, x: Any, op: str, window: int, stride: int) -> Any:
        return self._windowed(op, [x], self.channels(x), window, stride, 1)

    def global_pool(self, x: Any) -> Any:
        return self.op("GlobalAveragePool", [x], [1, self.channels(x), 1, 1])

    def resize(self, x: Any, size: tuple[int, int], linear: bool | None = None) -> Any:
        """Enlarge to a size; corners stay corners where the sizes are made for that."""
        shape = [1, self.channels(x), *size]
        empty = gs.Variable.empty()
        whole = all(big % small == 0 for big, small in zip(size, self.size(x), strict=True))
        linear = not whole or (self.chance(0.5) if linear is None else linear)
        if linear:
            mode = "half_pixel" if whole and self.chance(0.7) else "align_corners"
            attrs = {"mode": "linear", "coordinate_transformation_mode": mode}
        else:
            attrs = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
            attrs["nearest_mode"] = "floor"
        sizes = self.constant(np.array(shape, np.int64))
        return self.op("Resize", [x, empty, empty, sizes], shape, **attrs)

    def squeeze_excite(self, x: Any, reduction: int) -> Any:
        c = self.channels(x)
        y = self.apply("Relu", self.conv(self.global_pool(x), max(4, c // reduction)))
        gate = self.apply(self.pick("Sigmoid", "HardSigmoid"), self.conv(y, c))
        return self.op("Mul", [x, gate], x.shape)

    def bottleneck(
        self,
        x: Any,
        width: int,
        expansion: float,
        window: int,
        stride: int,
        fused: bool = False,
        squeeze: bool = False,
        dilation: int = 1,
    ) -> Any:
        """Inverted bottleneck; fused: one dense convolution for expansion and depthwise."""
        cin = self.channels(x)
        hidden = self.round(min(cin * float(expansion), 1280))
        y = x
        if fused:
            y = self.activate(self.conv(y, hidden, max(3, window), stride, dilation=dilation))
        else:
            if expansion != 1:
                y = self.activate(self.conv(y, hidden))
            y = self.activate(self.depthwise(y, window, stride, dilation))
        if squeeze:
            y = self.squeeze_excite(y, 4)
        blocks = int(self.pick(2, 4)) if self.chance(0.1 * self.breaks) else 1
        if width % blocks or self.channels(y) % blocks:
            blocks = 1
        y = self.conv(y, width, blocks=blocks)
        same = self.channels(y) == cin and self.size(y) == self.size(x)
        return self.add(x, y) if same else y

    def residual(self, x: Any, width: int, stride: int, deep: bool, group_width: int) -> Any:
        inner = self.round(width / 2) if deep else width
        groups = inner // group_width if group_width and inner % max(1, group_width) == 0 else 1
        if deep:
            y = self.activate(self.conv(x, inner))
            y = self.activate(self.conv(y, inner, 3, stride, groups))
            y = self.conv(y, width)
        else:
            y = self.activate(self.conv(x, inner, 3, stride, 1))
            y = self.conv(y, width, 3)
        if stride != 1 or self.channels(x) != width:
            x = self.conv(x, width, 1, stride)
        if self.size(x) != self.size(y):
            return self.activate(y)
        return self.activate(self.add(x, y))

    # Ends

    def output(self, x: Any) -> None:
        self.graph.outputs.append(x)

    def head(self, x: Any, outputs: int) -> None:
        """One raw detection head."""
        if self.chance(0.5):
            x = self.activate(self.depthwise(x, int(self.pick(3, 5)), 1))
        self.output(self.conv(x, outputs))

    def classifier(self, x: Any) -> None:
        if self.chance(0.4):
            x = self.activate(
                self.conv(x, self.round(self.channels(x) * float(self.rng.uniform(1.2, 4))))
            )
        classes = int(self.rng.choice([2, 10, 20, 100, 1000]))
        x = self.global_pool(x)
        if self.chance(0.3):
            x = self.op("Flatten", [self.conv(x, classes)], [1, classes], axis=1)
        else:
            c = self.channels(x)
            x = self.op("Flatten", [x], [1, c], axis=1)
            w = self.constant(self.values((classes, c, 1, 1)).reshape(classes, c))
            bias = self.constant((0.1 * self.rng.standard_normal(classes)).astype(np.float32))
            x = self.op("Gemm", [x, w, bias], [1, classes], transB=1)
        if self.chance(0.4):
            x = self.op("Softmax", [x], x.shape, axis=1)
        self.output(x)

    def dense_map(self, x: Any) -> None:
        """A class per pixel, at a larger size than the network works at."""
        scale = int(self.pick(2, 4, 8, 16))
        height, width = self.size(x)
        if max(height, width) * scale <= 640:
            odd = scale - 1 if height % 2 and width % 2 else 0
            x = self.resize(x, (height * scale - odd, width * scale - odd), linear=self.chance(0.8))
        kind = self.pick("raw", "raw", "Sigmoid", "ArgMax")
        if kind == "ArgMax" and np.prod(self.size(x)) > _MAX_ARGMAX:
            kind = "raw"
        if kind == "Sigmoid":
            x = self.op("Sigmoid", [x], x.shape)
        elif kind == "ArgMax":
            x = self.op("ArgMax", [x], [1, *self.size(x)], np.int64, axis=1, keepdims=0)
        self.output(x)

    def finish(self, name: str) -> Any:
        """The graph; tensors no output depends on are dropped."""
        self.graph.name = name
        return self.graph.cleanup().toposort()
