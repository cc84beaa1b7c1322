"""What a search would look at and about how long that takes; and what curation leaves out of it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from onnxnas import graph as graphs
from onnxnas.calibration import Calibration
from onnxnas.efforts import EffortName
from onnxnas.errors import UnsupportedError
from onnxnas.fit_rows import MIN_ROWS
from onnxnas.materialize import apply_candidate
from onnxnas.ops import require_shapes
from onnxnas.prepare import Prepared
from onnxnas.rewriter import SiteGone
from onnxnas.runtime import Session, sample_feeds
from onnxnas.samples import split_rows
from onnxnas.screening import Screen, dominated
from onnxnas.search import AT_ONCE, Move, Progress
from onnxnas.sites import Candidate, SearchSpace

_BUILD_S, _COMPILE_S = 0.7e-3, 8e-3
"""For each node of the network: building a rewritten one, and compiling it; see `benchmarks/`."""
_FIT_S = 2.0
"""Fitting one choice once its samples are there."""
_COMPILED = 0.6
"""Share of the choices that prediction does not rule out."""
_RUNGS = 12
_TRAINED = 3
_STEPS_RUN = 300 * 8 * 4
"""Runs of one row that training is worth: steps, rows of each, forward and back."""
_REFITS: Mapping[EffortName, int] = {"quick": 0, "normal": 5, "thorough": 17}


@dataclass(frozen=True)
class Phase:
    """One part of a search.

    Attributes:
        name: as in the report.
        networks: compiled or judged, about.
        seconds: about; real times are within a factor of three.
    """

    name: str
    networks: int
    seconds: float


def phases(
    prepared: Prepared, calibration: Calibration | None, fits: bool, effort: EffortName
) -> tuple[Phase, ...]:
    """What a search would do, in order.

    Args:
        fits: weights may be fitted, if there is data for it.
    """
    choices = [c for site in prepared.space for c in site.choices]
    exact = sum(c.exactness == "exact" for c in choices)
    fitted = len(choices) - exact
    sites = sum(any(c.exactness != "exact" for c in s.choices) for s in prepared.space)
    nodes = len(prepared.graph.nodes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    compiled = prepared.cost_model.predictor() is not prepared.cost_model
    cost_s = nodes * (_BUILD_S + (_COMPILED * _COMPILE_S / cores if compiled else 0.0))
    found = [Phase("rewrites that change nothing", 2 * exact, 2 * exact * cost_s)]
    if not fits or not fitted or calibration is None or len(calibration) < MIN_ROWS:
        return tuple(found)
    roles = split_rows(len(calibration))
    run_s = _run_seconds(prepared)
    judge_s, sample_s = roles.count("judge") * run_s, (len(roles) - roles.count("judge")) * run_s
    alone = fitted * (cost_s + _COMPILED * (_FIT_S + judge_s)) + sample_s
    refit = sites / 2 * (sample_s + _FIT_S) + judge_s + cost_s
    refits = _REFITS[effort]
    trained = _TRAINED if effort == "thorough" and find_spec("torch") is not None else 0
    distilling = Phase("distilling finalists", trained, trained * _STEPS_RUN * run_s)
    return (
        *found,
        Phase("each fitted choice alone", fitted, alone),
        Phase(
            "combinations of fitted choices",
            _RUNGS + refits,
            _RUNGS * (cost_s + judge_s) + refits * refit,
        ),
        Phase("the same beside the fitted ones", exact, exact * cost_s),
        *([distilling] if trained else []),
    )


def _run_seconds(prepared: Prepared) -> float:
    """One run of the model, on one row."""
    session = Session(prepared.normalised, optimised=True)
    inputs, _ = graphs.contract(prepared.normalised)
    (feeds, *_) = sample_feeds(inputs, prepared.input_shapes, 0)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        session.run(feeds)
        times.append(time.perf_counter() - start)
    return min(times)


@dataclass(frozen=True)
class Curated:
    """A search space before and after curation.

    Attributes:
        space: what is left.
        removed: choice -> why it is not worth a compile.
        note: why nothing was curated; empty where it was.
    """

    space: SearchSpace
    removed: Mapping[Move, str] = field(default_factory=dict)
    note: str = ""


def curate(prepared: Prepared, progress: Progress | None = None) -> Curated:
    """Leave out what a learned cost model says cannot pay alone, or is no better than its like.

    Raises:
        UsageError: the learned model cannot be used here.
    """
    report = progress or (lambda *_: None)
    predictor = prepared.cost_model.predictor()
    if predictor is None:
        name = prepared.cost_model.target.name
        note = f"nothing was learned about {name}, so nothing is left out"
        return Curated(prepared.space, note=note)
    screen = Screen(predictor)
    before = graphs.static_view(prepared.graph, prepared.input_shapes)
    try:
        require_shapes(before)
    except UnsupportedError as error:
        return Curated(prepared.space, note=f"nothing is left out: {error}")
    moves = [(s.id, c.label) for s in prepared.space for c in s.choices]
    removed: dict[Move, str] = {}
    costs: dict[Move, Any] = {}
    for start in range(0, len(moves), AT_ONCE):
        report("predicting each choice alone", start, len(moves))
        views = {}
        for move in moves[start : start + AT_ONCE]:
            try:
                views[move] = _view(prepared, move)
            except SiteGone as gone:
                removed[move] = str(gone)
        found = screen.predicted(before, list(views.values()))
        for move, (reason, cost) in zip(views, found, strict=True):
            if reason:
                removed[move] = reason
            else:
                costs[move] = cost
    for site in prepared.space:
        fitted = [c.label for c in site.choices if c.exactness != "exact"]
        like = {x: costs[site.id, x] for x in fitted if (site.id, x) in costs}
        removed |= {(site.id, label): reason for label, reason in dominated(like).items()}
    sites = (
        replace(s, choices=tuple(c for c in s.choices if (s.id, c.label) not in removed))
        for s in prepared.space
    )
    return Curated(SearchSpace(tuple(s for s in sites if s.choices)), removed)


def _view(prepared: Prepared, move: Move) -> Any:
    single = Candidate.of(dict([move]))
    applied = apply_candidate(prepared.graph, prepared.space, single, prepared.passes)
    return applied.view(prepared.input_shapes)
