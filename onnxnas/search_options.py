"""Options of the search: what is wanted, within which limits, and how hard to look for it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from onnxnas.objectives import Limit


class EffortChoice(str, Enum):
    """Text of --effort."""

    quick = "quick"
    normal = "normal"
    thorough = "thorough"


class SpaceChoice(str, Enum):
    """Text of --space."""

    curated = "curated"
    full = "full"


def _limit(option: str, example: str, what: str) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(
        option,
        metavar=example,
        help=f"Most {what} of the result; -30% is of the original.",
    )
    return found


MaxLatencyOpt = Annotated[str | None, _limit("--max-latency", "8ms|-30%", "latency")]
MaxMemoryOpt = Annotated[str | None, _limit("--max-peak-memory", "512KiB|-30%", "peak memory")]
MaxWeightsOpt = Annotated[str | None, _limit("--max-weights", "1.5MB|-30%", "bytes of weights")]
MaxMacsOpt = Annotated[str | None, _limit("--max-macs", "2.5M|-30%", "multiply-accumulates")]
ObjectiveOpt = Annotated[
    str,
    typer.Option(
        metavar="METRIC[,METRIC]",
        help="What to minimise: latency, peak-memory, weights, macs or quality (its loss); the "
        "first decides the result, several span the front.",
    ),
]
EffortOpt = Annotated[
    EffortChoice,
    typer.Option(
        help="Combinations judged as their choices were fitted alone; those near the limit fitted "
        "again; cohorts bred from those as well, and finalists distilled (PyTorch)."
    ),
]
StrategyOpt = Annotated[
    str, typer.Option(help="Search for combinations: exact, evolution, greedy or random.")
]
SpaceOpt = Annotated[
    SpaceChoice,
    typer.Option(help="full also tries what is predicted not to pay, or beaten by its like."),
]
StartOpt = Annotated[
    Path | None,
    typer.Option(
        "--start-from", metavar="RECIPE", help="Recipe of this model or one like it; tried first."
    ),
]
ExportOpt = Annotated[
    bool,
    typer.Option(
        "--export-front", help="Also write the named candidates, verified: RUN_DIR/candidates."
    ),
]
WorkersOpt = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that fit weights side by side (default: one per core, at most 4).",
    ),
]
DeviceOpt = Annotated[
    str,
    typer.Option(
        metavar="cpu|cuda|...",
        help="Let PyTorch make gradient steps there, twice as many (default: numpy makes them).",
    ),
]
MaxUncoveredOpt = Annotated[
    str | None,
    typer.Option(
        "--max-uncovered",
        metavar="SHARE",
        help="End if a larger share of the kernels than this is unlike all that predictions were "
        "trained on (default: 10% for targets with nothing but predictions).",
    ),
]


def limits_of(
    latency: str | None, peak_memory: str | None, weights: str | None, macs: str | None
) -> tuple[Limit, ...]:
    """The --max-... options; None is no limit.

    Raises:
        UsageError: one cannot be read.
    """
    from onnxnas.objectives import Limit

    given = {"latency": latency, "peak-memory": peak_memory, "weights": weights, "macs": macs}
    return tuple(Limit.parse(metric, text) for metric, text in given.items() if text is not None)
