"""Heads: face, hair and hat."""

from reidlib.data.toy.body import HEAD_Y as Y
from reidlib.data.toy.body import Body
from reidlib.data.toy.people import COLOURS
from reidlib.data.toy.shapes import Part, box, circle, curls, darker, mirrored, oval, tube

EYES, LIPS = (48, 36, 34), (150, 62, 62)


def neck(b: Body) -> list[Part]:
    return [Part("neck", tube(((0.0, 0.1), (0.0, 0.16)), (0.024 * b.wide, 0.028 * b.wide)), darker(b.skin, 0.88))]


def head(b: Body) -> list[Part]:
    """The bare head, with a face unless it is seen from behind."""
    rx = b.rx
    skull = Part("head", oval(0, Y, rx, b.ry), b.skin)
    if b.side:
        nose = (rx * 0.9, Y - 0.008), (rx * 1.24, Y + 0.014), (rx * 0.9, Y + 0.02)
        eye = Part("eye", oval(rx * 0.6, Y - 0.006, 0.006, 0.007), EYES)
        mouth = Part("mouth", ((rx * 0.55, Y + 0.034), (rx * 0.88, Y + 0.032)), LIPS, width=0.006)
        return [Part("nose", nose, b.skin), skull, eye, mouth]
    ears = [Part("ear", oval(sign * rx, Y + 0.004, 0.009, 0.014), b.skin) for sign in (-1, 1)]
    if b.back:
        return [*ears, skull]
    eyes = [Part("eye", oval(sign * rx * 0.42, Y - 0.004, 0.0065, 0.007), EYES) for sign in (-1, 1)]
    nose = Part("nose", ((0.0, Y + 0.004), (0.002, Y + 0.018)), darker(b.skin, 0.8), width=0.006)
    mouth = Part("mouth", ((-0.015, Y + 0.035), (0.015, Y + 0.035)), LIPS, width=0.007)
    return [*ears, skull, *eyes, nose, mouth]


# ---------------------------------------------------------------- hair


def hair_behind(b: Body) -> list[Part]:
    """What of the hair the face and the shoulders hide."""
    rx, ry = b.rx, b.ry
    if b.person.hair == "curly":
        return [Part("hair", curls(-0.012 if b.side else 0.0, Y - 0.006, rx * 1.42, ry * 1.24), b.hair)]
    if b.person.hair != "long" or b.back:
        return []
    if b.side:
        lock = (-0.01, Y - ry), (-rx * 1.2, Y - 0.01), (-rx * 1.35, 0.2), (-0.03, 0.24), (0.012, 0.15)
    else:
        lock = mirrored((rx * 0.8, Y - ry * 0.8), (rx * 1.28, Y + 0.02), (rx * 1.4, 0.2), (rx * 0.9, 0.215))
    return [Part("hair", lock, b.hair)]


def hair_on_top(b: Body) -> list[Part]:
    """Hair over the skull, with the bun, the tail or the length that the view shows."""
    if b.person.hair == "bald":
        return []
    crown = _crown_behind(b) if b.back else _crown_aside(b) if b.side else _crown_before(b)
    return [Part("hair", crown, b.hair), *_hanging(b)]


def _crown_before(b: Body) -> tuple:
    rx, line = b.rx, Y - 0.022
    top = tuple((rx * 1.1 * c, Y - 0.004 + b.ry * 1.1 * s) for c, s in circle(12, 180, 360))
    return (*top, (rx * 0.9, line), (rx * 0.3, line - 0.016), (-rx * 0.5, line - 0.006), (-rx * 0.95, line + 0.01))


def _crown_aside(b: Body) -> tuple:
    rx, nape = b.rx, Y + (0.026 if b.person.hair == "short" else 0.045)
    top = tuple((-0.004 + rx * 1.1 * c, Y - 0.004 + b.ry * 1.08 * s) for c, s in circle(12, 160, 325))
    return ((-rx * 0.75, nape), *top, (rx * 0.95, Y - 0.025), (rx * 0.2, Y - 0.028), (-rx * 0.05, Y + 0.012))


def _crown_behind(b: Body) -> tuple:
    rx, ry = b.rx, b.ry
    if b.person.hair == "curly":
        return curls(0, Y - 0.004, rx * 1.4, ry * 1.2)
    if b.person.hair == "short":
        return mirrored((rx * 0.5, Y - ry * 1.06), (rx * 1.06, Y - 0.02), (rx * 0.98, Y + 0.03), (rx * 0.6, Y + 0.05))
    return oval(0, Y - 0.002, rx * 1.1, ry * 1.06)


def _hanging(b: Body) -> list[Part]:
    rx, ry, kind = b.rx, b.ry, b.person.hair
    if kind == "bun":
        x, up = (-rx * 0.9, 0.7) if b.side else (0.0, 1.16)
        return [Part("hair", oval(x, Y - ry * up, 0.03, 0.028), darker(b.hair, 0.9))]
    if kind == "long" and b.back:
        return [Part("hair", mirrored((rx, Y - 0.02), (rx * 1.35, 0.16), (rx * 1.3, 0.27), (0.0, 0.285)), b.hair)]
    if kind == "ponytail" and b.side:
        tail = tube(((-rx * 0.95, Y - 0.015), (-rx * 1.7, Y + 0.04), (-rx * 1.5, 0.2)), (0.014, 0.022, 0.008))
        return [Part("hair", tail, b.hair)]
    if kind == "ponytail" and b.back:
        tail = tube(((0.0, Y - 0.01), (0.012, Y + 0.06), (0.0, 0.27)), (0.018, 0.026, 0.01))
        return [Part("hair", tail, darker(b.hair, 0.8))]
    return []


# ---------------------------------------------------------------- hats


def hat(b: Body) -> list[Part]:
    if b.person.hat == "none":
        return []
    colour, rx, brim = COLOURS[b.person.hat_colour], b.rx, Y - 0.022
    height = brim - (Y - b.ry * 1.18)
    if b.person.hat == "beanie":
        band = box(-rx * 1.18, brim - 0.02, rx * 1.18, brim + 0.008)
        return [Part("hat", _dome(rx, brim, height * 1.2), colour), Part("hat", band, darker(colour, 0.75))]
    dome = Part("hat", _dome(rx, brim, height), colour)
    if b.person.hat == "sun hat":
        ribbon = (-rx * 1.1, brim - 0.012), (rx * 1.1, brim - 0.012)
        wide = Part("hat", oval(0, brim, rx * 2.1, 0.019), colour)
        return [wide, dome, Part("ribbon", ribbon, darker(colour, 0.6), width=0.012)]
    if b.back:
        return [dome]
    peak = box(-rx * 1.05, brim - 0.004, rx * 1.05, brim + 0.014, 0.008)
    if b.side:
        peak = (rx * 0.5, brim - 0.008), (rx * 1.95, brim + 0.006), (rx * 1.9, brim + 0.016), (rx * 0.5, brim + 0.008)
    return [dome, Part("hat", peak, darker(colour, 0.8))]


def _dome(rx: float, brim: float, height: float) -> tuple:
    return tuple((rx * 1.15 * c, brim + height * s) for c, s in circle(12, 180, 360))
