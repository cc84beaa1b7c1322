"""The one object through which passes change a graph; it records what was touched and by whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import DTypeLike, NDArray

from onnxnas.graph import LazyWeight

Edit = Callable[["Rewriter"], None]
"""A change of a graph."""


class SiteGone(Exception):
    """A site cannot be rewritten any more because of rewrites made before it; says why."""


class Rewriter:
    """Changes one graph on behalf of one site.

    Attributes:
        graph: the `gs.Graph` being changed. Read it freely; change it only through this object.
        provenance: output tensor -> ``pass@site=choice`` of every node made or changed. Shared
            by all rewriters of one candidate.
        fitted: what `Pass.recover` found for this choice, under the names it gave; empty while
            only structure is asked for, and for exact choices.
        replaced: tensor -> the one that all its readers read now. Shared like `provenance`.
        edits: see `when_delivered`, each with its author. Shared like `provenance`.
    """

    def __init__(
        self,
        graph: Any,
        author: str,
        provenance: dict[str, str],
        fitted: Mapping[str, NDArray[Any]] | None = None,
        replaced: dict[str, str] | None = None,
        edits: list[tuple[str, Edit]] | None = None,
    ) -> None:
        self.graph = graph
        self.edits = list[tuple[str, Edit]]() if edits is None else edits
        self.replaced = {} if replaced is None else replaced
        self.fitted: Mapping[str, NDArray[Any]] = fitted or {}
        self.author = author
        self.provenance = provenance
        self._tensors: dict[str, Any] = graph.tensors()
        self._names = set(self._tensors)

    def tensor(self, name: str) -> Any:
        """The tensor of that name, or the one that is read in its place now.

        Raises:
            SiteGone: an earlier rewrite removed it.
        """
        while name in self.replaced:
            name = self.replaced[name]
        return self._own(name)

    def _own(self, name: str) -> Any:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise SiteGone(f"tensor {name!r} was rewritten away")
        return tensor

    def node(self, output: str) -> Any:
        """The node that writes the tensor of that name.

        Raises:
            SiteGone: an earlier rewrite removed it.
        """
        tensor = self._own(output)
        if not tensor.inputs:
            raise SiteGone(f"nothing computes {output!r} any more")
        return tensor.inputs[0]

    def constant(
        self,
        hint: str,
        shape: Sequence[int],
        compute: Callable[[], NDArray[Any]],
        dtype: DTypeLike = np.float32,
        density: float = 1.0,
        levels: int = 0,
    ) -> Any:
        """A new constant whose values are computed only when the model is exported.

        Args:
            hint: its name is this, or this with a number if taken.
            shape: of the values.
            compute: returns the values; read other constants inside it with
                `onnxnas.graph.values_of`, never outside.
            density: share of the values that may differ from zero: 1/4 for four groups merged
                into one.
            levels: distinct values of an output channel; 0 where any will be.
        """
        lazy = LazyWeight(tuple(shape), np.dtype(dtype), compute, density, levels)
        return self._adopt(gs.Constant(self._free(hint), lazy))

    def small_constant(self, hint: str, values: NDArray[Any]) -> Any:
        """A new constant with known values: axes, pads, bounds."""
        return self._adopt(gs.Constant(self._free(hint), np.asarray(values)))

    def set_input(self, node: Any, index: int, tensor: Any) -> None:
        """Connect input `index` of a node to another tensor (appends omitted optional inputs)."""
        while len(node.inputs) <= index:
            node.inputs.append(gs.Variable.empty())
        node.inputs[index] = tensor
        self.touch(node)

    def set_attrs(self, node: Any, **attrs: Any) -> None:
        """Set attributes of a node; None removes one."""
        for key, value in attrs.items():
            if value is None:
                node.attrs.pop(key, None)
            else:
                node.attrs[key] = value
        self.touch(node)

    def add_node(
        self,
        op: str,
        inputs: Sequence[Any],
        attrs: Mapping[str, Any] | None = None,
        *,
        output: Any | None = None,
        hint: str = "",
        dtype: DTypeLike = np.float32,
    ) -> Any:
        """Append a node and return its output variable.

        Args:
            output: write into this existing variable, whose old producer must be gone first;
                None makes a new one named after `hint`.
            dtype: of a new output.
        """
        if output is None:
            output = self._adopt(gs.Variable(self._free(hint or op.lower()), dtype=np.dtype(dtype)))
        elif output.inputs:
            raise ValueError(f"{output.name} still has a producer; remove_node it first")
        node = gs.Node(
            op,
            name=f"{output.name}/{op}",
            attrs=dict(attrs or {}),
            inputs=list(inputs),
            outputs=[output],
        )
        self.graph.nodes.append(node)
        self.touch(node)
        return output

    def remove_node(self, node: Any) -> None:
        """Disconnect a node; its output variables stay, to be written by another node."""
        node.inputs.clear()
        node.outputs.clear()

    def replace_uses(self, old: Any, new: Any) -> None:
        """Let every reader of `old` read `new`. Not for graph outputs: rewrite their producer.

        Raises:
            SiteGone: `old` is a graph output.
        """
        if any(old is out for out in self.graph.outputs):
            raise SiteGone(f"{old.name!r} is a graph output")
        for reader in list(old.outputs):
            for i, tensor in enumerate(reader.inputs):
                if tensor is old:
                    reader.inputs[i] = new
        self.replaced[old.name] = new.name

    def when_delivered(self, edit: Edit) -> None:
        """Change what is costed and delivered, and not what is fitted and judged.

        The graph itself takes the original's inputs and has the tensors that the original is
        judged by, also where what is delivered does without: a resize of an input or output that
        the user's own contract makes needless, scores where classes were decided before.

        Args:
            edit: is called with a copy of the whole rewritten graph, the edits before it done.
        """
        self.edits.append((self.author, edit))

    def touch(self, node: Any) -> None:
        """Record that this site made or changed a node."""
        for tensor in node.outputs:
            self.provenance[tensor.name] = self.author

    def _free(self, hint: str) -> str:
        name, number = hint, 1
        while name in self._names:
            name, number = f"{hint}_{number}", number + 1
        return name

    def _adopt(self, tensor: Any) -> Any:
        self._names.add(tensor.name)
        self._tensors[tensor.name] = tensor
        return tensor
