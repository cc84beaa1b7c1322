"""The conformance checks notice every rule that is broken, and say which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import models
import numpy as np
import onnx
import pytest
from fakes import TARGET, ToyCostModel

from onnxnas.cost import Cost, KernelCost, Target
from onnxnas.graph import from_model, values_of
from onnxnas.pass_contract import Pass, Why
from onnxnas.rewriter import Rewriter, SiteGone
from onnxnas.sites import Choice, Site
from onnxnas.testing import check_cost_model, check_pass


def model() -> onnx.ModelProto:
    """Two convolutions, a, then after a Relu b; then a Mul by a constant, y."""
    b = models.ModelBuilder([1, 4, 5, 5])
    y = b.conv(b.op("Relu", b.conv(b.x, 4, 6, out="a")), 6, 8, out="b")
    return b.build(b.op("Mul", y, b.weight(8, 1, 1), out="y"))


def check(pass_: Pass) -> tuple[Site, ...]:
    return check_pass(pass_, model(), TARGET)


@dataclass(frozen=True)
class Halves(Pass):
    """A pass that keeps every rule: weights of a Conv halved, its output doubled again."""

    name: ClassVar[str] = "halves"
    summary: ClassVar[str] = "Halve and double."
    order: ClassVar[int] = 50

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        for node in graph.nodes:
            if node.op == "Conv":
                y = node.outputs[0].name
                yield Site(self.name, y, (Choice("halved"),), frozenset({f"node:{y}"}))
            else:
                why.miss(node, "is not a Conv")

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        node = rw.node(site.tensor)
        y, inputs, attrs = node.outputs[0], list(node.inputs), dict(node.attrs)
        halved = [inputs[0], *(self.half(rw, t) for t in inputs[1:])]
        rw.remove_node(node)
        inner = rw.add_node("Conv", halved, attrs, hint=f"{site.tensor}/half")
        rw.add_node("Add", [inner, inner], output=y)

    def half(self, rw: Rewriter, old: Any) -> Any:
        return rw.constant(f"{old.name}/half", old.shape, lambda: values_of(old) / 2)


def test_a_pass_that_keeps_the_rules_passes() -> None:
    assert [site.tensor for site in check(Halves())] == ["a", "b"]


def test_a_pass_for_newer_opsets_finds_nothing() -> None:
    class Newer(Halves):
        min_opset = 99

    assert check(Newer()) == ()


class WrongWeight(Halves):
    def half(self, rw: Rewriter, old: Any) -> Any:
        return rw.constant("half", old.shape, lambda: values_of(old) / 2 * np.float32(1.01))


class NotANumber(Halves):
    def half(self, rw: Rewriter, old: Any) -> Any:
        return rw.constant("half", old.shape, lambda: values_of(old) * np.float32("nan"))


class WrongShape(Halves):
    def half(self, rw: Rewriter, old: Any) -> Any:
        return rw.constant("half", old.shape, lambda: values_of(old).T / 2)


class WritesIntoTheWeight(Halves):
    def half(self, rw: Rewriter, old: Any) -> Any:
        def compute() -> Any:
            values = values_of(old)
            values /= 2
            return values

        return rw.constant("half", old.shape, compute)


class Eager(Halves):
    def half(self, rw: Rewriter, old: Any) -> Any:
        values = values_of(old) / 2
        return rw.constant("half", old.shape, lambda: values)


class Aliases(Halves):
    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        scale = rw.node("y").inputs[1]
        rw.set_input(rw.node("y"), 1, rw.small_constant("alias", scale.values[:]))


class WritesIntoAConstant(Halves):
    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        super().rewrite(rw, site, choice)
        rw.node("y").inputs[1].values[0] *= np.float32(1.0000002)  # the outputs do not show it


class Invalid(Halves):
    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        rw.set_attrs(rw.node(site.tensor), strides=[1])


class Undeclared(Halves):
    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        super().rewrite(rw, site, choice)
        rw.node("y").op = "Add"


class Nothing(Halves):
    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        pass


class OtherOutput(Halves):
    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        rw.graph.outputs = [rw.tensor("b")]


class Exclusive(Halves):
    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        if rw.provenance:
            raise SiteGone("the other one was here first")
        super().rewrite(rw, site, choice)


class OrderMatters(Halves):
    """The last rewrite sets the graph's constant, so the outputs say which it was."""

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        for site in super().find_sites(graph, target, why):
            yield replace(site, choices=(Choice("scaled", exactness="retrain"),))

    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        scale = np.full((8, 1, 1), ord(site.tensor), np.float32)
        rw.set_input(rw.node("y"), 1, rw.small_constant("scale", scale))


class ChangesTheGraph(Halves):
    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        graph.nodes[0].attrs["dilations"] = [1, 1]
        return super().find_sites(graph, target, why)


