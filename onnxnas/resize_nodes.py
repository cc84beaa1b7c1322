"""Resize nodes as rewrites make them, the same in every opset that has them in this form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import DTypeLike, NDArray

from onnxnas.rewriter import Rewriter

MIN_OPSET = 11
"""Since then Resize says where the pixels are."""


def add_resize(
    rw: Rewriter,
    x: Any,
    to: NDArray[Any],
    attrs: Mapping[str, Any],
    *,
    hint: str,
    output: Any = None,
    dtype: DTypeLike = np.float32,
) -> Any:
    """Append a Resize and return its output.

    Args:
        to: one number for each axis: factors if they are floats, sizes if they are integers.
        attrs: mode, coordinates and so on.
        hint: its tensors are named after this.
        output: write into this variable; None makes a new one.
        dtype: of a new output.
    """
    none: list[Any] = [gs.Variable.empty(), gs.Variable.empty()]
    if rw.graph.opset < 13:  # neither the region of interest nor the scales may be left out yet
        none = [rw.small_constant(f"{hint}/roi", np.zeros(0, np.float32))] * 2
    by_sizes = np.issubdtype(to.dtype, np.integer)
    wanted = rw.small_constant(f"{hint}/{'sizes' if by_sizes else 'scales'}", to)
    inputs = [x, *none, wanted] if by_sizes else [x, none[0], wanted]
    return rw.add_node("Resize", inputs, attrs, output=output, hint=hint, dtype=dtype)
