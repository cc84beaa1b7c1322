"""The end of the main job: rewrite, verify against the original, cost what will be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxnas import graph as graphs
from onnxnas.calibration import Calibration
from onnxnas.cost import Cost
from onnxnas.errors import InfeasibleError, VerificationError
from onnxnas.materialize import TRAINED, Weights, apply_candidate
from onnxnas.outcome import Evaluated
from onnxnas.prepare import Prepared, measure
from onnxnas.quality import Quality, Task, compare
from onnxnas.recipe import Recipe
from onnxnas.result import Exported, Result
from onnxnas.search import LedgerRow, Progress, Trial
from onnxnas.sites import Candidate
from onnxnas.transfer import fingerprints
from onnxnas.verify import Verification, find_guilty, verify
from onnxnas.version import __version__


def finish(
    prepared: Prepared,
    candidate: Candidate,
    *,
    search: Mapping[str, Any],
    weights: Weights | None = None,
    fitted: str = "in order",
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

    Args:
        fitted: how the weights were, see `Recipe.fitted`.

    Raises:
        VerificationError: the outputs differ; the guilty rewrite is named.
        InfeasibleError: the metric falls by more than `max_drop`.
    """
    report_progress = progress or (lambda *_: None)
    report_progress("checking the result against the original", 0, 1)
    recipe = recipe_of(prepared, candidate, fitted)
    model = build(prepared, candidate, recipe, weights)
    verification = _verify(prepared, model, calibration, seed, exact=not weights)
    if not verification.ok:
        raise VerificationError(_blame(prepared, recipe, verification, calibration, seed, weights))
    quality: tuple[Quality, ...] = ()
    if task is not None:
        report_progress("measuring the task metric", 0, 1)
        quality = compare(task.measured(prepared.source, seed), task.measured(model, seed), seed)
        if max_drop is not None and quality[0].exceeds(max_drop):
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
        (
            *prepared.warnings,
            *notes,
            *_new_contract(verification),
            *verification.notes,
            *_unavailable(original.cost),
        ),
        quality,
        prepared.external,
        prepared.ruled,
    )


def export(
    prepared: Prepared,
    named: Mapping[str, Evaluated],
    calibration: Calibration | None,
    seed: int,
    progress: Progress | None,
) -> tuple[tuple[Exported, ...], tuple[str, ...]]:
    """The named candidates of a front as models, each verified; warnings about those that fail."""
    report_progress = progress or (lambda *_: None)
    exported, failed = list[Exported](), list[str]()
    for done, (label, e) in enumerate(sorted(named.items())):
        report_progress("checking the candidates of the front", done, len(named))
        recipe = recipe_of(prepared, e.candidate, e.fitted)
        model = build(prepared, e.candidate, recipe, e.weights)
        verification = _verify(prepared, model, calibration, seed, exact=not e.weights)
        if verification.ok:
            exported.append(Exported(label, model, recipe))
        else:
            failed.append(f"Candidate {label} is not exported: {verification.failure()}")
    return tuple(exported), tuple(failed)


def recipe_of(prepared: Prepared, candidate: Candidate, fitted: str) -> Recipe:
    """What replays a candidate."""
    decided = prepared.space.decided(candidate)
    return Recipe(
        prepared.cost_model.target.name,
        candidate,
        prepared.input_shapes,
        {site.id: choice.exactness for site, choice in decided},
        f"onnxnas {__version__}",
        prepared.sha256,
        fingerprints(candidate, prepared.every_site, prepared.graph),
        fitted,
        prepared.input_resize and any(prepared.passes[s.pass_name].resizes for s, _ in decided),
        prepared.device if any(c.exactness != "exact" for _, c in decided) else "",
    )


def build(
    prepared: Prepared, candidate: Candidate, recipe: Recipe, weights: Weights | None = None
) -> Any:
    """The `onnx.ModelProto` of a candidate; the same bytes every time."""
    applied = apply_candidate(prepared.graph, prepared.space, candidate, prepared.passes, weights)
    model = applied.model(prepared.normalised)
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
    # Trained weights are of all rewrites together.
    fitted = {move: values for move, values in (weights or {}).items() if move != TRAINED}
    guilty = find_guilty(
        [(site.id, choice.label) for site, choice in prepared.space.decided(recipe.candidate)],
        lambda decisions: build(prepared, Candidate.of(dict(decisions)), recipe, fitted),
        lambda model: _verify(prepared, model, calibration, seed, exact=not weights).ok,
    )
    what = "the cleaned model" if guilty is None else f"{guilty[0]}={guilty[1]}"
    return (
        f"The result does not do what the original does ({verification.failure()}); the first "
        f"guilty rewrite is {what}: leave its pass out with --skip; nothing was written."
    )


def _new_contract(verification: Verification) -> tuple[str, ...]:
    if not verification.resized:
        return ()
    return (
        f"The contract changed: {verification.resized}; pictures have to be resized to it "
        "(linear, between pixels), as was done here to verify and to measure",
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
