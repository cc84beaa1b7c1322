"""The main job, start to end: a model and a target in; a rewritten, verified model and a report out.

    load -> normalise -> sites -> search on costs -> rewrite -> verify -> write

`optimize`, `apply`, `predict` and `inspect` share the first half (`prepare`) and the first two the
second (`finish`), so a recipe replays to the bytes the search wrote.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxnas import graph as graphs
from onnxnas import report
from onnxnas.calibration import Calibration
from onnxnas.cost import Cost, CostModel, Target
from onnxnas.errors import UsageError, VerificationError
from onnxnas.graph import Port
from onnxnas.loading import load_model, save_model
from onnxnas.materialize import apply_candidate
from onnxnas.normalise import normalise
from onnxnas.pass_contract import Miss, Pass, Why
from onnxnas.plugins import choose_passes, load_passes, load_target
from onnxnas.recipe import Recipe, read_recipe
from onnxnas.search import Evaluator, LedgerRow, Progress, Trial, greedy
from onnxnas.sites import Candidate, SearchSpace, Site
from onnxnas.verify import Verification, find_guilty, verify
from onnxnas.version import __version__

DEFAULT_TARGET = "ethos-u55-128"


@dataclass(frozen=True)
class Prepared:
    """A model ready to be costed and searched on one target.

    Attributes:
        source: the model as the user gave it.
        name: its path, or what to call it.
        sha256: of the file, or of the serialised model.
        normalised: the cleaned model, the baseline of every claim.
        steps: what cleaning did.
        graph: `gs.Graph` of the cleaned model.
        space: every site of the chosen passes.
        misses: places that were declined, with reasons.
        input_shapes: static shape of every input, for costing and verification.
    """

    source: Any
    name: str
    sha256: str
    normalised: Any
    steps: tuple[str, ...]
    graph: Any
    passes: Mapping[str, Pass]
    space: SearchSpace
    misses: tuple[Miss, ...]
    cost_model: CostModel
    input_shapes: Mapping[str, tuple[int, ...]]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """One network and its figures.

    Attributes:
        parameters: number of constant floating-point values.
        operators: node count per operator.
    """

    cost: Cost
    parameters: int
    operators: Mapping[str, int]


@dataclass(frozen=True)
class Result:
    """What came out; `to_dict()` is the JSON report.

    Attributes:
        model: the `onnx.ModelProto` to deploy.
        original: figures of the cleaned input, the baseline of every claim.
        optimized: figures of `model`, from a whole-network run of the cost source.
        ledger: one row per site and choice.
        search: strategy, seed, evaluations, seconds, why it stopped.
    """

    model: Any
    source: str
    source_sha256: str
    target: Target
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    input_shapes: Mapping[str, tuple[int, ...]]
    normalisation: tuple[str, ...]
    original: Network
    optimized: Network
    recipe: Recipe
    verification: Verification
    ledger: tuple[LedgerRow, ...] = ()
    misses: tuple[Miss, ...] = ()
    trials: tuple[Trial, ...] = ()
    search: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    version: str = __version__

    @property
    def status(self) -> str:
        """``improved``, or ``unchanged`` where nothing beat the cleaned original."""
        return "improved" if self.recipe.candidate.decisions else "unchanged"

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the search."""
        return self.search.get("stopped") == "interrupted"

    @property
    def exactness(self) -> str:
        """The weakest class among the rewrites."""
        classes = set(self.recipe.exactness.values())
        return next((c for c in ("retrain", "recovered") if c in classes), "exact")

    def headline(self) -> str:
        """One line: latency before and after, and what kind of figure it is."""
        before, after = self.original.cost, self.optimized.cost
        return (
            f"{Path(self.source).name} on {self.target.name}: "
            f"{before.seconds * 1e3:.3f} ms -> {after.seconds * 1e3:.3f} ms "
            f"({report.change(before.seconds, after.seconds)}, {after.kind})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, valid under `onnxnas.report.schema()`."""
        return report.as_dict(self)


def prepare(
    model: str | Path | Any,
    target: str = DEFAULT_TARGET,
    *,
    passes: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
    exact_only: bool = False,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Prepared:
    """Load and clean a model, load the target, find every site.

    Args:
        model: path of an ONNX file, or an `onnx.ModelProto`.
        target: name of an installed target.
        passes: only these; None means all.
        skip: not these.
        exact_only: leave out choices that are not exact.
        input_shapes: fixes dynamic dimensions for costing and verification.

    Raises:
        UsageError: the file, the target, a pass name or a shape cannot be used.
        UnsupportedError: the model holds something that cannot be carried through.
    """
    cost_model = load_target(target)
    known, broken = load_passes()
    chosen = choose_passes(known, passes, skip)
    if isinstance(model, (str, Path)):
        source, name = load_model(model), str(model)
        digest = hashlib.sha256(Path(model).read_bytes()).hexdigest()
    else:
        source, name = model, model.graph.name or "model"
        digest = hashlib.sha256(source.SerializeToString(deterministic=True)).hexdigest()
    inputs, _ = graphs.contract(source)
    shapes = dict(input_shapes or {})
    if unknown := shapes.keys() - {p.name for p in inputs}:
        raise UsageError(f"The model has no input {sorted(unknown)[0]!r}.")
    cleaned = normalise(source, shapes)
    graph = graphs.from_model(cleaned.model)
    shapes = {t.name: graphs.resolve_shape(t, shapes) for t in graph.inputs}
    sites: list[Site] = []
    misses: list[Miss] = []
    for pass_ in chosen:
        why = Why(pass_.name)
        if graph.opset < pass_.min_opset:
            why.miss("", f"needs opset {pass_.min_opset}, the model has {graph.opset}")
        else:
            sites += pass_.find_sites(graph, cost_model.target, why)
        misses += why.misses
    if exact_only:
        sites = [s for s in map(_only_exact, sites) if s.choices]
    return Prepared(
        source,
        name,
        digest,
        cleaned.model,
        cleaned.steps,
        graph,
        {p.name: p for p in chosen},
        SearchSpace(tuple(sites)),
        tuple(misses),
        cost_model,
        shapes,
        tuple(f"Pass {b.name!r} of {b.owner} cannot be loaded: {b.reason}" for b in broken),
    )


def optimize(
    model: str | Path | Any,
    target: str = DEFAULT_TARGET,
    *,
    passes: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
    exact_only: bool = False,
    calibration: Calibration | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    budget_s: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Find the rewrites that make a model fastest on a target, apply and verify them.

    Args:
        model: path of an ONNX file, or an `onnx.ModelProto`.
        target: name of an installed target.
        passes: only these; None means all.
        skip: not these.
        exact_only: leave out choices that are not exact.
        calibration: inputs to verify on besides random ones.
        input_shapes: fixes dynamic dimensions for costing and verification; the exported
            model keeps them dynamic.
        budget_s: seconds for the search; None means until it converges.
        seed: of the random inputs used to verify.
        progress: called with (what, done, total).

    Raises:
        UsageError: the file, the target, a pass name or a shape cannot be used.
        UnsupportedError: the target can run nothing of it.
        VerificationError: a rewrite changed the outputs; names it.
    """
    report_progress = progress or (lambda *_: None)
    report_progress("reading and cleaning the model", 0, 1)
    prepared = prepare(
        model, target, passes=passes, skip=skip, exact_only=exact_only, input_shapes=input_shapes
    )
    start = time.monotonic()
    evaluator = Evaluator(
        prepared.graph,
        prepared.space,
        prepared.passes,
        prepared.cost_model,
        prepared.input_shapes,
    )
    found = greedy(evaluator, budget_s=budget_s, progress=progress)
    return finish(
        prepared,
        found.best.candidate,
        calibration=calibration,
        seed=seed,
        progress=progress,
        ledger=found.ledger,
        trials=found.trials,
        search={
            "strategy": "greedy",
            "seed": seed,
            "budget_s": budget_s,
            "evaluations": len(found.trials),
            "space_size": float(prepared.space.size()),
            "seconds": round(time.monotonic() - start, 3),
            "stopped": found.stopped,
        },
    )


def apply(
    model: str | Path | Any,
    recipe: Recipe | str | Path,
    *,
    calibration: Calibration | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Replay a recipe on a model: no search, the same bytes as when it was found.

    Raises:
        UsageError: the recipe cannot be read, or a site of it is not in this model.
        VerificationError: a rewrite changed the outputs; names it.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe))
    prepared = prepare(model, recipe.target, input_shapes=input_shapes or recipe.input_shapes)
    return finish(
        prepared,
        recipe.candidate,
        calibration=calibration,
        seed=seed,
        progress=progress,
        search={"strategy": "recipe", "seed": seed, "evaluations": 0, "stopped": "converged"},
    )


def predict(
    model: str | Path | Any,
    target: str = DEFAULT_TARGET,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[Prepared, Network]:
    """Cost a cleaned model on a target, nothing rewritten."""
    prepared = prepare(model, target, passes=[], input_shapes=input_shapes)
    return prepared, measure(prepared, prepared.graph)


def measure(prepared: Prepared, graph: Any) -> Network:
    """Cost a graph as a whole network, and count what is in it."""
    view = graphs.static_view(graph, prepared.input_shapes)
    cost = prepared.cost_model.cost(view)
    operators = Counter(node.op for node in graph.nodes)
    return Network(cost, graphs.count_parameters(graph), dict(sorted(operators.items())))


def finish(
    prepared: Prepared,
    candidate: Candidate,
    *,
    search: Mapping[str, Any],
    calibration: Calibration | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    ledger: tuple[LedgerRow, ...] = (),
    trials: tuple[Trial, ...] = (),
) -> Result:
    """Rewrite, verify against the original, and cost what will really be written.

    Raises:
        VerificationError: the outputs differ; the guilty rewrite is named.
    """
    report_progress = progress or (lambda *_: None)
    report_progress("checking the result against the original", 0, 1)
    decided = prepared.space.decided(candidate)
    recipe = Recipe(
        prepared.cost_model.target.name,
        candidate,
        prepared.input_shapes,
        {site.id: choice.exactness for site, choice in decided},
        f"onnxnas {__version__}",
        prepared.sha256,
    )
    model = build(prepared, candidate, recipe)
    verification = _verify(prepared, model, calibration, seed)
    if not verification.ok:
        raise VerificationError(_blame(prepared, candidate, recipe, verification, seed))
    report_progress("costing the result", 0, 1)
    original = measure(prepared, prepared.graph)
    optimized = measure(prepared, graphs.from_model(model))
    inputs, outputs = graphs.contract(prepared.source)
    report_progress("costing the result", 1, 1)
    return Result(
        model,
        prepared.name,
        prepared.sha256,
        prepared.cost_model.target,
        inputs,
        outputs,
        prepared.input_shapes,
        prepared.steps,
        original,
        optimized,
        recipe,
        verification,
        ledger,
        prepared.misses,
        trials,
        search,
        (*prepared.warnings, *_unavailable(original.cost)),
    )


def build(prepared: Prepared, candidate: Candidate, recipe: Recipe) -> Any:
    """The `onnx.ModelProto` of a candidate; the same bytes every time."""
    applied = apply_candidate(prepared.graph, prepared.space, candidate, prepared.passes)
    model = graphs.to_model(applied.graph, prepared.normalised, applied.provenance)
    graphs.set_metadata(
        model,
        {
            "onnxnas.version": __version__,
            "onnxnas.target": recipe.target,
            "onnxnas.recipe": str(candidate),
            "onnxnas.exactness": ",".join(sorted(set(recipe.exactness.values()))) or "exact",
        },
    )
    return model


def write(result: Result, output: Path, run_dir: Path) -> None:
    """Write the model and the run folder's reports; each file whole or not at all.

    Raises:
        UsageError: a path cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot create the run folder {run_dir}: {error.strerror}.") from error
    for name, text in report.files_of(result).items():
        write_text(run_dir / name, text)
    save_model(result.model, output)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it.

    Raises:
        UsageError: the path cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _verify(
    prepared: Prepared, model: Any, calibration: Calibration | None, seed: int
) -> Verification:
    return verify(
        prepared.source,
        model,
        input_shapes=prepared.input_shapes,
        calibration=calibration,
        seed=seed,
    )


def _blame(
    prepared: Prepared,
    candidate: Candidate,
    recipe: Recipe,
    verification: Verification,
    seed: int,
) -> str:
    """One sentence that names the first rewrite with which the outputs differ."""
    order = [(s.id, c.label) for s, c in prepared.space.decided(candidate)]
    guilty = find_guilty(
        order,
        lambda decisions: build(prepared, Candidate.of(dict(decisions)), recipe),
        lambda model: _verify(prepared, model, None, seed).ok,
    )
    what = "the cleaned model" if guilty is None else f"{guilty[0]}={guilty[1]}"
    return (
        f"The result does not do what the original does ({verification.failure()}); the first "
        f"guilty rewrite is {what}: leave it out with --skip, nothing was written."
    )


def _unavailable(cost: Cost) -> tuple[str, ...]:
    return tuple(
        f"{k.op} ({k.output}) has no cost on {cost.target}: {k.reason}; it is in no total"
        for k in cost.unavailable
    )


def _only_exact(site: Site) -> Site:
    exact = tuple(c for c in site.choices if c.exactness == "exact")
    return Site(site.pass_name, site.tensor, exact, site.claims, site.params)
