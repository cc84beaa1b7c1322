"""Judging from the border of what changed gives the same as running everything."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest
from fitting import ROWS, recovery
from oracle import run

from onnxnas import held_out
from onnxnas.divergence import compare
from onnxnas.graph import to_model
from onnxnas.held_out import HeldOut
from onnxnas.materialize import apply_candidate
from onnxnas.passes.resize_ibn import ResizeIbn
from onnxnas.sites import Candidate


@pytest.mark.parametrize("kept_bytes", [0, 1 << 29], ids=["from-the-start", "from-the-border"])
def test_divergence_is_that_of_whole_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    monkeypatch.setattr(held_out, "_MOST_KEPT_BYTES", kept_bytes)
    b = models.ModelBuilder([1, 6, 8, 8])
    y = b.x
    for _ in range(3):
        y = b.ibn(y, 6, 32, 6)
    model = b.build(b.op("Flatten", b.conv(b.op("GlobalAveragePool", y), 6, 4)))
    found = recovery(tmp_path, model, ResizeIbn(steps=0))
    judge = HeldOut.of(found.graph, found.rows)
    rows = [ROWS[i][None] for i in np.flatnonzero(found.rows.held_out)]
    assert len(rows) == 12
    candidates = [Candidate.of({s.id: label}) for s in found.space for label in ("to-24", "to-16")]
    students = [
        apply_candidate(found.graph, found.space, c, found.passes)
        for c in (Candidate(), *candidates)
    ]
    divergences = judge.divergences(students)
    assert divergences[0].value == 0.0
    for student, divergence in zip(students, divergences, strict=True):
        changed = to_model(student.graph, model)
        expected = compare(
            judge.judged,
            [run(model, {"x": row}) for row in rows],
            [run(changed, {"x": row}) for row in rows],
        )
        np.testing.assert_allclose(divergence.rows, expected.rows, rtol=1e-3, atol=1e-7)
        np.testing.assert_array_equal(divergence.agreement, expected.agreement)
    assert len({round(d.value, 9) for d in divergences}) > 3


def test_of_large_outputs_a_part_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = models.ModelBuilder([1, 6, 8, 8])
    y = b.ibn(b.x, 6, 32, 6)
    model = b.build(b.op("Softmax", b.conv(y, 6, 4), axis=1))
    found = recovery(tmp_path, model, ResizeIbn(steps=0))
    (site,) = found.space
    student = apply_candidate(
        found.graph, found.space, Candidate.of({site.id: "to-24"}), found.passes
    )
    whole = HeldOut.of(found.graph, found.rows).divergence(student)
    monkeypatch.setattr(held_out, "_MOST_JUDGED", 64)
    thin = HeldOut.of(found.graph, found.rows)
    assert {v.shape for row in thin.expected for v in row.values()} == {(16, 4)}
    part = thin.divergence(student)
    assert part.value == pytest.approx(whole.value, rel=0.5)
    assert part.agrees is not None
