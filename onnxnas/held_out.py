"""Candidates judged on rows that no fit has seen: how far outputs are from the original's.

A candidate that differs in one block computes everything before it as the original does, so that
part is run once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.divergence import Divergence, Judged, compare, judged_tensors
from onnxnas.errors import UsageError
from onnxnas.excerpt import dependents
from onnxnas.fit_rows import FitRows, runner
from onnxnas.materialize import Applied
from onnxnas.pass_contract import Tick, no_tick

Tensors = dict[str, NDArray[Any]]

_MOST_KEPT_BYTES = 1 << 29
"""Values of inner tensors kept for all held-out rows; if they are more, all is run again."""

_MOST_JUDGED = 1 << 18
"""Values of one output kept of one row: of larger ones, as of a picture labelled pixel by pixel,
every k-th position is compared."""


@dataclass
class HeldOut:
    """The held-out rows and what the original says about them.

    Attributes:
        graph: the normalised original.
        judged: by what networks are compared.
        expected: the judged tensors of the original, row by row; scores as [positions, classes].
        tick: called between rows.
    """

    graph: Any
    rows: FitRows
    judged: tuple[Judged, ...] = ()
    expected: list[Tensors] = field(default_factory=list)
    tick: Tick = no_tick

    @classmethod
    def of(cls, graph: Any, rows: FitRows) -> HeldOut:
        """Run the original once."""
        held_out = cls(graph, rows, judged_tensors(graph))
        held_out.expected = held_out._answers(graph)
        return held_out

    def divergence(self, student: Applied) -> Divergence:
        """How far one candidate is from the original."""
        return self.divergences([student])[0]

    def divergence_of(self, graph: Any) -> Divergence:
        """How far any network with the judged tensors is from the original; all of it is run.

        Raises:
            UsageError: a judged tensor has another size there.
        """
        answers = self._answers(graph)
        for name, want in self.expected[0].items():
            if answers[0][name].shape != want.shape:
                raise UsageError(
                    f"The two networks cannot be compared: {name!r} has another size in the result."
                )
        return self._compare(answers)

    def divergences(self, students: Sequence[Applied]) -> list[Divergence]:
        """The same for several; those that share their first part run it once, if in a row."""
        names = [j.tensor for j in self.judged]
        found, border, before = [], frozenset[str](), list[Tensors]()
        for student in students:
            needed = self._border(student, names)
            if needed != border or not before:
                border, before = needed, self._kept(needed)
            found.append(self._compare(self._answers(student.graph, before)))
        return found

    def _compare(self, answers: Sequence[Mapping[str, NDArray[Any]]]) -> Divergence:
        return compare([replace(j, axis=1) for j in self.judged], self.expected, answers)

    def _answers(
        self, graph: Any, before: Sequence[Mapping[str, NDArray[Any]]] = ()
    ) -> list[Tensors]:
        """The judged tensors of a graph on every held-out row."""
        names = [j.tensor for j in self.judged]
        rows = self._run(graph, names, before)
        return [{j.tensor: _thinned(j, values[j.tensor]) for j in self.judged} for values in rows]

    def _border(self, student: Applied, names: Sequence[str]) -> frozenset[str]:
        """Tensors of the original from which a candidate's changed part is computed."""
        if student.trained:
            return frozenset()
        changed = dependents(student.graph, student.provenance)
        read = {
            tensor.name
            for node in student.graph.nodes
            if any(t.name in changed for t in node.outputs)
            for tensor in node.inputs
            if tensor.inputs and tensor.name not in changed
        }
        return frozenset(read | {n for n in names if n not in changed})

    def _kept(self, border: frozenset[str]) -> list[Tensors]:
        """The border's values on every held-out row; nothing where they are too many."""
        if not border:
            return []
        tensors = self.graph.tensors()
        shapes = [[d if isinstance(d, int) else 1 for d in tensors[n].shape or ()] for n in border]
        size = 4 * sum(int(np.prod(s, dtype=np.int64)) for s in shapes) * sum(self.rows.held_out)
        return list(self._run(self.graph, sorted(border))) if size <= _MOST_KEPT_BYTES else []

    def _run(
        self, graph: Any, names: Sequence[str], before: Sequence[Mapping[str, NDArray[Any]]] = ()
    ) -> Iterator[Tensors]:
        fed = sorted(before[0]) if before else []
        run = runner(graph, [n for n in names if n not in fed], fed)
        for i, batch in enumerate(self.rows.judged()):
            self.tick()
            values = {**batch, **(before[i] if before else {})}
            outputs = run(values)
            yield {n: outputs[n] if n in outputs else values[n] for n in names}


def _thinned(judged: Judged, values: NDArray[Any]) -> NDArray[Any]:
    """Scores as [positions, classes], other values as they are; of large ones a part."""
    if judged.kind == "values":
        step = -(-values.size // _MOST_JUDGED)
        return values if step == 1 else values.reshape(-1)[::step].copy()
    scores = np.moveaxis(values, judged.axis, -1)
    scores = scores.reshape(-1, scores.shape[-1])
    step = -(-scores.size // _MOST_JUDGED)
    return scores if step == 1 else scores[::step].copy()
