"""The rules file: what an expert rules out, demands or prefers, as small TOML.

    fuse-ibn = "never in head*"
    scale-width = ["only in stages 1-3", "prefer three-quarters in stage 1 by 4"]
    factorize-conv = "force rank-50 at backbone.2.conv"
    "*" = "never under 1% of cycles"

A rule is a verb, choices (globs over their labels, none means all) and places (none means
everywhere), separated by commas: names of tensors or nodes as globs, stages, or a share of the
original's cycles. `onnxnas.rules` applies them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, cast

from onnxnas.errors import UsageError, unknown_name
from onnxnas.toml_file import parse_toml, read_text

Verb = Literal["never", "forbid", "only", "force", "prefer"]

_VERBS = ("never", "forbid", "only", "force", "prefer")
_PLACES = frozenset({"in", "at", "stage", "stages", "under", "over", "sites"})
_SHARE = re.compile(r"(under|over)\s+([0-9.]+)\s*%(?:\s+of\s+(?:the\s+)?cycles)?")
_STAGES = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")
_FACTOR = 2.0
"""How many times less a preferred choice counts as losing, unless the rule says."""


@dataclass(frozen=True)
class Place:
    """Where a rule holds: one of its parts.

    Attributes:
        names: glob over the names of a site's tensors and of the nodes that compute them.
        stages: first and last.
        under: only sites whose kernels take less than this share of the original's cycles.
        over: or more than this share.
    """

    names: str | None = None
    stages: tuple[int, int] | None = None
    under: float | None = None
    over: float | None = None


@dataclass(frozen=True)
class Rule:
    """One line of a rules file.

    Attributes:
        text: as written, for messages: ``fuse-ibn = "never in head*"``.
        passes: glob over pass names.
        verb: never and forbid are the same.
        choices: globs over labels; empty means all.
        places: any of them; empty means everywhere.
        factor: of *prefer*.
    """

    text: str
    passes: str
    verb: Verb
    choices: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    factor: float = _FACTOR

    @classmethod
    def parse(cls, passes: str, text: str, where: str = "rules") -> Rule:
        """Read one rule.

        Args:
            passes: the key it stands under.
            where: the file, for messages.

        Raises:
            UsageError: it cannot be read.
        """
        shown = f'{passes} = "{text}"'
        words = text.replace(",", " , ").split()
        if not words or words[0] not in _VERBS:
            raise UsageError(
                f"{where}: cannot read {shown}: begin with never, only, force, forbid or prefer."
            )
        verb, words = cast(Verb, words[0]), words[1:]
        if {"and", "or"} & set(words):
            raise UsageError(f"{where}: cannot read {shown}: separate with commas, not and/or.")
        factor = _FACTOR
        if len(words) > 1 and words[-2] == "by":
            factor = _factor(words[-1], verb, f"{where}: cannot read {shown}")
            words = words[:-2]
        start = next((i for i, word in enumerate(words) if word in _PLACES), len(words))
        choices = tuple(word for word in words[:start] if word != ",")
        places = tuple(_places(words[start:], f"{where}: cannot read {shown}"))
        if verb in ("only", "force") and not choices and not places:
            raise UsageError(f"{where}: cannot read {shown}: say what, or in which place.")
        return cls(shown, passes, verb, choices, places, factor)


def read_rules(path: Path, passes: Iterable[str]) -> tuple[Rule, ...]:
    """Read a rules file.

    Args:
        passes: names of all that are installed.

    Raises:
        UsageError: it cannot be read, or names a pass that does not exist.
    """
    return parse_rules(read_text(path, "rules"), passes, str(path))


def parse_rules(text: str, passes: Iterable[str], where: str = "rules") -> tuple[Rule, ...]:
    """Read the text of a rules file; see `read_rules`."""
    known, rules = tuple(passes), []
    for key, value in parse_toml(text, where).items():
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(t, str) for t in texts):
            raise UsageError(f'{where}: {key} is no rule: write {key} = "never in head*".')
        if not any(fnmatchcase(name, key) for name in known):
            raise unknown_name(f"pass in {where}", key, known)
        rules += [Rule.parse(key, t, where) for t in texts]
    return tuple(rules)


def _factor(text: str, verb: str, cannot: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = float("nan")
    if verb != "prefer" or not 0 < factor < float("inf"):
        raise UsageError(f"{cannot}: 'by' takes a positive number, and only after prefer.")
    return factor


def _places(words: Sequence[str], cannot: str) -> Iterable[Place]:
    parts = [part.split() for part in " ".join(words).split(",")] if words else []
    in_stages = False  # "stages 1, 3-4": a number goes on where stages were named
    for part in parts:
        while part and part[0] in ("in", "at", "sites"):
            part, in_stages = part[1:], False
        named = bool(part) and part[0] in ("stage", "stages")
        text = " ".join(part[1:] if named else part)
        share = _SHARE.fullmatch(text)
        numbers = _STAGES.fullmatch(text) if named or in_stages else None
        in_stages = numbers is not None
        if numbers:
            first = int(numbers[1])
            yield Place(stages=(first, int(numbers[2] or first)))
        elif named:
            raise UsageError(f"{cannot}: stages are written 2, or 1-3.")
        elif share:
            value = float(share[2]) / 100
            yield Place(under=value) if share[1] == "under" else Place(over=value)
        elif len(part) == 1:
            yield Place(names=text)
        else:
            raise UsageError(
                f"{cannot}: {text or 'nothing'!r} is no place; write a name like head*, "
                "stages 1-3, or under 1% of cycles."
            )
