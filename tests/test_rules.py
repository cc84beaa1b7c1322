"""Rules files: what is read, what is refused with a reason, what is left of a search space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
from fakes import ToyCostModel

from onnxnas import graph as graphs
from onnxnas.errors import UsageError
from onnxnas.plugins import load_passes
from onnxnas.rule_file import Place, Rule, parse_rules, read_rules
from onnxnas.rules import Ruled, apply_rules, stages
from onnxnas.sites import Candidate, Choice, Exactness, SearchSpace, Site

PASSES = ("fuse", "widen")


def network() -> Any:
    """Stages 16x16, 8x8, 4x4; each conv's tensor is called after where it is."""
    b = models.ModelBuilder([1, 3, 32, 32])
    y = b.conv(b.x, 3, 8, 3, stride=2, pads=1, out="stem.out")
    y = b.conv(y, 8, 8, 3, pads=1, out="body.0.out")
    y = b.conv(y, 8, 8, 3, stride=2, pads=1, out="body.1.out")
    y = b.conv(y, 8, 64, 3, stride=2, pads=1, out="head.out")
    return graphs.from_model(b.build(y))


def site(name: str, tensor: str, *labels: str, claims: frozenset[str] | None = None) -> Site:
    exactness: Exactness = "recovered" if name == "widen" else "exact"
    choices = tuple(Choice(label, exactness=exactness) for label in labels)
    return Site(name, tensor, choices, claims or frozenset({f"node:{tensor}"}))


SPACE = SearchSpace(
    (
        site("fuse", "body.0.out", "a"),
        site("fuse", "head.out", "a"),
        site("widen", "stem.out", "to-8", "to-16"),
        site("widen", "body.1.out", "to-8", "to-16"),
    )
)


def ruled(text: str, space: SearchSpace = SPACE) -> Ruled:
    graph = network()
    return apply_rules(parse_rules(text, PASSES), space, graph, lambda: ToyCostModel().cost(graph))


def left(text: str, space: SearchSpace = SPACE) -> set[str]:
    return {f"{s.id}={c.label}" for s in ruled(text, space).space for c in s.choices}


ALL = {f"{s.id}={c.label}" for s in SPACE for c in s.choices}


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ('fuse = "never in head*"', {"fuse@head.out=a"}),
        ('fuse = "never"', {"fuse@head.out=a", "fuse@body.0.out=a"}),
        ('fuse = "forbid a at body.0.out, head.*"', {"fuse@head.out=a", "fuse@body.0.out=a"}),
        ('"*" = "only in stages 1-2"', {"fuse@head.out=a"}),
        ('widen = "only stage 1"', {"widen@body.1.out=to-8", "widen@body.1.out=to-16"}),
        ('widen = "never in stages 2, 3-4"', {"widen@body.1.out=to-8", "widen@body.1.out=to-16"}),
        ('widen = "only to-8"', {"widen@stem.out=to-16", "widen@body.1.out=to-16"}),
        ('widen = ["never to-8", "never *-16 in stem*"]',
         {"widen@stem.out=to-8", "widen@stem.out=to-16", "widen@body.1.out=to-8"}),
        ('widen = "force to-8 in stem*"', {"widen@stem.out=to-16"}),
        # head.out takes 16 * 9 * 8 cycles of 256 * 9 * 2 + 64 * 9 + 16 * 9 * 8: 18 %; body.1 9 %
        ('"*" = "never under 15% of cycles"', {"widen@body.1.out=to-8", "widen@body.1.out=to-16"}),
        ('fuse = "never over 30% of the cycles"', {"fuse@body.0.out=a"}),
    ],
)  # fmt: skip
def test_rules_narrow_the_space(text: str, gone: set[str]) -> None:
    assert ALL - left(text) == gone
    assert ruled(text).warnings == ()


def test_every_removed_choice_says_which_rule_removed_it() -> None:
    found = ruled('fuse = "never in head*"\nwiden = "only to-8"')
    assert found.removed["fuse@head.out", "a"] == 'fuse = "never in head*"'
    assert found.removed["widen@stem.out", "to-16"] == 'widen = "only to-8"'
    assert [(n.sites, n.removed) for n in found.notes] == [(1, 1), (2, 2)]
    assert found.before is SPACE


def test_a_place_is_also_found_by_what_a_site_changes_but_only_to_rule_it_out() -> None:
    wide = site("fuse", "body.0.out", "a", claims=frozenset({"channels:head.out[0:4]"}))
    space = SearchSpace((wide,))
    assert left('fuse = "never in head*"', space) == set()
    assert left('fuse = "never in stage 3"', space) == set()
    assert left('fuse = "only in head*"', space) == set()
    assert left('fuse = "only in body*"', space) == {"fuse@body.0.out=a"}


