"""Everything that fitting weights needs, made ready; and weights that were found before."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from onnxnas.block_library import BlockLibrary
from onnxnas.calibration import Calibration
from onnxnas.distilled import trained_weights
from onnxnas.errors import UsageError
from onnxnas.fit_rows import FitRows
from onnxnas.held_out import HeldOut
from onnxnas.journal import Journal
from onnxnas.materialize import Weights
from onnxnas.prepare import Prepared
from onnxnas.recover import Recovery, values_only
from onnxnas.recovery_search import RecoverySearch
from onnxnas.search import Evaluator, Progress
from onnxnas.sites import Candidate
from onnxnas.version import __version__


def open_journal(prepared: Prepared, rows: FitRows, library: Path, seed: int) -> Journal:
    """The journal of one model, target and data; another one's lies beside it.

    Raises:
        UsageError: it cannot be written.
    """
    stored = prepared.normalised.SerializeToString(deterministic=True)
    context = {
        "tool": __version__,
        "model": hashlib.sha256(stored).hexdigest(),
        "target": json.dumps(prepared.cost_model.target.to_dict(), sort_keys=True),
        "passes": "; ".join(sorted(map(repr, prepared.passes.values()))),
        "shapes": str(sorted(prepared.input_shapes.items())),
        "data": rows.digest,
        "seed": str(seed),
    }
    digest = hashlib.sha256("\n".join(context.values()).encode()).hexdigest()[:12]
    try:
        library.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot create {library}: {error.strerror}.") from error
    return Journal(library / f"evaluations-{digest}.jsonl", context)


def fit_again(
    prepared: Prepared,
    candidate: Candidate,
    fitted: str,
    calibration: Calibration | None,
    library: Path | None,
    seed: int,
    progress: Progress | None,
) -> Weights:
    """The weights of a candidate that was found before; from the library where it has them.

    Args:
        fitted: ``alone``, ``in order`` or ``distilled``, see `onnxnas.recipe.Recipe.fitted`.

    Raises:
        UsageError: weights are to be fitted and there is too little data, or they cannot be; or
            they were distilled, and PyTorch is not installed.
    """
    decided = prepared.space.decided(candidate)
    moves = [(s.id, c.label) for s, c in decided if c.exactness != "exact"]
    if not moves:
        return {}
    if calibration is None:
        raise UsageError("Weights of this recipe are fitted on inputs: give --calibration.")
    report = progress or (lambda *_: None)
    search = recovery_search(prepared, calibration, library, seed, report)
    recovery = search.recovery
    found, refused = recovery.alone(moves) if fitted == "alone" else recovery.in_order(candidate)
    for (site_id, label), reason in refused.items():
        raise UsageError(f"The weights of {site_id}={label} cannot be fitted: {reason}.")
    weights: Weights = values_only(found)
    if fitted == "distilled":
        weights, _, _ = trained_weights(search, candidate, weights, seed)
    return weights


def recovery_search(
    prepared: Prepared,
    calibration: Calibration,
    library: Path | None,
    seed: int,
    progress: Progress,
) -> RecoverySearch:
    """Everything the search of recovered choices needs, nothing searched yet.

    Raises:
        UsageError: there are too few rows, or one cannot be read.
    """
    progress("reading the calibration data", 0, 1)
    rows = FitRows.of(calibration)
    stored = prepared.normalised.SerializeToString(deterministic=True)
    evaluator = Evaluator(
        prepared.graph,
        prepared.space,
        prepared.passes,
        prepared.cost_model,
        prepared.input_shapes,
    )
    held_out = HeldOut.of(prepared.graph, rows)
    recovery = Recovery(
        prepared.graph,
        hashlib.sha256(stored).hexdigest(),
        prepared.space,
        prepared.passes,
        rows,
        BlockLibrary(library),
        seed,
        progress,
    )
    held_out.tick = recovery.tick
    return RecoverySearch(evaluator, recovery, held_out, progress)
