"""Rounding noise of a model: two correct ways to add the same numbers in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxnas.errors import UnsupportedError
from onnxnas.probes import differences
from onnxnas.runtime import Feeds, Session


class Noise:
    """How far two correct ways of running the original are apart, per output."""

    def __init__(self, original: Any, names: Sequence[str]) -> None:
        """Load it once more.

        Args:
            original: `onnx.ModelProto` with these outputs.
        """
        self._found = differences(original, names)
        try:
            self._session: Session | None = Session(original, optimised=True)
        except UnsupportedError:  # then only the precision of the type counts
            self._session = None

    def add(self, feeds: Feeds, plain: Mapping[str, Any]) -> None:
        """Compare one run.

        Args:
            feeds: inputs.
            plain: what the original makes of them with every optimisation off.
        """
        if self._session is None:
            return
        try:
            optimised = self._session.run(feeds)
        except UnsupportedError:
            self._session = None
            return
        for name, difference in self._found.items():
            difference.add(plain[name], optimised[name])

    def of(self, name: str) -> float:
        """`OutputDifference.error` between the two; 0 where that is not known."""
        found = self._found[name]
        return 0.0 if found.problem else found.error
