"""Sketches of the toy world: the person drawn again from memory by one of three hands, never traced from the photo."""

import random
from dataclasses import replace
from functools import lru_cache

from PIL import Image, ImageDraw

from reidlib.toyworld.body import Pose
from reidlib.toyworld.draw import lay_pattern, pattern_mask
from reidlib.toyworld.figure import figure
from reidlib.toyworld.people import PATTERN_OF, Person
from reidlib.toyworld.scenes import HEIGHT, SCALE, WIDTH
from reidlib.toyworld.shapes import Part, Point
from reidlib.toyworld.shots import Shot

HANDS = ("clean", "shaky", "shaded")
INK, SECOND_LINE, PAPER = (30, 30, 34), (90, 90, 94), (255, 255, 255)
BARE = frozenset(("head", "hand", "leg", "forearm", "neck", "ear", "nose", "neckline", "foot"))  # skin has no tone
SHADING = {"clean": 0.55, "shaky": 0.8, "shaded": 1.0}  # how far a hand's pencil follows the darkness of a thing


def remembered(person: Person, rng: random.Random) -> Person:
    """The person as the artist was told or recalls: now and then a thing is forgotten or the pattern is wrong."""
    if rng.random() < 0.12:
        person = replace(person, bag="none", bag_colour="none")
    if rng.random() < 0.12:
        person = replace(person, hat="none", hat_colour="none")
    if rng.random() < 0.15:
        person = replace(person, carried="none")
    if rng.random() < 0.1:
        person = replace(person, upper_pattern=rng.choice(PATTERN_OF[person.upper]))
    return replace(person, build=person.build * rng.uniform(0.92, 1.1), height=rng.uniform(0.94, 1.02))


def pose_from_memory(shot: Shot, rng: random.Random) -> tuple[Pose, bool]:
    """Another moment of the stride, often another view; and whether the figure faces left."""
    view = shot.view if rng.random() < 0.6 else rng.choice(("front", "front", "back", "left", "right"))
    proportions = {"wide": rng.uniform(0.93, 1.08), "head": rng.uniform(0.95, 1.15)}
    side = view in ("left", "right")
    return Pose("side" if side else view, rng.random(), rng.uniform(0.3, 1.0), **proportions), view == "left"


@lru_cache
def hatching(spacing: int) -> Image.Image:
    """Slanted pencil strokes, `spacing` supersampled pixels apart."""
    mask = Image.new("L", (WIDTH * SCALE, HEIGHT * SCALE))
    pen = ImageDraw.Draw(mask)
    for x in range(-mask.height, mask.width, spacing):
        pen.line((x, mask.height, x + mask.height, 0), fill=190, width=2)
    return mask


def tremble(points: list[Point], amount: float, rng: random.Random) -> list[Point]:
    """The outline with extra points, all of them a little off."""
    shaken = []
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        for x, y in ((x0, y0), ((x0 + x1) / 2, (y0 + y1) / 2)):
            shaken.append((x + rng.gauss(0, amount), y + rng.gauss(0, amount)))
    return shaken


def tone(part: Part, hand: str, rng: random.Random) -> int:
    """The grey of a part, 0 to 255: roughly as dark as its cloth or hair, as artists shade for the police."""
    red, green, blue = part.colour
    darkness = 0.0 if part.name in BARE else max(0.0, 1 - (0.3 * red + 0.59 * green + 0.11 * blue) / 215)
    return round(255 * (1 - SHADING[hand] * min(1.0, darkness * rng.uniform(0.85, 1.15))))


def ink(canvas: Image.Image, part: Part, points: list[Point], hand: str, rng: random.Random) -> None:
    """Draw one part: paper inside, so that it hides what lies behind, then tone, pattern and outline."""
    pen = ImageDraw.Draw(canvas)
    if part.width:
        pen.line(points, fill=INK, width=3 if part.name in ("strap", "belt", "carried") else 2)
        return
    if hand == "shaky":
        points = tremble(points, 1.3, rng)
    grey = tone(part, hand, rng)
    pen.polygon(points, fill=PAPER if hand == "shaky" else (grey, grey, grey))
    if hand == "shaky" and grey < 235:  # strokes, the denser the darker
        lay_pattern(canvas, points, hatching(max(4, round(4 * 215 / (255 - grey)))), INK)
    if part.pattern != "plain":
        lay_pattern(canvas, points, pattern_mask(part.pattern), INK)
    pen.line([*points, points[0]], fill=INK, width=3 if hand == "shaky" else 4, joint="curve")
    if hand == "shaky" and rng.random() < 0.5:
        pen.line(tremble(points, 1.5, rng), fill=SECOND_LINE, width=2)


def draw(person: Person, shot: Shot, hand: str, rng: random.Random) -> Image.Image:
    """A sketch of `person` by `hand` (one of HANDS) after the moment `shot`: dark on white, RGB, 64 wide, 128 high."""
    canvas = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
    pose, leftwards = pose_from_memory(shot, rng)
    person = remembered(person, rng)
    size = rng.uniform(106, 114) * person.height * SCALE
    middle, sole = (WIDTH / 2 + rng.uniform(-3, 3)) * SCALE, rng.uniform(121, 125) * SCALE
    across = -size if leftwards else size
    for part in figure(person, pose):
        ink(canvas, part, [(middle + x * across, sole - (1 - y) * size) for x, y in part.points], hand, rng)
    return canvas.reduce(SCALE)
