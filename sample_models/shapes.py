"""The shapes of the things in a room: each a handful of tapered strokes with random proportions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Uniform = Callable[[float, float], float]


@dataclass(frozen=True)
class Stroke:
    """A segment with a radius at each end, in object units: x centred, y up, height about 1."""

    x0: float
    y0: float
    x1: float
    y1: float
    r0: float
    r1: float
    paint: int = 0  # which of the object's three paints
    flat: bool = False  # flat ends make boxes and trapezia, round ends make limbs and balls


def _person(u: Uniform) -> list[Stroke]:
    hip, neck, w = u(0.42, 0.5), u(0.78, 0.82), u(0.09, 0.14)
    parts = []
    for side in (-1.0, 1.0):
        knee = side * u(0.02, 0.12) + u(-0.05, 0.05)
        parts.append(Stroke(side * w * 0.5, hip, knee, hip * 0.5, 0.06, 0.05, 1))
        parts.append(Stroke(knee, hip * 0.5, knee + u(-0.07, 0.07), 0.04, 0.05, 0.04, 1))
    parts.append(Stroke(0, hip - 0.03, 0, neck, w * u(0.7, 1.3), w, 0, True))
    for side in (-1.0, 1.0):
        elbow_x, elbow_y = side * (w + u(0.02, 0.16)), neck - u(0.08, 0.2)
        parts.append(Stroke(side * w, neck - 0.03, elbow_x, elbow_y, 0.045, 0.04, 0))
        parts.append(
            Stroke(elbow_x, elbow_y, elbow_x + side * u(-0.12, 0.1), elbow_y - u(-0.15, 0.2),
                   0.04, 0.035, 2)
        )  # fmt: skip
    parts.append(Stroke(0, neck + 0.1, u(-0.02, 0.02), neck + 0.12, 0.085, 0.08, 2))
    if u(0, 1) < 0.5:
        parts.append(Stroke(-0.05, neck + 0.18, 0.05, neck + 0.18, 0.05, 0.05, 1))
    return parts


def _four_legs(u: Uniform, dog: bool) -> list[Stroke]:
    long, back, thick = u(0.3, 0.48), u(0.5, 0.6), u(0.13, 0.19)
    parts = [
        Stroke(x + u(-0.03, 0.03), back, x + u(-0.1, 0.1), 0.03, 0.07, 0.05, 1)
        for x in (-long, -long + 0.14, long - 0.14, long)
    ]
    parts.append(Stroke(-long, back, long, back + u(-0.04, 0.06), thick, thick * u(0.9, 1.2), 0))
    head_x, head_y = long + u(0.12, 0.24), back + u(0.14, 0.34)
    parts.append(Stroke(long, back + 0.05, head_x, head_y, 0.11, 0.11, 0))
    if dog:  # a long snout, hanging ears, a short tail
        parts.append(Stroke(head_x, head_y, head_x + u(0.17, 0.27), head_y - 0.06, 0.12, 0.06, 0))
        parts.append(Stroke(head_x - 0.05, head_y + 0.07, head_x - 0.09, head_y - u(0.08, 0.16),
                            0.045, 0.06, 1))  # fmt: skip
        parts.append(Stroke(-long, back + 0.06, -long - u(0.1, 0.2), back + u(0.1, 0.3),
                            0.05, 0.03, 0))  # fmt: skip
    else:  # a round head, upright ears, a long curved tail
        parts.append(Stroke(head_x, head_y, head_x + 0.05, head_y, 0.145, 0.12, 0))
        for dx in (-0.08, 0.1):
            parts.append(Stroke(head_x + dx, head_y + 0.08, head_x + dx * 1.2,
                                head_y + u(0.2, 0.27), 0.06, 0.01, 1))  # fmt: skip
        bend_x, bend_y = -long - u(0.15, 0.28), back + u(-0.1, 0.2)
        parts.append(Stroke(-long, back, bend_x, bend_y, 0.05, 0.04, 0))
        parts.append(Stroke(bend_x, bend_y, bend_x + u(-0.1, 0.16), bend_y + u(0.15, 0.35),
                            0.04, 0.035, 0))  # fmt: skip
    return parts


def _bird(u: Uniform) -> list[Stroke]:
    parts = [Stroke(x, 0.3, x + u(-0.05, 0.05), 0.02, 0.03, 0.03, 2) for x in (-0.06, 0.08)]
    parts.append(Stroke(-0.12, 0.42, 0.14, u(0.46, 0.56), u(0.16, 0.22), 0.17, 0))
    parts.append(Stroke(-0.2, 0.42, -0.2 - u(0.2, 0.36), u(0.25, 0.5), 0.1, 0.05, 1, True))
    parts.append(Stroke(-0.1, 0.45, 0.1, u(0.4, 0.6), 0.06, 0.1, 1))
    x, y = u(0.2, 0.3), u(0.7, 0.8)
    parts.append(Stroke(x, y, x + 0.02, y, 0.13, 0.13, 0))
    parts.append(Stroke(x + 0.1, y, x + u(0.22, 0.32), y - 0.03, 0.05, 0.01, 2))
    return parts


def _seat(u: Uniform, back: bool) -> list[Stroke]:
    w, seat = u(0.2, 0.32), u(0.42, 0.52) if back else u(0.75, 0.9)
    leg = u(0.02, 0.045)
    parts = [
        Stroke(x, seat, x * u(0.9, 1.3), 0.0, leg, leg, 1, True)
        for x in (-w, -w * 0.45, w * 0.45, w)
    ]
    parts.append(Stroke(-w - 0.03, seat, w + 0.03, seat, u(0.04, 0.08), 0.06, 0, True))
    if back:
        side, top = (-1.0 if u(0, 1) < 0.5 else 1.0) * w, u(0.9, 1.0)
        if u(0, 1) < 0.5:  # seen from the side, else from the front
            parts.append(Stroke(side, seat, side * u(1.0, 1.25), top, 0.04, 0.05, 0, True))
        else:
            parts.append(Stroke(0, seat, 0, top, w, w * u(0.8, 1.1), 0, True))
    return parts


def _table(u: Uniform) -> list[Stroke]:
    w, leg = u(0.5, 0.85), u(0.025, 0.05)
    xs = (-w * 0.9, w * 0.9, -w * 0.6, w * 0.6) if u(0, 1) < 0.7 else (0.0,)
    leg = leg if len(xs) > 1 else 0.09
    parts = [Stroke(x, 0.85, x * u(0.95, 1.05), 0.0, leg, leg, 1, True) for x in xs]
    parts.append(Stroke(-w, 0.9, w, 0.9, 0.06, 0.06, 0, True))
    return parts


def _lamp(u: Uniform) -> list[Stroke]:
    foot, shade = u(0.12, 0.2), u(0.6, 0.72)
    return [
        Stroke(-foot, 0.03, foot, 0.03, 0.03, 0.03, 1, True),
        Stroke(0, 0.0, u(-0.04, 0.04), shade + 0.05, 0.025, 0.02, 1, True),
        Stroke(0, shade, 0, 1.0, u(0.2, 0.28), u(0.08, 0.16), 0, True),
    ]


def _plant(u: Uniform) -> list[Stroke]:
    rim = u(0.25, 0.35)
    parts = []
    for _ in range(int(u(4, 9))):
        angle, reach = u(-1.1, 1.1), u(0.35, 0.65)
        x, y = reach * math.sin(angle), rim + reach * math.cos(angle)
        parts.append(Stroke(0, rim, x * 0.5, rim + (y - rim) * 0.6, 0.02, 0.06, 0))
        parts.append(Stroke(x * 0.5, rim + (y - rim) * 0.6, x, y, 0.065, 0.02, 0))
    parts.append(Stroke(0, 0, 0, rim, u(0.1, 0.15), u(0.16, 0.22), 1, True))
    return parts


def _cup(u: Uniform) -> list[Stroke]:
    w, side = u(0.26, 0.36), -1.0 if u(0, 1) < 0.5 else 1.0
    x = side * (w + u(0.14, 0.22))
    return [
        Stroke(side * w * 0.9, 0.7, x, 0.65, 0.05, 0.05, 1),
        Stroke(x, 0.65, x, 0.35, 0.05, 0.05, 1),
        Stroke(x, 0.35, side * w * 0.8, 0.25, 0.05, 0.05, 1),
        Stroke(0, 0.0, 0, 0.92, w * u(0.65, 1.0), w, 0, True),
        Stroke(-w, 0.92, w, 0.92, 0.04, 0.04, 2),
    ]


def _bag(u: Uniform) -> list[Stroke]:
    w, top, grip = u(0.26, 0.42), u(0.6, 0.7), u(0.1, 0.2)
    return [
        Stroke(-grip, top, -grip * 0.8, 0.95, 0.035, 0.035, 1),
        Stroke(-grip * 0.8, 0.95, grip * 0.8, 0.95, 0.035, 0.035, 1),
        Stroke(grip * 0.8, 0.95, grip, top, 0.035, 0.035, 1),
        Stroke(0, 0.0, 0, top, w, w * u(0.7, 1.05), 0, True),
        Stroke(-w * 0.5, top * 0.5, w * 0.5, top * 0.5, 0.07, 0.07, 2, True),
    ]


def _car(u: Uniform) -> list[Stroke]:
    w, belt, wheel = u(0.75, 0.95), u(0.5, 0.58), u(0.15, 0.2)
    roof = u(-0.2, 0.1)
    return [
        Stroke(roof, belt, roof, u(0.88, 1.0), w * 0.62, w * u(0.3, 0.45), 0, True),
        Stroke(roof, belt + 0.03, roof, 0.85, w * 0.5, w * 0.33, 2, True),
        Stroke(-w, 0.37, w, 0.37, belt - 0.35, belt - u(0.35, 0.42), 0, True),
        Stroke(-w * 0.58, wheel, -w * 0.58, wheel, wheel, wheel, 1),
        Stroke(w * 0.58, wheel, w * 0.58, wheel, wheel, wheel, 1),
    ]


def strokes(name: str, rng: np.random.Generator) -> list[Stroke]:
    """A random instance of the named object."""

    def u(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    shapes: dict[str, Callable[[], list[Stroke]]] = {
        "person": lambda: _person(u), "cat": lambda: _four_legs(u, dog=False),
        "dog": lambda: _four_legs(u, dog=True), "bird": lambda: _bird(u),
        "chair": lambda: _seat(u, back=True), "stool": lambda: _seat(u, back=False),
        "table": lambda: _table(u), "lamp": lambda: _lamp(u), "plant": lambda: _plant(u),
        "cup": lambda: _cup(u), "bag": lambda: _bag(u), "car": lambda: _car(u),
    }  # fmt: skip
    return shapes[name]()
