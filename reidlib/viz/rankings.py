"""Pictures side by side: contact sheets, ranked lists, methods compared, and a dialogue with its ranking."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reidlib.evaluation import Encoder, Ranks, Task
from reidlib.viz.style import WIDTH, Picture, figure, shape, show, wrapped

RIGHT, WRONG, UNKNOWN = "#1a7f37", "#c4262e", "#b0b0b0"
Query = str | Picture | tuple[Picture, str]  # a string is words; give a picture in a file as a Path
Ranking = tuple  # (pictures, correct, scores, ranks), as of `ranked_list`
SIDE = 2.6  # inches beside the pictures, for the query's words
ROOM = 0.56  # inches of each row for rank and score
LINE = 0.155  # inches from one line of words to the next
GAP = 0.3  # pictures' widths, where some are left out


@figure
def contact_sheet(
    pictures: Sequence[Picture | None], captions: Sequence[str] | None = None, columns: int = 8, title: str = ""
) -> Figure:
    """Pictures in rows, each with its caption below; None leaves a place empty."""
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    width = min(WIDTH / columns, 2.2 if rows < 3 else 1.4)
    letters, lines = int(width * 15.5), 5
    texts = [wrapped(caption, letters, lines) for caption in captions or [""] * len(pictures)]
    below = 0.135 * max(text.count("\n") + bool(text) for text in texts) + 0.15
    size = (
        width * columns,
        rows * (width * shape([one for one in pictures if one is not None]) * 0.94 + below) + 0.35 * bool(title),
    )
    sheet, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for number, axes in enumerate(grid.flat):
        if number < len(pictures) and pictures[number] is not None:
            show(axes, pictures[number])
            axes.set_xlabel(texts[number], fontsize=7, labelpad=2)
        else:
            axes.set_visible(False)
    sheet.suptitle(title)
    return sheet


def ranked_list(
    query: Query,
    pictures: Sequence[Picture],
    correct: Sequence[bool] | None = None,
    scores: Sequence[float] | None = None,
    ranks: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """One query and what was found, best first: right ones in green with a tick, wrong ones in red with a cross.

    `ranks` (from 1) are needed where pictures are left out: one far down is set apart from those before it.
    """
    return ranked_lists([(query, pictures, correct, scores, ranks)], title)


@figure
def ranked_lists(rows: Sequence[tuple], title: str = "", names: Sequence[str] = ()) -> Figure:
    """Several queries, a row each, of (query, pictures, correct, scores, ranks); None for what is not known, and what
    is missing at the end is not known. `names` stand above the queries."""
    rows = [(*row, *[None] * (5 - len(row))) for row in rows]
    sheet = _Sheet([pictures for _, pictures, *_ in rows], title)
    for number, (query, pictures, correct, scores, ranks) in enumerate(rows):
        drawn, words = _parts(query)
        side, lines = sheet.side(number), int((sheet.height - ROOM) / LINE)
        if names:
            name = wrapped(names[number], 36 if drawn is None else 18, 2)
            side.text(0, 1, name, va="top", fontsize=9, weight="bold", color="#555555")
        if drawn is not None:
            _show_drawn(side, drawn)
        if words:
            text = f"“{wrapped(words, 36 if drawn is None else 20, lines - bool(names))}”"
            side.text(0, 0.5 - 0.4 * bool(names) / lines, text, va="center", fontsize=8.5)
        _show_ranking(sheet.places(number, len(pictures), ranks), pictures, correct, scores, ranks)
    return sheet.figure


def easy_median_hard(
    task: Task, found: Ranks, encoder: Encoder, root: Path, title: str = "", ranked_by: str = ""
) -> Figure:
    """The rankings of an easy, a median and a hard query, chosen by the rule of `Ranks.examples`, which is said.

    Where no right picture is among the first eight, the best right one follows with its rank. `ranked_by` names the
    model of `found`, where it is not the encoder's.
    """
    chosen = found.examples()
    rows = task.ranking(encoder, list(chosen.values()), root, 8)
    names = []
    for name, (_, _, correct, _, ranks) in zip(chosen, rows, strict=True):
        names.append(f"{name}: right at rank {ranks[correct.index(True)]:,}")
    rule = f"The queries at 10, 50 and 90 percent, in order of the first right picture's rank{ranked_by and ' with '}"
    return ranked_lists(rows, f"{title}\n{rule}{ranked_by}".strip(), names)


@figure
def compare_methods(query: Query, rankings: Mapping[str, Ranking], title: str = "") -> Figure:
    """The same query by several methods, a row each; the query's words stand above them, its picture in the first."""
    drawn, words = _parts(query)
    lines = [title] * bool(title) + [f"“{wrapped(words, 110, 4)}”"] * bool(words)
    sheet = _Sheet([pictures for pictures, *_ in rankings.values()], "\n".join(lines))
    for number, (method, (pictures, correct, *more)) in enumerate(rankings.items()):
        side = sheet.side(number)
        if drawn is not None and number == 0:
            _show_drawn(side, drawn)
        found = wrapped(_first_right(correct, *more[1:]), 20, 2)
        side.text(0, 0.52, wrapped(method, 17, 3), va="bottom", fontsize=10.5, weight="bold")
        side.text(0, 0.46, found, va="top", fontsize=8, color="#555555")
        _show_ranking(sheet.places(number, len(pictures), *more[1:]), pictures, correct, *more)
    return sheet.figure


