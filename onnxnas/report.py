"""What was done, in the forms people and programs read: JSON, Markdown, CSV, a summary table.

The JSON follows `report.schema.json`. Every metric is ``{value, unit, kind}`` or
``{unavailable, reason}``; there are no placeholder values.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from onnxnas.cost import Cost

if TYPE_CHECKING:
    from onnxnas.evaluate import Measured
    from onnxnas.prepare import Network
    from onnxnas.quality import Quality
    from onnxnas.result import Result

SCHEMA_VERSION = "1.0"
LEDGER_COLUMNS = ("pass", "tensor", "choice", "status", "reason", "exactness", "delta_cycles")
KERNEL_COLUMNS = ("output", "op", "cycles", "share", "macs", "kind", "reason")

Row = tuple[str, str, str, str]
"""Metric, original, result, change."""


def schema() -> dict[str, Any]:
    """The published JSON Schema of the report."""
    text = files("onnxnas").joinpath("report.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def as_dict(result: Result) -> dict[str, Any]:
    """The whole report as plain JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "onnxnas", "version": result.version},
        "status": result.status,
        "target": result.target.to_dict(),
        "model": {
            "path": result.source,
            "sha256": result.source_sha256,
            "inputs": [_port(p) for p in result.inputs],
            "outputs": [_port(p) for p in result.outputs],
            "costed_at": {name: list(shape) for name, shape in result.input_shapes.items()},
        },
        "normalisation": list(result.normalisation),
        "original": network_dict(result.original),
        "result": network_dict(result.optimized),
        "recipe": str(result.recipe.candidate),
        "exactness": result.exactness,
        "rewrites": [
            {"site": site, "choice": choice, "exactness": result.recipe.exactness[site]}
            for site, choice in result.recipe.candidate.decisions
        ],
        "verification": result.verification.to_dict(),
        "quality": [quality_dict(q) for q in result.quality],
        "search": dict(result.search),
        "ledger": [dict(zip(LEDGER_COLUMNS, row, strict=True)) for row in ledger_rows(result)],
        "warnings": list(result.warnings),
    }


def quality_dict(quality: Quality) -> dict[str, Any]:
    """A task metric before and after."""
    drop: dict[str, Any] = {"value": quality.drop, "unit": "metric", "kind": "measured"}
    if quality.interval is not None:
        drop["interval"] = list(quality.interval)
    return {
        "metric": quality.original.name,
        "rows": quality.original.rows,
        "original": measured_dict(quality.original),
        "result": measured_dict(quality.result),
        "drop": drop,
    }


def measured_dict(measured: Measured) -> dict[str, Any]:
    """One figure of a task metric, with its interval where rows could be resampled."""
    figure = _metric(measured.value, "metric", "measured")
    if measured.interval is not None:
        figure["interval"] = list(measured.interval)
    return figure


def network_dict(network: Network) -> dict[str, Any]:
    """Metrics and kernels of one network."""
    return {
        "metrics": metrics(network),
        "operators": dict(network.operators),
        "kernels": kernel_dicts(network.cost),
    }


def metrics(network: Network) -> dict[str, Any]:
    """The figures of one network, each with its unit and where it comes from."""
    cost = network.cost
    peak = {
        f"peak_memory_{name}": _metric(size, "bytes", cost.kind)
        for name, size in cost.peak_bytes.items()
    }
    weights = (
        _metric(cost.weight_bytes, "bytes", cost.kind)
        if cost.weight_bytes is not None
        else {"unavailable": True, "reason": "the cost source does not say"}
    )
    return {
        "latency": _metric(cost.seconds, "s", cost.kind),
        "cycles": _metric(cost.cycles, "cycles", cost.kind),
        **peak,
        "encoded_weights": weights,
        "macs": _metric(cost.macs, "MAC", "exact"),
        "parameters": _metric(network.parameters, "values", "exact"),
        "operators": _metric(sum(network.operators.values()), "nodes", "exact"),
    }


def kernel_dicts(cost: Cost) -> list[dict[str, Any]]:
    """One row per kernel, in execution order; `share` is of the network's cycles."""
    rows = []
    for kernel in cost.kernels:
        row: dict[str, Any] = {"output": kernel.output, "op": kernel.op, "macs": kernel.macs}
        if kernel.cycles is None:
            row |= {"unavailable": True, "reason": kernel.reason}
        else:
            share = kernel.cycles / cost.cycles if cost.cycles else 0.0
            row |= {"cycles": kernel.cycles, "share": round(share, 6), "kind": cost.kind}
        rows.append(row)
    return rows


def kernels_csv(cost: Cost) -> str:
    """The per-kernel table as CSV; unavailable figures are empty, with their reason."""
    return _csv(
        KERNEL_COLUMNS, ([row.get(c, "") for c in KERNEL_COLUMNS] for row in kernel_dicts(cost))
    )


def ledger_csv(result: Result) -> str:
    """One row per site and choice, and per declined place, as CSV."""
    return _csv(LEDGER_COLUMNS, ledger_rows(result))


