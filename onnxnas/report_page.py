"""What the report for people says, in order; `onnxnas.page` writes it as Markdown or HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxnas.front_point import FrontPoint, loss_title, measure_of
from onnxnas.page import Block, Bullets, Heading, Picture, Table, Text
from onnxnas.report_tables import (
    applied_lines,
    contribution_rows,
    front_points,
    front_rows,
    rule_rows,
    summary_rows,
    top_kernels,
)

if TYPE_CHECKING:
    from onnxnas.result import Result

FRONT_PNG = "front.png"
FRONT_DARK_PNG = "front-dark.png"
_ENDED = {
    "converged": "ended when nothing more improved it",
    "budget": "ended because the time was up",
    "interrupted": "interrupted",
}


def page(result: Result, statuses: Sequence[str]) -> list[Block]:
    """The whole report.

    Args:
        statuses: of every row of the ledger.
    """
    return [*_result(result), *_alternatives(result), *_evidence(result), *_how(result, statuses)]


def _result(result: Result) -> Iterator[Block]:
    kind = result.original.cost.kind
    yield Heading(result.headline(), 1)
    yield Text(
        f"Target: **{result.target.name}** ({result.target.title}). Latency figures are "
        f"of kind *{kind}*: {result.target.notes or 'see the target card.'} "
        "The original is the cleaned input (constants folded, batch norms folded), so that "
        "clean-up does not count as a gain."
    )
    yield _table(
        ("", "original", "result", "change"), summary_rows(result.original, result.optimized)
    )
    yield Heading("What was applied")
    yield _bullets(applied_lines(result))
    yield Text(
        f"Exactness: {result.exactness}. {_asked_for(result.search)}Search: "
        f"{result.search['evaluations']} networks costed, "
        f"{_ENDED[result.search['stopped']]}."
    )
    if result.verification.resized:
        yield Text(f"**The contract changed**: {result.verification.resized}.")
    rules = rule_rows(result)
    if rules:
        yield Heading("Rules")
        yield Text(
            "What a rule costs is an estimate: the cycles that the best known without it would "
            "save more, sums of single choices on either side."
        )
        yield _table(("rule", "sites", "choices out", "forced", "costs"), rules)


def _asked_for(search: Mapping[str, Any]) -> str:
    if "objective" not in search:
        return ""
    limits = [f"{metric} {limit}" for metric, limit in search.get("limits", {}).items()]
    return (
        f"To be small: {', then '.join(search['objective'])}; limits: "
        f"{', '.join(limits) or 'none'}. "
    )


def _alternatives(result: Result) -> Iterator[Block]:
    points = front_points(result)
    if points:
        yield Heading("What could be had instead")
        yield Text(
            "Networks on the front: none that was looked at costs less and loses less. Each named "
            "one was compiled whole; intervals are 95 %."
            + (" They are in `candidates/`." if result.candidates else "")
        )
        yield _table(*front_rows(points))
        yield Picture(FRONT_PNG, front_alt(points, x_axis(result)), FRONT_DARK_PNG)
    if result.contributions:
        original = FrontPoint.unchanged(result.original.cost)
        yield Heading("What each kind of rewrite contributes")
        yield Text(
            "Each row is a network of its own, compiled whole and judged on the same rows. Nothing "
            "was fitted for it: every choice has the weights that were fitted for it alone."
        )
        yield _table(*contribution_rows(result.contributions, original))
    elif (why := _not_taken_apart(result)) is not None:
        yield Heading("What each kind of rewrite contributes")
        yield Text(f"Not looked at: {why}.")


def _not_taken_apart(result: Result) -> str | None:
    """Why there is nothing about contributions; None where there is nothing to say."""
    kinds = {site.partition("@")[0] for site, _ in result.recipe.candidate.decisions}
    if len(kinds) < 2 or "effort" not in result.search:
        return None
    if result.search["stopped"] != "converged":
        return f"the search was stopped ({result.search['stopped']})"
    return f"effort is {result.search['effort']}"


def x_axis(result: Result) -> str:
    """What a picture of the front shows from left to right: the first cost to be small."""
    asked = [m for m in result.search.get("objective", ()) if m != "quality"]
    return str(next(iter(asked), "latency"))


def front_alt(points: Sequence[FrontPoint], x: str) -> str:
    """What the picture of a front shows, in words."""
    chosen = next((p.label for p in points if p.chosen and p.label), "")
    measure = measure_of(points)
    other = "weights" if x == "peak-memory" else "peak memory"
    return (
        f"{x.replace('-', ' ').capitalize()} against {loss_title(measure) if measure else other}: "
        f"the original and {len(points) - 1} other networks, latency from "
        f"{min(p.seconds for p in points) * 1e3:.3f} ms to "
        f"{max(p.seconds for p in points) * 1e3:.3f} ms"
        + (f"; {chosen} is the result" if chosen else "")
        + ". The table above holds the figures."
    )


def _evidence(result: Result) -> Iterator[Block]:
    yield Heading("Kernels that take longest (cycles)")
    yield _table(
        ("kernel (output tensor)", "original", "result", "change"),
        top_kernels(result.original.cost, result.optimized.cost, 10),
    )
    yield Heading("Verification")
    yield _bullets(
        [
            *result.verification.lines(),
            *(f"task metric, measured: {quality}" for quality in result.quality),
        ]
    )
    yield from _fitted_weights(result.search.get("recovery"))


def _how(result: Result, statuses: Sequence[str]) -> Iterator[Block]:
    yield from _search_cost(result.search)
    counts = sorted(Counter(statuses).items())
    yield Heading("Ledger")
    yield Text(
        f"Of {len(statuses) - len(result.misses)} choices and {len(result.misses)} declined "
        f"places: {', '.join(f'{n} {s}' for s, n in counts) or 'none'}. Every row with its reason "
        "is in `ledger.csv`."
    )
    yield Heading("Normalisation")
    yield _bullets(result.normalisation or ("nothing to clean",))
    if result.warnings:
        yield Heading("Warnings")
        yield _bullets(result.warnings)


def _search_cost(search: Mapping[str, Any]) -> Iterator[Block]:
    """How long the search took, phase by phase where it says so."""
    if "seconds" not in search:
        return
    yield Heading("What the search cost")
    cpu, looked_up = search.get("cpu_seconds"), search.get("looked_up")
    yield Text(
        f"{search['evaluations']} networks costed"
        + (f" and {looked_up:,} looked up in tables" if looked_up else "")
        + f" in {search['seconds']:.1f} s"
        + (f" ({cpu / 60:.1f} CPU minutes)" if cpu is not None else "")
        + f", by {search['strategy']}, seed {search['seed']}, of a space of "
        f"{search.get('space_size', 0):.3g} combinations."
    )
    phases = search.get("phases")
    if phases:
        rows = [
            (
                str(p["phase"]),
                f"{p['seconds']:.1f} s",
                f"{p['cpu_seconds']:.1f} s" if "cpu_seconds" in p else "",
                str(p.get("evaluations", "")),
            )
            for p in phases
        ]
        yield _table(("phase", "time", "CPU time", "networks"), rows)


def _fitted_weights(recovery: Mapping[str, Any] | None) -> Iterator[Block]:
    """The candidates whose weights were fitted, and how far they are from the original."""
    if recovery is None:
        return
    bound = recovery["bound"]
    yield Heading("Fitted weights")
    yield Text(
        f"Fitted on {recovery['rows_fitted_on']} rows without labels, tuned by "
        f"{recovery['rows_tuned_by']} and judged on "
        f"{recovery['rows_held_out']} others. Divergence is {recovery['measure']}; the limit of "
        f"{bound['max_drop']:g} binds on the {bound['on']}."
    )
    rows = [
        (
            f"{-f['saving']:+.1%}",
            f"{f['divergence']:.4f} +- {f['divergence_standard_error']:.4f}",
            "no classes"
            if f["agreement"] is None
            else f"{f['agreement']:.1%} +- {f['agreement_standard_error']:.1%}",
            f"{f['drop']:+.4f}",
            "chosen" if f["chosen"] else "",
        )
        for f in recovery["finalists"]
    ]
    yield _table(("cycles", "divergence", "agreement", "drop", ""), rows)
    yield from _distilled(recovery.get("distilled"))
    yield from _zero_shot(recovery.get("zero_shot"))


def _distilled(found: Mapping[str, Any] | None) -> Iterator[Block]:
    """What training whole finalists gained."""
    if found is None:
        return
    yield Heading("Distilled finalists")
    if "unavailable" in found:
        yield Text(f"None: {found['reason']}.")
        return
    yield Text(
        "All weights trained towards the original's answers; what is no nearer to them on rows "
        f"that training did not see is not kept. Divergence is {found['measure']}."
        + (f" Then it ended: {found['ended']}." if found["ended"] else "")
    )
    rows = [
        (
            "the result" if n["chosen"] else "kept" if n["kept"] else "not kept",
            f"{n['before']['divergence']:.4f} +- {n['before']['divergence_standard_error']:.4f}",
            f"{n['after']['divergence']:.4f} +- {n['after']['divergence_standard_error']:.4f}",
            f"{n['steps']} on {n['device']}",
            f"`{n['candidate']}`",
        )
        for n in found["networks"]
    ]
    yield _table(("", "before", "after", "steps", "network"), rows)


def _zero_shot(found: Mapping[str, Any] | None) -> Iterator[Block]:
    """What scores of structures say about this model's own candidates."""
    if found is None:
        return
    yield Heading("Zero-shot scores")
    if "unavailable" in found:
        yield Text(f"None was used: {found['reason']}.")
        return
    yield Text(
        "Scores of a structure with random weights, and whether they rank this search's own "
        f"candidates (compared: {found['candidates']} {found['compared']}) by their divergence: "
        "rank correlation with less of it, latency held fixed. What does not beat all baselines, "
        "whichever candidate is left out, or only by what chance gives, is not used."
    )
    rows = [
        (
            s["score"],
            f"{s['rank_correlation']:+.2f}" if "rank_correlation" in s else "",
            "yes" if s["used"] else "no",
            s["reason"],
        )
        for s in found["scores"]
    ]
    yield _table(("score", "rank correlation", "used", "because"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table(tuple(head), tuple(map(tuple, rows)))


def _bullets(items: Sequence[str]) -> Bullets:
    return Bullets(tuple(items))
