"""A pad to draw on with mouse, finger or pen; the strokes are plain data that Python turns into a picture."""

import math
from io import BytesIO
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from PIL import Image, ImageDraw

MOST_POINTS = 200_000
FINER = 4  # drawn so many times larger, then shrunk, for smooth lines


class SketchPad(anywidget.AnyWidget):
    """`strokes` is a list of {"points": [[x, y], ...], "width": w}: x and y from 0 to 1 across and down the pad, w in
    units of its width. It changes once a stroke; set it from Python to draw without a browser.
    """

    _esm = Path(__file__).with_name("sketchpad.js")
    _css = Path(__file__).with_name("sketchpad.css")
    strokes = traitlets.List().tag(sync=True)
    ratio = traitlets.Float(2.0, help="height over width").tag(sync=True)
    pixels = traitlets.Int(200, help="width on the page").tag(sync=True)
    brush = traitlets.Float(0.02, help="width of new strokes").tag(sync=True)

    @traitlets.validate("strokes")
    def _check_strokes(self, proposal) -> list[dict]:
        try:
            strokes = [
                {"points": [[_unit(x), _unit(y)] for x, y in stroke["points"]], "width": _unit(stroke["width"])}
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
        """The drawing as RGB, dark lines on white; `size` is (width, height) in pixels."""
        width, height = size[0] * FINER, size[1] * FINER
        canvas = Image.new("L", (width, height), 255)
        pen = ImageDraw.Draw(canvas)
        for stroke in self.strokes:
            points = [(x * width, y * height) for x, y in stroke["points"]]
            thick = max(FINER, round(stroke["width"] * width))
            pen.line(points, fill=34, width=thick, joint="curve")
            for x, y in (points[0], points[-1]):
                pen.ellipse([x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2], fill=34)
        return canvas.resize(size, Image.Resampling.LANCZOS).convert("RGB")

    def show(self, picture: Image.Image | None) -> None:
        """Shows a picture on the empty pad in open browsers; it is sent and not kept, so no notebook saves it."""
        buffers = []
        if picture is not None:
            out = BytesIO()
            picture.save(out, "PNG")
            buffers = [out.getvalue()]
        self.send({"event": "backdrop"}, buffers)


def trace(picture: Image.Image) -> list[dict]:
    """A drawing on white as strokes for the pad: the outlines of its dark lines."""
    from contourpy import contour_generator

    width, height = picture.size
    ink = 255.0 - np.asarray(picture.convert("L"), dtype=float)
    lines = contour_generator(z=np.pad(ink, 1)).lines(0.5 * ink.max())  # a margin, so that every outline closes
    return [{"points": ((line - 0.5) / (width, height)).tolist(), "width": 1 / width} for line in lines]


def _unit(value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not finite")
    return min(1.0, max(0.0, number))
