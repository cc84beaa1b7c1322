"""Split a 1x1 convolution or a Gemm into two with few channels between.

The split is the best of its rank on the tensors the layer really reads (a singular value
decomposition of its outputs, not of its weights).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxnas.channel_fit import (
    Reader,
    check_samples,
    reader_of,
    reader_weights,
    together,
)
from onnxnas.cost import Target
from onnxnas.least_squares import Floats, Linear, best_ridge, low_rank
from onnxnas.ops import conv as conv_view
from onnxnas.pass_contract import Fitted, Pass, Tick, Why, no_tick
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.samples import Samples, Sampling
from onnxnas.sites import Choice, Site


@dataclass(frozen=True)
class FactorizeConv(Pass):
    """Offers every large 1x1 convolution and Gemm at lower ranks.

    Attributes:
        ratios: of the rank at which two layers have as many weights as one, rounded to the
            target's multiples.
        smallest: layers with fewer weights are left alone.
    """

    name: ClassVar[str] = "factorize-conv"
    summary: ClassVar[str] = "Split 1x1 convolutions and Gemms into two of low rank."
    order: ClassVar[int] = 18
    ratios: tuple[float, ...] = (0.85, 0.7, 0.55, 0.4)
    smallest: int = 16_384

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        for node in graph.nodes:
            if node.op not in ("Conv", "Gemm"):
                continue
            name, reader = node.outputs[0].name, _reader(graph, node)
            if isinstance(reader, str):
                why.miss(node, reader)
                continue
            channels, outputs = len(reader.features), _outputs(node)
            even = channels * outputs / (channels + outputs)
            choices = tuple(_choices(even, self.ratios, target.channel_multiples))
            if channels * outputs < self.smallest:
                why.miss(node, f"{channels} x {outputs} weights are too few to be split")
            elif not choices:
                why.miss(node, "no rank the target works in has fewer weights")
            else:
                params = {"channels": channels, "outputs": outputs}
                yield Site(
                    self.name, name, choices, frozenset({f"node:{name}", f"weights:{name}"}), params
                )

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        node, rank = rw.node(site.tensor), int(choice.params["rank"])
        x, y = node.inputs[0], node.outputs[0]
        channels, outputs = int(site.params["channels"]), int(site.params["outputs"])
        weight = node.inputs[1]
        if int(np.prod(weight.shape)) != channels * outputs:
            raise SiteGone(f"{y.name!r} has other channels than before")
        conv, fitted, cut = node.op == "Conv", rw.fitted, _Cut(node, rank)
        shapes: list[tuple[int, ...]] = [(rank, channels), (outputs, rank)]
        attrs: dict[str, Any] = {"transB": 1}
        if conv:
            shapes = [(*shape, 1, 1) for shape in shapes]
            attrs = {"kernel_shape": [1, 1]}
        first = rw.constant(
            f"{y.name}/first",
            shapes[0],
            lambda: (fitted["first"] if fitted else cut.factors()[0]).T.reshape(shapes[0]),
            weight.dtype,
        )
        second = rw.constant(
            f"{y.name}/second",
            shapes[1],
            lambda: (fitted["second"] if fitted else cut.factors()[1]).T.reshape(shapes[1]),
            weight.dtype,
        )
        new_bias = rw.constant(
            f"{y.name}/bias",
            (outputs,),
            lambda: fitted["bias"] if fitted else cut.bias(),
            weight.dtype,
        )
        middle = {**attrs, "strides": list(node.attrs.get("strides") or (1, 1))} if conv else attrs
        rw.remove_node(node)
        between = rw.add_node(node.op, [x, first], middle, hint=f"{y.name}/between")
        rw.add_node(node.op, [between, second, new_bias], attrs, output=y)

    def samplings(self, graph: Any, site: Site) -> Sequence[Sampling]:
        return self._site_reader(graph, site).samplings

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
        moments, tune = together([s.fit for s in data]), data[0].tune.moments
        node = graph.tensors()[site.tensor].inputs[0]
        prior = reader_weights(node)[0].astype(np.float64)
        every = np.arange(len(prior))
        full, _ = best_ridge(moments, tune, every, prior)
        fits = []
        for choice in choices:
            tick()
            first, second = low_rank(moments, full.weight, int(choice.params["rank"]))
            weight = first @ second
            bias = (moments.y - moments.x @ weight) / max(1, moments.count)
            values: dict[str, NDArray[Any]] = {
                "first": first.astype(np.float32),
                "second": second.astype(np.float32),
                "bias": bias.astype(np.float32),
            }
            fits.append(Fitted(values, Linear(weight, bias).error(tune)))
        return fits

    def _site_reader(self, graph: Any, site: Site) -> Reader:
        found = _reader(graph, graph.tensors()[site.tensor].inputs[0])
        if isinstance(found, str):
            raise ValueError(f"{site.id} is not a site of this graph")
        return found


@dataclass(frozen=True)
class _Cut:
    """Stand-ins for factors that were not fitted: of the weight itself, no data."""

    node: Any
    rank: int

    def __post_init__(self) -> None:
        # The rewrite disconnects the node; what it held is kept.
        object.__setattr__(self, "node", _Held(self.node))

    def factors(self) -> tuple[Floats, Floats]:
        weight = reader_weights(self.node)[0].astype(np.float64)
        u, s, vt = np.linalg.svd(weight, full_matrices=False)
        return u[:, : self.rank] * s[: self.rank], vt[: self.rank]

    def bias(self) -> NDArray[np.float32]:
        return reader_weights(self.node)[1]


class _Held:
    """A node's operator, attributes and inputs, whatever becomes of the node."""

    def __init__(self, node: Any) -> None:
        self.op, self.attrs, self.inputs = node.op, dict(node.attrs), list(node.inputs)


def _reader(graph: Any, node: Any) -> Reader | str:
    shape = node.inputs[1].shape
    if shape is None or (node.op == "Conv" and any(d != 1 for d in shape[2:])):
        return "is no 1x1 convolution"
    if node.op == "Conv":
        view = conv_view(node)
        if isinstance(view, str):
            return view
        if any(view.pads):
            return "is padded"
    channels = int(shape[0 if node.op == "Gemm" and not node.attrs.get("transB") else 1])
    return reader_of(graph, node, np.arange(channels)[:, None])


def _outputs(node: Any) -> int:
    across = node.op == "Gemm" and not node.attrs.get("transB")
    return int(node.inputs[1].shape[1 if across else 0])


def _choices(even: float, ratios: Sequence[float], multiples: Sequence[int]) -> Iterator[Choice]:
    """Ranks with fewer weights than the whole, highest first."""
    step = max((m for m in multiples if 8 * m <= even), default=min(multiples))
    ranks = {round(ratio * even / step) * step for ratio in ratios}
    for rank in sorted((r for r in ranks if 0 < r < even), reverse=True):
        yield Choice(f"rank-{rank}", {"rank": rank}, "recovered", f"{rank} channels between")
