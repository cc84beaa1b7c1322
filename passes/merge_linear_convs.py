"""Two convolutions with nothing between them are one: their weights multiplied together.

Along each axis at most one of the two kernels may be larger than 1, so the merged kernel is as
large as the larger one: 1x1 into 1x1, 1x1 into KxK or depthwise, KxK or depthwise into 1x1, 1xK
into Kx1. With x index = s1 * y index + d1 * tap - p1 in the first and the same in the second, the
composition has strides s1 * s2, padding p1 + s1 * p2, and dilation d1 or s1 * d2.

Padding of the second convolution is the trap: it surrounds the intermediate tensor, bias
included, with zeros, while the merged one pads the input. The parts agree except that the first
bias must not count where the second kernel looks over the border. That contribution does not
depend on the input: it is a constant plane, added instead of a bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.cost import Target
from onnxnas.graph import is_static, values_of
from onnxnas.ops import UNARY_ELEMENTWISE, Conv, conv, merge_groups, producer, sole_consumer
from onnxnas.pass_contract import Pass, Why
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.sites import Choice, Site

_BETWEEN = UNARY_ELEMENTWISE | {"PRelu", "BatchNormalization", "Mul", "Add", "Sub", "Div"}
"""Operators that, between two convolutions, make the pair worth a word why it is declined."""


@dataclass(frozen=True)
class MergeLinearConvs(Pass):
    """Offers every convolution merged into the one that alone reads its output."""

    name: ClassVar[str] = "merge-linear-convs"
    summary: ClassVar[str] = "Merge two convolutions without an activation between into one."
    order: ClassVar[int] = 30  # behind new widths: what is fitted holds the weights of either

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        for node in graph.nodes:
            if node.op != "Conv":
                continue
            before = producer(node.inputs[0])
            if before is None:
                continue
            if before.op != "Conv":
                between = _between(before)
                if between:
                    why.miss(node, between)
                continue
            found = self._site(before, node, graph)
            if isinstance(found, str):
                why.miss(node, found)
            else:
                yield found

    def _site(self, before: Any, node: Any, graph: Any) -> Site | str:
        if sole_consumer(before.outputs[0], graph) is not node:
            return f"{before.outputs[0].name!r}, which it reads, is also needed elsewhere"
        first, second = conv(before), conv(node)
        if isinstance(first, str):
            return f"the convolution before it cannot be merged: {first}"
        if isinstance(second, str):
            return second
        if np.dtype(second.weight.dtype) not in (np.float32, np.float64):
            return f"rounding of {np.dtype(second.weight.dtype)} would show in merged weights"
        for axis in (0, 1):
            if first.kernel[axis] > 1 and second.kernel[axis] > 1:
                return "both kernels are larger than 1x1, the merged one would be larger still"
            if first.kernel[axis] > 1 and any(_pads(second, axis)):
                return "it pads the output of a kernel larger than 1x1"
        plane = _needs_plane(first, second)
        sizes = [*(first.y.shape or ())[2:], *(second.y.shape or ())[2:]]
        if plane and not (len(sizes) == 4 and all(is_static(d) for d in sizes)):
            return (
                "it pads the output of a convolution with a bias, and the plane that would "
                "correct the border needs a fixed image size"
            )
        choice = Choice(
            "merge-with-border-plane" if plane else "merge",
            {"sizes": tuple(sizes) if plane else None},
            note=_note(first, second),
        )
        claims = {f"{kind}:{first.y.name}" for kind in ("node", "channels", "weights")}
        claims.add(f"node:{second.y.name}")
        return Site(self.name, second.y.name, (choice,), frozenset(claims), {"first": first.y.name})

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        first, second = conv(rw.node(site.params["first"])), conv(rw.node(site.tensor))
        if isinstance(first, str) or isinstance(second, str) or second.x is not first.y:
            raise SiteGone(f"{site.tensor!r} no longer follows {site.params['first']!r}")
        group = gcd(first.group, second.group)
        kernel = _kernel(first, second)
        dtype = second.weight.dtype
        weight = rw.constant(
            f"{site.tensor}/weight",
            (second.out_channels, first.in_channels // group, *kernel),
            lambda: _merged_weight(first, second),
            dtype,
        )
        attrs = {
            "group": group,
            "kernel_shape": list(kernel),
            "strides": [a * b for a, b in zip(first.strides, second.strides, strict=True)],
            "dilations": [_dilation(first, second, axis) for axis in (0, 1)],
            "pads": [
                p + s * q
                for p, s, q in zip(first.pads, first.strides * 2, second.pads, strict=True)
            ],
        }
        x, y = first.x, second.y
        # A rewrite before this one may have given the maps another size.
        sizes = (*(first.y.shape or ())[2:], *(second.y.shape or ())[2:])
        if choice.params["sizes"] is not None and len(sizes) != 4:
            raise SiteGone(f"the size of {site.tensor!r} is not known any more")
        rw.remove_node(first.node)
        rw.remove_node(second.node)
        if choice.params["sizes"] is None:
            bias = second.bias
            if first.bias is not None:
                bias = rw.constant(
                    f"{site.tensor}/bias",
                    (second.out_channels,),
                    lambda: _merged_bias(first, second),
                    dtype,
                )
            rw.add_node("Conv", [x, weight] if bias is None else [x, weight, bias], attrs, output=y)
            return
        merged = rw.add_node("Conv", [x, weight], attrs, hint=f"{site.tensor}/merged", dtype=dtype)
        plane = rw.constant(
            f"{site.tensor}/border_plane",
            (1, second.out_channels, *sizes[2:]),
            lambda: _border_plane(first, second, sizes),
            dtype,
        )
        rw.add_node("Add", [merged, plane], output=y)


def _between(node: Any) -> str:
    """Why a convolution after `node` is not merged with one before it; empty if none is."""
    if node.op not in _BETWEEN:
        return ""
    for tensor in node.inputs:
        before = producer(tensor)
        if before is not None and before.op == "Conv":
            others = [t for t in node.inputs if t is not tensor and t.name]
            if all(isinstance(t, gs.Constant) for t in others):
                return f"{node.op} stands between it and the convolution {tensor.name!r}"
    return ""


def _needs_plane(first: Conv, second: Conv) -> bool:
    return any(second.pads) and first.bias is not None and bool(values_of(first.bias).any())


def _pads(view: Conv, axis: int) -> tuple[int, int]:
    return view.pads[axis], view.pads[axis + 2]


def _kernel(first: Conv, second: Conv) -> tuple[int, int]:
    return (
        max(first.kernel[0], second.kernel[0]),
        max(first.kernel[1], second.kernel[1]),
    )


def _dilation(first: Conv, second: Conv, axis: int) -> int:
    if second.kernel[axis] > 1:
        return first.strides[axis] * second.dilations[axis]
    return first.dilations[axis] if first.kernel[axis] > 1 else 1


def _note(first: Conv, second: Conv) -> str:
    def text(view: Conv) -> str:
        return f"{'depthwise ' if view.depthwise else ''}{view.kernel[0]}x{view.kernel[1]}"

    height, width = _kernel(first, second)
    inputs = first.in_channels // gcd(first.group, second.group)
    after = second.out_channels * inputs * height * width
    before = int(np.prod(first.weight.shape) + np.prod(second.weight.shape))
    return f"{text(first)} into {text(second)}, weights x{after / before:.2g}"


def _merged_weight(first: Conv, second: Conv) -> NDArray[Any]:
    """[out, in / group, kh, kw] with group = gcd of both: the products of the channel matrices."""
    group = gcd(first.group, second.group)
    product = _channel_matrices(second, group) @ _channel_matrices(first, group)
    merged: NDArray[Any] = np.moveaxis(product, (3, 4), (1, 2))
    return merged.reshape(second.out_channels, *merged.shape[2:])


def _channel_matrices(view: Conv, group: int) -> NDArray[Any]:
    """[group, kh, kw, out / group, in / group] in float64; size 1 broadcasts along each axis."""
    weight = merge_groups(values_of(view.weight), view.group, group).astype(np.float64)
    weight = weight.reshape(group, view.out_channels // group, *weight.shape[1:])
    # Contiguous matrices are multiplied by BLAS, others by a loop that is 20 times slower.
    return np.ascontiguousarray(np.moveaxis(weight, (1, 2), (3, 4)))


def _bias_per_tap(first: Conv, second: Conv) -> NDArray[Any]:
    """[out, kh, kw]: what the first bias adds through each tap of the second kernel."""
    group = second.group
    weight = values_of(second.weight).astype(np.float64)
    weight = weight.reshape(group, second.out_channels // group, *weight.shape[1:])
    bias = values_of(first.bias).astype(np.float64).reshape(group, -1)
    taps: NDArray[Any] = np.einsum("gomhw,gm->gohw", weight, bias)
    return taps.reshape(second.out_channels, *second.kernel)


def _second_bias(second: Conv) -> NDArray[Any]:
    if second.bias is None:
        return np.zeros(second.out_channels)
    return values_of(second.bias).astype(np.float64)


def _merged_bias(first: Conv, second: Conv) -> NDArray[Any]:
    """[out], where every tap of the second kernel sees the first bias."""
    bias: NDArray[Any] = _second_bias(second) + _bias_per_tap(first, second).sum(axis=(1, 2))
    return bias


def _border_plane(first: Conv, second: Conv, sizes: tuple[int, ...]) -> NDArray[Any]:
    """[1, out, h, w]: both biases, each tap counted only where it is inside the first output.

    Args:
        sizes: height and width of the first output, then of the second.
    """
    inside = []
    for axis in (0, 1):
        position = np.arange(sizes[2 + axis])[:, None] * second.strides[axis]
        position = position + np.arange(second.kernel[axis]) * second.dilations[axis]
        position = position - _pads(second, axis)[0]
        inside.append((position >= 0) & (position < sizes[axis]))
    plane: NDArray[Any] = np.einsum("ohw,yh,xw->oyx", _bias_per_tap(first, second), *inside)
    return np.expand_dims(plane + _second_bias(second)[:, None, None], 0)
