"""Photos of the toy world: the figure painted before a camera's backdrop, then light, blur and noise."""

import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from reidlib.toyworld import scenes, shots
from reidlib.toyworld.body import Pose
from reidlib.toyworld.figure import figure
from reidlib.toyworld.people import Person, anyone
from reidlib.toyworld.scenes import HEIGHT, SCALE, WIDTH
from reidlib.toyworld.shapes import Part, Point, accent, darker
from reidlib.toyworld.shots import Shot

INFRARED = (0.6, 0.3, 0.1, 20)  # of red, green and blue, and what is added
BUSH, CAR_COLOURS = (58, 104, 52), ((150, 36, 40), (60, 84, 130), (196, 198, 200), (52, 54, 58))


def pose_of(shot: Shot) -> Pose:
    return Pose("side" if shot.view in ("left", "right") else shot.view, shot.phase, shot.swing)


def placed(part: Part, person: Person, shot: Shot) -> list[Point]:
    """The part's points on the supersampled canvas."""
    size = shot.size * person.height
    across = -size if shot.view == "left" else size
    return [((shot.x + x * across) * SCALE, (shot.feet - (1 - y) * size) * SCALE) for x, y in part.points]


@lru_cache
def pattern_mask(pattern: str) -> Image.Image:
    """Where a pattern's second colour lies, on a canvas-sized mask; thick enough to survive the downsampling."""
    mask = Image.new("L", (WIDTH * SCALE, HEIGHT * SCALE))
    pen = ImageDraw.Draw(mask)
    width, height = mask.size
    if pattern == "striped":
        for y in range(0, height, 18):
            pen.rectangle((0, y, width, y + 7), fill=255)
    if pattern == "checked":
        for y in range(0, height, 15):
            pen.rectangle((0, y, width, y + 4), fill=150)
        for x in range(0, width, 15):
            pen.rectangle((x, 0, x + 4, height), fill=190)
    if pattern == "spotted":
        for row, y in enumerate(range(0, height, 11)):
            for x in range(7 * (row % 2), width, 14):
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=255)
    return mask


def lay_pattern(canvas: Image.Image, points: list[Point], pattern: Image.Image, colour: tuple[int, int, int]) -> None:
    """Paste `colour` where `pattern` is set inside the polygon `points`."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    area = (
        max(0, int(min(xs))),
        max(0, int(min(ys))),
        min(canvas.width, int(max(xs)) + 2),
        min(canvas.height, int(max(ys)) + 2),
    )
    if area[0] >= area[2] or area[1] >= area[3]:
        return
    inside = Image.new("L", (area[2] - area[0], area[3] - area[1]))
    ImageDraw.Draw(inside).polygon([(x - area[0], y - area[1]) for x, y in points], fill=255)
    canvas.paste(colour, area[:2], ImageChops.multiply(inside, pattern.crop(area)))


def paint(canvas: Image.Image, person: Person, shot: Shot) -> None:
    """Paint the dressed figure."""
    pen = ImageDraw.Draw(canvas)
    unit = shot.size * SCALE
    for part in figure(person, pose_of(shot)):
        points = placed(part, person, shot)
        if part.width:
            pen.line(points, fill=part.colour, width=max(1, round(part.width * unit)), joint="curve")
            continue
        pen.polygon(points, fill=part.colour)
        pen.line([*points, points[0]], fill=darker(part.colour, 0.72), width=3)
        if part.pattern != "plain":
            lay_pattern(canvas, points, pattern_mask(part.pattern), accent(part.colour))


def occlude(canvas: Image.Image, shot: Shot, rng: random.Random) -> None:
    """Something between the camera and the person."""
    pen = ImageDraw.Draw(canvas)
    width, height = canvas.size
    if shot.occluder == "pole":
        x = (shot.x + rng.choice((-1, 1)) * rng.uniform(3, 10)) * SCALE
        pen.rectangle((x - 8, 0, x + 8, height), fill=(96, 98, 100), outline=(66, 66, 68))
    elif shot.occluder == "car":
        top, colour = 98 * SCALE, rng.choice(CAR_COLOURS)
        pen.polygon(
            [(0, top + 14), (20, top), (width - 20, top), (width, top + 14), (width, height), (0, height)], fill=colour
        )
        pen.rectangle((0, top + 22, width, top + 27), fill=darker(colour, 0.7))
        pen.ellipse((16, top + 34, 74, top + 92), fill=(28, 28, 30))
        pen.ellipse((32, top + 50, 58, top + 76), fill=(150, 152, 156))
    elif shot.occluder == "bush":
        for _ in range(46):
            x, y, r, g = (
                rng.uniform(0, width),
                rng.uniform(106 * SCALE, height),
                rng.uniform(14, 26),
                rng.uniform(0.75, 1.2),
            )
            pen.ellipse((x - r, y - r, x + r, y + r), fill=darker(BUSH, g))
    elif shot.occluder == "person":
        aside = shot.x + rng.choice((-1, 1)) * rng.uniform(25, 30)
        passer_by = Shot(shot.camera, rng.choice(shots.VIEWS), rng.random(), 1.0, aside, 132, 120, 1, 0, 0, "none", 0)
        paint(canvas, anyone(rng), passer_by)


@lru_cache
def _grain() -> np.ndarray:
    """A field of noise from which every picture takes its own window: (512, 512, 3) float32, standard deviation 1."""
    return np.random.default_rng(0).standard_normal((512, 512, 3), dtype=np.float32)


def expose(picture: Image.Image, shot: Shot, rng: random.Random) -> Image.Image:
    """Colour cast, brightness, blur and grain of the camera and the moment."""
    camera = scenes.CAMERA[shot.camera]
    blur = camera.blur + shot.blur
    if blur > 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(min(blur, 0.9)))
    warm = np.array((1 + shot.warmth, 1.0, 1 - shot.warmth))
    gain = (camera.light * shot.light * warm * camera.cast).astype(np.float32)
    x, y = rng.randrange(512 - WIDTH), rng.randrange(512 - HEIGHT)
    exposed = np.asarray(picture) * gain + camera.noise * _grain()[y : y + HEIGHT, x : x + WIDTH]
    return Image.fromarray(exposed.clip(0, 255).astype(np.uint8))


def photo(person: Person, shot: Shot | random.Random, infrared: bool = False) -> Image.Image:
    """The picture of `person` that `shot` describes (or a shot drawn from the generator): RGB, 64 wide, 128 high.

    infrared: as a camera sees at night, without colours and with cloth brighter the redder it is.
    """
    if isinstance(shot, random.Random):
        shot = shots.sample(shot)
    rng = random.Random(shot.seed)
    left = rng.randrange((scenes.PANORAMA - WIDTH) * SCALE)
    canvas = scenes.backdrop(shot.camera).crop((left, 0, left + WIDTH * SCALE, HEIGHT * SCALE))
    x, y = shot.x * SCALE, shot.feet * SCALE
    ImageDraw.Draw(canvas, "RGBA").ellipse((x - 50, y - 11, x + 56, y + 8), fill=(20, 20, 24, 90))
    paint(canvas, person, shot)
    occlude(canvas, shot, rng)
    picture = expose(canvas.reduce(SCALE), shot, rng)
    return picture.convert("L", INFRARED).convert("RGB") if infrared else picture
