"""What passes that narrow channels share: their sites, their rewrite and how they recover."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onnxnas.channel_fit import Reader, check_samples, fit_widths, readers, resize
from onnxnas.cost import Target
from onnxnas.coupling import Coupling, Group
from onnxnas.ops import is_constant
from onnxnas.pass_contract import Fitted, Pass, Tick, Why, no_tick
from onnxnas.rewriter import Rewriter
from onnxnas.samples import Samples, Sampling
from onnxnas.sites import Choice, Site


@dataclass(frozen=True)
class WidthPass(Pass):
    """Offers some channel groups with fewer channels.

    Attributes:
        ratios: shares of a width to offer, rounded to the target's multiples.
    """

    ratios: tuple[float, ...] = (7 / 8, 3 / 4, 5 / 8, 1 / 2)

    @abstractmethod
    def concerns(self, graph: Any, group: Group) -> bool:
        """Whether a group is this pass's business."""

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        for group in Coupling.of(graph).groups:
            if not group.producers or not self.concerns(graph, group):
                continue
            place = group.name or group.tensors[0].tensor.name
            found = readers(graph, group)
            if not group.name:
                why.miss(place, "no tensor consists of these channels alone")
            elif group.pins:
                why.miss(place, group.pins[0])
            elif isinstance(found, str):
                why.miss(place, found)
            else:
                choices = tuple(_choices(group.size, self.ratios, target.channel_multiples))
                if choices:
                    yield _site(self.name, group, found, choices)
                else:
                    why.miss(place, f"{group.size} channels are the fewest the target works in")

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        size, read_by = site.params["channels"], site.params["read_by"]
        resize(rw, site.tensor, size, choice.params["width"], read_by)

    def samplings(self, graph: Any, site: Site) -> Sequence[Sampling]:
        return [s for reader in self._readers(graph, site) for s in reader.samplings]

    def recover(
        self,
        graph: Any,
        site: Site,
        choices: Sequence[Choice],
        data: Sequence[Samples],
        start: Sequence[Fitted] | None = None,
        tick: Tick = no_tick,
    ) -> Sequence[Fitted]:
        check_samples(data)
        widths = [int(choice.params["width"]) for choice in choices]
        fits = fit_widths(graph, self._readers(graph, site), widths, data, start, tick)
        return [Fitted(values, error) for values, error in fits]

    @staticmethod
    def _readers(graph: Any, site: Site) -> tuple[Reader, ...]:
        group = Coupling.of(graph).group(site.tensor)
        found = "" if group is None else readers(graph, group)
        if isinstance(found, str):
            raise ValueError(f"{site.id} is not a site of this graph")
        return found


def inside_block(group: Group) -> bool:
    """Whether the channels lie inside one block: through a depthwise conv, past no junction."""
    nodes = [node for axis in group.tensors for node in axis.tensor.inputs]
    through = any(n.op == "Conv" and int(n.attrs.get("group", 1)) > 1 for n in nodes)
    return through and not any(_joins(n) for n in nodes)


def _joins(node: Any) -> bool:
    """Whether channels meet others here; the Add of a constant, in a hard-swish, joins nothing."""
    adds = node.op == "Add" and not any(is_constant(t) for t in node.inputs)
    return adds or node.op in ("Concat", "Split")


def _site(name: str, group: Group, found: Sequence[Reader], choices: tuple[Choice, ...]) -> Site:
    params = {"channels": group.size, "read_by": tuple(r.output for r in found)}
    claims = group.claims | {f"node:{r.output}" for r in found}
    if not inside_block(group):
        # Of two sites that meet in a layer, the one that reads is fitted first and the one that
        # writes takes rows of what was fitted; past a junction there is no such order.
        claims |= {f"node:{use.node.outputs[0].name}" for use in group.producers}
    return Site(name, group.name, choices, claims, params)


def narrower(
    size: int, ratios: Sequence[float], multiples: Sequence[int], *, whole: bool = False
) -> list[int]:
    """Widths that a target works in, widest first; steps of at most an eighth where possible.

    Args:
        size: the width now.
        ratios: shares of it.
        multiples: of the target, ascending.
        whole: keep the width itself too.
    """
    step = max((m for m in multiples if 8 * m <= size), default=min(multiples))
    widths = {round(ratio * size / step) * step for ratio in ratios}
    widths = {w for w in widths if 0 < w < size} | ({size} if whole else set())
    return sorted(widths, reverse=True)


def _choices(size: int, ratios: Sequence[float], multiples: Sequence[int]) -> Iterator[Choice]:
    for width in narrower(size, ratios, multiples):
        note = f"{width} of {size} channels"
        yield Choice(f"to-{width}", {"width": width}, "recovered", note)
