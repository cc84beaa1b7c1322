"""PRelu with a slope per channel, written with convolutions and Relu.

Accelerators fuse Relu into a convolution and have no unit for a slope per channel: their compilers
make several slow elementwise operators of it. With a slope s of a channel, and for all x,

    prelu(x) = x + relu((s - 1) * x)              if s <= 1
    prelu(x) = relu(x) - s * relu(-x)             for any s

The first needs a 1x1 depthwise convolution and an Add; where a convolution alone reads the sum it
can read both terms instead, and the Add comes after it, on less data. In the second both terms can
come out of one convolution with twice the channels (CReLU: Shang et al., "Understanding and
Improving Convolutional Neural Networks via Concatenated Rectified Linear Units", ICML 2016), and
the convolution that reads them takes the slopes into its weights. All terms are zero at zero, so
zero padding stays what it is. Which form pays, if any, differs by place and target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.cost import Target
from onnxnas.graph import is_static, values_of
from onnxnas.ops import STANDARD_DOMAINS, Conv, conv, merge_groups, producer, sole_consumer
from onnxnas.pass_contract import Pass, Why
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.sites import Choice, Site


@dataclass(frozen=True)
class RewritePRelu(Pass):
    """Offers every PRelu in the forms that its slopes and neighbours allow.

    A site claims the PRelu alone, so that both activations around one convolution, and that
    convolution too, can be rewritten: the neighbours, their groups and channels are read from the
    graph as it is then. `add-later` alone takes another node's name, and claims it.
    """

    name: ClassVar[str] = "rewrite-prelu"
    summary: ClassVar[str] = "Write PRelu with convolutions and Relu, or as LeakyRelu."
    order: ClassVar[int] = 70

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        top = {id(node) for node in graph.nodes}
        for node in graph.nodes:
            if node.op != "PRelu" or (node.domain or "") not in STANDARD_DOMAINS:
                continue
            y = node.outputs[0]
            equal = _equal_slopes(node)
            if equal is not None:
                yield Site(self.name, y.name, (equal,), frozenset({f"node:{y.name}"}))
                continue
            obstacle = _obstacle(node)
            if obstacle:
                why.miss(node, obstacle)
                continue
            steep = float(values_of(node.inputs[1]).max())
            if steep > 1:
                why.miss(node, f"a slope is {steep:.3g}, and x + relu((s - 1) * x) needs s <= 1")
            readers = _readers(y, graph, top)
            choices = tuple(_choices(node, graph, readers, steep <= 1))
            if choices:
                yield Site(self.name, y.name, choices, frozenset({f"node:{y.name}"}))
            if steep <= 1 and len(readers) == 1 and _shrinks(readers[0]):
                # A site of its own, so that only this choice excludes rewrites of the reader.
                after = readers[0].y
                claims = frozenset({f"node:{y.name}", f"node:{after.name}"})
                note = f"the two terms of PRelu {y.name!r} are added after this convolution"
                later = (Choice("add-later", note=note),)
                yield Site(self.name, after.name, later, claims, {"prelu": y.name})

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        node = rw.node(site.params.get("prelu", site.tensor))
        if node.op != "PRelu":
            raise SiteGone(f"{site.tensor!r} is no longer the output of a PRelu")
        if choice.label in ("relu", "leaky-relu"):
            x, y = node.inputs[0], node.outputs[0]
            rw.remove_node(node)
            rw.add_node(
                "Relu" if choice.label == "relu" else "LeakyRelu", [x], choice.params, output=y
            )
        elif choice.label == "add":
            _add(rw, node)
        elif choice.label == "add-later":
            _add_later(rw, node)
        elif choice.label == "mix":
            _mix(rw, node)
        else:
            _mirror(rw, node, dense=choice.label == "mirror-dense")


def _equal_slopes(node: Any) -> Choice | None:
    """The one choice for a PRelu that treats all channels alike, None if it does not."""
    slope = node.inputs[1]
    if not isinstance(slope, gs.Constant):
        return None
    values = values_of(slope)
    if not values.size or (values != values.flat[0]).any():
        return None
    alpha = float(values.flat[0])
    if alpha == 0:
        return Choice("relu", note="all slopes are 0")
    return Choice("leaky-relu", {"alpha": alpha}, note=f"all slopes are {alpha:.3g}")


def _obstacle(node: Any) -> str:
    """Why a PRelu with different slopes cannot be rewritten; empty if it can."""
    x, slope = node.inputs[:2]
    if not isinstance(slope, gs.Constant):
        return "its slope is not a constant"
    if x.shape is None or len(x.shape) != 4 or not is_static(x.shape[1]):
        return "its input is not [N, C, H, W] with a known C"
    shape = [1] * (4 - len(slope.shape)) + list(slope.shape)
    if shape != [1, x.shape[1], 1, 1]:
        return "its slopes differ within a channel"
    if np.dtype(slope.dtype) not in (np.float32, np.float64):
        return f"rounding of {np.dtype(slope.dtype)} would show in the sum"
    return ""


def _readers(y: Any, graph: Any, top: set[int]) -> list[Conv]:
    """The convolutions that read a tensor; none if anything else does."""
    views = [conv(node) for node in y.outputs if id(node) in top]
    found = [v for v in views if isinstance(v, Conv) and v.x is y]
    wanted = any(y is out for out in graph.outputs) or len(found) != len(y.outputs)
    return [] if wanted else found


def _choices(node: Any, graph: Any, readers: list[Conv], gentle: bool) -> Iterator[Choice]:
    x = node.inputs[0]
    before = _own_producer(x, graph)
    if gentle:
        yield Choice("add", note="a depthwise 1x1 convolution with Relu, and an Add")
    if before is None:
        return
    if before.group == 1:
        yield Choice("mix", note="twice the channels before it with Relu, and a 1x1 convolution")
    if readers and all(view.group == 1 for view in readers):
        yield Choice("mirror", note="twice the channels with Relu, slopes in the weights after it")
    if readers and any(view.group > 1 for view in (before, *readers)):
        note = "as a mirror, with the grouped convolutions around it made dense"
        yield Choice("mirror-dense", note=note)


def _own_producer(x: Any, graph: Any) -> Conv | None:
    """The convolution that computes a tensor only one node reads, None if there is none."""
    node = producer(x)
    view = conv(node) if node is not None and sole_consumer(x, graph) is not None else ""
    return view if isinstance(view, Conv) else None


def _shrinks(view: Conv) -> bool:
    """Whether there is less to add after a convolution than before; unknown sizes: by strides."""
    sizes = [*view.x.shape[1:], *(view.y.shape or [None])[1:]]
    if len(sizes) == 6 and all(is_static(d) for d in sizes):
        return bool(prod(sizes[3:]) < prod(sizes[:3]))
    return prod(view.strides) * view.in_channels > view.out_channels


def _add(rw: Rewriter, node: Any) -> None:
    x, y, gap = node.inputs[0], node.outputs[0], _gap(rw, node)
    rw.remove_node(node)
    rw.add_node("Add", [x, gap], output=y)


def _add_later(rw: Rewriter, node: Any) -> None:
    x, y, gap = node.inputs[0], node.outputs[0], _gap(rw, node)
    rw.remove_node(node)
    # A rewrite of the activation after the reader may have made two of it.
    for reader in list(y.outputs):
        view = conv(reader)
        if isinstance(view, str):
            raise SiteGone(f"{reader.outputs[0].name!r}, which reads {y.name!r}, {view}")
        after, attrs, weights = view.y, dict(reader.attrs), list(reader.inputs[1:])
        rw.remove_node(reader)
        terms = [
            rw.add_node(
                "Conv", [term, *constants], attrs, hint=f"{after.name}/{hint}", dtype=x.dtype
            )
            for hint, term, constants in (("of_x", x, weights), ("of_gap", gap, weights[:1]))
        ]
        rw.add_node("Add", terms, output=after)


def _gap(rw: Rewriter, node: Any) -> Any:
    """What has to be added to x: relu((s - 1) * x)."""
    x, slope, name = node.inputs[0], node.inputs[1], node.outputs[0].name
    channels = int(x.shape[1])
    factor = rw.constant(
        f"{name}/slope_minus_1",
        (channels, 1, 1, 1),
        lambda: (values_of(slope) - 1).reshape(channels, 1, 1, 1),
        slope.dtype,
    )
    scaled = _depthwise(rw, x, factor, f"{name}/scaled")
    return rw.add_node("Relu", [scaled], hint=f"{name}/gap", dtype=x.dtype)


def _mix(rw: Rewriter, node: Any) -> None:
    slope, y = node.inputs[1], node.outputs[0]
    channels = int(node.inputs[0].shape[1])
    both = _both_signs(rw, node)
    rw.remove_node(node)

    def compute() -> NDArray[Any]:
        slopes = np.diag(values_of(slope).reshape(-1))
        return np.concatenate([np.eye(channels), -slopes], axis=1)[:, :, None, None]

    shape = (channels, 2 * channels, 1, 1)
    weight = rw.constant(f"{y.name}/mix", shape, compute, slope.dtype, density=1 / channels)
    rw.add_node("Conv", [both, weight], {"kernel_shape": [1, 1]}, output=y)


def _mirror(rw: Rewriter, node: Any, *, dense: bool) -> None:
    slope, y = node.inputs[1], node.outputs[0]
    views = [conv(reader) for reader in y.outputs]
    for view in views:
        if isinstance(view, str) or not (dense or view.group == 1) or view.x is not y:
            raise SiteGone(f"not only ungrouped convolutions read {y.name!r} any more")
    both = _both_signs(rw, node, dense=dense)
    rw.remove_node(node)
    for view in views:
        assert isinstance(view, Conv)
        weight = rw.constant(
            f"{view.y.name}/weight",
            (view.out_channels, 2 * view.in_channels, *view.kernel),
            _with_slopes(view, slope),
            view.weight.dtype,
            density=1 / view.group,
        )
        rw.set_input(view.node, 0, both)
        rw.set_input(view.node, 1, weight)
        rw.set_attrs(view.node, group=1)


def _with_slopes(view: Conv, slope: Any) -> Any:
    def compute() -> NDArray[Any]:
        values = merge_groups(values_of(view.weight), view.group, 1)
        return np.concatenate([values, -values * values_of(slope).reshape(1, -1, 1, 1)], axis=1)

    return compute


def _both_signs(rw: Rewriter, node: Any, *, dense: bool = False) -> Any:
    """relu(x) and relu(-x) as one tensor of twice the channels, made by x's own convolution.

    Where that has groups and shall not be `dense`, or (after other rewrites) is not x's own any
    more, two nodes write it: few targets have depthwise convolutions with more outputs than inputs.
    """
    x, name, dtype = node.inputs[0], node.outputs[0].name, node.inputs[0].dtype
    before = _own_producer(x, rw.graph)
    if before is not None and (dense or before.group == 1):
        constants = _signed(rw, before, name, double=True)
        attrs, source = {**before.node.attrs, "group": 1}, before.x
        rw.remove_node(before.node)
        doubled = rw.add_node(
            "Conv", [source, *constants], attrs, hint=f"{name}/doubled", dtype=dtype
        )
        return rw.add_node("Relu", [doubled], hint=f"{name}/both_signs", dtype=dtype)
    if before is None:
        channels = int(x.shape[1])
        minus = rw.constant(
            f"{name}/minus", (channels, 1, 1, 1), lambda: np.full((channels, 1, 1, 1), -1.0), dtype
        )
        negative = _depthwise(rw, x, minus, f"{name}/negative")
    else:
        constants = _signed(rw, before, name, double=False)
        negative = rw.add_node(
            "Conv",
            [before.x, *constants],
            dict(before.node.attrs),
            hint=f"{name}/negative",
            dtype=dtype,
        )
    parts = [
        rw.add_node("Relu", [part], hint=f"{name}/relu", dtype=dtype) for part in (x, negative)
    ]
    return rw.add_node("Concat", parts, {"axis": 1}, hint=f"{name}/both_signs", dtype=dtype)


def _signed(rw: Rewriter, view: Conv, name: str, *, double: bool) -> list[Any]:
    """A convolution's weight and bias negated; to `double`, after what they were, in one group."""
    weight, bias, group = view.weight, view.bias, view.group if double else 1

    def signed(hint: str, old: Any, shape: tuple[int, ...], density: float = 1.0) -> Any:
        def compute() -> NDArray[Any]:
            values = values_of(old)
            if old is weight:
                values = merge_groups(values, group, 1)
            return np.concatenate([values, -values]) if double else -values

        full = ((1 + double) * view.out_channels, *shape)
        return rw.constant(f"{name}/{hint}", full, compute, old.dtype, density)

    shape = (int(weight.shape[1]) * group, *view.kernel)
    constants = [signed("weight", weight, shape, 1 / group)]
    return constants if bias is None else [*constants, signed("bias", bias, ())]


def _depthwise(rw: Rewriter, x: Any, weight: Any, hint: str) -> Any:
    attrs = {"kernel_shape": [1, 1], "group": int(x.shape[1])}
    return rw.add_node("Conv", [x, weight], attrs, hint=hint, dtype=x.dtype)
