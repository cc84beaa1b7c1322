"""How far a changed network's outputs are from the original's, on rows no fit has seen.

What is measured depends on what an output is: scores over classes are compared as distributions
(Kullback-Leibler divergence, in nats), anything else by squared error over variance. Where an
output is a choice of class (ArgMax), the scores it is chosen from are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxnas.ops import producer

Kind = Literal["logits", "values"]

_CARRY = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True)
class Judged:
    """A tensor by which two networks are compared.

    Attributes:
        tensor: its name in both networks.
        kind: logits are compared as distributions over `axis`.
        axis: of the classes.
    """

    tensor: str
    kind: Kind
    axis: int = 1

    @property
    def measure(self) -> str:
        """What `Divergence.value` is for this tensor, in words."""
        return "squared error / variance" if self.kind == "values" else "KL divergence, nats"


@dataclass(frozen=True)
class Divergence:
    """How far apart two networks are.

    Attributes:
        rows: divergence on each row, the mean over the judged tensors.
        agreement: share of positions on each row where both prefer the same class; empty where
            no judged tensor is over classes.
    """

    rows: NDArray[np.float64]
    agreement: NDArray[np.float64]

    @property
    def value(self) -> float:
        """Mean over the rows."""
        return float(self.rows.mean())

    @property
    def error(self) -> float:
        """Standard error of `value`."""
        return _standard_error(self.rows)

    @property
    def agrees(self) -> float | None:
        """Mean agreement, None where there is none."""
        return float(self.agreement.mean()) if len(self.agreement) else None

    @property
    def agreement_error(self) -> float:
        """Standard error of `agrees`; never that of no disagreement at all, which is not known."""
        n = len(self.agreement)
        return max(_standard_error(self.agreement), 1.0 / (n + 1)) if n else 0.0

    def to_dict(self) -> dict[str, list[float]]:
        """As plain JSON values."""
        return {"rows": self.rows.tolist(), "agreement": self.agreement.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> Divergence:
        """The reverse of `to_dict`."""
        return cls(np.array(values["rows"], float), np.array(values["agreement"], float))


def judged_tensors(graph: Any) -> tuple[Judged, ...]:
    """By what a network is compared to one that was made of it: one tensor for each output.

    Args:
        graph: `gs.Graph` of the original with inferred shapes.
    """
    return tuple({j.tensor: j for j in map(_judged, graph.outputs)}.values())


def _judged(output: Any) -> Judged:
    node, tensor = producer(output), output
    while node is not None and node.op in _CARRY:
        tensor = node.inputs[0]
        node = producer(tensor)
    if node is not None and node.op == "ArgMax":
        scores = node.inputs[0]
        axis = int(node.attrs.get("axis", 0)) % len(scores.shape)
        return Judged(scores.name, "logits", axis)
    rank = len(output.shape or ())
    if node is not None and node.op in ("Softmax", "LogSoftmax") and tensor.shape is not None:
        axis = int(node.attrs.get("axis", -1)) % len(tensor.shape)
        return Judged(node.inputs[0].name, "logits", axis)
    classes = output.shape[1] if rank == 2 else 0
    if rank == 2 and isinstance(classes, int) and classes > 1:
        return Judged(output.name, "logits", 1)
    return Judged(output.name, "values")


def compare(
    judged: Sequence[Judged],
    original: Sequence[Mapping[str, NDArray[Any]]],
    result: Sequence[Mapping[str, NDArray[Any]]],
) -> Divergence:
    """Compare two networks on the same rows.

    Args:
        judged: see `judged_tensors`.
        original: the judged tensors for each run.
        result: the same of the other network.
    """
    variances = {
        j.tensor: float(np.mean([o[j.tensor].astype(np.float64).var() for o in original]))
        for j in judged
    }
    rows, agreement = [], []
    for want, have in zip(original, result, strict=True):
        found, agreed = [], []
        for j in judged:
            a = np.asarray(want[j.tensor], np.float64)
            b = np.asarray(have[j.tensor], np.float64)
            if j.kind == "values":
                found.append(float(np.mean((a - b) ** 2)) / max(variances[j.tensor], 1e-30))
                continue
            found.append(float(_divergence(a, b, j).mean()))
            agreed.append(float(np.mean(a.argmax(j.axis) == b.argmax(j.axis))))
        rows.append(float(np.mean(found)))
        if agreed:
            agreement.append(float(np.mean(agreed)))
    return Divergence(np.asarray(rows), np.asarray(agreement))


def _divergence(a: NDArray[np.float64], b: NDArray[np.float64], j: Judged) -> NDArray[np.float64]:
    log_a, log_b = _log_softmax(a, j.axis), _log_softmax(b, j.axis)
    found: NDArray[np.float64] = (np.exp(log_a) * (log_a - log_b)).sum(j.axis)
    return found


def _log_softmax(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    shifted = values - values.max(axis, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
    return result


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
