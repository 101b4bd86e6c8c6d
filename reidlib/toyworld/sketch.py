"""Drawings of the toy world: the person drawn again from memory by one of four hands, never traced from the photo."""

import random
from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from reidlib.toyworld.body import Pose
from reidlib.toyworld.draw import lay_pattern, pattern_mask
from reidlib.toyworld.figure import figure
from reidlib.toyworld.people import PATTERN_OF, Person
from reidlib.toyworld.scenes import HEIGHT, SCALE, WIDTH
from reidlib.toyworld.shapes import Part, Point
from reidlib.toyworld.shots import Shot

HANDS = ("clean", "shaky", "shaded")
COLOURED = "coloured"  # a fourth hand, with colour pencils
INK, SECOND_LINE, PAPER = (30, 30, 34), (90, 90, 94), (255, 255, 255)
BARE = frozenset(("head", "hand", "leg", "forearm", "neck", "ear", "nose", "neckline", "foot"))  # skin has no tone
SHADING = {
    "clean": 0.55,
    "shaky": 0.8,
    "shaded": 1.0,
    COLOURED: 0.75,
}  # how far a hand's pencil follows the darkness of a thing


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


@lru_cache
def _wobble() -> np.ndarray:
    """Small displacements from which every trembling line takes its own, (65536, 2), standard deviation 1."""
    return np.random.default_rng(0).standard_normal((65536, 2))


def tremble(points: list[Point], amount: float, rng: random.Random) -> list[Point]:
    """The outline with extra points, all of them a little off."""
    corners = np.array(points + points[:1])
    outline = np.stack([corners[:-1], (corners[:-1] + corners[1:]) / 2], axis=1).reshape(-1, 2)
    first = rng.randrange(65536 - len(outline))
    return list(map(tuple, (outline + amount * _wobble()[first : first + len(outline)]).tolist()))


def tone(part: Part, hand: str, rng: random.Random) -> tuple[int, int, int]:
    """The grey of a part, roughly as dark as its cloth or hair, as artists shade for the police; or a pale colour."""
    red, green, blue = part.colour
    if hand == COLOURED:
        press = SHADING[hand] * rng.uniform(0.85, 1.15)
        return tuple(round(255 - min(1.0, press) * (255 - value)) for value in part.colour)
    darkness = 0.0 if part.name in BARE else max(0.0, 1 - (0.3 * red + 0.59 * green + 0.11 * blue) / 215)
    return (round(255 * (1 - SHADING[hand] * min(1.0, darkness * rng.uniform(0.85, 1.15)))),) * 3


def ink(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, part: Part, points: list[Point], hand: str, rng: random.Random
) -> None:
    """Draw one part: paper inside, so that it hides what lies behind, then tone, pattern and outline."""
    if part.width:
        pen.line(points, fill=INK, width=3 if part.name in ("strap", "belt", "carried") else 2)
        return
    if hand == "shaky":
        points = tremble(points, 1.3, rng)
    shade = tone(part, hand, rng)
    pen.polygon(points, fill=PAPER if hand == "shaky" else shade)
    if hand == "shaky" and shade[0] < 235:  # strokes, the denser the darker
        lay_pattern(canvas, points, hatching(max(4, round(4 * 215 / (255 - shade[0])))), INK)
    if part.pattern != "plain":
        lay_pattern(canvas, points, pattern_mask(part.pattern), INK)
    pen.line([*points, points[0]], fill=INK, width=3 if hand == "shaky" else 4)
    if hand == "shaky" and rng.random() < 0.5:
        pen.line(tremble(points, 1.5, rng), fill=SECOND_LINE, width=2)


def draw(person: Person, shot: Shot, hand: str, seed: int) -> Image.Image:
    """A drawing of `person` by `hand` after the moment `shot`: dark on white, RGB, 64 wide, 128 high.

    hand: one of HANDS or COLOURED. seed: settles what is remembered and how the pencil moves.
    """
    rng = random.Random(seed)
    canvas = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
    pen = ImageDraw.Draw(canvas)
    pose, leftwards = pose_from_memory(shot, rng)
    person = remembered(person, rng)
    size = rng.uniform(106, 114) * person.height * SCALE
    middle, sole = (WIDTH / 2 + rng.uniform(-3, 3)) * SCALE, rng.uniform(121, 125) * SCALE
    across = -size if leftwards else size
    for part in figure(person, pose):
        ink(canvas, pen, part, [(middle + x * across, sole - (1 - y) * size) for x, y in part.points], hand, rng)
    return canvas.reduce(SCALE)
