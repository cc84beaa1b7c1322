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
        Path | None, typer.Argument(help="Card to write; default: cpu-ort[-int8].json.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Statically quantised (QDQ).")] = False,
    like: Annotated[
        list[Path] | None, typer.Option(help="Also time every kernel of this model; repeatable.")
    ] = None,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="For --like: name:1,3,224,224.")
    ] = None,
    kernels: Annotated[int, typer.Option(min=1, help="Single kernels in all.")] = 1500,
    networks: Annotated[int, typer.Option(min=0, help="Whole networks.")] = 30,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over all models, twice.")] = 10,
    core: Annotated[int, typer.Option(help="Core to run on; -1 is the last.")] = -1,
    seed: Annotated[int, typer.Option(help="Of the choice and the regression.")] = 0,
) -> None:
    """Time onnxruntime on this machine's processor and train its cost model: 20 minutes at most."""
    import sys

    from onnxnas.hwmodels import csv_import, ort_cpu, timing_plan, training

    models = _graphs(like, input_shape)
    timed = timing_plan.plan((8, 16), models, kernels, networks, seed, ort_cpu.LARGEST)
    measured = ort_cpu.measure(
        timed,
        int8,
        ort_cpu.Protocol(rounds=rounds, core=core),
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    for name, reason in measured.failed:
        print(f"not timed: {name}: {reason}", file=sys.stderr)
    trained, card = ort_cpu.train(measured, int8, training.Settings(seed=seed))
    path = out or Path(f"{card['name']}.json")
    csv_import.write(trained, card, path)
    isolated = trained.model.entry["isolated"]
    print(f"{path}: {len(measured.times.kernels)} kernels on {isolated['processor']}")
    print(
        f"two measurements differ by {measured.spread:.1%} (median), "
        f"{measured.doubtful:.0%} of them by more than 3 %"
    )
    if "networks" in isolated:
        found = isolated["networks"]
        print(
            f"whole networks: {isolated['factor']:.2f} times the sum of their kernels; "
            f"MAPE {found['mape']:.1%}, Kendall tau {found['kendall']:.3f} over {found['count']}"
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
