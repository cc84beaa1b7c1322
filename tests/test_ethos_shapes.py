"""Shapes as an Ethos-U compiler sees them."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from onnxnas.hwmodels.ethos_shapes import deeper, line, size


def test_few_channels_become_many() -> None:
    assert deeper((1, 3, 11, 11)) == (1, 33, 11, 1)  # as the compiler's tables say
    assert deeper((1, 4, 128, 128)) == (1, 16, 64, 64)
    assert deeper((1, 6, 225, 225))[1] >= 16


@given(st.integers(1, 7), st.integers(1, 300), st.integers(1, 300))
def test_no_value_is_lost(channels: int, height: int, width: int) -> None:
    shape = deeper((1, channels, height, width))
    assert math.prod(shape) == channels * height * width
    assert shape[2] >= shape[3]


def test_sizes_and_lines() -> None:
    assert size((1, 8, 5, 6)) == (5, 6, 8)
    assert size((1, 8, 5)) == (1, 5, 8)
    assert size((1, 8)) == (1, 1, 8)
    assert line((1, 8, 5, 6)) == (8, 6)
    assert line((1, 8)) == (8, 1)
