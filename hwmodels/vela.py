"""Costs on Arm Ethos-U NPUs from Vela, Arm's own compiler for them.

Figures are the vendor's estimate, not a measurement. The network is lowered to int8 TFLite with
its own weights (Vela compresses them, so their values matter), compiled whole, and the compiler's
cycles per operator are booked on the ONNX tensors each operator computes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxnas.cost import Cost, CostModel, KernelCost, KernelCostModel, Target
from onnxnas.errors import UnsupportedError
from onnxnas.hwmodels import catboost_model
from onnxnas.hwmodels.tflite_context import WeightCache
from onnxnas.hwmodels.tflite_lowering import Lowered, Part, lower
from onnxnas.hwmodels.vela_compiler import Compiled, System, VelaCompiler

_CPU = "Passthrough"
_ON_CHIP_TABLES = frozenset({"shram", "lutram"})
"""Memories inside the NPU, of fixed use; the vela command does not report them either."""


class VelaCostModel(CostModel):
    """Vela's estimate for one Ethos-U target.

    Args:
        target: its `config` names ``accelerator``, ``macs_per_core``, ``cores``,
            ``system_config``, ``memory_mode``, ``arena_bytes`` and ``largest_resize``.
        cache_dir: where compiles are kept between runs; None keeps them in memory only.
        jobs: compiles that may run at once; default: the cores this process may use.
    """

    def __init__(
        self, target: Target, cache_dir: Path | None = None, jobs: int | None = None
    ) -> None:
        self.target = target
        config = target.config
        self._largest_resize = int(config["largest_resize"])
        self._weights = WeightCache()
        self._compiler = VelaCompiler(
            System(
                accelerator=config["accelerator"],
                macs=int(config["macs_per_core"]),
                cores=int(config["cores"]),
                system_config=config["system_config"],
                memory_mode=config["memory_mode"],
                arena_bytes=int(config["arena_bytes"]),
            ),
            cache_dir,
            jobs,
        )

    def cost(self, graph: Any) -> Cost:
        """See `CostModel.cost`."""
        return self.cost_many([graph])[0]

    def cost_many(self, graphs: Sequence[Any]) -> list[Cost]:
        """Costs in the order of the graphs, compiled in parallel.

        Raises:
            UnsupportedError: nothing in one of the graphs can be costed, or Vela fails on it.
        """
        started: list[tuple[Lowered, Future[Compiled] | None]] = []
        try:
            for graph in graphs:
                lowered = self.lower(graph)
                future = self._compiler.submit(lowered.tflite) if lowered.tflite else None
                started.append((lowered, future))
            return [self._cost(low, f.result() if f else None) for low, f in started]
        except BaseException:
            self._compiler.cancel()
            raise

    def predictor(self) -> KernelCostModel | None:
        """The trained model of the built-in target of that name."""
        card = Path(__file__).with_name(f"{self.target.name}.json")
        return catboost_model.load(card) if card.with_suffix(".cbm").exists() else None

    def lower(self, graph: Any) -> Lowered:
        """The TFLite file that is compiled for a graph, and what became of each node."""
        return lower(graph, self._weights, largest_resize=self._largest_resize)

    def _cost(self, lowered: Lowered, compiled: Compiled | None) -> Cost:
        kernels = _kernels(lowered.parts, compiled)
        available = [k.cycles for k in kernels if k.cycles is not None]
        if kernels and not available:
            reasons = sorted({f"{k.op} ({k.reason})" for k in kernels})
            raise UnsupportedError(
                f"Nothing in the network can be costed on {self.target.name}: {'; '.join(reasons)}."
            )
        cycles = float(sum(available))
        return Cost(
            target=self.target.name,
            kind=self.target.kind,
            cycles=cycles,
            seconds=cycles / self.target.clock_hz,
            macs=sum(k.macs for k in kernels),
            peak_bytes=_peak_bytes(compiled) if compiled else {},
            weight_bytes=compiled.weight_bytes if compiled else 0,
            kernels=tuple(kernels),
            detail={
                "memory_bytes": _memory_bytes(compiled) if compiled else {},
                "constant_bytes": compiled.constant_bytes if compiled else 0,
            },
        )


def _memory_bytes(compiled: Compiled) -> dict[str, int]:
    """Peak use per memory, constants included, as the vela command reports it."""
    return {
        name.lower(): size
        for name, size in compiled.memory.items()
        if name.lower() not in _ON_CHIP_TABLES
    }


def _peak_bytes(compiled: Compiled) -> dict[str, int]:
    """Peak use per memory that holds activations; constants lie outside the SRAM, not counted."""
    peaks = {}
    for name, size in _memory_bytes(compiled).items():
        if name != "sram":
            size -= compiled.constant_bytes
        if size > 0:
            peaks[name] = size
    return peaks


@dataclass
class _Booking:
    """What the compiler says about the operators of one part."""

    cycles: int = 0
    kind: str = ""
    longest: int = -1
    cpu: str = ""
    inside: set[int] = field(default_factory=set)
    leads: bool = False


def _kernels(parts: Sequence[Part], compiled: Compiled | None) -> list[KernelCost]:
    """Cycles of the compiler's operators, booked on parts; what runs inside another joins it."""
    bookings = _bookings(parts, compiled) if compiled else [_Booking() for _ in parts]
    home = list(range(len(parts)))
    for i, booking in enumerate(bookings):
        if len(booking.inside) == 1 and not booking.leads:
            (home[i],) = booking.inside
    joined: dict[int, list[int]] = {}
    for i in range(len(parts)):
        first = i
        while home[first] != first:
            first = home[first]
        joined.setdefault(first, []).append(i)
    kernels = []
    for first, members in sorted(joined.items()):
        part, booking = parts[first], bookings[first]
        reason = part.reason or booking.cpu
        kernels.append(
            KernelCost(
                output=parts[members[-1]].tensors[-1],
                op=part.op if reason else booking.kind or part.op,
                tensors=tuple(t for m in members for t in parts[m].tensors),
                cycles=None if reason else float(sum(bookings[m].cycles for m in members)),
                macs=sum(parts[m].macs for m in members),
                reason=reason,
            )
        )
    return kernels


