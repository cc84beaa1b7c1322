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

from onnxnas import graph as graphs
from onnxnas.calibration import Calibration
from onnxnas.choose import choose, fit_again
from onnxnas.cost import Cost
from onnxnas.errors import InfeasibleError, UsageError, VerificationError
from onnxnas.evaluate import checked, refuse_shared_rows
from onnxnas.materialize import Weights, apply_candidate
from onnxnas.prepare import DEFAULT_TARGET, Network, Prepared, measure, prepare
from onnxnas.quality import Quality, Task, compare
from onnxnas.recipe import Recipe, read_recipe
from onnxnas.result import Result
from onnxnas.search import LedgerRow, Progress, Trial
from onnxnas.sites import Candidate, SearchSpace
from onnxnas.transfer import fingerprints, matches
from onnxnas.verify import Verification, find_guilty, verify
from onnxnas.version import __version__


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
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    library: Path | None = None,
    rules: Path | None = None,
    budget_s: float | None = None,
    seed: int = 0,
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
        input_shapes: fixes dynamic dimensions for costing and verification; the exported
            model keeps them dynamic.
        library: folder of weights that were fitted before, by data and choice; None keeps none.
        rules: file of what to leave out, force or prefer, see `onnxnas.rule_file`.
        budget_s: seconds for the search; None means until it converges.
        seed: of the random inputs used to verify, and of sampled positions.
        progress: called with (what, done, total).

    Raises:
        UsageError: the file, the target, a pass name or a shape cannot be used.
        UnsupportedError: the target can run nothing of it.
        VerificationError: a rewrite changed the outputs; names it.
        InfeasibleError: the metric falls by more than `max_drop`.
    """
    if max_drop is not None and task is None and calibration is None:
        raise UsageError("--max-drop needs --evaluate (a metric) or --calibration (agreement).")
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
    )
    if task is not None and task.arrays is not None:
        data = checked(prepared.source, task.metric, task.arrays)
        for batch in calibration.batches() if calibration else ():
            refuse_shared_rows(batch, data.inputs)
    chosen = choose(
        prepared,
        calibration=calibration,
        task=task,
        max_drop=max_drop,
        library=library,
        budget_s=budget_s,
        seed=seed,
        progress=progress,
    )
    return finish(
        prepared,
        chosen.candidate,
        weights=chosen.weights,
        calibration=calibration,
        task=task,
        max_drop=max_drop,
        seed=seed,
        progress=progress,
        ledger=chosen.ledger,
        trials=chosen.trials,
        search=chosen.search,
        notes=chosen.notes,
    )


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
    if not transfer:
        shapes = input_shapes or recipe.input_shapes
        prepared = prepare(model, recipe.target, input_shapes=shapes)
        candidate = recipe.candidate
        _refuse_foreign(prepared, recipe)
    else:
        prepared = prepare(model, recipe.target, input_shapes=input_shapes)
        found = matches(recipe, prepared.space, prepared.graph)
        candidate = Candidate.of(dict(m.found for m in found if m.found))
        if found and not candidate.decisions:
            raise UsageError(f"Nothing of the recipe can be made in this model: {found[0]}.")
        told = tuple(f"Recipe: {m}" for m in found if m.moved or not m.found)
        prepared = replace(prepared, warnings=(*prepared.warnings, *told))
    return finish(
        prepared,
        candidate,
        weights=fit_again(prepared, candidate, calibration, library, seed, progress),
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
) -> tuple[Prepared, Network]:
    """Cost a model on a target, nothing rewritten; cleaned first unless `clean` is False."""
    prepared = prepare(model, target, passes=[], input_shapes=input_shapes, clean=clean)
    return prepared, measure(prepared, prepared.graph)


def finish(
    prepared: Prepared,
    candidate: Candidate,
    *,
    search: Mapping[str, Any],
    weights: Weights | None = None,
    calibration: Calibration | None = None,
    task: Task | None = None,
    max_drop: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    ledger: tuple[LedgerRow, ...] = (),
    trials: tuple[Trial, ...] = (),
    notes: tuple[str, ...] = (),
) -> Result:
    """Rewrite, verify against the original, and cost what will really be written.

    Raises:
        VerificationError: the outputs differ; the guilty rewrite is named.
        InfeasibleError: the metric falls by more than `max_drop`.
    """
    report_progress = progress or (lambda *_: None)
    report_progress("checking the result against the original", 0, 1)
    decided = prepared.space.decided(candidate)
    recipe = Recipe(
        prepared.cost_model.target.name,
        candidate,
        prepared.input_shapes,
        {site.id: choice.exactness for site, choice in decided},
        f"onnxnas {__version__}",
        prepared.sha256,
        fingerprints(candidate, _every_site(prepared), prepared.graph),
    )
    model = build(prepared, candidate, recipe, weights)
    verification = _verify(prepared, model, calibration, seed, exact=not weights)
    if not verification.ok:
        raise VerificationError(_blame(prepared, recipe, verification, calibration, seed, weights))
    quality: tuple[Quality, ...] = ()
    if task is not None:
        report_progress("measuring the task metric", 0, 1)
        quality = compare(task, prepared.source, model, seed)
        if max_drop is not None and quality[0].drop > max_drop:
            raise InfeasibleError(
                f"The metric falls by more than --max-drop {max_drop:g} ({quality[0]}): allow "
                f"{quality[0].drop:.4f}, or leave passes out with --skip."
            )
    report_progress("costing the result", 0, 1)
    original = measure(prepared, prepared.graph)
    optimized = measure(prepared, graphs.from_model(model))
    report_progress("costing the result", 1, 1)
    return Result(
        model,
        prepared.name,
        prepared.sha256,
        prepared.cost_model.target,
        *graphs.contract(prepared.source),
        prepared.input_shapes,
        prepared.steps,
        original,
        optimized,
        recipe,
        verification,
        ledger,
        prepared.misses,
        trials,
        search,
        (*prepared.warnings, *notes, *verification.notes, *_unavailable(original.cost)),
        quality,
        prepared.external,
        prepared.ruled,
    )


def _every_site(prepared: Prepared) -> SearchSpace:
    """Also those that rules took out: a place is counted among all that are like it."""
    return prepared.space if prepared.ruled is None else prepared.ruled.before


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


def build(
    prepared: Prepared, candidate: Candidate, recipe: Recipe, weights: Weights | None = None
) -> Any:
    """The `onnx.ModelProto` of a candidate; the same bytes every time."""
    applied = apply_candidate(prepared.graph, prepared.space, candidate, prepared.passes, weights)
    model = graphs.to_model(applied.graph, prepared.normalised, applied.provenance)
    graphs.set_metadata(
        model,
        {
            "onnxnas.version": __version__,
            "onnxnas.target": recipe.target,
            "onnxnas.recipe": str(candidate),
            "onnxnas.exactness": ",".join(sorted(set(recipe.exactness.values()))) or "exact",
        },
    )
    return model


def _verify(
    prepared: Prepared, model: Any, calibration: Calibration | None, seed: int, exact: bool = True
) -> Verification:
    shapes = prepared.input_shapes
    return verify(
        prepared.source, model, input_shapes=shapes, calibration=calibration, seed=seed, exact=exact
    )


def _blame(
    prepared: Prepared,
    recipe: Recipe,
    verification: Verification,
    calibration: Calibration | None,
    seed: int,
    weights: Weights | None,
) -> str:
    """One sentence that names the first rewrite with which the outputs differ."""
    guilty = find_guilty(
        [(site.id, choice.label) for site, choice in prepared.space.decided(recipe.candidate)],
        lambda decisions: build(prepared, Candidate.of(dict(decisions)), recipe, weights),
        lambda model: _verify(prepared, model, calibration, seed, exact=not weights).ok,
    )
    what = "the cleaned model" if guilty is None else f"{guilty[0]}={guilty[1]}"
    return (
        f"The result does not do what the original does ({verification.failure()}); the first "
        f"guilty rewrite is {what}: leave its pass out with --skip; nothing was written."
    )


def _unavailable(cost: Cost) -> tuple[str, ...]:
    """One warning for each kind of kernel without a cost, however many there are."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for kernel in cost.unavailable:
        kinds.setdefault((kernel.op, kernel.reason), []).append(kernel.output)
    return tuple(
        f"{op} ({outputs[0]}{f' and {len(outputs) - 1} more' if outputs[1:] else ''}) has no cost "
        f"on {cost.target}: {reason}; it is in no total"
        for (op, reason), outputs in kinds.items()
    )
