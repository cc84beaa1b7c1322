"""The same network on smaller pictures.

Cycles fall with the area. A Resize (an average pool for exactly half, which is the same and runs
everywhere) is put in front, and one behind where outputs are maps, so that the contract stays.
Where it may change, these serve to judge only: what is delivered goes without, and has inputs and
outputs of the new size. Nothing is fitted; what is lost is seen on the rows that candidates are
judged by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxnas.channel_flow import constant_ints
from onnxnas.cost import Target
from onnxnas.excerpt import dependents
from onnxnas.graph import infer_shapes, is_static
from onnxnas.pass_contract import Pass, Why
from onnxnas.resize_nodes import MIN_OPSET, add_resize
from onnxnas.resized import scale
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.sites import Choice, Site

Size = tuple[int, int]

_DECIDING = frozenset(
    {"ArgMax", "Cast", "Clip", "HardSigmoid", "Identity", "LogSoftmax", "Relu", "Sigmoid",
     "Softmax", "Squeeze", "Tanh"}
)  # fmt: skip
"""What may stand between the last map of scores and an output; maps are enlarged before it."""


@dataclass(frozen=True)
class ResizeInput(Pass):
    """Offers the network at smaller inputs.

    Attributes:
        ratios: of height and width, rounded to the network's total stride; more than 1 enlarges.
        change_contract: what is delivered takes pictures of the new size, and gives maps of it.
    """

    name: ClassVar[str] = "resize-input"
    summary: ClassVar[str] = "Run the network on smaller pictures, resized in front of it."
    order: ClassVar[int] = 16
    min_opset: ClassVar[int] = MIN_OPSET
    resizes: ClassVar[bool] = True
    ratios: tuple[float, ...] = (7 / 8, 3 / 4, 5 / 8, 1 / 2)
    change_contract: bool = False

    def for_new_contract(self) -> ResizeInput:
        return replace(self, change_contract=True)

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        if graph.opset < self.min_opset or not graph.nodes:
            return
        reason = _unfit(graph)
        if reason:
            why.miss(graph.inputs[0].name if graph.inputs else graph.nodes[0], reason)
            return
        x = graph.inputs[0]
        height, width = (int(d) for d in x.shape[2:])
        stride, reasons, choices = _total_stride(graph, height), list[str](), list[Choice]()
        for ratio in self.ratios:
            size = _rounded(height, ratio, stride), _rounded(width, ratio, stride)
            if ratio == 0.5 and height % 2 == width % 2 == 0:
                size = height // 2, width // 2  # the one size that a pool gives, anywhere
            label = f"to-{size[0]}x{size[1]}"
            if size == (height, width) or label in {c.label for c in choices}:
                continue
            plan = _plan(graph, size)
            if isinstance(plan, str):
                reasons.append(plan)
                continue
            sizes, maps = plan
            note = f"{size[0]} x {size[1]} instead of {height} x {width}"
            params = {"size": size, "sizes": sizes, "maps": maps}
            choices.append(Choice(label, params, "recovered", note))
        if choices:
            ends = {name for choice in choices for name in choice.params["maps"]}
            claims = {f"{kind}:{name}" for name in ends for kind in ("node", "channels")}
            yield Site(
                self.name, x.name, tuple(choices), frozenset({f"channels:{x.name}", *claims})
            )
        else:
            few = f"{height} x {width} is the least for its total stride of {stride}"
            why.miss(x.name, reasons[0] if reasons else few)

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        x, size = rw.tensor(site.tensor), choice.params["size"]
        maps = {name: rw.node(name) for name in choice.params["maps"]}
        for name, shape in choice.params["sizes"].items():
            node = rw.node(name)
            if node.op != "Resize" or len(node.inputs) < 4:
                raise SiteGone(f"{name!r} is no Resize to a fixed size any more")
            sizes = np.array([*node.inputs[3].values[:2], *shape], np.int64)
            rw.set_input(node, 3, rw.small_constant(f"{name}/sizes", sizes))
        readers, old = list(x.outputs), tuple(int(d) for d in x.shape[2:])
        small = _resize(rw, x, old, size, f"{x.name}/resized")
        small.shape = [*x.shape[:2], *size]
        if self.change_contract:
            rw.when_delivered(partial(_leave_out, name=small.name, in_front=True))
        for node in readers:
            for i, tensor in enumerate(node.inputs):
                if tensor is x:
                    rw.set_input(node, i, small)
        for name, node in maps.items():
            tensor = rw.tensor(name)
            shape = choice.params["maps"][name]
            attrs, inputs = dict(node.attrs), list(node.inputs)
            rw.remove_node(node)
            hint = f"{name}/small"
            low = rw.add_node(node.op, inputs, attrs, hint=hint, dtype=tensor.dtype or np.float32)
            low.shape = [*tensor.shape[:2], *shape]
            _resize(rw, low, shape, tuple(int(d) for d in tensor.shape[2:]), name, tensor)
            if self.change_contract:
                rw.when_delivered(partial(_leave_out, name=name, in_front=False))


def _unfit(graph: Any) -> str:
    """Why a graph's input cannot be resized at all; empty if it can."""
    if len(graph.inputs) != 1:
        return f"the model has {len(graph.inputs)} inputs"
    x = graph.inputs[0]
    if x.shape is None or len(x.shape) != 4 or not all(map(is_static, x.shape[1:])):
        return "the input is no picture of fixed size"
    if x.dtype is not None and np.dtype(x.dtype).kind != "f":
        return "the input is not of a floating-point type"
    if int(x.shape[1]) > 4:
        return f"the input has {x.shape[1]} channels, which is no picture"
    if any(t is x for t in graph.outputs):
        return "the input is an output as well"
    bodies = (v for node in graph.nodes for v in node.attrs.values() if isinstance(v, gs.Graph))
    return "the model has subgraphs" if next(bodies, None) is not None else ""


