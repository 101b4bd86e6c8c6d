"""What a model looks at: attention over a picture, chosen patches, and words shaded by their weight."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from reidlib.viz.style import DPI, WIDTH, Picture, figure, pixels, show

HEAT, INK = "inferno", "YlOrRd"
GROUPS = ("#ffd21f", "#56e0ff", "#ff7ad9")  # bright on any picture


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
    groups: Sequence[int] | None = None,
) -> Figure:
    """The chosen of `grid` (h, w) patches, framed over the darkened rest; the best three are numbered.

    `selected` are flat indices row by row, `scores` one for each of them; `groups` too, from 1, where the model makes
    several: each has its colour.
    """
    sheet, (_, right) = _pair(picture, title)
    full = pixels(picture)
    chosen = np.zeros(grid, dtype=bool)
    chosen.flat[list(selected)] = True
    extent = (-0.5, full.shape[1] - 0.5, full.shape[0] - 0.5, -0.5)
    shade = np.zeros((*grid, 4))
    shade[..., 3] = np.where(chosen, 0, 0.72)
    right.imshow(shade, extent=extent, interpolation="nearest")
    groups = [1] * len(selected) if groups is None else groups
    for rank, best in enumerate(np.argsort(scores)[::-1], start=1):
        _frame(right, full, grid, int(selected[best]), GROUPS[groups[best] - 1], str(rank) if rank <= 3 else "")
    right.set_title(f"{len(selected)} of {grid[0] * grid[1]} patches")
    best = ", ".join(f"{score:.2g}" for score in sorted(scores)[:-4:-1])
    right.set_xlabel(f"scores of the best three: {best}")
    for group in sorted(set(groups)) if len(set(groups)) > 1 else ():
        right.plot([], [], color=GROUPS[group - 1], label=f"group {group} ({list(groups).count(group)})")
        right.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return sheet


@figure
def patches_and_words(
    picture: Picture, grid: tuple[int, int], patches: Sequence[int], words: Sequence[str], cosines, title: str = ""
) -> Figure:
    """How patches and words agree: the picture with some of its `grid` (h, w) patches numbered, and their cosines
    (patches, words) with words. Each patch's best word has a dot.

    `patches` are flat indices row by row. They are numbered as one reads, whatever their order.
    """
    order = np.argsort(patches)
    cosines = np.asarray(cosines, dtype=float)[order]
    full = pixels(picture)
    height = max(3.6, 0.25 * len(patches) + 1.4)
    wide = (height - 1) * full.shape[1] / full.shape[0]
    size = (min(WIDTH, wide + 1.6 + max(3.0, 0.45 * len(words))), height)
    sheet, (left, right) = plt.subplots(
        1, 2, figsize=size, layout="constrained", width_ratios=(wide, max(size[0] - wide - 1.6, 2.5))
    )
    show(left, full)
    for number, place in enumerate(order, start=1):
        _frame(left, full, grid, int(patches[place]), GROUPS[0], str(number))
    reach = np.abs(cosines).max()
    drawn = right.imshow(cosines, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
    right.plot(cosines.argmax(axis=1), np.arange(len(order)), "o", color="black", markersize=4)
    right.grid(False)
    right.set_xticks(range(len(words)), words, rotation=45, ha="right", rotation_mode="anchor")
    right.set_yticks(range(len(order)), range(1, len(order) + 1))
    right.set_ylabel("patch")
    sheet.colorbar(drawn, ax=right, fraction=0.05, pad=0.02).set_label("cosine (dot: a patch's best word)")
    sheet.suptitle(title)
    return sheet


@figure
def words(tokens: Sequence[str], weights: Sequence[float], title: str = "What the model reads") -> Figure:
    """Words in reading order, each the darker the more weight it has (any positive scale, shown as percent); a word
    without any is left white."""
    share = 100 * np.asarray(weights, dtype=float) / np.sum(weights)
    least = 0.8 * share[share > 0].min()  # else words of nearly the same weight look the same
    colours = ScalarMappable(Normalize(least, share.max()), INK)
    sheet = plt.figure(figsize=(WIDTH, 1))
    places, lines = _flow(sheet, tokens)
    line, head = 0.36, 0.5
    height = head + line * lines + 0.5
    sheet.set_size_inches(WIDTH, height)
    sheet.text(0.01, 1 - 0.1 / height, title, va="top", fontsize=12)
    for token, weight, (left, row) in zip(tokens, share, places, strict=True):
        back = colours.to_rgba(weight) if weight else "white"
        box = {"boxstyle": "round,pad=0.25", "facecolor": back, "edgecolor": "none" if weight else "#cccccc"}
        ink = "white" if colours.norm(weight) > 0.65 else "black"
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


def _frame(axes: Axes, full: np.ndarray, grid: tuple[int, int], patch: int, colour: str, mark: str) -> None:
    """A frame inside a patch, so that those of neighbours do not cover each other, with a mark in its middle."""
    high, wide = full.shape[0] / grid[0], full.shape[1] / grid[1]
    row, column = divmod(patch, grid[1])
    corner = ((column + 0.06) * wide - 0.5, (row + 0.06) * high - 0.5)
    seen = [withStroke(linewidth=2.6, foreground="black", alpha=0.6)]  # on bright pictures too
    frame = {"fill": False, "edgecolor": colour, "linewidth": 1.4, "path_effects": seen}
    axes.add_patch(Rectangle(corner, 0.88 * wide, 0.88 * high, **frame))
    if mark:
        centre = ((column + 0.5) * wide - 0.5, (row + 0.5) * high - 0.5)
        ink = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        axes.text(*centre, mark, ha="center", va="center", fontsize=7, weight="bold", bbox=ink)


def _bar(sheet: Figure, values: ScalarMappable, beside: Axes, label: str) -> None:
    sheet.colorbar(values, ax=beside, fraction=0.08, pad=0.03).set_label(label)
