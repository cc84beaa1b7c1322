"""Replace a residual block by one 1x1 convolution fitted to what the block computes, or by nothing.

Late blocks of a stage often change their input little, and mostly linearly; then a 1x1
convolution, or the shortcut alone, is most of what they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxnas.channel_fit import check_samples
from onnxnas.cost import Target
from onnxnas.graph import is_static
from onnxnas.least_squares import Linear, best_ridge
from onnxnas.ops import is_constant
from onnxnas.pass_contract import Fitted, Pass, Tick, Why, no_tick
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.samples import Samples, Sampling, Window
from onnxnas.sites import Choice, Site


@dataclass(frozen=True)
class LinearizeBlock(Pass):
    """Offers every residual block as a 1x1 convolution, and as its shortcut alone.

    Attributes:
        most_nodes: longer branches are whole stages, not blocks.
    """

    name: ClassVar[str] = "linearize-block"
    summary: ClassVar[str] = "Replace residual blocks by a fitted 1x1 convolution, or by nothing."
    order: ClassVar[int] = 19
    most_nodes: int = 16

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        outputs = {t.name for t in graph.outputs}
        for node in graph.nodes:
            if node.op != "Add":
                continue
            found = self._branch(node, outputs)
            if isinstance(found, str):
                why.miss(node, found)
                continue
            x, inner = found
            out = node.outputs[0].name
            claims = {f"node:{out}"}
            for name in inner:
                claims |= {f"{kind}:{name}" for kind in ("node", "channels", "weights")}
            shortcut = Choice("shortcut", {}, "recovered", f"{len(inner)} operators gone")
            choices = [Choice("linear", {}, "recovered", f"1x1 for {len(inner)} operators")]
            if out not in outputs:
                choices.append(shortcut)
            channels = int(node.outputs[0].shape[1])
            yield Site(
                self.name, out, tuple(choices), frozenset(claims), {"x": x, "channels": channels}
            )

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        add, x = rw.node(site.tensor), rw.tensor(site.params["x"])
        if add.op != "Add" or not any(x is tensor for tensor in add.inputs):
            raise SiteGone(f"{site.tensor!r} is no residual block any more")
        y, channels = add.outputs[0], site.params["channels"]
        if x.shape[1] != channels:
            raise SiteGone(f"{x.name!r} has other channels than before")
        bias = rw.fitted.get("bias", np.zeros(channels, np.float32))
        if choice.label == "linear":
            weight = rw.fitted.get("weight")
            shape = (channels, channels, 1, 1)
            rw.remove_node(add)
            inputs = [
                x,
                rw.constant(
                    f"{y.name}/weight",
                    shape,
                    lambda: _stand_in(channels) if weight is None else weight,
                ),
                rw.constant(f"{y.name}/bias", (channels,), lambda: bias),
            ]
            rw.add_node("Conv", inputs, {"kernel_shape": [1, 1]}, output=y)
            return
        rw.replace_uses(y, x)
        for reader in x.outputs:
            rw.touch(reader)

    def samplings(self, graph: Any, site: Site) -> Sequence[Sampling]:
        return [Sampling((Window(site.params["x"]),), site.tensor)]

    def recover(
        self,
        graph: Any,
        site: Site,
        choices: Sequence[Choice],
        data: Sequence[Samples],
        start: Sequence[Fitted] | None = None,
        tick: Tick = no_tick,
    ) -> Sequence[Fitted]:
        fit, tune = data[0].fit.moments, data[0].tune.moments
        check_samples(data)
        tick()
        identity = np.eye(len(fit.x))
        fits = []
        for k, choice in enumerate(choices):
            if choice.label == "linear":
                pull = identity if start is None else start[k].values["weight"][:, :, 0, 0].T
                linear, error = best_ridge(fit, tune, np.arange(len(identity)), pull)
                weight = linear.weight.T.astype(np.float32)[:, :, None, None]
                values: dict[str, NDArray[Any]] = {
                    "weight": weight,
                    "bias": linear.bias.astype(np.float32),
                }
            else:
                values = {}
                error = Linear(identity, np.zeros(len(identity))).error(tune)
            fits.append(Fitted(values, error))
        return fits

    def _branch(self, add: Any, outputs: set[str]) -> tuple[str, list[str]] | str:
        """The block's input and its inner tensors, or why this Add ends no block."""
        a, b = add.inputs
        y = add.outputs[0]
        if is_constant(a) or is_constant(b):
            return "adds a constant"
        shapes = [t.shape for t in (a, b, y)]
        if any(s is None or len(s) != 4 for s in shapes) or list(a.shape) != list(b.shape):
            return "its inputs are not two images of the same size"
        if not is_static(y.shape[1]):
            return "its number of channels is not known"
        reasons = []
        for x, end in ((a, b), (b, a)):
            found = _inside(x, end, add, outputs, self.most_nodes)
            if not isinstance(found, str):
                return x.name, found
            reasons.append(found)
        return "; ".join(dict.fromkeys(reasons))


def _inside(x: Any, end: Any, add: Any, outputs: set[str], most: int) -> list[str] | str:
    """Tensors from `x` to `end`, if all are computed of `x` alone and used nowhere else."""
    nodes: dict[int, Any] = {}
    todo = [end]
    while todo:
        tensor = todo.pop()
        if tensor is x or is_constant(tensor) or not tensor.name:
            continue
        if not tensor.inputs:
            return "its branch reads more than the block's input"
        node = tensor.inputs[0]
        if id(node) not in nodes:
            nodes[id(node)] = node
            todo += node.inputs
        if len(nodes) > most:
            return f"its branch has more than {most} operators"
    if not any(node.op == "Conv" for node in nodes.values()):
        return "its branch has no convolution"
    inner = []
    for node in nodes.values():
        for tensor in node.outputs:
            readers = [r for r in tensor.outputs if id(r) not in nodes and r is not add]
            if readers or tensor.name in outputs:
                return f"{tensor.name!r} inside it is used elsewhere"
            inner.append(tensor.name)
    return sorted(inner)


def _stand_in(channels: int) -> NDArray[np.float32]:
    """Weights as dense as fitted ones: what a compiler makes of zeros would flatter them."""
    noise = np.random.default_rng(0).standard_normal((channels, channels))
    values = np.eye(channels) + noise * 0.1
    return values.astype(np.float32)[:, :, None, None]
