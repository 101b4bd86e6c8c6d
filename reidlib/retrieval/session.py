"""One search for one person: words, a sketch, a photo, marked candidates, answered questions, undone at will."""

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image

from reidlib.data.images import open_image
from reidlib.errors import DataError, ReidError
from reidlib.evaluation import Encoder
from reidlib.methods.base import Method
from reidlib.paths import write_json
from reidlib.query import OPENING, Query, Turn
from reidlib.retrieval.gallery import Gallery
from reidlib.retrieval.presence import SAMPLE, SHOWN, Presence
from reidlib.retrieval.questions import ANYONE, TELLS_NOTHING, Question, QuestionBank

CANDIDATES = 256
MOST_CHARACTERS = 2_000  # of one sentence or answer; no method reads as much, and byte pairs of one long word take long
MOST_EVENTS = 1_000  # of a session
MOST_BYTES = 100_000_000  # of a saved session
MOST_POINTS = 200_000  # of a drawing
INK = 0.87  # of a line, where white paper is 0 and black 1
MORE = "Anything else?"
KINDS = ("say", "draw", "show", "like", "dislike", "unmark", "only", "ask", "answer", "forget")


class Chip(NamedTuple):
    """One thing that the search knows, in words; `position` is what `forget` takes.

    sure: False for an answer that contradicts what the model sees in the candidates; show its text as a question.
    """

    position: int
    kind: str  # of the history's event
    text: str
    sure: bool = True


