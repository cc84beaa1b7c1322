"""Narrower features, stems and stages: everything that meets them follows, readers are fitted."""

from __future__ import annotations

from pathlib import Path

import models
import onnx
import rewriting
from fitting import ROWS, error, fresh, recovery, result

from onnxnas.passes.scale_width import ScaleWidth
from onnxnas.recover import values_only
from onnxnas.sites import Candidate


def classifier() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 6, 8, 8])
    y = b.op("Relu", b.conv(b.x, 6, 32, out="features"))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    return b.build(b.op("Gemm", y, b.weight(10, 32), b.weight(10), transB=1))


def stage() -> onnx.ModelProto:
    """Two residual blocks on one trunk of 16 channels, and a Concat behind it."""
    b = models.ModelBuilder([1, 6, 8, 8])
    y = b.conv(b.x, 6, 16, out="trunk")
    y = b.ibn(b.ibn(y, 16, 32, 16), 16, 32, 16)
    side = b.op("Relu", b.conv(b.x, 6, 16, out="side"))
    return b.build(b.conv(b.op("Concat", y, side, axis=1), 32, 5))


def test_features_behind_a_pooling(tmp_path: Path) -> None:
    model = classifier()
    found = recovery(tmp_path, model, ScaleWidth(), ROWS)
    candidate = Candidate.of({"scale-width@features": "to-24"})
    fits, refused = found.alone(list(candidate.decisions))
    assert not refused
    fitted = result(found, model, values_only(fits), candidate)
    wrong = error(model, fitted, fresh())
    assert wrong < 0.3 * error(model, result(found, model, None, candidate), fresh())
    assert {tuple(t.dims) for t in fitted.graph.initializer} >= {(24, 6, 1, 1), (10, 24)}


def test_a_trunk_and_a_branch_of_a_concat(tmp_path: Path) -> None:
    model = stage()
    found = recovery(tmp_path, model, ScaleWidth(), ROWS)
    for site in ("trunk", "side"):
        candidate = Candidate.of({f"scale-width@{site}": "to-12"})
        fits, refused = found.alone(list(candidate.decisions))
        assert not refused
        wrong = error(model, result(found, model, values_only(fits), candidate), fresh())
        assert wrong < 0.5 * error(model, result(found, model, None, candidate), fresh())


def test_sites_that_meet_in_a_layer_exclude_each_other() -> None:
    sites, _ = rewriting.find(ScaleWidth(), stage())
    assert sites["trunk"].claims & sites["side"].claims  # one layer reads both
    writers = [c for c in sites["trunk"].claims if c.startswith("node:")]
    assert "node:trunk" in writers


def test_outputs_keep_their_width() -> None:
    b = models.ModelBuilder([1, 6, 8, 8])
    model = b.build(b.conv(b.op("Relu", b.conv(b.x, 6, 16, out="free")), 16, 16, out="bound"))
    sites, misses = rewriting.find(ScaleWidth(), model)
    assert list(sites) == ["free"]
    assert "graph output" in misses["bound"]
