"""A dressed person as a list of flat parts, back to front: the one truth that photos and sketches are painted from.

Legs, arms and trunk come from clothes.py; heads, bags and what a hand carries are here.
"""

from reidlib.toyworld.body import HEAD_Y as Y
from reidlib.toyworld.body import Body, Pose
from reidlib.toyworld.clothes import arm, leg, seat, torso
from reidlib.toyworld.people import COLOURS, Person
from reidlib.toyworld.shapes import Part, accent, box, circle, curls, darker, mirrored, oval, tube

EYES, LIPS = (48, 36, 34), (150, 62, 62)
UMBRELLA, PHONE, CUP, FOLDER, PARCEL = (98, 66, 128), (24, 24, 28), (244, 240, 230), (222, 150, 50), (186, 138, 84)


def figure(person: Person, pose: Pose) -> list[Part]:
    """All parts of `person`, in the order in which they are painted."""
    b = Body(person, pose)
    left_arm, right_arm = arm(b, b.arms[0]), arm(b, b.arms[1])
    trunk = leg(b, b.legs[0]) + leg(b, b.legs[1]) + seat(b) + neck(b) + torso(b)
    face = head(b) + hair_on_top(b) + hat(b)
    if b.back:
        return carried(b) + right_arm + left_arm + handbag(b) + trunk + bag(b) + face
    if b.side:
        return hair_behind(b) + handbag(b) + left_arm + trunk + face + bag(b) + right_arm + carried(b)
    return hair_behind(b) + trunk + face + bag(b) + left_arm + right_arm + handbag(b) + carried(b)


# ---------------------------------------------------------------- heads


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


# ---------------------------------------------------------------- bags, and what the hand carries


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
