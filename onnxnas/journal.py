"""What was really evaluated, on disk: a killed run continues, another goal pays nothing twice.

A journal is a text file of JSON lines. The first says what its values are of (model, target,
data); each other line is one evaluation, written out before the next one starts. Nothing is ever
rewritten, so a kill can only cut the last line, which is then dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from onnxnas.errors import UsageError
from onnxnas.sites import Candidate

_FORMAT = 1


class Journal:
    """Evaluations by kind and candidate; use as a context manager or `close` it.

    It remembers one entry per real evaluation; candidates that are only looked up in a table are
    none of its business.
    """

    def __init__(self, path: Path, context: Mapping[str, str]) -> None:
        """Open a journal, or begin one.

        Args:
            path: the file; its folder exists.
            context: what evaluations depend on beside the candidate, by name, e.g. digests of
                the model, the target card and the data. Not the goal.

        Raises:
            UsageError: the file is of another context, or is no journal, or cannot be opened.
        """
        self.path = path
        self._known: dict[tuple[str, str], dict[str, Any]] = {}
        try:
            whole = self._read(dict(context))
            self._file: TextIO = path.open("r+" if whole else "w", encoding="utf-8", newline="\n")
        except OSError as error:
            raise UsageError(f"Cannot use {path} as a journal: {error.strerror}.") from None
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._write({"journal": _FORMAT, "context": dict(context)})

    def get(self, kind: str, candidate: Candidate) -> dict[str, Any] | None:
        """What `add` was given for a candidate; None if it was not evaluated yet."""
        return self._known.get((kind, str(candidate)))

    def add(self, kind: str, candidate: Candidate, values: Mapping[str, Any]) -> None:
        """Write one evaluation down.

        Args:
            kind: of evaluation, e.g. ``compiled`` or ``held-out``.
            candidate: what was evaluated.
            values: plain JSON values; no infinities (leave out what is impossible).
        """
        self._write({"kind": kind, "candidate": str(candidate), "values": dict(values)})
        self._known[kind, str(candidate)] = dict(values)

    def __len__(self) -> int:
        return len(self._known)

    def close(self) -> None:
        """Close the file; what was added is on disk already."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def _read(self, context: dict[str, str]) -> int:
        """Take in the whole lines; returns how many bytes of the file they are."""
        if not self.path.exists():
            return 0
        whole = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    if number == 1:
                        self._check(record, context)
                    else:
                        self._known[record["kind"], record["candidate"]] = dict(record["values"])
                except (ValueError, KeyError, TypeError):
                    raise UsageError(
                        f"Line {number} of {self.path} is not of a journal: "
                        "remove the file, or name another run folder."
                    ) from None
                whole += len(line)
        return whole

    def _check(self, header: Mapping[str, Any], context: dict[str, str]) -> None:
        if header["journal"] != _FORMAT:
            raise KeyError
        before = dict(header["context"])
        other = [name for name in {**before, **context} if before.get(name) != context.get(name)]
        if other:
            raise UsageError(
                f"{self.path} holds evaluations of another {' and '.join(other)}: "
                "remove the file, or name another run folder."
            )
