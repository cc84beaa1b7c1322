"""Limits as people write them, and what they mean for rows of figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxnas.errors import UsageError
from onnxnas.objectives import FIGURES, METRICS, Goal, Limit, column

ORIGINAL = (2e6, 1000.0, 500.0, 1e6, 0.0)


@pytest.mark.parametrize(
    ("metric", "text", "absolute"),
    [
        ("latency", "8ms", 4e6),  # at 500 MHz
        ("latency", "120us", 6e4),
        ("latency", "-30%", 1.4e6),
        ("latency", "+5%", 2.1e6),
        ("peak-memory", "512KiB", 524288),
        ("peak-memory", "1.5MB", 1_500_000),
        ("weights", "100 B", 100),
        ("weights", "-50%", 250),
        ("macs", "2.5M", 2_500_000),
        ("macs", "700000", 700_000),
        ("quality", "0.02", 0.02),
        ("quality", "2%", 0.02),
        ("quality", "0", 0),
    ],
)
def test_a_limit_is_read_and_bound_to_the_original(metric: str, text: str, absolute: float) -> None:
    limit = Limit.parse(metric, text)
    assert limit.absolute(ORIGINAL, 5e8) == pytest.approx(absolute)
    assert Limit.parse(metric, str(limit)) == limit


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("latency", "8"),
        ("latency", "30%"),
        ("latency", "-8ms"),
        ("latency", "0ms"),
        ("latency", "-100%"),
        ("latency", "nan"),
        ("latency", ""),
        ("peak-memory", "512"),
        ("peak-memory", "512kb"),
        ("peak-memory", "1e3B"),
        ("weights", "2.5M"),
        ("macs", "3MB"),
        ("quality", "-1%"),
    ],
)
def test_a_limit_that_is_not_understood_is_refused_with_an_example(metric: str, text: str) -> None:
    with pytest.raises(UsageError, match=r"Cannot read .*write|leaves nothing"):
        Limit.parse(metric, text)


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'latency'"):
        Limit.parse("latencey", "8ms")
    with pytest.raises(UsageError, match="minimise"):
        Goal((), (), ORIGINAL, 1e9)
    with pytest.raises(UsageError, match="did you mean 'weights'"):
        Goal(("weight",), (), ORIGINAL, 1e9)


def test_the_words_and_the_columns_are_in_the_same_order() -> None:
    assert [FIGURES[column(m)] for m in METRICS] == list(FIGURES)


@given(st.sampled_from(METRICS), st.floats(1e-7, 1e12))
def test_every_limit_prints_as_text_that_parses_back(metric: str, value: float) -> None:
    limit = Limit(metric, value)
    assert Limit.parse(metric, str(limit)) == limit


@given(st.integers(-999, 5000))
def test_every_relative_limit_prints_as_text_that_parses_back(per_mille: int) -> None:
    text = f"{per_mille / 10:+}%"
    limit = Limit.parse("latency", text)
    assert Limit.parse("latency", str(limit)) == limit


def goal(*limits: str, minimise: str = "latency") -> Goal:
    parsed = [Limit.parse(*limit.split("=")) for limit in limits]
    return Goal(tuple(minimise.split(",")), tuple(parsed), ORIGINAL, 5e8)


def rows(*some: tuple[float, ...]) -> np.ndarray:
    return np.array(some, dtype=float)


def test_violations_are_shares_of_the_limit_and_zero_where_it_is_met() -> None:
    g = goal("latency=-50%", "quality=0.1", "quality=0")
    missed = g.violations(rows((1.5e6, 9, 9, 9, 0.2), (1e6, 9, 9, 9, 0.0), (1, 1, 1, 1, np.inf)))
    np.testing.assert_allclose(missed[0], [0.5, 1.0, 0.2])
    np.testing.assert_array_equal(missed[1], [0, 0, 0])
    np.testing.assert_array_equal(missed[2], [0, np.inf, np.inf])
    assert g.ceilings == {0: 1e6, 4: 0.0}


def test_what_is_impossible_or_unknown_is_never_feasible() -> None:
    figures = rows(ORIGINAL, (np.inf,) * 5, (np.nan, 1, 1, 1, 0), (3e6, 1, 1, 1, 0))
    assert goal("latency=+0%").feasible(figures).tolist() == [True, False, False, False]
    assert goal().feasible(figures).tolist() == [True, False, False, True]
    assert goal().violations(figures).shape == (4, 0)


def test_rounding_does_not_break_a_limit() -> None:
    g = goal("latency=-30%")
    ceiling = g.ceilings[0]
    assert g.feasible(rows((ceiling * (1 + 1e-12), 0, 0, 0, 0))).all()
    assert not g.feasible(rows((ceiling * 1.001, 0, 0, 0, 0))).any()


def test_order_puts_the_feasible_first_then_the_least_miss() -> None:
    figures = rows(
        (5e5, 0, 0, 0, 0.30),  # misses quality by 2
        (9e5, 0, 0, 0, 0.05),
        (9e5, 0, 0, 0, 0.01),  # ties in latency with the one before
        (1e5, 0, 0, 0, 0.11),  # misses quality by a tenth
        (np.inf,) * 5,
        (8e5, 0, 0, 0, 0.10),
    )
    assert goal("quality=0.1").order(figures).tolist() == [5, 2, 1, 3, 0, 4]
    assert goal("quality=0.1").order(figures[:0]).tolist() == []


@pytest.mark.parametrize(
    ("limit", "row", "loosened"),
    [
        ("latency=1ms", (1234567, 0, 0, 0, 0), "2.47ms"),
        ("latency=-60%", (1234567, 0, 0, 0, 0), "-38.2%"),
        ("peak-memory=100B", (0, 777, 0, 0, 0), "777B"),
        ("quality=0.1%", (0, 0, 0, 0, 0.01234), "1.24%"),
    ],
)
def test_a_missed_limit_is_loosened_just_enough(
    limit: str, row: tuple[float, ...], loosened: str
) -> None:
    (found,) = goal(limit).relaxed(row)
    assert str(found) == loosened
    assert goal(f"{found.metric}={found}").feasible(rows(row)).all()
    assert goal(f"{found.metric}={found}").relaxed(row) == ()
