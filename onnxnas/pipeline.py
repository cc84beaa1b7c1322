"""The main job: a model and a target in, a rewritten, verified model and a report out.

    load -> normalise -> sites -> search on costs -> rewrite -> verify -> write

`optimize`, `apply`, `predict` and `inspect` share the first half (`prepare`) and the first two the
second (`finish`), so a recipe replays to the bytes the search wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxnas.attribution import Contribution, attribute
from onnxnas.calibration import Calibration
from onnxnas.choose import choose
from onnxnas.damage import Damage
from onnxnas.efforts import EFFORTS, EffortName
from onnxnas.errors import UsageError, unknown_name
from onnxnas.evaluate import checked, refuse_shared_rows
from onnxnas.finishing import export, finish
from onnxnas.fitting import fit_again
from onnxnas.objectives import Limit, column
from onnxnas.outcome import Chosen
from onnxnas.prepare import DEFAULT_TARGET, Network, Prepared, measure, prepare
from onnxnas.quality import Task
from onnxnas.recipe import Recipe, read_recipe
from onnxnas.recover import values_only
from onnxnas.result import Result
from onnxnas.rule_costs import RuleCost, rule_costs, savings_of_removed
from onnxnas.search import Evaluator, Move, Progress
from onnxnas.sites import Candidate
from onnxnas.strategies import STRATEGIES
from onnxnas.transfer import matches
from onnxnas.wanted import Wanted


def optimize(
    model: str | Path | Any,
    target: str = DEFAULT_TARGET,
    *,
    passes: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
    exact_only: bool = False,
    calibration: Calibration | None = None,
    task: Task | None = None,
    max_drop: float | None = None,
    objective: Sequence[str] = ("latency",),
    limits: Sequence[Limit] = (),
    effort: EffortName = "normal",
    strategy: str = "exact",
    space: str = "curated",
    start_from: Recipe | str | Path | None = None,
    max_uncovered: float | None = None,
    export_front: bool = False,
    allow_input_resize: bool = False,
    device: str = "",
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    library: Path | None = None,
    rules: Path | None = None,
    budget_s: float | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Result:
    """Find the rewrites that make a model fastest on a target, apply and verify them.

    Args:
        model: path of an ONNX file, or an `onnx.ModelProto`.
        target: name of an installed target.
        passes: only these; None means all.
        skip: not these.
        exact_only: leave out choices that are not exact.
        calibration: unlabelled inputs to fit weights on, and to verify on besides random ones.
        task: metric to measure the original and the result by.
        max_drop: the metric (its first figure) may fall by at most this much, in its own units;
            without a task, agreement with the original on held-out rows.
        objective: what to minimise, from `onnxnas.objectives.METRICS`: the first one decides what
            the result is, all of them what is on the front.
        limits: on what the result needs.
        effort: ``quick``, ``normal`` or ``thorough``, see `onnxnas.efforts`.
        strategy: of the search for combinations: ``exact``, ``evolution``, ``greedy``, ``random``.
        space: ``curated`` leaves out what is predicted not to pay, ``full`` nothing.
        start_from: recipe of this model or of one like it, tried first.
        max_uncovered: share of kernels that predictions may know nothing like; None is 10 % where
            there are only predictions, else no limit.
        export_front: also hand out the named candidates of the front.
        allow_input_resize: the result may take pictures of another size, and give maps of it.
        device: of PyTorch, e.g. ``cuda``, for gradient steps, which are then more; empty for numpy.
        input_shapes: fixes dynamic dimensions for costing and verification; the exported
            model keeps them dynamic.
        library: folder of what was fitted and evaluated before; None keeps nothing. With it, a
            search that was killed goes on where it was.
        rules: file of what to leave out, force or prefer, see `onnxnas.rule_file`.
        budget_s: seconds for the search; None means until it converges.
        seed: of the random inputs used to verify, and of sampled positions.
        workers: processes that fit weights side by side; the result does not depend on it. Needs
            `library`, and helps only where ``OPENBLAS_NUM_THREADS`` was 1 when numpy was loaded.
        progress: called with (what, done, total).

    Raises:
        UsageError: the file, the target, a pass name or a shape cannot be used.
        UnsupportedError: the target can run nothing of it.
        VerificationError: a rewrite changed the outputs; names it.
        InfeasibleError: nothing meets the limits; says what comes nearest.
        CoverageError: too many kernels are unlike anything the cost model was trained on.
    """
    for kind, name, known in (
        ("effort", effort, EFFORTS),
        ("strategy", strategy, STRATEGIES),
        ("space", space, ("curated", "full")),
    ):
        if name not in known:
            raise unknown_name(kind, name, known)
    for metric in objective:
        column(metric)
    if max_drop is not None and task is None and calibration is None:
        raise UsageError("--max-drop needs --evaluate (a metric) or --calibration (agreement).")
    if device and workers > 1:
        raise UsageError("With --device one process fits all weights: leave --workers out.")
    report_progress = progress or (lambda *_: None)
    report_progress("reading and cleaning the model", 0, 1)
    prepared = prepare(
        model,
        target,
        passes=passes,
        skip=skip,
        exact_only=exact_only,
        input_shapes=input_shapes,
        rules=rules,
        input_resize=allow_input_resize,
        device=device,
    )
    if task is not None and task.arrays is not None:
        data = checked(prepared.source, task.metric, task.arrays)
        for batch in calibration.batches() if calibration else ():
            refuse_shared_rows(batch, data.inputs)
    start, told = _start(prepared, start_from)
    chosen = choose(
        prepared,
        Wanted(
            tuple(objective),
            tuple(limits),
            max_drop,
            effort,
            strategy,
            space == "full",
            start,
            max_uncovered,
            export_front,
            workers,
        ),
        calibration=calibration,
        task=task,
        library=library,
        budget_s=budget_s,
        seed=seed,
        progress=progress,
    )
    candidates, failed = (
        export(prepared, chosen.named, calibration, seed, progress) if export_front else ((), ())
    )
    result = finish(
        prepared,
        chosen.best.candidate,
        weights=chosen.best.weights,
        fitted=chosen.best.fitted,
        calibration=calibration,
        task=task,
        max_drop=max_drop,
        seed=seed,
        progress=progress,
        ledger=chosen.ledger,
        trials=chosen.trials,
        search=chosen.search,
        notes=(*told, *chosen.notes, *failed),
    )
    return replace(
        result,
        front=chosen.front,
        candidates=candidates,
        rule_costs=_rule_costs(prepared, chosen, progress),
        contributions=_contributions(prepared, chosen, task, seed, progress),
    )


def _start(
    prepared: Prepared, recipe: Recipe | str | Path | None
) -> tuple[Candidate, tuple[str, ...]]:
    """The decisions of a recipe that can be made here, and what became of the others."""
    if recipe is None:
        return Candidate(), ()
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe))
    found = matches(recipe, prepared.every_site, prepared.graph)
    left = {(s.id, c.label) for s in prepared.space for c in s.choices}
    made = Candidate.of(dict(m.found for m in found if m.found in left))
    told = [f"Start: {m}" for m in found if m.moved or not m.found]
    told += [
        f"Start: a rule takes {'='.join(m.found)} out"
        for m in found
        if m.found and m.found not in left
    ]
    return made, tuple(told)


def _contributions(
    prepared: Prepared, chosen: Chosen, task: Task | None, seed: int, progress: Progress | None
) -> tuple[Contribution, ...]:
    """The result taken apart by kind of rewrite, unless the search was to be short."""
    search, effort = chosen.recovery, chosen.search["effort"]
    if chosen.search["stopped"] != "converged" or effort == "quick":
        return ()
    evaluator = Evaluator(
        prepared.graph,
        prepared.space,
        prepared.passes,
        prepared.cost_model,
        prepared.input_shapes,
    )
    alone = {} if search is None else {m: s.fitted for m, s in search.singles.items()}
    return attribute(
        evaluator,
        chosen.best.candidate,
        alone=values_only(alone),
        written=chosen.best.weights,
        fitted=chosen.best.evaluation,
        held_out=None if search is None else search.held_out,
        losses=None if search is None else Damage.of(prepared, search.held_out, task, seed).losses,
        progress=progress,
    )


def _rule_costs(
    prepared: Prepared, chosen: Chosen, progress: Progress | None
) -> tuple[RuleCost, ...]:
    """What each rule of the user's cost, in sums of what single choices save and harm."""
    if prepared.ruled is None:
        return ()
    search, original = chosen.recovery, chosen.original.cycles
    savings = savings_of_removed(prepared, progress) | {
        trial.candidate.decisions[0]: original - trial.cycles
        for trial in chosen.trials
        if len(trial.candidate.decisions) == 1 and trial.cost is not None
    }
    losses: dict[Move, float] | None = None
    if search is not None:
        start = search.start.cycles
        savings |= {m: start - t.cycles for m, t in search.alone.items() if t.cost is not None}
        losses = {m: s.divergence.value for m, s in search.singles.items()}
    within = sum((losses or {}).get(move, 0.0) for move in chosen.best.candidate.decisions)
    return rule_costs(prepared.ruled, savings, losses, within)


