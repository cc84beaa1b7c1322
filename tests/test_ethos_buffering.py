"""Which weights are brought to the SRAM: what holds whatever the decision."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxnas.hwmodels import ethos_u
from onnxnas.hwmodels.ethos_array import Work
from onnxnas.hwmodels.ethos_buffering import Need, Slack, bring
from onnxnas.hwmodels.ethos_cycles import Chip, Where
from onnxnas.hwmodels.ethos_work import Operator

CHIPS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-512")


def chip(name: str) -> Chip:
    found = Chip.of(ethos_u.card(name))
    assert found is not None
    return found


def need(size: int, channels: int, weights: float, cascaded: bool = False) -> Need:
    work = Work("conv", (size, size, 32), (size, size, channels), (3, 3))
    where = Where(weights=weights, scales=10.0 * channels)
    return Need(
        Operator(work), where, weights + 10 * channels, 4.0 if cascaded else 1.0, cascaded, index=3
    )


@given(
    st.sampled_from(CHIPS), st.integers(1, 60), st.integers(1, 600), st.integers(100, 400_000),
    st.integers(0, 500_000), st.integers(0, 2_000_000), st.booleans(),
)  # fmt: skip
def test_parts_fit_and_slices_are_all_there_is(
    name: str, size: int, channels: int, weights: int, limit: int, slack: int, cascaded: bool
) -> None:
    wanted = need(size, channels, float(weights), cascaded)
    found = bring(chip(name), wanted, Slack(float(slack), float(limit)), float(limit))
    if found is None:
        return
    assert sum(found.parts) <= limit
    assert sum(found.slices) == channels
    assert len(found.parts) <= min(2, len(found.slices))
    assert not cascaded or len(found.slices) == 1
    assert found.first <= wanted.size
    assert found.cycles > 0


@pytest.mark.parametrize("name", CHIPS)
def test_there_must_be_room(name: str) -> None:
    wanted = need(40, 64, 12_000.0)
    slack = Slack(1e6, 1e6)
    assert bring(chip(name), wanted, slack, 1e6) is not None
    assert bring(chip(name), wanted, slack, 8.0) is None


def test_weights_that_are_read_once_stay_where_they_are() -> None:
    once = need(1, 512, 300_000.0)
    assert bring(chip("ethos-u55-128"), once, Slack(0.0, 1e6), 1e6) is None
