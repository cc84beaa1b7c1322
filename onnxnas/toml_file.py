"""Reading the small TOML files that people write: recipes and rules."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from onnxnas.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The file's tables.

    Args:
        where: what to call it in messages.

    Raises:
        UsageError: it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not valid TOML: {error}.") from error


def read_text(path: Path, what: str) -> str:
    """A text file as it is.

    Args:
        what: e.g. ``recipe``, for the message.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot read {what} {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"Cannot read {what} {path}: it is not UTF-8 text.") from error
