"""Bags, and what the hand carries."""

from reidlib.data.toy.body import Body
from reidlib.data.toy.people import COLOURS
from reidlib.data.toy.shapes import Part, accent, box, circle, darker

UMBRELLA, PHONE, CUP, FOLDER, PARCEL = (98, 66, 128), (24, 24, 28), (244, 240, 230), (222, 150, 50), (186, 138, 84)


def bag(b: Body) -> list[Part]:
    """A backpack or a shoulder bag; a handbag hangs from the hand instead."""
    match b.person.bag:
        case "backpack":
            return _backpack(b)
        case "shoulder bag":
            return _shoulder_bag(b)
    return []


def _backpack(b: Body) -> list[Part]:
    """All of it from behind, half of it from the side, only its straps from before."""
    colour, s = COLOURS[b.person.bag_colour], b.shoulder
    if b.back:
        body, pocket = box(-s * 0.8, 0.185, s * 0.8, 0.45, 0.035), box(-s * 0.55, 0.33, s * 0.55, 0.43, 0.015)
        zip_line = Part("seam", ((-s * 0.6, 0.25), (s * 0.6, 0.25)), accent(colour), width=0.005)
        return [Part("bag", body, colour), Part("bag", pocket, darker(colour, 0.85)), zip_line]
    if b.side:
        body, pocket = box(-s - 0.11, 0.185, -s + 0.022, 0.435, 0.035), box(-s - 0.125, 0.32, -s - 0.06, 0.42, 0.015)
        strap = (-0.02, 0.165), (0.03, 0.2), (0.035, 0.29), (-0.02, 0.36)
        shade = darker(colour, 0.8)
        return [Part("bag", body, colour), Part("bag", pocket, shade), Part("strap", strap, shade, width=0.018)]
    straps = [((sign * 0.055, 0.155), (sign * s * 0.68, 0.25), (sign * s * 0.76, 0.36)) for sign in (-1, 1)]
    return [Part("strap", strap, colour, width=0.026) for strap in straps]


def _shoulder_bag(b: Body) -> list[Part]:
    colour = COLOURS[b.person.bag_colour]
    x, top = (0.0, (0.01, 0.16)) if b.side else (-b.hip * 1.12, (b.shoulder * 0.6, 0.163))
    strap = Part("strap", (top, (x + 0.02, 0.45)), darker(colour, 0.8), width=0.016)
    body = Part("bag", box(x - 0.058, 0.44, x + 0.058, 0.55), colour)
    return [strap, body, Part("bag", box(x - 0.058, 0.44, x + 0.058, 0.485), darker(colour, 0.8))]


def handbag(b: Body) -> list[Part]:
    """It hangs from the hand that carries nothing else."""
    if b.person.bag != "handbag":
        return []
    colour, (x, y) = COLOURS[b.person.bag_colour], b.arms[0].joints[2]
    body = (x - 0.04, y + 0.06), (x + 0.04, y + 0.06), (x + 0.058, y + 0.15), (x - 0.058, y + 0.15)
    handle = (x - 0.03, y + 0.062), (x - 0.012, y + 0.01), (x + 0.012, y + 0.01), (x + 0.03, y + 0.062)
    return [Part("strap", handle, darker(colour, 0.7), width=0.01), Part("bag", body, colour)]


def carried(b: Body) -> list[Part]:
    """What is in the right (near) hand."""
    x, y = b.arms[1].joints[2]
    match b.person.carried:
        case "umbrella":
            return _umbrella(x, y)
        case "phone":
            return [Part("carried", box(x - 0.012, y - 0.04, x + 0.014, y + 0.024, 0.004), PHONE)]
        case "cup":
            cup = (x - 0.02, y - 0.045), (x + 0.022, y - 0.045), (x + 0.016, y + 0.022), (x - 0.014, y + 0.022)
            lid = (x - 0.022, y - 0.045), (x + 0.024, y - 0.045)
            return [Part("carried", cup, CUP), Part("lid", lid, (96, 56, 30), width=0.014)]
        case "folder":
            board = (x - 0.055, y - 0.11), (x + 0.05, y - 0.12), (x + 0.055, y + 0.03), (x - 0.05, y + 0.04)
            label = (x - 0.04, y - 0.08), (x + 0.035, y - 0.085)
            return [Part("carried", board, FOLDER), Part("label", label, (250, 240, 210), width=0.012)]
        case "parcel":
            tape = (x - 0.01, y - 0.09), (x - 0.01, y + 0.05)
            carton = Part("carried", box(x - 0.085, y - 0.09, x + 0.07, y + 0.05, 0.004), PARCEL)
            return [carton, Part("tape", tape, (228, 204, 150), width=0.014)]
    return []


def _umbrella(x: float, y: float) -> list[Part]:
    top = ((x + 0.25 * c, 0.03 + 0.13 * s) for c, s in circle(10, 180, 360))
    canopy = (*top, (x + 0.12, 0.012), (x, 0.035), (x - 0.12, 0.012))
    ribs = [Part("seam", ((x, -0.1), (x + dx, 0.012)), darker(UMBRELLA), width=0.005) for dx in (-0.12, 0.12)]
    stick = Part("carried", ((x, y + 0.03), (x, -0.02)), (60, 60, 64), width=0.011)
    return [stick, Part("carried", canopy, UMBRELLA), *ribs]
