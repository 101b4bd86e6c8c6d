"""Numbers over time, rank or round: training, recall and schedule curves."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reidlib.viz.style import MARKERS, WIDTH, figure, plain_numbers

MOST = 6  # lines in a figure
HARDEST = 12  # values of attributes in a figure
NOT_LOSSES = {"epoch", "loss", "lr", "seconds", "images_per_second", "best"}


@figure
def training_curves(rows: Sequence[Mapping], title: str = "", measured_on: str = "validation") -> Figure:
    """The rows of a training log: losses on the left; on the right what was measured, on the pictures of the split
    `measured_on`, with the best epoch marked."""
    epochs = [row["epoch"] for row in rows]
    measured = [name for name in rows[-1] if name.split()[-1] in ("R@1", "mAP")]
    losses = [name for name in rows[-1] if " " not in name and name not in NOT_LOSSES]
    losses += ["loss"] * (len(losses) > 1)  # one loss is its own sum
    sheet, axes = plt.subplots(1, 1 + bool(measured), figsize=(WIDTH, 3.4), squeeze=False, layout="constrained")
    panels = [(axes[0, 0], losses, "loss (mean over the epoch's steps)", "Training losses")]
    if measured:
        panels.append((axes[0, 1], measured, "percent", f"On the {measured_on} pictures"))
    for panel, names, unit, heading in panels:
        for number, name in enumerate(names):
            style = {"color": "black", "linestyle": "--"} if name == "loss" else {}
            label = "sum" if name == "loss" else name
            values = [row.get(name, np.nan) for row in rows]
            panel.plot(epochs, values, marker=MARKERS[number % 8], markersize=4, label=label, **style)
        panel.set(xlabel="epoch", ylabel=unit, title=heading)
        panel.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    best = [row["epoch"] for row in rows if row.get("best")]
    if measured and best:
        axes[0, 1].axvline(best[-1], color="#999999", linestyle=":", label=f"best, epoch {best[-1]}")
    values = [row[name] for row in rows for name in losses if name in row]
    if min(values) > 0 and max(values) > 50 * min(values):
        axes[0, 0].set_yscale("log")
        plain_numbers(axes[0, 0].yaxis)
    for panel, names, *_ in panels:
        crowded = len(names) > 4  # a legend inside would hide curves
        panel.legend(**({"loc": "center left", "bbox_to_anchor": (1, 0.5)} if crowded else {}))
    sheet.suptitle(title)
    return sheet


@figure
def reliability_curves(curves: Mapping[str, Sequence[tuple[float, float, int]]], title: str = "") -> Figure:
    """Label -> (mean probability, share that was true, number) of bins, as `retrieval.presence.reliability` makes them.

    A point on the diagonal keeps its promise; larger points are more searches.
    """
    sheet, axes = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", label="what is said holds")
    curves, title = _first_few(curves, title)
    for number, (label, bins) in enumerate(curves.items()):
        likely, true, count = map(np.array, zip(*bins, strict=True))
        line = axes.plot(likely, true, **_look(number) | {"marker": None}, label=label)[0]
        axes.scatter(likely, true, s=10 + 90 * count / count.max(), marker=MARKERS[number % 8], color=line.get_color())
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability said", ylabel="share of searches in which it was so")
    axes.set_title(title)
    axes.legend()
    return sheet


def _first_few(curves: Mapping, title: str) -> tuple[Mapping, str]:
    """More lines than `MOST` cannot be followed; the title says how many there are."""
    if len(curves) <= MOST:
        return curves, title
    return dict(list(curves.items())[:MOST]), f"{title} ({MOST} of {len(curves)})"


def _look(number: int) -> dict[str, str]:
    """Marker and line of a curve; colours come round again after eight, so the line changes with them."""
    return {"marker": MARKERS[number % 8], "linestyle": ("-", "--", ":")[number // 8 % 3]}


@figure
def recall_curves(
    curves: Mapping[str, Sequence[float]], title: str = "How often the person is among the first k"
) -> Figure:
    """R@k in percent for k = 1, 2, ... of each method or query kind, the first `MOST` of them."""
    curves, title = _first_few(curves, title)
    sheet, axes = plt.subplots(figsize=(9, 3.8), layout="constrained")
    for number, (label, recall) in enumerate(curves.items()):
        every = max(1, len(recall) // 10)
        k = np.arange(1, len(recall) + 1)
        name = f"{label} (R@1 {recall[0]:.1f} %)"
        axes.plot(k, recall, **_look(number), markersize=4, markevery=every, label=name)
    axes.set(xlabel="k, pictures looked at", ylabel="R@k (percent of queries)", title=title, ylim=(0, 102))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return sheet


@figure
def round_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    metric: str = "R@1 (percent of queries)",
    title: str = "What each round of the dialogue adds",
    start: int = 1,
    band: str = "confidence interval",
) -> Figure:
    """A metric by round, the first of them `start`: for each label, the first `MOST`, its mean with a band from low to
    high, which `band` names."""
    curves, title = _first_few(curves, title)
    sheet, axes = plt.subplots(figsize=(9, 3.8), layout="constrained")
    for number, (label, (mean, low, high)) in enumerate(curves.items()):
        rounds = np.arange(start, start + len(mean))
        (line,) = axes.plot(rounds, mean, **_look(number), markersize=5, label=label)
        axes.fill_between(rounds, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    if any(np.any(np.asarray(high) > low) for _, low, high in curves.values()):  # one seed alone has none
        title = f"{title}\n(band: {band})"
    axes.set(xlabel="round" if start else "round (0: the opening alone)", ylabel=metric, title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return sheet


@figure
def forest(
    rows: Sequence[tuple[str, float, float, float]], baseline: str, title: str = "Differences to the baseline"
) -> Figure:
    """Differences in mAP to a baseline, a row each of (label, difference, low, high), the first on top: a point with
    its interval, coloured where the interval leaves out zero."""
    sheet, axes = plt.subplots(figsize=(8, 1.2 + 0.3 * len(rows)), layout="constrained")
    for place, (_, gain, low, high) in enumerate(rows):
        colour = "C2" if low > 0 else "C1" if high < 0 else "#888888"
        axes.plot([low, high], [place, place], color=colour)
        axes.plot(gain, place, "o", color=colour, markersize=5)
        box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}  # over the line of zero
        at = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "bbox": box}
        axes.annotate(f"{round(gain, 1) + 0.0:+.1f}", (high, place), **at)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set(xlabel=f"mAP (points), difference to {baseline}", title=title)
    axes.grid(axis="y", visible=False)
    return sheet


@figure
def hardest_attributes(
    ranks: Sequence[int], attributes: Sequence[Mapping[str, str]], least: int = 10, title: str = ""
) -> Figure:
    """What hard queries have in common: the mean rank of the first right picture for queries about people with an
    attribute's value, the `HARDEST` hardest values on top, with the standard error of the mean.

    ranks: (Q,), from 1; attributes: of each query's person. Values of fewer than `least` queries are left out.
    """
    groups: dict[str, list[int]] = {}
    for rank, known in zip(ranks, attributes, strict=True):
        for key, value in known.items():
            groups.setdefault(f"{key.replace('_', ' ')}: {value}", []).append(rank)
    large = {name: np.array(of) for name, of in groups.items() if len(of) >= least}
    shown = sorted(large, key=lambda name: large[name].mean())[-HARDEST:]
    sheet, axes = plt.subplots(figsize=(7, 0.9 + 0.27 * len(shown)), layout="constrained")
    errors = [large[name].std() / len(large[name]) ** 0.5 for name in shown]
    bars = {"xerr": errors, "height": 0.65, "error_kw": {"elinewidth": 1, "ecolor": "#444444"}}
    axes.barh([f"{name} ({len(large[name])})" for name in shown], [large[name].mean() for name in shown], **bars)
    axes.axvline(np.mean(ranks), color="black", linestyle="--", label=f"all {len(ranks):,} queries")
    axes.set(xlabel="mean rank of the first right picture (1 is best)", title=title or "The hardest queries")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right")
    return sheet