class QuerySession:
    """A search with one method in one gallery.

    `history` is the whole state, a list of plain dicts {"kind": one of `KINDS`, ...}; everything else follows from
    it, so undo drops its end and JSON can hold it. `questions` are those that may be asked, or a `QuestionBank` that
    several sessions share. presence: makes `presence(k)` answer (see `reidlib.retrieval.presence`).
    """

    def __init__(
        self,
        model: Method,
        gallery: Gallery,
        questions: QuestionBank | Sequence[Question] | None = None,
        presence: Presence | None = None,
    ):
        if (known := gallery.about.get("model", model.name)) != model.name:
            raise ReidError(f"The gallery was encoded by {known}; a search in it with {model.name} would find nothing.")
        self.model, self.gallery = model, gallery
        self.encoder = Encoder(model)
        self.history: list[dict] = []
        self._questions, self._presence = questions, presence
        self._embedded: dict[tuple, torch.Tensor] = {}
        self._background: torch.Tensor | None = None  # embeddings of some pictures, to see how far the best stand out

    # What the user does

    def say(self, text: str) -> None:
        """Adds a sentence to the description."""
        self.model.require("text", "turns")
        self._add({"kind": "say", "text": _words(text, "sentence")})

    def draw(self, picture: Image.Image | None, strokes: list[dict] | None = None) -> None:
        """Replaces the sketch, or takes it away (None). The strokes, if any, are kept to be drawn on."""
        self.model.require("sketch")
        self._add({"kind": "draw", "png": picture and as_png(picture), "strokes": checked_strokes(strokes or [])})

    def show(self, picture: Image.Image | int | None) -> None:
        """Searches with a photo of the person, or of somebody alike; a number is a candidate's. None takes it away."""
        name = self.gallery.image(picture) if isinstance(picture, int) else None
        photo = self.gallery.open(picture) if isinstance(picture, int) else picture
        self._add({"kind": "show", "png": photo and as_png(self._small(photo)), "image": name})

    def like(self, i: int) -> None:
        """Marks a candidate as alike: the ranking moves towards it."""
        self._mark("like", i)

    def dislike(self, i: int) -> None:
        """Marks a candidate as wrong: it leaves the results, and those that resemble it sink a little."""
        self._mark("dislike", i)

    def unmark(self, i: int) -> None:
        self._mark("unmark", i)

    def only(self, where: Mapping[str, object] | None) -> None:
        """Searches only pictures whose metadata fit, such as {"camid": 3, "time": (start, end)}; None: in all again."""
        self._add({"kind": "only", "where": {str(key): _jsonable(value) for key, value in (where or {}).items()}})

    def ask(self, question: Question | None = None) -> Question | None:
        """Puts the question expected to tell most about the current candidates, or the one given.

        None when nothing is left to ask. What was asked, or what the description tells already, is not asked.
        """
        if question is None:
            embeddings, weights = self._candidates()
            question = self.bank.best(embeddings, weights, self._settled())
        if question is not None:
            event = {"kind": "ask", **asdict(question)}
            self._add({key: list(value) if isinstance(value, tuple) else value for key, value in event.items()})
        return question

    def answer(self, text: str) -> None:
        """Answers the open question; "not sure", "none of these", "I don't know" leave the description as it is."""
        question = self.question
        if question is None:
            raise ReidError("No question is open; call ask() before answer().")
        text = _words(text, "answer")
        sure = not self.bank.contradicts(question, text, *self._candidates())
        phrase = question.phrase(text) or text
        self._add({"kind": "answer", "question": question.text, "text": text, "phrase": phrase, "sure": sure})

    def forget(self, position: int) -> None:
        """Takes back one thing that was told, by its `Chip.position`; `undo` brings it back."""
        if position not in [chip.position for chip in self.told]:
            raise ReidError(f"There is nothing told at position {position}; expected one of `told`.")
        self._add({"kind": "forget", "position": int(position)})

    def undo(self) -> None:
        """Takes back the latest thing the user did, and a question asked after it."""
        done = [position for position, event in enumerate(self.history) if event["kind"] != "ask"]
        if not done:
            raise ReidError("There is nothing to undo.")
        del self.history[done[-1] :]

    def restart(self) -> None:
        self.history.clear()

    # What the system knows

    @property
    def bank(self) -> QuestionBank:
        if not isinstance(self._questions, QuestionBank):
            self._questions = QuestionBank(self.encoder, self.gallery.index, self._questions)
        return self._questions

    @property
    def question(self) -> Question | None:
        """The question that waits for an answer."""
        asked = [event for event in self.history if event["kind"] in ("ask", "answer")]
        if not asked or asked[-1]["kind"] == "answer":
            return None
        return _question(asked[-1])

    @property
    def told(self) -> list[Chip]:
        """What the search follows, as chips that can be taken away one by one."""
        chips = []
        for position, event in self._valid():
            match event["kind"]:
                case "say":
                    chips.append(Chip(position, "say", event["text"]))
                case "answer":
                    phrase = event["phrase"].removeprefix(ANYONE).strip()
                    chips.append(Chip(position, "answer", phrase or event["text"], event["sure"]))
                case "draw":
                    chips.append(Chip(position, "draw", "the sketch"))
                case "show":
                    chips.append(Chip(position, "show", f"like {event['image']}" if event["image"] else "the photo"))
                case "like" | "dislike":
                    chips.append(Chip(position, event["kind"], f"{event['kind']}d {event['image']}"))
                case "only":
                    chips.append(Chip(position, "only", ", ".join(map(_condition, event["where"].items()))))
        return chips

    @property
    def text(self) -> str:
        """All that was said and answered, as one description: "a woman, in a red top. She is in a hurry."."""
        text = ""
        for event in self._said():
            part = event["text" if event["kind"] == "say" else "phrase"].rstrip(" .")
            goes_on = text and event["kind"] == "answer" and part.startswith(ANYONE + " ")
            text += f", {part.removeprefix(ANYONE).strip()}" if goes_on else f"{'. ' if text else ''}{part}"
        return text and text + "."

    @property
    def turns(self) -> list[Turn]:
        """The same as (question, answer) turns, for methods that read dialogues."""
        turns: list[Turn] = []
        for event in self._said():
            turns.append((event.get("question") or (MORE if turns else OPENING), event["text"]))
        return turns

    @property
    def sketch(self) -> Image.Image | None:
        return _picture(self._latest("draw").get("png"))

    @property
    def strokes(self) -> list[dict]:
        return self._latest("draw").get("strokes", [])

    @property
    def photo(self) -> Image.Image | None:
        return _picture(self._latest("show").get("png"))

    @property
    def where(self) -> dict:
        """Conditions on the metadata, a range as a tuple."""
        conditions = self._latest("only").get("where", {})
        return {
            field: (value["from"], value["to"]) if isinstance(value, dict) else value
            for field, value in conditions.items()
        }

    @property
    def marks(self) -> dict[int, str]:
        """Row of the gallery -> "like" or "dislike"."""
        return {event["row"]: event["kind"] for _, event in self._valid() if event["kind"] in ("like", "dislike")}

    @property
    def query(self) -> Query:
        """All of it as one value; empty before anything was told."""
        told = {"turns": self.turns} if "turns" in self.model.reads else {"text": self.text}
        if self.model.mixes:
            said = [event["text"].rstrip(" .") + "." for event in self._said() if event["kind"] == "say"]
            answers = [(event["question"], event["text"]) for event in self._said() if event["kind"] == "answer"]
            told = {"text": " ".join(said), "turns": answers}
        marked = {kind: [row for row, mark in self.marks.items() if mark == kind] for kind in ("like", "dislike")}
        liked, disliked = (self.gallery.index.vectors(rows) if rows else None for rows in marked.values())
        return Query(**told, sketch=self.sketch, photo=self.photo, liked=liked, disliked=disliked)

    def count_tokens(self, text: str = "") -> tuple[int, int]:
        """Tokens of the description with the beginning of `text` added, and how many the method reads."""
        return self.model.count_tokens(" ".join(filter(None, [self.text, _printable(text)[:MOST_CHARACTERS]])))

    def embedding(self) -> torch.Tensor | None:
        """The embedding (D,) of `query`; None while it is empty.

        A word more moves the embedding of a long description little, and a method is blind to some of what it is told.
        So the answers count once more, each by what it says of a picture's odds (`QuestionBank.evidence`), beside the
        query's score in units of its own spread over the candidates.
        """
        drawn, shown = (self._latest(kind).get("png") for kind in ("draw", "show"))
        key = (*self.turns, self.text, drawn, shown, *sorted(self.marks.items()))
        if key not in self._embedded:
            query = self.query
            self._embedded[key] = self._with_evidence(self.encoder.queries([query])[0].cpu()) if query.parts else None
        return self._embedded[key]

    def results(self, k: int = 10) -> list[tuple[int, str, float]]:
        """The best k as (row, picture, score) without the disliked; the gallery's own order while nothing is known."""
        if k < 1:
            raise ReidError(f"k={k} results were asked for; expected at least 1.")
        dropped = {row for row, kind in self.marks.items() if kind == "dislike"}
        found = [(row, score) for row, score in self._search(k + len(dropped)) if row not in dropped][:k]
        known = self.gallery.index.rows([row for row, _ in found])
        return [(row, about["image"], score) for (row, score), about in zip(found, known, strict=True)]

    def presence(self, k: int = 10) -> tuple[float, float] | None:
        """How likely the person is among the first k, and in the gallery at all; None where that is not calibrated.

        It is calibrated on words: how near a drawing or a photo comes to pictures is another matter.
        """
        embedding = self.embedding()
        if self._presence is None or embedding is None or {"sketch", "photo"} & set(self.query.parts):
            return None
        if self._background is None:
            self._background = self.gallery.index.vectors(self.gallery.index.sample(SAMPLE))
        scores = self._background @ embedding
        best = [score for _, score in self._search(max(k, *SHOWN) + 1)]
        size = self.gallery.index.count(self.where) if self.where else len(self.gallery)
        return self._presence.probabilities(best, float(scores.std(correction=0)), size, k)

    # Keeping it

    def save(self, path: Path) -> None:
        """Writes the session as JSON: what was said, drawn (PNG) and marked (by the picture's path)."""
        write_json(Path(path), {"method": self.model.name, "history": self.history})

    @classmethod
    def load(cls, path: Path, model: Method, gallery: Gallery, questions=None) -> "QuerySession":
        """A saved session, on this method and gallery. Raises DataError naming the entry that does not fit."""
        session = cls(model, gallery, questions)
        try:
            if (size := Path(path).stat().st_size) > MOST_BYTES:
                raise DataError(f"{path} has {size:,} bytes; expected a saved session of at most {MOST_BYTES:,}.")
            history = json.loads(Path(path).read_text())["history"]
            if not isinstance(history, list) or len(history) > MOST_EVENTS:
                raise DataError(f"{path} holds no list of at most {MOST_EVENTS:,} entries; expected a saved session.")
            for position, event in enumerate(history):
                session._replay(event, f"Entry {position} of {path}")
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist; expected a saved session.") from error
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, binascii.Error) as error:
            raise DataError(f"{path} is not a saved session ({type(error).__name__}: {error}).") from error
        return session

    def _replay(self, event: dict, where: str) -> None:
        match event["kind"]:
            case "say":
                self.say(event["text"])
            case "draw":
                self.draw(_picture(event["png"]), event["strokes"])
            case "show":
                self.show(_picture(event["png"]))
                self.history[-1]["image"] = event["image"] and _words(event["image"], "picture's name")
            case "like" | "dislike" | "unmark":
                self._mark(event["kind"], self._row_of(event, where))
            case "only":
                self.only({k: (v["from"], v["to"]) if isinstance(v, dict) else v for k, v in event["where"].items()})
            case "ask":
                self.ask(_question(event))
            case "answer":
                if self.question is None:
                    raise DataError(f"{where} answers no question.")
                kept = {key: _words(event[key], key) for key in ("question", "text", "phrase")}
                self._add({"kind": "answer", **kept, "sure": bool(event.get("sure", True))})
            case "forget":
                self.forget(event["position"])
            case kind:
                raise DataError(f"{where} is of the unknown kind {kind!r}.")

    def _row_of(self, event: dict, where: str) -> int:
        """A row moves when a gallery changes; the picture's name stays."""
        image = _words(event["image"], "picture's name")
        try:
            if self.gallery.image(event["row"]) == image:
                return event["row"]
        except DataError:
            pass
        if (row := self.gallery.index.find(image)) is None:
            raise DataError(f"{where} marks {image}, which is not in the gallery.")
        return row

    # How it is computed

    def _add(self, event: dict) -> None:
        if len(self.history) >= MOST_EVENTS:
            raise ReidError(f"The session has {MOST_EVENTS:,} entries, and no more fit in; start again.")
        self.history.append(event)

    def _mark(self, kind: str, i: int) -> None:
        self._add({"kind": kind, "image": self.gallery.image(i), "row": int(i)})

    def _valid(self) -> list[tuple[int, dict]]:
        """The events that count, with their positions: not forgotten, nor replaced by a later one, nor empty."""
        forgotten, latest = set(), {}
        for last in [event["position"] for event in self.history if event["kind"] == "forget"]:
            slot = _slot(last, self.history[last])
            forgotten |= {position for position in range(last + 1) if _slot(position, self.history[position]) == slot}
        for position, event in enumerate(self.history):
            if position not in forgotten and _says_something(event):
                latest[_slot(position, event)] = position, event
        return sorted((e for e in latest.values() if not _is_empty(e[1])), key=lambda entry: entry[0])

    def _said(self) -> list[dict]:
        return [event for _, event in self._valid() if event["kind"] in ("say", "answer")]

    def _latest(self, kind: str) -> dict:
        return next((event for _, event in reversed(self._valid()) if event["kind"] == kind), {})

    def _settled(self) -> set[str]:
        """The keys of the questions that were asked or whose answer the description tells."""
        asked = {event["key"] for event in self.history if event["kind"] == "ask"}
        return asked | self.bank.answered_by(". ".join(event["text"] for event in self._said()))

    def _with_evidence(self, told: torch.Tensor) -> torch.Tensor:
        if "turns" in self.model.reads:
            return told
        answers = [(event["question"], event["phrase"]) for event in self._said() if event["kind"] == "answer"]
        evidence = [self.bank.evidence[answer] for answer in answers if answer in self.bank.evidence]
        if not evidence:
            return told
        scores = self.gallery.index.search(told[None], CANDIDATES, self.where)[0]
        spread = scores.std(correction=0).clamp_min(1e-6)
        return F.normalize(told / spread + sum(evidence), dim=0) * told.norm()

    def _search(self, k: int) -> list[tuple[int, float]]:
        embedding, index = self.embedding(), self.gallery.index
        if embedding is None:
            return [(row, 0.0) for row in index.ids(count=k, where=self.where)]
        scores, rows = index.search(embedding[None], k, self.where)
        return list(zip(rows[0].tolist(), scores[0].tolist(), strict=True))

    def _candidates(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The best candidates' embeddings and their posterior weights.

        The weights are a softmax over the scores in units of their own spread over the candidates, so that they mean
        the same whatever the scale of a method's similarities.
        """
        found = self.results(CANDIDATES)
        scores = torch.tensor([score for _, _, score in found])
        spread = scores.std(correction=0).clamp_min(1e-6)
        return self.gallery.index.vectors([row for row, _, _ in found]), (scores / spread).softmax(0)

    def _small(self, picture: Image.Image) -> Image.Image:
        """A photo no larger than the model makes use of, so that sessions stay small."""
        height, width = self.model.image_size
        scale = min(1.0, 4 * max(height, width) / max(picture.size))
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        return picture if scale == 1 else picture.resize(size, Image.Resampling.BICUBIC)


def _slot(position: int, event: dict) -> object:
    """What an event takes the place of: any earlier sketch, photo, condition, or mark on that picture."""
    if event["kind"] in ("like", "dislike", "unmark"):
        return event["row"]
    return event["kind"] if event["kind"] in ("draw", "show", "only") else -1 - position


def _says_something(event: dict) -> bool:
    tells = event["kind"] != "answer" or event["text"].lower() not in TELLS_NOTHING
    return tells and event["kind"] not in ("ask", "forget")


def _is_empty(event: dict) -> bool:
    """True for what only takes something away: a mark, the sketch, the photo, a condition."""
    return event["kind"] == "unmark" or not event.get("png", True) or not event.get("where", True)


def checked_strokes(strokes: object) -> list[dict]:
    """Strokes [{"points": [[x, y], ...], "width": w, "ink": i}, ...] with every number from 0 to 1; those without a
    point are dropped. Raises DataError for anything else, and for far too many points."""
    try:
        found = [
            {
                "points": [[_unit(x), _unit(y)] for x, y in stroke["points"]],
                "width": _unit(stroke["width"]),
                "ink": _unit(stroke.get("ink", INK)),
            }
            for stroke in strokes
        ]
    except (TypeError, LookupError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"A stroke needs points [[x, y], ...] and a width, all numbers ({error}).") from error
    if sum(len(stroke["points"]) for stroke in found) > MOST_POINTS:
        raise DataError(f"The drawing has more than {MOST_POINTS:,} points.")
    return [stroke for stroke in found if stroke["points"]]


def _unit(value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not finite")
    return min(1.0, max(0.0, number))


def _words(text: str, what: str) -> str:
    """What a user wrote, as it is kept; ReidError naming `what` where there is nothing in it, or far too much."""
    if not isinstance(text, str):
        raise ReidError(f"The {what} is {type(text).__name__}; expected a text.")
    text = _printable(text)
    if not text:
        raise ReidError(f"The {what} is empty; expected some words about the person.")
    if len(text) > MOST_CHARACTERS:
        raise ReidError(f"The {what} has {len(text):,} characters; expected at most {MOST_CHARACTERS:,}.")
    return text


def _printable(text: str) -> str:
    """Without control characters and halves of surrogate pairs, which neither a tokenizer nor a file takes."""
    return "".join(character if character.isprintable() else " " for character in text).strip()


def as_png(picture: Image.Image) -> str:
    """A picture as the text of a PNG, base64."""
    out = BytesIO()
    picture.convert("RGB").save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def _picture(png: str | None) -> Image.Image | None:
    return open_image(base64.b64decode(png)) if png else None


def _jsonable(value: object) -> object:
    """A condition on metadata as JSON keeps it: a range as {"from": low, "to": high}."""
    plain = value is None or isinstance(value, str | int | float)
    if isinstance(value, tuple) and len(value) == 2:
        low, high = map(_jsonable, value)
        return {"from": low, "to": high}
    if isinstance(value, list) and len(value) <= MOST_EVENTS:
        return list(map(_jsonable, value))
    if not plain:
        raise ReidError(f"The condition {value!r} is no value, list of values or range (low, high).")
    return value


def _condition(condition: tuple[str, object]) -> str:
    field, value = condition
    if isinstance(value, dict):
        return f"{field} {value['from'] or '...'} to {value['to'] or '...'}"
    return f"{field} {' or '.join(map(str, value)) if isinstance(value, list) else value}"


def _question(event: dict) -> Question:
    lists = {key: tuple(_words(word, key) for word in event[key]) for key in ("answers", "phrases", "nouns")}
    texts = {key: _words(event[key], key) for key in ("key", "text")}
    return Question(**texts, **lists, why=str(event["why"]), gain=float(event["gain"]))
