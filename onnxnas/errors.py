"""Errors a user can meet, each with the exit code the command line ends with.

    OnnxnasError            1  something in the tool itself went wrong
    ├── UsageError          2  an option, a path or a file the user gave cannot be used
    ├── InfeasibleError     3  no candidate meets the limits
    ├── VerificationError   4  the result does not do what the original does
    ├── UnsupportedError    5  the model holds nothing the tool or the target can handle
    └── CoverageError       6  too much of the model is outside what the cost model knows

Every message is one sentence: what is wrong, where, and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnnxnasError(Exception):
    """Root of all errors raised on purpose."""

    exit_code = 1


class UsageError(OnnxnasError):
    """An option, a path or a file the user gave cannot be used."""

    exit_code = 2


class InfeasibleError(OnnxnasError):
    """No candidate meets the limits the user set."""

    exit_code = 3


class VerificationError(OnnxnasError):
    """The rewritten model is invalid or its outputs differ from the original's."""

    exit_code = 4


class UnsupportedError(OnnxnasError):
    """The model holds nothing the tool or the target can handle."""

    exit_code = 5


class CoverageError(OnnxnasError):
    """Too much of the model is outside what the cost model knows."""

    exit_code = 6


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a misspelt name: says the nearest known one, or lists them all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}."
    return UsageError(f"Unknown {kind} {name!r}: {hint}")
