"""Conformance checks any pass, cost model or strategy must meet, for authors of plug-ins.

    def test_my_pass_keeps_the_contract() -> None:
        sites = check_pass(MyPass(), model, load_target("ethos-u55-128").target)
        assert sites  # it fires on this model

All checks raise AssertionError with a sentence that names the site, the choice and the rule.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxnas.cost import Cost, CostModel, Target
from onnxnas.difference import OutputDifference
from onnxnas.errors import VerificationError
from onnxnas.graph import LazyWeight, check_model, contract, from_model, to_model
from onnxnas.materialize import Applied, apply_candidate
from onnxnas.pass_contract import Pass, Why
from onnxnas.rewriter import SiteGone
from onnxnas.runtime import Feeds, Session, sample_feeds
from onnxnas.sites import KEEP, Candidate, SearchSpace, Site
from onnxnas.strategy_checks import check_strategy as check_strategy

Runs = list[dict[str, Any]]
"""Outputs by name, of one run after another."""

_WEIGHT_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_LABEL = re.compile(r"[a-z0-9]+([-.][a-z0-9]+)*")
_PART = re.compile(r"\[\d+:\d+\]$")


def check_pass(
    pass_: Pass,
    model: Any,
    target: Target,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
) -> tuple[Site, ...]:
    """Check everything the contract of `Pass` asks for, at every site of one model.

    Args:
        pass_: the pass.
        model: `onnx.ModelProto`, valid; give it random, non-symmetric weights.
        target: the accelerator whose card the pass reads.
        input_shapes: fixes dynamic dimensions other than the first.
        seed: of the random inputs that outputs are compared on.

    Returns:
        The sites found, so that a test can say where the pass must fire.

    Raises:
        AssertionError: the pass breaks a rule.
    """
    graph = from_model(model)
    if graph.opset < pass_.min_opset:
        return ()
    before = _frozen(graph, model)
    space = _check_sites(pass_, graph, model, target)
    _require(_frozen(graph, model) == before, f"{pass_.name}: find_sites changed the graph")
    feeds = sample_feeds(contract(model)[0], input_shapes or {}, seed)
    case = _Case(pass_, model, graph, feeds, _run(model, feeds))
    for site in space:
        for choice in site.choices:
            candidate = Candidate.of({site.id: choice.label})
            case.check_structure(space, candidate)
            case.check_outputs(space, candidate)
    for candidate in _together(space):
        case.check_structure(space, candidate)
        case.check_order(space, candidate)
    _require(
        _frozen(graph, model) == before,
        f"{pass_.name}: a rewrite wrote into the original, whose arrays its copies share",
    )
    return space.sites


def check_cost_model(cost_model: CostModel, graph: Any) -> Cost:
    """Check everything the contract of `CostModel` asks for, on one network.

    Args:
        cost_model: the cost source, target included.
        graph: `gs.Graph` whose every tensor has a static shape (see `onnxnas.graph.static_view`).

    Returns:
        The cost, for further checks.

    Raises:
        AssertionError: the cost model breaks a rule.
    """
    name = cost_model.target.name
    before = _structure(graph)
    cost = cost_model.cost(graph)
    _require(cost_model.cost(graph) == cost, f"{name}: the same graph costs something else twice")
    _require(
        list(cost_model.cost_many([graph, graph])) == [cost, cost],
        f"{name}: cost_many does not equal cost",
    )
    _require(_structure(graph) == before, f"{name}: cost changed the graph")
    _require(cost.target == name, f"{name}: the cost says it is of {cost.target!r}")
    _require(cost.kind == cost_model.target.kind, f"{name}: the card and the cost differ in kind")
    _check_kernels(cost, graph)
    figures = {"cycles": cost.cycles, "seconds": cost.seconds, "macs": cost.macs}
    figures.update(cost.peak_bytes)
    for what, figure in figures.items():
        _require(
            math.isfinite(figure) and figure >= 0, f"{name}: {what} of the network is {figure}"
        )
    total = sum(k.cycles for k in cost.kernels if k.cycles is not None)
    _require(
        math.isclose(total, cost.cycles, rel_tol=1e-6),
        f"{name}: the kernels sum to {total:g} cycles, the network is said to take {cost.cycles:g}",
    )
    _require(
        math.isclose(cost.seconds * cost_model.target.clock_hz, cost.cycles, rel_tol=1e-6),
        f"{name}: {cost.seconds:g} s are not {cost.cycles:g} cycles at the target's clock",
    )
    return cost


def _check_kernels(cost: Cost, graph: Any) -> None:
    tensors = [t for kernel in cost.kernels for t in kernel.tensors]
    for kernel in cost.kernels:
        place = f"{cost.target}: kernel {kernel.output!r}"
        _require(kernel.tensors[-1:] == (kernel.output,), f"{place} does not end in its output")
        if kernel.cycles is None:
            _require(bool(kernel.reason), f"{place} has no figure and no reason why")
        else:
            _require(not kernel.reason, f"{place} has a figure and a reason why it has none")
            _require(
                math.isfinite(kernel.cycles) and kernel.cycles >= 0,
                f"{place} takes {kernel.cycles} cycles",
            )
    twice = sorted({t for t in tensors if tensors.count(t) > 1})
    _require(not twice, f"{cost.target}: counted in two kernels: {', '.join(twice)}")
    computed = {t.name for node in graph.nodes for t in node.outputs if t.name}
    unknown = sorted(set(tensors) - computed)
    _require(not unknown, f"{cost.target}: kernels of no tensor: {', '.join(unknown)}")
    forgotten = sorted(
        f"{node.outputs[0].name} ({node.op})"
        for node in graph.nodes
        if not any(t.name in tensors for t in node.outputs)
    )
    _require(not forgotten, f"{cost.target}: in no kernel, a silent zero: {', '.join(forgotten)}")


def _check_sites(pass_: Pass, graph: Any, model: Any, target: Target) -> SearchSpace:
    """The sites, after checking that they are well-formed and found again."""
    found, misses = _find(pass_, graph, target)
    again = from_model(model)
    _require(
        _find(pass_, graph, target) == (found, misses)
        and _find(pass_, again, target) == (found, misses),
        f"{pass_.name}: find_sites is not deterministic",
    )
    tensors = graph.tensors()
    ids = [site.id for site in found]
    for site in found:
        _require(site.pass_name == pass_.name, f"{site.id}: its pass is called {pass_.name!r}")
        _require(site.tensor in tensors, f"{site.id}: the graph has no such tensor")
        _require(ids.count(site.id) == 1, f"{site.id}: two sites have this id")
        _require(bool(site.choices), f"{site.id}: nothing to choose")
        _require(bool(site.claims), f"{site.id}: claims nothing, so it conflicts with nothing")
        for claim in site.claims:
            kind, _, tensor = claim.partition(":")
            whole = _PART.sub("", tensor) if kind == "channels" else tensor
            _require(
                kind in {"node", "channels", "weights"} and bool(tensors.keys() & {tensor, whole}),
                f"{site.id}: claim {claim!r} is neither node:, channels: nor weights:<tensor>",
            )
        labels = [choice.label for choice in site.choices]
        for label in labels:
            candidate = Candidate.of({site.id: label})
            _require(
                label != KEEP and labels.count(label) == 1 and bool(_LABEL.fullmatch(label)),
                f"{site.id}: label {label!r} is not a unique kebab-case word",
            )
            _require(
                Candidate.parse(str(candidate)) == candidate,
                f"{site.id}: {str(candidate)!r} does not parse back",
            )
    return SearchSpace(found)


def _find(pass_: Pass, graph: Any, target: Target) -> tuple[tuple[Site, ...], list[Any]]:
    why = Why(pass_.name)
    return tuple(pass_.find_sites(graph, target, why)), why.misses


def _together(space: SearchSpace) -> Iterator[Candidate]:
    """Each site with the next one it does not conflict with, then as many as go together."""
    everything = Candidate()
    for i, site in enumerate(space):
        alone = Candidate.of({site.id: site.choices[-1].label})
        free = (s for s in space.sites[i + 1 :] if not space.conflicts(s, alone))
        if other := next(free, None):
            yield alone.with_choice(other.id, other.choices[0].label)
        if not space.conflicts(site, everything):
            everything = everything.with_choice(site.id, site.choices[-1].label)
    if len(everything.decisions) > 2:
        yield everything


@dataclass(frozen=True)
class _Case:
    """One pass on one model.

    Attributes:
        expected: the original's outputs on `feeds`.
    """

    pass_: Pass
    model: Any
    graph: Any
    feeds: Sequence[Feeds]
    expected: Runs

    def apply(self, graph: Any, space: SearchSpace, candidate: Candidate) -> Applied:
        try:
            return apply_candidate(graph, space, candidate, {self.pass_.name: self.pass_})
        except SiteGone as gone:
            raise AssertionError(
                f"{candidate}: gone although nothing it claims was rewritten: {gone}"
            ) from gone

    def export(self, applied: Applied) -> Any:
        return applied.model(self.model)

    def check_structure(self, space: SearchSpace, candidate: Candidate) -> None:
        """Costing evaluates nothing; the model is valid; only what is declared has changed."""
        graph, read = _with_tripwires(self.graph)
        old = {t.name: t for t in graph.tensors().values() if isinstance(t, gs.Constant)}
        applied = self.apply(graph, space, candidate)
        new = [
            t
            for t in applied.graph.tensors().values()
            if isinstance(t, gs.Constant) and t.name not in old
        ]
        lazy = [t for t in new if isinstance(t._values, LazyWeight)]
        early = sorted({*read, *(t.name for t in lazy if t._values.evaluated)})
        _require(not early, f"{candidate}: rewrite evaluated weights: {', '.join(early)}")
        for tensor in lazy:
            try:
                tensor._values.load()
            except ValueError as error:
                raise AssertionError(f"{candidate}: weight {tensor.name!r}: {error}") from error
        result = self.export(applied)
        try:
            check_model(result)
        except VerificationError as error:
            raise AssertionError(f"{candidate}: {error}") from error
        _require(
            contract(result) == contract(self.model),
            f"{candidate}: inputs or outputs are no longer those of the original",
        )
        arrays = [t.values for t in old.values()]
        for tensor in new:
            _require(
                not any(np.shares_memory(tensor.values, array) for array in arrays),
                f"{candidate}: {tensor.name} shares its memory with a constant of the original",
            )
        self._check_provenance(candidate, applied, result)

    def _check_provenance(self, candidate: Candidate, applied: Applied, result: Any) -> None:
        before = {n.output[0]: _bare(n) for n in to_model(self.graph, self.model).graph.node}
        _, made = applied.delivered()
        _require(bool(made), f"{candidate}: no node was made or changed")
        for node in result.graph.node:
            if any(output in made for output in node.output):
                continue
            now, then = _bare(node), before.get(node.output[0])
            redirected = then is not None and len(now.input) == len(then.input)
            if redirected and then is not None:
                for i, (new, old) in enumerate(zip(now.input, then.input, strict=True)):
                    # A reader of a tensor that a rewrite made has not itself been changed.
                    if new != old and new in made:
                        now.input[i] = old
            _require(now == then, f"{candidate}: changed {node.output[0]!r} without saying so")

    def check_outputs(self, space: SearchSpace, candidate: Candidate) -> Runs:
        """Outputs are the original's if all choices are exact, and of the same kind if not."""
        outputs = _run(self.export(self.apply(self.graph, space, candidate)), self.feeds)
        exact = all(choice.exactness == "exact" for _, choice in space.decided(candidate))
        for found in _differences(self.expected, outputs):
            _require(found.ok or not (exact or found.problem), f"{candidate}: {found}")
        return outputs

    def check_order(self, space: SearchSpace, candidate: Candidate) -> None:
        """Sites that do not conflict give the same outputs in either order."""
        outputs = self.check_outputs(space, candidate)
        backwards = SearchSpace(tuple(reversed(space.sites)))
        for found in _differences(outputs, self.check_outputs(backwards, candidate)):
            _require(found.ok, f"{candidate}, last site first: {found}")


