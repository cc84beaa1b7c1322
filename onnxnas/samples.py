"""Samples that weights are fitted on: windows of tensors at random positions, row after row.

Both networks see the same rows and are read at the same positions: the inputs of a fit in the
network being built, its targets in the original. Nothing grows with the number of rows but the
time.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxnas.least_squares import Moments

Tensors = Mapping[str, NDArray[Any]]
Positions = NDArray[np.int64]
"""Row of the batch, y and x of each sample [n, 3]."""

Role = Literal["fit", "tune", "judge"]
"""What a row is for: weights are fitted on it; it settles what a fit leaves open (how strong a
ridge, when to stop); or neither, so that candidates can be judged by it."""

JUDGE_SHARE, MOST_JUDGE = 0.2, 100
TUNE_SHARE, MOST_TUNE = 0.15, 100
"""Shares of the rows, and how many are enough."""

_AT_ONCE = 2048
"""Samples whose products are summed by one matrix product."""


@dataclass(frozen=True)
class Window:
    """What a convolution reads of a tensor around one of its output positions.

    Attributes:
        tensor: [n, channels, height, width], or [n, channels], which has one position.
        pads: top, left, bottom, right, with zeros.
        function: what is done to every value before it is read: ``Relu``, ``Relu6``,
            ``HardSwish`` (all of which leave zero as it is), or nothing.
        times: a tensor [n, channels, 1, 1] that scales the channels of each row; empty for none.
    """

    tensor: str
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    function: Literal["", "Relu", "Relu6", "HardSwish"] = ""
    times: str = ""

    def of(self, tensors: Tensors, at: Positions) -> NDArray[Any]:
        """The window at some output positions, with its function and scale."""
        x = self.read(tensors[self.tensor], at)
        if self.function == "HardSwish":
            x = x * np.clip(x / 6 + np.float32(0.5), 0, 1)
        elif self.function:
            x = np.clip(x, 0, 6 if self.function == "Relu6" else None)
        return x * tensors[self.times][at[:, 0]] if self.times else x

    def read(self, values: NDArray[Any], at: Positions) -> NDArray[Any]:
        """The window at some output positions: [n, channels, kernel height, kernel width]."""
        if values.ndim == 2:
            return values[at[:, 0], :, None, None]
        top, left, bottom, right = self.pads
        if any(self.pads):
            values = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
        (sy, sx), (dy, dx), (kh, kw) = self.strides, self.dilations, self.kernel
        rows = at[:, 1, None, None] * sy + np.arange(kh)[None, :, None] * dy
        columns = at[:, 2, None, None] * sx + np.arange(kw)[None, None, :] * dx
        return np.moveaxis(values[at[:, 0, None, None], :, rows, columns], -1, 1)

    def inside(self, shape: Sequence[int], at: Positions) -> NDArray[np.bool_]:
        """Which cells of the windows lie on the tensor, not on its padding: [n, kh, kw]."""
        ones = np.ones((1, 1, *(shape[2:] if len(shape) == 4 else (1, 1))), np.bool_)
        here = np.column_stack([np.zeros_like(at[:, 0]), at[:, 1:]])
        return self.read(ones, here)[:, 0]


@dataclass(frozen=True)
class Sampling:
    """What the weights of one linear map, or of one block, are fitted on.

    Attributes:
        inputs: read in the network being built; their windows, flattened channel by channel and
            one after another, are the features.
        target: tensor of the original whose positions are sampled.
        minus: tensors of the network being built that are added to the output of the fit before
            it is to equal `target` (a residual).
        through: weight [c, q] and bias [q] of the linear map whose output is meant, where `target`
            is what it reads: where a mean over positions lies between, each position says more.
        patches: keep the samples themselves, which gradient steps need, not only their moments.
        most: samples in all rows together.
        only: outputs that are fitted, in a network that has no others; None means all.
        layer: output of a layer whose weights come with the samples, as they are in the network
            being built; empty for none.
    """

    inputs: tuple[Window, ...]
    target: str
    minus: tuple[str, ...] = ()
    through: tuple[NDArray[Any], NDArray[Any]] | None = field(default=None, compare=False)
    patches: bool = False
    most: int = 24_000
    only: NDArray[np.int64] | None = field(default=None, compare=False)
    layer: str = ""

    def key(self, row: int) -> tuple[str, int, int, int]:
        """What the targets of one row are kept under."""
        if self.through is None:
            return self.target, 0, self.most, row
        weight, bias = self.through  # several layers may read one mean
        return self.target, zlib.crc32(weight[:, 0].tobytes() + bias.tobytes()) | 1, self.most, row

    def size_bytes(self, shape: Callable[[str], Sequence[Any]]) -> int:
        """Roughly what the samples take in memory.

        Args:
            shape: of a tensor of the original.
        """
        features = sum(int(shape(w.tensor)[1]) * w.kernel[0] * w.kernel[1] for w in self.inputs)
        if self.patches:
            return 4 * features * self.most
        return 16 * features * (features + int(shape(self.target)[1])) + 12 * features * _AT_ONCE

    @property
    def student_tensors(self) -> frozenset[str]:
        """Tensors read in the network being built."""
        read = (t for w in self.inputs for t in (w.tensor, w.times) if t)
        return frozenset({*read, *self.minus})

    def positions(self, shape: Sequence[int], row: int, rows: int, seed: int) -> Positions:
        """Where one row (or batch) is read; the same whenever it is asked for."""
        size = (shape[0], *(shape[2:] if len(shape) == 4 else (1, 1)))
        cells = int(np.prod(size))
        wanted = min(cells, max(1, -(-self.most * size[0] // max(1, rows))))
        rng = np.random.default_rng([seed, row, zlib.crc32(self.target.encode())])
        picked = np.arange(cells) if wanted == cells else rng.choice(cells, wanted, replace=False)
        return np.stack(np.unravel_index(np.sort(picked), size), 1).astype(np.int64)

    def features(self, tensors: Tensors, at: Positions) -> NDArray[Any]:
        """The features [n, p] at some positions."""
        parts = [w.of(tensors, at).reshape(len(at), -1) for w in self.inputs]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)

    def targets(self, tensors: Tensors, at: Positions) -> NDArray[Any]:
        """The original's values [n, q] at some positions."""
        y = Window(self.target).read(tensors[self.target], at)[:, :, 0, 0]
        return y if self.through is None else y @ self.through[0] + self.through[1]

    def added(self, tensors: Tensors, at: Positions) -> NDArray[Any] | float:
        """What the network being built adds to the output of the fit, [n, q]."""
        return sum((Window(t).read(tensors[t], at)[:, :, 0, 0] for t in self.minus), start=0.0)


