"""End-to-end distillation: all weights of a changed network trained to answer as the original does.

Needs PyTorch (the extra `train`); uses a GPU where there is one. Only weights change. A few hundred
rows are soon learned by heart, so every so often the network is tried on rows that no step is made
on, and in the end it counts only where it is nearer to the original on a third set of rows.

The loss is the divergence of the outputs (Hinton et al., 2015) and the error of tensors that both
networks have, which holds inner layers to what they did (hints: Romero et al., 2015).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.calibration import Calibration
from onnxnas.divergence import Divergence, Judged
from onnxnas.errors import InfeasibleError, UnsupportedError, UsageError
from onnxnas.fit_rows import FitRows, runner
from onnxnas.graph import from_model, infer_shapes, static_view, to_model
from onnxnas.held_out import HeldOut
from onnxnas.level_fit import is_clustered
from onnxnas.materialize import put_values
from onnxnas.resized import in_words
from onnxnas.torch_network import TorchNetwork

if TYPE_CHECKING:
    import onnx

STEPS = 300
_ROWS_AT_ONCE = 8
RATE = 3e-5
"""Ten times more does harm to a network that is near its original already."""
_WARM_UP = 20
_TRY_EVERY = 20
_PATIENCE = 6
"""Trials without better weights after which training stops."""
_HINT_SHARE = 0.5
_SAME = 1e-3
"""Largest difference between PyTorch and onnxruntime, relative to the largest value."""


@dataclass(frozen=True)
class Distilled:
    """What came of it.

    Attributes:
        model: the changed network with trained weights.
        measure: what the divergences are, in words.
        before, after: how far from the original, on rows neither fitted on nor tuned by.
        steps: how many were made.
        device: that they were made on.
    """

    model: onnx.ModelProto
    measure: str
    before: Divergence
    after: Divergence
    steps: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "measure": self.measure,
            "rows": len(self.before.rows),
            **{
                name: {
                    "divergence": found.value,
                    "divergence_standard_error": found.error,
                    "agreement": found.agrees,
                }
                for name, found in (("before", self.before), ("after", self.after))
            },
            "steps": self.steps,
            "device": self.device,
        }


def distill(
    original: onnx.ModelProto,
    changed: onnx.ModelProto,
    calibration: Calibration,
    *,
    steps: int = STEPS,
    rate: float = RATE,
    budget_s: float | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Distilled:
    """Train a changed network's weights towards what the original answers.

    Args:
        changed: has the original's inputs and outputs; its structure stays.
        calibration: unlabelled; if it is what weights were fitted on before, the same rows judge.
        steps: of gradient at most, of 8 rows each.
        rate: size of a step, relative to the size of the weights of an output channel.
        budget_s: seconds after which no step is begun.
        seed: of the order of the rows.
        progress: called with (what, done, total).

    Raises:
        UsageError: PyTorch is not installed, or there are too few rows.
        UnsupportedError: gradients cannot go through an operator.
        InfeasibleError: the result is not nearer to the original than it was.
    """
    if resized := in_words(changed, original):
        raise UsageError(
            f"The result cannot be distilled: its sizes are not the original's ({resized}); "
            "search again without --allow-input-resize."
        )
    rows = FitRows.of(calibration)
    graph, result = from_model(original), from_model(changed)
    infer_shapes(graph)
    infer_shapes(result)
    judge = HeldOut.of(graph, rows)
    missing = sorted({j.tensor for j in judge.judged} - result.tensors().keys())
    if missing:
        raise UsageError(
            f"The result has no tensor {missing[0]!r}, by which it is to be compared: distill what "
            "onnxnas made of this original."
        )
    deadline = None if budget_s is None else time.monotonic() + budget_s
    trained = train(
        graph,
        result,
        rows,
        judge.judged,
        steps,
        rate,
        deadline,
        seed,
        progress or (lambda *_: None),
    )
    put_values(result, trained.values)
    before = judge.divergence_of(from_model(changed))
    after = judge.divergence_of(result)
    measure = " and ".join(sorted({j.measure for j in judge.judged}))
    if not after.value < before.value:
        raise InfeasibleError(
            f"Distillation gained nothing: {measure} {before.value:.4f} -> {after.value:.4f} on "
            f"{len(before.rows)} rows that it did not see; nothing was written."
        )
    return Distilled(
        to_model(result, changed), measure, before, after, trained.steps, trained.device
    )


@dataclass(frozen=True)
class Trained:
    """Weights that were trained.

    Attributes:
        values: by the name of the constant.
        steps: how many were made.
        device: that they were made on.
    """

    values: Mapping[str, NDArray[Any]]
    steps: int
    device: str


def train(
    original: Any,
    changed: Any,
    rows: FitRows,
    judged: Sequence[Judged],
    steps: int,
    rate: float,
    deadline: float | None,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> Trained:
    """Weights of a changed graph with which it is nearest to the original on rows to tune by.

    Args:
        original, changed: `gs.Graph`; are not changed.
        judged: tensors that are compared, of both.
        deadline: by `time.monotonic`; no step is begun after it.

    Raises:
        UsageError: PyTorch is not installed.
        UnsupportedError: gradients cannot go through an operator.
    """
    torch = _torch()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = {name: tuple(value.shape) for name, value in next(iter(rows.fitted(1))).items()}
    teacher, student = (TorchNetwork(static_view(g, shapes), device) for g in (original, changed))
    pair = _Pair(torch, device, teacher, student, judged)
    for network, whole in ((teacher, original), (student, changed)):
        _check(pair, network, whole, rows)
    weights, made = _train(pair, rows, steps, rate, deadline, seed, progress)
    return Trained(weights, made, device)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            "Distillation needs PyTorch: pip install 'onnxnas[train]'; all else works without."
        ) from error
    return torch


class _Pair:
    """Teacher and student, and how far apart they are.

    The student's weights are its old ones plus `changes`, each in units of the size of the
    weights of its output channel, so that one rate serves layers of all scales.
    """

    def __init__(
        self,
        torch: Any,
        device: str,
        teacher: TorchNetwork,
        student: TorchNetwork,
        judged: Sequence[Judged],
    ) -> None:
        self.torch, self.device = torch, device
        self.teacher, self.student, self.judged = teacher, student, judged
        self.tensors = [j.tensor for j in judged]
        self.hints = _hints(teacher.graph, student.graph)
        self.scales = {name: _scale(w) for name, w in student.weights.items()}
        # Few distinct values are there for a reason, which steps would undo.
        self.changes = {
            name: torch.zeros_like(w, requires_grad=True)
            for name, w in student.weights.items()
            if w.ndim < 2 or not is_clustered(w.cpu().numpy())
        }

    def weights(self) -> dict[str, Any]:
        old = self.student.weights
        new = {name: old[name] + c * self.scales[name] for name, c in self.changes.items()}
        return {**old, **new}

    def feeds(self, batches: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
        return {
            name: self.torch.from_numpy(np.concatenate([b[name] for b in batches])).to(self.device)
            for name in batches[0]
        }

    def divergence(self, feeds: Mapping[str, Any], hints: Sequence[str] = ()) -> tuple[Any, Any]:
        """Of the outputs, and the error of inner tensors (0 without)."""
        with self.torch.no_grad():
            want = self.teacher(feeds, [*self.tensors, *hints])
        have = self.student(feeds, [*self.tensors, *hints], self.weights())
        total = 0.0
        for j in self.judged:
            a, b = want[j.tensor], have[j.tensor]
            if j.kind == "logits":
                a, b = a.log_softmax(j.axis), b.log_softmax(j.axis)
                total = total + (a.exp() * (a - b)).sum(j.axis).mean()
            else:
                total = total + _error(a, b)
        inner = sum(_error(want[name], have[name]) for name in hints)
        return total / len(self.judged), inner / max(1, len(hints))


def _error(want: Any, have: Any) -> Any:
    return ((want - have) ** 2).mean() / want.var().clamp(min=1e-12)


def _scale(weight: Any) -> Any:
    """Root mean square of each output channel, of all elements for vectors."""
    axes = list(range(1, weight.ndim)) if weight.ndim > 1 else [0]
    return weight.pow(2).mean(axes, keepdim=True).sqrt().clamp(min=1e-8)


def _hints(teacher: Any, student: Any) -> list[str]:
    """Sums that both networks compute, in the same shape: the tensors between blocks."""
    theirs = student.tensors()
    found = []
    for y in (node.outputs[0] for node in teacher.nodes if node.op == "Add"):
        same = theirs.get(y.name)
        if same is not None and same.inputs and list(same.shape) == list(y.shape):
            found.append(y.name)
    return found


def _check(pair: _Pair, network: TorchNetwork, graph: Any, rows: FitRows) -> None:
    """Refuse to train a copy that does not compute what the file says, two rows at a time."""
    two = list(rows.fitted(2))
    run = runner(graph, pair.tensors)
    expected = [run(batch) for batch in two]
    with pair.torch.no_grad():
        found = network(pair.feeds(two), pair.tensors)
    for name in pair.tensors:
        want = np.concatenate([values[name] for values in expected])
        have = found[name].cpu().numpy()
        if have.shape != want.shape or abs(have - want).max() > _SAME * max(1e-6, abs(want).max()):
            raise UnsupportedError(
                f"PyTorch does not compute {name!r} as onnxruntime does, so nothing was trained."
            )


def _train(
    pair: _Pair,
    rows: FitRows,
    steps: int,
    rate: float,
    deadline: float | None,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> tuple[dict[str, NDArray[Any]], int]:
    """The best weights on rows to tune by, and the number of steps made."""
    torch = pair.torch
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam(pair.changes.values(), lr=rate, betas=(0.9, 0.99))

    def tried() -> float:
        with torch.no_grad():
            found = [
                (float(pair.divergence(pair.feeds(some))[0]), len(some))
                for some in rows.chunks("tune", _ROWS_AT_ONCE)
            ]
        return sum(value * n for value, n in found) / sum(n for _, n in found)

    def kept() -> dict[str, NDArray[Any]]:
        return {name: w.detach().cpu().numpy() for name, w in pair.weights().items()}

    best, lowest, idle, step = kept(), tried(), 0, 0
    feeds = _shuffled(pair, rows, seed)
    while step < steps and idle < _PATIENCE:
        if deadline is not None and time.monotonic() > deadline:
            break
        progress("distilling", step, steps)
        step += 1
        value, inner = pair.divergence(next(feeds), pair.hints)
        optimiser.zero_grad()
        (value + _HINT_SHARE * inner).backward()
        torch.nn.utils.clip_grad_norm_(pair.changes.values(), 1.0)
        now = rate * min(1.0, step / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = now
        optimiser.step()
        if step % _TRY_EVERY == 0 or step == steps:
            error = tried()
            idle = 0 if error < lowest else idle + 1
            if error < lowest:
                best, lowest = kept(), error
            if not math.isfinite(error):
                break
    return best, step


def _shuffled(pair: _Pair, rows: FitRows, seed: int) -> Iterator[dict[str, Any]]:
    """Batches of rows to fit on, in a new order every time around, half of them mirrored."""
    rng = np.random.default_rng(seed)
    while True:
        for some in rows.chunks("fit", _ROWS_AT_ONCE, rng):
            if rows.mirrored:
                some = [rows.turned(b) if rng.random() < 0.5 else b for b in some]
            yield pair.feeds(some)
