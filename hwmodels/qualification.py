"""Is a cost model good enough? Compared with the truth on networks it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.cost import Cost, CostModel, Target
from onnxnas.errors import OnnxnasError
from onnxnas.graph import static_view
from onnxnas.hwmodels.accuracy import THRESHOLDS, Accuracy, accuracy
from onnxnas.hwmodels.catboost_model import CatBoostCostModel
from onnxnas.hwmodels.measuring import kernel_cycles
from onnxnas.hwmodels.sampling import HELD_OUT_FAMILIES, sample_network
from onnxnas.kernels import Kernel, split_kernels

PREDICTED, FLOPS, ROOFLINE = "cost model", "MACs only", "roofline"
_WORST = 10


@dataclass(frozen=True)
class Subject:
    """One network to compare on.

    Attributes:
        name: of the network.
        family: networks of one family are reported together.
        make: makes the graph, its shapes static or with `input_shapes`.
    """

    name: str
    family: str
    make: Callable[[], Any]
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Region:
    """A kind of kernel and what it adds to the error.

    Attributes:
        op: operator, with its activation.
        example: the worst kernel of it, in words.
        share: mean absolute error as a share of the network's cycles, over all networks.
    """

    op: str
    example: str
    share: float


@dataclass(frozen=True)
class Row:
    """One compared network, in cycles.

    Attributes:
        true: what the backend says, over the kernels that it has a figure for.
        predicted: by method.
        uncovered: kernels outside the model's training data.
        inside: whether the truth lies inside the predicted interval.
        sum_error: (sum of the backend's kernels - its total) / total.
    """

    name: str
    family: str
    true: float
    predicted: Mapping[str, float]
    uncovered: int
    inside: bool
    sum_error: float


@dataclass(frozen=True)
class Qualification:
    """The verdict.

    Attributes:
        target: name.
        rows: one per network.
        errors: method -> family (and ``all``) -> accuracy.
        regions: what to measure next, the worst first.
        failed: networks that could not be compared, and why.
        thresholds: what was asked for.
        shortfalls: which thresholds are missed, in words; empty means passed.
    """

    target: str
    rows: tuple[Row, ...]
    errors: Mapping[str, Mapping[str, Accuracy]]
    regions: tuple[Region, ...]
    failed: tuple[tuple[str, str], ...]
    thresholds: Mapping[str, float]
    shortfalls: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every threshold is kept."""
        return not self.shortfalls


def qualify(
    model: CatBoostCostModel,
    backend: CostModel,
    subjects: Iterable[Subject],
    thresholds: Mapping[str, float] | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> Qualification:
    """Compare a model, and two simple ones, with the backend it was trained on.

    Args:
        model: the predictions.
        backend: the truth.
        subjects: networks that no training row came from.
        thresholds: default: the card's, or `THRESHOLDS`.
        progress: called with the number of networks done and the next one's name.
    """
    limits = dict(thresholds or model.entry.get("thresholds") or THRESHOLDS)
    rows: list[Row] = []
    failed: list[tuple[str, str]] = []
    regions = _Regions()
    for subject in subjects:
        if progress is not None:
            progress(len(rows) + len(failed), subject.name)
        try:
            view = static_view(subject.make(), subject.input_shapes)
            truth = backend.cost(view)
        except OnnxnasError as error:
            failed.append((subject.name, str(error)))
            continue
        kernels = split_kernels(view)
        rows.append(_row(subject, view, kernels, truth, model, regions))
    errors = {method: _by_family(rows, method) for method in (PREDICTED, FLOPS, ROOFLINE)}
    return Qualification(
        model.target.name,
        tuple(rows),
        errors,
        regions.worst(max(1, len(rows))),
        tuple(failed),
        limits,
        tuple(_shortfalls(errors[PREDICTED]["all"], limits)),
    )


def _row(
    subject: Subject,
    view: Any,
    kernels: Sequence[Kernel],
    truth: Cost,
    model: CatBoostCostModel,
    regions: _Regions,
) -> Row:
    labels = kernel_cycles(kernels, truth)
    cost = model.cost(view)
    known = ~np.isnan(labels)
    guess = np.array([k.cycles or 0.0 for k in cost.kernels])
    total = float(labels[known].sum())
    regions.add(kernels, labels, guess, max(total, 1.0))
    interval = cost.interval or (0.0, 0.0)
    # The interval is that of all kernels; shift it by those the truth says nothing about.
    missing = float(guess[~known].sum())
    return Row(
        subject.name,
        subject.family,
        total,
        {
            PREDICTED: float(guess[known].sum()),
            FLOPS: float(sum(k.macs for k in kernels)),
            ROOFLINE: roofline(kernels, model.target),
        },
        sum(bool(k.uncovered) for k in cost.kernels),
        interval[0] - missing <= total <= interval[1] - missing,
        (total - truth.cycles) / max(truth.cycles, 1.0),
    )


def roofline(kernels: Sequence[Kernel], target: Target) -> float:
    """Cycles if every kernel ran at the peak rate or at one byte per sixteen multipliers' cycle.

    The textbook estimate that needs no training: the larger of arithmetic and traffic.
    """
    bytes_per_cycle = target.macs_per_cycle / 16
    return sum(
        max(
            k.macs / target.macs_per_cycle,
            (k.in_bytes + k.operand_bytes + k.out_bytes + k.weights) / bytes_per_cycle,
        )
        for k in kernels
    )


def _by_family(rows: Sequence[Row], method: str) -> dict[str, Accuracy]:
    """Baselines in other units get the one scale that suits them best."""
    true = np.array([r.true for r in rows])
    guess = np.array([r.predicted[method] for r in rows])
    if method != PREDICTED and len(rows):
        guess = guess * float(np.median(true / np.maximum(guess, 1.0)))
    families = np.array([r.family for r in rows])
    result = {"all": accuracy(true, guess)}
    for name in sorted(set(families.tolist())):
        chosen: NDArray[np.bool_] = families == name
        result[name] = accuracy(true[chosen], guess[chosen])
    return result


def _shortfalls(found: Accuracy, limits: Mapping[str, float]) -> Iterable[str]:
    for name, limit in limits.items():
        value = float(getattr(found, name))
        if name in ("mape", "rmspe", "worst"):
            if not value <= limit:
                yield f"{name} is {value:.2%}, at most {limit:.2%} allowed"
        elif not value >= limit:
            yield f"{name} is {value:.3f}, at least {limit:.3f} needed"


class _Regions:
    """Adds up the errors per kind of kernel."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._worst: dict[str, tuple[float, str]] = {}

    def add(
        self,
        kernels: Sequence[Kernel],
        true: NDArray[np.float64],
        guess: NDArray[np.float64],
        total: float,
    ) -> None:
        for kernel, real, predicted in zip(kernels, true, guess, strict=True):
            if np.isnan(real):
                continue
            error = abs(predicted - real) / total
            op = kernel.op if kernel.activation == "none" else f"{kernel.op}+{kernel.activation}"
            self._sums[op] = self._sums.get(op, 0.0) + error
            if error >= self._worst.get(op, (0.0, ""))[0]:
                self._worst[op] = (error, _in_words(kernel, real, predicted))

    def worst(self, networks: int) -> tuple[Region, ...]:
        order = sorted(self._sums, key=lambda op: -self._sums[op])[:_WORST]
        return tuple(Region(op, self._worst[op][1], self._sums[op] / networks) for op in order)


def _in_words(k: Kernel, true: float, predicted: float) -> str:
    return (
        f"{k.in_channels}x{k.in_height}x{k.in_width} to {k.out_channels}x{k.out_height}x"
        f"{k.out_width}, window {k.window[0]}x{k.window[1]}, stride {k.strides[0]}, "
        f"groups {k.groups}: {true:,.0f} cycles, predicted {predicted:,.0f}"
    )


def table(result: Qualification) -> list[Mapping[str, Any]]:
    """One row per method and family, for printing."""
    return [
        {"method": method, "family": name, **value.to_dict()}
        for method, families in result.errors.items()
        for name, value in families.items()
    ]


def held_out(count: int) -> list[Subject]:
    """Random networks of the families that no training plan contains."""
    families = HELD_OUT_FAMILIES
    plan = [(families[i % len(families)], i // len(families)) for i in range(count)]

    def subject(family: str, seed: int) -> Subject:
        return Subject(f"{family}-{seed}", family, lambda: sample_network(family, seed))

    return [subject(family, seed) for family, seed in plan]
