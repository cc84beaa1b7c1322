"""One standard convolution in place of an inverted bottleneck's expand and depthwise.

Depthwise convolutions leave most of an array of multipliers idle; one KxK convolution does more
arithmetic in less time where channels are few. The activation between the two is lost, so the
fused layers are fitted: by ridge regression on what the depthwise one computed, then by gradient
steps on what the block answers. (Without an activation between, `merge-linear-convs` does it
exactly.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxnas.block_fit import IbnBlock, ibn_block, windows_of
from onnxnas.channel_fit import KEPT, Reader, check_samples, fit_widths, readers
from onnxnas.cost import Target
from onnxnas.coupling import Coupling
from onnxnas.gradient_fit import Floats, FusedBlock, activation, refit_last, train
from onnxnas.graph import values_of
from onnxnas.least_squares import Moments, ridge
from onnxnas.pass_contract import Fitted, Pass, Tick, Why, no_tick
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.samples import Samples, Sampling
from onnxnas.sites import Choice, Site
from onnxnas.width_pass import inside_block, narrower


@dataclass(frozen=True)
class FuseIbn(Pass):
    """Offers inverted bottlenecks fused, at several hidden widths.

    Attributes:
        ratios: of the hidden width, rounded to the target's multiples.
        steps: of gradient; fused blocks need many.
        largest: blocks of more multiply-accumulates per position are left alone: gradient steps
            on them take too long.
        windows: samples that steps are made on.
    """

    name: ClassVar[str] = "fuse-ibn"
    summary: ClassVar[str] = "Fuse expand and depthwise of inverted bottlenecks, weights re-fitted."
    order: ClassVar[int] = 22
    ratios: tuple[float, ...] = (1.0, 3 / 4, 1 / 2)
    steps: int = 2500
    largest: int = 60_000
    windows: int = 24_000

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
                widths = narrower(group.size, self.ratios, target.channel_multiples, whole=True)
                kernel = "x".join(map(str, block.depthwise.kernel))
                choices = tuple(
                    Choice(f"hidden-{w}", {"width": w}, "recovered", f"{kernel} to {w} channels")
                    for w in widths
                )
                layers = (block.expand, block.depthwise, block.project)
                claims = group.claims | {f"node:{layer.y.name}" for layer in layers}
                claims |= {f"channels:{block.project.y.name}"}  # its weights are fitted whole
                yield Site(self.name, group.name, choices, claims, {"channels": group.size})

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        rw.tensor(site.tensor)
        width = int(choice.params["width"])
        found = _block(rw.graph, site)
        if found is None or found[0].expand.out_channels != site.params["channels"]:
            raise SiteGone(f"the block of {site.tensor!r} is not what it was")
        block = found[0]
        expand, depthwise, project = block.expand, block.depthwise, block.project
        fitted = rw.fitted
        kept = np.asarray(fitted.get(KEPT, np.arange(width)), np.int64)
        shape = (width, expand.in_channels, *depthwise.kernel)
        weight = rw.constant(
            f"{depthwise.y.name}/fused",
            shape,
            lambda: fitted["fused"] if fitted else _stand_in(shape),
            expand.weight.dtype,
        )
        old_bias, old_weight = depthwise.bias, project.weight
        bias = rw.constant(
            f"{depthwise.y.name}/bias",
            (width,),
            lambda: fitted["bias"] if fitted else values_of(old_bias)[kept],
            expand.weight.dtype,
        )
        # The depthwise node becomes the fused one, so that all tensors keep their names.
        for i, tensor in enumerate((expand.x, weight, bias)):
            rw.set_input(depthwise.node, i, tensor)
        rw.set_attrs(depthwise.node, group=1, auto_pad=None, pads=list(depthwise.pads))
        for node in block.second:
            for i, tensor in enumerate(node.inputs[1:], 1):
                part = _per_channel(rw, tensor, kept, block)
                if part is not tensor:
                    rw.set_input(node, i, part)
        shape_out = (project.out_channels, width, 1, 1)
        if fitted and fitted["project_bias"].shape != (project.out_channels,):
            raise SiteGone(f"{project.y.name!r} has other channels than when it was fitted")
        new = rw.constant(
            old_weight.name,
            shape_out,
            lambda: fitted["project"] if fitted else values_of(old_weight)[:, kept],
            old_weight.dtype,
        )
        old_project_bias = project.bias
        new_bias = rw.constant(
            f"{project.y.name}/bias",
            (project.out_channels,),
            lambda: fitted["project_bias"] if fitted else _or_zeros(old_project_bias, shape_out[0]),
            old_weight.dtype,
        )
        rw.set_input(project.node, 1, new)
        rw.set_input(project.node, 2, new_bias)

    def samplings(self, graph: Any, site: Site) -> Sequence[Sampling]:
        found = _block(graph, site)
        assert found is not None
        block, reader = found
        inner = Sampling((block.window,), block.depthwise.y.name)
        return [*reader.samplings, inner, block.sampling(reader, self.windows)]

    def recover(
        self,
        graph: Any,
        site: Site,
        choices: Sequence[Choice],
        data: Sequence[Samples],
        start: Sequence[Fitted] | None = None,
        tick: Tick = no_tick,
    ) -> Sequence[Fitted]:
        found = _block(graph, site)
        assert found is not None
        block, reader = found
        check_samples(data[:-1])
        widths = [int(choice.params["width"]) for choice in choices]
        fit, tune = (windows_of(p, block) for p in (data[-1].fit, data[-1].tune))
        if start is None:
            kepts = [v[KEPT] for v, _ in fit_widths(graph, [reader], widths, data[:-2], tick=tick)]
            students = [_start(block, kept, data[-2].fit.moments) for kept in kepts]
        else:
            students = [_resume(block, fitted) for fitted in start]
            kepts = [fitted.values[KEPT] for fitted in start]
        fits = []
        for kept, student in zip(kepts, students, strict=True):
            refit_last(student, fit, tune)
            error = train(student, fit, tune, steps=self.steps, rate=4e-3, seed=0, tick=tick)
            w = student.weights
            c, kernel = block.expand.in_channels, block.depthwise.kernel
            fused = w[0].reshape(*kernel, c, len(kept)).transpose(3, 2, 0, 1)
            project = w[2].T[:, :, None, None]
            named = {KEPT: kept, "fused": fused, "bias": w[1], "project": project}
            fits.append(Fitted({**named, "project_bias": w[3]}, error))
        return fits


def _start(block: IbnBlock, kept: NDArray[np.int64], inner: Moments) -> FusedBlock:
    """A fused convolution by ridge regression on what the depthwise one computes."""
    linear = ridge(inner)
    c, outputs = block.expand.in_channels, block.project.out_channels
    weight = linear.weight[:, kept].reshape(c, -1, len(kept)).transpose(1, 0, 2)
    weights = [weight.reshape(-1, len(kept)), linear.bias[kept]]
    weights += [np.zeros((len(kept), outputs)), np.zeros(outputs)]
    return _student(block, kept, weights)


def _resume(block: IbnBlock, fitted: Fitted) -> FusedBlock:
    """A fused block as it was found before."""
    values = fitted.values
    fused = values["fused"].transpose(2, 3, 1, 0).reshape(-1, len(values[KEPT]))
    project = values["project"][:, :, 0, 0].T
    weights = [fused, values["bias"], project, values["project_bias"]]
    return _student(block, values[KEPT], weights)


def _student(
    block: IbnBlock, kept: NDArray[np.int64], weights: Sequence[NDArray[Any]]
) -> FusedBlock:
    known = activation(block.second, kept)
    assert not isinstance(known, str)
    return FusedBlock([np.array(w, np.float32, order="C") for w in weights], known)


def _block(graph: Any, site: Site) -> tuple[IbnBlock, Reader] | None:
    group = Coupling.of(graph).group(site.tensor)
    if group is None:
        return None
    block, found = ibn_block(graph, group), readers(graph, group)
    return None if isinstance(block, str) or isinstance(found, str) else (block, found[0])


def _per_channel(rw: Rewriter, tensor: Any, kept: NDArray[np.int64], block: IbnBlock) -> Any:
    """An activation's constant; slopes of the channels that stay, where it has one for each."""
    if not tensor.name or tensor.shape is None or block.expand.out_channels not in tensor.shape:
        return tensor
    axis = list(tensor.shape).index(block.expand.out_channels)
    shape = [len(kept) if i == axis else int(d) for i, d in enumerate(tensor.shape)]
    return rw.constant(
        tensor.name, shape, lambda: np.take(values_of(tensor), kept, axis), tensor.dtype
    )


def _stand_in(shape: tuple[int, ...]) -> Floats:
    noise = np.random.default_rng(0).standard_normal(shape) * 0.1
    return noise.astype(np.float32)


def _or_zeros(bias: Any, count: int) -> NDArray[Any]:
    return np.zeros(count, np.float32) if bias is None else values_of(bias)
