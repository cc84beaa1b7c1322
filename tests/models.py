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
