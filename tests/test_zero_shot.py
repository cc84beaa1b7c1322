"""Scores are used only where they rank what was judged better than what is known anyway."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from onnxnas import zero_shot as module
from onnxnas.cost import Cost
from onnxnas.divergence import Divergence
from onnxnas.errors import UnsupportedError
from onnxnas.front_point import Evaluation
from onnxnas.pass_contract import Fitted, OutOfTime
from onnxnas.recovery_search import Finalist, Single
from onnxnas.search import Trial
from onnxnas.sites import Candidate
from onnxnas.zero_shot import ZeroShot

HIDDEN = np.random.default_rng(1).permutation(12).astype(float)
"""What each of a dozen candidates loses: `meco` is made to know it, nothing else does."""


def candidate(i: int) -> Candidate:
    return Candidate.of({"p@t": f"c{i}"})


def finalist(i: int, evaluation: Evaluation = "single-shot") -> Finalist:
    cost = Cost("toy", "estimate", 100.0 - i, 1e-6, 1, {}, None, ())
    lost = Divergence(np.array([HIDDEN[i]]), np.zeros(0))
    trial = Trial(candidate(i), cost)
    return Finalist(candidate(i), 0.0, trial, lost, float(i % 3), {}, evaluation)


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> ZeroShot:
    def made_up(graph: int, seed: int) -> dict[str, float]:
        return {"macs": 1.0, "parameters": float(graph % 2), "meco": -HIDDEN[graph], "zen": 0.0}

    monkeypatch.setattr(module, "zero_shot", made_up)
    monkeypatch.setattr(ZeroShot, "_structure", lambda _, c: int(c.decisions[0][1][1:]))
    search = SimpleNamespace(recovery=SimpleNamespace(tick=lambda: None), singles={}, alone={})
    return ZeroShot(cast(Any, search))


def test_a_score_that_knows_orders_what_is_bred(scores: ZeroShot) -> None:
    scores.assess([finalist(i) for i in range(12)])
    ranks = {r.score: r for r in scores.ranks}
    assert [name for name, r in ranks.items() if r.useful] == ["meco"]
    told = {s["score"]: s for s in scores.to_dict()["scores"]}
    assert told["meco"]["reason"] == "nothing was bred that it could order"
    same = [50.0] * 4
    best = scores.best_first([candidate(i) for i in range(4)], same)
    assert [HIDDEN[int(c.decisions[0][1][1:])] for c in best] == sorted(HIDDEN[:4])
    told = {s["score"]: s for s in scores.to_dict()["scores"]}
    assert [name for name, s in told.items() if s["used"]] == ["sum of single choices", "meco"]
    assert told["meco"]["reason"] == "it ordered what was bred"


def test_a_score_that_knows_nothing_orders_nothing(
    scores: ZeroShot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "zero_shot", lambda g, s: {"macs": -HIDDEN[g], "zen": float(g)})
    scores.assess([finalist(i) for i in range(12)])
    asked = [candidate(i) for i in (3, 1, 2)]
    assert scores.best_first(asked, [1.0, 2.0, 3.0]) == asked
    assert not any(s["used"] for s in scores.to_dict()["scores"] if s["score"] in ("zen", "macs"))


def test_what_was_fitted_in_one_way_is_compared(scores: ZeroShot) -> None:
    few = [finalist(i, "multishot") for i in range(7)]
    scores.assess([*(finalist(i) for i in range(12)), *few])
    assert (scores.compared[13:], scores.ranks[0].count) == ("fitted one by one", 12)
    scores.assess([*(finalist(i) for i in range(12)), *few, finalist(8, "multishot")])
    assert (scores.compared[13:], scores.ranks[0].count) == ("fitted together", 8)
    broken = Finalist(
        **{
            **vars(few[0]),
            "candidate": candidate(9),
            "divergence": Divergence(*[np.full(1, np.nan)] * 2),
        }
    )
    scores.assess([*few, broken])
    assert "too few combinations fitted together (7 of 8)" in scores.to_dict()["reason"]
    scores.assess([*few, *few])
    assert "too few combinations fitted together (7 of 8)" in scores.to_dict()["reason"]
    scores.assess([])
    assert scores.to_dict() == {"unavailable": True, "reason": scores.why_not}


def test_where_latency_says_it_all_nothing_is_ranked(
    scores: ZeroShot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "HIDDEN", np.arange(12.0))
    ladder = [finalist(i) for i in range(12)]
    scores.assess(ladder)
    assert "each faster one loses more" in scores.to_dict()["reason"]
    assert not scores.ranks
    monkeypatch.setitem(globals(), "HIDDEN", HIDDEN[::-1] % 5)
    for f in (finalist(i) for i in range(12)):
        (move,) = f.candidate.decisions
        scores.search.singles[move] = Single(1.0, Fitted({}, 0.0), f.divergence)
        scores.search.alone[move] = f.trial
    scores.assess(ladder[:7])
    assert scores.to_dict()["compared"] == "single choices"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnsupportedError("no random inputs of type string."), "they cannot be computed on this"),
        (OutOfTime(), "the time was up"),
    ],
)
def test_what_cannot_be_scored_is_said(
    scores: ZeroShot, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fails(*_: Any) -> dict[str, float]:
        raise error

    monkeypatch.setattr(module, "zero_shot", fails)
    scores.assess([finalist(i) for i in range(12)])
    assert scores.to_dict()["reason"].startswith(reason)
    assert scores.best_first([candidate(1), candidate(0)], [1.0, 2.0]) == [
        candidate(1),
        candidate(0),
    ]
