"""What all figures share: fonts and colours, set when `reidlib.viz` is imported; reading and placing a picture."""

import textwrap
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from reidlib.data.images import open_image

Picture = str | Path | bytes | Image.Image | np.ndarray | torch.Tensor

WIDTH = 10.0  # inches: a notebook's column at DPI
DPI = 100
STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "text.parse_math": False,  # captions may hold a dollar sign
    # Okabe and Ito's colours, told apart by colour-blind readers too.
    "axes.prop_cycle": plt.cycler(
        color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#b8a800"]
    ),
}
MARKERS = "osD^vP*X"

plt.rcParams.update(STYLE)  # for figures that a notebook draws itself too


def figure(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Marks a function that draws a figure: pyplot forgets what it returns, so only `Run.figure` shows it."""

    @wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        made = draw(*args, **kwargs)
        plt.close(made)
        return made

    return drawn


def pixels(picture: Picture) -> np.ndarray:
    """Any picture, a uint8 array or tensor of (3, H, W), (H, W, 3) or (H, W) included, as uint8 (H, W, 3)."""
    if isinstance(picture, str | Path | bytes):
        picture = open_image(picture)
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    picture = np.asarray(picture)
    if picture.ndim == 2:
        picture = np.stack([picture] * 3, axis=-1)
    return picture.transpose(1, 2, 0) if picture.shape[-1] != 3 else picture


def show(axes: Axes, picture: Picture, frame: str = "#b0b0b0", width: float = 0.8) -> None:
    """A picture on axes without ticks, in a frame of a colour."""
    axes.imshow(pixels(picture), interpolation="antialiased")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, edgecolor=frame, linewidth=width)


def plain_numbers(axis: Axis) -> None:
    """Labels a logarithmic axis in plain numbers: powers of ten are set as mathematics, which this style has off, and a
    range of less than two of them would have one label."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())


def shape(pictures) -> float:
    """Height over width of the tallest of the pictures, at most 3."""
    return min(3.0, max(array.shape[0] / array.shape[1] for array in map(pixels, pictures)))


def wrapped(text: str, columns: int, lines: int) -> str:
    """Text in at most so many lines of so many characters, an ellipsis where it goes on."""
    parts = textwrap.wrap(str(text), columns) or [""]
    if len(parts) > lines:
        parts = [*parts[: lines - 1], textwrap.shorten(" ".join(parts[lines - 1 :]), columns, placeholder=" …")]
    return "\n".join(parts)
