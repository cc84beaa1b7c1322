"""What was fitted, kept on disk under a key of everything that it depends on."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxnas.pass_contract import Fitted, Pass


@dataclass
class BlockLibrary:
    """What was fitted, on disk: the same weights, data and choice are never fitted twice.

    Attributes:
        folder: None keeps nothing.
    """

    folder: Path | None

    def get(self, key: str) -> Fitted | None:
        """What is kept under a key; a damaged file counts as nothing."""
        if self.folder is None:
            return None
        path = self.folder / f"{key}.npz"
        try:
            with np.load(path) as stored:
                values = {name: stored[name] for name in stored.files}
            return Fitted(values, float(values.pop("error")))
        except (OSError, ValueError, KeyError, EOFError):
            return None

    def put(self, key: str, fitted: Fitted) -> None:
        """Keep a fit; written aside and renamed, so that no reader finds half a file."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".npz")
        with os.fdopen(handle, "wb") as file:
            values: dict[str, Any] = dict(fitted.values)
            np.savez(file, **values, error=np.float64(fitted.error))
        Path(name).replace(self.folder / f"{key}.npz")


def code_digest(pass_: type[Pass]) -> str:
    """Of what fits: a pass that is being worked on must not be handed its old fits."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("*_fit.py")), here / "samples.py", here / "least_squares.py"]
    with contextlib.suppress(OSError, TypeError):  # made in a session, not in a file
        files.append(Path(inspect.getfile(pass_)))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files if f.is_file())).hexdigest()