@dataclass
class Part:
    """Samples of some rows.

    Attributes:
        moments: of all samples.
        x, y, inside: the samples, where the sampling asks for them: features [n, p], targets
            [n, q], and which cells of the first input's window are no padding [n, kh, kw].
    """

    moments: Moments
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    inside: NDArray[np.bool_]


@dataclass
class Samples:
    """What one `Sampling` found.

    Attributes:
        fit: rows to fit on.
        tune: rows to settle by what a fit leaves open, and to see how good it is.
        layer: weight [features, outputs] and bias [outputs] of `Sampling.layer`.
    """

    fit: Part
    tune: Part
    layer: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None


@dataclass
class _Pending:
    """Samples of one part that have not been summed yet."""

    sampling: Sampling
    moments: Moments | None = None
    x: list[NDArray[Any]] = field(default_factory=list)
    y: list[NDArray[Any]] = field(default_factory=list)
    inside: list[NDArray[Any]] = field(default_factory=list)
    waiting: int = 0

    def add(self, x: NDArray[Any], y: NDArray[Any], inside: NDArray[Any] | None) -> None:
        self.x.append(x)
        self.y.append(y)
        if inside is not None:
            self.inside.append(inside)
        self.waiting += len(x)
        if not self.sampling.patches and self.waiting >= _AT_ONCE:
            self._sum()

    def _sum(self) -> None:
        x, y = np.concatenate(self.x), np.concatenate(self.y)
        if self.moments is None:
            self.moments = Moments.empty(x.shape[1], y.shape[1])
        self.moments.add(x, y)
        self.x, self.y, self.waiting = [], [], 0

    def done(self) -> Part:
        none = np.zeros((0, 0), np.float32)
        if self.sampling.patches and self.x:
            x, y = (np.concatenate(v).astype(np.float32, copy=False) for v in (self.x, self.y))
            return Part(Moments.empty(0, 0), x, y, np.concatenate(self.inside))
        if self.waiting:
            self._sum()
        return Part(self.moments or Moments.empty(0, 0), none, none, np.zeros((0, 0, 0), np.bool_))


