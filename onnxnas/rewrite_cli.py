"""`onnxnas optimize|apply|inspect`: what can be rewritten in a model, and the rewriting of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxnas.options import (
    DEFAULT_TARGET,
    CalibrationOpt,
    ChannelOpt,
    EvaluateOpt,
    JsonOpt,
    LayoutOpt,
    MeanOpt,
    ModelArg,
    OutOpt,
    PassesOpt,
    RulesOpt,
    ScaleOpt,
    SeedOpt,
    ShapeOpt,
    SkipOpt,
    TargetOpt,
    calibration_of,
    names,
    outputs,
    points,
    seconds,
    shapes_of,
    task_of,
    uncovered_share,
    write_json,
)
from onnxnas.search_options import (
    DeviceOpt,
    EffortChoice,
    EffortOpt,
    ExportOpt,
    MaxLatencyOpt,
    MaxMacsOpt,
    MaxMemoryOpt,
    MaxUncoveredOpt,
    MaxWeightsOpt,
    ObjectiveOpt,
    SpaceChoice,
    SpaceOpt,
    StartOpt,
    StrategyOpt,
    WorkersOpt,
    limits_of,
)

if TYPE_CHECKING:
    from onnxnas.plan import Curated
    from onnxnas.prepare import Prepared
    from onnxnas.result import Result

# Heavy modules are imported inside the verbs, so that --help answers at once.

app = typer.Typer(help="Rewriting models.")


@app.command()
def optimize(
    model: ModelArg,
    target: TargetOpt = DEFAULT_TARGET,
    output: OutOpt = None,
    exact_only: Annotated[
        bool, typer.Option("--exact-only", help="Only rewrites with the same outputs.")
    ] = False,
    passes: PassesOpt = None,
    skip: SkipOpt = None,
    calibration: CalibrationOpt = None,
    mean: MeanOpt = "0",
    scale: ScaleOpt = "1",
    layout: LayoutOpt = "nchw",
    channel_order: ChannelOpt = "rgb",
    evaluate: EvaluateOpt = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            metavar="1%|0.01",
            help="Most that the metric of --evaluate may fall; without one, agreement with the "
            "original, or the squared error over the variance where outputs are no classes.",
        ),
    ] = None,
    max_latency: MaxLatencyOpt = None,
    max_peak_memory: MaxMemoryOpt = None,
    max_weights: MaxWeightsOpt = None,
    max_macs: MaxMacsOpt = None,
    objective: ObjectiveOpt = "latency",
    effort: EffortOpt = EffortChoice.normal,
    strategy: StrategyOpt = "exact",
    space: SpaceOpt = SpaceChoice.curated,
    start_from: StartOpt = None,
    export_front: ExportOpt = False,
    max_uncovered: MaxUncoveredOpt = None,
    input_shape: ShapeOpt = None,
    allow_input_resize: Annotated[
        bool,
        typer.Option(
            "--allow-input-resize",
            help="The result may take pictures of another size, and give maps of that size; "
            "otherwise a resize is put in front.",
        ),
    ] = False,
    rules: RulesOpt = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for the search, e.g. 90s, 10m, 1h.")
    ] = None,
    seed: SeedOpt = 0,
    workers: WorkersOpt = None,
    device: DeviceOpt = "",
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the reports (default: OUTPUT.run).")
    ] = None,
    json_to: JsonOpt = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be tried, and stop.")
    ] = False,
) -> None:
    """Rewrite MODEL so that it runs fastest on a target; verify it; write it with a report."""
    from onnxnas import console, pipeline, plan
    from onnxnas.forks import default_workers
    from onnxnas.loading import check_output
    from onnxnas.prepare import prepare

    shapes = shapes_of(model, input_shape)
    limits = limits_of(max_latency, max_peak_memory, max_weights, max_macs)
    budget_s, task, drop = seconds(budget), task_of(evaluate), points(max_drop)
    objectives = names(objective) or []
    if dry_run:
        prepared = prepare(
            model,
            target,
            passes=names(passes),
            skip=names(skip),
            exact_only=exact_only,
            input_shapes=shapes,
            rules=rules,
            input_resize=allow_input_resize,
            device=device,
        )
        data = calibration_of(model, calibration, mean, scale, layout, channel_order, shapes)
        fits = drop is not None or "quality" in objectives
        console.show_plan(prepared, plan.phases(prepared, data, fits, effort.value))
        return
    output, run_dir = outputs(model, target, output, run_dir)
    check_output(output, model)
    data = calibration_of(model, calibration, mean, scale, layout, channel_order, shapes)
    with console.Progress() as progress:
        result = pipeline.optimize(
            model,
            target,
            passes=names(passes),
            skip=names(skip),
            exact_only=exact_only,
            calibration=data,
            task=task,
            max_drop=drop,
            objective=objectives,
            limits=limits,
            effort=effort.value,
            strategy=strategy,
            space=space.value,
            start_from=start_from,
            max_uncovered=None if max_uncovered is None else uncovered_share(max_uncovered),
            export_front=export_front,
            allow_input_resize=allow_input_resize,
            input_shapes=shapes,
            rules=rules,
            library=run_dir / "fitted",
            budget_s=budget_s,
            seed=seed,
            device=device,
            workers=workers or (1 if device else default_workers()),
            progress=progress,
        )
    _deliver(result, output, run_dir, json_to)
    if result.interrupted:
        console.warn("Interrupted: the best result so far was verified and written.")
        raise typer.Exit(130)


@app.command()
def apply(
    model: ModelArg,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe.toml of a run.")],
    output: OutOpt = None,
    calibration: CalibrationOpt = None,
    mean: MeanOpt = "0",
    scale: ScaleOpt = "1",
    layout: LayoutOpt = "nchw",
    channel_order: ChannelOpt = "rgb",
    input_shape: ShapeOpt = None,
    transfer: Annotated[
        bool,
        typer.Option("--transfer", help="RECIPE is another model's: find places by their looks."),
    ] = False,
    seed: SeedOpt = 0,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the reports.")] = None,
    json_to: JsonOpt = None,
) -> None:
    """Replay RECIPE on MODEL: no search, the same bytes as when it was found."""
    from onnxnas import console, pipeline
    from onnxnas.loading import check_output
    from onnxnas.recipe import read_recipe

    shapes = shapes_of(model, input_shape)
    read = read_recipe(recipe)
    output, run_dir = outputs(model, read.target, output, run_dir)
    check_output(output, model)
    data = calibration_of(model, calibration, mean, scale, layout, channel_order, shapes)
    with console.Progress() as progress:
        result = pipeline.apply(
            model,
            read,
            calibration=data,
            input_shapes=shapes,
            transfer=transfer,
            seed=seed,
            progress=progress,
        )
    _deliver(result, output, run_dir, json_to)


@app.command()
def inspect(
    model: ModelArg,
    target: TargetOpt = DEFAULT_TARGET,
    passes: PassesOpt = None,
    skip: SkipOpt = None,
    input_shape: ShapeOpt = None,
    rules: RulesOpt = None,
    why: Annotated[bool, typer.Option("--why", help="Also list declined places.")] = False,
    space: Annotated[
        bool, typer.Option("--space", help="Also what curation leaves out of the search, and why.")
    ] = False,
    json_to: JsonOpt = None,
) -> None:
    """List the places in MODEL where passes apply, and what can be chosen there."""
    from onnxnas import console
    from onnxnas.plan import curate
    from onnxnas.prepare import prepare

    prepared = prepare(
        model,
        target,
        passes=names(passes),
        skip=names(skip),
        input_shapes=shapes_of(model, input_shape),
        rules=rules,
    )
    curated = None
    if space:
        with console.Progress() as progress:
            curated = curate(prepared, progress)
    if json_to:
        write_json(json_to, _inspected(prepared, curated))
    if json_to != "-":
        console.show_sites(prepared, why)
        if curated is not None:
            console.show_space(prepared, curated)
    for warning in prepared.warnings:
        console.warn(warning)


def _deliver(result: Result, output: Path, run_dir: Path, json_to: str | None) -> None:
    from onnxnas import console

    result.write(output, run_dir)
    if json_to:
        write_json(json_to, result.to_dict())
    if json_to != "-":
        console.show_result(result, output, run_dir, sys.argv[1:])
    for warning in result.warnings:
        console.warn(warning)


def _inspected(prepared: Prepared, curated: Curated | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "sites": [
            {
                "site": s.id,
                "pass": s.pass_name,
                "tensor": s.tensor,
                "choices": [
                    {"choice": c.label, "exactness": c.exactness, "note": c.note} for c in s.choices
                ],
            }
            for s in prepared.space
        ],
        "rules": [
            {
                "rule": n.rule,
                "sites": n.sites,
                "removed": len(n.gone),
                "forced": len(n.forced),
                "warning": n.warning,
            }
            for n in (prepared.ruled.notes if prepared.ruled else ())
        ],
        "declined": [
            {"pass": m.pass_name, "tensor": m.tensor, "reason": m.reason} for m in prepared.misses
        ],
    }
    if curated is not None:
        found["space"] = {
            "size": float(prepared.space.size()),
            "curated_size": float(curated.space.size()),
            "note": curated.note,
            "removed": [
                {"site": site, "choice": choice, "reason": reason}
                for (site, choice), reason in curated.removed.items()
            ],
        }
    return found
