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
    write_json,
)

if TYPE_CHECKING:
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
        typer.Option(metavar="1%|0.01", help="Most that the metric of --evaluate may fall."),
    ] = None,
    input_shape: ShapeOpt = None,
    rules: RulesOpt = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for the search, e.g. 90s, 10m, 1h.")
    ] = None,
    seed: SeedOpt = 0,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the reports [default: OUTPUT.run].")
    ] = None,
    json_to: JsonOpt = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be tried, and stop.")
    ] = False,
) -> None:
    """Rewrite MODEL so that it runs fastest on a target; verify it; write it with a report."""
    from onnxnas import console, pipeline
    from onnxnas.loading import check_output
    from onnxnas.prepare import prepare

    shapes = shapes_of(model, input_shape)
    if dry_run:
        prepared = prepare(
            model,
            target,
            passes=names(passes),
            skip=names(skip),
            exact_only=exact_only,
            input_shapes=shapes,
            rules=rules,
        )
        console.show_plan(prepared)
        return
    output, run_dir = outputs(model, target, output, run_dir)
    check_output(output, model)
    data = calibration_of(model, calibration, mean, scale, layout, channel_order, shapes)
    budget_s, task, drop = seconds(budget), task_of(evaluate), points(max_drop)
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
            input_shapes=shapes,
            rules=rules,
            library=run_dir / "fitted",
            budget_s=budget_s,
            seed=seed,
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
    json_to: JsonOpt = None,
) -> None:
    """List the places in MODEL where passes apply, and what can be chosen there."""
    from onnxnas import console
    from onnxnas.prepare import prepare

    prepared = prepare(
        model,
        target,
        passes=names(passes),
        skip=names(skip),
        input_shapes=shapes_of(model, input_shape),
        rules=rules,
    )
    if json_to:
        write_json(json_to, _inspected(prepared))
    if json_to != "-":
        console.show_sites(prepared, why)
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


def _inspected(prepared: Prepared) -> dict[str, Any]:
    return {
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
