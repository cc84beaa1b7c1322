"""Cheaper activations and gates, the layers behind them re-fitted.

SiLU and hard-swish in pieces become ReLU, ReLU6 or one hard-swish; the gate of a squeeze-excite
block becomes a hard sigmoid, or a constant per channel, which is no more than a part of the
weights behind it. Which of these saves anything is the target's to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from onnxnas.activation_fit import Follower, Function, fit_follower, follower, followers
from onnxnas.channel_fit import install
from onnxnas.cost import Target
from onnxnas.fusion import group_from
from onnxnas.graph import values_of
from onnxnas.ops import producer, sole_consumer
from onnxnas.pass_contract import Fitted, Pass, Tick, Why, no_tick
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.samples import Samples, Sampling
from onnxnas.sites import Choice, Site
from onnxnas.squeeze_excite import SqueezeExcite, squeeze_excite

_SMOOTH = frozenset(
    {"Silu", "HardSwish", "Gelu", "Mish", "Elu", "Selu", "Celu", "Softplus", "Softsign"}
)
_FUNCTIONS: dict[str, Function] = {"relu": "Relu", "relu6": "Relu6", "hard-swish": "HardSwish"}
_CONSTANT, _HARD = "constant-gate", "hard-sigmoid-gate"


@dataclass(frozen=True)
class SimplifyActivation(Pass):
    """Offers every smooth activation and every squeeze-excite gate in cheaper forms."""

    name: ClassVar[str] = "simplify-activation"
    summary: ClassVar[str] = "Cheaper activations and gates, the layers behind them re-fitted."
    order: ClassVar[int] = 17

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        outputs = {id(t) for t in graph.outputs}
        for node in graph.nodes:
            if node.op in ("Conv", "ConvTranspose", "Gemm"):
                nodes, name = group_from(node, outputs)
                site = self._activation(graph, nodes, name, why) if name in _SMOOTH else None
            else:
                site = self._gate(graph, node, why) if node.op == "Mul" else None
            if site is not None:
                yield site

    def _activation(self, graph: Any, nodes: Sequence[Any], name: str, why: Why) -> Site | None:
        x, end = nodes[0].outputs[0], nodes[-1].outputs[0]
        found = followers(graph, end)
        if isinstance(found, str):
            why.miss(end.name, found)
            return None
        labels = ["relu", "relu6"]
        if graph.opset >= 14 and (name != "HardSwish" or len(nodes) > 2):
            labels.append("hard-swish")
        choices = [Choice(k, {}, "recovered", f"{_FUNCTIONS[k]} for {name}") for k in labels]
        inner = tuple(n.outputs[0].name for n in nodes[1:])
        claims = {*(f"node:{t}" for t in inner), f"channels:{x.name}", f"channels:{end.name}"}
        return _site(end.name, choices, claims, found, {"x": x.name, "inner": inner})

    def _gate(self, graph: Any, product: Any, why: Why) -> Site | None:
        gated = _gated(graph, product)
        if gated is None:
            return None
        y = product.outputs[0].name
        reader = sole_consumer(product.outputs[0], graph)
        found = "is read by several" if reader is None else follower(graph, reader)
        if isinstance(found, str):
            why.miss(y, found)
            return None
        choices = [Choice(_CONSTANT, {}, "recovered", "the gate is part of the weights behind it")]
        excite = _excite(graph, gated)
        if isinstance(excite, Follower):
            choices.append(Choice(_HARD, {}, "recovered", "HardSigmoid for Sigmoid"))
        elif gated.gate.inputs[0].op == "Sigmoid":
            why.miss(y, f"no hard sigmoid for its gate: {excite}")
        layers = [found, *([excite] if isinstance(excite, Follower) else [])]
        inner = [t.name for node in (product, *gated.nodes) for t in node.outputs]
        claims = {f"{kind}:{t}" for t in inner for kind in ("node", "channels", "weights")}
        claims.add(f"channels:{gated.x.name}")
        return _site(y, choices, claims, layers, {"x": gated.x.name})

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        x, read_by = rw.tensor(site.params["x"]), site.params["read_by"]
        if choice.label == _CONSTANT:
            reader = rw.node(read_by[0])
            if reader.inputs[0].name != site.tensor:
                raise SiteGone(f"{read_by[0]!r} does not read {site.tensor!r} any more")
            rw.set_input(reader, 0, x)
            install(rw, read_by[:1])
            return
        if choice.label == _HARD:
            gated = _gated(rw.graph, rw.node(site.tensor))
            if gated is None or gated.gate.inputs[0].op != "Sigmoid":
                raise SiteGone(f"the gate of {site.tensor!r} is not what it was")
            sigmoid = gated.gate.inputs[0]
            below = sigmoid.inputs[0]
            rw.remove_node(sigmoid)
            rw.add_node("HardSigmoid", [below], {"alpha": 1 / 6, "beta": 0.5}, output=gated.gate)
            install(rw, read_by[1:])
            return
        end = rw.tensor(site.tensor)
        for name in site.params["inner"]:
            rw.remove_node(rw.node(name))
        function = _FUNCTIONS[choice.label]
        if function != "Relu6":
            rw.add_node(function, [x], output=end)
        elif rw.graph.opset < 11:
            rw.add_node("Clip", [x], {"min": 0.0, "max": 6.0}, output=end)
        else:
            dtype = np.float32 if x.dtype is None else x.dtype
            bounds = [
                rw.small_constant(f"{end.name}/{name}", np.array(value, dtype))
                for name, value in (("low", 0.0), ("high", 6.0))
            ]
            rw.add_node("Clip", [x, *bounds], output=end)
        install(rw, read_by)

    def samplings(self, graph: Any, site: Site) -> Sequence[Sampling]:
        return [s for part in self._asked(graph, site).values() for _, some in part for s in some]

    def recover(
        self,
        graph: Any,
        site: Site,
        choices: Sequence[Choice],
        data: Sequence[Samples],
        start: Sequence[Fitted] | None = None,
        tick: Tick = no_tick,
    ) -> Sequence[Fitted]:
        samples = iter(data)
        by_label = {
            label: [(layer, [next(samples) for _ in some]) for layer, some in part]
            for label, part in self._asked(graph, site).items()
        }
        fits = []
        for k, choice in enumerate(choices):
            values, errors = {}, []
            for layer, some in by_label[choice.label]:
                tick()
                key = f"{layer.node.outputs[0].name}:1"
                prior = None if start is None else start[k].values[key]
                if choice.label == _HARD:  # a sigmoid rises by a quarter, the fit by itself
                    own = values_of(layer.node.inputs[1])
                    prior = own / 4 if prior is None else prior / 6
                new, error = fit_follower(layer, some, prior)
                if choice.label == _HARD:  # the fit is to the gate itself: clip(u / 6 + 1 / 2)
                    new = {n: (v if n == key else v - 0.5) * np.float32(6) for n, v in new.items()}
                values.update(new)
                errors.append(error)
            fits.append(Fitted(values, float(np.mean(errors))))
        return fits

    def _asked(self, graph: Any, site: Site) -> dict[str, list[tuple[Follower, list[Sampling]]]]:
        """For each choice the layers to fit, and what each of them is fitted on."""
        x, y = site.params["x"], graph.tensors()[site.tensor]
        labels = [choice.label for choice in site.choices]
        if "inner" in site.params:
            found = followers(graph, y)
            assert not isinstance(found, str)
            return {k: [(f, f.samplings(x, _FUNCTIONS[k])) for f in found] for k in labels}
        gated = _gated(graph, y.inputs[0])
        reader = follower(graph, y.outputs[0])
        assert gated is not None
        assert isinstance(reader, Follower)
        asked = {_CONSTANT: [(reader, reader.samplings(x, ""))]}
        if _HARD in labels:
            excite = _excite(graph, gated)
            assert isinstance(excite, Follower)
            wanted = replace(excite.wanted[0], target=gated.gate.name, minus=())
            asked[_HARD] = [(excite, [wanted])]
        return asked


def _gated(graph: Any, product: Any) -> SqueezeExcite | None:
    """The squeeze-excite gate that a product is with, if it is with one."""
    for x in product.inputs:
        found = squeeze_excite(x, graph) if x.inputs or x.outputs else ""
        if isinstance(found, SqueezeExcite) and found.product is product:
            return found
    return None


def _excite(graph: Any, gated: SqueezeExcite) -> Follower | str:
    """The layer under the Sigmoid of a gate, or why it cannot be fitted."""
    sigmoid = gated.gate.inputs[0]
    node = producer(sigmoid.inputs[0]) if sigmoid.op == "Sigmoid" else None
    if node is None or sole_consumer(node.outputs[0], graph) is not sigmoid:
        return "its gate is no Sigmoid behind a layer of its own"
    return follower(graph, node)


def _site(
    name: str,
    choices: Sequence[Choice],
    claims: set[str],
    layers: Sequence[Follower],
    params: dict[str, Any],
) -> Site:
    read_by = tuple(layer.node.outputs[0].name for layer in layers)
    claims |= {f"{kind}:{output}" for output in read_by for kind in ("node", "channels")}
    params = {**params, "read_by": read_by}
    return Site(SimplifyActivation.name, name, tuple(choices), frozenset(claims), params)
