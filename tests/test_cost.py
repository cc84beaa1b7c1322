"""What a cost says of itself: what is not covered, and when that is too much."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import TARGET

from onnxnas.cost import MAX_UNCOVERED, Cost, KernelCost, Kind, refuse_uncovered
from onnxnas.errors import CoverageError

KINDS: tuple[Kind, ...] = ("predicted", "estimate", "measured")


def cost(kind: Kind = "predicted", unknown: int = 1, outside: int = 1) -> Cost:
    """Ten kernels, some without a figure, some outside the training data."""
    kernels = [
        KernelCost(
            f"k{i}", "Conv", (f"k{i}",), 100.0 + i, uncovered=("macs 9 > 8",) * (i < outside)
        )
        for i in range(10 - unknown)
    ]
    kernels += [KernelCost(f"u{i}", "Odd", (f"u{i}",), None, reason="never seen Odd")
                for i in range(unknown)]  # fmt: skip
    return Cost("toy", kind, 1000.0, 1e-6, 0, {}, None, tuple(kernels))


def test_kernels_without_a_figure_and_those_outside_the_data_are_not_covered() -> None:
    found = cost(unknown=2, outside=3)
    assert found.uncovered_share == 0.5
    assert [k.output for k in found.uncovered] == ["u0", "u1", "k2", "k1", "k0"]


def test_too_little_coverage_is_refused_and_the_worst_kernels_named() -> None:
    with pytest.raises(CoverageError) as refusal:
        refuse_uncovered(cost(), TARGET)
    assert refusal.value.exit_code == 6
    text = str(refusal.value)
    assert "2 of 10 kernels (20%, allowed are 10%)" in text
    assert "u0 (never seen Odd); k0 (macs 9 > 8)" in text
    assert "target measure toy --like MODEL" in text


@pytest.mark.parametrize(
    ("backend", "precision", "said"),
    [
        ("onnxruntime", "float32", "with 'onnxnas target cpu toy.json --like MODEL', or"),
        ("onnxruntime", "int8 (QDQ)", "'onnxnas target cpu toy.json --int8 --like MODEL'"),
        ("csv", "", "'onnxnas target plan FOLDER --like MODEL' and 'onnxnas target import'"),
        ("vela", "", "'onnxnas target measure toy --like MODEL' and 'onnxnas target train toy'"),
    ],
)
def test_how_to_train_it_depends_on_the_target(backend: str, precision: str, said: str) -> None:
    target = replace(TARGET, backend=backend, config={"precision": precision})
    with pytest.raises(CoverageError) as refusal:
        refuse_uncovered(cost(), target)
    assert said in str(refusal.value)


def refused(found: Cost, limit: float = MAX_UNCOVERED) -> bool:
    try:
        refuse_uncovered(found, TARGET, limit)
    except CoverageError:
        return True
    return False


def test_as_much_as_the_limit_passes_and_no_more() -> None:
    assert cost().uncovered_share == 0.2
    assert not refused(cost(), 0.2)
    assert refused(cost(), 0.19)
    assert not refused(cost(unknown=1, outside=0))  # the default of 10 %
    assert refused(cost(unknown=1, outside=1))


def test_only_predictions_are_refused() -> None:
    assert [refused(cost(kind), 0.0) for kind in KINDS] == [True, False, False]
