"""The tables of the report for people: rows of text, with units, for the console and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from onnxnas.attribution import Contribution
from onnxnas.cost import Cost
from onnxnas.front_point import FrontPoint, Loss, loss_by, loss_scale, loss_title, measure_of
from onnxnas.rule_costs import RuleCost

if TYPE_CHECKING:
    from onnxnas.prepare import Network
    from onnxnas.result import Result

Row = tuple[str, str, str, str]
"""Metric, original, result, change."""


def summary_rows(original: Network, optimized: Network) -> list[Row]:
    """The two-column table people paste into issues: metric, original, result, change."""
    before, after = original.cost, optimized.cost
    rows = [
        ("latency", f"{before.seconds * 1e3:.3f} ms", f"{after.seconds * 1e3:.3f} ms",
         change(before.seconds, after.seconds)),
        ("cycles", f"{before.cycles:,.0f}", f"{after.cycles:,.0f}",
         change(before.cycles, after.cycles)),
    ]  # fmt: skip
    for name in before.peak_bytes:
        old, new = before.peak_bytes[name], after.peak_bytes.get(name, 0)
        rows.append((f"peak {name}", size(old), size(new), change(old, new)))
    if before.weight_bytes is not None and after.weight_bytes is not None:
        rows.append(
            ("weights as stored", size(before.weight_bytes), size(after.weight_bytes),
             change(before.weight_bytes, after.weight_bytes))
        )  # fmt: skip
    rows += [
        ("MACs", f"{before.macs:,}", f"{after.macs:,}", change(before.macs, after.macs)),
        ("parameters", f"{original.parameters:,}", f"{optimized.parameters:,}",
         change(original.parameters, optimized.parameters)),
    ]  # fmt: skip
    for op in sorted({*original.operators, *optimized.operators}):
        old, new = original.operators.get(op, 0), optimized.operators.get(op, 0)
        if old != new:
            rows.append((f"{op} nodes", str(old), str(new), change(old, new)))
    return rows


def top_kernels(original: Cost, optimized: Cost, count: int = 5) -> list[Row]:
    """The kernels that take longest before or after: output, cycles before, after, change."""
    before = {k.output: k.cycles for k in original.kernels if k.cycles is not None}
    after = {k.output: k.cycles for k in optimized.kernels if k.cycles is not None}
    heavy = sorted({*before, *after}, key=lambda o: (-max(before.get(o, 0), after.get(o, 0)), o))[
        :count
    ]
    return [
        (o, _cycles(before.get(o)), _cycles(after.get(o)), change(before.get(o), after.get(o)))
        for o in heavy
    ]


def applied_lines(result: Result) -> list[str]:
    """What was applied where, one line per kind of rewrite and choice; or why nothing was."""
    if not result.recipe.candidate.decisions:
        late = result.search.get("stopped") in ("budget", "interrupted")
        return [
            "nothing: the time was up before anything that pays was found"
            if late
            else "nothing: no choice pays on this target"
        ]
    counts: Counter[tuple[str, str]] = Counter()
    for site, choice in result.recipe.candidate.decisions:
        counts[site.split("@", 1)[0], choice] += 1
    return [
        f"{name}: {choice} at {n} site{'s' if n > 1 else ''}"
        for (name, choice), n in sorted(counts.items())
    ]


def front_points(result: Result) -> tuple[FrontPoint, ...]:
    """The front of a result with the unchanged model before it; empty where there is no front."""
    others = [p for p in result.front if p.label != "original"]
    return (FrontPoint.unchanged(result.original.cost), *others) if others else ()


def front_rows(points: Sequence[FrontPoint]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of the named points of a front, the original first."""
    measure = measure_of(points)
    named = [p for p in points if p.label]
    return _point_head("", named, measure), [
        (f"{p.label} (chosen)" if p.chosen else p.label, *_cells(p, named[0], measure))
        for p in named
    ]


