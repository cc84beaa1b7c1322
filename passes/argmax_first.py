"""Which class each pixel is of, decided on a smaller map of scores.

Segmentation networks enlarge the scores of every class to the size of the picture and then take
the largest at each pixel. Here the classes are decided first, and the one map of them is enlarged
by repetition. Where scores are enlarged by repetition anyway, that is the same; where they are
interpolated, they still are up to a size of choice, and borders between classes are as coarse as
its pixels. Nothing is fitted; what is lost is seen on the rows that candidates are judged by.

For judging, the scores are enlarged in place of the classes, which comes to the same, so that the
network still has the scores that the original is judged by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxnas.channel_flow import constant_ints, given
from onnxnas.cost import Target
from onnxnas.graph import is_static, values_of
from onnxnas.ops import (
    STANDARD_DOMAINS,
    UNARY_ELEMENTWISE,
    conv,
    is_constant,
    producer,
    sole_consumer,
)
from onnxnas.pass_contract import Pass, Why
from onnxnas.resize_nodes import MIN_OPSET, add_resize
from onnxnas.resized import scale
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.sites import Choice, Site

_LINEAR = frozenset(
    {"align_corners", "asymmetric", "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel"}
)
"""Where the pixels of an interpolated map may be."""


@dataclass(frozen=True)
class ArgmaxFirst(Pass):
    """Offers every ArgMax over enlarged scores before all or a part of the enlargement."""

    name: ClassVar[str] = "argmax-first"
    summary: ClassVar[str] = "Decide classes on smaller maps and enlarge those, not the scores."
    order: ClassVar[int] = 23
    min_opset: ClassVar[int] = MIN_OPSET

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        for node in graph.nodes:
            if node.op != "ArgMax" or (node.domain or "") not in STANDARD_DOMAINS:
                continue
            found = _Path.to(node, graph)
            if isinstance(found, str):
                why.miss(node, found)
                continue
            y = node.outputs[0].name
            path = [n.outputs[0] for n in found.nodes]
            between = {node.inputs[0].name, *(t.name for t in path)}
            claims = {f"{kind}:{name}" for kind in ("node", "channels") for name in between}
            params = {
                "resizes": tuple(n.outputs[0].name for n in found.resizes),
                "path": tuple(t.name for t in path),
                "classes": int(path[-1].shape[1]),
            }
            claims.add(f"node:{y}")
            yield Site(self.name, y, found.choices(), frozenset(claims), params)

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        nodes = [rw.node(name) for name in site.params["path"]]
        resizes = [rw.node(name) for name in site.params["resizes"]]
        scores, x = nodes[-1].outputs[0], nodes[0].inputs[0]
        full = _area(scores)
        if gone := [node for node in resizes if node.op != "Resize"]:
            raise SiteGone(f"{gone[0].outputs[0].name!r} is written by no Resize any more")
        enlarged = [_Resize.of(node) for node in resizes]
        if choice.exactness != "exact":
            (linear,) = resizes
            now, size = _area(x), choice.params["size"]
            if now[0] > size[0] or now[1] > size[1]:
                raise SiteGone(f"{x.name!r} is larger than {size[0]} x {size[1]} now")
            if now != size:
                hint = f"{linear.outputs[0].name}/small"
                dtype = x.dtype or np.float32
                x = add_resize(
                    rw, x, _factors(now, size), dict(linear.attrs), hint=hint, dtype=dtype
                )
            attrs = _repeating(_coordinates(linear), size, full)
            enlarged = [_Resize(_factors(size, full), attrs)]
        for node in nodes:
            rest, y, op, attrs = node.inputs[1:], node.outputs[0], node.op, dict(node.attrs)
            rw.remove_node(node)
            if op != "Resize":  # those are made anew behind it, but for such that do nothing
                hint, dtype = f"{y.name}/small", y.dtype or np.float32
                x = rw.add_node(op, [x, *rest], attrs, hint=hint, dtype=dtype)
        classes, dtype, chain = site.params["classes"], scores.dtype or np.float32, list[str]()
        for i, resize in enumerate(enlarged):
            output = scores if i == len(enlarged) - 1 else None
            x = resize.add(rw, x, classes, hint=f"{scores.name}/{i}", output=output, dtype=dtype)
            chain.append(x.name)
        rw.when_delivered(partial(_decide_first, y=site.tensor, chain=chain, classes=classes))


@dataclass(frozen=True)
class _Path:
    """What lies between an ArgMax and the scores that are not enlarged yet.

    Attributes:
        nodes: the first reads those; each is read by the next alone, the last by the ArgMax, or
            by a Transpose that puts channels last for it.
        resizes: those of them that enlarge: one that interpolates, or all that repeat.
    """

    nodes: tuple[Any, ...]
    resizes: tuple[Any, ...]

    @classmethod
    def to(cls, argmax: Any, graph: Any) -> _Path | str:
        """The path to a node, or why its classes cannot be decided earlier."""
        x, reader, channels = argmax.inputs[0], argmax, 1
        if x.shape is None or len(x.shape) != 4:
            return "it does not read a map of scores"
        if not all(map(is_static, x.shape[1:])):
            return "the size of the map it reads is not fixed"
        turned = producer(x)
        if turned is not None and _puts_channels_last(turned):
            if sole_consumer(x, graph) is not argmax:
                return f"{x.name!r} is read elsewhere too, or an output"
            x, reader, channels = turned.inputs[0], turned, 3
        if (axis := int(argmax.attrs.get("axis", 0)) % 4) != channels:
            return f"it is over axis {axis}, not over channels"
        nodes: list[Any] = []
        resizes: list[Any] = []
        reason = "the scores it reads are not enlarged"
        while (node := producer(x)) is not None:
            if sole_consumer(x, graph) is not reader:
                reason = f"{x.name!r} is read elsewhere too, or an output"
                break
            repeats = _mode(node) == "nearest"
            stays = _unmoved(node, x, graph.opset)
            if stays or (resizes and node.op == "Resize" and not repeats):
                reason = stays or reason
                break
            if node.op == "Resize" and _area(node.inputs[0]) != _area(x):
                resizes.insert(0, node)
            nodes.insert(0, node)
            reader, x = node, node.inputs[0]
            if resizes and not repeats and node.op == "Resize":
                break
        while nodes and nodes[0] not in resizes:
            nodes.pop(0)
        return cls(tuple(nodes), tuple(resizes)) if resizes else reason

    def choices(self) -> tuple[Choice, ...]:
        first = self.resizes[0]
        if _mode(first) == "nearest":
            note = "the scores were enlarged by repetition, the classes are instead"
            return (Choice("repeat-classes", {}, "exact", note),)
        small, full = _area(first.inputs[0]), _area(first.outputs[0])
        corner = int(_coordinates(first) == "align_corners")
        sizes: dict[str, tuple[int, int]] = {}
        for power in range(1, 16):
            height, width = ((length - corner) / 2**power + corner for length in full)
            if height <= small[0] or width <= small[1]:
                break
            if height == int(height) and width == int(width):
                sizes[f"repeat-{2**power}"] = int(height), int(width)
        whole = {(a - corner) / max(1, b - corner) for a, b in zip(full, small, strict=True)}
        factor = whole.pop()
        even = not whole and factor == int(factor)
        sizes[f"repeat-{int(factor)}" if even else f"from-{small[0]}x{small[1]}"] = small
        return tuple(
            Choice(
                label,
                {"size": size},
                "recovered",
                f"classes decided on {size[0]} x {size[1]} pixels of {full[0]} x {full[1]}",
            )
            for label, size in sizes.items()
        )


@dataclass(frozen=True)
class _Resize:
    """What makes a Resize, for a map of any number of channels.

    Attributes:
        to: factors or sizes, one for each axis.
        attrs: of the node.
    """

    to: NDArray[Any]
    attrs: dict[str, Any]

    @classmethod
    def of(cls, node: Any) -> _Resize:
        sizes = constant_ints(node, 3, "sizes")
        to = values_of(node.inputs[2]) if sizes is None else np.array(sizes, np.int64)
        return cls(to, dict(node.attrs))

    def add(self, rw: Rewriter, x: Any, channels: int, **made: Any) -> Any:
        to = self.to.copy()
        if np.issubdtype(to.dtype, np.integer):
            to[1] = channels
        return add_resize(rw, x, to, self.attrs, **made)


def _decide_first(rw: Rewriter, y: str, chain: Sequence[str], classes: int) -> None:
    """Decide classes on the map that a chain of nearest Resizes reads, and enlarge those.

    As bytes where they fit: few processors resize wider integers, and a quantiser, which would
    not know that a class has no magnitude, leaves integers alone.
    """
    argmax, resizes = rw.node(y), [_Resize.of(rw.node(name)) for name in chain]
    x, output, attrs = rw.node(chain[0]).inputs[0], argmax.outputs[0], dict(argmax.attrs)
    turned = producer(argmax.inputs[0])
    rw.remove_node(argmax)
    dtype = np.dtype(np.uint8 if classes <= 256 else np.int32)
    kept = {**attrs, "axis": 1, "keepdims": 1}
    x = rw.add_node("ArgMax", [x], kept, hint=f"{y}/small", dtype=np.int64)
    x = rw.add_node("Cast", [x], {"to": _CODES[dtype.name]}, hint=f"{y}/narrow", dtype=dtype)
    for i, resize in enumerate(resizes):
        x = resize.add(rw, x, 1, hint=f"{y}/enlarged_{i}", dtype=dtype)
    if not attrs.get("keepdims", 1):
        by_input = rw.graph.opset >= 13
        axes = [rw.small_constant(f"{y}/axis", np.array([1], np.int64))] if by_input else []
        squeeze = {} if by_input else {"axes": [1]}
        x = rw.add_node("Squeeze", [x, *axes], squeeze, hint=f"{y}/map", dtype=dtype)
    elif turned is not None and _puts_channels_last(turned):
        x = rw.add_node("Transpose", [x], dict(turned.attrs), hint=f"{y}/map", dtype=dtype)
    reader = sole_consumer(output, rw.graph)
    if reader is not None and reader.op == "Cast":
        rw.set_input(reader, 0, x)
    else:
        rw.add_node("Cast", [x], {"to": _CODES["int64"]}, output=output)


_CODES = {"uint8": 2, "int32": 6, "int64": 7}
"""ONNX's numbers of types."""


