"""What channels cost on a target, as a picture and as a line of text."""

from __future__ import annotations

import io
from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"
_TOP = 2.0
"""Times the cheapest at which a line of text reaches its highest block."""


def sparkline(cost: Sequence[float]) -> str:
    """One block a width: cost per channel, from the cheapest to twice that and more.

    Args:
        cost: of 1, 2, 3... channels.
    """
    each = [c / width for width, c in enumerate(cost, start=1)]
    least = min(each, default=0.0) or 1.0
    heights = [(value / least - 1) / (_TOP - 1) for value in each]
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int(h * len(_BLOCKS)))] for h in heights)


def draw_curve(cost: Sequence[float], steps: Sequence[int], title: str) -> bytes:
    """A PNG of what a convolution costs by its output channels, multiples of the steps marked.

    Args:
        cost: of 1, 2, 3... channels, in any unit.
        steps: channel counts whose multiples are marked.
        title: of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    widths = range(1, len(cost) + 1)
    axes.plot(widths, cost, color="#0f62c4", linewidth=1.4)
    for step in steps:
        for place in range(step, len(cost) + 1, step):
            axes.axvline(place, color="#d5d9e0", linewidth=0.5 + step / max(steps), zorder=0)
    axes.set_xlabel(
        "output channels of a 3x3 convolution (predicted; lines: multiples of the steps)"
    )
    axes.set_ylabel("predicted cost, share of the widest")
    axes.set_title(title, fontsize=11)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