def contribution_rows(
    contributions: Iterable[Contribution], original: FrontPoint
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of a result taken apart; the original first."""
    rows = list(contributions)
    points = [original, *(c.point for c in rows if c.point)]
    measure = measure_of(points)
    head = _point_head("rewrites", points, measure)
    table = [("none", *_cells(original, original, measure))]
    for row in rows:
        label = f"{row.label} ({row.rewrites})"
        if row.point is None:
            table.append((label, f"not known: {row.reason}", *[""] * (len(head) - 2)))
        else:
            table.append((label, *_cells(row.point, original, measure)))
    return head, table


def rule_rows(result: Result) -> list[tuple[str, ...]]:
    """One row for each rule: itself, sites, choices out, forced, what it costs."""
    if result.ruled is None:
        return []
    costs = result.rule_costs or (None,) * len(result.ruled.notes)
    return [
        (
            f"`{note.rule}`",
            str(note.sites),
            str(len(note.gone)),
            str(len(note.forced)),
            note.warning or rule_cost_text(cost, result.original.cost.cycles),
        )
        for note, cost in zip(result.ruled.notes, costs, strict=True)
    ]


def rule_lines(result: Result) -> list[str]:
    """One line for each rule that did something; the others are warnings already."""
    warned = {f"`{n.rule}`" for n in result.ruled.notes if n.warning} if result.ruled else set()
    return [
        f"{rule.strip('`')}: {_choices(int(out))} out, {forced} forced; estimated cost: {cost}"
        for rule, _, out, forced, cost in rule_rows(result)
        if rule not in warned
    ]


def rule_cost_text(cost: RuleCost | None, cycles: float) -> str:
    """What a rule costs, in words; always an estimate."""
    if cost is None or cost.cycles is None or not cycles:
        return "not known"
    share = cost.cycles / cycles
    text = f"{share:.1%} of the original's cycles" if share >= 0.0005 else "less than 0.1%"
    if not cost.cycles:
        text = "nothing"
    elif cost.unfitted:
        harmless = "counts as harmless" if cost.unfitted == 1 else "count as harmless"
        text = f"at most {text} ({_choices(cost.unfitted)} not fitted: {harmless})"
    if cost.uncosted:
        counts = "counts" if cost.uncosted == 1 else "count"
        text += f" ({_choices(cost.uncosted)} not costed: {counts} as saving nothing)"
    return text


def _choices(count: int) -> str:
    return f"{count} choice{'s' * (count != 1)}"


def loss_text(loss: Loss | None) -> str:
    """A loss with its interval; ``~`` before an estimate."""
    if loss is None:
        return ""
    scale, digits = loss_scale(loss.measure), 1 if loss_scale(loss.measure) > 1 else 4
    text = f"{'' if loss.kind == 'measured' else '~'}{scale * loss.value:.{digits}f}"
    if loss.interval is not None:
        low, high = (scale * end for end in loss.interval)
        text += f" ({low:.{digits}f} to {high:.{digits}f})"
    return text


def _point_head(first: str, points: Sequence[FrontPoint], measure: str) -> tuple[str, ...]:
    kinds = sorted({p.kind for p in points})
    head = (first, f"latency ({', '.join(kinds)})", "change", "peak memory", "weights", "MACs")
    if not measure:
        return head
    counts = [x.rows for p in points for x in p.losses if x.measure == measure and x.rows]
    rows = f", {min(counts)} rows" if counts else ""
    return (*head, f"{loss_title(measure)} (95 %{rows})", "weights are")


def _cells(point: FrontPoint, original: FrontPoint, measure: str) -> tuple[str, ...]:
    cells = (
        f"{point.seconds * 1e3:.3f} ms",
        change(original.seconds, point.seconds),
        size(point.peak_bytes),
        "" if point.weight_bytes is None else size(point.weight_bytes),
        f"{point.macs / 1e6:.1f} M",
    )
    if not measure:
        return cells
    if point.lossless:
        return (*cells, "none", "the original's")
    return (*cells, loss_text(loss_by(point, measure)), _HOW[point.evaluation])


_HOW = {
    "original": "the original's",
    "zero-shot": "not made: sums of single choices",
    "single-shot": "fitted one by one",
    "multishot": "fitted together",
    "distilled": "fitted together, then trained",
}


def change(before: float | None, after: float | None) -> str:
    """Relative change in percent; ``new`` or ``gone`` where there is nothing to compare."""
    if not before:
        return "new" if after else ""
    if after is None:
        return "gone"
    return f"{100 * (after / before - 1):+.1f} %" if after != before else "="


def size(count: float) -> str:
    """Bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _cycles(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
