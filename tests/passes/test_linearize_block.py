"""A residual block as one layer: fitted, or gone; what is no block is declined."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import pytest
import rewriting
from fitting import ROWS, error, fresh, recovery, result

from onnxnas.passes.linearize_block import LinearizeBlock
from onnxnas.recover import values_only
from onnxnas.sites import Candidate


def block(act: str = "Relu", scale: float = 1.0) -> onnx.ModelProto:
    b = models.ModelBuilder([1, 6, 8, 8])
    x = b.conv(b.x, 6, 6, out="start")
    y = b.op(act, b.conv(x, 6, 24, out="wide"))
    y = b.op(act, b.depthwise(y, 24, k=1, out="deep"))
    y = b.op("Mul", b.conv(y, 24, 6, out="narrow"), b.const(np.asarray(scale, np.float32)))
    return b.build(b.op("Relu", b.op("Add", y, x, out="end")))


@pytest.mark.parametrize("act", ["Identity", "Relu"])
def test_a_linear_block_is_one_layer(tmp_path: Path, act: str) -> None:
    model = block(act)
    found = recovery(tmp_path, model, LinearizeBlock(), rows=ROWS)
    candidate = Candidate.of({"linearize-block@end": "linear"})
    fits, refused = found.alone(list(candidate.decisions))
    assert not refused
    fitted = result(found, model, values_only(fits), candidate)
    assert rewriting.ops(fitted) == ["Conv", "Conv", "Relu"]
    wrong = error(model, fitted, fresh())
    if act == "Identity":
        assert wrong < 1e-5
        assert error(model, rewriting.scale_one_weight(fitted, 1.1), fresh()) > 1e-5
    else:
        assert 1e-4 < wrong < 0.5 * error(model, result(found, model, None, candidate), fresh())


def test_the_shortcut_alone(tmp_path: Path) -> None:
    model = block(scale=0.01)
    found = recovery(tmp_path, model, LinearizeBlock(), rows=ROWS)
    candidate = Candidate.of({"linearize-block@end": "shortcut"})
    fits, refused = found.alone(list(candidate.decisions))
    assert not refused
    fitted = result(found, model, values_only(fits), candidate)
    assert rewriting.ops(fitted) == ["Conv", "Relu"]
    assert error(model, fitted, fresh()) < 1e-2


def test_a_block_that_overwhelms_its_input_cannot_go(tmp_path: Path) -> None:
    found = recovery(tmp_path, block(scale=50.0), LinearizeBlock(), rows=ROWS)
    fits, refused = found.alone([("linearize-block@end", "shortcut")])
    assert not fits
    assert "explains nothing" in refused["linearize-block@end", "shortcut"]


def test_a_block_at_the_end_of_the_network_keeps_its_name() -> None:
    b = models.ModelBuilder([1, 6, 8, 8])
    model = b.build(b.ibn(b.x, 6, 16, 6))
    (site,) = rewriting.find(LinearizeBlock(), model)[0].values()
    assert [c.label for c in site.choices] == ["linear"]  # an output cannot be its own input
    rewriting.rewrite(LinearizeBlock(), model, {site.tensor: "linear"})


def test_declines_with_a_reason() -> None:
    b = models.ModelBuilder([1, 6, 8, 8])
    inner = b.conv(b.x, 6, 6)
    used = b.op("Add", b.x, b.op("Relu", inner), out="used")
    constant = b.op("Add", used, b.weight(1, 6, 1, 1), out="constant")
    activation = b.op("Add", constant, b.op("Relu", constant), out="activation")
    two = b.op("Add", b.conv(activation, 6, 6), b.conv(inner, 6, 6), out="two")
    sites, misses = rewriting.find(LinearizeBlock(), b.build(two))
    assert not sites
    assert "used elsewhere" in misses["used"]
    assert "constant" in misses["constant"]
    assert "no convolution" in misses["activation"]
    assert misses["two"]


def test_two_blocks_in_a_row_may_both_go(tmp_path: Path) -> None:
    """What follows a block that is gone reads what that block read, and is fitted on it."""
    b = models.ModelBuilder([1, 6, 8, 8])
    y = b.op("Relu", b.conv(b.x, 6, 6, out="stem"))
    for _ in range(3):
        branch = b.conv(b.op("Relu", b.depthwise(b.conv(y, 6, 16), 16)), 16, 6)
        y = b.op("Add", y, b.op("Mul", branch, b.const(np.asarray(0.1, np.float32))))
    model = b.build(b.op("Relu", y))
    found = recovery(tmp_path, model, LinearizeBlock(), rows=ROWS)
    first, second, third = (site.id for site in found.space)
    candidate = Candidate.of({first: "shortcut", second: "shortcut", third: "linear"})
    fits, refused = found.in_order(candidate)
    assert not refused
    wrong = error(model, result(found, model, values_only(fits), candidate), fresh())
    assert wrong < error(model, result(found, model, None, candidate), fresh())
    gone = result(found, model, None, Candidate.of({first: "shortcut", second: "shortcut"}))
    assert rewriting.ops(gone).count("Add") == 1
