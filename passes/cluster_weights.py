"""Few distinct values for the weights of large layers, so that they are stored in fewer bits.

Accelerators that stream entropy-coded weights read 31 distinct values in about 4.5 bits each
instead of 8, and layers whose time goes into reading weights become faster by as much: late 1x1
convolutions and classifiers. The file stays a float one; its values are such that symmetric int8
quantisation with a scale per output channel, by whatever tool, leaves as few distinct integers.

What rounding does to the outputs is made up for within each layer, as its inputs on the user's
rows say, see `onnxnas.level_fit`. Known as weight clustering or palettisation.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxnas.channel_fit import Reader, check_samples, install, reader_of
from onnxnas.cost import Target
from onnxnas.graph import values_of
from onnxnas.level_fit import Levels, few_levels
from onnxnas.pass_contract import Fitted, NotRecoverable, Pass, Tick, Why, no_tick
from onnxnas.rewriter import Rewriter
from onnxnas.samples import Samples, Sampling
from onnxnas.sites import Choice, Site

_INDEX, _STEP, _BIAS = "index", "step", "bias"
_OF = "of"
"""What tells the weights and biases that were clustered from others."""


@dataclass(frozen=True)
class ClusterWeights(Pass):
    """Offers every large convolution and Gemm with few distinct weights.

    Attributes:
        levels: numbers of distinct values of an output channel, odd so that zero is one of them.
        smallest: layers of fewer weights are left alone.
        largest: inputs of one output beyond which their covariance would take too much memory.
        samples: that the covariance is of.
    """

    name: ClassVar[str] = "cluster-weights"
    summary: ClassVar[str] = "Give the weights of large layers few distinct values."
    order: ClassVar[int] = 50
    fits_last: ClassVar[bool] = True
    levels: tuple[int, ...] = (31, 15, 7)
    smallest: int = 4_096
    largest: int = 2_304
    samples: int = 8_000

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        for node in graph.nodes:
            if node.op not in ("Conv", "Gemm"):
                continue
            name, shape = node.outputs[0].name, node.inputs[1].shape
            if shape is None or int(np.prod(shape)) < self.smallest:
                why.miss(node, f"has fewer than {self.smallest} weights")
                continue
            reader = _reader(graph, node)
            if isinstance(reader, str):
                why.miss(node, reader)
            elif len(reader.features) > self.largest:
                why.miss(node, f"reads more than {self.largest} values for an output")
            else:
                choices = tuple(
                    Choice(f"levels-{n}", {"levels": n}, "recovered", f"{n} distinct values")
                    for n in self.levels
                )
                yield Site(self.name, name, choices, frozenset({f"weights:{name}"}))

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        node, levels, fitted = rw.node(site.tensor), int(choice.params["levels"]), rw.fitted
        install(rw, [site.tensor])  # a bias in any case
        weight, bias, across = node.inputs[1], node.inputs[2], _across(node)
        shape = tuple(int(d) for d in weight.shape)
        outputs = shape[1 if across else 0]

        def clustered() -> tuple[Levels, NDArray[Any]]:
            values, offset = values_of(weight), values_of(bias)
            now = values if across else values.reshape(outputs, -1).T
            offset = np.broadcast_to(offset.reshape(-1), outputs)
            if fitted and _same(fitted, now, offset):
                return Levels(fitted[_INDEX], fitted[_STEP]), fitted[_BIAS]
            # Only costed, or other choices changed the layer since: each value is rounded alone.
            return Levels.nearest(now, levels), offset

        def new_weight() -> NDArray[Any]:
            found = clustered()[0].weight
            return found if across else found.T.reshape(shape)

        rw.set_input(
            node, 1, rw.constant(weight.name, shape, new_weight, weight.dtype, levels=levels)
        )
        name, dtype = bias.name, bias.dtype
        rw.set_input(node, 2, rw.constant(name, (outputs,), lambda: clustered()[1], dtype))

    def samplings(self, graph: Any, site: Site) -> Sequence[Sampling]:
        reader = _reader(graph, graph.tensors()[site.tensor].inputs[0])
        if isinstance(reader, str):
            raise ValueError(f"{site.id} is not a site of this graph")
        # Of a mean over positions, the positions say more than the few rows do.
        last = reader.samplings[-1]
        target = site.tensor if last.through is None else last.target
        return [Sampling(last.inputs, target, most=self.samples, layer=site.tensor)]

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
        (samples,) = data
        assert samples.layer is not None
        weight, bias = (v.astype(np.float64) for v in samples.layer)
        if not weight.any():
            raise NotRecoverable("all its weights are zero")
        moments, tune = samples.fit.moments, samples.tune.moments
        covariance, _ = moments.covariance()
        held_out, _ = tune.covariance()
        variance = max(float(np.einsum("pq,pq->", weight, held_out @ weight)), 1e-30)
        mean = moments.x / max(1, moments.count)
        fits = []
        for choice in choices:
            try:
                found = few_levels(weight, covariance, int(choice.params["levels"]), tick)
            except np.linalg.LinAlgError as error:
                raise NotRecoverable("its inputs vary too unevenly") from error
            wrong = weight - found.weight
            lost = float(np.einsum("pq,pq->", wrong, held_out @ wrong)) / variance
            values: dict[str, NDArray[Any]] = {
                _INDEX: found.index,
                _STEP: found.step,
                _BIAS: (bias + mean @ wrong).astype(np.float32),
                _OF: _mark(weight, bias),
            }
            fits.append(Fitted(values, lost))
        return fits


def _reader(graph: Any, node: Any) -> Reader | str:
    channels = int(node.inputs[1].shape[0 if _across(node) else 1])
    return reader_of(graph, node, np.arange(channels)[:, None])


def _across(node: Any) -> bool:
    """Whether the weight is [inputs, outputs], as a Gemm has it unless it transposes."""
    return node.op == "Gemm" and not node.attrs.get("transB")


def _mark(*arrays: NDArray[Any]) -> NDArray[np.uint32]:
    data = (np.ascontiguousarray(a, np.float32).tobytes() for a in arrays)
    return np.array(zlib.crc32(b"".join(data)), np.uint32)


def _same(fitted: Mapping[str, NDArray[Any]], weight: NDArray[Any], bias: NDArray[Any]) -> bool:
    """Whether these are the weights that were clustered."""
    return fitted[_INDEX].shape == weight.shape and bool(fitted[_OF] == _mark(weight, bias))
