"""What a search has found: chips of what is known, marked pictures, ranked pictures to mark, enlarge or search with."""

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import anywidget
import traitlets

from reidlib.errors import DataError
from reidlib.retrieval.session import QuerySession

LARGE = (720, 960)  # pixels an enlarged picture has at most


class Results(anywidget.AnyWidget):
    """The right-hand side of the panel. What is pressed is told to `act`: an event's name and its row or position.

    Events: like, dislike, show (search with this picture), forget (a chip), more (results). Texts are set as text, so
    no name or word can become markup.
    """

    _esm = Path(__file__).with_name("results.js")
    chips = traitlets.List(help="{position, kind, text, sure}").tag(sync=True)
    tray = traitlets.List(help="marked pictures, {row, name, picture, mark}").tag(sync=True)
    cards = traitlets.List(help="ranked pictures, {row, rank, score, name, picture, mark}").tag(sync=True)
    note = traitlets.Unicode(help="a sentence above the pictures").tag(sync=True)
    more = traitlets.Bool(help="whether there are more to show").tag(sync=True)

    def __init__(self, session: QuerySession, act: Callable[[str, int], None]):
        super().__init__()
        self.session, self._act = session, act
        self.on_msg(self._received)

    def refresh(self, shown: int) -> None:
        """Shows the session as it is now, with the best `shown` pictures."""
        session, total = self.session, len(self.session.gallery)
        told = session.told
        with self.hold_sync():
            self.chips = [chip._asdict() for chip in told if chip.kind not in ("like", "dislike")]
            self.tray = [self._picture(row) for row in session.marks]
            if not told:
                self.cards, self.more = [], False
                self.note = (
                    f"{total:,} pictures are waiting. Tell something about the person, and the best appear here."
                )
                return
            found = session.results(shown)
            self.cards = [
                self._picture(row) | {"rank": rank, "score": f"{score:.3f}" if session.query.parts else ""}
                for rank, (row, _, score) in enumerate(found, 1)
            ]
            self.more = len(found) == shown < total
            self.note = presence_in_words(session.presence(len(found)), len(found))

    def _picture(self, row: int) -> dict:
        picture = base64.b64encode(self.session.gallery.thumbnail(row)).decode()
        name, mark = self.session.gallery.image(row), self.session.marks.get(row, "")
        return {"row": row, "name": name, "picture": f"data:image/jpeg;base64,{picture}", "mark": mark}

    def _received(self, _, message: dict, buffers: list) -> None:
        if message.get("event") == "open":
            self.send({"event": "large", "row": message["at"]}, [self._large(message["at"])])
        else:
            self._act(message.get("event", ""), message.get("at", 0))

    def _large(self, row: int) -> bytes:
        try:
            picture, out = self.session.gallery.open(row), BytesIO()
        except DataError:  # deleted since it was encoded
            return self.session.gallery.thumbnail(row)
        picture.thumbnail(LARGE)
        picture.save(out, "JPEG", quality=90)
        return out.getvalue()


def presence_in_words(likely: tuple[float, float] | None, shown: int) -> str:
    """The probabilities that the person is among those shown, and in the gallery at all, as a sentence; "" for None."""
    if likely is None:
        return ""
    among, anywhere = likely
    if anywhere < 0.5:
        return f"Perhaps not here: the chance that the person is in this gallery at all is about {anywhere:.0%}."
    return f"The chance that the person is among these {shown} is about {among:.0%}, in the gallery {anywhere:.0%}."
