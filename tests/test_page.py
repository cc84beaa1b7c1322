"""Pages as Markdown and HTML: what is text stays text."""

from __future__ import annotations

from onnxnas.page import Block, Bullets, Heading, Picture, Table, Text, to_html, to_markdown

PAGE: list[Block] = [
    Heading("a <b> & c", 1),
    Text("**bold**, *soft*, `code <x> *y*`, 2 * 3 * 4, conv*_out"),
    Bullets(("one", "two")),
    Table(("", "x|y"), (("<row>", "1"), ("r2", "a|b"))),
    Picture("p.png", 'shows "it"', "dark.png"),
]


def test_markdown() -> None:
    assert to_markdown(PAGE) == (
        "# a <b> & c\n\n"
        "**bold**, *soft*, `code <x> *y*`, 2 * 3 * 4, conv*_out\n\n"
        "- one\n- two\n\n"
        "|  | x\\|y |\n|---|---:|\n| <row> | 1 |\n| r2 | a\\|b |\n\n"
        '![shows "it"](p.png)\n'
    )


def test_html_escapes_and_marks_up() -> None:
    text = to_html(PAGE, {"p.png": b"light", "dark.png": b"dark"})
    assert "<title>a &lt;b&gt; &amp; c</title>" in text
    assert (
        "<p><b>bold</b>, <em>soft</em>, <code>code &lt;x&gt; *y*</code>, 2 * 3 * 4, conv*_out</p>"
    ) in text
    assert '<th scope="row">&lt;row&gt;</th><td>1</td>' in text
    assert 'alt="shows &quot;it&quot;"' in text
    assert 'srcset="data:image/png;base64,ZGFyaw=="' in text
    assert 'src="data:image/png;base64,bGlnaHQ="' in text
