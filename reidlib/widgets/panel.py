"""What the chat and the sketch demo share: ranked thumbnails to mark, messages, saving, and a static picture."""

import base64
from collections.abc import Callable
from functools import wraps
from html import escape
from io import BytesIO
from pathlib import Path

import ipywidgets as widgets
from PIL import Image

from reidlib.errors import ReidError
from reidlib.retrieval.report import write_csv, write_report
from reidlib.retrieval.session import QuerySession

STYLE = Path(__file__).with_name("panel.css")


def html(kind: str, text: str) -> str:
    """A block of plain text in one of the panel's styles."""
    return f'<div class="{kind}">{escape(text)}</div>'


def action(call: Callable) -> Callable:
    """A callback: the panel is brought up to date after it, and an error shows in the panel before it is raised."""

    @wraps(call)
    def wrapped(self: "SearchPanel", *args):
        self.message.value = ""
        try:
            call(self, *args)
            self.refresh()
        except Exception as error:
            text = str(error) if isinstance(error, ReidError) else f"{type(error).__name__}: {error}"
            self.message.value = html("reid-error", text)
            raise

    return wrapped


class Card(widgets.VBox):
    """One candidate: picture, rank, score, file name, and two buttons to mark it."""

    def __init__(self, mark: Callable[[int, str], None]):
        self.row: int | None = None
        self.view = widgets.HTML()
        self.like = widgets.Button(icon="thumbs-up", tooltip="More like this one")
        self.dislike = widgets.Button(icon="thumbs-down", tooltip="Not this one")
        self.like.on_click(lambda _: mark(self.row, "like"))
        self.dislike.on_click(lambda _: mark(self.row, "dislike"))
        super().__init__([self.view, widgets.HBox([self.like, self.dislike]).add_class("reid-marks")])
        self.add_class("reid-card")

    def fill(self, session: QuerySession, rank: int, row: int, path: str, score: float) -> None:
        self.row = row
        liked = session.marks.get(row) == "like"
        picture = base64.b64encode(session.gallery.thumbnail(row)).decode()
        shown = f"{score:.3f}" if session.embedding() is not None else ""
        name = escape(path, quote=True)
        self.view.value = (
            f'<div class="reid-picture"><img src="data:image/jpeg;base64,{picture}" alt="{name}"></div>'
            f'<div class="reid-label"><b>{rank}</b><span>{shown}</span></div>'
            f'<div class="reid-file" title="{name}">{name}</div>'
        )
        self.like.button_style = "success" if liked else ""
        (self.add_class if liked else self.remove_class)("reid-liked")


class SearchPanel(widgets.VBox):
    """The right-hand side of a demo and its frame; `side` holds what the user searches with.

    Every button calls a method of this class, and so may a test: `mark`, `undo`, `restart`, `save`.
    """

    def __init__(self, session: QuerySession, side: list[widgets.Widget], shown: int, folder: Path):
        self.session, self.shown, self.folder = session, shown, Path(folder)
        self.message, self.cards = widgets.HTML(), [Card(self.mark) for _ in range(min(shown, len(session.gallery)))]
        buttons = (
            self.button("Undo", "undo", lambda: self.undo()),
            self.button("Start again", "refresh", lambda: self.restart()),
            self.button("Save", "save", lambda: self.save()),
        )
        left = widgets.VBox([*side, widgets.HBox(buttons), self.message], layout={"width": "390px", "flex": "0 0 auto"})
        columns = "repeat(auto-fill, minmax(118px, 1fr))"
        grid = widgets.GridBox(
            self.cards,
            layout={"grid_template_columns": columns, "grid_gap": "10px", "flex": "1", "align_content": "flex-start"},
        )
        style = widgets.HTML(f"<style>{STYLE.read_text()}</style>", layout={"display": "none"})
        super().__init__([style, widgets.HBox([left.add_class("reid-side"), grid], layout={"grid_gap": "14px"})])
        self.add_class("reid-panel")
        self.refresh()

    @staticmethod
    def button(text: str, icon: str, press: Callable[[], None]) -> widgets.Button:
        button = widgets.Button(description=text, icon=icon, layout={"width": "auto", "flex": "1"})
        button.on_click(lambda _: press())
        return button

    @action
    def mark(self, row: int, kind: str) -> None:
        """Likes or dislikes a candidate; pressed again, takes the mark away."""
        if self.session.marks.get(row) == kind:
            self.session.unmark(row)
        else:
            {"like": self.session.like, "dislike": self.session.dislike}[kind](row)

    @action
    def undo(self) -> None:
        self.session.undo()

    @action
    def restart(self) -> None:
        self.session.restart()

    def save(self) -> None:
        """Writes session.json, results.csv and report.html to the folder, and says so."""
        self._save()
        self.message.value = html("reid-note", f"Saved session.json, results.csv and report.html in {self.folder}.")

    @action
    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.session.save(self.folder / "session.json")
        write_csv(self.session, self.folder / "results.csv")
        write_report(self.session, self.folder / "report.html")

    def refresh(self) -> None:
        """Shows the session as it is now."""
        found = self.session.results(self.shown)
        for rank, (card, result) in enumerate(zip(self.cards, found, strict=False), 1):
            card.fill(self.session, rank, *result)
        for position, card in enumerate(self.cards):
            card.layout.display = None if position < len(found) else "none"

    def snapshot(self) -> Image.Image:
        """The search so far as one picture, for a copy of the notebook that nobody can click in."""
        from matplotlib.figure import Figure

        found = self.session.results(min(self.shown, 8))
        figure = Figure(figsize=(11, 2.9), dpi=100, layout="constrained")
        grid = figure.add_gridspec(1, len(found) + 3, wspace=0.05)
        self._draw_side(figure.add_subplot(grid[0, :3]))
        for column, (row, _, score) in enumerate(found):
            axes = figure.add_subplot(grid[0, column + 3])
            axes.imshow(Image.open(BytesIO(self.session.gallery.thumbnail(row))))
            axes.set_title(
                f"{column + 1}\n{score:.3f}" if self.session.embedding() is not None else f"{column + 1}", fontsize=9
            )
            axes.set(xticks=[], yticks=[])
            liked = self.session.marks.get(row) == "like"
            for spine in axes.spines.values():
                spine.set(color="#2c8a57" if liked else "#d5dae1", linewidth=3 if liked else 1)
        out = BytesIO()
        figure.savefig(out, format="png")
        return Image.open(out)

    def _draw_side(self, axes) -> None:
        """Draws what the user searches with on the left of the static picture."""
        raise NotImplementedError