def _total_stride(graph: Any, height: int) -> int:
    """How many rows of the input one row of the smallest feature map stands for."""
    shapes = [t.shape for node in graph.nodes if node.op == "Conv" for t in node.outputs]
    rows = [int(s[2]) for s in shapes if s is not None and len(s) == 4 and is_static(s[2])]
    least = min((r for r in rows if r > 1), default=height)
    return 1 << max(0, round(math.log2(height / least)))


def _rounded(length: int, ratio: float, stride: int) -> int:
    """The multiple of the stride nearest to a share of a length; 513 stays one above."""
    rest = length % stride
    return max(1, round(ratio * (length - rest) / stride)) * stride + rest


def _plan(graph: Any, size: Size) -> tuple[dict[str, Size], dict[str, Size]] | str:
    """What a graph needs at another input size, or why it cannot have it.

    Returns:
        New sizes of its Resize nodes with fixed ones, and the sizes of the maps that are to be
        enlarged again, all by output tensor.
    """
    before = {t.name: t.shape for node in graph.nodes for t in node.outputs}
    ends = _ends(graph)
    if isinstance(ends, str):
        return ends
    view = graph.copy()
    x = view.inputs[0]
    x.shape = [*x.shape[:2], *size]
    for tensor in view.outputs:
        tensor.shape = None
    tensors = view.tensors()
    infer_shapes(view)
    known: dict[Size, Size] = {}
    for node in view.nodes:
        old, new = before[node.outputs[0].name], node.outputs[0].shape
        if _is_map(old) and _is_map(new):
            known.setdefault(_area(old), _area(new))
    sizes: dict[str, Size] = {}
    for node in view.nodes:
        name = node.outputs[0].name
        fixed = constant_ints(node, 3, "sizes") if node.op == "Resize" else None
        if not fixed or name in ends:
            continue
        if len(fixed) != 4 or (fixed[2], fixed[3]) not in known:
            return f"Resize {name!r} has a fixed size that nothing else has"
        sizes[name] = known[fixed[2], fixed[3]]
        values = np.array([*fixed[:2], *sizes[name]], np.int64)
        node.inputs[3] = gs.Constant(f"{name}/sizes", values)
    try:
        infer_shapes(view, strict=True)
    except Exception as error:
        return f"its operators do not fit together at {size[0]} x {size[1]}: {_first(error)}"
    behind = dependents(graph, ends) - set(ends)
    for name, old in before.items():
        new = tensors[name].shape
        if name in behind:  # there everything has its old size again
            continue
        if old is None or new is None or len(old) != len(new):
            return f"the shape of {name!r} at another input size is not known"
        free = (2, 3) if len(old) == 4 else ()
        if _is_map(old) and not _is_map(new):
            return f"nothing would be left of {name!r}"
        if any(a != b for i, (a, b) in enumerate(zip(old, new, strict=True)) if i not in free):
            there, here = ("x".join(map(str, s)) for s in (old, new))
            return f"{name!r} would be {here} instead of {there}, which its readers rely on"
    for node in view.nodes:
        if node.op == "Reshape" and node.outputs[0].name not in behind:
            old, new = (math.prod(t.shape[1:]) for t in (node.inputs[0], node.outputs[0]))
            if old != new:
                return f"Reshape {node.outputs[0].name!r} is to a fixed size"
    changed = {n: _area(tensors[n].shape) for n in ends if list(tensors[n].shape) != before[n]}
    return sizes, changed


