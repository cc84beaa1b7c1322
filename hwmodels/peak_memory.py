"""Peak memory and stored weights of a network on a target, predicted from its kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from onnxnas.cost import Cost, Target
from onnxnas.hwmodels import ethos_memory
from onnxnas.hwmodels.ethos_memory import Arrangement, System
from onnxnas.hwmodels.ethos_weights import encoded_bytes
from onnxnas.kernels import Kernel
from onnxnas.memory import Peak, activations, peak


def peaks(
    target: Target, graph: Any, kernels: Sequence[Kernel], found: Arrangement | None = None
) -> dict[str, Peak]:
    """Peak use per memory of the target that holds activations, as in `Cost.peak_bytes`.

    Args:
        target: its card; Ethos-U targets are planned as their compiler does, others as one
            arena of int8 activations, kernel after kernel.
        graph: `gs.Graph` with static shapes.
        kernels: its `split_kernels`.
        found: its arrangement, where an Ethos-U target's is known already.
    """
    system = System.of(target)
    if system is not None:
        return ethos_memory.plan(found or ethos_memory.arrange(graph, kernels, system))
    return {"activations": peak(activations(graph, kernels))}


def live_bytes(
    target: Target, graph: Any, kernels: Sequence[Kernel], found: Arrangement | None = None
) -> list[int]:
    """Bytes in the fullest memory while each kernel runs; the largest is the peak.

    Arguments as of `peaks`.
    """
    system = System.of(target)
    if system is not None:
        found = found or ethos_memory.arrange(graph, kernels, system)
        return ethos_memory.live_bytes(found, len(kernels))
    alive = [0] * (len(kernels) + 1)
    for buffer in activations(graph, kernels):
        for moment in range(max(0, buffer.start), min(len(kernels), buffer.end) + 1):
            alive[moment] += buffer.size
    last = max(alive[-2:], default=0)
    return [*alive[: max(0, len(kernels) - 1)], *([last] if kernels else [])]


def stored_weights(target: Target, kernels: Sequence[Kernel]) -> list[float]:
    """Bytes of each kernel's weights as the target stores them, biases not counted."""
    system = System.of(target)
    if system is not None:
        return [encoded_bytes(k, system.family) for k in kernels]
    return [float(k.weights) for k in kernels]


def weight_bytes(target: Target, kernels: Sequence[Kernel]) -> int:
    """Bytes of all weights as the target stores them, biases not counted."""
    return round(sum(stored_weights(target, kernels)))


def with_memory(
    cost: Cost,
    target: Target,
    graph: Any,
    kernels: Sequence[Kernel],
    found: Arrangement | None = None,
) -> Cost:
    """A predicted cost with its memory: peaks, stored weights, and what is alive at each peak.

    Args:
        cost: one entry in `Cost.kernels` per kernel, in order.
        target: its card.
        graph: `gs.Graph` with static shapes.
        kernels: its `split_kernels`.
        found: as of `peaks`.
    """
    most = peaks(target, graph, kernels, found)
    return replace(
        cost,
        peak_bytes={memory: at.size for memory, at in most.items()},
        weight_bytes=weight_bytes(target, kernels),
        detail={**cost.detail, "peak_tensors": peak_detail(most)},
    )


def peak_detail(found: Mapping[str, Peak]) -> dict[str, list[dict[str, Any]]]:
    """What is alive at each memory's peak, for `Cost.detail["peak_tensors"]`, largest first."""
    return {
        memory: [{"tensor": name, "bytes": size} for name, size in at.tensors]
        for memory, at in found.items()
    }
