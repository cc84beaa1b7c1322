"""`onnxnas target list|show|measure|train|qualify`: cards, training data, cost models, errors."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from onnxnas.errors import UsageError
from onnxnas.options import JsonOpt, write_json

if TYPE_CHECKING:
    from onnxnas.cost import CostModel

# Heavy modules are imported inside the verbs, so that --help answers at once.

app = typer.Typer(help="Targets and their cost models.")

_Name = Annotated[str, typer.Argument(help="Name of a target; see 'onnxnas target list'.")]
_Data = Annotated[Path, typer.Option("--data", help="Folder of the training data.")]
_DEFAULT_DATA = Path("target-data")
_VERSIONED = {"vela": "ethos-u-vela", "onnxruntime": "onnxruntime"}
"""Backend -> the distribution whose version its figures depend on."""


@app.command("list")
def target_list(json_to: JsonOpt = None) -> None:
    """List the installed targets."""
    from onnxnas import console
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


@app.command("show")
def target_show(
    name: Annotated[str, typer.Argument(metavar="TARGET")],
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw what channels cost.")
    ] = None,
    json_to: JsonOpt = None,
) -> None:
    """Show one target's card, and by its learned model which channel counts are cheap."""
    from onnxnas import console
    from onnxnas.plugins import load_target

    backend = load_target(name)
    card, learned = backend.target.to_dict(), backend.predictor()
    if learned is not None:
        from onnxnas.hwmodels.curation import ChannelCurve

        curve = ChannelCurve.of(learned)
        card["channel_curve"] = {"cost": curve.cost.tolist(), "steps": list(curve.steps)}
    if plot is not None:
        _plot(plot, card)
    if json_to:
        write_json(json_to, card)
    if json_to != "-":
        console.show_card(card)


def _plot(path: Path, card: dict[str, Any]) -> None:
    from onnxnas.curve_picture import draw_curve

    if "channel_curve" not in card:
        raise UsageError(f"Target {card['name']!r} has no trained cost model to draw a curve of.")
    if path.suffix != ".png":
        raise UsageError(f"The picture is a PNG: name it {path.stem}.png, not {path.name}.")
    curve = card["channel_curve"]
    try:
        path.write_bytes(draw_curve(curve["cost"], curve["steps"], card["title"]))
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.") from error


