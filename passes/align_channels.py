"""Zero-pad channels up to counts the target works on at once; the outputs stay the same.

An accelerator that computes 16 channels at a time spends as long on 17 as on 32. Padded, the
layout is regular and weights stream in whole blocks; whether that is faster, the cost model says.
New channels have zero weights on both sides, so no other value changes. They also give later
passes (and training) room at no cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from onnxnas.channels import padded, resize_group
from onnxnas.cost import Target
from onnxnas.coupling import Coupling, Group
from onnxnas.pass_contract import Pass, Why
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.sites import Choice, Site


@dataclass(frozen=True)
class AlignChannels(Pass):
    """Offers every channel group of an odd width the target's multiples above it."""

    name: ClassVar[str] = "align-channels"
    summary: ClassVar[str] = "Zero-pad channels to the multiples the target works in."
    order: ClassVar[int] = 60

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        for group in Coupling.of(graph).groups:
            choices = _choices(group, target.channel_multiples)
            if not choices or not group.producers:
                continue
            obstacle = _obstacle(group)
            if obstacle:
                why.miss(group.name or group.tensors[0].tensor.name, obstacle)
            else:
                yield Site(self.name, group.name, choices, group.claims)

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        rw.tensor(site.tensor)
        group = Coupling.of(rw.graph).group(site.tensor)
        obstacle = "its channels are in several groups now" if group is None else _obstacle(group)
        if group is None or obstacle:
            raise SiteGone(f"{site.tensor!r} cannot be padded: {obstacle}")
        resize_group(rw, group, padded(group, choice.params["multiple"]))


def _choices(group: Group, multiples: tuple[int, ...]) -> tuple[Choice, ...]:
    """Ascending in width; of multiples that lead to one width the largest gives it its name."""
    by_width = {len(padded(group, multiple)): multiple for multiple in sorted(multiples)}
    return tuple(
        Choice(
            f"multiple-of-{multiple}",
            {"multiple": multiple},
            note=f"{group.size} channels padded to {width} in {len(group.tensors)} tensors",
        )
        for width, multiple in sorted(by_width.items())
        if width != group.size
    )


def _obstacle(group: Group) -> str:
    """Why a group cannot be padded; empty if it can."""
    reasons = [*group.pins, *group.unpaddable]
    if not reasons and not group.name:
        return "no tensor consists of these channels alone"
    more = f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else ""
    return reasons[0] + more if reasons else ""
