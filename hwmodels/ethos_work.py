"""What the NPU computes in a step: its operators, with the passes of the output unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from onnxnas.hwmodels.ethos_array import Size, Work
from onnxnas.hwmodels.ethos_shapes import size
from onnxnas.hwmodels.ethos_step import CLAMPS, Step
from onnxnas.kernels import Kernel
from onnxnas.ops import UNARY_ELEMENTWISE
from onnxnas.weight_statistics import sparse_bits

_MOST_PIXELS = 65_536
"""Of an arg-max that is taken at once."""
_LARGEST_DILATION = 2
_TRANSPOSES = 5
"""After a depthwise convolution with several outputs per channel."""
_MOST_NEXT = 2.5
"""Channels that an output may depend on for its weights to count as sparse: two, but not three."""
_SPEEDS = {"Add": "add", "Sub": "add", "Sum": "add", "Mul": "multiply", "Div": "multiply"}


class Operator(NamedTuple):
    """One operator of a step.

    Attributes:
        work: what is computed.
        speeds: of the output unit for each of its passes, see `Chip`.
        times: how often it runs, each time on other channels.
        constant_channels: of a constant with one value per channel that is read too (U55, U65).
    """

    work: Work
    speeds: tuple[str, ...] = ("plain",)
    times: int = 1
    constant_channels: int = 0


def operators(step: Step, kernel: Kernel, new: bool, stripe: int = 0) -> Sequence[Operator]:
    """Operators of a step, one after the other; none where it is not known how it runs.

    Args:
        step: of a schedule.
        kernel: it belongs to.
        new: on Ethos-U85.
        stripe: output rows made at once inside a cascade, else 0.
    """
    ofm = size(step.shape)
    if step.on_cpu:
        return ()
    if step.op == "Copy":
        return (Operator(Work("copy", ofm, ofm)),)
    if step.op in ("Resize", "Upsample"):
        return _resize(step, kernel, size(step.source), ofm, new)
    if step.op == "Conv" and step.part:  # one pixel of four of an enlargement
        ifm = (size(step.source)[0] - 1, size(step.source)[1] - 1, kernel.in_channels)
        return (Operator(Work("depthwise", ifm, ofm, (2, 2))),)
    if step.weighted and kernel.op != "ArgMax":
        return _weighted(step, kernel, new, stripe)
    if step.op in ("MaxPool", "AveragePool"):
        ifm = (*size(step.source)[:2], kernel.in_channels)
        speed = _speed(kernel.activation, "maximum" if step.op == "MaxPool" else "plain")
        work = Work("pool", ifm, ofm, kernel.window, kernel.strides, (1, 1), stripe)
        return (Operator(work, _passes(step, speed)),)
    if step.op == "ArgMax" or (kernel.op == "ArgMax" and step.op == "Conv"):
        return _largest(step, kernel, new)
    smaller = step.op == "PRelu" or kernel.op in ("PRelu", f"{step.op}Broadcast")
    work = Work("elementwise", ofm, ofm, broadcast=smaller and step.op not in ("Max", "Add"))
    work = work._replace(stripe=0 if step.chained else stripe)
    if step.op == "PRelu" and step.chained:
        return (Operator(work, ("multiply", "plain")),)
    if step.arithmetic:
        speed = _SPEEDS.get(step.op, "plain")
        constant = kernel.op == "PRelu" and step.op == "Mul"
        own = step.op == kernel.op[: len(step.op)]
        activation = kernel.activation if own and kernel.activation != "Silu" else "none"
        passes = _passes(step, _speed(activation, speed))
        return (Operator(work, passes, 1, ofm[2] if constant else 0),)
    if step.op in UNARY_ELEMENTWISE:
        speed = "plain" if not new else "plain+clamp" if step.op in CLAMPS else "plain+table"
        return (Operator(Work("pool", ofm, ofm), _passes(step, speed)),)
    return ()


def _speed(activation: str, plain: str = "plain") -> str:
    if activation == "none":
        return plain
    return f"{plain}+clamp" if activation in CLAMPS else f"{plain}+table"


def _passes(step: Step, first: str) -> tuple[str, ...]:
    """Passes of the output unit; activations share that of the operator before them."""
    passes = [first]
    for inner in step.inside:
        if inner.arithmetic:
            passes.append(_SPEEDS.get(inner.op, "plain"))
        elif "+" not in passes[-1]:
            passes[-1] = _speed(inner.op, passes[-1])
    return tuple(passes)


def _weighted(step: Step, kernel: Kernel, new: bool, stripe: int) -> Sequence[Operator]:
    """Convolutions: a grouped one as a convolution per group."""
    ifm = (kernel.in_height, kernel.in_width, kernel.in_channels)
    ofm = (kernel.out_height, kernel.out_width, kernel.out_channels)
    apart = kernel.op == "GroupedConv" or kernel.activation == "Silu"
    passes = _passes(step, _speed("none" if apart else kernel.activation))
    if kernel.op in ("GlobalAveragePool", "ReduceMean"):
        return (Operator(Work("depthwise", ifm, ofm, ifm[:2]), passes),)
    if kernel.op == "Gemm":
        ifm = (1, 1, ifm[0] * ifm[1] * ifm[2])
        return (Operator(Work("product", ifm, (1, 1, ofm[2])), passes),)
    kind, groups = "conv", 1
    if kernel.op == "DepthwiseConv" and ifm[2] == ofm[2]:
        kind = "depthwise"
    elif kernel.op == "GroupedConv":
        groups = kernel.groups
        ifm, ofm = (*ifm[:2], ifm[2] // groups), (*ofm[:2], ofm[2] // groups)
    elif (
        kernel.op == "DepthwiseConv"
    ):  # one output of each channel after the other, then put in order
        groups, kind = ofm[2] // ifm[2], "depthwise"
        order = Operator(Work("copy", ofm, ofm), times=_TRANSPOSES)
        ofm = (*ofm[:2], ifm[2])
        return (Operator(Work(kind, ifm, ofm, *_window(kernel)), passes, groups), order)
    elif kernel.op != "Conv":
        return ()
    stripe = 0 if step.chained else stripe
    work = Work(kind, ifm, ofm, *_window(kernel), stripe)
    work = work._replace(sparse=new and kind == "conv" and _sparse(kernel))
    return (Operator(work, passes, groups),)


def _window(kernel: Kernel) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Window, strides, dilations; the NPU dilates by two, the rest are zeros in the window."""
    if max(kernel.dilations) <= _LARGEST_DILATION:
        return kernel.window, kernel.strides, kernel.dilations
    own = [_LARGEST_DILATION if d % _LARGEST_DILATION == 0 else 1 for d in kernel.dilations]
    height, width = (
        (w - 1) * (d // o) + 1 for w, d, o in zip(kernel.window, kernel.dilations, own, strict=True)
    )
    return (height, width), kernel.strides, (own[0], own[1])


def _sparse(kernel: Kernel) -> bool:
    """Whether few enough weights differ from zero, as in a depthwise kernel made dense."""
    per_group = kernel.in_channels / kernel.groups
    return (
        per_group <= _MOST_NEXT
        or kernel.rice_bits < sparse_bits(8.0, 8.0, _MOST_NEXT / per_group)[1]
    )


def _resize(step: Step, kernel: Kernel, ifm: Size, ofm: Size, new: bool) -> Sequence[Operator]:
    """U85 enlarges at once; U55 and U65 by two at a time, and an average smooths the last."""
    speed = _passes(step, _speed(kernel.activation, "table" if new else "plain"))
    if new:
        return (Operator(Work("resize", ifm, ofm), speed),)
    if step.enlarges == 1:
        return ()
    window = (step.window, step.window)
    return (Operator(Work("pool", ifm, ofm, window, enlarges=True), speed),)


def _largest(step: Step, kernel: Kernel, new: bool) -> Sequence[Operator]:
    """A pool as wide as there are channels.

    U85 takes as many pixels at once as an axis may have. On U55 and U65, values and places are
    joined into 16 bits first, by a depthwise convolution.
    """
    ifm = (kernel.in_height, kernel.in_width, kernel.in_channels)
    if step.op == "Conv":
        return (Operator(Work("depthwise", ifm, ifm)),)
    if not new:
        return ()
    pixels = ifm[0] * ifm[1]
    pieces = [_MOST_PIXELS] * (pixels // _MOST_PIXELS) + [pixels % _MOST_PIXELS]
    works = [Work("pool", (n, ifm[2], 1), (n, 1, 1), (1, ifm[2])) for n in pieces if n]
    return [Operator(work) for work in works]