@app.command()
def measure(
    name: _Name,
    data: _Data = _DEFAULT_DATA,
    networks: Annotated[int, typer.Option(min=1, help="Networks in all.")] = 400,
    first: Annotated[int, typer.Option(min=0, help="Number of the first network.")] = 0,
    like: Annotated[
        list[Path] | None, typer.Option(help="Also sample variants of this model; repeatable.")
    ] = None,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="For --like: name:1,3,224,224.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds; after each, the least certain networks come next.")
    ] = 1,
) -> None:
    """Cost sampled networks whole and store the cost of every kernel. Resumes where it stopped."""
    from onnxnas.hwmodels import active, measuring, sampling

    backend = _backend(name)
    progress = Console(stderr=True)
    said = [0.0]

    def tell(done: int, count: int, left: float) -> None:
        if done == count or time.monotonic() - said[0] > 5:
            said[0] = time.monotonic()
            progress.print(f"{name}: {done} of {count} networks, about {left / 60:.0f} min left")

    folder = data / name
    plan = measuring.sampled(networks, first)
    for path in like or []:
        graph = _graph(path, input_shape or [])
        plan += sampling.variants(path.stem, graph, max(1, networks // 4), first)
    result = active.measure_in_rounds(backend, folder, plan, rounds, _source(backend), tell)
    for network, reason in result.failed:
        progress.print(f"skipped {network}: {reason}")
    print(f"{folder}: {result.measured} networks measured, {result.known} known already")


@app.command()
def train(
    name: _Name,
    data: _Data = _DEFAULT_DATA,
    card: Annotated[
        Path | None, typer.Option(help="Card to write to; default: the target's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the regression.")] = 0,
) -> None:
    """Train the cost model of a target on measured networks."""
    from onnxnas.hwmodels import curation, dataset, training

    backend = _backend(name)
    path = card or _own_card(name)
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    trained = training.train(
        dataset.read(data / name), fields, _source(backend), training.Settings(seed=seed)
    )
    training.write(trained, path)
    steps = curation.write_steps(trained.model, path)
    found = trained.errors["all"]
    print(
        f"{path}: trained on {trained.model.entry['networks']} networks; on {found.count} held-out "
        f"ones MAPE {found.mape:.2%}, Kendall tau {found.kendall:.3f}; channels step at "
        f"{', '.join(map(str, steps)) or 'no multiple, the card keeps its own'}"
    )


@app.command()
def qualify(
    name: _Name,
    models: Annotated[
        list[Path] | None, typer.Option("--models", help="ONNX files; default: sampled networks.")
    ] = None,
    input_shape: Annotated[list[str] | None, typer.Option(help="name:1,3,224,224")] = None,
    sampled: Annotated[int, typer.Option(min=0, help="Random networks of held-out families.")] = 20,
    card: Annotated[
        Path | None, typer.Option(help="Card of the cost model; default: the target's own.")
    ] = None,
) -> None:
    """Compare the cost model with its backend; ends with 1 where a threshold is missed."""
    from onnxnas.hwmodels import catboost_model, qualification

    backend = _backend(name, timed=True)
    model = catboost_model.load(card or _own_card(name))
    subjects = [_subject(path, input_shape or []) for path in models or []]
    subjects += qualification.held_out(sampled)
    result = qualification.qualify(model, backend, subjects)
    _print(result)
    if not result.passed:
        raise typer.Exit(1)


def _backend(name: str, timed: bool = False) -> CostModel:
    """The source of truth of a target.

    Args:
        name: of the target.
        timed: where that is this machine's processor, time it; else that is an error.
    """
    from onnxnas.plugins import load_target

    backend = load_target(name)
    if backend.target.kind != "predicted":
        return backend
    if backend.target.backend != "onnxruntime":
        raise UsageError(f"{name!r} has no backend here, its figures come from a table of times.")
    if not timed:
        raise UsageError(f"{name!r} is measured and trained by 'onnxnas target cpu'.")
    from onnxnas.hwmodels.ort_cpu import OnnxruntimeCostModel

    return OnnxruntimeCostModel(int8=backend.target.config["precision"] != "float32")


def _print(result: Any) -> None:
    console = Console()
    table = Table(
        "method", "networks of", "n", "MAPE", "RMSPE", "worst", "<5%", "<10%", "tau", "rho"
    )
    for method, families in result.errors.items():
        for family, a in families.items():
            table.add_row(
                method, family, str(a.count), f"{a.mape:.2%}", f"{a.rmspe:.2%}", f"{a.worst:.1%}",
                f"{a.within_5:.0%}", f"{a.within_10:.0%}", f"{a.kendall:.3f}", f"{a.spearman:.3f}",
            )  # fmt: skip
    console.print(table)
    for region in result.regions:
        console.print(f"{region.share:.2%} of a network: {region.op}, e.g. {region.example}")
    for network, reason in result.failed:
        console.print(f"not compared: {network}: {reason}")
    for shortfall in result.shortfalls:
        console.print(f"missed: {shortfall}")


def _subject(path: Path, shapes: Iterable[str]) -> Any:
    from onnxnas.hwmodels.qualification import Subject

    graph, given = _cleaned(path, shapes)
    return Subject(path.stem, "files", lambda: graph, given)


def _graph(path: Path, shapes: Iterable[str]) -> Any:
    from onnxnas.graph import static_view

    return static_view(*_cleaned(path, shapes))


def _cleaned(path: Path, shapes: Iterable[str]) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The graph of a cleaned model, and the input shapes it is costed at."""
    from onnxnas.graph import from_model
    from onnxnas.loading import load_model, parse_input_shapes
    from onnxnas.normalise import normalise

    model = load_model(path)
    given = parse_input_shapes(list(shapes), model)
    return from_model(normalise(model, given).model), given


def _own_card(name: str) -> Path:
    from onnxnas import hwmodels

    path = Path(hwmodels.__path__[0]) / f"{name}.json"
    if not path.exists():
        raise UsageError(f"Target {name!r} has no card here: give one with --card.")
    return path


def _source(backend: CostModel) -> Any:
    from onnxnas.hwmodels.training import Source

    name = backend.target.backend
    package = _VERSIONED.get(name, name)
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return Source(name, version, backend.target.kind)
