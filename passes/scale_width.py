"""Narrow any other channels: the features under a classifier, the stem, a stage with residuals.

All layers that write or read them change together (`onnxnas.coupling`); the readers are fitted
anew. Hidden layers of blocks are `resize-ibn`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from onnxnas.coupling import Group
from onnxnas.width_pass import WidthPass, inside_block


@dataclass(frozen=True)
class ScaleWidth(WidthPass):
    """Offers every group of channels outside blocks at the widths the target works in."""

    name: ClassVar[str] = "scale-width"
    summary: ClassVar[str] = "Narrow coupled channels anywhere else, weights re-fitted."
    order: ClassVar[int] = 20

    def concerns(self, graph: Any, group: Group) -> bool:
        return not inside_block(group)