def apply(
    model: str | Path | Any,
    recipe: Recipe | str | Path,
    *,
    calibration: Calibration | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    library: Path | None = None,
    transfer: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Replay a recipe on a model: no search, the same bytes as when it was found.

    Weights that were fitted are fitted again on the same calibration data.

    Args:
        transfer: the recipe is another model's: its places are found by what they look like, and
            what has no like here is left out, with a warning each.

    Raises:
        UsageError: the recipe cannot be read, or a site of it is not in this model.
        VerificationError: a rewrite changed the outputs; names it.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe))
    shapes = input_shapes if transfer else input_shapes or recipe.input_shapes
    prepared = prepare(
        model,
        recipe.target,
        input_shapes=shapes,
        input_resize=recipe.input_resize,
        device=recipe.device,
    )
    if not transfer:
        candidate = recipe.candidate
        _refuse_foreign(prepared, recipe)
    else:
        found = matches(recipe, prepared.space, prepared.graph)
        candidate = Candidate.of(dict(m.found for m in found if m.found))
        if found and not candidate.decisions:
            raise UsageError(f"Nothing of the recipe can be made in this model: {found[0]}.")
        told = tuple(f"Recipe: {m}" for m in found if m.moved or not m.found)
        prepared = replace(prepared, warnings=(*prepared.warnings, *told))
    return finish(
        prepared,
        candidate,
        weights=fit_again(prepared, candidate, recipe.fitted, calibration, library, seed, progress),
        fitted=recipe.fitted,
        calibration=calibration,
        seed=seed,
        progress=progress,
        search={"strategy": "recipe", "seed": seed, "evaluations": 0, "stopped": "converged"},
    )