def _ends(graph: Any) -> list[str] | str:
    """The tensors that outputs with four dimensions are decided by."""
    found: list[str] = []
    for output in graph.outputs:
        tensor = output
        while tensor.inputs and tensor.inputs[0].op in _DECIDING:
            tensor = tensor.inputs[0].inputs[0]
        if not tensor.inputs:
            return f"output {output.name!r} is computed of the input alone"
        if not _is_map(tensor.shape):
            continue
        if tensor.dtype is not None and np.dtype(tensor.dtype).kind != "f":
            return f"{tensor.name!r} cannot be enlarged: it is not of a floating-point type"
        odd = [node for node in tensor.outputs if node.op not in _DECIDING]
        if odd:
            return f"{odd[0].op} {odd[0].outputs[0].name!r} reads the output {tensor.name!r}"
        if tensor.name not in found:
            found.append(tensor.name)
    return found


def _is_map(shape: Any) -> bool:
    return shape is not None and len(shape) == 4 and all(map(is_static, shape[1:]))


def _area(shape: Sequence[Any]) -> Size:
    return int(shape[2]), int(shape[3])


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:120] if lines else type(error).__name__


def _resize(
    rw: Rewriter, x: Any, old: Sequence[int], new: Sequence[int], hint: str, output: Any = None
) -> Any:
    """Linear interpolation from one size to another; the mean of four for exactly half."""
    if all(a == 2 * b for a, b in zip(old, new, strict=True)):
        pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
        return rw.add_node("AveragePool", [x], pool, output=output, hint=hint)
    scales = np.array([1, 1, *(scale(a, b) for a, b in zip(old, new, strict=True))], np.float32)
    attrs = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return add_resize(rw, x, scales, attrs, hint=hint, output=output)


def _leave_out(rw: Rewriter, name: str, in_front: bool) -> None:
    """Take out the node that writes a tensor, which only resizes an input or an output."""
    found = rw.graph.tensors().get(name)
    if found is None:
        return
    (node,) = found.inputs
    outer, inner = node.inputs[0], node.outputs[0]
    if not in_front:
        outer, inner = inner, outer
    rw.remove_node(node)
    outer.shape = inner.shape
    if not in_front:
        (maker,) = inner.inputs
        maker.outputs[[t is inner for t in maker.outputs].index(True)] = outer
    for reader in list(inner.outputs):
        for i, tensor in enumerate(reader.inputs):
            if tensor is inner:
                reader.inputs[i] = outer
