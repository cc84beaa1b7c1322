"""Zero-shot scores: how trainable a structure looks, from random weights and no data.

Three published scores that need forward runs only, computed on the ONNX graph, beside the two
baselines that any of them has to beat, multiply-accumulates and parameters:

- ``naswot``: log-determinant of how alike inputs' patterns of active units are (Mellor et al.,
  "Neural Architecture Search without Training", ICML 2021);
- ``zen``: log of how far a small change of the input moves the last features, with what He's
  initialisation scaled out of every layer put back (Lin et al., "Zen-NAS", ICCV 2021; there
  batch norms carry that scale);
- ``meco``: smallest eigenvalues of the correlation between channels, summed over layers (Jiang et
  al., "MeCo", NeurIPS 2023).

A score says something about candidates of one model only as far as it ranks them as their true
damage does *at the same latency*: `assess` measures that, and what does not beat the baselines is
not to be used. Where the damage of single choices is known, its sum is a baseline too.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from onnxnas.excerpt import excerpt
from onnxnas.graph import count_parameters
from onnxnas.ops import is_constant, macs
from onnxnas.runtime import Session

SUM = "sum of single choices"
BASELINES = ("macs", "parameters", SUM)
SCORES = ("naswot", "zen", "meco")

MIN_CANDIDATES = 8
"""A rank correlation of fewer says nothing."""

_ONE_SIDED_95 = 1.644854
"""Standard deviations that a normal quantity exceeds in 5 % of cases."""

_ROWS = 16
"""Random inputs; the size of `naswot`'s kernel."""

_STEP = 0.01
"""Of `zen`: the change of the input, as a share of its size (the paper's)."""

_BITS_AT_ONCE = 1 << 20
"""Units of `naswot` that are compared at a time."""

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ACTIVATIONS = frozenset({
    "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu",
    "Selu", "Sigmoid",
})  # fmt: skip


def zero_shot(graph: Any, seed: int = 0) -> dict[str, float]:
    """All scores and baselines of one structure; of each, more promises more.

    Args:
        graph: `gs.Graph` with static shapes (see `onnxnas.graph.static_view`); weights count by
            their shapes only.
        seed: of the random weights and inputs.

    Returns:
        Score -> value; `naswot` is minus infinity where two inputs look the same throughout, and
        absent are those that the graph has no layers for.
    """
    found = {
        "macs": float(sum(macs(node) for node in graph.nodes)),
        "parameters": float(count_parameters(graph)),
    }
    view, scale = _initialised(graph, seed)
    before = [n.inputs[0].name for n in view.nodes if n.op in _ACTIVATIONS and n.inputs[0].inputs]
    convs = [n.outputs[0].name for n in view.nodes if n.op == "Conv"]
    taps = sorted({*before, *convs})
    if not taps:
        return found
    session = Session(excerpt(view, taps), optimised=True)
    wanted = {value.name for value in session.session.get_inputs()}
    shapes = {t.name: t.shape for t in view.inputs if t.name in wanted}
    rng = np.random.default_rng(seed)

    def noise() -> dict[str, NDArray[np.float32]]:
        return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}

    codes, moved, features = [], [], ""
    if convs:
        features = convs[-1]
    for row in range(_ROWS):
        feeds = noise()
        values = session.run(feeds)
        active = np.concatenate([values[n].ravel() > 0 for n in before] or [np.zeros(0, bool)])
        codes.append(np.packbits(active))
        if row == 0 and convs:
            found["meco"] = sum(_least_eigenvalue(values[name]) for name in convs)
        if features:
            near = session.run(
                {
                    n: v + _STEP * d
                    for (n, v), d in zip(feeds.items(), noise().values(), strict=True)
                }
            )
            moved.append(float(np.linalg.norm(near[features] - values[features])))
    if before:
        found["naswot"] = _log_determinant(np.stack(codes), len(active))
    if features and (distance := float(np.mean(moved))) > 0:
        found["zen"] = float(np.log(distance)) + scale
    return found


@dataclass(frozen=True)
class Rank:
    """How well one score ranks candidates.

    Attributes:
        score: one of `SCORES` or `BASELINES`.
        correlation: Spearman's, of the score with minus the damage, latency held fixed (partial
            correlation of ranks).
        count: candidates compared.
        useful: it beats all baselines, whichever one candidate is left out, and is more than
            chance would give for one score in twenty: of few candidates any score may look good.
        reason: why it is not useful, as a clause; empty where it is.
    """

    score: str
    correlation: float
    count: int
    useful: bool
    reason: str = ""


def assess(
    scores: Sequence[Mapping[str, float]], cycles: Sequence[float], damage: Sequence[float]
) -> tuple[Rank, ...]:
    """Measure scores on candidates whose true damage is known.

    Args:
        scores: `zero_shot` of each candidate.
        cycles: of each.
        damage: of each: divergence on held-out rows, or the drop of a metric.

    Returns:
        Baselines first; nothing where there are fewer than `MIN_CANDIDATES`.
    """
    if len(scores) < MIN_CANDIDATES:
        return ()
    names = [n for n in (*BASELINES, *SCORES) if all(np.isfinite(s.get(n, np.nan)) for s in scores)]
    values = np.array([[s[n] for n in names] for s in scores])
    lost, slow = np.array(damage), np.array(cycles)
    count = len(scores)
    whole = _ranked(values, lost, slow)
    parts = [
        _ranked(*(np.delete(a, i, axis=0) for a in (values, lost, slow))) for i in range(count)
    ]
    ranks = []
    for at, name in enumerate(names):
        reason = _not_useful(name, at, names, whole, parts, _chance(count))
        ranks.append(Rank(name, whole[at], count, not reason, reason))
    return tuple(ranks)


