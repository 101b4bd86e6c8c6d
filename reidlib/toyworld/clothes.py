"""Legs, arms and trunk as the clothes show them."""

from reidlib.toyworld.body import FAR, Body, Limb
from reidlib.toyworld.shapes import Part, Point, accent, along, bent, darker, mirrored, oval, tube

SOLE = (232, 232, 228)
HEM = {"coat": 0.73, "jacket": 0.53, "hoodie": 0.545, "shirt": 0.555, "jumper": 0.54, "t-shirt": 0.53}
LOOSE = {"coat": 1.3, "jacket": 1.14, "hoodie": 1.14, "jumper": 1.08, "shirt": 1.04, "t-shirt": 1.04}
SKIRT_HEM = 0.73


def _far(b: Body, limb: Limb) -> float:
    return FAR if b.side and limb.sign < 0 else 1.0


# ---------------------------------------------------------------- legs and shoes


def leg(b: Body, limb: Limb) -> list[Part]:
    """One leg with its shoe and its half of the lower garment."""
    far, w = _far(b, limb), b.wide
    cloth, (hip, knee, ankle) = darker(b.lower, far), limb.joints
    bare = Part("leg", tube(limb.joints, (0.045 * w, 0.03 * w, 0.021 * w)), darker(b.skin, far))
    parts = shoe(b, ankle, limb.sign, far)
    match b.person.lower:
        case "trousers":
            outline = tube((hip, knee, (ankle[0], ankle[1] + 0.012)), (0.052 * w, 0.042 * w, 0.042 * w))
            crease = (along(hip, knee, 0.3), knee, ankle)
            parts += [Part("lower", outline, cloth), Part("crease", crease, darker(cloth, 0.75), width=0.005)]
        case "jeans":
            outline = tube((hip, knee, (ankle[0], ankle[1] + 0.012)), (0.052 * w, 0.042 * w, 0.036 * w))
            end = 0.036 * w + 0.003
            cuff = tube((along(knee, ankle, 0.93), (ankle[0], ankle[1] + 0.014)), (end, end))
            parts += [Part("lower", outline, cloth), Part("cuff", cuff, tuple(min(255, c + 60) for c in cloth))]
        case "leggings":
            outline = tube((hip, knee, along(knee, ankle, 0.8)), (0.05 * w, 0.032 * w, 0.022 * w))
            parts += [bare, Part("lower", outline, cloth)]
        case "shorts":
            parts += [bare, Part("lower", tube((hip, along(hip, knee, 0.86)), (0.054 * w, 0.058 * w)), cloth)]
        case _:
            parts.append(bare)
    return parts


def shoe(b: Body, ankle: Point, sign: int, far: float) -> list[Part]:
    x, y = ankle
    colour = darker(b.shoe, far)
    if b.side:
        heel, toe = x - 0.032, x + 0.075
        top = (heel, y + 0.005), (x + 0.02, y), (x + 0.052, y + 0.022), (toe, y + 0.04)
        foot = (*top, (toe, y + 0.048), (heel, y + 0.048))
        sole = (heel, y + 0.04), (toe, y + 0.04), (toe, y + 0.052), (heel, y + 0.052)
        strap = top[1], top[3]
    else:
        left, right = x + sign * 0.008 - 0.033, x + sign * 0.008 + 0.033
        foot = oval((left + right) / 2, y + 0.024, 0.033, 0.028)
        sole = (left, y + 0.036), (right, y + 0.036), (right - 0.007, y + 0.052), (left + 0.007, y + 0.052)
        strap = (left, y + 0.02), (right, y + 0.02)
    match b.person.shoes:
        case "sandals":
            bare = Part("foot", foot, darker(b.skin, far))
            return [bare, Part("shoes", sole, colour), Part("shoes", strap, colour, width=0.014)]
        case "boots":
            shaft = tube(((x, y - 0.085), (x, y + 0.03)), (0.034 * b.wide, 0.031))
            return [Part("shoes", shaft, colour), Part("shoes", foot, colour)]
        case "trainers":
            rubber = SOLE if min(b.shoe) < 200 else (150, 150, 150)
            return [Part("shoes", foot, colour), Part("sole", sole, rubber)]
    return [Part("shoes", foot, colour)]


def seat(b: Body) -> list[Part]:
    """The skirt, or the top of the trousers."""
    h, hem = b.hip, SKIRT_HEM
    if b.person.lower != "skirt":
        return [Part("lower", mirrored((h * 0.95, 0.42), (h * 1.04, 0.5), (h * 0.9, 0.535)), b.lower)]
    sway = b.legs[1].joints[1][0] * 0.3 if b.side else 0.0
    right = (h * 0.9, 0.42), (h * 1.5 + sway, hem), (h * 0.5 + sway, hem + 0.012)
    left = (-h * 0.5 + sway, hem + 0.012), (-h * 1.5 + sway, hem), (-h * 0.9, 0.42)
    folds = [((h * t, 0.52), (h * t * 1.9 + sway, hem)) for t in (-0.45, 0.1, 0.55)]
    shade = darker(b.lower, 0.8)
    return [Part("lower", right + left, b.lower), *(Part("fold", fold, shade, width=0.005) for fold in folds)]


# ---------------------------------------------------------------- trunk and arms