def test_nodes_are_places_by_their_own_names() -> None:
    graph = network()
    graph.nodes[-1].name = "/head/conv"
    rules = parse_rules('fuse = "never in /head/*"', PASSES)
    found = apply_rules(rules, SPACE, graph, lambda: ToyCostModel().cost(graph))
    assert ("fuse@head.out", "a") in found.removed


def test_forced_choices_leave_nothing_beside_them() -> None:
    rival = site("fuse", "stem.out", "a", claims=SPACE.site("widen@stem.out").claims)
    space = SearchSpace((*SPACE, rival))
    found = ruled('widen = "force to-8 in stem*"', space)
    assert found.forced == Candidate.of({"widen@stem.out": "to-8"})
    assert "fuse@stem.out" not in {s.id for s in found.space}
    assert "forces to-8 at widen@stem.out" in found.removed["fuse@stem.out", "a"]


def test_preferences_are_factors_on_the_loss() -> None:
    found = ruled('widen = ["prefer in stage 1", "prefer to-16 in body* by 4"]')
    assert found.factors == {
        ("widen@stem.out", "to-8"): 2.0,
        ("widen@stem.out", "to-16"): 2.0,
        ("widen@body.1.out", "to-16"): 4.0,
    }
    assert len(found.space) == len(SPACE)
    assert not found.removed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('fuse = "never in haed*"', "they are body.0.out, head.out"),
        ('fuse = "never b"', "there are a"),
        ('fuse = "never in stage 7"', "1 = 16x16, 2 = 8x8, 3 = 4x4"),
        ('fuse = "only in haed*"', "all of it is ruled out"),
        ('fuse = "prefer in head*"', "lose nothing"),
    ],
)
def test_a_rule_that_matches_nothing_is_a_warning(text: str, says: str) -> None:
    (warning,) = ruled(text).warnings
    assert says in warning
    assert f"Rule {text}" in warning


def test_a_pass_without_sites_is_a_warning() -> None:
    (warning,) = ruled('widen = "never"', SearchSpace(SPACE.sites[:2])).warnings
    assert "there is no site of widen here" in warning


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('fsue = "never"', "Unknown pass in rules 'fsue': did you mean 'fuse'"),
        ("fuse = 3", "write fuse ="),
        ('fuse = "not in head*"', "begin with never"),
        ('fuse = ""', "begin with never"),
        ('fuse = "only"', "say what"),
        ('fuse = "never in head* and neck*"', "commas"),
        ('fuse = "never in stages x"', "stages are written"),
        ('fuse = "never in"', "no place"),
        ('fuse = "never under 1 percent"', "no place"),
        ('fuse = "never in head* by 3"', "only after prefer"),
        ('fuse = "prefer in head* by 0"', "positive"),
        ('fuse = "never', "not valid TOML"),
        ('widen = "force in stem*"', "can be to-8, to-16: say which"),
        ('widen = ["force to-8 in stem*", "never in stage 1"]', "contradict"),
        ('widen = ["force to-8 in stem*", "force to-16 in stage 1"]', "contradict"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ruled(text)


def test_forcing_what_excludes_each_other_is_refused() -> None:
    rival = site("fuse", "stem.out", "a", claims=SPACE.site("widen@stem.out").claims)
    with pytest.raises(UsageError, match="same part of the graph"):
        ruled(
            'widen = "force to-8 in stem*"\nfuse = "force in stem*"', SearchSpace((*SPACE, rival))
        )


def test_the_parts_of_a_rule() -> None:
    rule = Rule.parse("p", "prefer a-*, b in x*, stages 1-2, under 0.5% by 3")
    assert rule.choices == ("a-*", "b")
    assert rule.places == (Place("x*"), Place(stages=(1, 2)), Place(under=0.005))
    assert rule.factor == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read rules .*none.toml"):
        read_rules(tmp_path / "none.toml", PASSES)


def test_stages_are_resolutions_of_convolutions() -> None:
    assert stages(network()) == ((16, 16), (8, 8), (4, 4))


def test_the_example_of_the_manual_is_read() -> None:
    text = (Path(__file__).parents[1] / "docs" / "rules.md").read_text(encoding="utf-8")
    example = text.partition("```toml\n")[2].partition("```")[0]
    rules = parse_rules(example, load_passes()[0])
    assert [r.verb for r in rules] == ["never", "never", "only", "forbid", "prefer", "force"]
    assert rules[0].places == (Place(under=0.01),)
    assert rules[4].factor == 3
    for verb in ("never", "forbid", "only", "force", "prefer"):
        assert f"`{verb}`" in text
