"""A pad to draw on with mouse, finger or pen; the strokes are plain data that Python turns into a picture."""

from io import BytesIO
from itertools import accumulate, pairwise
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from PIL import Image, ImageDraw

from reidlib.errors import DataError
from reidlib.retrieval.session import INK, checked_strokes

GREYS = (0.12, 0.35, 0.6, 1.0)  # between which the ink of a traced drawing counts as one grey
FINER = 4  # drawn so many times larger, then shrunk, for smooth lines


class SketchPad(anywidget.AnyWidget):
    """`strokes` is a list of {"points": [[x, y], ...], "width": w, "ink": i}: x and y from 0 to 1 across and down the
    pad, w in units of its width, i from 0 (white, which erases) to 1 (black). It changes once a stroke; set it from
    Python to draw without a browser. Where strokes cross, the darker one shows, so that shading leaves lines.
    """

    _esm = Path(__file__).with_name("sketchpad.js")
    strokes = traitlets.List().tag(sync=True)
    ratio = traitlets.Float(2.0, help="height over width").tag(sync=True)
    pixels = traitlets.Int(200, help="width on the page").tag(sync=True)
    inks = traitlets.Dict({"Line": INK, "Dark": 0.6, "Light": 0.3, "Eraser": 0.0}).tag(sync=True)
    widths = traitlets.Dict({"Fine": 0.02, "Broad": 0.06, "Wide": 0.15}).tag(sync=True)

    @traitlets.validate("strokes")
    def _check_strokes(self, proposal) -> list[dict]:
        try:
            return checked_strokes(proposal["value"])
        except DataError as error:
            raise traitlets.TraitError(str(error)) from error

    def image(self, size: tuple[int, int] = (128, 256)) -> Image.Image:
        """The drawing as RGB, dark on white; `size` is (width, height) in pixels."""
        width, height = size[0] * FINER, size[1] * FINER
        canvas = Image.new("L", (width, height), 255)
        pen = ImageDraw.Draw(canvas)
        for stroke in in_order(self.strokes):
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


def in_order(strokes: list[dict]) -> list[dict]:
    """Strokes as they are to be drawn: between two uses of the eraser, the darker after the lighter."""
    layer = list(accumulate(2 * (stroke["ink"] == 0) for stroke in strokes))  # an eraser lies between two layers
    order = sorted(range(len(strokes)), key=lambda i: (layer[i] - (strokes[i]["ink"] == 0), strokes[i]["ink"]))
    return [strokes[i] for i in order]


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