def _puts_channels_last(node: Any) -> bool:
    return node.op == "Transpose" and [int(a) for a in node.attrs.get("perm", ())] == [0, 2, 3, 1]


def _unmoved(node: Any, x: Any, opset: int) -> str:
    """Why a node cannot be done on a smaller map just as well; empty if it can."""
    place = f"{node.op} {x.name!r} stands before it"
    if (node.domain or "") not in STANDARD_DOMAINS or len(node.outputs) != 1:
        return place
    if node.op == "Resize":
        return _odd_resize(node)
    if node.op in ("Softmax", "LogSoftmax"):
        if opset < 13:
            return f"{place} and normalises over several axes (opset below 13)"
        return "" if int(node.attrs.get("axis", -1)) % 4 == 1 else f"{place}, not over channels"
    view = conv(node)
    along = node.op in UNARY_ELEMENTWISE or node.op == "Cast"
    along = along or (not isinstance(view, str) and view.pointwise)
    return "" if along and all(is_constant(t) or not t.name for t in node.inputs[1:]) else place


def _odd_resize(node: Any) -> str:
    """Why a Resize is not one that can be moved or shortened; empty if it is."""
    x, y = node.inputs[0], node.outputs[0]
    name = f"Resize {y.name!r}"
    if x.shape is None or y.shape is None or not all(map(is_static, (*x.shape[1:], *y.shape[1:]))):
        return f"{name} has a size that is not fixed"
    if x.shape[1] != y.shape[1] or (is_static(x.shape[0]) and x.shape[0] != y.shape[0]):
        return f"{name} is not of height and width alone"
    if any(a > b for a, b in zip(_area(x), _area(y), strict=True)):
        return f"{name} makes the map smaller"
    if any(given(node, i) is not None and not is_constant(node.inputs[i]) for i in (2, 3)):
        return f"{name} has a computed size"
    if node.attrs.get("axes") or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return f"{name} has axes or an aspect policy that is not handled"
    where = _coordinates(node)
    if where not in _LINEAR and not (_mode(node) == "nearest" and where == "tf_half_pixel_for_nn"):
        return f"{name} has coordinates {where!r}"
    return ""


