"""Gates that scale every channel by what the means of all channels say, and where they stand.

Squeeze-excite blocks (Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018): a pool over all
positions, a few layers on what it gives, and a product with what was pooled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from onnxnas.ops import is_constant

_MOST_NODES = 16


@dataclass(frozen=True)
class SqueezeExcite:
    """One gate.

    Attributes:
        x: what is scaled, [n, c, h, w].
        gate: one value per channel, [n, c, 1, 1].
        product: the Mul.
        nodes: between `x` and `gate`, the last one first.
    """

    x: Any
    gate: Any
    product: Any
    nodes: tuple[Any, ...]


def squeeze_excite(x: Any, graph: Any) -> SqueezeExcite | str:
    """The gate that scales a tensor and is all that reads it besides, or why there is none."""
    products = [r for r in x.outputs if r.op == "Mul" and len(r.inputs) == 2]
    if any(x is t for t in graph.outputs) or len(products) != 1:
        return "is not scaled by a gate alone"
    product = products[0]
    gate = product.inputs[1] if product.inputs[0] is x else product.inputs[0]
    if gate is x or is_constant(gate) or gate.shape is None or list(gate.shape[2:]) != [1, 1]:
        return "is not scaled by one value per channel"
    nodes = _between(x, gate)
    if isinstance(nodes, str):
        return nodes
    outputs = {id(t) for t in graph.outputs}
    known = {id(node) for node in nodes} | {id(product)}
    for tensor in [x, *(t for node in nodes for t in node.outputs)]:
        if id(tensor) in outputs or any(id(r) not in known for r in tensor.outputs):
            return f"{tensor.name!r} is used outside its gate"
    return SqueezeExcite(x, gate, product, tuple(nodes))


def is_pool(node: Any) -> bool:
    """Whether a node takes the mean over all positions of a feature map."""
    if node.op == "GlobalAveragePool":
        return True
    if node.op != "ReduceMean" or node.inputs[0].shape is None or len(node.inputs[0].shape) != 4:
        return False
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
        axes = node.inputs[1].values
    return axes is not None and sorted(int(a) % 4 for a in axes) == [2, 3]


def _between(x: Any, gate: Any) -> list[Any] | str:
    """Nodes from a tensor to its gate, if the gate is computed of its means alone."""
    nodes: list[Any] = []
    todo = [gate]
    while todo:
        tensor = todo.pop()
        if (
            is_constant(tensor)
            or not tensor.name
            or any(tensor is t for n in nodes for t in n.outputs)
        ):
            continue
        if not tensor.inputs:
            return "its gate reads more than what it scales"
        node = tensor.inputs[0]
        nodes.append(node)
        if any(t is x for t in node.inputs):
            if not is_pool(node):
                return "its gate does not begin with a mean over all positions"
        else:
            todo += node.inputs
        if len(nodes) > _MOST_NODES:
            return "its gate is not that of a squeeze-excite block"
    return nodes
