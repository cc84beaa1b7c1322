"""What networks are compared by, and that the figures are the textbook's."""

from __future__ import annotations

import models
import numpy as np
import pytest

from onnxnas.divergence import Judged, compare, judged_tensors
from onnxnas.graph import from_model


def test_scores_are_found_under_what_hides_them() -> None:
    b = models.ModelBuilder([1, 3, 8, 8])
    scores = b.conv(b.x, 3, 5, out="scores")
    classes = b.op("ArgMax", scores, axis=1, keepdims=0)
    flat = b.op("Flatten", b.op("GlobalAveragePool", scores))
    probable = b.op("Softmax", b.op("Identity", flat, out="logits"), axis=1)
    graph = from_model(b.build(b.op("Cast", classes, to=1), probable, flat, b.op("Relu", b.x)))
    assert [(j.tensor, j.kind, j.axis) for j in judged_tensors(graph)] == [
        ("scores", "logits", 1),
        ("logits", "logits", 1),
        (flat, "logits", 1),
        (graph.outputs[3].name, "values", 1),
    ]


def test_kl_and_agreement() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1]]))
    other = np.log(np.array([[0.2, 0.7, 0.1]]))
    judged = [Judged("y", "logits")]
    found = compare(judged, [{"y": logits}, {"y": logits + 3.0}], [{"y": other}, {"y": logits}])
    expected = 0.7 * np.log(0.7 / 0.2) + 0.2 * np.log(0.2 / 0.7)
    assert found.rows == pytest.approx([expected, 0.0], abs=1e-12)
    assert found.agreement.tolist() == [0.0, 1.0]
    assert found.value == pytest.approx(expected / 2)
    assert found.agrees == 0.5
    assert "KL" in judged[0].measure


def test_values_are_compared_by_error_over_variance() -> None:
    y = np.random.default_rng(0).standard_normal((1, 2, 8, 8))
    judged = [Judged("y", "values")]
    found = compare(judged, [{"y": y}] * 2, [{"y": y + 0.5 * y.std()}] * 2)
    assert found.value == pytest.approx(0.25)
    assert found.agrees is None
    assert found.agreement_error == 0.0


def test_full_agreement_on_few_rows_is_no_certainty() -> None:
    y = {"y": np.eye(4)[:1]}
    assert compare([Judged("y", "logits")], [y] * 9, [y] * 9).agreement_error == pytest.approx(0.1)
