"""Flat shapes and colours from which a drawn pedestrian is put together."""

import math
from dataclasses import dataclass
from functools import lru_cache

from reidlib.toyworld.people import RGB

Point = tuple[float, float]
Outline = tuple[Point, ...]


@dataclass(frozen=True)
class Part:
    """An outline filled with one colour and pattern, or an open line when `width` is set."""

    name: str
    points: Outline
    colour: RGB
    pattern: str = "plain"
    width: float = 0.0


@lru_cache(maxsize=64)
def circle(n: int, start: float = 0, stop: float = 360) -> Outline:
    """`n` + 1 points on the unit circle between two angles in degrees (0 is right, 90 down)."""
    angles = [math.radians(start + (stop - start) * i / n) for i in range(n + 1)]
    return tuple((math.cos(a), math.sin(a)) for a in angles)


def oval(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> Outline:
    """An ellipse, or the piece of it between two angles."""
    return tuple((x + rx * c, y + ry * s) for c, s in circle(16, start, stop))


def curls(x: float, y: float, rx: float, ry: float) -> Outline:
    """A bumpy ellipse."""
    bumps = enumerate(circle(20))
    return tuple((x + rx * c * (1 + 0.09 * (i % 2)), y + ry * s * (1 + 0.09 * (i % 2))) for i, (c, s) in bumps)


def box(x0: float, y0: float, x1: float, y1: float, bevel: float = 0.012) -> Outline:
    """A rectangle with cut corners."""
    b = bevel
    right = (x1 - b, y0), (x1, y0 + b), (x1, y1 - b), (x1 - b, y1)
    left = (x0 + b, y1), (x0, y1 - b), (x0, y0 + b), (x0 + b, y0)
    return right + left


def mirrored(*right: Point) -> Outline:
    """A shape from its right half, listed from top to bottom."""
    return right + tuple((-x, y) for x, y in reversed(right))


def along(a: Point, b: Point, t: float) -> Point:
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t


def tube(joints: Outline, widths: tuple[float, ...]) -> Outline:
    """The outline of a bent tube through `joints` with half-widths `widths`, its start rounded."""
    left, right = [], []
    for i, (x, y) in enumerate(joints):
        dx, dy = _direction(joints[max(i - 1, 0)], joints[min(i + 1, len(joints) - 1)])
        left.append((x - dy * widths[i], y + dx * widths[i]))
        right.append((x + dy * widths[i], y - dx * widths[i]))
    dx, dy = _direction(joints[0], joints[1])
    crown = joints[0][0] - dx * widths[0] * 0.7, joints[0][1] - dy * widths[0] * 0.7
    return (crown, *left, *reversed(right))


def _direction(a: Point, b: Point) -> Point:
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = math.hypot(dx, dy) or 1.0
    return dx / length, dy / length


def bent(joints: Outline, widths: tuple[float, ...]) -> list[Outline]:
    """The outlines of a limb: one tube, or two where it is folded so far that one would cross itself."""
    (x0, y0), (x1, y1), (x2, y2) = joints
    if (x1 - x0) * (x2 - x1) + (y1 - y0) * (y2 - y1) > 0:
        return [tube(joints, widths)]
    return [tube(joints[:2], widths[:2]), tube(joints[1:], widths[1:])]


def darker(colour: RGB, by: float = 0.7) -> RGB:
    return int(colour[0] * by), int(colour[1] * by), int(colour[2] * by)


def accent(colour: RGB) -> RGB:
    """The second colour of a pattern: light on dark, dark on light."""
    return (236, 234, 226) if sum(colour) < 400 else (58, 62, 84)


def shaded(colour: RGB, shade: float) -> RGB:
    """One person's own shade of a named colour; black and white hardly move."""
    room = shade if 150 < sum(colour) < 620 else shade * 0.4
    return tuple(max(0, min(255, round(c * (1 + room)))) for c in colour)
