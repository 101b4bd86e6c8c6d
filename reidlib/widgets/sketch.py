"""Search by drawing: a pad or an uploaded sketch, a sentence beside it, candidates are marked."""

from pathlib import Path

import ipywidgets as widgets

from reidlib.data.images import open_image
from reidlib.retrieval.session import QuerySession
from reidlib.widgets.panel import SearchPanel, action, html
from reidlib.widgets.sketchpad import SketchPad


class SketchSearch(SearchPanel):
    """`display(SketchSearch(session))`. What is saved goes to `folder`."""

    def __init__(self, session: QuerySession, shown: int = 12, folder: Path = Path("search")):
        session.model.require("sketch")
        self.pad = SketchPad()
        self.pad.observe(self._on_strokes, "strokes")
        self.pad.on_msg(lambda *_: self.drawn() if session.sketch is not None else None)  # an upload is cleared
        self.upload = widgets.FileUpload(accept="image/*", description="Upload a sketch", layout={"width": "auto"})
        self.upload.observe(lambda change: self.uploaded() if change["new"] else None, "value")
        self.entry = widgets.Text(placeholder="Add a sentence…", layout={"width": "auto", "flex": "1"})
        self.entry.on_msg(
            lambda _, message, __: self.say(self.entry.value) if message.get("event") == "submit" else None
        )
        add = widgets.Button(description="Add", button_style="primary", layout={"width": "60px"})
        add.on_click(lambda _: self.say(self.entry.value))
        self.words = widgets.HTML()
        title = widgets.HTML(
            html("reid-title", f"Search by sketch · {session.model.name}, {len(session.gallery):,} pictures")
        )
        hint = widgets.HTML(html("reid-note", "Draw the person with mouse, finger or pen; shade what is dark."))
        side = [title, hint, self.pad, self.upload]
        if {"text", "turns"} & set(session.model.reads):
            side += [widgets.HBox([self.entry, add]), self.words]
        super().__init__(session, side, shown, folder)

    @action
    def drawn(self) -> None:
        """The pad has changed; an empty one means no sketch."""
        self.session.draw(self.pad.image() if self.pad.strokes else None, self.pad.strokes)

    def _on_strokes(self, _) -> None:
        self.drawn()

    @action
    def uploaded(self) -> None:
        """An uploaded picture takes the place of the drawing; its bytes are dropped at once."""
        content = bytes(self.upload.value[0]["content"])
        self.upload.value = ()
        self.session.draw(open_image(content))

    @action
    def say(self, text: str) -> None:
        self.session.say(text)
        self.entry.value = ""

    def refresh(self) -> None:
        super().refresh()
        self._show_strokes()
        self.words.value = html("reid-note", self.session.text)

    def _show_strokes(self) -> None:
        """Brings the pad to the session's strokes, or shows what was uploaded."""
        uploaded = self.session.sketch if not self.session.strokes else None
        self.pad.unobserve(self._on_strokes, "strokes")
        self.pad.strokes = self.session.strokes
        self.pad.observe(self._on_strokes, "strokes")
        self.pad.show(uploaded)

    def _draw_side(self, axes) -> None:
        axes.imshow(self.session.sketch or self.pad.image())
        axes.set_title(self.session.text or "the sketch", fontsize=9, wrap=True, parse_math=False)
        axes.set(xticks=[], yticks=[])