def _run(model: Any, feeds: Sequence[Feeds]) -> Runs:
    session = Session(model)
    return [session.run(feed) for feed in feeds]


def _differences(expected: Runs, actual: Runs) -> list[OutputDifference]:
    found = {name: OutputDifference(name) for name in expected[0]}
    for want, have in zip(expected, actual, strict=True):
        for name, difference in found.items():
            difference.add(want[name], have[name])
    return list(found.values())


def _with_tripwires(graph: Any) -> tuple[Any, list[str]]:
    """A copy whose conv and matrix weights put their names in the list when they are read."""
    guarded, read = graph.copy(), list[str]()
    for tensor in guarded.tensors().values():
        if isinstance(tensor, gs.Constant) and any(n.op in _WEIGHT_OPS for n in tensor.outputs):
            tensor._values = _tripwire(tensor.name, tensor.values, read)
    return guarded, read


def _tripwire(name: str, values: NDArray[Any], read: list[str]) -> LazyWeight:
    def compute() -> NDArray[Any]:
        read.append(name)
        return values

    return LazyWeight(values.shape, values.dtype, compute)


def _frozen(graph: Any, model: Any) -> bytes:
    """Everything a graph holds, loaded weights included."""
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant):
            _ = tensor.values  # once read, copies share the array: what a rewrite could spoil
    frozen: bytes = to_model(graph, model).SerializeToString(deterministic=True)
    return frozen


def _structure(graph: Any) -> list[Any]:
    """Nodes, attributes, connections and shapes, for a graph that has no model beside it."""
    return [
        (node.op, repr(dict(node.attrs)), _named(node.inputs), _named(node.outputs))
        for node in graph.nodes
    ]


def _named(tensors: Sequence[Any]) -> list[tuple[str, tuple[Any, ...] | None]]:
    return [(t.name, None if t.shape is None else tuple(t.shape)) for t in tensors]


def _bare(node: Any) -> Any:
    """A node without what says nothing about what it computes."""
    bare = copy.deepcopy(node)
    for field in ("name", "doc_string", "metadata_props"):
        bare.ClearField(field)
    return bare


def _require(condition: bool, message: str) -> None:
    if not condition:  # an assert statement would vanish under python -O
        raise AssertionError(message)
