"""Random small networks x random candidates of all passes: what must hold whatever is chosen."""

from __future__ import annotations

import string
from typing import Any

import onnx
import oracle
from fakes import TARGET, ToyCostModel
from hypothesis import event, given, settings
from hypothesis import strategies as st
from random_cnn import random_cnn

from onnxnas.graph import LazyWeight, check_model, contract, from_model, static_view, to_model
from onnxnas.materialize import Applied, apply_candidate
from onnxnas.pass_contract import Why
from onnxnas.plugins import load_passes
from onnxnas.rewriter import SiteGone
from onnxnas.sites import Candidate, SearchSpace
from onnxnas.testing import check_cost_model

PASSES, _ = load_passes()
repeatable = settings(max_examples=40, deadline=None, derandomize=True)


def space_of(graph: Any) -> SearchSpace:
    """Sites of every pass, in the order the passes are applied."""
    return SearchSpace(
        tuple(s for p in PASSES.values() for s in p.find_sites(graph, TARGET, Why(p.name)))
    )


@st.composite
def decided(draw: st.DrawFn) -> tuple[onnx.ModelProto, Any, SearchSpace, Candidate]:
    """A network, its graph and sites, and a candidate of exact choices without conflicts."""
    model = draw(random_cnn(dead=draw(st.booleans())))
    graph = from_model(model)
    space = space_of(graph)
    candidate = Candidate()
    for site in draw(st.permutations(space.sites)):
        labels = [c.label for c in site.choices if c.exactness == "exact"]
        wanted = draw(st.booleans())
        if wanted and labels and not space.conflicts(site, candidate):
            candidate = candidate.with_choice(site.id, draw(st.sampled_from(labels)))
    return model, graph, space, candidate


def applied(graph: Any, space: SearchSpace, candidate: Candidate) -> Applied | None:
    """The candidate applied, or None where one rewrite makes another impossible."""
    try:
        return apply_candidate(graph, space, candidate, PASSES)
    except SiteGone as gone:
        event(f"one rewrite made another impossible: {gone}")
        return None


@repeatable
@given(decided())
def test_a_candidate_is_valid_exact_and_computes_weights_only_at_export(
    case: tuple[onnx.ModelProto, Any, SearchSpace, Candidate],
) -> None:
    model, graph, space, candidate = case
    before = to_model(graph, model).SerializeToString(deterministic=True)
    result = applied(graph, space, candidate)
    if result is None:
        return
    event(f"decisions: {min(len(candidate.decisions), 5)}")
    assert bool(result.provenance) == bool(candidate.decisions)
    weights = [getattr(t, "_values", None) for t in result.graph.tensors().values()]
    assert not any(w.evaluated for w in weights if isinstance(w, LazyWeight))
    exported = to_model(result.graph, model, result.provenance)
    check_model(exported)
    assert contract(exported) == contract(model)
    oracle.assert_same_outputs(model, exported)
    assert to_model(graph, model).SerializeToString(deterministic=True) == before


@repeatable
@given(decided())
def test_a_candidate_has_a_cost_and_exports_to_the_same_bytes_again(
    case: tuple[onnx.ModelProto, Any, SearchSpace, Candidate],
) -> None:
    model, graph, space, candidate = case
    assert Candidate.parse(str(candidate)) == candidate
    result, again = applied(graph, space, candidate), applied(graph, space, candidate)
    if result is None or again is None:
        assert result is again is None
        return
    check_cost_model(ToyCostModel(), static_view(result.graph, {}))
    first, second = (to_model(r.graph, model, r.provenance) for r in (result, again))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


NAMES = st.text(string.ascii_letters + string.digits + "/;:=@._-[]", min_size=1)
LABELS = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+){0,3}", fullmatch=True)


@repeatable
@given(st.dictionaries(st.tuples(LABELS, NAMES).map("@".join), LABELS))
def test_the_text_of_a_candidate_parses_back(decisions: dict[str, str]) -> None:
    candidate = Candidate.of(decisions)
    assert Candidate.parse(str(candidate)) == candidate
    assert hash(Candidate.parse(str(candidate))) == hash(candidate)