def torso(b: Body) -> list[Part]:
    """The upper garment without its sleeves."""
    kind, s = b.person.upper, b.shoulder
    hem, loose = HEM[kind], LOOSE[kind]
    waist, hip = b.waist * min(loose, 1.14), b.hip * loose
    neck, flare = 0.03 if b.side else 0.04, 1.12 if kind == "coat" else 1.0
    upper_half = (neck, 0.143), (s * 0.94, 0.172), (s, 0.2), (s * 0.93, 0.27)
    outline = mirrored(*upper_half, (waist, 0.38), (hip * 1.02, 0.49), (hip * flare, hem))
    parts = [Part("upper", outline, b.upper, b.pattern)]
    match kind:
        case "hoodie":
            parts += rib(b, hip, hem - 0.018) + hood(b)
        case "jumper":
            parts += rib(b, hip, hem - 0.018) + neckline(b, 0.014)
        case "jacket":
            parts += lapels(b) + seam(b, 0.29 if b.front else 0.17, hem) * (not b.back) + rib(b, hip, hem - 0.012)
        case "coat":
            parts += lapels(b) + belt(b, waist) + seam(b, 0.55 if b.back else 0.31, hem) + buttons(b)
        case "shirt":
            parts += collar(b) + seam(b, 0.17, hem) * (not b.back)
        case "t-shirt":
            parts += neckline(b, 0.026)
    return parts + logo(b)


def rib(b: Body, half: float, y: float) -> list[Part]:
    return [Part("rib", ((-half, y), (half, y)), darker(b.upper, 0.55), width=0.009)]


def belt(b: Body, waist: float) -> list[Part]:
    return [Part("belt", ((-waist * 1.03, 0.395), (waist * 1.03, 0.395)), darker(b.upper, 0.55), width=0.013)]


def seam(b: Body, top: float, bottom: float) -> list[Part]:
    """Where a garment opens: in the middle, or towards the face in a side view."""
    x = 0.03 if b.side else 0.0
    return [Part("seam", ((x, top), (x, bottom)), darker(b.upper, 0.55), width=0.007)]


def buttons(b: Body) -> list[Part]:
    places = (0.33, 0.45, 0.51) if b.front else ()
    return [Part("button", oval(0.022, y, 0.006, 0.006), accent(b.upper)) for y in places]


def hood(b: Body) -> list[Part]:
    """The hood on the back or round the neck; from before also its cords and the pocket."""
    if b.back:
        return [Part("hood", mirrored((0.06, 0.14), (0.068, 0.175), (0.03, 0.25), (0.0, 0.265)), darker(b.upper, 0.85))]
    if b.side:
        return [Part("hood", oval(-0.04, 0.17, 0.04, 0.045), darker(b.upper, 0.85))]
    cords = [Part("cord", ((x, 0.165), (x, 0.25)), accent(b.upper), width=0.006) for x in (-0.02, 0.02)]
    pocket = Part("pocket", mirrored((0.045, 0.41), (0.07, 0.485)), darker(b.upper, 0.82))
    return [Part("hood", oval(0, 0.15, 0.066, 0.03), darker(b.upper, 0.85)), pocket, *cords]


def lapels(b: Body) -> list[Part]:
    """An open neck with something lighter or darker under it."""
    if not b.front:
        return []
    inner = (226, 222, 214) if sum(b.upper) < 560 else (92, 96, 104)
    flaps = [((sign * 0.03, 0.14), (sign * 0.066, 0.19), (sign * 0.012, 0.3)) for sign in (-1, 1)]
    under = Part("inner", mirrored((0.034, 0.143), (0.0, 0.31)), inner)
    return [under, *(Part("lapel", flap, darker(b.upper, 0.8)) for flap in flaps)]


def collar(b: Body) -> list[Part]:
    parts = [Part("collar", mirrored((0.044, 0.142), (0.03, 0.168)), darker(b.upper, 0.85))]
    points = [((s * 0.008, 0.165), (s * 0.042, 0.138), (s * 0.046, 0.185)) for s in (-1, 1)] if b.front else []
    return parts + [Part("collar", point, (245, 245, 242)) for point in points]


def neckline(b: Body, depth: float) -> list[Part]:
    return [Part("neckline", oval(0, 0.145, 0.036, depth, 0, 180), b.skin)] if b.front else []


def logo(b: Body) -> list[Part]:
    if b.back or b.person.upper_pattern != "logo":
        return []
    x, r = (0.03, 0.02) if b.side else (0.0, 0.036)
    return [
        Part("logo", oval(x, 0.27, r, 0.036), accent(b.upper)),
        Part("logo", oval(x, 0.27, r / 2, 0.016), b.upper),
    ]


def arm(b: Body, limb: Limb) -> list[Part]:
    """One arm: hand, and the sleeve or, of a t-shirt, forearm and short sleeve."""
    far, (shoulder, elbow, wrist) = _far(b, limb), limb.joints
    skin, cloth = darker(b.skin, far), darker(b.upper, far)
    hand = Part("hand", oval(*wrist, 0.02, 0.023), skin)
    if b.person.upper == "t-shirt":
        w = b.wide
        bare = bent(limb.joints, (0.028 * w, 0.024 * w, 0.016 * w))
        sleeve = tube((shoulder, along(shoulder, elbow, 0.72)), (0.034 * w, 0.037 * w))
        return [hand, *(Part("forearm", outline, skin) for outline in bare), Part("sleeve", sleeve, cloth, b.pattern)]
    w = b.wide * (1.2 if LOOSE[b.person.upper] > 1.1 else 1.05)
    sleeves = bent((shoulder, elbow, along(elbow, wrist, 0.9)), (0.034 * w, 0.031 * w, 0.025 * w))
    return [hand, *(Part("sleeve", outline, cloth, b.pattern) for outline in sleeves)]
