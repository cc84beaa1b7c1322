"""One step of an Ethos-U schedule, the order steps run in, and which run inside another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnxnas.ops import UNARY_ELEMENTWISE

_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum"})
_WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "GlobalAveragePool", "ReduceMean"}
)
_LONGEST_CHAIN = 4
_MOST_INPUTS = 3
"""Of a chain: its steps, and the tensors it reads from memory."""


CLAMPS = frozenset({"Relu", "Relu6", "Clip"})
"""Activations that the output unit does by itself; it looks others up in a table."""


@dataclass
class Step:
    """One operation of the schedule.

    Attributes:
        op: ONNX operator it comes from; ``Copy`` moves a tensor into a larger one.
        kernel: index of the kernel it belongs to.
        reads, writes: memories, see `Steps.root`.
        rows: input rows one output row needs (dilated window).
        stride: input rows between output rows.
        weight_bytes: encoded weights.
        on_cpu: the NPU cannot do it.
        part: it writes a part of what it writes.
        chained: elementwise steps run inside it.
        enlarges: output rows per input row.
        apart: it cannot run inside the step before.
        shape: of what it computes, which may be a part of what it writes to.
        source: shape of what it reads first.
        window: height and width of the mean that an enlargement smooths with.
        inside: steps that run inside it.
    """

    op: str
    kernel: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    rows: int = 1
    stride: int = 1
    weight_bytes: float = 0.0
    on_cpu: bool = False
    part: bool = False
    chained: bool = False
    enlarges: int = 1
    apart: bool = False
    shape: tuple[int, ...] = ()
    source: tuple[int, ...] = ()
    window: int = 1
    inside: list[Step] = field(default_factory=list)

    @property
    def arithmetic(self) -> bool:
        """Whether it combines tensors element by element, not by a table or a clamp."""
        return self.op in _ARITHMETIC

    @property
    def elementwise(self) -> bool:
        """Whether each output element comes from one place of each input."""
        return self.op in _ARITHMETIC or self.op in UNARY_ELEMENTWISE or self.op == "PRelu"

    @property
    def takers(self) -> Iterator[tuple[str, Step]]:
        """Each tensor it reads, with the step that does: itself or one inside it."""
        inner = [(name, step) for step in self.inside for name in step.reads if step.arithmetic]
        yield from ((name, self) for name in self.reads[: len(self.reads) - len(inner)])
        yield from inner

    @property
    def weighted(self) -> bool:
        return self.op in _WEIGHTED


def depth_first(
    steps: Sequence[Step], writers: Mapping[str, Sequence[int]], outputs: Iterable[str]
) -> list[int]:
    """Order of execution: from the outputs, the last writer of the last input first.

    Args:
        steps: of the network.
        writers: steps that write each memory.
        outputs: memories of the network's outputs.
    """
    order: list[int] = []
    seen: set[int] = set()
    stack = [(False, i) for t in dict.fromkeys(outputs) for i in writers.get(t, ())]
    while stack:
        done, i = stack.pop()
        if done:
            order.append(i)
        elif i not in seen:
            seen.add(i)
            stack.append((True, i))
            for name in steps[i].reads:
                stack += [(False, j) for j in writers.get(name, ()) if j not in seen]
    return order


def fused(
    steps: Sequence[Step],
    busy: Sequence[bool],
    chaining: bool,
    outputs: Collection[str],
) -> list[Step]:
    """Activations join the step before; on chaining NPUs so do other elementwise steps.

    Args:
        steps: in order of execution; those that take others in are changed.
        busy: whether each has an activation already.
        chaining: results go to elementwise steps without being stored.
        outputs: memories that must be stored.
    """
    readers = count(t for step in steps for t in step.reads)
    writers = count(t for step in steps for t in step.writes)
    kept: list[Step] = []
    length = inputs = 0
    active = False
    for step, own in zip(steps, busy, strict=True):
        unary = step.op in UNARY_ELEMENTWISE and len(step.reads) == 1
        before = kept[-1] if kept else step
        link = before.writes[0]
        more = len(step.reads) - 1
        fits = (
            before is not step
            and link in step.reads
            and link not in outputs
            and not (step.on_cpu or before.on_cpu or before.part or step.part or step.apart)
            and before.shape == step.shape  # what is broadcast must be stored
            and readers[link] == 1
            and writers[link] == 1
            and before.op not in ("Copy", "Transpose")
        )
        chains = (
            chaining
            and step.elementwise
            and step.op != "PRelu"
            and before.op not in ("Resize", "Upsample")
            and length < _LONGEST_CHAIN
            and inputs + more <= _MOST_INPUTS
        )
        if fits and unary and not active:
            before.writes, active = step.writes, True
            before.inside.append(step)
        elif fits and chains:
            length, inputs = length + 1, inputs + more
            step.reads = tuple(t for t in step.reads if t != link)
            before.reads = (*before.reads, *step.reads)
            before.writes, before.chained = step.writes, True
            before.inside.append(step)
        else:
            kept.append(step)
            length, inputs, active = 1, len(step.reads), own or unary
    return kept


def count(names: Iterable[str]) -> dict[str, int]:
    """How often each name comes up."""
    return dict(Counter(names))
