"""What a model looks at: attention over a picture, chosen patches, and words shaded by their weight."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from reidlib.viz.style import DPI, WIDTH, Picture, figure, pixels, show

HEAT, INK = "inferno", "YlOrRd"


@figure
def attention_on_picture(picture: Picture, weights, title: str = "Where the model looks") -> Figure:
    """A picture, and beside it the same under a heat map of `weights` (h, w), one a patch, any positive scale."""
    weights = np.asarray(weights, dtype=float)
    share = 100 * weights / weights.sum()
    sheet, (left, right) = _pair(picture, title)
    height, width = pixels(picture).shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    heat = right.imshow(share, cmap=HEAT, alpha=0.6, extent=extent, interpolation="bicubic", vmin=0)
    right.set_title("attention")
    _bar(sheet, heat, right, "percent of the attention, by patch")
    return sheet


@figure
def selected_patches(
    picture: Picture,
    grid: tuple[int, int],
    selected: Sequence[int],
    scores: Sequence[float],
    title: str = "Patches the model chose",
) -> Figure:
    """The chosen of `grid` (h, w) patches, framed by score over the darkened rest; the best three are numbered.

    `selected` are flat indices row by row, `scores` one for each of them.
    """
    sheet, (left, right) = _pair(picture, title)
    full = pixels(picture)
    high, wide = full.shape[0] / grid[0], full.shape[1] / grid[1]
    chosen = np.zeros(grid, dtype=bool)
    chosen.flat[list(selected)] = True
    extent = (-0.5, full.shape[1] - 0.5, full.shape[0] - 0.5, -0.5)
    shade = np.zeros((*grid, 4))
    shade[..., 3] = np.where(chosen, 0, 0.72)
    right.imshow(shade, extent=extent, interpolation="nearest")
    colours = ScalarMappable(Normalize(min(scores), max(scores)), "plasma")
    for rank, best in enumerate(np.argsort(scores)[::-1], start=1):
        row, column = divmod(int(selected[best]), grid[1])
        corner = (column * wide - 0.5, row * high - 0.5)
        colour = colours.to_rgba(scores[best])
        right.add_patch(Rectangle(corner, wide, high, fill=False, edgecolor=colour, linewidth=1.4))
        if rank <= 3:
            centre = (corner[0] + wide / 2, corner[1] + high / 2)
            ink = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
            right.text(*centre, str(rank), ha="center", va="center", fontsize=7, weight="bold", bbox=ink)
    right.set_title(f"{len(selected)} of {grid[0] * grid[1]} patches")
    _bar(sheet, colours, right, "score of the patch")
    return sheet


@figure
def words(tokens: Sequence[str], weights: Sequence[float], title: str = "What the model reads") -> Figure:
    """Words in reading order, each the darker the more weight it has (any positive scale, shown as percent)."""
    share = 100 * np.asarray(weights, dtype=float) / np.sum(weights)
    colours = ScalarMappable(Normalize(0, share.max()), INK)
    sheet = plt.figure(figsize=(WIDTH, 1))
    places, lines = _flow(sheet, tokens)
    line, head = 0.36, 0.5
    height = head + line * lines + 0.5
    sheet.set_size_inches(WIDTH, height)
    sheet.text(0.01, 1 - 0.1 / height, title, va="top", fontsize=12)
    for token, weight, (left, row) in zip(tokens, share, places, strict=True):
        box = {"boxstyle": "round,pad=0.25", "facecolor": colours.to_rgba(weight), "edgecolor": "none"}
        ink = "white" if weight > 0.65 * share.max() else "black"
        y = 1 - (head + line * (row + 0.5)) / height
        sheet.text(left / WIDTH, y, token, va="center", fontsize=11, color=ink, bbox=box)
    axes = sheet.add_axes((0.015, 0.33 / height, 0.3, 0.1 / height))
    bar = sheet.colorbar(colours, cax=axes, orientation="horizontal")
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    sheet.text(0.33, 0.38 / height, "percent of the attention, by word", va="center", fontsize=8)
    return sheet


def _flow(sheet: Figure, tokens: Sequence[str]) -> tuple[list[tuple[float, int]], int]:
    """Where each token starts, (inches from the left, line), when lines break at the right edge; and the lines."""
    left, row, places = 0.15, 0, []
    for token in tokens:
        probe = sheet.text(0, 0, token, fontsize=11)
        width = probe.get_window_extent().width / DPI
        probe.remove()
        if left + width > WIDTH - 0.15 and left > 0.15:
            left, row = 0.15, row + 1
        places.append((left, row))
        left += width + 0.16
    return places, row + 1


def _pair(picture: Picture, title: str) -> tuple[Figure, tuple[Axes, Axes]]:
    """A figure with the picture twice; the right one is to be drawn on."""
    full = pixels(picture)
    width = 4.2 * full.shape[1] / full.shape[0]
    sheet, axes = plt.subplots(1, 2, figsize=(max(2 * width + 1.4, 4.2), 4.9), layout="constrained")
    for panel in axes:
        show(panel, full)
    axes[0].set_title("picture")
    sheet.suptitle(title)
    return sheet, tuple(axes)


def _bar(sheet: Figure, values: ScalarMappable, beside: Axes, label: str) -> None:
    sheet.colorbar(values, ax=beside, fraction=0.08, pad=0.03).set_label(label)
