"""What a target's memories add to a kernel: where its tensors lie and what runs before it.

On targets that are planned as their compiler does (`ethos_memory`), cost depends on whether a
tensor is in SRAM or DRAM, in bricks or row by row, and on whether the kernel is a link of a
cascade. All of that follows from the whole network, so it is found once per network and handed
to the regression as columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.cost import Target
from onnxnas.hwmodels import ort_placement
from onnxnas.hwmodels.ethos_memory import Arrangement, System, arrange
from onnxnas.hwmodels.ethos_weights import encoded_bytes
from onnxnas.kernels import Kernel

PLACEMENT = (
    "steps", "rows_in", "rows_out", "far_in", "far_out", "far_rows", "cascade", "rolling_in",
    "rolling_out", "weights_near", "stored_weights", "modelled", "previous",
    "following",
)  # fmt: skip
"""Columns. `steps`: how many the kernel takes, 0 where it runs inside another. `rows_in`,
`rows_out`: bytes read and written that lie row by row; `far_in`, `far_out`: in DRAM; `far_rows`:
both at once. `cascade`: steps of the cascade it is in, 0 for none; `rolling_in`, `rolling_out`:
bytes of the rolling buffers it reads and writes, which say how high the cascade's stripes are.
`weights_near`: bytes of SRAM for its weights;
`stored_weights`: bytes of its encoded weights. `modelled`: cycles by the compiler's own rules, 0
where they are not known. `previous`, `following`: rows of the kernels
before and after in the order of execution, -1 for none."""

_COLUMN = {name: i for i, name in enumerate(PLACEMENT)}
Placement = NDArray[np.float64]
"""[kernels, len(PLACEMENT)]"""


def place(
    target: Target, graph: Any, kernels: Sequence[Kernel], found: Arrangement | None = None
) -> Placement:
    """Placement of a network's kernels on a target.

    Args:
        target: its card.
        graph: `gs.Graph` with static shapes.
        kernels: its `split_kernels`.
        found: its arrangement, where an Ethos-U target's is known already.
    """
    result = unplaced(kernels)
    if target.backend == "onnxruntime":
        floating = target.config["precision"] == "float32"
        for name, values in ort_placement.columns(kernels, floating).items():
            result[:, _COLUMN[name]] = values
    system = System.of(target)
    if system is None:
        return result
    found = found or arrange(graph, kernels, system)
    result[:, _COLUMN["steps"]] = 0
    result[:, [_COLUMN["previous"], _COLUMN["following"]]] = -1
    result[:, _COLUMN["stored_weights"]] = [encoded_bytes(k, system.family) for k in kernels]
    result[:, _COLUMN["modelled"]] = found.cycles
    _book(result, found)
    return result


def unplaced(kernels: Sequence[Kernel]) -> Placement:
    """Placement where nothing is known: one kernel after the other in one memory."""
    result = np.zeros((len(kernels), len(PLACEMENT)))
    rows = np.arange(len(kernels))
    result[:, _COLUMN["steps"]] = 1
    result[:, _COLUMN["stored_weights"]] = [k.weight_bytes for k in kernels]
    result[:, _COLUMN["previous"]] = rows - 1
    result[:, _COLUMN["following"]] = np.where(rows + 1 < len(kernels), rows + 1, -1)
    return result


def _book(result: Placement, found: Arrangement) -> None:
    """Add up, per kernel, what its steps touch."""
    steps = found.steps
    far = set(found.left)
    rolling = {b.name: float(b.size) for b in found.rolling}
    near: dict[str, float] = {}
    for buffer in found.weights:
        near[buffer.name] = near.get(buffer.name, 0.0) + buffer.size
    length = {i: c.last - c.first + 1 for c in found.cascades for i in range(c.first, c.last + 1)}
    order: list[int] = []
    for i, step in enumerate(steps.steps):
        row = result[step.kernel]
        if step.kernel not in order[-1:]:
            order.append(step.kernel)
        row[_COLUMN["steps"]] += 1
        row[_COLUMN["cascade"]] = max(row[_COLUMN["cascade"]], length.get(i, 0))
        row[_COLUMN["weights_near"]] += near.get(f"weights of {step.writes[0]}", 0.0)
        for names, side in ((step.reads, "in"), (step.writes, "out")):
            for name in names:
                size, by_rows = steps.size(name), not steps.bricks(name)
                row[_COLUMN[f"rows_{side}"]] += size * by_rows
                row[_COLUMN[f"far_{side}"]] += size * (name in far)
                row[_COLUMN["far_rows"]] += size * (name in far and by_rows)
                row[_COLUMN[f"rolling_{side}"]] += rolling.get(name, 0.0)
    for before, after in itertools.pairwise(order):
        result[after, _COLUMN["previous"]] = before
        result[before, _COLUMN["following"]] = after
