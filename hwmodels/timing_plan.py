"""Which small models to time on a device that no compiler or runtime here can cost.

Three kinds: single kernels at and beside the channel steps of the device, where costs jump; single
kernels as they occur in real networks, those of the user's own models first; and a few whole
networks, which show what kernels cost inside a network compared with alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxnas.excerpt import excerpt
from onnxnas.graph import from_model, static_view
from onnxnas.hwmodels.network_builder import NetworkBuilder
from onnxnas.hwmodels.sampling import sample_network, training_plan
from onnxnas.kernels import Kernel, split_kernels
from onnxnas.memory import Flow

OVERHEAD = "overhead"
KERNEL = "kernel"
NETWORK = "network"

_STEPPED_SHARE = 0.5
"""Of the kernels that come from no model of the user's."""
_FROM_ONE_NETWORK = 10
_LARGEST_NETWORK = 10
"""Times the largest kernel."""
_OLD_FORMAT, _OLD_OPSET = 10, 21
"""Version of the ONNX file format, and the opset it came with."""


@dataclass(frozen=True)
class Timed:
    """One model to time.

    Attributes:
        name: file name without suffix.
        kind: ``kernel``, ``network``, or ``overhead``: next to nothing, so its time is what every
            call costs.
        model: `onnx.ModelProto`, to be run with random inputs.
        what: in words, for people.
    """

    name: str
    kind: str
    model: Any
    what: str


def plan(
    steps: Sequence[int],
    like: Sequence[tuple[str, Any]] = (),
    kernels: int = 300,
    networks: int = 12,
    seed: int = 0,
    largest: int = 60_000_000,
) -> list[Timed]:
    """The models to time.

    Args:
        steps: channel counts whose multiples the device is fast at, e.g. ``(8, 16)``.
        like: the user's models, name and graph with static shapes; all their kernels are timed.
        kernels: single kernels in all, at least those of `like`.
        networks: sampled whole networks; those of `like` are timed too.
        seed: of all chance.
        largest: multiply-accumulates of a sampled kernel at most; sampled networks have no
            larger ones either, so what is trained on the kernels can be judged on them.
    """
    made = [Timed("call", OVERHEAD, _empty(), "a copy of one number")]
    known: set[object] = set()
    for name, graph in like:
        for model, kernel in single_kernels(graph):
            _keep(made, known, model, kernel, name)
        made.append(Timed(f"whole-{name}", NETWORK, export(graph), f"{name}, whole"))
    stepped = _stepped(steps, np.random.default_rng([seed, 1]))
    sampled = _sampled(seed)
    rng = np.random.default_rng([seed, 2])
    while len(known) < kernels:
        model, kernel = next(stepped if rng.random() < _STEPPED_SHARE else sampled)
        if kernel.macs <= largest:
            _keep(made, known, model, kernel, "sampled")
    number = seed * 10_000
    while networks > 0:
        family, number = training_plan(1, number)[0]
        graph = static_view(sample_network(family, number), {})
        works = [k.macs for k in split_kernels(graph)]
        if max(works) <= largest and sum(works) <= _LARGEST_NETWORK * largest:
            name = f"whole-{family}-{number}"
            made.append(Timed(name, NETWORK, export(graph), f"{family}, {sum(works):,} MACs"))
            networks -= 1
        number += 1
    return made


def single_kernels(graph: Any) -> Iterator[tuple[Any, Kernel]]:
    """Every kernel of a network as a model of its own, with the kernel that model consists of.

    Those that would be split differently on their own are left out, and those that compute
    nothing.
    """
    kernels = split_kernels(graph)
    flow = Flow(graph, kernels)
    for i, kernel in enumerate(kernels):
        if not flow.reads[i]:
            continue
        model = _readable(excerpt(graph, flow.writes[i], flow.reads[i]))
        found = split_kernels(from_model(model))
        if len(found) == 1 and found[0].op == kernel.op:
            yield model, found[0]


def export(graph: Any) -> Any:
    """A static network as `onnx.ModelProto`, in a format that older runtimes read too."""
    return _readable(excerpt(graph, [t.name for t in graph.outputs]))


