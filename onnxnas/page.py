"""A page of text, tables and pictures, written as Markdown or as one HTML file.

The HTML needs nothing from anywhere else: styles and pictures are in it. It follows the reader's
choice of light or dark, and every picture has a text beside it that says the same.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """Level 1 is the page's own title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; `code`, **bold** and *emphasis* as in Markdown."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row, the others hold figures."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A picture that lies beside the page.

    Attributes:
        name: of the file.
        alt: what it shows, for those who cannot see it.
        dark: name of the file for dark pages; empty for none.
    """

    name: str
    alt: str
    dark: str = ""


Block = Heading | Text | Bullets | Table | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """The page as Markdown; pictures as links to their files."""
    return "\n\n".join("\n".join(_markdown(block)) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> str:
    """The page as one HTML file.

    Args:
        pictures: PNG by name, of all that the page shows.
    """
    title = next((b.text for b in blocks if isinstance(b, Heading) and b.level == 1), "")
    body = "\n".join(line for block in blocks for line in _html(block, pictures))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> list[str]:
    if isinstance(block, Heading):
        return [f"{'#' * block.level} {block.text}"]
    if isinstance(block, Bullets):
        return [f"- {item}" for item in block.items]
    if isinstance(block, Picture):
        return [f"![{block.alt}]({block.name})"]
    if isinstance(block, Table):
        rule = "|---" + "|---:" * (len(block.head) - 1) + "|"
        return [_row(block.head), rule, *map(_row, block.rows)]
    return [block.text]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _html(block: Block, pictures: Mapping[str, bytes]) -> Iterable[str]:
    if isinstance(block, Heading):
        return [f"<h{block.level}>{_inline(block.text)}</h{block.level}>"]
    if isinstance(block, Bullets):
        return ["<ul>", *(f"<li>{_inline(item)}</li>" for item in block.items), "</ul>"]
    if isinstance(block, Picture):
        return _figure(block, pictures)
    if isinstance(block, Table):
        head = "".join(f'<th scope="col">{_inline(c)}</th>' for c in block.head)
        rows = (
            f'<tr><th scope="row">{_inline(row[0])}</th>'
            + "".join(f"<td>{_inline(c)}</td>" for c in row[1:])
            + "</tr>"
            for row in block.rows
        )
        return [
            f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>',
            *rows,
            "</tbody>\n</table></div>",
        ]
    return [f"<p>{_inline(block.text)}</p>"]


def _figure(picture: Picture, pictures: Mapping[str, bytes]) -> list[str]:
    dark = (
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data(pictures[picture.dark])}">'
        if picture.dark
        else ""
    )
    image = f'<img src="{_data(pictures[picture.name])}" alt="{html.escape(picture.alt)}">'
    return [f"<figure><picture>{dark}{image}</picture></figure>"]


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _inline(text: str) -> str:
    """Code, bold and emphasis; everything else is taken as it is."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        f"<code>{html.escape(part[1:-1])}</code>" if i % 2 else _emphasised(html.escape(part))
        for i, part in enumerate(parts)
    )


def _emphasised(text: str) -> str:
    text = re.sub(r"\*\*(\S(?:[^*]*\S)?)\*\*", r"<b>\1</b>", text)
    return re.sub(r"(?<![\w*])\*(\S(?:[^*]*\S)?)\*(?![\w*])", r"<em>\1</em>", text)


_STYLE = """
:root { --ink: #1b1d21; --soft: #5a606b; --line: #d5d9e0; --page: #ffffff; --band: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --soft: #a0a7b3; --line: #3a3f49; --page: #16181c; --band: #1e2127; }
}
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2.25rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th:first-child { text-align: left; overflow-wrap: anywhere; min-width: 7rem; }
td { min-width: 4.5rem; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 400; }
tbody tr:nth-child(even) { background: var(--band); }
code { font-size: .9em; background: var(--band); overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
"""
