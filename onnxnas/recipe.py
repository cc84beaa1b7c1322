"""The recipe: a small text file with the choices that made a result; replays and can be edited."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxnas.errors import UsageError
from onnxnas.sites import Candidate
from onnxnas.toml_file import parse_toml, read_text

FORMAT = 1


@dataclass(frozen=True)
class Fingerprint:
    """What a place looks like, so that its like is found in another model.

    Attributes:
        structure: of the nodes it is about, e.g. ``Conv 1x1 wider, Conv 3x3/2 depthwise``.
        stage: see `onnxnas.rules.stages`; 0 where there is none.
        nth: which of the places of its pass, structure and stage it is, from 1.
        share: channels its choice leaves, of those there are; None for choices that do not say.
    """

    structure: str
    stage: int
    nth: int
    share: float | None = None


@dataclass(frozen=True)
class Recipe:
    """What to do to a model, and what it was made with.

    Attributes:
        target: the sites were found for this target.
        candidate: the decisions.
        input_shapes: shapes that were fixed for costing.
        exactness: of each decision, site id -> class; for people, replay does not need it.
        tool: name and version of the tool that wrote it.
        model_sha256: of the model file it was made for; another model is allowed.
        fingerprints: of each decision's place, site id -> what it looks like; for another model.
        fitted: how weights were: each decision ``alone``, or ``in order``, behind those before, or
            ``distilled``: in order, and then all weights of the network trained.
        input_resize: the result has inputs and outputs of other sizes than the original's.
        device: of PyTorch, that gradient steps were made on; empty for numpy.
    """

    target: str
    candidate: Candidate
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    exactness: Mapping[str, str] = field(default_factory=dict)
    tool: str = ""
    model_sha256: str = ""
    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict)
    fitted: str = "in order"
    input_resize: bool = False
    device: str = ""

    def to_toml(self) -> str:
        """The file's text; `from_toml` reads it back to an equal recipe."""
        lines = [
            "# Replay with: onnxnas apply MODEL.onnx RECIPE.toml -o OUT.onnx",
            "# Delete a [[rewrite]] or change its choice to edit; `onnxnas inspect` lists sites.",
            f"format = {FORMAT}",
            f"tool = {_text(self.tool)}",
            f"target = {_text(self.target)}",
            f"model_sha256 = {_text(self.model_sha256)}",
        ]
        if self.fitted != "in order":
            lines.append(f"fitted = {_text(self.fitted)}")
        if self.input_resize:
            lines.append("input_resize = true  # the result takes inputs of another size")
        if self.device:
            lines.append(f"device = {_text(self.device)}  # of PyTorch, for gradient steps")
        if self.input_shapes:
            lines += ["", "[input_shapes]"]
            lines += [f"{_text(name)} = {list(s)}" for name, s in self.input_shapes.items()]
        for site, choice in self.candidate.decisions:
            lines += ["", "[[rewrite]]", f"site = {_text(site)}", f"choice = {_text(choice)}"]
            if site in self.exactness:
                lines.append(f"exactness = {_text(self.exactness[site])}")
            if site in self.fingerprints:
                seen = self.fingerprints[site]
                lines.append(f"structure = {_text(seen.structure)}")
                lines += [f"stage = {seen.stage}", f"nth = {seen.nth}"]
                lines += [] if seen.share is None else [f"share = {seen.share!r}"]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str, where: str = "recipe") -> Recipe:
        """Read a recipe file's text.

        Raises:
            UsageError: it is not a recipe; names the place.
        """
        data: dict[str, Any] = parse_toml(text, where)
        if data.get("format") != FORMAT:
            raise UsageError(
                f"{where} has format {data.get('format')!r}, this version reads format {FORMAT}."
            )
        try:
            decisions: dict[str, str] = {}
            for row in data.get("rewrite", []):
                if row["site"] in decisions:
                    raise UsageError(f"{where} names site {row['site']!r} twice; keep one.")
                decisions[row["site"]] = row["choice"]
            return cls(
                target=data["target"],
                candidate=Candidate.of(decisions),
                input_shapes={
                    n: tuple(int(d) for d in s) for n, s in data.get("input_shapes", {}).items()
                },
                exactness={
                    r["site"]: r["exactness"] for r in data.get("rewrite", []) if "exactness" in r
                },
                tool=data.get("tool", ""),
                model_sha256=data.get("model_sha256", ""),
                fitted=data.get("fitted", "in order"),
                input_resize=bool(data.get("input_resize", False)),
                device=str(data.get("device", "")),
                fingerprints={
                    r["site"]: _fingerprint(r) for r in data.get("rewrite", []) if "structure" in r
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{where} is not a recipe: {error!r} is missing or wrong.") from error


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        UsageError: it cannot be read or is not a recipe.
    """
    return Recipe.from_toml(read_text(path, "recipe"), str(path))


def _fingerprint(row: Mapping[str, Any]) -> Fingerprint:
    share = float(row["share"]) if "share" in row else None
    return Fingerprint(str(row["structure"]), int(row["stage"]), int(row["nth"]), share)


def _text(value: str) -> str:
    # A JSON string without non-ASCII escapes is a valid TOML basic string, except for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