def _repeating(where: str, small: tuple[int, int], full: tuple[int, int]) -> dict[str, Any]:
    """Attributes of a nearest Resize whose pixels lie where a linear one would have them.

    Rounded up, as TFLite does it. In whole factors each pixel is repeated, whatever the
    coordinates: asymmetric maps, where the rounded places would lie half a pixel beside that and
    no NPU takes them, are repeated too.
    """
    attrs = {"mode": "nearest", "coordinate_transformation_mode": where}
    if where == "align_corners":
        return {**attrs, "nearest_mode": "round_prefer_ceil"}
    whole = all(b % a == 0 for a, b in zip(small, full, strict=True))
    if whole or where == "asymmetric":
        attrs["coordinate_transformation_mode"] = "asymmetric"
        return {**attrs, "nearest_mode": "floor"}
    return attrs


def _factors(old: tuple[int, int], new: tuple[int, int]) -> NDArray[np.float32]:
    return np.array([1, 1, *(scale(a, b) for a, b in zip(old, new, strict=True))], np.float32)


def _mode(node: Any) -> str:
    return str(node.attrs.get("mode", "nearest")) if node.op == "Resize" else ""


def _coordinates(node: Any) -> str:
    return str(node.attrs.get("coordinate_transformation_mode", "half_pixel"))


def _area(tensor: Any) -> tuple[int, int]:
    return int(tensor.shape[2]), int(tensor.shape[3])