@figure
def dialogue_ranking(
    turns: Sequence[tuple[str, str]],
    rankings: Sequence[Ranking],
    ranks: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """A dialogue unrolled turn by turn of (question, answer), beside the ranking after each answer.

    `ranks` are the 1-based ranks of the first right picture, which may lie beyond the ones shown.
    """
    sheet = _Sheet([pictures for pictures, *_ in rankings], title, least=11 * LINE)
    for number, ((question, answer), (pictures, correct, *more)) in enumerate(zip(turns, rankings, strict=True)):
        found = _first_right(correct, *more[1:]) if ranks is None else f"first right one at rank {ranks[number]:,}"
        side, y = sheet.side(number), 1.0
        for text, look in (
            (f"Turn {number + 1}", {"weight": "bold"}),
            (wrapped(question, 37, 3), {"color": "#555555", "style": "italic"}),
            (wrapped(answer, 36, 4), {}),
            (found, {"color": "#0072b2"}),
        ):
            side.text(0, y, text, va="top", fontsize=8.5, **look)
            y -= (text.count("\n") + 1.3) * LINE / (sheet.height - ROOM)
        _show_ranking(sheet.places(number, len(pictures), *more[1:]), pictures, correct, *more)
    return sheet.figure


class _Sheet:
    """A figure of rows, laid out in inches: words on the left, ranked pictures on the right."""

    def __init__(self, rows: Sequence[Sequence[Picture]], title: str, least: float = 1.0):
        self.slot = (WIDTH - SIDE) / (max(5, *map(len, rows)) + GAP)
        self.height = max(least, self.slot * 0.92 * max(map(shape, rows))) + ROOM
        self.head = 0.34 + 0.2 * title.count("\n") if title else 0.0
        self.figure = plt.figure(figsize=(WIDTH, self.head + self.height * len(rows)))
        first, _, more = title.partition("\n")
        self.figure.suptitle(first, x=0.01, y=1 - 0.08 / self.figure.get_figheight(), ha="left", va="top")
        self.figure.text(0.01, 1 - 0.34 / self.figure.get_figheight(), more, va="top", fontsize=9, color="#555555")

    def side(self, row: int) -> Axes:
        axes = self._axes(row, 0.1, SIDE - 0.3)
        axes.axis("off")
        return axes

    def places(self, row: int, count: int, ranks: Sequence[int] | None = None) -> list[Axes]:
        left_out = [ranks is not None and ranks[i] > ranks[0] + i for i in range(count)]
        return [self._axes(row, SIDE + (i + GAP * left_out[i]) * self.slot, self.slot * 0.92) for i in range(count)]

    def _axes(self, row: int, left: float, width: float) -> Axes:
        whole = self.figure.get_figheight()
        bottom = whole - self.head - (row + 1) * self.height + ROOM / 2
        return self.figure.add_axes((left / WIDTH, bottom / whole, width / WIDTH, (self.height - ROOM) / whole))


def _parts(query: Query) -> tuple[Picture | None, str]:
    """The drawn and the said part of a query."""
    if isinstance(query, tuple):
        return query
    return (None, query) if isinstance(query, str) else (query, "")


def _show_ranking(places: list[Axes], pictures, correct=None, scores=None, ranks=None) -> None:
    ranks = range(1, len(pictures) + 1) if ranks is None else ranks
    for number, (axes, picture, rank) in enumerate(zip(places, pictures, ranks, strict=True)):
        colour, mark = UNKNOWN, ""
        if correct is not None:
            colour, mark = (RIGHT, "✓ ") if correct[number] else (WRONG, "✗ ")
        show(axes, picture, colour, 0.8 if correct is None else 3)
        axes.set_title(f"{mark}{rank:,}", color="black" if correct is None else colour, pad=3, weight="bold")
        if number and rank > ranks[number - 1] + 1:
            axes.text(-0.21, 0.5, "…", transform=axes.transAxes, ha="center", va="center", fontsize=13, weight="bold")
        if scores is not None:
            axes.set_xlabel(f"{float(scores[number]):.3f}", fontsize=8, labelpad=3)


def _show_drawn(side: Axes, drawn: Picture) -> None:
    """The drawn part of a query, between its words and the pictures found."""
    inset = side.inset_axes((0.62, 0, 0.38, 1))
    show(inset, drawn)
    inset.set_title("query", pad=3)


def _first_right(correct: Sequence[bool] | None, ranks: Sequence[int] | None = None) -> str:
    if correct is None:
        return ""
    ranks = range(1, len(correct) + 1) if ranks is None else ranks
    right = [rank for rank, is_right in zip(ranks, correct, strict=True) if is_right]
    return f"first right one at rank {right[0]:,}" if right else f"none right among the first {len(correct)}"
