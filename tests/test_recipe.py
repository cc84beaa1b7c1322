"""Recipes survive the way to text and back; broken ones are refused with a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxnas.errors import UsageError
from onnxnas.recipe import Fingerprint, Recipe
from onnxnas.sites import Candidate

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    sites=st.dictionaries(NAMES, NAMES.filter(lambda c: c != "keep")),
    target=NAMES,
    device=st.sampled_from(["", "cpu", "cuda:1"]),
)
def test_any_recipe_reads_back_equal(sites: dict[str, str], target: str, device: str) -> None:
    recipe = Recipe(
        target,
        Candidate.of(sites),
        {"x:0": (1, 3, 8, 8)},
        dict.fromkeys(sites, "exact"),
        "t 1",
        "ab",
        {site: Fingerprint(label, 2, 1, 0.75) for site, label in sites.items()},
        device=device,
    )
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("format = ", "not valid TOML"),
        ("format = 99", "format 99"),
        ("format = 1", "'target'"),
        ("format = 1\ntarget = 't'\n[[rewrite]]\nsite = 'p@t'", "'choice'"),
        ("format = 1\ntarget = 't'\nrewrite = 3", "not a recipe"),
        (
            "format = 1\ntarget = 't'\n" + "[[rewrite]]\nsite = 'p@t'\nchoice = 'c'\n" * 2,
            "twice",
        ),
        (
            "format = 1\ntarget = 't'\n[[rewrite]]\nsite = 'p@t'\nchoice = 'c'\nstructure = 'x'",
            "'stage'",
        ),
    ],
)
def test_a_broken_recipe_is_refused_with_a_reason(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Recipe.from_toml(text, "r.toml")
