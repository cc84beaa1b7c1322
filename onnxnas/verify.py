"""Does the result do what the original does? Valid, same contract, same outputs, by how much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from onnxnas.calibration import Calibration
from onnxnas.difference import OutputDifference
from onnxnas.errors import UnsupportedError, VerificationError
from onnxnas.foreign import open_up
from onnxnas.graph import check_model, contract
from onnxnas.noise import Noise
from onnxnas.probes import decided_before, decided_on, differences, with_outputs
from onnxnas.resized import as_original, in_words
from onnxnas.runtime import Feeds, Session, random_feeds, sample_feeds

D = TypeVar("D")
M = TypeVar("M")


@dataclass(frozen=True)
class Verification:
    """What was compared and what came of it.

    Attributes:
        problems: why the result is not a valid stand-in for the original, whatever it computes:
            the checker's complaint, a changed input or output, a failed run.
        outputs: one per graph output, in order; where onnxruntime does not know an operator, those
            that can be computed, and the tensors that such operators read (`onnxnas.foreign`).
        inner: the same for tensors that some outputs are read off (scores under an ArgMax, logits
            under a Softmax), which say more than the outputs; they count for `ok` too.
        random_inputs: how many sets of random inputs were compared.
        calibration_rows: how many rows of the user's data were compared.
        notes: what could not be checked, or says little, and why.
        exact: whether the outputs were to be the same; else they only are to be of the same form.
        resized: inputs and outputs whose size the result says it changed, in words.
        blind: every output was the same everywhere, and nothing that decides it could be compared.
    """

    problems: tuple[str, ...] = ()
    outputs: tuple[OutputDifference, ...] = ()
    inner: tuple[OutputDifference, ...] = ()
    random_inputs: int = 0
    calibration_rows: int = 0
    notes: tuple[str, ...] = field(default=())
    exact: bool = True
    resized: str = ""
    blind: bool = False

    @property
    def valid(self) -> bool:
        """Whether the result can stand in for the original: it is valid and runs as it did."""
        return not self.problems

    @property
    def ok(self) -> bool:
        """Whether the result is valid and computes the same but for rounding, if it is to."""
        if not self.exact:
            return self.valid and not any(d.problem for d in self.outputs)
        return self.valid and all(d.ok for d in (*self.outputs, *self.inner))

    def failure(self) -> str:
        """The first reason why it is not ok, as a clause; empty if it is."""
        bad = [str(d) for d in (*self.outputs, *self.inner) if not d.ok]
        return next(iter((*self.problems, *bad)), "")

    def lines(self) -> list[str]:
        """For people; the last line is the verdict."""
        lines = [f"problem: {problem}" for problem in self.problems]
        if self.valid and self.resized:
            lines.append(f"valid ONNX; resized as its metadata says: {self.resized}")
        elif self.valid:
            lines.append("valid ONNX, inputs and outputs unchanged")
        for d in (*self.outputs, *self.inner):
            if self.exact or d.problem:
                lines.append(f"{'same' if d.ok else 'DIFFERENT'}: {d}")
            else:
                lines.append(f"need not be the same: {d.measured()}")
        lines += [f"note: {note}" for note in self.notes]
        rows = f" and {self.calibration_rows} rows of your data" if self.calibration_rows else ""
        if self.ok and not self.outputs:
            lines.append("verified: every node and weight is the same; nothing of it can be run")
        elif self.ok and not self.exact:
            lines.append(
                f"verified: runs as the original does on {self.random_inputs} inputs{rows}"
            )
        elif self.ok:
            worst = max((d.error / d.tolerance for d in self.outputs), default=0.0)
            told = f"at most {worst:.0%} of the allowed error"
            if self.blind:
                told = "which tell nothing apart"
            inputs = f"{self.random_inputs} random inputs{rows}"
            lines.append(f"verified: same outputs on {inputs}, {told}")
        else:
            lines.append(f"NOT the same: {self.failure()}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {
            "ok": self.ok,
            "valid": self.valid,
            "problems": list(self.problems),
            "outputs": [d.to_dict() for d in self.outputs],
            "inner": [d.to_dict() for d in self.inner],
            "random_inputs": self.random_inputs,
            "calibration_rows": self.calibration_rows,
            "notes": list(self.notes),
            "resized": self.resized,
        }


def verify(
    original: Any,
    result: Any,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    calibration: Calibration | None = None,
    seed: int = 0,
    max_rows: int = 64,
    exact: bool = True,
) -> Verification:
    """Compare two models: ONNX checker, contract, outputs in onnxruntime.

    Both run with every graph optimisation off, on random inputs of several scales and on the
    user's own. How far apart the outputs may be is decided by the precision of their type and by
    the original's own rounding noise: the difference between running it with onnxruntime's graph
    optimisations on and off, two correct ways to add the same numbers in another order (see
    `onnxnas.difference`). A result whose metadata says that it takes inputs of another size is
    given them resized, and its outputs are resized back (`onnxnas.resized`).

    Args:
        original: `onnx.ModelProto`; is not changed.
        result: `onnx.ModelProto`; is not changed.
        input_shapes: fixes dynamic dimensions; a dynamic batch is tried as 1 and as 2.
        calibration: rows of real inputs.
        seed: of the random inputs.
        max_rows: compare at most so many rows of the calibration data, evenly spaced.
        exact: False where weights were fitted: then outputs may differ, but not in form.

    Raises:
        UnsupportedError: onnxruntime cannot run the original, or what is left of it without the
            operators it does not know.
        UsageError: an input has dynamic dimensions and no shape is given, or a row of the
            calibration data cannot be used.
    """
    problems, resized = _validity(original, result), in_words(result, original)
    result = as_original(result, original)
    problems += _contract_changes(original, result)
    if problems:
        return Verification(tuple(problems))
    opened = open_up(original, result, input_shapes or {})
    if opened is not None:
        if opened.problem:
            return Verification((opened.problem,), notes=opened.notes)
        original, result = opened.original, opened.result
    names = [port.name for port in contract(original)[1]]
    deciding = decided_on(original, result)
    inner = deciding + decided_before(original, result)
    if opened is not None and not names:
        return Verification(notes=opened.notes)
    original, result = with_outputs(original, inner), with_outputs(result, inner)
    before = Session(original)
    try:
        after = Session(result)
    except UnsupportedError as error:
        return Verification((str(error),))
    noise = Noise(original, names + inner)
    found = differences(original, names + inner)
    # What was fitted to data need not fit noise: there only the form of the outputs counts.
    forms = found
    if not exact and calibration is not None:
        forms = differences(original, names + inner)
    shapes, notes = dict(input_shapes or {}), list(opened.notes if opened else ())
    counts = {"random": 0, "calibration": 0}
    for kind, rows, feeds in _inputs(original, shapes, calibration, seed, max_rows):
        try:
            wanted = before.run(feeds)
        except UnsupportedError as error:
            if kind == "random":
                notes.append(f"the original does not run on one of the random inputs: {error}")
                continue
            raise
        try:
            got = after.run(feeds)
        except UnsupportedError as error:
            return Verification((str(error),))
        noise.add(feeds, wanted)
        counts[kind] += rows
        for name, difference in (forms if kind == "random" else found).items():
            difference.add(wanted[name], got[name])
    if not sum(counts.values()):
        raise UnsupportedError(
            f"The model runs on no random input ({notes[-1]}): give real ones with --calibration."
        )
    for name, difference in found.items():
        difference.noise = noise.of(name)
        difference.problem = difference.problem or forms[name].problem
    for name in [n for n in inner if found[n].problem]:
        # A rewrite may give an inner tensor another form under the same name.
        notes.append(f"the tensor {name!r} under an output has {found[name].problem}")
        inner.remove(name)
    notes += [
        f"output {name!r} was the same everywhere on every input: give --calibration to say more"
        for name in names
        if found[name].constant and not deciding
    ]
    return Verification(
        (),
        tuple(found[name] for name in names),
        tuple(found[name] for name in inner),
        counts["random"],
        counts["calibration"],
        tuple(notes),
        exact,
        resized,
        not deciding and all(found[name].constant for name in names),
    )


def find_guilty(
    decisions: Sequence[D], build: Callable[[Sequence[D]], M], check: Callable[[M], bool]
) -> D | None:
    """The decision that turns a good model bad, found with few builds, by bisection.

    Args:
        decisions: in the order they are applied; all of them together are known to be bad.
        build: makes the model of the first few decisions.
        check: whether a model is good.

    Returns:
        A decision without which the model of all decisions before it is good, and with which it
        is bad; the first such where good never follows bad. None if the model of no decision at
        all is bad already.
    """
    if not check(build(decisions[:0])):
        return None
    good, bad = 0, len(decisions)
    while bad - good > 1:
        middle = (good + bad) // 2
        if check(build(decisions[:middle])):
            good = middle
        else:
            bad = middle
    return decisions[bad - 1]


def _inputs(
    original: Any,
    shapes: Mapping[str, tuple[int, ...]],
    calibration: Calibration | None,
    seed: int,
    max_rows: int,
) -> Iterator[tuple[str, int, Feeds]]:
    try:
        feeds = sample_feeds(contract(original)[0], shapes, seed)
    except UnsupportedError:
        if calibration is None:
            raise
        feeds = []
    for one in feeds:
        yield "random", 1, one
    if calibration is not None:
        rows = calibration.spread(max_rows)
        rng = np.random.default_rng(seed)
        for batch in rows.batches():
            # What nothing can compute (see `onnxnas.foreign`) is an input the data does not have.
            rest = [port for port in contract(original)[0] if port.name not in batch]
            yield "calibration", rows.batch, {**batch, **random_feeds(rest, shapes, rng)}


def _validity(original: Any, result: Any) -> list[str]:
    try:
        check_model(original)
        strict = True
    except VerificationError:  # the result need not be better than the original
        strict = False
    try:
        check_model(result, full=strict)
    except VerificationError as error:
        return [str(error)]
    return []


def _contract_changes(original: Any, result: Any) -> list[str]:
    changes = []
    for what, before, after in zip(
        ("inputs", "outputs"), contract(original), contract(result), strict=True
    ):
        if before != after:
            changes.append(
                f"its {what} are {', '.join(map(str, after)) or 'none'} instead of "
                f"{', '.join(map(str, before)) or 'none'}"
            )
    return changes
