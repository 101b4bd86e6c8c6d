"""Makes sketches from photos, for data sets that have none: lines and hatching that look drawn by a hurried hand."""

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from reidlib.data.images import open_image
from reidlib.data.table import first_faults
from reidlib.errors import DataError
from reidlib.paths import inside, written_whole
from reidlib.progress import tqdm

PHOTOS, SKETCHES = "imgs", "imgs-sketch"
HEIGHT = 256  # sketches are drawn at this height, whatever the photo's, so that lines are equally thick


def make_sketches(root: Path, paths: Sequence[str], seed: int = 0, workers: int = 0) -> list[str]:
    """Draws a sketch of every photo, `imgs/a/b.jpg` under `root` giving `imgs-sketch/a/b.jpg`, and returns their paths.

    A sketch depends on its photo, path and `seed` alone. What exists already is kept, so a run that was killed goes on
    where it stopped; files appear whole or not at all. workers: processes, 0 for one a core. Raises DataError for a
    path outside `imgs/`; photos that cannot be read are left out with one warning.
    """
    made = [sketch_path(path) for path in paths]
    todo = [pair for pair in dict.fromkeys(zip(paths, made, strict=True)) if not inside(root, pair[1]).exists()]
    workers = min(workers or os.cpu_count() or 1, len(todo))
    draw = partial(_draw_file, Path(root), seed)
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            errors = _watch(pool.map(draw, todo, chunksize=16), len(todo))
    else:
        errors = _watch(map(draw, todo), len(todo))
    if broken := {path: error for (_, path), error in zip(todo, errors, strict=True) if error}:
        sentences = first_faults(broken.values())
        warnings.warn(f"Photos that cannot be read and get no sketch: {len(broken):,}. {sentences}", stacklevel=2)
    return [path for path in made if path not in broken]


def _watch(results: Iterable[str], total: int) -> list[str]:
    """Follows the drawing with a progress bar; what went wrong with each photo, or ""."""
    return list(tqdm(results, total=total, desc="drawing", leave=False, disable=None))


def sketch_path(path: str) -> str:
    """Where the sketch of a photo lies, both relative to the data set's root; only the first `imgs` changes."""
    parts = Path(path).parts
    if PHOTOS not in parts:
        raise DataError(f"The photo {path} should lie in a folder {PHOTOS}/, whose twin {SKETCHES}/ takes its sketch.")
    at = parts.index(PHOTOS)
    return Path(*parts[:at], SKETCHES, *parts[at + 1 :]).as_posix()


def draw_sketch(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A photo redrawn in pencil, grey, `HEIGHT` pixels high in the photo's proportions.

    Lines are the extended difference of Gaussians (Winnemöller et al., 2012), fine ones and contours, each displaced
    by its own smooth wobble and with gaps where the pencil left the paper; dark clothes are hatched; the surroundings
    fade, as a witness draws the person and not the street.
    """
    width = max(8, round(photo.width * HEIGHT / photo.height))
    grey = np.asarray(photo.convert("L").resize((width, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    fine = _wobble(_lines(grey, rng.uniform(0.5, 0.7)), rng, 0.8) * _gaps(grey.shape, rng)
    contour = _wobble(_lines(grey, rng.uniform(0.9, 1.2)), rng, 1.4) * _gaps(grey.shape, rng)
    shade = _wobble(_hatching(grey, rng), rng, 1.0)
    ink = np.maximum(np.maximum(0.9 * fine, contour), 0.85 * shade) * _spotlight(grey.shape)
    return Image.fromarray((255 * (0.99 - 0.9 * gaussian_filter(ink, 0.35))).astype(np.uint8))


def _lines(grey: np.ndarray, sigma: float) -> np.ndarray:
    """Ink (H, W) in [0, 1] on the dark side of edges and along thin dark things, lines about `sigma` pixels wide."""
    edges = gaussian_filter(grey, 1.6 * sigma) - gaussian_filter(grey, sigma)
    weakest = max(0.012, float(np.quantile(edges, 0.84)))
    return np.clip((edges - weakest) / 0.025, 0, 1)


def _wobble(ink: np.ndarray, rng: np.random.Generator, pixels: float) -> np.ndarray:
    """The drawing bent smoothly, as a hand misses a line: displaced by about `pixels`, differently every 30 pixels."""
    where = np.indices(ink.shape, dtype=np.float32)
    where += np.stack([pixels * _smooth(ink.shape, rng, 30) for _ in range(2)])
    return map_coordinates(ink, where, order=1, mode="nearest")


def _gaps(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Pressure of the pencil (H, W) in [0, 1]: mostly full, nothing in places."""
    return np.clip(1.3 + 1.3 * _smooth(shape, rng, 12), 0, 1)


def _hatching(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Parallel strokes (H, W) in [0, 1] of uneven pressure, the wider the darker the place."""
    tone = gaussian_filter(grey, 1.5)
    dark = np.clip((min(0.45, 0.85 * float(np.median(tone))) - tone) / 0.3, 0, 1)
    rows, columns = np.indices(grey.shape, dtype=np.float32)
    angle = rng.uniform(-0.5, 0.5)
    across = columns * np.cos(angle) + rows * np.sin(angle) + 2 * _smooth(grey.shape, rng, 24)
    stroke = 0.5 + 0.5 * np.sin(2 * np.pi * across / rng.uniform(3.0, 4.2))
    pressure = np.clip(0.75 + 0.25 * _smooth(grey.shape, rng, 6), 0, 1)
    return np.clip(2 * (stroke + 1.2 * dark - 1), 0, 1) * np.sqrt(dark) * pressure


def _spotlight(shape: tuple[int, int]) -> np.ndarray:
    """One (1, W) around the middle, where crops of people have the person, falling to a quarter at the sides."""
    aside = np.abs(np.linspace(-1, 1, shape[1], dtype=np.float32))
    return 1 - 0.75 * np.clip((aside - 0.6) / 0.3, 0, 1)[None]


def _smooth(shape: tuple[int, int], rng: np.random.Generator, step: int) -> np.ndarray:
    """A smooth random field (H, W), about unit variance, that forgets itself over `step` pixels."""
    height, width = shape
    knots = rng.standard_normal((height // step + 5, width // step + 5), dtype=np.float32)
    top, left = rng.uniform(1, 2, 2)
    box = (left, top, left + width / step, top + height / step)
    return np.asarray(Image.fromarray(knots).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _draw_file(root: Path, seed: int, pair: tuple[str, str]) -> str:
    """Draws one photo's sketch; returns what is wrong with the photo, or nothing."""
    path, made = pair
    target = inside(root, made)
    digest = hashlib.sha256(f"{seed}\0{path}".encode()).digest()
    try:
        sketch = draw_sketch(open_image(inside(root, path)), np.random.default_rng(list(digest)))
    except DataError as error:
        return str(error)
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as part:
        sketch.save(part, format=Image.registered_extensions().get(target.suffix.lower(), "PNG"), quality=92)
    return ""
