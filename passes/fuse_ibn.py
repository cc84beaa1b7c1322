"""One standard convolution in place of an inverted bottleneck's expand and depthwise.

Depthwise convolutions leave most of an array of multipliers idle; one KxK convolution does more
arithmetic in less time where channels are few. The activation between the two is lost, so the
fused layers are fitted: by ridge regression on what the depthwise one computed, then by gradient
steps on what the block answers. (Without an activation between, `merge-linear-convs` does it
exactly.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxnas.block_fit import LONGER, IbnBlock, ibn_block, windows_of
from onnxnas.channel_fit import KEPT, Reader, check_samples, fit_widths, readers, resize
from onnxnas.cost import Target
from onnxnas.coupling import Coupling, Group
from onnxnas.gradient_fit import (
    Floats,
    FusedBlock,
    FusedLayer,
    Windows,
    activation,
    refit_last,
    train,
)
from onnxnas.least_squares import Moments, ridge
from onnxnas.pass_contract import Fitted, Pass, Tick, Why, no_tick
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.samples import Samples, Sampling
from onnxnas.sites import Choice, Site
from onnxnas.width_pass import inside_block, narrower

_IN_ORDER = 3
"""Times the steps where choices are fitted in order: those may be delivered, and are few."""


@dataclass(frozen=True)
class FuseIbn(Pass):
    """Offers inverted bottlenecks fused, at several hidden widths.

    Attributes:
        ratios: of the hidden width, rounded to the target's multiples.
        steps: of gradient for a choice alone; fused blocks need many.
        largest: blocks of more multiply-accumulates per position are left alone: gradient steps
            on them take too long.
        windows: samples that steps are made on. A fused layer has tens of thousands of weights, and
            of few samples it learns what other pictures do not have.
        device: of PyTorch, which then makes the steps; empty for numpy.
    """

    name: ClassVar[str] = "fuse-ibn"
    summary: ClassVar[str] = "Fuse expand and depthwise of inverted bottlenecks, weights re-fitted."
    order: ClassVar[int] = 22
    goes_on: ClassVar[bool] = True
    ratios: tuple[float, ...] = (1.0, 3 / 4, 1 / 2)
    steps: int = 3000
    largest: int = 60_000
    windows: int = 120_000
    device: str = ""

    def on_device(self, device: str) -> FuseIbn:
        steps, windows = LONGER * self.steps, LONGER * self.windows
        return replace(self, device=device, steps=steps, windows=windows)

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        for group in Coupling.of(graph).groups:
            if not group.name or not group.producers or not inside_block(group):
                continue
            block, found = ibn_block(graph, group), readers(graph, group)
            if isinstance(block, str):
                why.miss(group.name, block)
            elif isinstance(found, str):
                why.miss(group.name, found)
            elif group.pins:
                why.miss(group.name, group.pins[0])
            elif not block.first:
                why.miss(group.name, "has no activation between: merge-linear-convs is exact here")
            elif block.size > self.largest:
                why.miss(group.name, "is so large that its fit would take too long")
            else:
                yield self._site(group, block, found, target)

    def _site(self, group: Group, block: IbnBlock, found: Sequence[Reader], target: Target) -> Site:
        widths = narrower(group.size, self.ratios, target.channel_multiples, whole=True)
        kernel = "x".join(map(str, block.depthwise.kernel))
        choices = tuple(
            Choice(f"hidden-{w}", {"width": w}, "recovered", f"{kernel} to {w} channels")
            for w in widths
        )
        read_by = tuple(reader.output for reader in found)
        layers = {block.expand.y.name, block.depthwise.y.name, *read_by}
        claims = group.claims | {f"node:{layer}" for layer in layers}
        claims |= {f"channels:{layer}" for layer in read_by}  # their weights are fitted whole
        claims |= {f"weights:{block.expand.y.name}"}
        params = {"channels": group.size, "read_by": read_by}
        return Site(self.name, group.name, choices, claims, params)

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        width, fitted = int(choice.params["width"]), rw.fitted
        resize(rw, site.tensor, site.params["channels"], width, site.params["read_by"])
        group = Coupling.of(rw.graph).group(site.tensor)
        block = "" if group is None else ibn_block(rw.graph, group)
        if isinstance(block, str):
            raise SiteGone(f"the block of {site.tensor!r} is not what it was")
        expand, depthwise = block.expand, block.depthwise
        shape = (width, expand.in_channels, *depthwise.kernel)
        if fitted and fitted["fused"].shape != shape:
            raise SiteGone(f"{expand.x.name!r} has other channels than when it was fitted")
        weight = rw.constant(
            f"{depthwise.y.name}/fused",
            shape,
            lambda: fitted["fused"] if fitted else _stand_in(shape),
            expand.weight.dtype,
        )
        bias = rw.constant(
            f"{depthwise.y.name}/bias",
            (width,),
            lambda: fitted["bias"] if fitted else np.zeros(width, np.float32),
            expand.weight.dtype,
        )
        # The depthwise node becomes the fused one, so that all tensors keep their names.
        for i, tensor in enumerate((expand.x, weight, bias)):
            rw.set_input(depthwise.node, i, tensor)
        rw.set_attrs(depthwise.node, group=1, auto_pad=None, pads=list(depthwise.pads))

    def samplings(self, graph: Any, site: Site) -> Sequence[Sampling]:
        block, found = _block(graph, site)
        plain = [s for reader in found for s in reader.samplings]
        inner = Sampling((block.window,), block.depthwise.y.name)
        steps = block.sampling(found[-1], self.windows)
        if block.gate is not None:
            steps = replace(steps, target=block.deep.name, minus=())
        return [*plain, inner, steps]

    def recover(
        self,
        graph: Any,
        site: Site,
        choices: Sequence[Choice],
        data: Sequence[Samples],
        start: Sequence[Fitted] | None = None,
        tick: Tick = no_tick,
    ) -> Sequence[Fitted]:
        check_samples(data[:-1])
        block, found = _block(graph, site)
        widths = [int(choice.params["width"]) for choice in choices]
        if start is None or block.gate is not None:
            plain = fit_widths(graph, found, widths, data[:-2], start, tick)
        else:
            plain = [(dict(fitted.values), fitted.error) for fitted in start]
        fit, tune = (windows_of(part, block) for part in (data[-1].fit, data[-1].tune))
        fits = []
        for k, (values, error) in enumerate(plain):
            kept = np.asarray(values[KEPT], np.int64)
            weights = _start(block, kept, data[-2].fit.moments)
            if start is not None:
                old = start[k].values
                weights = [old["fused"].transpose(2, 3, 1, 0).reshape(-1, len(kept)), old["bias"]]
            first = [np.array(w, np.float32, order="C") for w in weights]
            between, own = activation(block.second, kept), f"{block.project.y.name}:"
            project = values[f"{own}1"][:, :, 0, 0].T
            steps = self.steps * (1 if start is None else _IN_ORDER)
            train_ = partial(train, steps=steps, rate=0.1, seed=0, device=self.device, tick=tick)
            if block.gate is None:
                last = [np.array(w, np.float32) for w in (project, values[f"{own}2"])]
                student = FusedBlock([*first, *last], between)
                refit_last(student, fit, tune)
                error = train_(student, fit, tune)
                refit_last(student, fit, tune, whole=True)
                first, last = student.weights[:2], student.weights[2:]
                values |= {f"{own}1": last[0].T[:, :, None, None], f"{own}2": last[1]}
            else:
                # What a gate reads must stay what it was: the layer is fitted to its own values.
                scale = np.linalg.norm(project, axis=1).astype(np.float32)
                layer = FusedLayer(first, between, scale)
                error += train_(layer, *(_to_channels(w, kept, scale) for w in (fit, tune)))
                first = layer.weights
            c, kernel = block.expand.in_channels, block.depthwise.kernel
            fused = first[0].reshape(*kernel, c, len(kept)).transpose(3, 2, 0, 1)
            fits.append(Fitted({**values, KEPT: kept, "fused": fused, "bias": first[1]}, error))
        return fits


def _start(block: IbnBlock, kept: NDArray[np.int64], inner: Moments) -> list[NDArray[Any]]:
    """A fused convolution by ridge regression on what the depthwise one computes."""
    linear, c = ridge(inner), block.expand.in_channels
    weight = linear.weight[:, kept].reshape(c, -1, len(kept)).transpose(1, 0, 2)
    return [weight.reshape(-1, len(kept)), linear.bias[kept]]


def _to_channels(windows: Windows, kept: NDArray[np.int64], scale: Floats) -> Windows:
    return replace(windows, y=np.ascontiguousarray(windows.y[:, kept] * scale, np.float32))


def _block(graph: Any, site: Site) -> tuple[IbnBlock, tuple[Reader, ...]]:
    """The block, and the layers that read its hidden channels, `project` last."""
    group = Coupling.of(graph).group(site.tensor)
    block = "" if group is None else ibn_block(graph, group)
    found = "" if group is None else readers(graph, group)
    if isinstance(block, str) or isinstance(found, str):
        raise ValueError(f"{site.id} is not a site of this graph")
    last = block.project.y.name
    return block, tuple(sorted(found, key=lambda reader: reader.output == last))


def _stand_in(shape: tuple[int, ...]) -> Floats:
    noise = np.random.default_rng(0).standard_normal(shape) * 0.1
    return noise.astype(np.float32)
