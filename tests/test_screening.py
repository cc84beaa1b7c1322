"""What a learned model says is scaled to the backend, and only relied on where it is sure."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import TARGET

from onnxnas.cost import Cost, CostModel, KernelCost
from onnxnas.screening import Screen


def network(*cycles: float, peak: int = 1000, weights: int = 500, doubt: float = 0.01) -> Cost:
    """A predicted network of kernels that cost this, each off by a known share at most."""
    kernels = tuple(
        KernelCost(f"k{i}", "Conv", (f"k{i}",), c, interval=(c * (1 - doubt), c * (1 + doubt)))
        for i, c in enumerate(cycles)
    )
    total = sum(cycles)
    return Cost("toy", "predicted", total, total / 1e9, 100, {"sram": peak}, weights, kernels)


def view(cost: Cost, op: str = "Conv") -> Any:
    return SimpleNamespace(cost=cost, nodes=[SimpleNamespace(op=op)])


class Told(CostModel):
    """Predicts what a view says of itself."""

    target = TARGET

    def cost(self, graph: Any) -> Cost:
        found: Cost = graph.cost
        return found


BEFORE = network(100.0, 200.0, 700.0)
COMPILED = replace(BEFORE, kind="estimate", cycles=1020.0, peak_bytes={"sram": 2000}, kernels=())


def costs(*new: Any, start: Cost = COMPILED) -> list[Cost | None]:
    return Screen(Told()).costs(start, view(BEFORE), list(new))


def test_predictions_are_scaled_to_what_the_backend_says() -> None:
    (found,) = costs(view(network(100.0, 200.0, 200.0, peak=600, weights=250)))
    assert found is not None
    assert found.cycles == pytest.approx(510.0)
    assert found.seconds == pytest.approx(510e-9)
    assert (found.peak_bytes, found.weight_bytes) == ({"sram": 1200}, 250)


def test_the_backend_is_asked_where_a_prediction_is_not_sure() -> None:
    less = network(100.0, 200.0, 200.0)
    unknown = replace(less, kernels=tuple(replace(k, uncovered=("odd",)) for k in less.kernels))
    assert costs(view(less), view(unknown), view(less, "Odd"))[1:] == [None, None]
    assert costs(view(less), start=replace(COMPILED, cycles=1100.0)) == [None]


def peak(cost: Cost) -> float:
    return float(cost.peak_activation_bytes)


def both(cost: Cost) -> float:
    """Cycles where memory is small enough, else much more."""
    return cost.cycles + 1e3 * (peak(cost) > 1500)


@pytest.mark.parametrize(
    ("value", "new", "may_pay"),
    [
        (peak, network(100.0, 200.0, 200.0), False),  # faster, as much memory
        (peak, network(100.0, 200.0, 900.0, peak=980), True),
        (peak, network(100.0, 200.0, 700.0, peak=1100), False),
        (both, network(100.0, 200.0, 200.0), True),  # does not bring it below, but is faster
        (both, network(100.0, 200.0, 900.0, peak=700), True),  # slower, and small enough
        (both, network(100.0, 200.0, 720.0), False),
        (both, network(100.0, 200.0, 702.0, doubt=0.1), True),  # it might be faster after all
    ],
)
def test_any_value_may_be_screened(value: Any, new: Cost, may_pay: bool) -> None:
    (reason,) = Screen(Told()).hopeless(view(BEFORE), [view(new)], COMPILED, value)
    assert (not reason) == may_pay
    assert may_pay or "predicted not to pay" in reason


def test_what_is_predicted_to_change_is_said() -> None:
    slower = network(100.0, 200.0, 1700.0, peak=1100, weights=600)
    (reason,) = Screen(Told()).hopeless(view(BEFORE), [view(slower)], COMPILED, peak)
    assert reason == (
        "predicted not to pay: cycles +100.0%, peak memory +10.0%, weights +20.0%: not compiled"
    )
    (reason,) = Screen(Told()).hopeless(view(BEFORE), [view(BEFORE)], COMPILED, peak)
    assert reason == "predicted not to pay: nothing changes: not compiled"
