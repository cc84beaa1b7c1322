"""Tiny segmentation networks, and what argmax-first makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import models
import numpy as np
import onnx
from fakes import TARGET
from numpy.typing import NDArray
from oracle import run

from onnxnas.graph import check_model, contract, from_model
from onnxnas.materialize import Applied, apply_candidate
from onnxnas.pass_contract import Why
from onnxnas.passes.argmax_first import ArgmaxFirst
from onnxnas.resized import scale
from onnxnas.sites import Candidate, SearchSpace

PASS = ArgmaxFirst()
CLASSES = 5
Array = NDArray[Any]


def segmenter(
    *,
    mode: str = "linear",
    where: str = "half_pixel",
    to: int | tuple[int, int] = 8,
    small: int = 5,
    sizes: bool = False,
    between: Callable[[models.ModelBuilder, str], str] = lambda b, y: y,
    before: Callable[[models.ModelBuilder, str], str] = lambda b, y: y,
    behind: int | None = 1,
    opset: int = 13,
    batch: int | str = 1,
    classes: int = CLASSES,
    resize: Mapping[str, Any] | None = None,
    **argmax: Any,
) -> onnx.ModelProto:
    """Scores of some classes, enlarged `to` times, decided on, and cast to a type."""
    b = models.ModelBuilder([batch, 3, 2 * small, 2 * small], opset=opset)
    y = before(b, b.conv(b.x, 3, classes, 3, stride=2, pads=1, out="low"))
    factors = (to, to) if isinstance(to, int) else to
    corner = int(where == "align_corners")
    full = [(small - corner) * f + corner for f in factors]
    roi = b.const(np.zeros(0, np.float32)) if opset < 13 else ""
    attrs = {"mode": mode, "coordinate_transformation_mode": where, **(resize or {})}
    if sizes:
        no_scales = b.const(np.zeros(0, np.float32)) if opset < 13 else ""
        wanted = b.const(np.array([1, classes, *full], np.int64))
        y = b.op("Resize", y, roi, no_scales, wanted, **attrs)
    else:
        scales = np.array([1, 1, *(scale(small, n) for n in full)], np.float32)
        y = b.op("Resize", y, roi, b.const(scales), **attrs)
    y = b.op("ArgMax", between(b, y), **{"axis": 1, "keepdims": 0, **argmax}, out="am")
    return typed(b.build(y if behind is None else b.op("Cast", y, to=behind), check=False), behind)


def typed(model: onnx.ModelProto, kind: int | None = None) -> onnx.ModelProto:
    """With an output of another type than the builder gives it."""
    model.graph.output[0].type.tensor_type.elem_type = kind or onnx.TensorProto.INT64
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def applied(model: onnx.ModelProto, label: str) -> Applied:
    graph = from_model(model)
    sites = tuple(PASS.find_sites(graph, TARGET, Why(PASS.name)))
    candidate = Candidate.of({sites[0].id: label})
    return apply_candidate(graph, SearchSpace(sites), candidate, {PASS.name: PASS})


def delivered(model: onnx.ModelProto, label: str) -> onnx.ModelProto:
    result: onnx.ModelProto = applied(model, label).model(model)
    check_model(result)
    assert contract(result) == contract(model)
    return result


def only(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    (output,) = run(model, feeds).values()
    return output