class Random(Halves):
    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        for site in super().find_sites(graph, target, why):
            yield replace(site, params={"token": object()})


class Edited(Halves):
    """Sites of `Halves` with some fields replaced."""

    def __init__(self, **fields: Any) -> None:
        object.__setattr__(self, "fields", fields)

    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterator[Site]:
        for site in super().find_sites(graph, target, why):
            yield replace(site, **getattr(self, "fields"))  # noqa: B009


@pytest.mark.parametrize(
    ("pass_", "message"),
    [
        (WrongWeight(), "halves@a=halved: y: largest error"),
        (NotANumber(), "y: .* NaN or infinite values are not where they were"),
        (WrongShape(), r"computed values of shape .* not \(6, 4, 1, 1\)"),
        (WritesIntoTheWeight(), "read-only"),
        (Eager(), "rewrite evaluated weights: w_1, w_2"),
        (Aliases(), "alias shares its memory with a constant of the original"),
        (WritesIntoAConstant(), "wrote into the original"),
        (Invalid(), "not valid ONNX"),
        (Undeclared(), "changed 'y' without saying so"),
        (Nothing(), "no node was made or changed"),
        (OtherOutput(), "no longer those of the original"),
        (Exclusive(), "the other one was here first"),
        (OrderMatters(), "last site first: y: largest error"),
        (ChangesTheGraph(), "find_sites changed the graph"),
        (Random(), "not deterministic"),
        (Edited(tensor="a"), "halves@a: two sites have this id"),
        (Edited(tensor="zz"), "halves@zz: .*no such tensor"),
        (Edited(pass_name="other"), "other@a: its pass is called 'halves'"),
        (Edited(choices=()), "halves@a: nothing to choose"),
        (Edited(claims=frozenset()), "halves@a: claims nothing"),
        (Edited(claims=frozenset({"node:zz"})), "claim 'node:zz' is neither"),
        (Edited(claims=frozenset({"a"})), "claim 'a' is neither"),
        (Edited(choices=(Choice("keep"),)), "label 'keep'"),
        (Edited(choices=(Choice("x"), Choice("x"))), "label 'x' is not a unique"),
        (Edited(choices=(Choice("a=b; c"),)), "label 'a=b; c'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Pass) else "",
)
def test_a_broken_rule_is_named(pass_: Pass, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(pass_)


class Edit(ToyCostModel):
    """The toy's costs with some fields, or some fields of the first kernel, replaced."""

    def __init__(self, kernel: dict[str, Any] | None = None, **fields: Any) -> None:
        super().__init__()
        self.kernel, self.fields = kernel or {}, fields

    def cost(self, graph: Any) -> Cost:
        cost = super().cost(graph)
        first: KernelCost = replace(cost.kernels[0], **self.kernel)
        return replace(cost, **{"kernels": (first, *cost.kernels[1:]), **self.fields})


class Drifts(ToyCostModel):
    def cost(self, graph: Any) -> Cost:
        return replace(super().cost(graph), weight_bytes=self.calls)


class OtherMany(ToyCostModel):
    def cost_many(self, graphs: Sequence[Any]) -> list[Cost]:
        return [replace(self.cost(graph), weight_bytes=1) for graph in graphs]


class Careless(ToyCostModel):
    def cost(self, graph: Any) -> Cost:
        graph.nodes[0].attrs["seen"] = 1
        return super().cost(graph)


def test_a_cost_model_that_keeps_the_rules_passes() -> None:
    assert check_cost_model(ToyCostModel(), from_model(model())).cycles > 0


@pytest.mark.parametrize(
    ("cost_model", "message"),
    [
        (Drifts(), "costs something else twice"),
        (OtherMany(), "cost_many"),
        (Careless(), "cost changed the graph"),
        (Edit(target="other"), "it is of 'other'"),
        (Edit(kind="measured"), "differ in kind"),
        (Edit(cycles=float("inf")), "cycles of the network is inf"),
        (Edit(peak_bytes={"sram": -1}), "sram of the network is -1"),
        (Edit(cycles=1.0), "the kernels sum to"),
        (Edit(seconds=1.0), "1 s are not"),
        (Edit(kernels=()), r"a silent zero: a \(Conv\)"),
        (Edit(kernel={"cycles": None}), "kernel 'a' has no figure and no reason"),
        (Edit(kernel={"reason": "why"}), "has a figure and a reason"),
        (Edit(kernel={"cycles": float("nan")}), "kernel 'a' takes nan cycles"),
        (Edit(kernel={"tensors": ("a", "b")}), "kernel 'a' does not end in its output"),
        (Edit(kernel={"tensors": ("b", "a")}), "counted in two kernels: b"),
        (Edit(kernel={"output": "z", "tensors": ("z",)}), "kernels of no tensor: z"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_rule_of_costs_is_named(cost_model: ToyCostModel, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_cost_model(cost_model, from_model(model()))
