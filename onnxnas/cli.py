"""The command line: results on stdout, progress and warnings on stderr, exit codes by outcome."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from onnxnas import import_cli, refine_cli, rewrite_cli, target_cli
from onnxnas.options import (
    DEFAULT_TARGET,
    DEFAULT_UNCOVERED,
    CalibrationOpt,
    ChannelOpt,
    EvaluateOpt,
    JsonOpt,
    LayoutOpt,
    MeanOpt,
    ModelArg,
    ScaleOpt,
    SeedOpt,
    ShapeOpt,
    TargetOpt,
    UncoveredOpt,
    Verbs,
    calibration_of,
    shapes_of,
    task_of,
    uncovered_share,
    write_json,
    write_to,
)

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
for _verbs in (rewrite_cli.app, refine_cli.app):
    app.registered_commands += _verbs.registered_commands
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
def predict(
    model: ModelArg,
    target: TargetOpt = DEFAULT_TARGET,
    input_shape: ShapeOpt = None,
    csv: Annotated[
        str | None, typer.Option("--csv", metavar="FILE|-", help="Per-kernel table as CSV.")
    ] = None,
    predicted: Annotated[
        bool,
        typer.Option("--predicted", help="By the target's learned model: no compiler, in no time."),
    ] = False,
    max_uncovered: UncoveredOpt = DEFAULT_UNCOVERED,
    json_to: JsonOpt = None,
) -> None:
    """Cost MODEL on a target, kernel by kernel, nothing rewritten.

    A learned model says how far off it may be; exit 6 where it knows too little of MODEL.
    """
    from onnxnas import console, pipeline, report
    from onnxnas.cost import refuse_uncovered

    limit = uncovered_share(max_uncovered)
    prepared, network = pipeline.predict(
        model, target, input_shapes=shapes_of(model, input_shape), predicted=predicted
    )
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
    refuse_uncovered(network.cost, prepared.cost_model.target, limit)


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
