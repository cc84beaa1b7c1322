"""What the command line prints: tables on stdout, progress and warnings on stderr."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from onnxnas import report_tables
from onnxnas.curve_picture import sparkline
from onnxnas.graph import static_view
from onnxnas.rules import stages, stages_text

if TYPE_CHECKING:
    from onnxnas.evaluate import Measured
    from onnxnas.pass_contract import Pass
    from onnxnas.plan import Curated, Phase
    from onnxnas.plugins import Broken
    from onnxnas.prepare import Network, Prepared
    from onnxnas.result import Result
    from onnxnas.verify import Verification

_EVERY_S = 5.0
"""Seconds between two progress lines where there is no terminal."""

_ALIVE = 5
"""Names in a list before it says how many more there are."""

_WIDE = 250
"""Columns of a table off a terminal."""


class Progress:
    """A bar on a terminal, plain lines now and then elsewhere; on stderr.

    Call it with (what, done, total); use it as a context manager.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = (
            RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            if console.is_terminal
            else None
        )
        self._task: Any = None
        self._last = ("", 0.0)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("", total=1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._bar:
            self._bar.update(self._task, description=what, completed=done, total=total)
            return
        now = time.monotonic()
        if what != self._last[0] or now - self._last[1] > _EVERY_S:
            counted = f" {done}/{total}" if total > 1 else ""
            print(f"{what}{counted}", file=sys.stderr, flush=True)
            self._last = (what, now)


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr)


def show_result(result: Result, output: Path, run_dir: Path, command: Sequence[str]) -> None:
    """The one-screen summary."""
    print(result.headline())
    _print(
        _table(
            ("", "original", "result", "change"),
            report_tables.summary_rows(result.original, result.optimized),
        )
    )
    applied = report_tables.applied_lines(result)
    print("applied: " + "; ".join(applied))
    print(f"exactness: {result.exactness}; {result.verification.lines()[-1]}")
    for quality in result.quality:
        print(f"measured: {quality}")
    points = report_tables.front_points(result)
    if points:
        head, rows = report_tables.front_rows(points)
        _print(_table(("could be had instead", *head[1:]), rows))
    for line in report_tables.rule_lines(result):
        print(f"rule {line}")
    heavy = [
        (_short(row[0]), *row[1:])
        for row in report_tables.top_kernels(result.original.cost, result.optimized.cost)
    ]
    _print(_table(("top kernels, cycles", "original", "result", "change"), heavy))
    print(f"model:  {output}\nreport: {run_dir}/report.html (and .md, .json, recipe.toml, ...)")
    print(f"repeat: onnxnas {shlex.join(command)}")


def show_plan(prepared: Prepared, phases: Sequence[Phase]) -> None:
    """What an optimise run would do."""
    show_sites(prepared, why=False)
    rows = [(p.name, str(p.networks), _duration(p.seconds)) for p in phases]
    _print(_table(("phase", "networks", "about"), rows))
    total = sum(p.seconds for p in phases)
    print(
        f"plan: on {prepared.cost_model.target.name}, about {_duration(total)} here (a third to "
        "three times that); then verify and write. Nothing was done."
    )
    for warning in prepared.warnings:
        warn(warning)