def describe(kernel: Kernel) -> str:
    """A kernel in words."""
    window = f" {kernel.window[0]}x{kernel.window[1]}" if max(kernel.window) > 1 else ""
    stride = f" stride {kernel.strides[0]}" if max(kernel.strides) > 1 else ""
    activation = "" if kernel.activation == "none" else f" {kernel.activation}"
    size = f"{kernel.in_height}x{kernel.in_width}"
    channels = f"{kernel.in_channels} to {kernel.out_channels} channels"
    return f"{kernel.op}{window}{stride}{activation}, {channels} at {size}"


def _keep(made: list[Timed], known: set[object], model: Any, kernel: Kernel, origin: str) -> None:
    shape = tuple(v for v in kernel.key if not isinstance(v, float))
    if shape not in known:
        known.add(shape)
        name = f"kernel-{len(known):04d}"
        made.append(Timed(name, KERNEL, model, f"{describe(kernel)} ({origin})"))


def _sampled(seed: int) -> Iterator[tuple[Any, Kernel]]:
    """Kernels of sampled networks, a few of each, operators that came up least first."""
    number = seed * 10_000 + 5_000
    seen: Counter[str] = Counter()
    while True:
        family, number = training_plan(1, number)[0]
        rng = np.random.default_rng([seed, number])
        found = list(single_kernels(static_view(sample_network(family, number), {})))
        left = [found[i] for i in rng.permutation(len(found))]
        for _ in range(min(_FROM_ONE_NETWORK, len(left))):
            rarest = min(range(len(left)), key=lambda i: seen[left[i][1].op])
            seen[left[rarest][1].op] += 1
            yield left.pop(rarest)
        number += 1


def _stepped(steps: Sequence[int], rng: np.random.Generator) -> Iterator[tuple[Any, Kernel]]:
    """Convolutions and products with channel counts at multiples of a step and one beside."""
    while True:
        b = NetworkBuilder(rng)
        size = int(rng.choice([4, 7, 8, 14, 16, 20, 28, 40, 56, 80, 112]))
        step = int(rng.choice(steps))
        reach = max(1, min(24, 1280 // size // step))

        def width(step: int = step, reach: int = reach) -> int:
            return max(1, step * int(rng.integers(1, reach + 1)) + int(rng.choice([-1, 0, 0, 1])))

        x = gs.Variable("x", np.dtype(np.float32), [1, width(), size, size])
        b.graph.inputs.append(x)
        kind = b.pick(
            "pointwise", "pointwise", "window", "depthwise", "add", "pool", "concat", "resize"
        )
        if kind == "pointwise":
            y = b.activate(b.conv(x, width()))
        elif kind == "window":
            y = b.activate(b.conv(x, width(), b.pick(3, 3, 5), b.pick(1, 2)))
        elif kind == "depthwise":
            y = b.activate(b.depthwise(x, b.window(), b.pick(1, 2)))
        elif kind == "resize":
            y = b.resize(x, (2 * size, 2 * size))
        elif kind == "pool":
            y = b.global_pool(x) if b.chance(0.5) else b.pool(x, "MaxPool", 2, 2)
        else:
            other = gs.Variable("z", np.dtype(np.float32), list(x.shape))
            b.graph.inputs.append(other)
            y = b.add(x, other) if kind == "add" else b.concat([x, other])
        b.graph.outputs.append(y)
        yield from single_kernels(static_view(b.finish("kernel"), {}))


def _empty() -> Any:
    builder = NetworkBuilder(np.random.default_rng(0))
    x = gs.Variable("x", np.dtype(np.float32), [1, 1, 1, 1])
    builder.graph.inputs.append(x)
    builder.graph.outputs.append(builder.op("Relu", [x], [1, 1, 1, 1]))
    return export(builder.finish("call"))


def _readable(model: Any) -> Any:
    """The same for older runtimes: the exporter declares a newer format than these models need."""
    if all(entry.version <= _OLD_OPSET for entry in model.opset_import):
        model.ir_version = min(model.ir_version, _OLD_FORMAT)
    return model
