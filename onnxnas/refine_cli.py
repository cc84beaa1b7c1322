"""`onnxnas distill|int8`: what is done to a rewritten model afterwards, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxnas.errors import UsageError
from onnxnas.options import (
    ChannelOpt,
    EvaluateOpt,
    JsonOpt,
    LayoutOpt,
    MeanOpt,
    ScaleOpt,
    SeedOpt,
    calibration_of,
    seconds,
    task_of,
    write_json,
)

# Heavy modules are imported inside the verbs, so that --help answers at once.

app = typer.Typer(help="After a rewrite.")

OriginalArg = Annotated[Path, typer.Argument(metavar="A", help="The original ONNX file.")]
ResultArg = Annotated[Path, typer.Argument(metavar="B", help="What was made of it.")]
RowsOpt = Annotated[
    Path,
    typer.Option(
        "--calibration",
        help="The inputs that weights were fitted on: .npy, .npz or a folder of images.",
    ),
]


@app.command()
def distill(
    original: OriginalArg,
    result: ResultArg,
    calibration: RowsOpt,
    output: Annotated[Path, typer.Option("--output", "-o", help="The trained model.")],
    steps: Annotated[int, typer.Option(min=1, help="Of gradient at most, 8 rows each.")] = 300,
    rate: Annotated[
        float, typer.Option(min=0.0, help="Size of a step, relative to the weights'.")
    ] = 3e-5,
    budget: Annotated[str | None, typer.Option(help="Time for it, e.g. 90s, 10m, 1h.")] = None,
    mean: MeanOpt = "0",
    scale: ScaleOpt = "1",
    layout: LayoutOpt = "nchw",
    channel_order: ChannelOpt = "rgb",
    seed: SeedOpt = 0,
    json_to: JsonOpt = None,
) -> None:
    """Train all weights of B towards what A answers; needs PyTorch. Exit 3 if nothing is gained."""
    from onnxnas import console
    from onnxnas.distill import distill as run
    from onnxnas.loading import check_output, load_model, save_model

    check_output(output, original)
    check_output(output, result)
    data = calibration_of(original, calibration, mean, scale, layout, channel_order, {})
    if data is None:
        raise UsageError("There is nothing to train on: give --calibration.")
    models = load_model(original), load_model(result)
    with console.Progress() as progress:
        found = run(
            *models,
            data,
            steps=steps,
            rate=rate,
            budget_s=seconds(budget),
            seed=seed,
            progress=progress,
        )
    save_model(found.model, output)
    if json_to:
        write_json(json_to, found.to_dict())
    if json_to != "-":
        print(
            f"{found.measure}: {found.before.value:.4f} -> {found.after.value:.4f} on "
            f"{len(found.before.rows)} rows it did not see; {found.steps} steps on {found.device}"
        )
        print(f"model:  {output}")


@app.command()
def int8(
    original: OriginalArg,
    result: ResultArg,
    calibration: RowsOpt,
    evaluate: EvaluateOpt = None,
    mean: MeanOpt = "0",
    scale: ScaleOpt = "1",
    layout: LayoutOpt = "nchw",
    channel_order: ChannelOpt = "rgb",
    seed: SeedOpt = 0,
    json_to: JsonOpt = None,
) -> None:
    """What int8 costs A, and what it costs B: both quantised by onnxruntime, both beside A."""
    from onnxnas.int8 import compare_int8
    from onnxnas.loading import load_model

    data = calibration_of(original, calibration, mean, scale, layout, channel_order, {})
    if data is None:
        raise UsageError("Ranges are read from inputs: give --calibration.")
    found = compare_int8(load_model(original), load_model(result), data, task_of(evaluate), seed)
    if json_to:
        write_json(json_to, found.to_dict())
    if json_to != "-":
        print("\n".join(found.lines()))
