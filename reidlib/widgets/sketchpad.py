"""A pad to draw on with mouse, finger or pen; the strokes are plain data that Python turns into a picture."""

import math
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from PIL import Image, ImageDraw

MOST_POINTS = 200_000
INK = 0.87  # of a line, where white paper is 0 and black 1
GREYS = (0.12, 0.35, 0.6, 1.0)  # between which the ink of a traced drawing counts as one grey
FINER = 4  # drawn so many times larger, then shrunk, for smooth lines


class SketchPad(anywidget.AnyWidget):
    """`strokes` is a list of {"points": [[x, y], ...], "width": w, "ink": i}: x and y from 0 to 1 across and down the
    pad, w in units of its width, i from 0 (white) to 1 (black). It changes once a stroke; set it from Python to draw
    without a browser. Where strokes cross, the darker one shows.
    """

    _esm = Path(__file__).with_name("sketchpad.js")
    _css = Path(__file__).with_name("sketchpad.css")
    strokes = traitlets.List().tag(sync=True)
    ratio = traitlets.Float(2.0, help="height over width").tag(sync=True)
    pixels = traitlets.Int(200, help="width on the page").tag(sync=True)
    tools = traitlets.List(
        [{"name": "Line", "width": 0.02, "ink": INK}, {"name": "Shade", "width": 0.1, "ink": 0.4}],
        help="what new strokes can be made with",
    ).tag(sync=True)

    @traitlets.validate("strokes")
    def _check_strokes(self, proposal) -> list[dict]:
        try:
            strokes = [
                {
                    "points": [[_unit(x), _unit(y)] for x, y in stroke["points"]],
                    "width": _unit(stroke["width"]),
                    "ink": _unit(stroke.get("ink", INK)),
                }
                for stroke in proposal["value"]
            ]
        except (TypeError, KeyError, ValueError) as error:
            raise traitlets.TraitError(
                f"A stroke needs points [[x, y], ...] and a width, all numbers ({error})."
            ) from error
        if sum(len(stroke["points"]) for stroke in strokes) > MOST_POINTS:
            raise traitlets.TraitError(f"The drawing has more than {MOST_POINTS} points.")
        return [stroke for stroke in strokes if stroke["points"]]

    def undo(self) -> None:
        self.strokes = self.strokes[:-1]

    def clear(self) -> None:
        self.strokes = []

    def image(self, size: tuple[int, int] = (128, 256)) -> Image.Image:
        """The drawing as RGB, dark on white; `size` is (width, height) in pixels."""
        width, height = size[0] * FINER, size[1] * FINER
        canvas = Image.new("L", (width, height), 255)
        pen = ImageDraw.Draw(canvas)
        for stroke in sorted(self.strokes, key=lambda stroke: stroke["ink"]):
            points = [(x * width, y * height) for x, y in stroke["points"]]
            thick, grey = max(FINER, round(stroke["width"] * width)), round(255 * (1 - stroke["ink"]))
            pen.line(points, fill=grey, width=thick, joint="curve")
            for x, y in (points[0], points[-1]):
                pen.ellipse([x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2], fill=grey)
        return canvas.resize(size, Image.Resampling.LANCZOS).convert("RGB")

    def show(self, picture: Image.Image | None) -> None:
        """Shows a picture on the empty pad in open browsers; it is sent and not kept, so no notebook saves it."""
        buffers = []
        if picture is not None:
            out = BytesIO()
            picture.save(out, "PNG")
            buffers = [out.getvalue()]
        self.send({"event": "backdrop"}, buffers)


def trace(picture: Image.Image, size: tuple[int, int] = (100, 200)) -> list[dict]:
    """A drawing on white as strokes for the pad, line by line from left to right in three greys.

    size: (width, height) at which it is read, half as wide as the pad; each piece of a line is a stroke.
    """
    width, height = size
    ink = 1 - np.asarray(picture.convert("L").resize(size, Image.Resampling.BICUBIC)) / 255
    grey = np.pad(np.digitize(ink, GREYS[:-1]), ((0, 0), (1, 1)))
    strokes = []
    for y in range(height):
        ends = np.flatnonzero(np.diff(grey[y])).tolist()
        for start, end in pairwise(ends):
            if level := grey[y, start + 1]:
                line = [[(x + 0.5) / width, (y + 0.5) / height] for x in (start, end - 1)]
                strokes.append({"points": line, "width": 1 / width, "ink": (GREYS[level - 1] + GREYS[level]) / 2})
    return strokes


def _unit(value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not finite")
    return min(1.0, max(0.0, number))
