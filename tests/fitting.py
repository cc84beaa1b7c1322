"""Weights fitted on random rows, and how far a fitted model is from its original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fakes import TARGET
from numpy.typing import NDArray
from oracle import run

from onnxnas.block_library import BlockLibrary
from onnxnas.calibration import load_calibration
from onnxnas.fit_rows import FitRows
from onnxnas.graph import contract, from_model, to_model
from onnxnas.materialize import apply_candidate
from onnxnas.pass_contract import Pass, Why
from onnxnas.recover import Recovery
from onnxnas.sites import Candidate, SearchSpace

ROWS = np.random.default_rng(5).standard_normal((60, 6, 8, 8)).astype(np.float32)


def recovery(
    tmp_path: Path, model: onnx.ModelProto, *passes: Pass, rows: NDArray[np.float32] = ROWS
) -> Recovery:
    np.save(tmp_path / "rows.npy", rows)
    graph = from_model(model)
    sites = (site for p in passes for site in p.find_sites(graph, TARGET, Why(p.name)))
    space = SearchSpace(tuple(sites))
    calibration = load_calibration(tmp_path / "rows.npy", contract(model)[0])
    return Recovery(
        graph,
        "digest",
        space,
        {p.name: p for p in passes},
        FitRows.of(calibration),
        BlockLibrary(tmp_path / "library"),
    )


def result(
    found: Recovery, model: onnx.ModelProto, weights: Any, candidate: Candidate
) -> onnx.ModelProto:
    applied = apply_candidate(found.graph, found.space, candidate, found.passes, weights)
    return to_model(applied.graph, model, applied.provenance)


def error(model: onnx.ModelProto, other: onnx.ModelProto, rows: NDArray[np.float32]) -> float:
    """Squared error over variance on some rows."""
    (want,), (have,) = (
        zip(*(run(m, {"x": row[None]}).values() for row in rows), strict=True)
        for m in (model, other)
    )
    a, b = np.stack(want), np.stack(have)
    return float(((a - b) ** 2).mean() / a.var())


def fresh(count: int = 12) -> NDArray[np.float32]:
    """Rows that no fit has seen."""
    return np.random.default_rng(99).standard_normal((count, 6, 8, 8)).astype(np.float32)
