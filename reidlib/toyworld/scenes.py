"""Six places with a camera each: a backdrop to crop from, a colour cast, a sharpness and a noise."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFilter

SCALE = 3  # supersampling of everything that is painted
WIDTH, HEIGHT = 64, 128
PANORAMA = 2 * WIDTH  # a backdrop is wider than a picture, so that two shots by one camera differ
GROUND = 92  # where the floor meets what stands on it, in pixels of the picture

Brush = Callable[..., None]


@dataclass(frozen=True)
class Camera:
    cast: tuple[float, float, float]
    light: float
    blur: float
    noise: float


CAMERA = (
    Camera((1.0, 1.0, 1.02), 1.0, 0.25, 4),
    Camera((1.07, 1.0, 0.9), 0.92, 0.45, 6),
    Camera((0.98, 1.02, 0.95), 1.0, 0.2, 3),
    Camera((1.05, 1.0, 0.93), 0.98, 0.35, 5),
    Camera((0.94, 0.99, 1.05), 0.85, 0.5, 6),
    Camera((1.0, 1.0, 1.0), 1.04, 0.3, 4),
)


def _street(rect: Brush, oval: Brush, rng: random.Random) -> None:
    rect(0, 0, PANORAMA, GROUND, (168, 172, 178))
    for x in range(0, PANORAMA, 32):
        grey = rng.randrange(128, 186)
        rect(x, 0, x + 32, GROUND, (grey, grey, grey - 8))
        for wx in (x + 4, x + 18):
            for wy in (6, 34, 62):
                rect(wx, wy, wx + 9, wy + 18, (92, 108, 124))
    rect(0, GROUND, PANORAMA, HEIGHT, (112, 112, 116))
    rect(0, GROUND, PANORAMA, GROUND + 6, (176, 174, 168))
    rect(0, GROUND + 6, PANORAMA, GROUND + 8, (140, 138, 134))
    for x in range(0, PANORAMA, 26):
        rect(x, 113, x + 14, 115, (214, 212, 200))


def _brick_wall(rect: Brush, oval: Brush, rng: random.Random) -> None:
    rect(0, 0, PANORAMA, HEIGHT, (178, 160, 146))
    for row, y in enumerate(range(0, GROUND, 6)):
        for x in range(-6 * (row % 2), PANORAMA, 12):
            shade = rng.randrange(-14, 14)
            rect(x, y, x + 11, y + 5, (146 + shade, 86 + shade, 68 + shade))
    rect(0, GROUND, PANORAMA, HEIGHT, (152, 146, 138))
    for x in range(0, PANORAMA, 21):
        rect(x, GROUND, x + 1, HEIGHT, (128, 122, 116))
    rect(0, 108, PANORAMA, 109, (128, 122, 116))


def _park(rect: Brush, oval: Brush, rng: random.Random) -> None:
    rect(0, 0, PANORAMA, 40, (176, 206, 232))
    for _ in range(60):
        x, y, r, g = rng.randrange(PANORAMA), rng.randrange(10, 58), rng.randrange(7, 15), rng.randrange(96, 140)
        oval(x - r, y - r, x + r, y + r, (g - 56, g, g - 66))
    for x in (14, 66, 108):
        rect(x, 40, x + 5, 84, (92, 68, 48))
    rect(0, 66, PANORAMA, HEIGHT, (112, 156, 80))
    for _ in range(160):
        x, y, g = rng.randrange(PANORAMA), rng.randrange(66, HEIGHT), rng.randrange(-18, 18)
        rect(x, y, x + 2, y + 1, (108 + g, 152 + g, 76 + g))
    rect(0, 106, PANORAMA, 122, (188, 172, 140))


def _shop(rect: Brush, oval: Brush, rng: random.Random) -> None:
    rect(0, 0, PANORAMA, HEIGHT, (216, 206, 190))
    for i, x in enumerate(range(0, PANORAMA, 8)):
        rect(x, 8, x + 8, 22, (186, 62, 58) if i % 2 else (238, 232, 222))
    for x in range(4, PANORAMA, 42):
        rect(x, 28, x + 36, GROUND - 6, (176, 204, 208))
        for _ in range(7):
            bx, c = (
                x + rng.randrange(2, 30),
                rng.choice(((220, 180, 90), (150, 110, 150), (110, 150, 120), (230, 226, 214))),
            )
            rect(bx, 62 + rng.randrange(0, 12), bx + 5, GROUND - 8, c)
        rect(x, 28, x + 36, 30, (92, 72, 58))
    rect(0, GROUND, PANORAMA, HEIGHT, (190, 182, 172))
    for x in range(0, PANORAMA, 16):
        rect(x, GROUND, x + 1, HEIGHT, (168, 160, 150))
    for y in (100, 110, 121):
        rect(0, y, PANORAMA, y + 1, (168, 160, 150))


def _station(rect: Brush, oval: Brush, rng: random.Random) -> None:
    rect(0, 0, PANORAMA, HEIGHT, (150, 158, 164))
    for y in range(0, GROUND, 10):
        for x in range(0, PANORAMA, 10):
            s = rng.randrange(-7, 7)
            rect(x, y, x + 9, y + 9, (184 + s, 194 + s, 198 + s))
    rect(0, 26, PANORAMA, 34, (48, 92, 150))
    for x in (20, 86):
        rect(x, 42, x + 26, 78, (228, 224, 206))
        rect(x + 3, 46, x + 23, 62, rng.choice(((200, 120, 80), (120, 150, 90), (150, 100, 160))))
    rect(0, GROUND, PANORAMA, HEIGHT, (116, 118, 122))
    rect(0, 104, PANORAMA, 108, (216, 188, 70))


def _square(rect: Brush, oval: Brush, rng: random.Random) -> None:
    rect(0, 0, PANORAMA, 30, (206, 222, 236))
    for x in range(0, PANORAMA, 24):
        c = rng.choice(((214, 196, 164), (204, 176, 150), (222, 212, 196), (188, 190, 180)))
        top = rng.randrange(4, 22)
        rect(x, top, x + 24, 62, c)
        for wx in (x + 4, x + 14):
            for wy in range(top + 6, 54, 14):
                rect(wx, wy, wx + 5, wy + 8, (120, 126, 130))
    rect(0, 62, PANORAMA, HEIGHT, (206, 198, 186))
    for i, y in enumerate((66, 71, 78, 87, 99, 114)):
        rect(0, y, PANORAMA, y + 1, (182, 174, 162))
        for x in range(6 * (i % 2), PANORAMA, 12 + 2 * i):
            rect(x, y, x + 1, y + 6 + 2 * i, (184, 176, 164))


PLACES = (_street, _brick_wall, _park, _shop, _station, _square)


@lru_cache
def backdrop(camera: int) -> Image.Image:
    """The panorama behind `camera`, supersampled and a little out of focus; the same in every world."""
    panorama = Image.new("RGB", (PANORAMA * SCALE, HEIGHT * SCALE), (160, 160, 160))
    pen = ImageDraw.Draw(panorama)

    def rect(x0: float, y0: float, x1: float, y1: float, colour: tuple[int, int, int]) -> None:
        pen.rectangle((x0 * SCALE, y0 * SCALE, x1 * SCALE - 1, y1 * SCALE - 1), fill=colour)

    def oval(x0: float, y0: float, x1: float, y1: float, colour: tuple[int, int, int]) -> None:
        pen.ellipse((x0 * SCALE, y0 * SCALE, x1 * SCALE, y1 * SCALE), fill=colour)

    PLACES[camera](rect, oval, random.Random(f"backdrop {camera}"))
    return panorama.filter(ImageFilter.GaussianBlur(1.2))
