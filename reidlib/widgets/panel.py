"""The search panel: a conversation, a pad and pictures to search with on one side, what they find on the other."""

from collections.abc import Callable
from functools import wraps
from html import escape
from pathlib import Path

import anywidget
import ipywidgets as widgets
import traitlets
from PIL import Image

from reidlib.data.images import open_image
from reidlib.errors import ReidError
from reidlib.retrieval.questions import NONE_OF_THESE, NOT_SURE
from reidlib.retrieval.report import contact_sheet, write_csv, write_report
from reidlib.retrieval.session import QuerySession
from reidlib.widgets.results import Results
from reidlib.widgets.sketchpad import SketchPad

STYLE = Path(__file__).with_name("panel.css")
GREETING = "Describe the person you are looking for."


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


class FileButton(anywidget.AnyWidget):
    """A button that uploads one picture; its bytes go to `received` and are not kept."""

    _esm = Path(__file__).with_name("filebutton.js")
    label = traitlets.Unicode().tag(sync=True)

    def __init__(self, label: str, received: Callable[[bytes], None]):
        super().__init__(label=label)
        self.on_msg(lambda _, message, buffers: received(bytes(buffers[0])) if buffers else None)


class SearchPanel(widgets.VBox):
    """`display(SearchPanel(session))`: what the session's model reads can be said, drawn or uploaded.

    shown: results at first, and more at each request. folder: where what is saved goes. drawing: whether the pad is
    open at the start. Every button calls a method of this class, and so may a test.
    """

    def __init__(self, session: QuerySession, shown: int = 12, folder: Path = Path("search"), drawing: bool = False):
        self.session, self.step, self.shown, self.folder = session, shown, shown, Path(folder)
        self.talks, self.draws = bool({"text", "turns"} & set(session.model.reads)), "sketch" in session.model.reads
        self.message, self.results = widgets.HTML(), Results(session, self.pressed)
        title = f"Search in {len(session.gallery):,} pictures"
        side = [widgets.HTML(html("reid-title", title))]
        side += self._conversation() if self.talks else []
        side += self._pictures(drawing or not self.talks)
        buttons = [
            self._button("Undo", "undo", self.undo),
            self._button("Start again", "refresh", self.restart),
            self._button("Save", "save", self.save),
        ]
        side += [widgets.HBox(buttons).add_class("reid-buttons"), self.message]
        style = widgets.HTML(f"<style>{STYLE.read_text()}</style>", layout={"display": "none"})
        columns = widgets.Box([widgets.VBox(side).add_class("reid-side"), self.results]).add_class("reid-columns")
        super().__init__([style, columns])
        self.add_class("reid-panel")
        self.refresh()

    # -- what it is made of ----------------------------------------------------------------------------------------

    def _conversation(self) -> list[widgets.Widget]:
        self.bubbles, self.counter = widgets.HTML(), widgets.HTML()
        self.answers = widgets.HBox().add_class("reid-answers")
        self.entry = widgets.Text(placeholder="A woman in a red jacket…").add_class("reid-entry")
        self.entry.observe(lambda _: self._count(), "value")
        self.entry.on_msg(
            lambda _, message, __: self.send(self.entry.value) if message.get("event") == "submit" else None
        )
        send = widgets.Button(description="Send", button_style="primary").add_class("reid-send")
        send.on_click(lambda _: self.send(self.entry.value))
        return [self.bubbles, self.answers, widgets.HBox([self.entry, send]).add_class("reid-line"), self.counter]

    def _pictures(self, drawing: bool) -> list[widgets.Widget]:
        files = [FileButton("Search with a photo", lambda content: self.uploaded(content, "photo"))]
        if not self.draws:
            return [widgets.HBox(files).add_class("reid-buttons")]
        self.pad = SketchPad()
        self.pad.observe(self._on_strokes, "strokes")
        self.pad.on_msg(lambda *_: self.drawn() if self.session.sketch is not None else None)  # an upload is cleared
        files.insert(0, FileButton("Upload a sketch", lambda content: self.uploaded(content, "sketch")))
        opened = widgets.ToggleButton(description="Draw", icon="pencil", value=drawing)
        hint = widgets.HTML(html("reid-note", "Draw with mouse, finger or pen; shade what is dark."))
        pad = widgets.VBox([hint, self.pad])
        pad.layout.display = None if drawing else "none"
        opened.observe(lambda change: pad.layout.set_trait("display", None if change["new"] else "none"), "value")
        return [widgets.HBox([opened, *files]).add_class("reid-buttons"), pad]

    @staticmethod
    def _button(text: str, icon: str, press: Callable[[], None]) -> widgets.Button:
        button = widgets.Button(description=text, icon=icon)
        button.on_click(lambda _: press())
        return button

    # -- what the user does ----------------------------------------------------------------------------------------

    @action
    def send(self, text: str) -> None:
        """A turn of the user: the answer to the open question, or more of the description; then a question back."""
        if self.session.question is None:
            self.session.say(text)
        else:
            self.session.answer(text)
        self.entry.value = ""
        self.session.ask()

    @action
    def drawn(self) -> None:
        """The pad has changed; an empty one means no sketch."""
        self.session.draw(self.pad.image() if self.pad.strokes else None, self.pad.strokes)

    def _on_strokes(self, _) -> None:
        self.drawn()

    @action
    def uploaded(self, content: bytes, kind: str) -> None:
        """An uploaded "sketch" takes the place of the drawing; an uploaded "photo" is searched with."""
        picture = open_image(content)
        self.session.draw(picture) if kind == "sketch" else self.session.show(picture)

    @action
    def pressed(self, event: str, at: int) -> None:
        """Something among the results: like or dislike a row (pressed again, the mark goes), show (search with it),
        forget a chip, more."""
        match event:
            case "like" | "dislike" if self.session.marks.get(at) == event:
                self.session.unmark(at)
            case "like" | "dislike" | "show" | "forget":
                getattr(self.session, event)(at)
            case "more":
                self.shown += self.step

    @action
    def undo(self) -> None:
        self.session.undo()

    @action
    def restart(self) -> None:
        self.session.restart()
        self.shown = self.step

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

    # -- what is shown ---------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Shows the session as it is now."""
        self.results.refresh(self.shown)
        if self.talks:
            self.bubbles.value = f'<div class="reid-chat"><div class="reid-bubbles">{self._talk()}</div></div>'
            question = self.session.question
            offered = [*question.answers, NONE_OF_THESE, NOT_SURE] if question else []
            self.answers.children = [self._answer(answer) for answer in offered]
            self._count()
        if self.draws:
            uploaded = self.session.sketch if not self.session.strokes else None
            self.pad.unobserve(self._on_strokes, "strokes")
            self.pad.strokes = self.session.strokes
            self.pad.observe(self._on_strokes, "strokes")
            self.pad.show(uploaded)

    def _talk(self) -> str:
        said = [("them", GREETING, "")]
        for event in self.session.history:
            if event["kind"] in ("say", "answer"):
                said.append(("you", event["text"], ""))
            elif event["kind"] == "ask":
                said.append(("them", event["text"], event["why"]))
        return "".join(
            f'<div class="reid-bubble reid-{who}">{escape(text)}{f"<small>{escape(why)}</small>" if why else ""}</div>'
            for who, text, why in said
        )

    def _answer(self, answer: str) -> widgets.Button:
        button = widgets.Button(description=answer)
        button.on_click(lambda _: self.send(answer))
        return button.add_class("reid-quiet") if answer in (NONE_OF_THESE, NOT_SURE) else button

    def _count(self) -> None:
        used, limit = self.session.count_tokens(self.entry.value)
        if used <= limit:
            self.counter.value = html("reid-note", f"{used} of {limit} tokens")
        else:
            self.counter.value = html("reid-warn", f"{used} of {limit} tokens: the end will not be read")

    def snapshot(self) -> Image.Image:
        """The search so far as one picture, for a copy of the notebook that nobody can click in."""
        return contact_sheet(self.session)
