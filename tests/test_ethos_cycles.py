"""Modelled cycles of kernels, compared with what the compiler reports about whole networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxnas.cost import Target
from onnxnas.graph import static_view
from onnxnas.hwmodels import ethos_u
from onnxnas.hwmodels.ethos_array import Work
from onnxnas.hwmodels.ethos_blocks import choose
from onnxnas.hwmodels.ethos_cycles import Chip, Where
from onnxnas.hwmodels.kernel_table import KernelTable
from onnxnas.hwmodels.measuring import kernel_cycles
from onnxnas.hwmodels.placement import place
from onnxnas.hwmodels.sampling import sample_network
from onnxnas.hwmodels.vela import VelaCostModel
from onnxnas.kernels import split_kernels

TARGETS = (
    "ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u65-512", "ethos-u85-512",
    "ethos-u85-2048",
)  # fmt: skip


def chip(name: str) -> Chip:
    found = Chip.of(ethos_u.card(name))
    assert found is not None
    return found


@pytest.mark.parametrize("name", TARGETS)
def test_most_kernels_cost_what_the_compiler_says(name: str) -> None:
    card = ethos_u.card(name)
    view = static_view(sample_network("bottlenecks", 900), {})
    kernels = split_kernels(view)
    true = kernel_cycles(kernels, VelaCostModel(card, None, 1).cost(view))
    table = KernelTable.of([kernels], [place(card, view, kernels)])
    modelled = table["modelled"]
    rows = (np.nan_to_num(true) > 0) & (modelled > 0)
    assert rows.sum() >= 0.9 * (np.nan_to_num(true) > 0).sum()
    errors = np.abs(np.log(modelled[rows] / true[rows]))
    assert np.median(errors) < 0.02
    assert (errors < 0.01).mean() > 0.4
    assert abs(modelled[rows].sum() / true[rows].sum() - 1) < 0.02
    # The figures mean something: a tenth more is noticed.
    assert np.median(np.abs(np.log(1.1 * modelled[rows] / true[rows]))) > 0.05


def test_blocks_are_those_of_the_compiler() -> None:
    """Taken from the compiler's own tables for MobileNets."""
    stem = Work("conv", (96, 96, 3), (48, 48, 8), (3, 3), (2, 2))
    block = choose(stem, chip("ethos-u85-2048").array)
    assert (block.ifm, block.ofm, block.unit) == ((28, 36, 16), (12, 16, 16), (4, 4, 16))
    assert choose(stem, chip("ethos-u55-128").array).ofm == (8, 16, 8)
    deep = Work("depthwise", (28, 28, 192), (28, 28, 192), (3, 3))
    assert choose(deep, chip("ethos-u85-2048").array).ofm == (28, 28, 16)
    wide = Work("conv", (14, 14, 64), (14, 14, 384))
    assert choose(wide, chip("ethos-u85-512").array).ofm == (8, 14, 32)
    striped = Work("conv", (112, 112, 16), (112, 112, 96), stripe=12)
    assert choose(striped, chip("ethos-u85-512").array).ofm == (6, 14, 48)


def test_cycles_of_a_known_operator() -> None:
    stem = Work("conv", (96, 96, 3), (48, 48, 8), (3, 3), (2, 2))
    where = Where(in_far=True, in_rows=True, weights=608.0, staged=True, speeds=("plain+clamp",))
    assert chip("ethos-u85-2048").cycles(stem, where) == pytest.approx(44296, abs=1)
    wide = Work("conv", (48, 48, 8), (48, 48, 16))
    near = Where(weights=224.0, staged=True, speeds=("plain+clamp",))
    assert chip("ethos-u55-128").cycles(wide, near) == pytest.approx(19392, abs=1)


SIZES = st.integers(1, 130)


@given(
    st.sampled_from(TARGETS),
    st.sampled_from(("conv", "depthwise", "pool", "copy", "elementwise", "product", "resize")),
    SIZES, SIZES, st.integers(1, 700), st.integers(1, 9), st.integers(1, 3), st.integers(1, 4),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_every_operator_has_a_block_and_a_cost(
    name: str, kind: str, h: int, w: int, c: int, k: int, s: int, d: int, far: bool, rows: bool
) -> None:
    if kind in ("copy", "elementwise", "product", "resize"):
        k = s = d = 1
    ofm = (max(1, h // s), max(1, w // s), c)
    work = Work(kind, (h, w, c), ofm, (k, k), (s, s), (d, d))
    weights = float(c) if kind in ("conv", "depthwise", "product") else 0.0
    where = Where(far, not far, in_rows=rows, out_rows=rows, weights=weights)
    cycles = chip(name).cycles(work, where)
    assert math.isfinite(cycles)
    assert cycles > 0


def test_other_hardware_has_no_estimate() -> None:
    card = ethos_u.card("ethos-u55-128")
    other = Target(**{**card.to_dict(), "channel_multiples": (8,), "config": {}})
    view = static_view(sample_network("plain", 1), {})
    kernels = split_kernels(view)
    assert not KernelTable.of([kernels], [place(other, view, kernels)])["modelled"].any()