Rows = Iterable[tuple[int, Role, Tensors]]
"""Index of the row (or batch), what it is for (never to judge), and the tensors read there."""

Targets = Mapping[tuple[str, int, int, int], tuple[Positions, NDArray[Any]]]
"""`Sampling.key` -> where the original is read, and its values there [n, q]."""


def read_targets(samplings: Sequence[Sampling], rows: Rows, count: int, seed: int) -> Targets:
    """The original's targets at the sampled positions.

    They are small, and serve every network that is fitted to the original.
    """
    found: dict[tuple[str, int, int, int], tuple[Positions, NDArray[Any]]] = {}
    for row, _, tensors in rows:
        for sampling in samplings:
            if sampling.key(row) not in found:
                at = sampling.positions(tensors[sampling.target].shape, row, count, seed)
                found[sampling.key(row)] = at, sampling.targets(tensors, at)
    return found


def read_samples(
    samplings: Sequence[Sampling], rows: Rows, targets: Targets | None, count: int, seed: int
) -> list[Samples]:
    """Samples of every sampling, from one run over the rows.

    Args:
        samplings: each with its own features.
        rows: tensors of the network being built.
        targets: see `read_targets`; None where those of the rows themselves will do.
        count: rows (or batches) in all.
        seed: of the positions.
    """
    pending = [{"fit": _Pending(s), "tune": _Pending(s)} for s in samplings]
    for row, role, tensors in rows:
        known = targets or read_targets(samplings, [(row, role, tensors)], count, seed)
        for sampling, parts in zip(samplings, pending, strict=True):
            at, y = known[sampling.key(row)]
            first, inside = sampling.inputs[0], None
            if sampling.patches:
                inside = first.inside(tensors[first.tensor].shape, at)
            x = sampling.features(tensors, at)
            y = y if sampling.only is None else y[:, sampling.only]
            parts[role].add(x, y - sampling.added(tensors, at), inside)
    return [Samples(parts["fit"].done(), parts["tune"].done()) for parts in pending]


def split_rows(count: int) -> tuple[Role, ...]:
    """What each of `count` rows (or batches) is for; every kind is spread evenly.

    A fifth judges (100 are enough to rank by), 15 % tune, the rest is fitted on: of 50 rows 32
    are fitted on, 8 tune and 10 judge.
    """
    roles: list[Role] = ["fit"] * count
    _spread(roles, "judge", min(MOST_JUDGE, max(1, round(JUDGE_SHARE * count))))
    _spread(roles, "tune", min(MOST_TUNE, max(1, round(TUNE_SHARE * count))))
    return tuple(roles)


def _spread(roles: list[Role], role: Role, wanted: int) -> None:
    """Give a role to so many of the rows that are fitted on until now."""
    free = [row for row, now in enumerate(roles) if now == "fit"]
    for i, row in enumerate(free):
        if (i + 1) * wanted // len(free) > i * wanted // len(free):
            roles[row] = role
