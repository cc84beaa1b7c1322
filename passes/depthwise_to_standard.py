"""Depthwise and grouped convolutions written with fewer, larger groups.

Accelerators work on many channels at once; a depthwise convolution gives them one at a time. The
same function as a standard convolution, or as one with groups of 8, 16 or 32 channels, has more
weights (zeros) and more multiply-accumulates, and is often faster still: whether it is, the cost
model says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from onnxnas.cost import Target
from onnxnas.graph import values_of
from onnxnas.ops import Conv, conv, merge_groups
from onnxnas.pass_contract import Pass, Why
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.sites import Choice, Site


@dataclass(frozen=True)
class DepthwiseToStandard(Pass):
    """Offers every grouped convolution with its groups merged, to some size or to one."""

    name: ClassVar[str] = "depthwise-to-standard"
    summary: ClassVar[str] = "Write depthwise and grouped convolutions with fewer, larger groups."
    order: ClassVar[int] = 80

    group_sizes: tuple[int, ...] = (8, 16, 32)

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        for node in graph.nodes:
            if node.op != "Conv" or int(node.attrs.get("group", 1)) == 1:
                continue
            view = conv(node)
            if isinstance(view, str):
                why.miss(node, view)
                continue
            claims = frozenset({f"node:{view.y.name}"})
            yield Site(self.name, view.y.name, self._choices(view), claims)

    def _choices(self, view: Conv) -> tuple[Choice, ...]:
        channels, before = view.in_channels, view.in_channels // view.group
        sizes = [
            n
            for n in self.group_sizes
            if before < n < channels and n % before == 0 and channels % n == 0
        ]
        kind = f"{'depthwise' if view.depthwise else 'grouped'} {view.kernel[0]}x{view.kernel[1]}"
        return tuple(
            Choice(
                "dense" if n == channels else f"groups-of-{n}",
                {"group_size": None if n == channels else n},
                note=f"{kind} over {channels} channels, weights grow {n // before}x",
            )
            for n in (*sizes, channels)
        )

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        view = conv(rw.node(site.tensor))
        if isinstance(view, str):
            raise SiteGone(f"{site.tensor!r} {view}")
        # Channel counts are read again here: a pass of earlier order may have changed them.
        size = choice.params["group_size"] or view.in_channels
        before = view.in_channels // view.group
        if size == before:
            return  # of a depthwise convolution one channel is left: it is dense already
        if view.in_channels % size or size % before:
            raise SiteGone(
                f"{site.tensor!r} now has {view.group} groups of {before} channels, "
                f"which do not merge into groups of {size}"
            )
        old, group, new_group = view.weight, view.group, view.in_channels // size
        weight = rw.constant(
            f"{site.tensor}/weight",
            (view.out_channels, size, *view.kernel),
            lambda: merge_groups(values_of(old), group, new_group),
            dtype=old.dtype,
        )
        rw.set_input(view.node, 1, weight)
        rw.set_attrs(view.node, group=new_group)
