"""Narrower features, stems and stages: everything that meets them follows, readers are fitted."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import rewriting
from fitting import ROWS, error, fresh, recovery, result
from oracle import random_feeds, run

from onnxnas.normalise import normalise
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
    found = recovery(tmp_path, model, ScaleWidth(), rows=ROWS)
    candidate = Candidate.of({"scale-width@features": "to-24"})
    fits, refused = found.alone(list(candidate.decisions))
    assert not refused
    fitted = result(found, model, values_only(fits), candidate)
    wrong = error(model, fitted, fresh())
    assert wrong < 0.3 * error(model, result(found, model, None, candidate), fresh())
    assert {tuple(t.dims) for t in fitted.graph.initializer} >= {(24, 6, 1, 1), (10, 24)}


def test_a_trunk_and_a_branch_of_a_concat(tmp_path: Path) -> None:
    model = stage()
    found = recovery(tmp_path, model, ScaleWidth(), rows=ROWS)
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


def excited() -> onnx.ModelProto:
    """Stem, two residual blocks with a gate, a Concat, features and a Gemm."""
    b = models.ModelBuilder([1, 6, 8, 8])
    y = b.op("Relu", b.conv(b.x, 6, 16, 3, pads=1, out="stem"))
    for _ in range(2):
        z = b.op("Relu", b.depthwise(b.op("Relu", b.conv(y, 16, 32)), 32))
        gate = b.op("Relu", b.conv(b.op("GlobalAveragePool", z), 32, 8))
        z = b.op("Mul", z, b.op("Sigmoid", b.conv(gate, 8, 32)))
        y = b.op("Add", y, b.conv(z, 32, 16))
    side = b.op("Relu", b.conv(y, 16, 16, 3, stride=2, pads=1))
    y = b.op("Concat", side, b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), axis=1)
    y = b.op("Relu", b.conv(y, 32, 32, bias=False, out="features"))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    return b.build(b.op("Gemm", y, b.weight(32, 10), b.weight(10), out="logits"))


def test_the_whole_network_by_one_factor(tmp_path: Path) -> None:
    model = excited()
    sites, _ = rewriting.find(ScaleWidth(), model)
    labels = ["width-0.875", "width-0.75", "width-0.625", "width-0.5"]
    assert [c.label for c in sites["logits"].choices] == labels
    found = recovery(tmp_path, model, ScaleWidth(), rows=ROWS)
    candidate = Candidate.of({"scale-width@logits": "width-0.75"})
    alone, refused = found.alone(list(candidate.decisions))
    assert not refused
    fitted, refused = found.in_order(candidate)
    assert not refused
    errors = [
        error(model, result(found, model, weights, candidate), fresh())
        for weights in (values_only(fitted), values_only(alone), None)
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.5 * errors[2]
    shapes = {tuple(t.dims) for t in result(found, model, None, candidate).graph.initializer}
    assert {(12, 6, 3, 3), (24, 12, 1, 1), (24, 1, 3, 3), (12, 24, 1, 1), (24, 10)} <= shapes
    broken = rewriting.scale_one_weight(result(found, model, values_only(fitted), candidate), 50.0)
    assert error(model, broken, fresh()) > 2 * errors[0]


def test_a_stage_is_what_shares_a_resolution() -> None:
    sites, _ = rewriting.find(ScaleWidth(), excited())
    joint = {name: site for name, site in sites.items() if "groups" in site.params}
    sizes = {name: len(site.params["groups"]) for name, site in joint.items()}
    assert sizes.pop("logits") > max(sizes.values())
    assert sorted(sizes.values()) == [2, 3]  # 4 x 4 and 8 x 8; not the means that gates read
    for name, site in joint.items():
        assert name == "logits" or site.claims < joint["logits"].claims


def test_sizes_that_are_not_known_make_no_stages() -> None:
    b = models.ModelBuilder([1, 3, "h", "w"])
    y = b.op("Relu", b.conv(b.op("Relu", b.conv(b.x, 3, 16)), 16, 16))
    model = b.build(b.op("GlobalAveragePool", b.conv(y, 16, 8), out="mean"))
    sites, misses = rewriting.find(ScaleWidth(), model)
    assert "mean" in sites
    assert "spatial sizes are not known" in misses["mean"]


def test_a_fit_that_takes_too_much_memory_is_not_offered() -> None:
    sites, misses = rewriting.find(ScaleWidth(largest_bytes=1000), excited())
    assert "logits" not in sites
    assert "GB" in misses["logits"]


def test_the_sample_classifier_by_one_factor() -> None:
    path = Path(__file__).parents[2] / "sample_models" / "camera_classifier.onnx"
    model = normalise(onnx.load(path)).model
    sites, _ = rewriting.find(ScaleWidth(), model)
    joint = sites["logits"]
    narrow = rewriting.rewrite(ScaleWidth(), model, {"logits": "width-0.5"})
    before, after = (sum(np.prod(t.dims) for t in m.graph.initializer) for m in (model, narrow))
    assert after < 0.35 * before
    assert len(joint.params["groups"]) > 15
    shapes = [run(m, random_feeds(m))["logits"].shape for m in (model, narrow)]
    assert shapes[0] == shapes[1]
