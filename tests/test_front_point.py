"""Losses with intervals that are right for few rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from onnxnas.divergence import Divergence
from onnxnas.front_point import losses_of


@pytest.mark.parametrize(("wrong", "rows"), [(0, 50), (1, 50), (9, 50), (125, 125)])
def test_disagreement_has_wilsons_interval(wrong: int, rows: int) -> None:
    agreement = np.array([0.0] * wrong + [1.0] * (rows - wrong))
    first, second = losses_of(Divergence(np.full(rows, 0.25), agreement), "KL divergence, nats")
    assert (first.measure, first.rows) == ("agreement", rows)
    assert first.value == pytest.approx(wrong / rows)
    expected = binomtest(wrong, rows).proportion_ci(method="wilson")
    assert first.interval == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert (second.measure, second.value, second.interval) == (
        "KL divergence, nats", 0.25, (0.25, 0.25)
    )  # fmt: skip


def test_rows_of_many_positions_have_a_normal_interval() -> None:
    agreement = np.array([0.9, 0.95, 1.0, 0.85])
    (loss, _) = losses_of(Divergence(np.zeros(4), agreement), "KL divergence, nats")
    error = max(agreement.std(ddof=1) / 2, 1 / 5)
    assert loss.interval == pytest.approx((0.0, 0.075 + 1.959964 * error))


def test_values_have_no_agreement() -> None:
    rows = np.array([0.1, 0.2, 0.3])
    (loss,) = losses_of(Divergence(rows, np.array([])), "squared error / variance")
    assert loss.interval is not None
    assert loss.interval[0] < 0.2 < loss.interval[1]
