"""Books what onnxruntime's profiler says about its own nodes on the kernels of a network.

onnxruntime runs a graph of its own making: activations and residual sums disappear into
convolutions, tensors change layout and precision on the way. Every node of that graph is booked
on the kernel whose tensor it computes, what only changes layout or precision on the kernel that
writes the tensor or, failing that, on the first that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.errors import OnnxnasError
from onnxnas.kernels import Kernel

_BOUNDARY = re.compile(r"[_/]")
"""onnxruntime names its nodes after those they replace, with something appended."""
_CONVERSIONS = frozenset(
    {"ReorderInput", "ReorderOutput", "QuantizeLinear", "DequantizeLinear", "Transpose", "Cast"}
)
_MACS_PER_BYTE = 16.0
"""Multiply-accumulates in the time that one byte takes: shares out what two kernels took."""
_EVENT_SPREAD = 0.25
_SCALE_SPREAD = 0.02
"""How far networks differ in what recording adds, relative, and in how much it slows the rest."""
_LEAST = 0.05e-6
"""Seconds of a node at least."""


@dataclass(frozen=True)
class Node:
    """A node of the graph that onnxruntime runs.

    Attributes:
        name: unique.
        op: operator.
        inputs: names of tensors.
        outputs: names of tensors.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Recorder:
    """What timing adds.

    Attributes:
        call: seconds of a call whatever it computes.
        event: seconds that recording adds to a node, usually.
    """

    call: float
    event: float

    @classmethod
    def of(cls, single: float, chain: float, recorded: Mapping[str, float]) -> Recorder:
        """From two networks of nodes that do next to nothing.

        Args:
            single: seconds of one such node.
            chain: seconds of several, one after the other.
            recorded: seconds of each of these.
        """
        each = max(0.0, (chain - single) / (len(recorded) - 1))
        return cls(max(0.0, single - each), max(0.0, sum(recorded.values()) / len(recorded) - each))


def nodes_of(model: Any, recorded: Iterable[str]) -> list[Node]:
    """The nodes of an `onnx.ModelProto`, under the names that the profiler calls them by.

    The bodies of ONNX functions have nodes without a name; the profiler calls them by operator
    and number, which grows along the graph.
    """
    known = {n.name for n in model.graph.node}
    numbered: dict[str, list[int]] = {}
    for op, _, number in (name.rpartition("_") for name in sorted(set(recorded) - known)):
        if number.isdigit():
            numbered.setdefault(op, []).append(int(number))
    left = {op: iter(sorted(numbers)) for op, numbers in numbered.items()}
    nodes = []
    for i, n in enumerate(model.graph.node):
        found = None if n.name else next(left.get(n.op_type, iter(())), None)
        name = n.name or (f"unnamed {i}" if found is None else f"{n.op_type}_{found}")
        nodes.append(Node(name, n.op_type, tuple(n.input), tuple(n.output)))
    return nodes


def kernel_seconds(
    kernels: Sequence[Kernel],
    nodes: Sequence[Node],
    recorded: Mapping[str, float],
    total: float,
    recorder: Recorder,
) -> NDArray[np.float64]:
    """Seconds of each kernel; their sum is the network's time.

    Args:
        kernels: of the network as it was handed over, its nodes named after their outputs.
        nodes: of the graph that ran.
        recorded: name of a node -> seconds, with what recording adds.
        total: seconds of the network without recording; what of these a call costs whatever it
            computes goes to the first kernel.
        recorder: what recording adds.

    Raises:
        OnnxnasError: a node that ran belongs to no kernel.
    """
    homes = _homes(kernels, nodes)
    ran = [n for n in nodes if n.name in recorded]
    if unknown := recorded.keys() - {n.name for n in ran}:
        raise OnnxnasError(f"onnxruntime recorded an unknown node {sorted(unknown)[0]!r}.")
    times = _without_recording(
        np.array([recorded[n.name] for n in ran]), max(total - recorder.call, 0.0), recorder.event
    )
    seconds = np.zeros(len(kernels))
    computed = set()
    for node, time in zip(ran, times.tolist(), strict=True):
        seconds[homes[node.name]] += time
        if node.op not in _CONVERSIONS:
            computed.add(homes[node.name])
    _share_fused(kernels, seconds, computed)
    seconds[0] += total - seconds.sum()
    return seconds


def _homes(kernels: Sequence[Kernel], nodes: Sequence[Node]) -> dict[str, int]:
    """Number of the kernel of each node."""
    home = {t: i for i, k in enumerate(kernels) for t in k.tensors}
    writer = {t: n for n in nodes for t in n.outputs}
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for tensor in node.inputs:
            readers.setdefault(tensor, []).append(node)
    found: dict[str, int] = {}
    for node in nodes:
        own = _named_after(node.name, home)
        if own is None:
            own = next((home[t] for t in node.outputs if t in home), None)
        if own is not None:
            found[node.name] = own
    # Conversions that bear no name of ours: backwards, so that chains of them reach their reader.
    for node in reversed(nodes):
        if node.name not in found:
            after = [found[r.name] for t in node.outputs for r in readers.get(t, [])
                     if r.name in found]  # fmt: skip
            if after:
                found[node.name] = min(after)
    for node in nodes:
        if node.name not in found:
            before = [found[writer[t].name] for t in node.inputs
                      if t in writer and writer[t].name in found]  # fmt: skip
            if not before:
                raise OnnxnasError(f"onnxruntime ran {node.op} {node.name!r}, part of no kernel.")
            found[node.name] = max(before)
    return found


def _named_after(name: str, home: Mapping[str, int]) -> int | None:
    """The kernel of the longest tensor name that a node's name begins with."""
    if name in home:
        return home[name]
    ends = [m.start() for m in _BOUNDARY.finditer(name)]
    return next((home[name[:end]] for end in reversed(ends) if name[:end] in home), None)


def _without_recording(
    recorded: NDArray[np.float64], total: float, event: float
) -> NDArray[np.float64]:
    """Times of nodes that sum up to the network's.

    Recording adds a constant to each node, and a factor, because it takes room in the caches.
    What is left over after the usual constant is put down to both, as each is likely to vary.
    """
    count, whole = len(recorded), float(recorded.sum())
    left = whole - event * count - total
    by_constant, by_scale = (count * event * _EVENT_SPREAD) ** 2, (whole * _SCALE_SPREAD) ** 2
    each = event + left * by_constant / (by_constant + by_scale) / count
    factor = 1 - left * by_scale / (by_constant + by_scale) / whole
    times = np.maximum(recorded * factor - each, _LEAST)
    result: NDArray[np.float64] = times * (total / times.sum())
    return result


def _share_fused(kernels: Sequence[Kernel], seconds: NDArray[np.float64], own: set[int]) -> None:
    """Give sums that ran inside a convolution their share of its time, by bytes and work."""
    for i, kernel in enumerate(kernels):
        host = kernel.producer
        if i in own or host not in own or kernel.op not in ("Add", "Sum"):
            continue
        both = seconds[i] + seconds[host]
        share = _effort(kernel) / (_effort(kernel) + _effort(kernels[host]))
        seconds[i], seconds[host] = share * both, (1 - share) * both


def _effort(kernel: Kernel) -> float:
    moved = kernel.in_bytes + kernel.operand_bytes + kernel.out_bytes + kernel.weights
    return moved + kernel.macs / _MACS_PER_BYTE