def show_space(prepared: Prepared, curated: Curated) -> None:
    """What curation leaves of a search space."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for (site_id, label), reason in curated.removed.items():
        reasons.setdefault((site_id.partition("@")[0], label), []).append(reason)
    rows = [(name, label, str(len(r)), r[0]) for (name, label), r in sorted(reasons.items())]
    _print(_table(("pass", "choice", "left out at sites", "because, e.g."), rows, numbers=False))
    before, after = prepared.space, curated.space
    choices = [sum(len(s.choices) for s in space) for space in (before, after)]
    print(
        f"space: {before.size():.3g} combinations of {choices[0]} choices, curated "
        f"{after.size():.3g} of {choices[1]}" + (f"; {curated.note}" if curated.note else "")
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_sites(prepared: Prepared, why: bool) -> None:
    """Sites per pass and, if wanted, declined places."""
    for step in prepared.steps:
        print(f"cleaned: {step}")
    view = static_view(prepared.graph, prepared.input_shapes)
    print(f"stages, for rules: {stages_text(stages(view))}")
    for note in prepared.ruled.notes if prepared.ruled else ():
        print(f"rule {note.rule}: {note.sites} sites, {len(note.gone)} choices out")
    sites = [(s.pass_name, s.tensor, ", ".join(c.label for c in s.choices)) for s in prepared.space]
    _print(_table(("pass", "site (output tensor)", "choices besides keep"), sites, numbers=False))
    print(
        f"{len(prepared.space)} sites, {prepared.space.size():.3g} combinations; "
        f"{len(prepared.misses)} places declined" + ("" if why else " (--why lists them)")
    )
    if why:
        misses = [(m.pass_name, m.tensor, m.reason) for m in prepared.misses]
        _print(_table(("pass", "place", "declined because"), misses, numbers=False))


def show_network(prepared: Prepared, network: Network) -> None:
    """The figures of one network and its kernels."""
    cost, target = network.cost, prepared.cost_model.target
    print(f"{prepared.name} on {target.name} ({target.title}); figures of kind {cost.kind}")
    head: tuple[str, ...] = ("kernel (output tensor)", "op", "cycles", "share", "MACs")
    rows: list[tuple[str, ...]] = [
        (k.output, k.op, *_figures(k.cycles, cost.cycles, k.reason), f"{k.macs:,}")
        for k in cost.kernels
    ]
    if cost.interval is not None:
        head = (*head, "90 % between", "not covered")
        rows = [
            (*row, _between(k.interval), ", ".join(k.uncovered))
            for row, k in zip(rows, cost.kernels, strict=True)
        ]
    _print(_table(head, rows))
    within = f" (90 %: {_between(cost.interval)})" if cost.interval is not None else ""
    peak = ", ".join(f"{name} {report_tables.size(b)}" for name, b in cost.peak_bytes.items())
    print(
        f"total {cost.cycles:,.0f} cycles{within}, {cost.seconds * 1e3:.3f} ms, "
        f"{cost.macs:,} MACs; peak {peak}"
    )
    for memory, tensors in cost.detail.get("peak_tensors", {}).items():
        alive = ", ".join(
            f"{_short(t['tensor'])} {report_tables.size(t['bytes'])}" for t in tensors[:_ALIVE]
        )
        more = f" and {len(tensors) - _ALIVE} more" if len(tensors) > _ALIVE else ""
        if tensors:
            print(f"alive at the peak of {memory}: {alive}{more}")
    if cost.unavailable:
        warn(f"{len(cost.unavailable)} kernels have no figure and are in no total")
    if cost.kind == "predicted" and (outside := cost.uncovered):
        worst = "; ".join(
            f"{_short(k.output)}: {k.reason or ', '.join(k.uncovered)}" for k in outside[:_ALIVE]
        )
        warn(
            f"{len(outside)} of {len(cost.kernels)} kernels lie outside what the cost model was "
            f"trained on: {worst}"
        )


def show_verification(verification: Verification) -> None:
    """The verdict and what it rests on."""
    print("\n".join(verification.lines()))


def show_measured(measured: Iterable[Measured]) -> None:
    """Task metrics with their intervals."""
    for m in measured:
        within = f" (95 %: {m.interval[0]:.4f} to {m.interval[1]:.4f})" if m.interval else ""
        rows = f" on {m.rows} rows" if m.rows else ""
        print(f"{m.name} {m.value:.4f}{within}{rows}, measured in onnxruntime")


def show_passes(loaded: Mapping[str, Pass], broken: Sequence[Broken]) -> None:
    """Passes in the order they are applied."""
    rows = [(p.name, p.summary) for p in loaded.values()]
    rows += [(b.name, f"cannot be loaded ({b.owner}): {b.reason}") for b in broken]
    _print(_table(("pass", "what it does"), rows, numbers=False))


def show_targets(rows: Sequence[Mapping[str, Any]]) -> None:
    """Targets by name."""
    table = [
        (r["name"], r["broken"], "", "")
        if "broken" in r
        else (r["name"], r["title"], r["backend"], r["kind"])
        for r in rows
    ]
    _print(_table(("target", "title", "backend", "figures are"), table, numbers=False))


def show_card(card: Mapping[str, Any]) -> None:
    """One target's card, a line a field."""
    for key, value in card.items():
        if key == "channel_curve":
            _show_curve(value)
        elif isinstance(value, Mapping):
            print(f"{key}:")
            for inner, text in value.items():
                print(f"  {inner}: {text}")
        else:
            print(f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


def _show_curve(curve: Mapping[str, Any]) -> None:
    """What channels cost, as a line of blocks over a ruler."""
    steps = [int(step) for step in curve["steps"]]
    line = sparkline(curve["cost"])
    ruler = [" "] * (len(line) + 3)
    every = steps[-1] if steps else 16
    for width in range(every, len(line) + 1, every):
        ruler[width - 1 : width - 1 + len(str(width))] = str(width)
    print(
        f"channel steps: {', '.join(map(str, steps)) or 'none'} (read off the learned model)\n"
        f"  cost per output channel of a 3x3 convolution, 1 to {len(line)} channels; low is good\n"
        f"  {line}\n  {''.join(ruler).rstrip()}"
    )


def _short(name: str, width: int = 40) -> str:
    """A tensor name that leaves room for figures: exporters write names of 200 characters."""
    return name if len(name) <= width else f"{name[: width // 2 - 1]}…{name[-width // 2 :]}"


def _figures(cycles: float | None, total: float, reason: str) -> tuple[str, str]:
    if cycles is None:
        return f"unavailable: {reason}", ""
    return f"{cycles:,.0f}", f"{cycles / total:.1%}" if total else ""


def _between(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:,.0f} and {interval[1]:,.0f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> Table:
    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if numbers and i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    return table


class _Output(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the program with exit code 1


def _print(table: Table) -> None:
    # Off a terminal lines are not wrapped at 80 columns: a cut table cannot be searched.
    console = _Output(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    console.print(table)
