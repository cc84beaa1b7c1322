"""Options the verbs share: their types, and the readers of their text forms."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from onnxnas.calibration import Calibration
    from onnxnas.quality import Task

ModelArg = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file.")]
TargetOpt = Annotated[str, typer.Option("--target", "-t", help="Name from `onnxnas target list`.")]
PassesOpt = Annotated[
    str | None, typer.Option("--passes", help="Only these passes, comma-separated.")
]
SkipOpt = Annotated[str | None, typer.Option("--skip", help="Not these passes, comma-separated.")]
ShapeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="NAME:1,3,224,224",
        help="Fix an input's shape for costing; the exported model keeps it dynamic. Repeatable.",
    ),
]
CalibrationOpt = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="Unlabelled inputs to verify (and, if weights are fitted, to fit) on: .npy, .npz or a "
        "folder of images.",
    ),
]
MeanOpt = Annotated[
    str, typer.Option(help="Image preprocessing: (pixel - mean) / scale; one value or three.")
]
ScaleOpt = Annotated[str, typer.Option(help="See --mean.")]
LayoutOpt = Annotated[str, typer.Option(help="Of the model's image input: nchw or nhwc.")]
ChannelOpt = Annotated[str, typer.Option(help="Of the model's image input: rgb or bgr.")]
SeedOpt = Annotated[int, typer.Option(help="Of everything random.")]
EvaluateOpt = Annotated[
    str | None,
    typer.Option(
        "--evaluate",
        metavar="METRIC=DATA|MODULE:FUNCTION",
        help="Task metric: top1, map or miou with an .npz file or module:function that returns "
        "arrays, e.g. top1=test.npz; or your own module:function(session) -> float.",
    ),
]
RulesOpt = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml",
        help="What to leave out, force or prefer, e.g. fuse-ibn = 'never in head*'.",
    ),
]
JsonOpt = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Also write the report as JSON.")
]
UncoveredOpt = Annotated[
    str,
    typer.Option(
        "--max-uncovered",
        metavar="SHARE",
        help="Kernels that a learned cost model may know nothing about, e.g. 10% or 0.1.",
    ),
]
OutOpt = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Result file (default: MODEL-TARGET.onnx here)."),
]
DEFAULT_TARGET = "ethos-u55-128"
DEFAULT_UNCOVERED = "10%"


class Verbs(typer.core.TyperGroup):
    """The verbs; what typer would end in its own way, silently with exit code 1, ends in ours."""

    def invoke(self, ctx: Any) -> Any:
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
            return value
        except KeyboardInterrupt:
            print("onnxnas: Interrupted; nothing was written.", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            # The reader of a pipe went away (`| head`): no complaint, as other tools do.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)


def outputs(
    model: Path, target: str, output: Path | None, run_dir: Path | None
) -> tuple[Path, Path]:
    if output is None:
        output = run_dir / "result.onnx" if run_dir else Path(f"{model.stem}-{target}.onnx")
    return output, run_dir or output.with_suffix(".run")


def names(text: str | None) -> list[str] | None:
    return None if text is None else [n.strip() for n in text.split(",") if n.strip()]


def shapes_of(model: Path, texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    from onnxnas.loading import load_model, parse_input_shapes

    return parse_input_shapes(texts, load_model(model)) if texts else {}


def calibration_of(
    model: Path,
    path: Path | None,
    mean: str,
    scale: str,
    layout: str,
    channel_order: str,
    shapes: dict[str, tuple[int, ...]],
) -> Calibration | None:
    if path is None:
        return None
    from onnxnas.calibration import load_calibration
    from onnxnas.graph import contract
    from onnxnas.loading import load_model

    return load_calibration(
        path,
        contract(load_model(model))[0],
        mean=mean,
        scale=scale,
        layout=layout,
        channel_order=channel_order,
        input_shapes=shapes,
    )


def task_of(text: str | None) -> Task | None:
    """The --evaluate option, its data read."""
    from onnxnas.quality import Task

    return None if text is None else Task.parse(text)


def points(text: str | None) -> float | None:
    """A drop of a metric: ``0.01``, or ``1%`` for the same.

    Raises:
        UsageError: it is neither.
    """
    from onnxnas.errors import UsageError

    if text is None:
        return None
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise UsageError(f"Cannot read --max-drop {text!r}: write it as 1% or 0.01.")
    return value


def uncovered_share(text: str) -> float:
    """The --max-uncovered option: ``10%``, or ``0.1`` for the same.

    Raises:
        UsageError: it is neither.
    """
    from onnxnas.errors import UsageError

    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise UsageError(f"Cannot read --max-uncovered {text!r}: write it as 10% or 0.1.")
    return value


def seconds(text: str | None) -> float | None:
    from onnxnas.errors import UsageError

    if text is None:
        return None
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        total = float(number) * units[unit]
    except ValueError:
        total = -1.0
    if not 0 <= total < float("inf"):
        raise UsageError(f"Cannot read --budget {text!r}: write it as 90s, 10m or 1h.")
    return total


def write_json(to: str, data: Any) -> None:
    write_to(to, json.dumps(data, indent=2) + "\n")


def write_to(to: str, text: str) -> None:
    if to == "-":
        sys.stdout.write(text)
    else:
        from onnxnas.result import write_text

        write_text(Path(to), text)
