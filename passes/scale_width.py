"""Narrow any other channels: the features under a classifier, the stem, a stage, the whole network.

All layers that write or read some channels change together (`onnxnas.coupling`); the readers are
fitted anew. Hidden layers of blocks, one by one, are `resize-ibn`'s; here they take part where a
whole stage (all channels at one resolution) or the whole network is scaled by one factor, the
width multiplier of MobileNet (Howard et al. 2017, arXiv:1704.04861).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from onnxnas.cost import Target
from onnxnas.coupling import Coupling, Group
from onnxnas.graph import is_static
from onnxnas.joint_widths import Layer, Rounds, fit_alone, fit_in_rounds, layers_of, resize_together
from onnxnas.pass_contract import Fitted, Pass, Tick, Why, no_tick
from onnxnas.rewriter import Rewriter
from onnxnas.samples import Samples, Sampling
from onnxnas.sites import Choice, Site
from onnxnas.width_pass import WidthPass, inside_block


@dataclass(frozen=True)
class ScaleWidth(WidthPass):
    """Offers every group of channels outside blocks, every stage, and the whole network narrower.

    Attributes:
        largest_bytes: what the sums of a joint fit may take; where they would take more, only
            single groups are offered.
    """

    name: ClassVar[str] = "scale-width"
    summary: ClassVar[str] = "Narrow coupled channels, a stage or the whole network, re-fitted."
    order: ClassVar[int] = 20
    largest_bytes: int = 1 << 31

    def concerns(self, graph: Any, group: Group) -> bool:
        return not inside_block(group)

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        place = {t.name: i for i, node in enumerate(graph.nodes) for t in node.outputs}
        sites = [*super().find_sites(graph, target, why), *self._joint(graph, target, why, place)]
        yield from sorted(sites, key=lambda site: place[site.tensor])

    def _joint(self, graph: Any, target: Target, why: Why, place: dict[str, int]) -> Iterator[Site]:
        groups = [g for g in Coupling.of(graph).groups if _can_change(g)]
        whole = next((t.name for t in graph.outputs if t.name in place), "")
        if len(groups) < 2 or not whole:
            return
        site = self._site(graph, whole, groups, target, why)
        if site is None:
            return
        yield site
        stages: dict[tuple[int, int], list[Group]] = {}
        for group in groups:
            size = _resolution(graph, group.name)
            if size is None:
                why.miss(whole, "has no stages: spatial sizes are not known")
                return
            stages.setdefault(size, []).append(group)
        taken = {whole, *(g.name for g in groups)}
        for size, some in stages.items():
            if size == (1, 1) or not 1 < len(some) < len(groups):
                continue
            at = [t for t in place if t not in taken and _resolution(graph, t) == size]
            if at:
                taken.add(at[-1])
                found = self._site(graph, at[-1], some, target, why)
                if found is not None:
                    yield found
            else:
                why.miss(some[0].name, "its stage has no tensor of its own to be named by")

    def _site(
        self, graph: Any, name: str, groups: Sequence[Group], target: Target, why: Why
    ) -> Site | None:
        layers = layers_of(graph, groups)
        if isinstance(layers, str):
            why.miss(name, f"all channels together: {layers}")
            return None
        tensors = graph.tensors()
        samplings = [s for layer in layers for s in layer.reader.samplings]
        needed = sum(s.size_bytes(lambda t: tensors[t].shape) for s in samplings)
        if needed > self.largest_bytes:
            why.miss(name, f"all channels together: a fit would take {needed / 1e9:.1f} GB")
            return None
        sizes = tuple(g.size for g in groups)
        choices = dict[tuple[int, ...], Choice]()
        for ratio in self.ratios:
            widths = tuple(_width(size, ratio, target.channel_multiples) for size in sizes)
            if widths != sizes and widths not in choices:
                note = f"{len(groups)} groups of channels at {ratio:g} of their width"
                label = f"width-{ratio:g}"
                choices[widths] = Choice(label, {"widths": widths}, "recovered", note)
        if not choices:
            why.miss(name, "all channels together are the fewest the target works in")
            return None
        read_by = tuple(layer.reader.output for layer in layers)
        writers = {use.node.outputs[0].name for group in groups for use in group.producers}
        claims = frozenset({f"node:{output}" for output in {*read_by, *writers}})
        params = {"groups": tuple(g.name for g in groups), "sizes": sizes, "read_by": read_by}
        claims = claims.union(*(g.claims for g in groups))
        return Site(self.name, name, tuple(choices.values()), claims, params)

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        if "groups" not in site.params:
            super().rewrite(rw, site, choice)
            return
        names, sizes = site.params["groups"], site.params["sizes"]
        resize_together(rw, names, sizes, choice.params["widths"], site.params["read_by"])

    def samplings(self, graph: Any, site: Site) -> Sequence[Sampling]:
        if "groups" not in site.params:
            return super().samplings(graph, site)
        return [s for layer in _layers(graph, site) for s in layer.reader.samplings]

    def recover(
        self,
        graph: Any,
        site: Site,
        choices: Sequence[Choice],
        data: Sequence[Samples],
        start: Sequence[Fitted] | None = None,
        tick: Tick = no_tick,
    ) -> Sequence[Fitted]:
        if "groups" not in site.params:
            return super().recover(graph, site, choices, data, start, tick)
        widths = [choice.params["widths"] for choice in choices]
        return fit_alone(_layers(graph, site), site.params["sizes"], widths, data, tick)

    def rounds(self, graph: Any, site: Site, start: Fitted, tick: Tick = no_tick) -> Rounds | None:
        if "groups" not in site.params:
            return Pass.rounds(self, graph, site, start, tick)
        return fit_in_rounds(_layers(graph, site), start, tick)


def _can_change(group: Group) -> bool:
    return bool(group.name and group.producers and group.consumers and not group.pins)


def _width(size: int, ratio: float, multiples: Sequence[int]) -> int:
    """The width nearest to a share of another that the target works in; at most that other."""
    step = max((m for m in multiples if 8 * m <= size), default=min(multiples))
    return min(size, max(step, round(ratio * size / step) * step))


def _resolution(graph: Any, name: str) -> tuple[int, int] | None:
    """Height and width of a feature map; 1 x 1 for a vector, None where they are not known."""
    shape = graph.tensors()[name].shape
    if shape is not None and len(shape) == 2:
        return 1, 1
    known = shape is not None and len(shape) == 4 and all(map(is_static, shape[2:]))
    return (int(shape[2]), int(shape[3])) if known else None


def _layers(graph: Any, site: Site) -> tuple[Layer, ...]:
    coupling = Coupling.of(graph)
    groups = [g for g in map(coupling.group, site.params["groups"]) if g is not None]
    found = layers_of(graph, groups)
    if isinstance(found, str) or len(groups) != len(site.params["groups"]):
        raise ValueError(f"{site.id} is not a site of this graph")
    return found