def predict(
    model: str | Path | Any,
    target: str = DEFAULT_TARGET,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    clean: bool = True,
    predicted: bool = False,
) -> tuple[Prepared, Network]:
    """Cost a model on a target, nothing rewritten; cleaned first unless `clean` is False.

    Args:
        predicted: by what was learned about the target, not by its own cost source.

    Raises:
        UsageError: as `prepare`; or nothing was learned about the target.
    """
    prepared = prepare(model, target, passes=[], input_shapes=input_shapes, clean=clean)
    if predicted:
        learned = prepared.cost_model.predictor()
        if learned is None:
            raise UsageError(
                f"Target {target!r} has no trained cost model: run 'onnxnas target measure' and "
                "'onnxnas target train'."
            )
        prepared = replace(prepared, cost_model=learned)
    return prepared, measure(prepared, prepared.graph)


def _refuse_foreign(prepared: Prepared, recipe: Recipe) -> None:
    """A recipe whose places are not in this model, which is not the one it was made for."""
    here = {site.id for site in prepared.space}
    missing = [site_id for site_id, _ in recipe.candidate.decisions if site_id not in here]
    if missing and recipe.fingerprints and recipe.model_sha256 != prepared.sha256:
        raise UsageError(
            f"The recipe is another model's, and {len(missing)} of its "
            f"{len(recipe.candidate.decisions)} places are not in this one by their names (the "
            f"first is {missing[0]!r}): --transfer finds them by what they look like."
        )
