"""Narrow the hidden layer of an inverted bottleneck or of a separable block.

The hidden width costs on both sides of the depthwise conv, and its channels are the most
redundant ones of a network. Which stay is decided by least squares on what the block computes, and
the conv that reads them is fitted anew; in small blocks, which are the early and expensive ones,
gradient steps then move all three layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from onnxnas.block_fit import LONGER, IbnBlock, ibn_block, train_block
from onnxnas.coupling import Coupling, Group
from onnxnas.pass_contract import Fitted, Tick, no_tick
from onnxnas.samples import Samples, Sampling
from onnxnas.sites import Choice, Site
from onnxnas.width_pass import WidthPass, inside_block


@dataclass(frozen=True)
class ResizeIbn(WidthPass):
    """Offers every hidden layer with a depthwise conv at the widths the target works in.

    Attributes:
        steps: of gradient, 0 for least squares alone.
        largest: blocks of more multiply-accumulates per position are left to least squares.
        windows: samples that steps are made on.
        device: of PyTorch, which then makes the steps; empty for numpy.
    """

    name: ClassVar[str] = "resize-ibn"
    summary: ClassVar[str] = "Narrow the hidden layer of inverted bottlenecks, weights re-fitted."
    order: ClassVar[int] = 21
    steps: int = 400
    largest: int = 60_000
    windows: int = 60_000
    device: str = ""

    def on_device(self, device: str) -> ResizeIbn:
        steps, windows = LONGER * self.steps, LONGER * self.windows
        return replace(self, device=device, steps=steps, windows=windows)

    def concerns(self, graph: Any, group: Group) -> bool:
        return inside_block(group)

    def samplings(self, graph: Any, site: Site) -> Sequence[Sampling]:
        plain = [*super().samplings(graph, site)]
        block = self._block(graph, site)
        if block is not None:
            plain.append(block.sampling(self._readers(graph, site)[0], self.windows))
        return plain

    def recover(
        self,
        graph: Any,
        site: Site,
        choices: Sequence[Choice],
        data: Sequence[Samples],
        start: Sequence[Fitted] | None = None,
        tick: Tick = no_tick,
    ) -> Sequence[Fitted]:
        block = self._block(graph, site)
        if block is None:
            return super().recover(graph, site, choices, data, start, tick)
        if not block.fits(data[-1]):  # another choice narrowed its input, and fits its expand
            return super().recover(graph, site, choices, data[:-1], tick=tick)
        fits = start or super().recover(graph, site, choices, data[:-1], tick=tick)
        train = partial(train_block, steps=self.steps, device=self.device, tick=tick)
        return [Fitted(*train(block, dict(fit.values), data[-1])) for fit in fits]

    def _block(self, graph: Any, site: Site) -> IbnBlock | None:
        """The block to make gradient steps on, None where least squares is to do."""
        group = Coupling.of(graph).group(site.tensor)
        found = "" if group is None or not self.steps else ibn_block(graph, group)
        if isinstance(found, str) or found.size > self.largest or found.gate is not None:
            return None  # steps would move the means that a gate reads from under it
        return found
