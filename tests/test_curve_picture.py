"""What channels cost, as a line of text and a picture."""

from __future__ import annotations

from onnxnas.curve_picture import draw_curve, sparkline


def test_multiples_are_the_lows_of_the_line() -> None:
    line = sparkline([8.0 * -(-width // 8) for width in range(1, 33)])
    assert len(line) == 32
    assert {line[width - 1] for width in (8, 16, 24, 32)} == {"▁"}
    assert line[0] == "█"
    assert line[8] > line[9]


def test_a_line_of_nothing_is_empty() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.0, 0.0]) == "▁▁"


def test_the_picture_is_a_png_of_the_same_bytes_each_time() -> None:
    cost = [float(-(-width // 8)) for width in range(1, 33)]
    first = draw_curve(cost, [8], "toy")
    assert first.startswith(b"\x89PNG")
    assert draw_curve(cost, [8], "toy") == first
    assert draw_curve(cost, [], "toy") != first
