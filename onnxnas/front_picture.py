"""The front as a picture: what each network costs, and what it loses for that."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnxnas.front_point import FrontPoint, loss_by, loss_scale, loss_title, measure_of

_SIZE = (7.6, 4.8)
_DPI = 150


@dataclass(frozen=True)
class _Colours:
    page: str
    ink: str
    soft: str
    line: str
    accent: str


_LIGHT = _Colours("#ffffff", "#1b1d21", "#6b7280", "#d5d9e0", "#0f62c4")
_DARK = _Colours("#16181c", "#e4e6ea", "#9aa2af", "#3a3f49", "#6ab0ff")


@dataclass(frozen=True)
class _Axis:
    """What is drawn along an axis: its title, the figure of a point in that unit, and whether it
    is counted: then the kind of the cost figures is not its kind.
    """

    title: str
    value: Callable[[FrontPoint], float | None]
    counted: bool = False


_X = {
    "latency": _Axis("latency, ms", lambda p: p.seconds * 1e3),
    "peak-memory": _Axis("peak memory, KiB", lambda p: p.peak_bytes / 1024),
    "weights": _Axis(
        "weights as stored, KiB",
        lambda p: None if p.weight_bytes is None else p.weight_bytes / 1024,
    ),
    "macs": _Axis("multiply-accumulates, millions", lambda p: p.macs / 1e6, counted=True),
}


def draw_front(
    points: Sequence[FrontPoint], title: str, *, x: str = "latency", dark: bool = False
) -> bytes:
    """A PNG of what networks cost against what they lose (or their peak where nothing was lost).

    Args:
        points: the unchanged model, labelled ``original``, among them.
        title: of the picture.
        x: what they cost: ``latency``, ``peak-memory``, ``weights`` or ``macs``.
        dark: for dark pages.
    """
    from matplotlib.figure import Figure

    colours = _DARK if dark else _LIGHT
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained", facecolor=colours.page)
    axes = figure.add_subplot(facecolor=colours.page)
    _draw(axes, points, _X[x], colours)
    figure.suptitle(title, color=colours.ink, fontsize=11)
    file = io.BytesIO()
    # No software version in the file: the same front is the same bytes.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw(axes: Any, points: Sequence[FrontPoint], x: _Axis, colours: _Colours) -> None:
    measure = measure_of(points)
    scale = loss_scale(measure)

    def lost(point: FrontPoint) -> float | None:
        loss = loss_by(point, measure)
        return None if loss is None else scale * loss.value

    kind = points[0].kind
    y = _Axis(f"{loss_title(measure)} (bars: 95 %)", lost)
    if not measure:
        y = _X["weights" if x is _X["peak-memory"] else "peak-memory"]
        y = _Axis(f"{y.title} ({kind})", y.value)
    shown = [
        (point, across, up)
        for point in points
        for across, up in [(x.value(point), y.value(point))]
        if across is not None and up is not None
    ]
    for point, across, value in shown:
        loss = loss_by(point, measure) if measure else None
        if loss is not None and loss.interval is not None:
            low, high = (scale * end for end in loss.interval)
            axes.errorbar(
                across, value, [[max(0.0, value - low)], [max(0.0, high - value)]],
                color=colours.soft, elinewidth=1.2, capsize=2.5, zorder=1,
            )  # fmt: skip
    named = sorted(
        (a, v) for p, a, v in shown if p.label and (not measure or _measured(p, measure))
    )
    axes.plot(
        [a for a, _ in named], [v for _, v in named], color=colours.line, linewidth=1.2, zorder=0
    )
    for label, style, members in _groups(shown, measure, colours):
        if members:
            axes.scatter(*zip(*members, strict=True), label=label, **style)
    for point, across, value in shown:
        if point.label and point.label != "original":  # the legend says that one
            axes.annotate(
                point.label, (across, value), (6, 6), textcoords="offset points",
                color=colours.ink, fontsize=10, fontweight="bold" if point.chosen else "normal",
            )  # fmt: skip
    axes.set_xlabel(f"{x.title} ({'exact' if x.counted else kind})", color=colours.ink)
    axes.set_ylabel(y.title, color=colours.ink)
    base = next((a for p, a, _ in shown if p.label == "original"), 0.0)
    if base:
        top = axes.secondary_xaxis(
            "top",
            functions=(lambda a: 100 * (a / base - 1), lambda change: base * (1 + change / 100)),
        )
        top.set_xlabel("change from the original, %", color=colours.soft, fontsize=9)
        top.tick_params(colors=colours.soft, labelsize=8)
        top.spines[:].set_color(colours.line)
    axes.tick_params(colors=colours.soft)
    axes.spines[:].set_color(colours.line)
    axes.grid(color=colours.line, linewidth=0.5, alpha=0.6)
    axes.margins(0.09, 0.14)
    if measure and all(value >= 0 for _, _, value in shown):
        axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])
    legend = axes.legend(frameon=False, fontsize=8.5, loc="best")
    for text in legend.get_texts():
        text.set_color(colours.ink)


def _groups(
    shown: Sequence[tuple[FrontPoint, float, float]], measure: str, colours: _Colours
) -> list[tuple[str, dict[str, Any], list[tuple[float, float]]]]:
    """Legend text, marker, and places of each kind of point."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for point, x, value in shown:
        if point.label == "original":
            name = "original"
        elif point.chosen:
            name = "chosen"
        elif measure and not _measured(point, measure):
            name = "estimated"
        else:
            name = "named" if point.label else "other"
        groups.setdefault(name, []).append((x, value))
    rows = next(
        (x.rows for p, _, _ in shown for x in p.losses if x.measure == measure and x.rows), None
    )
    judged = f"judged on {rows} rows" if rows else "compiled whole"
    styles: list[tuple[str, str, dict[str, Any]]] = [
        ("original", "original, cleaned",
         {"zorder": 3, "marker": "D", "s": 55, "color": colours.ink}),
        ("chosen", "chosen",
         {"zorder": 5, "marker": "o", "s": 110, "color": colours.accent,
          "edgecolors": colours.ink}),
        ("named", f"can be had instead, {judged}",
         {"zorder": 4, "marker": "o", "s": 60, "color": colours.accent}),
        ("other", f"looked at, {judged}",
         {"zorder": 2, "marker": "o", "s": 16, "color": colours.soft}),
        ("estimated", "sum of single choices, an estimate",
         {"zorder": 2, "marker": "o", "s": 22, "facecolors": "none", "edgecolors": colours.soft}),
    ]  # fmt: skip
    return [(text, style, groups.get(name, [])) for name, text, style in styles]


def _measured(point: FrontPoint, measure: str) -> bool:
    loss = loss_by(point, measure)
    return loss is not None and loss.kind == "measured"
