"""Remove channels that carry nothing: constant ones (folded into the next bias) and unread ones.

Training leaves such channels behind: a filter that decayed to zero, a channel no consumer has a
weight for. They cost as much as any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.channel_flow import given
from onnxnas.channel_values import Values, constant_channels, pads_border
from onnxnas.channels import positions, resize_group
from onnxnas.cost import Target
from onnxnas.coupling import ConstantAxis, Coupling, Group
from onnxnas.graph import values_of
from onnxnas.pass_contract import Pass, Why
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.sites import Choice, Site


@dataclass
class _Dead:
    """What is dead in one group.

    Attributes:
        channels: may be removed.
        stuck: constant channels that cannot, because a consumer cannot take the constant in.
        unread: how many of `channels` no consumer has a weight for.
        folded: output of a consumer -> what its weights for `channels` multiply, in their order.
    """

    channels: NDArray[np.int64]
    stuck: int
    unread: int
    folded: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class RemoveDeadChannels(Pass):
    """Offers every channel group without its dead channels."""

    name: ClassVar[str] = "remove-dead-channels"
    summary: ClassVar[str] = "Remove channels that are constant or that nothing reads."
    order: ClassVar[int] = 10

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        coupling = Coupling.of(graph)
        known = constant_channels(graph, coupling.opaque)
        for group in coupling.groups:
            if not group.producers:
                continue
            place = group.name or group.tensors[0].tensor.name
            obstacle = group.pins[0] if group.pins else ""
            if not obstacle and not group.name:
                obstacle = "no tensor consists of these channels alone"
            if obstacle:
                constant = int(np.count_nonzero(~np.isnan(known.get(place, np.nan))))
                if constant:
                    why.miss(place, f"{constant} channels are constant, but {obstacle}")
                continue
            dead = _dead(group, known)
            if dead.stuck:
                why.miss(
                    place,
                    f"{dead.stuck} of {group.size} channels are constant but not zero, and what "
                    "reads them cannot take a constant in (padded, or without a constant bias)",
                )
            if not len(dead.channels):
                continue
            choices = _choices(group, known, dead, target.channel_multiples)
            yield Site(self.name, group.name, choices, group.claims, {"channels": group.size})

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        group = _group_now(rw, site)
        dead = np.asarray(choice.params["dead"], np.int64)
        folded: Mapping[str, list[float]] = choice.params["folded"]
        for use in group.consumers:
            values = folded.get(use.node.outputs[0].name)
            if values:
                _fold(rw, use, dead, np.asarray(values))
        # Folding may have given a consumer its first bias: find the group with it.
        group = _group_now(rw, site)
        resize_group(rw, group, np.setdiff1d(np.arange(group.size), dead).tolist())


def _choices(
    group: Group, known: Mapping[str, Values], dead: _Dead, multiples: tuple[int, ...]
) -> tuple[Choice, ...]:
    """All dead channels, or so many that a width is left that the target works in."""
    left = group.size - len(dead.channels)
    widths = {-(-left // m) * m: f"remove-to-multiple-of-{m}" for m in sorted(multiples)}
    choices = []
    for width, label in sorted({**widths, left: "remove"}.items()):
        if width >= group.size:
            continue
        some = dead if width == left else _dead(group, known, most=group.size - width)
        count = f"{len(some.channels)} of {group.size} channels"
        kinds = f"{len(some.channels) - some.unread} constant, {some.unread} unread"
        params = {"dead": tuple(some.channels.tolist()), "folded": some.folded}
        choices.append(Choice(label, params, note=f"{count} removed: {kinds}"))
    return tuple(choices)


def _group_now(rw: Rewriter, site: Site) -> Group:
    rw.tensor(site.tensor)
    group = Coupling.of(rw.graph).group(site.tensor)
    if group is None or group.size != site.params["channels"]:
        raise SiteGone(f"the channels of {site.tensor!r} are not what they were")
    if group.pins:
        raise SiteGone(group.pins[0])
    return group


def _dead(group: Group, known: Mapping[str, Values], most: int | None = None) -> _Dead:
    every = np.arange(group.size)
    constant, removable, unread = (np.ones(group.size, bool) for _ in range(3))
    for use in group.consumers:
        x, foldable = use.node.inputs[0], _takes_constants(use.node)
        read_by = _reads(use)
        for run in use.runs:
            at = positions(run, every)
            values = known.get(x.name, np.full(int(x.shape[1]), np.nan))[at]
            reads = read_by[at]
            fixed = ~reads | ~np.isnan(values)
            gone = ~reads | (values == 0) | (fixed & foldable)
            for mask, found in ((constant, fixed), (removable, gone), (unread, ~reads)):
                mask &= found.reshape(group.size, run.repeat).all(1)
    stuck = int((constant & ~removable).sum())
    if removable.all():  # a tensor without channels does not exist
        removable[0] = False
    channels = np.flatnonzero(removable)[:most]
    dead = _Dead(channels, stuck, int(unread[channels].sum()))
    for use in group.consumers:
        at = np.concatenate([positions(run, dead.channels) for run in use.runs])
        x = use.node.inputs[0]
        values = np.where(_reads(use)[at], known.get(x.name, np.zeros(int(x.shape[1])))[at], 0.0)
        if values.any():
            dead.folded[use.node.outputs[0].name] = values.tolist()
    return dead


def _reads(use: ConstantAxis) -> NDArray[np.bool_]:
    """Which positions of a consumer's input have a weight other than zero."""
    weight = values_of(use.node.inputs[use.input])
    read: NDArray[np.bool_] = (
        (np.moveaxis(weight, use.axis, 0) != 0).reshape(weight.shape[use.axis], -1).any(1)
    )
    return read


def _takes_constants(node: Any) -> bool:
    """Whether a constant input channel can be folded into the node's bias."""
    bias = given(node, 2)
    if bias is not None and not isinstance(bias, gs.Constant):
        return False
    if node.op == "Gemm":
        return bias is None or len(bias.shape) < 2 or bias.shape[0] == 1
    return node.op == "Conv" and not pads_border(node)


def _fold(rw: Rewriter, use: ConstantAxis, dead: NDArray[np.int64], values: Values) -> None:
    """Give a consumer's bias what its weights make of constant channels."""
    node, weight, bias = use.node, use.node.inputs[1], given(use.node, 2)
    at = np.concatenate([positions(run, dead) for run in use.runs])
    gemm = node.op == "Gemm"
    alpha = float(node.attrs.get("alpha", 1.0)) if gemm else 1.0
    beta = float(node.attrs.get("beta", 1.0)) if gemm else 1.0
    count = int(weight.shape[1 - use.axis])

    def compute() -> NDArray[Any]:
        taken = np.moveaxis(values_of(weight), use.axis, 0)[at].astype(np.float64)
        added: NDArray[Any] = alpha * (values @ taken.reshape(len(at), count, -1).sum(2))
        if bias is not None:
            added = added + beta * values_of(bias).reshape(-1)
        return added

    new = rw.constant(f"{node.outputs[0].name}/bias", (count,), compute, weight.dtype)
    rw.set_input(node, 2, new)
    if beta != 1.0:
        rw.set_attrs(node, beta=1.0)  # it is in the new bias
