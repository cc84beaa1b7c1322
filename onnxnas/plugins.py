"""Passes and targets, built in or third-party, found through entry points.

Groups: ``onnxnas.passes`` (classes deriving from `Pass`), ``onnxnas.targets`` (callables that
return a `CostModel`) and ``onnxnas.target_files`` (a file's suffix, and a callable that makes a
`CostModel` from its path). A plug-in that cannot be loaded stays in the list with its reason; two
plug-ins of one name are an error that names both owners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from onnxnas.cost import CostModel, KernelCostModel
from onnxnas.errors import UsageError, unknown_name
from onnxnas.pass_contract import Pass

PASS_GROUP = "onnxnas.passes"
TARGET_GROUP = "onnxnas.targets"
TARGET_FILE_GROUP = "onnxnas.target_files"


@dataclass(frozen=True)
class Broken:
    """A plug-in that is installed but cannot be loaded."""

    name: str
    owner: str
    reason: str


def load_passes() -> tuple[dict[str, Pass], tuple[Broken, ...]]:
    """All passes by name, in the order they are applied, and those that cannot be loaded."""
    loaded: dict[str, Pass] = {}
    broken: list[Broken] = []
    for name, point in _points(PASS_GROUP).items():
        try:
            made = point.load()()
            if not isinstance(made, Pass):
                raise TypeError(f"{point.value} is not a Pass")
            if made.name != name:
                raise ValueError(f"it calls itself {made.name!r}")
            loaded[name] = made
        except Exception as error:
            broken.append(Broken(name, _owner(point), f"{type(error).__name__}: {error}"))
    ordered = sorted(loaded.values(), key=lambda p: (p.order, p.name))
    return {p.name: p for p in ordered}, tuple(broken)


def target_names() -> list[str]:
    """Names of all installed targets, nothing loaded."""
    return sorted(_points(TARGET_GROUP))


def load_target(name: str) -> CostModel:
    """The cost model of a target.

    Args:
        name: of an installed target, or the path of a file that holds one, e.g. ``my/board.json``.

    Raises:
        UsageError: there is no such target, or it cannot be loaded here.
    """
    points = _points(TARGET_GROUP)
    arguments: tuple[Path, ...] = ()
    suffix = Path(name).suffix.removeprefix(".")
    if name not in points and suffix in (files := _points(TARGET_FILE_GROUP)):
        if not Path(name).is_file():
            raise UsageError(f"There is no target file {name}.")
        points, arguments = {name: files[suffix]}, (Path(name),)
    if name not in points:
        raise unknown_name("target", name, points)
    try:
        made = points[name].load()(*arguments)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"Target {name!r} of {_owner(points[name])} cannot be loaded: "
            f"{type(error).__name__}: {error}."
        ) from error
    if not isinstance(made, CostModel):
        raise UsageError(f"Target {name!r} of {_owner(points[name])} is not a CostModel.")
    return made


def load_predictor(name: str) -> KernelCostModel | None:
    """What was learned about a target, None where nothing was; arguments as of `load_target`.

    Raises:
        UsageError: there is no such target, or what was learned cannot be used here.
    """
    return load_target(name).predictor()


def choose_passes(
    passes: Mapping[str, Pass], only: Sequence[str] | None, skip: Sequence[str] | None
) -> list[Pass]:
    """The passes a user asked for, order kept.

    Raises:
        UsageError: a name is not known.
    """
    for name in [*(only or []), *(skip or [])]:
        if name not in passes:
            raise unknown_name("pass", name, passes)
    return [
        p
        for p in passes.values()
        if (only is None or p.name in only) and p.name not in (skip or [])
    ]


def _points(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise UsageError(
                f"Two plug-ins are called {point.name!r} in {group}: {_owner(other)} and "
                f"{_owner(point)}; uninstall one."
            )
    return dict(sorted(found.items()))


def _owner(point: EntryPoint) -> str:
    dist = point.dist
    return f"{dist.name} {dist.version}" if dist is not None else point.value