def _ranked(
    values: NDArray[np.float64], damage: NDArray[np.float64], cycles: NDArray[np.float64]
) -> list[float]:
    return [partial_rank_correlation(v, -damage, cycles) for v in values.T]


def _not_useful(
    name: str,
    at: int,
    names: Sequence[str],
    whole: Sequence[float],
    parts: Sequence[Sequence[float]],
    chance: float,
) -> str:
    """Why a score is of no use, empty if it is."""
    if name in BASELINES:
        return "a baseline"
    if whole[at] <= 0:
        return "what it prefers loses no less"
    rivals = [i for i, n in enumerate(names) if n in BASELINES]
    best = max(rivals, key=lambda i: whole[i])
    if whole[at] <= whole[best]:
        return f"{names[best]} ranks them at least as well"
    if whole[at] <= chance:
        return f"chance alone gives up to {chance:.2f}"
    if any(part[at] <= max(0.0, *(part[i] for i in rivals)) for part in parts):
        return "it is ahead by no more than one candidate"
    return ""


def _chance(count: int) -> float:
    """What one unrelated score in twenty exceeds (Fisher's z, one quantity held fixed)."""
    return float(np.tanh(_ONE_SIDED_95 / np.sqrt(count - 4)))


def partial_rank_correlation(
    a: Sequence[float] | NDArray[np.float64],
    b: Sequence[float] | NDArray[np.float64],
    fixed: Sequence[float] | NDArray[np.float64],
) -> float:
    """Spearman's correlation of two quantities, a third one held fixed; 0 where one is constant."""
    return _correlation(beside(a, fixed), beside(b, fixed))


def beside(
    values: Sequence[float] | NDArray[np.float64], fixed: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Ranks of values without what the ranks of another quantity explain of them (linearly)."""
    ranks, other = (np.asarray(rankdata(v)) - (len(v) + 1) / 2 for v in (values, fixed))
    spread = float(other @ other)
    rest = ranks - (float(ranks @ other) / spread if spread else 0.0) * other
    nothing = float(rest @ rest) <= 1e-12 * float(ranks @ ranks)
    return np.zeros(len(ranks)) if nothing else rest


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    spread = float(a.std() * b.std())
    if spread <= 0:
        return 0.0
    return float(np.clip(((a - a.mean()) * (b - b.mean())).mean() / spread, -1, 1))  # rounding


def _initialised(graph: Any, seed: int) -> tuple[Any, float]:
    """A copy with He's random weights and no biases, and the logarithm of what they scaled out."""
    view, scale = graph.copy(), 0.0
    for node in view.nodes:
        if node.op not in _LAYERS:
            continue
        for place, tensor in enumerate(node.inputs[1:3]):
            if not is_constant(tensor) or tensor.shape is None:  # asked for values, it makes them
                continue
            shape = tuple(tensor.shape)
            if place == 1:
                tensor.values = np.zeros(shape, np.float32)
                continue
            fan_in = max(1, int(np.prod(shape)) // max(1, _width(node, shape)))
            key = zlib.crc32(node.outputs[0].name.encode())
            rng = np.random.default_rng([seed, key])
            values = rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)
            tensor.values = values.astype(np.float32)
            scale += 0.5 * float(np.log(fan_in / 2.0))
    return view, scale


def _width(node: Any, shape: Sequence[int]) -> int:
    """Channels that a layer writes."""
    if node.op == "Conv":
        return int(shape[0])
    if node.op == "ConvTranspose":
        return int(shape[1]) * int(node.attrs.get("group", 1))
    if node.op == "Gemm":
        return int(shape[0] if node.attrs.get("transB", 0) else shape[1])
    return int(shape[-1])


def _log_determinant(codes: NDArray[np.uint8], units: int) -> float:
    """Of the kernel that counts, for two rows, the units in the same state.

    Args:
        codes: (rows, units / 8) bits of the units that are active.
        units: how many there are.
    """
    both = np.zeros((len(codes), len(codes)))
    for start in range(0, codes.shape[1], _BITS_AT_ONCE // 8):
        bits = np.unpackbits(codes[:, start : start + _BITS_AT_ONCE // 8], axis=1)
        active = bits.astype(np.float32)
        both += active @ active.T
    alone = both.diagonal()
    sign, value = np.linalg.slogdet(units - alone[:, None] - alone[None] + 2 * both)
    return float(value) if sign > 0 else float("-inf")


def _least_eigenvalue(features: NDArray[np.float32]) -> float:
    """Of the correlation of a layer's channels over positions; features [1, C, ...]."""
    rows = features[0].reshape(features.shape[1], -1).astype(np.float64)
    channels, positions = rows.shape
    if channels >= positions:  # then the correlations have no full rank
        return 0.0
    rows = rows - rows.mean(1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return float(max(0.0, np.linalg.eigvalsh(rows @ rows.T)[0]))
