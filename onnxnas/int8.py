"""What quantisation to int8 costs a network, and what it costs its rewritten form.

Accelerators run int8. A rewrite that is harmless in float can cost accuracy there: wider ranges,
channels of very different scales. So the original and the result are both quantised, by
onnxruntime's static quantiser (QDQ, weights per channel, ranges from the user's rows), and each
is compared with the original in float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx

from onnxnas.calibration import Calibration
from onnxnas.divergence import Divergence
from onnxnas.fit_rows import FitRows
from onnxnas.graph import from_model, infer_shapes
from onnxnas.held_out import HeldOut
from onnxnas.normalise import normalise
from onnxnas.quality import Quality, Task, compare
from onnxnas.quantise import quantise
from onnxnas.resized import as_original

MOST_ROWS = 100
"""Rows that ranges are read from."""


@dataclass(frozen=True)
class Int8:
    """How far three networks are from the original in float, on rows no range was read from.

    Attributes:
        measure: what a divergence is, in words.
        original: the original in int8.
        result: the result in float.
        result_int8: the result in int8.
        quality: task metrics, the original in float against each of the three in that order;
            empty without a task.
    """

    measure: str
    original: Divergence
    result: Divergence
    result_int8: Divergence
    quality: tuple[Quality, ...] = ()

    @property
    def networks(self) -> tuple[tuple[str, Divergence], ...]:
        """The three, named."""
        return (
            ("original int8", self.original),
            ("result float", self.result),
            ("result int8", self.result_int8),
        )

    def lines(self) -> list[str]:
        """For people."""
        rows = len(self.original.rows)
        said = [f"{self.measure}, from the original in float, on {rows} rows:"]
        for i, (name, found) in enumerate(self.networks):
            agrees = "" if found.agrees is None else f", same class on {found.agrees:.1%}"
            task = f"; {self.quality[i]}" if self.quality else ""
            said.append(f"{name:14} {found.value:.4f} +- {found.error:.4f}{agrees}{task}")
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "measure": self.measure,
            "rows": len(self.original.rows),
            "against": "original float",
            "networks": [
                {
                    "network": name,
                    "divergence": found.value,
                    "divergence_standard_error": found.error,
                    "agreement": found.agrees,
                    "agreement_standard_error": found.agreement_error,
                    **({"metric": str(self.quality[i])} if self.quality else {}),
                }
                for i, (name, found) in enumerate(self.networks)
            ],
        }


def compare_int8(
    original: onnx.ModelProto,
    result: onnx.ModelProto,
    calibration: Calibration,
    task: Task | None = None,
    seed: int = 0,
) -> Int8:
    """Quantise a model and its rewritten form, and compare both with the model in float.

    Args:
        calibration: the rows that weights were fitted on, if any were: judged are those that the
            fit did not see.

    Raises:
        UsageError: there are too few rows.
        UnsupportedError: the quantiser cannot take one of the models.
    """
    rows = FitRows.of(calibration)
    float_model = normalise(original).model
    float_result = normalise(as_original(result, original)).model
    held_out = HeldOut.of(from_model(float_model), rows)
    networks = (
        quantise(float_model, rows.fitted(MOST_ROWS)),
        float_result,
        quantise(float_result, rows.fitted(MOST_ROWS)),
    )
    found = [held_out.divergence_of(_graph(model)) for model in networks]
    quality: tuple[Quality, ...] = ()
    if task is not None:
        first = task.measured(original, seed)
        quality = tuple(compare(first, task.measured(m, seed), seed)[0] for m in networks)
    measure = " and ".join(sorted({j.measure for j in held_out.judged}))
    original_int8, result_float, result_int8 = found
    return Int8(measure, original_int8, result_float, result_int8, quality)


def _graph(model: onnx.ModelProto) -> Any:
    graph = from_model(model)
    infer_shapes(graph)
    return graph
