"""The manuals: commands and options in them exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from test_cli import run

DOCS = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))


def words_of(path: Path) -> set[tuple[str, ...]]:
    """Verb and option of every option that a manual's commands use."""
    found = set()
    for block in re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("onnxnas "):
                words = shlex.split(line, comments=True)[1:]
                verb = words[:2] if words[0] == "target" else words[:1]
                options = [w.partition("=")[0] for w in words if w.startswith("-")]
                found |= {(*verb, option) for option in options or ["--help"]}
    return found


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.stem)
def test_every_command_and_option_exists(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    helps: dict[tuple[str, ...], str] = {}
    for *verb, option in sorted(words_of(path)):
        if tuple(verb) not in helps:
            assert run(*verb, "--help") == 0
            helps[tuple(verb)] = capfd.readouterr().out
        assert option in helps[tuple(verb)], f"{' '.join(verb)} {option}"


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.stem)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    missing = [x for x in links if not x.startswith("http") and not (path.parent / x).exists()]
    assert missing == []
