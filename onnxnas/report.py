"""What was done, in the forms programs and people read: JSON, CSV, Markdown, HTML.

The JSON follows `report.schema.json`. Every metric is ``{value, unit, kind}`` or
``{unavailable, reason}``; there are no placeholder values.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxnas.attribution import Contribution
from onnxnas.cost import Cost
from onnxnas.front_picture import draw_front
from onnxnas.front_point import FrontPoint, Loss
from onnxnas.graph import contract
from onnxnas.page import Block, to_html, to_markdown
from onnxnas.report_page import FRONT_DARK_PNG, FRONT_PNG, page, x_axis
from onnxnas.report_tables import front_points

if TYPE_CHECKING:
    from onnxnas.evaluate import Measured
    from onnxnas.prepare import Network
    from onnxnas.quality import Quality
    from onnxnas.result import Result

SCHEMA_VERSION = "1.1"
LEDGER_COLUMNS = ("pass", "tensor", "choice", "status", "reason", "exactness", "delta_cycles")
PICTURES = (FRONT_PNG, FRONT_DARK_PNG)
"""Files of a run folder that are only there where there is a front."""
KERNEL_COLUMNS = ("output", "op", "cycles", "share", "macs", "kind", "reason")


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
        "contract": _contract_dict(result),
        "rewrites": [
            {"site": site, "choice": choice, "exactness": result.recipe.exactness[site]}
            for site, choice in result.recipe.candidate.decisions
        ],
        "verification": result.verification.to_dict(),
        "quality": [quality_dict(q) for q in result.quality],
        "search": dict(result.search),
        "rules": _rule_dicts(result),
        "front": [point_dict(p) for p in front_points(result)],
        "contributions": [_contribution_dict(c) for c in result.contributions],
        "ledger": [dict(zip(LEDGER_COLUMNS, row, strict=True)) for row in ledger_rows(result)],
        "warnings": list(result.warnings),
    }


def _contract_dict(result: Result) -> dict[str, Any]:
    """Inputs and outputs of the result; the same as the original's unless they were resized."""
    inputs, outputs = contract(result.model)
    changed = (inputs, outputs) != (result.inputs, result.outputs)
    return {
        "changed": changed,
        "inputs": [_port(p) for p in inputs],
        "outputs": [_port(p) for p in outputs],
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
    found: dict[str, Any] = {
        "metrics": metrics(network),
        "operators": dict(network.operators),
        "kernels": kernel_dicts(network.cost),
    }
    if network.cost.kind == "predicted":
        found["uncovered_share"] = network.cost.uncovered_share
    if alive := network.cost.detail.get("peak_tensors"):
        found["peak_tensors"] = {memory: list(tensors) for memory, tensors in alive.items()}
    return found


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
    latency = _metric(cost.seconds, "s", cost.kind)
    cycles = _metric(cost.cycles, "cycles", cost.kind)
    if cost.interval is not None and cost.cycles:
        cycles["interval"] = list(cost.interval)
        latency["interval"] = [end * cost.seconds / cost.cycles for end in cost.interval]
    return {
        "latency": latency,
        "cycles": cycles,
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
        if kernel.interval is not None:
            row["interval"] = list(kernel.interval)
        if kernel.uncovered:
            row["uncovered"] = list(kernel.uncovered)
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
    if result.ruled is not None:
        for (site_id, label), rule in result.ruled.removed.items():
            site = result.ruled.before.site(site_id)
            exactness = site.choice(label).exactness
            rows.append((site.pass_name, site.tensor, label, "ruled out", rule, exactness, None))
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


def _metric(value: float, unit: str, kind: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "kind": kind}


def _port(port: Any) -> dict[str, Any]:
    shape = None if port.shape is None else list(port.shape)
    return {"name": port.name, "dtype": port.dtype, "shape": shape}


def _csv(columns: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def markdown(result: Result) -> str:
    """The report for people."""
    return to_markdown(_page(result))


def html(result: Result, pictures: Mapping[str, bytes]) -> str:
    """The same as one HTML file that needs nothing else."""
    return to_html(_page(result), pictures)


def _page(result: Result) -> list[Block]:
    return page(result, [str(row[3]) for row in ledger_rows(result)])


def files_of(result: Result) -> Mapping[str, bytes]:
    """The files of a run folder, by name."""
    pictures = _pictures(result)
    texts = {
        "recipe.toml": result.recipe.to_toml(),
        "report.json": json.dumps(as_dict(result), indent=2) + "\n",
        "report.md": markdown(result),
        "report.html": html(result, pictures),
        "trials.jsonl": trials_jsonl(result),
        "ledger.csv": ledger_csv(result),
    }
    return {name: text.encode() for name, text in texts.items()} | pictures


def _pictures(result: Result) -> dict[str, bytes]:
    points = front_points(result)
    if not points:
        return {}
    title = f"{Path(result.source).name} on {result.target.name}"
    x = x_axis(result)
    return {
        FRONT_PNG: draw_front(points, title, x=x),
        FRONT_DARK_PNG: draw_front(points, title, x=x, dark=True),
    }


def point_dict(point: FrontPoint) -> dict[str, Any]:
    """One network of the front."""
    weights = (
        {"unavailable": True, "reason": "the cost source does not say"}
        if point.weight_bytes is None
        else _metric(point.weight_bytes, "bytes", point.kind)
    )
    return {
        "label": point.label,
        "recipe": str(point.candidate),
        "chosen": point.chosen,
        "evaluation": point.evaluation,
        "metrics": {
            "latency": _metric(point.seconds, "s", point.kind),
            "cycles": _metric(point.cycles, "cycles", point.kind),
            "peak_memory": _metric(point.peak_bytes, "bytes", point.kind),
            "encoded_weights": weights,
            "macs": _metric(point.macs, "MAC", "exact"),
        },
        "losses": [_loss_dict(loss) for loss in point.losses],
    }


def _loss_dict(loss: Loss) -> dict[str, Any]:
    figure: dict[str, Any] = {"measure": loss.measure, "value": loss.value, "kind": loss.kind}
    if loss.interval is not None:
        figure["interval"] = list(loss.interval)
    return figure | {"rows": loss.rows}


def _contribution_dict(row: Contribution) -> dict[str, Any]:
    head = {"rewrites": row.label, "count": row.rewrites}
    if row.point is None:
        return head | {"unavailable": True, "reason": row.reason}
    return head | {"network": point_dict(row.point)}


def _rule_dicts(result: Result) -> list[dict[str, Any]]:
    if result.ruled is None:
        return []
    costs = result.rule_costs or (None,) * len(result.ruled.notes)
    return [
        {
            "rule": note.rule,
            "sites": note.sites,
            "removed": len(note.gone),
            "forced": len(note.forced),
            "warning": note.warning,
            "cost": {"unavailable": True, "reason": "nothing is known of what it took out"}
            if cost is None or cost.cycles is None
            else _metric(cost.cycles, "cycles", "estimate"),
            "unfitted": 0 if cost is None else cost.unfitted,
            "uncosted": 0 if cost is None else cost.uncosted,
        }
        for note, cost in zip(result.ruled.notes, costs, strict=True)
    ]
