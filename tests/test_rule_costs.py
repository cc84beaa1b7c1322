"""What a rule costs: equals trying everything with and without it, on sums of single choices."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from fakes import ToyCostModel

from onnxnas import graph as graphs
from onnxnas import prepare as prepare_module
from onnxnas.prepare import prepare
from onnxnas.recover import Move
from onnxnas.rule_costs import rule_costs, savings_of_removed
from onnxnas.rule_file import parse_rules
from onnxnas.rules import Ruled, apply_rules
from onnxnas.search import Evaluator
from onnxnas.sites import Candidate, Choice, SearchSpace, Site

NAMES = ("stem", "body.0", "body.1", "head")


def ruled(text: str) -> Ruled:
    b = models.ModelBuilder([1, 3, 8, 8])
    y, channels = b.x, 3
    for name in NAMES:
        y, channels = b.conv(y, channels, 8, 1, out=name), 8
    graph: Any = graphs.from_model(b.build(y))
    sites = [
        Site(p, n, (Choice("a", exactness="recovered"), Choice("b")), frozenset({f"node:{n}"}))
        for p in ("cut", "join")
        for n in NAMES[:3]
    ]
    rules = parse_rules(text, ("cut", "join"))
    cost = ToyCostModel().cost(graph)
    return apply_rules(rules, SearchSpace(tuple(sites)), graph, lambda: cost)


def figures(seed: int, of: Ruled) -> tuple[dict[Move, float], dict[Move, float]]:
    rng = np.random.default_rng(seed)
    moves = [(s.id, c.label) for s in of.before for c in s.choices]
    savings = {m: float(rng.uniform(-10, 100)) for m in moves}
    return savings, {m: float(rng.uniform(0, 1)) for m in moves if m[1] == "a"}


def best(of: Ruled, savings: dict[Move, float], losses: dict[Move, float], budget: float) -> float:
    found = -np.inf
    forced = dict(of.forced.decisions)
    options = [[None, *(c.label for c in s.choices)] for s in of.space]
    for labels in product(*options):
        pairs = [(s, x) for s, x in zip(of.space, labels, strict=True) if x]
        made = {s.id: x for s, x in pairs}
        apart = not any(a.claims & b.claims for i, (a, _) in enumerate(pairs) for b, _ in pairs[:i])
        if apart and all(made.get(s) == x for s, x in forced.items()):
            total = sum(losses.get(m, 0.0) for m in made.items())
            if total <= max(budget, sum(losses.get(m, 0.0) for m in forced.items())) + 1e-9:
                found = max(found, sum(savings[m] for m in made.items()))
    return float(found)


TEXTS = {
    "cut": 'cut = "never in body*"',
    "join": 'join = "only b"',
    "force": '"join" = "force a in stem"',
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kinds", [("cut",), ("cut", "join"), ("cut", "force")])
def test_the_cost_is_what_trying_everything_says(kinds: tuple[str, ...], seed: int) -> None:
    of = ruled("\n".join(TEXTS[k] for k in kinds))
    savings, losses = figures(seed, of)
    found = rule_costs(of, savings, losses, 1.2)
    with_all = best(of, savings, losses, 1.2)
    for cost, kind in zip(found, kinds, strict=True):
        without = ruled("\n".join(TEXTS[k] for k in kinds if k != kind))
        expected = max(0.0, best(without, savings, losses, 1.2) - with_all)
        assert cost.cycles == pytest.approx(expected)
        assert cost.rule == TEXTS[kind].replace('"join"', "join", 1)
        assert (cost.unfitted, cost.uncosted) == (0, 0)


def test_what_was_never_fitted_counts_as_harmless_and_is_said() -> None:
    of = ruled('cut = "never in body*"')
    savings, losses = figures(1, of)
    savings["cut@body.0", "a"] = 1000.0
    known = {m: loss for m, loss in losses.items() if m not in of.removed}
    del savings["cut@body.1", "b"]
    (cost,) = rule_costs(of, savings, known, 0.5)
    assert cost.unfitted == 2
    assert cost.uncosted == 1
    assert cost.cycles is not None
    assert cost.cycles > 800


def test_nothing_known_is_said() -> None:
    of = ruled('cut = "never"')
    assert [c.cycles for c in rule_costs(of, {}, {}, 1.0)] == [None]


def test_what_rules_took_out_is_costed_for_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "load_target", lambda _: ToyCostModel())
    b = models.ModelBuilder([1, 6, 8, 8])
    model = b.build(b.ibn(b.ibn(b.x, 6, 32, 6), 6, 32, 6))
    rules = tmp_path / "rules.toml"
    rules.write_text('depthwise-to-standard = "never dense"')
    made = prepare(model, "toy", rules=rules)
    found = savings_of_removed(made)
    assert made.ruled is not None
    assert found.keys() == made.ruled.removed.keys()
    assert len(found) == 2
    whole = prepare(model, "toy")
    evaluator = Evaluator(
        whole.graph, whole.space, whole.passes, whole.cost_model, whole.input_shapes
    )
    (before,) = evaluator.evaluate([Candidate()])
    for move, saving in found.items():
        (alone,) = evaluator.evaluate([Candidate.of(dict([move]))])
        assert saving == before.cycles - alone.cycles
    assert savings_of_removed(whole) == {}
