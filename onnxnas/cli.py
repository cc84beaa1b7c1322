"""The command line: results on stdout, progress and warnings on stderr, exit codes by outcome."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from onnxnas import import_cli, target_cli
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
    ScaleOpt,
    SeedOpt,
    ShapeOpt,
    SkipOpt,
    TargetOpt,
    Verbs,
    calibration_of,
    names,
    outputs,
    points,
    seconds,
    shapes_of,
    task_of,
    write_json,
    write_to,
)

if TYPE_CHECKING:
    from onnxnas.pipeline import Prepared
    from onnxnas.result import Result

# onnxnas's heavy modules are imported inside the verbs, so that --help answers at once.

app = typer.Typer(
    name="onnxnas",
    cls=Verbs,
    help="Fit a trained ONNX network to the accelerator it has to run on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
target_app = typer.Typer(help="Targets: accelerators the tool can cost.", no_args_is_help=True)
for _verbs in (target_cli.app, import_cli.app):
    target_app.registered_commands += _verbs.registered_commands
app.add_typer(target_app, name="target")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from onnxnas.version import __version__

        print(f"onnxnas {__version__}")
        raise typer.Exit


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

    shapes = shapes_of(model, input_shape)
    if dry_run:
        prepared = pipeline.prepare(
            model,
            target,
            passes=names(passes),
            skip=names(skip),
            exact_only=exact_only,
            input_shapes=shapes,
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
            model, read, calibration=data, input_shapes=shapes, seed=seed, progress=progress
        )
    _deliver(result, output, run_dir, json_to)


@app.command()
def inspect(
    model: ModelArg,
    target: TargetOpt = DEFAULT_TARGET,
    passes: PassesOpt = None,
    skip: SkipOpt = None,
    input_shape: ShapeOpt = None,
    why: Annotated[bool, typer.Option("--why", help="Also list declined places.")] = False,
    json_to: JsonOpt = None,
) -> None:
    """List the places in MODEL where passes apply, and what can be chosen there."""
    from onnxnas import console, pipeline

    prepared = pipeline.prepare(
        model,
        target,
        passes=names(passes),
        skip=names(skip),
        input_shapes=shapes_of(model, input_shape),
    )
    if json_to:
        write_json(json_to, _inspected(prepared))
    if json_to != "-":
        console.show_sites(prepared, why)


@app.command()
def predict(
    model: ModelArg,
    target: TargetOpt = DEFAULT_TARGET,
    input_shape: ShapeOpt = None,
    csv: Annotated[
        str | None, typer.Option("--csv", metavar="FILE|-", help="Per-kernel table as CSV.")
    ] = None,
    json_to: JsonOpt = None,
) -> None:
    """Cost MODEL on a target, kernel by kernel, nothing rewritten."""
    from onnxnas import console, pipeline, report

    prepared, network = pipeline.predict(model, target, input_shapes=shapes_of(model, input_shape))
    if csv:
        write_to(csv, report.kernels_csv(network.cost))
    if json_to:
        write_json(
            json_to,
            {
                "schema_version": report.SCHEMA_VERSION,
                "target": prepared.cost_model.target.to_dict(),
                **report.network_dict(network),
            },
        )
    if "-" not in (csv, json_to):
        console.show_network(prepared, network)


@app.command()
def verify(
    original: Annotated[Path, typer.Argument(metavar="A", help="The original ONNX file.")],
    result: Annotated[Path, typer.Argument(metavar="B", help="The ONNX file to check.")],
    calibration: CalibrationOpt = None,
    mean: MeanOpt = "0",
    scale: ScaleOpt = "1",
    layout: LayoutOpt = "nchw",
    channel_order: ChannelOpt = "rgb",
    input_shape: ShapeOpt = None,
    seed: SeedOpt = 0,
    json_to: JsonOpt = None,
) -> None:
    """Check that B does what A does: valid, same inputs and outputs, same values. Exit 4 if not."""
    from onnxnas import console
    from onnxnas.loading import load_model
    from onnxnas.verify import verify as run_verify

    shapes = shapes_of(original, input_shape)
    data = calibration_of(original, calibration, mean, scale, layout, channel_order, shapes)
    verification = run_verify(
        load_model(original), load_model(result), input_shapes=shapes, calibration=data, seed=seed
    )
    if json_to:
        write_json(json_to, verification.to_dict())
    if json_to != "-":
        console.show_verification(verification)
    if not verification.ok:
        raise typer.Exit(4)


@app.command()
def evaluate(
    model: ModelArg,
    evaluate: EvaluateOpt = None,
    seed: SeedOpt = 0,
    json_to: JsonOpt = None,
) -> None:
    """Measure MODEL by a task metric, with a bootstrap confidence interval."""
    from onnxnas import console, report
    from onnxnas.errors import UsageError
    from onnxnas.evaluate import evaluate as run_evaluate
    from onnxnas.loading import load_model

    task = task_of(evaluate)
    if task is None:
        raise UsageError("Say what to measure with --evaluate, e.g. --evaluate top1=test.npz.")
    measured = run_evaluate(load_model(model), task.metric, task.arrays, seed)
    if json_to:
        rows = [{"metric": m.name, "rows": m.rows, **report.measured_dict(m)} for m in measured]
        write_json(json_to, rows)
    if json_to != "-":
        console.show_measured(measured)


@app.command()
def passes(json_to: JsonOpt = None) -> None:
    """List the installed passes."""
    from onnxnas import console
    from onnxnas.plugins import load_passes

    loaded, broken = load_passes()
    if json_to:
        rows: list[dict[str, Any]] = [
            {"name": p.name, "summary": p.summary, "order": p.order} for p in loaded.values()
        ]
        rows += [{"name": b.name, "owner": b.owner, "broken": b.reason} for b in broken]
        write_json(json_to, rows)
    if json_to != "-":
        console.show_passes(loaded, broken)


@target_app.command("list")
def target_list(json_to: JsonOpt = None) -> None:
    """List the installed targets."""
    from onnxnas import console
    from onnxnas.errors import UsageError
    from onnxnas.plugins import load_target, target_names

    rows: list[dict[str, Any]] = []
    for name in target_names():
        try:
            rows.append(load_target(name).target.to_dict())
        except UsageError as error:
            rows.append({"name": name, "broken": str(error)})
    if json_to:
        write_json(json_to, rows)
    if json_to != "-":
        console.show_targets(rows)


@target_app.command("show")
def target_show(
    name: Annotated[str, typer.Argument(metavar="TARGET")], json_to: JsonOpt = None
) -> None:
    """Show one target's card."""
    from onnxnas import console
    from onnxnas.plugins import load_target

    card = load_target(name).target.to_dict()
    if json_to:
        write_json(json_to, card)
    if json_to != "-":
        console.show_card(card)


def main() -> NoReturn:
    """Entry point: turns errors raised on purpose into one line and their exit code."""
    from onnxnas.errors import OnnxnasError

    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except OnnxnasError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("Interrupted; nothing was written.", 130)
    except Exception as error:
        if isinstance(error, _click_exception()):
            error.show()
            sys.exit(2)
        import traceback

        traceback.print_exc()
        _fail(f"internal error, please report it with the lines above: {error}", 1)


def _click_exception() -> type[Any]:
    # typer brings its own copy of click's exceptions in newer versions.
    base: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    return base


def _fail(message: str, code: int) -> NoReturn:
    print(f"onnxnas: {message}", file=sys.stderr)
    sys.exit(code)


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
        "declined": [
            {"pass": m.pass_name, "tensor": m.tensor, "reason": m.reason} for m in prepared.misses
        ],
    }