def _bookings(parts: Sequence[Part], compiled: Compiled) -> list[_Booking]:
    owner = {number: i for i, part in enumerate(parts) for number in part.operators}
    written = {tensor: i for i, part in enumerate(parts) for tensor in part.tensors}
    bookings = [_Booking() for _ in parts]
    places = _places(compiled, owner, written)
    for row, place in zip(compiled.operators, places, strict=True):
        booking = bookings[place]
        leader = None if row.leader is None else places[row.leader]
        if leader is None or leader == place:
            booking.leads = True
        else:
            booking.inside.add(leader)
        booking.cycles += row.cycles
        if row.kind == _CPU:
            booking.cpu = _cpu_reason(row.tensor, compiled.messages)
        elif row.cycles > booking.longest:
            booking.longest, booking.kind = row.cycles, row.kind
    return bookings


def _places(compiled: Compiled, owner: dict[int, int], written: dict[str, int]) -> list[int]:
    """The part each row belongs to.

    Some operators (ArgMax on U55 and U65) become rows without a source, of which only the last
    writes a tensor of the network: the rows before it belong to it.
    """
    known = []
    for row in compiled.operators:
        # What an operator needs besides is called after the tensor that its part is about.
        place = written.get(row.tensor, written.get(row.tensor.rpartition("/")[0]))
        known.append(place if row.source is None else owner.get(row.source, place))
    following = next((k for k in reversed(known) if k is not None), 0)
    places = []
    for place in reversed(known):
        following = following if place is None else place
        places.append(following)
    return places[::-1]


def _cpu_reason(tensor: str, messages: str) -> str:
    found = re.search(
        rf"operator: (\w+), ofm: '{re.escape(tensor)}'\s*\nReason: ([^\n]*)", messages
    )
    why = f": {found[1]}, {found[2]}" if found else ""
    return f"Vela leaves it to the CPU{why}"
