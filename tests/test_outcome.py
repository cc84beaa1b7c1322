"""The front of what was evaluated: what counts as better where measures tie."""

from __future__ import annotations

from onnxnas.cost import Cost
from onnxnas.front_point import Loss
from onnxnas.objectives import Goal
from onnxnas.outcome import Evaluated, front_of
from onnxnas.search import figures_of
from onnxnas.sites import Candidate


def _evaluated(label: str, cycles: float, *losses: float) -> Evaluated:
    cost = Cost("toy", "estimate", cycles, cycles, 10, {}, None, ())
    measures = zip(("agreement", "KL divergence, nats"), losses, strict=False)
    return Evaluated(
        Candidate.of({"site": label}) if label else Candidate(),
        cost,
        tuple(Loss(measure, value) for measure, value in measures),
        "multishot" if losses else "original",
    )


def _front(*rest: Evaluated) -> list[str]:
    original = _evaluated("", 100)
    goal = Goal(("latency",), (), figures_of(original.cost), 1e9)
    points, _ = front_of([original, *rest], rest[-1], goal)
    return [str(dict(p.candidate.decisions).get("site", "")) for p in points]


def test_the_next_measure_decides_where_the_one_that_binds_ties() -> None:
    mild, strong = _evaluated("mild", 70, 0.02, 0.01), _evaluated("strong", 50, 0.02, 0.03)
    assert _front(mild, strong) == ["", "mild", "strong"]


def test_a_tie_in_all_measures_is_won_by_the_faster() -> None:
    slow, fast = _evaluated("slow", 70, 0.02, 0.01), _evaluated("fast", 50, 0.02, 0.01)
    assert _front(slow, fast) == ["", "fast"]


def test_the_next_measure_does_not_make_up_for_the_one_that_binds() -> None:
    kept, beaten = _evaluated("kept", 50, 0.02, 0.03), _evaluated("beaten", 60, 0.04, 0.01)
    assert _front(beaten, kept) == ["", "kept"]


def test_what_loses_by_the_next_measure_only_does_not_hide_what_loses_nothing() -> None:
    exact, fitted = _evaluated("exact", 70), _evaluated("fitted", 50, 0.0, 0.01)
    assert _front(exact, fitted) == ["", "exact", "fitted"]
