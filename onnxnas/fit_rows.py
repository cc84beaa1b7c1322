"""The rows that weights are fitted on, tuned by and judged on, and running graphs on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxnas.calibration import Calibration
from onnxnas.errors import UsageError
from onnxnas.excerpt import excerpt
from onnxnas.pass_contract import Tick, no_tick
from onnxnas.runtime import Session
from onnxnas.samples import Role, Rows, Tensors, split_rows

MIN_ROWS = 50
"""Fewer rows say too little about the tensors of a network, and about how good a fit is."""


@dataclass(frozen=True)
class FitRows:
    """The rows weights are fitted on, tuned by, and candidates judged by; no row is two of these.

    Attributes:
        calibration: of the model's contract.
        roles: of each run over `calibration.batches()`.
        mirrored: input that holds pictures and its axis from left to right: rows to fit on are
            read mirrored too; None where no input is a picture in colour.
        digest: of all values, so that fits made on other data are not mistaken for these.
    """

    calibration: Calibration
    roles: tuple[Role, ...]
    digest: str
    mirrored: tuple[str, int] | None = None

    @classmethod
    def of(cls, calibration: Calibration) -> FitRows:
        """Split the rows evenly.

        Raises:
            UsageError: there are too few.
        """
        if len(calibration) < MIN_ROWS:
            raise UsageError(
                f"{calibration.source} has {len(calibration)} rows, and fitting weights needs "
                f"{MIN_ROWS}: give more, or leave those rewrites out with --exact-only."
            )
        digest, count, mirrored = hashlib.sha256(), 0, None
        for batch in calibration.batches():
            count, mirrored = count + 1, mirrored or _picture(batch)
            for name in sorted(batch):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(batch[name]).data)
        return cls(calibration, split_rows(count), digest.hexdigest(), mirrored)

    def __len__(self) -> int:
        return len(self.roles)

    @property
    def reads(self) -> int:
        """How many times `run` runs the graph."""
        twice = self.roles.count("fit") if self.mirrored else 0
        return len(self) - self.roles.count("judge") + twice

    @property
    def held_out(self) -> tuple[bool, ...]:
        """For each run whether it is only judged by."""
        return tuple(role == "judge" for role in self.roles)

    def fitted(self, most: int) -> Iterator[Tensors]:
        """Inputs that weights are fitted on, as they are; at most so many, spread evenly."""
        at = [row for row, role in enumerate(self.roles) if role == "fit"]
        picked = {at[i * len(at) // most] for i in range(most)} if len(at) > most else set(at)
        for row, batch in enumerate(self.calibration.batches()):
            if row in picked:
                yield batch

    def chunks(
        self, role: Role, size: int, rng: np.random.Generator | None = None
    ) -> Iterator[list[Tensors]]:
        """Inputs of one role, several runs at a time; shuffled where a generator is given."""
        at = [row for row, r in enumerate(self.roles) if r == role]
        if rng is not None:
            at = [at[i] for i in rng.permutation(len(at))]
        width = self.calibration.batch
        for start in range(0, len(at), size):
            runs = [range(row * width, (row + 1) * width) for row in at[start : start + size]]
            yield [next(self.calibration.subset(run).batches()) for run in runs]

    def turned(self, batch: Tensors) -> Tensors:
        """The same pictures mirrored."""
        assert self.mirrored is not None
        name, axis = self.mirrored
        return {**batch, name: np.ascontiguousarray(np.flip(batch[name], axis))}

    def judged(self) -> Iterator[Tensors]:
        """Inputs that candidates are judged on."""
        for role, batch in zip(self.roles, self.calibration.batches(), strict=True):
            if role == "judge":
                yield batch

    def run(
        self, graph: Any, tensors: Iterable[str], tick: Tick = no_tick, *, optimised: bool = True
    ) -> Rows:
        """Values of some tensors of a graph, inputs among them, on every row but those to judge.

        What the original says of a mirrored picture is as true as of any other, so rows to fit on
        count twice; their mirrored reading is numbered behind all rows.

        Args:
            optimised: twice as fast, but which tensors are asked for shows in the last bits.
        """
        inputs = {t.name for t in graph.inputs}
        inner = [n for n in sorted(set(tensors)) if n not in inputs]
        run = runner(graph, inner, optimised=optimised)
        for row, batch in enumerate(self.calibration.batches()):
            tick()
            if self.roles[row] == "judge":
                continue
            yield row, self.roles[row], {**batch, **run(batch)}
            if self.mirrored and self.roles[row] == "fit":
                turned = self.turned(batch)
                yield len(self) + row, "fit", {**turned, **run(turned)}


def _picture(batch: Tensors) -> tuple[str, int] | None:
    """The one input that is a batch of pictures in colour, and its axis from left to right."""
    found = [(name, v.shape) for name, v in batch.items() if v.ndim == 4 and v.dtype.kind in "fu"]
    if len(batch) != 1 or not found:
        return None
    ((name, shape),) = found
    axes = [width for channels, width in ((1, 3), (3, 2)) if shape[channels] == 3]
    return (name, axes[0]) if len(axes) == 1 else None


def runner(
    graph: Any, outputs: Sequence[str], inputs: Sequence[str] = (), *, optimised: bool = True
) -> Callable[[Tensors], dict[str, Any]]:
    """Computes some tensors of a graph from its inputs, or from others of its tensors.

    Args:
        outputs: none of them an input; may be empty.
        inputs: inner tensors that will be given.
    """
    if not outputs:
        return lambda _: {}
    session = Session(excerpt(graph, outputs, inputs), optimised=optimised)
    wanted = {value.name for value in session.session.get_inputs()}
    return lambda values: session.run({n: v for n, v in values.items() if n in wanted})
