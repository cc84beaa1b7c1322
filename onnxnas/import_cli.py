"""`onnxnas target plan|import|cpu`: targets from times measured on the device itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="A device of your own as a target.")


@app.command()
def plan(
    folder: Annotated[Path, typer.Argument(help="Where the models and times.csv go.")],
    steps: Annotated[
        str, typer.Option(help="Channel counts whose multiples run fast, e.g. 8,16.")
    ] = "8,16",
    like: Annotated[
        list[Path] | None, typer.Option(help="Also time every kernel of this model; repeatable.")
    ] = None,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="For --like: name:1,3,224,224.")
    ] = None,
    kernels: Annotated[int, typer.Option(min=1, help="Single kernels in all.")] = 300,
    networks: Annotated[int, typer.Option(min=0, help="Whole networks.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
) -> None:
    """Write small models to time on a device, and the table to fill in with the times."""
    from onnxnas.errors import UsageError
    from onnxnas.hwmodels import csv_import, timing_plan

    try:
        multiples = tuple(sorted({int(s) for s in steps.split(",")}))
    except ValueError:
        multiples = ()
    if not multiples or multiples[0] < 1:
        raise UsageError(f"--steps is {steps!r}: give channel counts such as 8,16.")
    timed = timing_plan.plan(multiples, _graphs(like, input_shape), kernels, networks, seed)
    table = csv_import.write_plan(timed, folder, multiples)
    print(f"{table}: {len(timed)} models to time: fill in microseconds, and {folder / 'card.toml'}")


@app.command("import")
def import_(
    times: Annotated[Path, typer.Argument(help="times.csv, filled in.")],
    card: Annotated[Path, typer.Option(help="What the device is, in TOML.")],
    out: Annotated[
        Path | None, typer.Option(help="Card to write; default: NAME.json beside --card.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the regression.")] = 0,
) -> None:
    """Train a cost model on measured times; use it as --target PATH."""
    from onnxnas.hwmodels import csv_import, training

    fields = csv_import.read_card(card)
    read = csv_import.read_times(times)
    trained = csv_import.train(read, fields, training.Settings(seed=seed))
    path = out or card.with_name(f"{fields['name']}.json")
    csv_import.write(trained, fields, path)
    lone, isolated = trained.errors["all"], trained.model.entry["isolated"]
    print(
        f"{path}: trained on {len(read.kernels)} kernels, off by {lone.mape:.1%} on held-out ones"
    )
    if "networks" in isolated:
        print(f"whole networks: {isolated['factor']:.2f} times the sum of their kernels")
    else:
        print("no whole networks were timed: sums of kernels are taken as they are")
    if read.missing:
        print(f"{read.missing} rows have no time")


@app.command()
def cpu(
    out: Annotated[
        Path | None,
        typer.Argument(help="Card to write (default: cpu-ort.json or cpu-ort-int8.json here)."),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Statically quantised (QDQ).")] = False,
    data: Annotated[Path, typer.Option(help="Folder of the training data.")] = Path("target-data"),
    like: Annotated[
        list[Path] | None, typer.Option(help="Also time variants of this model; repeatable.")
    ] = None,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="For --like: name:1,3,224,224.")
    ] = None,
    networks: Annotated[
        int, typer.Option(min=0, help="Sampled networks in all; 0: train on what was timed.")
    ] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over each batch of networks.")] = 10,
    minutes: Annotated[
        float, typer.Option(min=0, help="Of timing; then it trains on what was timed.")
    ] = 15.0,
    core: Annotated[int, typer.Option(help="Core to run on; -1 is the last.")] = -1,
    seed: Annotated[int, typer.Option(help="Of the regression.")] = 0,
) -> None:
    """Time onnxruntime on this machine's processor and train its cost model: 20 minutes at most.

    Resumes where it stopped; use the card as --target PATH.
    """
    import random
    import sys

    from onnxnas.hwmodels import (
        csv_import,
        curation,
        dataset,
        measuring,
        ort_cpu,
        ort_networks,
        sampling,
    )
    from onnxnas.loading import check_output

    if out is not None:
        check_output(out)  # a quarter of an hour is not to be spent before that is seen

    def tell(done: int, count: int, left: float) -> None:
        print(f"{done} of {count} networks timed, about {left / 60:.0f} min left", file=sys.stderr)

    backend = ort_cpu.OnnxruntimeCostModel(int8, ort_cpu.Protocol(rounds=rounds, core=core))
    folder = ort_cpu.folder(data, backend.target)
    plan: list[measuring.Named] = []
    for name, graph in _graphs(like, input_shape):
        plan += sampling.variants(name, graph, max(1, networks // 10))
    others = ort_networks.networks(networks)
    random.Random(0).shuffle(others)  # the time may be up before all kinds had their turn
    plan += others
    found = measuring.measure(backend, folder, plan, tell, ort_cpu.BATCH, 60 * minutes)
    for network, reason in found.failed:
        print(f"not timed: {network}: {reason}", file=sys.stderr)
    if found.left:
        print(
            f"{minutes:g} minutes are over, {found.left} of {len(plan)} networks are left: "
            "the same command goes on with them",
            file=sys.stderr,
        )
    data_read = dataset.read(folder)
    trained, card = ort_cpu.train(data_read, backend.target, ort_cpu.settings(seed))
    path = out or Path(f"{card['name']}.json")
    csv_import.write(trained, card, path)
    curation.write_steps(trained.model, path)
    held = trained.errors["all"]
    print(
        f"{path}: {trained.model.entry['networks']} networks timed on {card['config']['processor']}"
    )
    print(
        f"on {held.count} held-out ones: MAPE {held.mape:.1%}, Kendall tau {held.kendall:.3f}, "
        f"{held.within_10:.0%} within 10 %"
    )


def _graphs(like: list[Path] | None, shapes: list[str] | None) -> list[tuple[str, Any]]:
    """Name and static view of each model."""
    from onnxnas.graph import from_model, static_view
    from onnxnas.loading import load_model, parse_input_shapes
    from onnxnas.normalise import normalise

    graphs = []
    for path in like or []:
        model = load_model(path)
        given = parse_input_shapes(list(shapes or []), model)
        graphs.append((path.stem, static_view(from_model(normalise(model, given).model), given)))
    return graphs