def ledger_rows(result: Result) -> list[tuple[Any, ...]]:
    """The ledger in the order of `LEDGER_COLUMNS`; declined places come last."""
    rows: list[tuple[Any, ...]] = [
        (r.pass_name, r.tensor, r.choice, r.status, r.reason, r.exactness, r.delta_cycles)
        for r in result.ledger
    ]
    return rows + [
        (m.pass_name, m.tensor, "", "impossible", m.reason, "", None) for m in result.misses
    ]


def trials_jsonl(result: Result) -> str:
    """Every candidate that was looked at, one JSON object a line."""
    lines = []
    for trial in result.trials:
        row: dict[str, Any] = {"candidate": str(trial.candidate)}
        if trial.cost is None:
            row |= {"unavailable": True, "reason": trial.reason}
        else:
            row |= {
                "cycles": trial.cost.cycles,
                "peak_bytes": dict(trial.cost.peak_bytes),
                "encoded_weights": trial.cost.weight_bytes,
                "kind": trial.cost.kind,
            }
        lines.append(json.dumps(row, sort_keys=True))
    return "\n".join(lines) + "\n" if lines else ""


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
    """What was applied where, one line per kind of rewrite and choice."""
    counts: Counter[tuple[str, str]] = Counter()
    for site, choice in result.recipe.candidate.decisions:
        counts[site.split("@", 1)[0], choice] += 1
    return [
        f"{name}: {choice} at {n} site{'s' if n > 1 else ''}"
        for (name, choice), n in sorted(counts.items())
    ]


def markdown(result: Result) -> str:
    """The report for people."""
    kind = result.original.cost.kind
    out = [
        f"# {result.headline()}",
        "",
        f"Target: **{result.target.name}** ({result.target.title}). Latency figures are "
        f"of kind *{kind}*: {result.target.notes or 'see the target card.'}",
        "The original is the cleaned input (constants folded, batch norms folded), so that "
        "clean-up does not count as a gain.",
        "",
        *_table(
            ("", "original", "result", "change"), summary_rows(result.original, result.optimized)
        ),
        "",
        "## What was applied",
        "",
        *([f"- {line}" for line in applied_lines(result)] or ["- nothing: no choice pays here"]),
        "",
        f"Exactness: {result.exactness}. Search: {result.search['evaluations']} networks costed, "
        f"stopped because {result.search['stopped']}.",
        "",
        "## Kernels that take longest (cycles)",
        "",
        *_table(
            ("kernel (output tensor)", "original", "result", "change"),
            top_kernels(result.original.cost, result.optimized.cost, 10),
        ),
        "",
        "## Verification",
        "",
        *(f"- {line}" for line in result.verification.lines()),
        *(f"- task metric, measured: {quality}" for quality in result.quality),
        "",
        *_fitted_weights(result.search.get("recovery")),
        "## Ledger",
        "",
        f"Of {len(result.ledger)} choices and {len(result.misses)} declined places: "
        + (", ".join(f"{n} {s}" for s, n in _ledger_counts(result).items()) or "none")
        + ". Every row with its reason is in `ledger.csv`.",
        "",
        "## Normalisation",
        "",
        *(f"- {step}" for step in result.normalisation),
        *(["", "## Warnings", "", *(f"- {w}" for w in result.warnings)] if result.warnings else []),
    ]
    return "\n".join(out) + "\n"


def _fitted_weights(recovery: Mapping[str, Any] | None) -> list[str]:
    """The candidates whose weights were fitted, and how far they are from the original."""
    if recovery is None:
        return []
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
    bound = recovery["bound"]
    return [
        "## Fitted weights",
        "",
        f"Fitted on {recovery['rows_fitted_on']} rows without labels, tuned by "
        f"{recovery['rows_tuned_by']} and judged on "
        f"{recovery['rows_held_out']} others. Divergence is {recovery['measure']}; the limit of "
        f"{bound['max_drop']:g} binds on the {bound['on']}.",
        "",
        *_table(("cycles", "divergence", "agreement", "drop", ""), rows),
        "",
    ]


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


def _ledger_counts(result: Result) -> dict[str, int]:
    return dict(sorted(Counter(str(row[3]) for row in ledger_rows(result)).items()))


def _cycles(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _metric(value: float, unit: str, kind: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "kind": kind}


def _port(port: Any) -> dict[str, Any]:
    shape = None if port.shape is None else list(port.shape)
    return {"name": port.name, "dtype": port.dtype, "shape": shape}


def _table(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return lines + ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]


def _csv(columns: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def files_of(result: Result) -> Mapping[str, str]:
    """The text files of a run folder, by name."""
    return {
        "recipe.toml": result.recipe.to_toml(),
        "report.json": json.dumps(as_dict(result), indent=2) + "\n",
        "report.md": markdown(result),
        "trials.jsonl": trials_jsonl(result),
        "ledger.csv": ledger_csv(result),
    }
