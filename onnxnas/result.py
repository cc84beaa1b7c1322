"""What the main job hands back: the model, its figures, how they came about; and writing it all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from onnxnas import report
from onnxnas.attribution import Contribution
from onnxnas.cost import Target
from onnxnas.errors import UsageError
from onnxnas.front_point import FrontPoint
from onnxnas.graph import Port
from onnxnas.loading import save_model
from onnxnas.pass_contract import Miss
from onnxnas.prepare import Network
from onnxnas.quality import Quality
from onnxnas.recipe import Recipe
from onnxnas.report_tables import change
from onnxnas.rule_costs import RuleCost
from onnxnas.rules import Ruled
from onnxnas.search import LedgerRow, Trial
from onnxnas.verify import Verification
from onnxnas.version import __version__


@dataclass(frozen=True)
class Exported:
    """A named candidate of the front, verified.

    Attributes:
        label: ``A`` to ``E``.
        model: the `onnx.ModelProto`.
        recipe: replays it.
    """

    label: str
    model: Any
    recipe: Recipe


@dataclass(frozen=True)
class Result:
    """What came out; `to_dict()` is the JSON report.

    Attributes:
        model: the `onnx.ModelProto` to deploy.
        original: figures of the cleaned input, the baseline of every claim.
        optimized: figures of `model`, from a whole-network run of the cost source.
        ledger: one row per site and choice.
        search: strategy, seed, evaluations, seconds, why it stopped.
        quality: the task metric before and after, where one was given.
        external: weights are written to a file beside the model, as the input's were.
        ruled: what the user's rules did; None without any.
        rule_costs: what each rule cost, in their order; empty where that was not looked at.
        front: networks that could be had instead, `recipe` among them, marked as chosen.
        contributions: the result taken apart by kind of rewrite.
        candidates: those of the front that are to be written as well.
    """

    model: Any
    source: str
    source_sha256: str
    target: Target
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    input_shapes: Mapping[str, tuple[int, ...]]
    normalisation: tuple[str, ...]
    original: Network
    optimized: Network
    recipe: Recipe
    verification: Verification
    ledger: tuple[LedgerRow, ...] = ()
    misses: tuple[Miss, ...] = ()
    trials: tuple[Trial, ...] = ()
    search: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    quality: tuple[Quality, ...] = ()
    external: bool = False
    ruled: Ruled | None = None
    rule_costs: tuple[RuleCost, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    contributions: tuple[Contribution, ...] = ()
    candidates: tuple[Exported, ...] = ()
    version: str = __version__

    @property
    def status(self) -> str:
        """``improved``, or ``unchanged`` where nothing beat the cleaned original."""
        return "improved" if self.recipe.candidate.decisions else "unchanged"

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the search."""
        return self.search.get("stopped") == "interrupted"

    @property
    def exactness(self) -> str:
        """The weakest class among the rewrites."""
        classes = set(self.recipe.exactness.values())
        return next((c for c in ("retrain", "recovered") if c in classes), "exact")

    def headline(self) -> str:
        """One line: latency before and after, and what kind of figure it is."""
        before, after = self.original.cost, self.optimized.cost
        return (
            f"{Path(self.source).name} on {self.target.name}: "
            f"{before.seconds * 1e3:.3f} ms -> {after.seconds * 1e3:.3f} ms "
            f"({change(before.seconds, after.seconds)}, {after.kind})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, valid under `onnxnas.report.schema()`."""
        return report.as_dict(self)

    def write(self, output: str | Path, run_dir: str | Path | None = None) -> None:
        """Write the model and the run folder's reports; each file whole or not at all.

        Args:
            output: of the model.
            run_dir: of the reports; by default beside the model, with suffix ``.run``.

        Raises:
            UsageError: a path cannot be written.
        """
        output = Path(output)
        run_dir = output.with_suffix(".run") if run_dir is None else Path(run_dir)
        make_folder(run_dir)
        folder = run_dir / "candidates"
        _remove([run_dir / name for name in report.PICTURES], folder.glob("[A-E].*"))
        for name, content in report.files_of(self).items():
            write_file(run_dir / name, content)
        for e in self.candidates:
            make_folder(folder)
            write_text(folder / f"{e.label}.toml", e.recipe.to_toml())
            save_model(e.model, folder / f"{e.label}.onnx", external=self.external)
        save_model(self.model, output, external=self.external)


def _remove(*files: Iterable[Path]) -> None:
    """Remove what an earlier run left that this one may not write again: it would mislead."""
    for path in chain(*files):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"Cannot replace {path}: {error.strerror}.") from error


def make_folder(folder: Path) -> None:
    """Create a folder and those above it.

    Raises:
        UsageError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot create the run folder {folder}: {error.strerror}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it; see `write_file`."""
    write_file(path, text.encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it.

    Raises:
        UsageError: the path cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)
