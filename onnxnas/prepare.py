"""A model made ready: read, cleaned, its target loaded, every place to rewrite found."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxnas import graph as graphs
from onnxnas.arrays import check_device
from onnxnas.cost import Cost, CostModel
from onnxnas.errors import UsageError
from onnxnas.foreign import unchecked_tensors
from onnxnas.loading import external_files, load_model
from onnxnas.materialize import own_sizes
from onnxnas.normalise import Normalised, normalise
from onnxnas.pass_contract import Miss, Pass, Why
from onnxnas.plugins import choose_passes, load_passes, load_target
from onnxnas.rule_file import read_rules
from onnxnas.rules import Ruled, apply_rules
from onnxnas.sites import SearchSpace, Site

DEFAULT_TARGET = "ethos-u55-128"
_UNCHECKED = "behind an operator that onnxruntime does not know: the result could not be checked"


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
        external: the file has its weights in another file, and so has the result.
        ruled: what the user's rules made of the space, which is `ruled.space`; None without any.
        input_resize: the result may have inputs and output maps of other sizes.
        device: of PyTorch, which then makes gradient steps; empty for numpy.
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
    external: bool = False
    ruled: Ruled | None = None
    input_resize: bool = False
    device: str = ""

    @property
    def every_site(self) -> SearchSpace:
        """Also what rules took out: a place is told from others by all that are like it."""
        return self.space if self.ruled is None else self.ruled.before


def prepare(
    model: str | Path | Any,
    target: str = DEFAULT_TARGET,
    *,
    passes: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
    exact_only: bool = False,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    rules: Path | None = None,
    clean: bool = True,
    input_resize: bool = False,
    device: str = "",
) -> Prepared:
    """Load and clean a model, load the target, find every site.

    Args:
        model: path of an ONNX file, or an `onnx.ModelProto`.
        target: name of an installed target.
        passes: only these; None means all.
        skip: not these.
        exact_only: leave out choices that are not exact.
        input_shapes: fixes dynamic dimensions for costing and verification.
        rules: file of what to leave out, force or prefer, see `onnxnas.rule_file`.
        clean: False takes the model exactly as it is.
        input_resize: the result may have inputs and output maps of other sizes.
        device: of PyTorch, e.g. ``cuda``, for gradient steps, which are then more; empty for numpy.

    Raises:
        UsageError: the file, the target, a pass name, a shape, a rule or the device cannot be used.
        UnsupportedError: the model holds something that cannot be carried through.
    """
    cost_model = load_target(target)
    known, broken = load_passes()
    chosen = choose_passes(known, passes, skip)
    if input_resize:
        chosen = [p.for_new_contract() for p in chosen]
    if device:
        check_device(device)
        chosen = [p.on_device(device) for p in chosen]
    rules_read = () if rules is None else read_rules(rules, known)
    if isinstance(model, (str, Path)):
        source, name, external = load_model(model), str(model), bool(external_files(model))
        digest = hashlib.sha256(Path(model).read_bytes()).hexdigest()
    else:
        source, name, external = model, model.graph.name or "model", False
        digest = hashlib.sha256(source.SerializeToString(deterministic=True)).hexdigest()
    inputs, _ = graphs.contract(source)
    shapes = dict(input_shapes or {})
    if unknown := shapes.keys() - {p.name for p in inputs}:
        raise UsageError(f"The model has no input {sorted(unknown)[0]!r}.")
    cleaned = normalise(source, shapes) if clean else Normalised(source, ("not cleaned",))
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
    if unchecked := unchecked_tensors(source, shapes):
        misses += [Miss(s.pass_name, s.tensor, _UNCHECKED) for s in sites if s.tensors & unchecked]
        sites = [s for s in sites if not s.tensors & unchecked]
    if exact_only:
        sites = [s for s in map(_only_exact, sites) if s.choices]
    space, ruled = SearchSpace(tuple(sites)), None
    if rules_read:
        view = graphs.static_view(graph, shapes)
        ruled = apply_rules(rules_read, space, view, lambda: cost_model.cost(view))
    return Prepared(
        source,
        name,
        digest,
        cleaned.model,
        cleaned.steps,
        graph,
        {p.name: p for p in chosen},
        space if ruled is None else ruled.space,
        tuple(misses),
        cost_model,
        shapes,
        (
            *cost_model.caveats(),
            *(f"Pass {b.name!r} of {b.owner} cannot be loaded: {b.reason}" for b in broken),
            *(ruled.warnings if ruled else ()),
        ),
        external,
        ruled,
        input_resize,
        device,
    )


def measure(prepared: Prepared, graph: Any) -> Network:
    """Cost a graph as a whole network, and count what is in it."""
    view = graphs.static_view(graph, own_sizes(graph, prepared.input_shapes))
    cost = prepared.cost_model.cost(view)
    operators = Counter(node.op for node in graph.nodes)
    return Network(cost, graphs.count_parameters(graph), dict(sorted(operators.items())))


def _only_exact(site: Site) -> Site:
    return replace(site, choices=tuple(c for c in site.choices if c.exactness == "exact"))
