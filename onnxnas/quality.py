"""How well the result does the user's task beside the original: one metric, the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxnas.errors import UsageError, unknown_name
from onnxnas.evaluate import METRICS, Arrays, Measured, evaluate, read_arrays
from onnxnas.metrics import difference

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Task:
    """What a user measures a model by: a metric and, for the built-in ones, labelled data."""

    metric: str
    arrays: Arrays | None = None

    @classmethod
    def parse(cls, text: str) -> Task:
        """From ``top1=data.npz``, ``map=module:function``, or the user's ``module:function``.

        Raises:
            UsageError: the metric is unknown or the data cannot be read.
        """
        metric, equals, source = text.partition("=")
        if not equals and ":" in text:
            return cls(text)
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        if not source:
            raise UsageError(f"The metric {metric} needs data: write {metric}=data.npz.")
        return cls(metric, read_arrays(source))

    def measured(self, model: onnx.ModelProto, seed: int = 0) -> list[Measured]:
        """The task's metrics of one model, the main one first.

        Raises:
            UsageError, UnsupportedError: as `evaluate`.
        """
        return evaluate(model, self.metric, self.arrays, seed)


@dataclass(frozen=True)
class Quality:
    """One metric of the original and of the result, on the same rows.

    Attributes:
        drop: original minus result; negative where the result is better.
        interval: 95 % ends of `drop`, rows resampled in pairs; None for the user's function.
    """

    original: Measured
    result: Measured
    drop: float
    interval: tuple[float, float] | None

    def exceeds(self, most: float) -> bool:
        """Whether the drop is more than `most`, which .914 - .904 is not of .01."""
        return self.drop - most > 1e-9 * abs(most)

    def __str__(self) -> str:
        within = f" ({self.interval[0]:+.4f} to {self.interval[1]:+.4f})" if self.interval else ""
        rows = f", {self.original.rows} rows" if self.original.rows else ""
        return (
            f"{self.original.name}: {self.original.value:.4f} -> {self.result.value:.4f}, "
            f"drop {self.drop:+.4f}{within}{rows}"
        )


def compare(
    before: Sequence[Measured], after: Sequence[Measured], seed: int = 0
) -> tuple[Quality, ...]:
    """What a task's metrics make of two models, see `Task.measured`."""
    qualities = []
    for old, new in zip(before, after, strict=True):
        interval = None
        if old.score is not None and new.score is not None:
            _, low, high = difference(old.score, new.score, seed)
            interval = (0.0 - high, 0.0 - low)  # never prints -0.0
        qualities.append(Quality(old, new, old.value - new.value, interval))
    return tuple(qualities)
