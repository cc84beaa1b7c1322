"""Gradient steps on one block: expand, depthwise, project, fitted to samples.

Least squares can only fit the last layer of a block. These steps move all three, from where least
squares left them, by Adam (Kingma & Ba, 2015) on minibatches of sampled windows, and keep what
does best on samples that no step is made on. Numpy makes them, or PyTorch where it is asked to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.arrays import Array, library, like, on_device, to_numpy
from onnxnas.least_squares import Moments, best_ridge
from onnxnas.pass_contract import Tick, no_tick
from onnxnas.pointwise import follow

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Activation:
    """A function of each element, piecewise linear or smooth.

    Attributes:
        apply: x [..., channels] -> its values and derivatives.
    """

    apply: Callable[[Array], tuple[Array, Array]]


def activation(nodes: Sequence[Any], kept: NDArray[np.int64]) -> Activation:
    """What a run of elementwise nodes does.

    Args:
        nodes: as `pointwise_after` gives them; none is the identity.
        kept: channels that stay, for constants that hold one value for each.
    """
    if not nodes:
        return Activation(lambda x: (x, library(x).ones_like(x)))
    return Activation(lambda x: follow(nodes, x, kept))


@dataclass
class Block:
    """expand -> activation -> depthwise -> activation -> project, on windows of its input.

    Attributes:
        weights: expand [c, h] and its bias [h], depthwise [cells, h] and its bias [h], project
            [h, q] and its bias [q].
        first, second: the activations.
    """

    weights: list[Array]
    first: Activation
    second: Activation

    def hidden(self, x: Array, inside: Array) -> Array:
        """What the last layer reads [n, h], for windows x [n, cells, c], some cells padding."""
        return self._forward(x, inside)[2]

    def outputs(self, x: Array, inside: Array) -> Array:
        """Outputs [n, q]."""
        return self._forward(x, inside)[-1]

    def gradients(self, x: Array, inside: Array, y: Array) -> list[Array]:
        """Of the mean squared error of a minibatch, by every weight."""
        _, _, depthwise, _, project, _ = self.weights
        hidden, rate, deep, deep_rate, out = self._forward(x, inside)
        wrong = out - y
        back = wrong * (2.0 / math.prod(wrong.shape))
        to_deep = (back @ project.T) * deep_rate
        to_hidden = to_deep[:, None, :] * depthwise * rate
        flat = to_hidden.reshape(-1, to_hidden.shape[2])
        return [
            x.reshape(len(flat), -1).T @ flat,
            flat.sum(0),
            library(x).einsum("nkh,nh->kh", hidden, to_deep),
            to_deep.sum(0),
            deep.T @ back,
            back.sum(0),
        ]

    def _forward(self, x: Array, inside: Array) -> tuple[Array, Array, Array, Array, Array]:
        expand, expand_bias, depthwise, depthwise_bias, project, project_bias = self.weights
        n, cells, channels = x.shape
        wide = (x.reshape(-1, channels) @ expand + expand_bias).reshape(n, cells, -1)
        hidden, rate = self.first.apply(wide)
        hidden, rate = hidden * inside[:, :, None], rate * inside[:, :, None]
        deep, deep_rate = self.second.apply(
            library(x).einsum("nkh,kh->nh", hidden, depthwise) + depthwise_bias
        )
        return hidden, rate, deep, deep_rate, deep @ project + project_bias


@dataclass
class FusedBlock:
    """KxK convolution -> activation -> project, on windows of its input.

    Attributes:
        weights: convolution [cells * c, h] and its bias [h], project [h, q] and its bias [q].
    """

    weights: list[Array]
    between: Activation

    def hidden(self, x: Array, inside: Array) -> Array:
        """What the last layer reads [n, h], for windows x [n, cells, c], zero where padded."""
        return self._hidden(x)[0]

    def outputs(self, x: Array, inside: Array) -> Array:
        """Outputs [n, q]."""
        return self.hidden(x, inside) @ self.weights[2] + self.weights[3]

    def gradients(self, x: Array, inside: Array, y: Array) -> list[Array]:
        """Of the mean squared error of a minibatch, by every weight."""
        hidden, rate = self._hidden(x)
        wrong = hidden @ self.weights[2] + self.weights[3] - y
        back = wrong * (2.0 / math.prod(wrong.shape))
        to_hidden = (back @ self.weights[2].T) * rate
        return [
            x.reshape(len(x), -1).T @ to_hidden,
            to_hidden.sum(0),
            hidden.T @ back,
            back.sum(0),
        ]

    def _hidden(self, x: Array) -> tuple[Array, Array]:
        return self.between.apply(x.reshape(len(x), -1) @ self.weights[0] + self.weights[1])


@dataclass
class FusedLayer:
    """KxK convolution -> activation, on windows of its input.

    Attributes:
        weights: convolution [cells * c, h] and its bias [h].
        scale: what an error of each channel counts [h]; outputs and targets are multiplied by it.
    """

    weights: list[Array]
    between: Activation
    scale: Array

    def outputs(self, x: Array, inside: Array) -> Array:
        """Outputs [n, h], for windows x [n, cells, c], zero where padded."""
        return self._hidden(x)[0] * like(self.scale, x)

    def gradients(self, x: Array, inside: Array, y: Array) -> list[Array]:
        """Of the mean squared error of a minibatch, by every weight."""
        hidden, rate = self._hidden(x)
        scale = like(self.scale, x)
        wrong = hidden * scale - y
        back = wrong * (2.0 / math.prod(wrong.shape)) * scale * rate
        return [x.reshape(len(x), -1).T @ back, back.sum(0)]

    def _hidden(self, x: Array) -> tuple[Array, Array]:
        return self.between.apply(x.reshape(len(x), -1) @ self.weights[0] + self.weights[1])


@dataclass(frozen=True)
class Windows:
    """Samples of a block: x [n, cells, c], which cells are no padding [n, cells], y [n, q]."""

    x: Array
    inside: Array
    y: Array

    def on(self, device: Any) -> Windows:
        """The same as tensors on a device of PyTorch."""
        return Windows(*(on_device(a, device) for a in (self.x, self.inside, self.y)))


def refit_last(
    block: Block | FusedBlock, fit: Windows, tune: Windows, *, whole: bool = False
) -> None:
    """Fit the last layer of a block by ridge regression pulled to what it is, in place.

    Args:
        whole: when it is settled how hard, the samples to tune by are fitted on too; for the end,
            when nothing is left to be tuned.
    """
    sums = []
    for windows in (fit, tune):
        moments = Moments.empty(len(block.weights[-2]), windows.y.shape[1])
        for start in range(0, len(windows.x), 2048):
            part = slice(start, start + 2048)
            moments.add(block.hidden(windows.x[part], windows.inside[part]), windows.y[part])
        sums.append(moments)
    prior = block.weights[-2].astype(np.float64)
    both = sums[0].plus(sums[1]) if whole else None
    best, _ = best_ridge(sums[0], sums[1], np.arange(len(prior)), prior, both)
    block.weights[-2:] = [best.weight.astype(np.float32), best.bias.astype(np.float32)]


def train(
    block: Block | FusedBlock | FusedLayer,
    fit: Windows,
    tune: Windows,
    *,
    steps: int,
    rate: float,
    seed: int,
    device: str = "",
    tick: Tick = no_tick,
) -> float:
    """Improve a block's weights in place.

    Now and then it is tried on the samples to tune by, and the best weights seen are kept. It does
    not stop where they get no better: most of the gain comes with the small steps at the end.

    Args:
        steps: minibatches.
        rate: largest step, as a share of the root mean square of a layer's weights, so that one
            serves networks of all scales; falls to zero along a half cosine.
        seed: of the minibatches.
        device: of PyTorch, which then makes the steps; empty for numpy.

    Returns:
        The squared error on the samples to tune by over the variance of the targets.
    """
    rng = np.random.default_rng(seed)
    variance = max(float(tune.y.var(0).sum()), 1e-30)
    scale = 1.0 / max(float(fit.y.std()), 1e-12)  # so that one rate serves all blocks
    student = block
    if device:
        student = replace(block, weights=[on_device(w, device) for w in block.weights])
        fit, tune = fit.on(device), tune.on(device)
    weights = student.weights
    moments = [(library(w).zeros_like(w), library(w).zeros_like(w)) for w in weights]
    best = [to_numpy(w).copy() for w in weights]
    lowest = _error(student, tune) / variance
    sizes = [_size(w) for w in student.weights[::2] for _ in ("weight", "bias")]
    for step in range(1, steps + 1):
        tick()
        picked = like(rng.integers(0, len(fit.x), _BATCH), fit.x)
        gradients = student.gradients(fit.x[picked], fit.inside[picked], fit.y[picked])
        now = rate * min(1.0, step / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        now *= math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        for i, gradient in enumerate(gradients):
            first, second = moments[i]
            gradient *= scale
            first += (gradient - first) * 0.1
            second += (gradient * gradient - second) * 0.001
            weights[i] -= now * sizes[i] * first / (library(second).sqrt(second) + 1e-8)
        if step % _TRY_EVERY == 0 or step == steps:
            error = _error(student, tune) / variance
            if error < lowest:
                lowest, best = error, [to_numpy(w).copy() for w in weights]
            if not math.isfinite(error):
                break
    block.weights[:] = best
    return lowest


_BATCH = 512
_TRY_EVERY = 100
_WARM_UP = 100


def _size(weight: Array) -> float:
    return float((weight * weight).mean()) ** 0.5 or 1.0


def _error(block: Block | FusedBlock | FusedLayer, windows: Windows) -> float:
    """Squared error summed over outputs, the mean over samples."""
    total = 0.0
    for start in range(0, len(windows.x), 1024):
        part = slice(start, start + 1024)
        wrong = block.outputs(windows.x[part], windows.inside[part]) - windows.y[part]
        total += float((wrong * wrong).sum())
    return total / max(1, len(windows.x))
