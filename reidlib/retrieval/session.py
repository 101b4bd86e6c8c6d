"""One search for one person: words, a sketch, marked candidates, answered questions, in any order, undone at will."""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from reidlib.data.images import open_image
from reidlib.errors import DataError, ReidError
from reidlib.methods.base import Method
from reidlib.paths import write_json
from reidlib.retrieval.embedder import OPENING, Dialogue, Embedder
from reidlib.retrieval.gallery import Gallery
from reidlib.retrieval.questions import ANYONE, NONE_OF_THESE, NOT_SURE, NOTHING, UNKNOWN, Question, QuestionBank

# Rocchio's weights of the likes and dislikes against a query of weight 1, as in the SMART system.
LIKED, DISLIKED = 0.75, 0.15
CANDIDATES = 256
MOST_CHARACTERS = 2_000  # of one sentence or answer; no method reads as much, and byte pairs of one long word take long
MORE = "Anything else?"
TELLS_NOTHING = tuple(map(str.lower, (NOT_SURE, NONE_OF_THESE, UNKNOWN, NOTHING)))


class QuerySession:
    """A search with one method in one gallery.

    `history` is the whole state, a list of plain dicts {"kind": "say" | "draw" | "like" | "dislike" | "unmark" |
    "ask" | "answer", ...}; everything else follows from it, so undo drops its end and JSON can hold it.
    `questions` are those that may be asked, or a `QuestionBank` that several sessions share.
    """

    def __init__(self, model: Method, gallery: Gallery, questions: QuestionBank | Sequence[Question] | None = None):
        self.model, self.gallery = model, gallery
        self.embedder = Embedder(model)
        self.history: list[dict] = []
        self._questions = questions
        self._embedded: dict[tuple, torch.Tensor] = {}

    # What the user does

    def say(self, text: str) -> None:
        """Adds a sentence to the description."""
        self.embedder.require("text", "turns")
        self.history.append({"kind": "say", "text": _words(text, "sentence")})

    def draw(self, picture: Image.Image | None, strokes: list[dict] | None = None) -> None:
        """Replaces the sketch, or takes it away (None). The strokes, if any, are kept to be drawn on."""
        self.embedder.require("sketch")
        png = None
        if picture is not None:
            out = BytesIO()
            picture.convert("RGB").save(out, "PNG")
            png = base64.b64encode(out.getvalue()).decode()
        self.history.append({"kind": "draw", "png": png, "strokes": strokes or []})

    def like(self, i: int) -> None:
        """Marks a candidate as alike: the ranking moves towards it."""
        self._mark("like", i)

    def dislike(self, i: int) -> None:
        """Marks a candidate as wrong: it leaves the results, and those that resemble it sink a little."""
        self._mark("dislike", i)

    def unmark(self, i: int) -> None:
        self._mark("unmark", i)

    def ask(self, question: Question | None = None) -> Question | None:
        """Puts the question expected to tell most about the current candidates, or the one given.

        None when nothing is left to ask. A question left without an answer is not asked again.
        """
        if question is None:
            embeddings, weights = self._candidates()
            question = self.bank.best(embeddings, weights, [e["key"] for e in self.history if e["kind"] == "ask"])
        if question is not None:
            event = {"kind": "ask", **asdict(question)}
            self.history.append({key: list(v) if isinstance(v, tuple) else v for key, v in event.items()})
        return question

    def answer(self, text: str) -> None:
        """Answers the open question; "not sure", "none of these", "I don't know" leave the description as it is."""
        if self.question is None:
            raise ReidError("No question is open; call ask() before answer().")
        text = _words(text, "answer")
        phrase = self.question.phrase(text)
        self.history.append({"kind": "answer", "question": self.question.text, "text": text, "phrase": phrase or text})

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
            self._questions = QuestionBank(self.embedder, self.gallery.index, self._questions)
        return self._questions

    @property
    def question(self) -> Question | None:
        """The question that waits for an answer."""
        asked = [event for event in self.history if event["kind"] in ("ask", "answer")]
        if not asked or asked[-1]["kind"] == "answer":
            return None
        return _question(asked[-1])

    @property
    def text(self) -> str:
        """All that was said and answered, as one description: "a woman, in a red top. She is in a hurry."."""
        said = {"say": "text", "answer": "phrase"}
        text = ""
        for event in self._told():
            part = event[said[event["kind"]]].rstrip(" .")
            goes_on = text and event["kind"] == "answer" and part.startswith(ANYONE + " ")
            text += f", {part.removeprefix(ANYONE).strip()}" if goes_on else f"{'. ' if text else ''}{part}"
        return text and text + "."

    @property
    def dialogue(self) -> Dialogue:
        """The same as (question, answer) turns, for methods that take dialogues."""
        turns: Dialogue = []
        for event in self._told():
            turns.append((event.get("question") or (MORE if turns else OPENING), event["text"]))
        return turns

    @property
    def sketch(self) -> Image.Image | None:
        drawn = self._drawn()
        return open_image(base64.b64decode(drawn["png"])) if drawn.get("png") else None

    @property
    def strokes(self) -> list[dict]:
        return self._drawn().get("strokes", [])

    @property
    def marks(self) -> dict[int, str]:
        """Row of the gallery -> "like" or "dislike"."""
        marks = {e["row"]: e["kind"] for e in self.history if e["kind"] in ("like", "dislike", "unmark")}
        return {row: kind for row, kind in marks.items() if kind != "unmark"}

    def count_tokens(self, text: str = "") -> tuple[int, int]:
        """Tokens of the description with the beginning of `text` added, and how many the method reads."""
        return self.model.count_tokens(" ".join(filter(None, [self.text, _printable(text)[:MOST_CHARACTERS]])))

    def query(self) -> torch.Tensor | None:
        """The embedding (D,) of all that was said, drawn and marked; None before anything was.

        Words and a sketch are composed by the method where it can, else the unit vectors are added. A word more moves
        the embedding of a long description little, so the sum of the answers' `QuestionBank.evidence` is added to it,
        both as unit vectors; without, R@1 falls again after a few questions. The marks then move the unit vector by
        Rocchio's rule, q + 0.75 mean(liked) - 0.15 mean(disliked), at the length it had.
        """
        told = self._told_query()
        liked, disliked = self._marked("like"), self._marked("dislike")
        if not self.marks:
            return told
        moved = LIKED * liked - DISLIKED * disliked + (0 if told is None else F.normalize(told, dim=0))
        return F.normalize(moved, dim=0) * (1 if told is None else told.norm())

    def results(self, k: int = 10) -> list[tuple[int, str, float]]:
        """The best k as (row, picture, score) without the disliked; the gallery's own order while nothing is known."""
        if k < 1:
            raise ReidError(f"k={k} results were asked for; expected at least 1.")
        dropped = {row for row, kind in self.marks.items() if kind == "dislike"}
        found = [(row, score) for row, score in self._search(k + len(dropped)) if row not in dropped]
        return [(row, self.gallery.image(row), score) for row, score in found[:k]]

    # Keeping it

    def save(self, path: Path) -> None:
        """Writes the session as JSON: what was said, drawn (PNG) and marked (by the picture's path)."""
        write_json(Path(path), {"method": self.model.name, "history": self.history})

    @classmethod
    def load(cls, path: Path, model: Method, gallery: Gallery, questions=None) -> "QuerySession":
        """A saved session, on this method and gallery. Raises DataError naming the entry that does not fit."""
        session = cls(model, gallery, questions)
        try:
            history = json.loads(Path(path).read_text())["history"]
            for position, event in enumerate(history):
                session._replay(event, f"Entry {position} of {path}")
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist; expected a saved session.") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error) as error:
            raise DataError(f"{path} is not a saved session ({type(error).__name__}: {error}).") from error
        return session

    def _replay(self, event: dict, where: str) -> None:
        match event["kind"]:
            case "say":
                self.say(event["text"])
            case "draw":
                self.draw(open_image(base64.b64decode(event["png"])) if event["png"] else None, event["strokes"])
            case "like" | "dislike" | "unmark":
                self._mark(event["kind"], self._row_of(event, where))
            case "ask":
                self.ask(_question(event))
            case "answer":
                self.answer(event["text"])
            case kind:
                raise DataError(f"{where} is of the unknown kind {kind!r}.")

    def _row_of(self, event: dict, where: str) -> int:
        row, ids = event["row"], self.gallery.index.ids
        if row in ids and self.gallery.image(row) == event["image"]:
            return row
        for row in ids:
            if self.gallery.image(row) == event["image"]:
                return row
        raise DataError(f"{where} marks {event['image']}, which is not in the gallery.")

    # How it is computed

    def _mark(self, kind: str, i: int) -> None:
        if i not in self.gallery.index.ids:
            raise ReidError(f"Row {i} is not in the gallery of {len(self.gallery)} pictures.")
        self.history.append({"kind": kind, "row": int(i), "image": self.gallery.image(i)})

    def _told(self) -> list[dict]:
        said = [event for event in self.history if event["kind"] in ("say", "answer")]
        return [event for event in said if event["kind"] == "say" or event["text"].lower() not in TELLS_NOTHING]

    def _drawn(self) -> dict:
        return next((event for event in reversed(self.history) if event["kind"] == "draw"), {})

    def _told_query(self) -> torch.Tensor | None:
        png, text = self._drawn().get("png"), self.text
        if png and text:
            if self.embedder.composes:
                return self._once(("compose", png, text), lambda: self.embedder.compose(self.sketch, text))
            drawn, told = F.normalize(self._sketch_query(png), dim=0), self._text_query()
            return F.normalize(drawn + F.normalize(told, dim=0), dim=0) * told.norm()
        if png:
            return self._sketch_query(png)
        return self._text_query() if text else None

    def _sketch_query(self, png: str) -> torch.Tensor:
        self.embedder.require("sketch")
        return self._once(("sketch", png), lambda: self.embedder.sketch(self.sketch))

    def _text_query(self) -> torch.Tensor:
        self.embedder.require("text", "turns")
        if self.embedder.takes("turns"):
            turns = self.dialogue
            return self._once(("dialogue", *turns), lambda: self.embedder.dialogues([turns]))
        told = self._once(("text", self.text), lambda: self.embedder.texts([self.text]))
        answers = [(event["question"], event["phrase"]) for event in self._told() if event["kind"] == "answer"]
        evidence = [self.bank.evidence[answer] for answer in answers if answer in self.bank.evidence]
        if not evidence:
            return told
        return F.normalize(F.normalize(told, dim=0) + F.normalize(sum(evidence), dim=0), dim=0) * told.norm()

    def _once(self, key: tuple, embed) -> torch.Tensor:
        """Keeps embeddings by what was embedded, so that marks and undo cost no pass through the network."""
        if key not in self._embedded:
            self._embedded[key] = embed()[0]
        return self._embedded[key]

    def _marked(self, kind: str) -> torch.Tensor | float:
        rows = [row for row, mark in self.marks.items() if mark == kind]
        return F.normalize(self.gallery.index.vectors(rows), dim=1).mean(0) if rows else 0.0

    def _search(self, k: int) -> list[tuple[int, float]]:
        query = self.query()
        if query is None:
            return [(row, 0.0) for row in islice(self.gallery.index.ids, min(k, len(self.gallery.index)))]
        scores, rows = self.gallery.index.search(query[None], k)
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


def _words(text: str, what: str) -> str:
    """What a user wrote, as it is kept; ReidError naming `what` where there is nothing in it, or far too much."""
    text = _printable(text)
    if not text:
        raise ReidError(f"The {what} is empty; expected some words about the person.")
    if len(text) > MOST_CHARACTERS:
        raise ReidError(f"The {what} has {len(text):,} characters; expected at most {MOST_CHARACTERS:,}.")
    return text


def _printable(text: str) -> str:
    """Without control characters and halves of surrogate pairs, which neither a tokenizer nor a file takes."""
    return "".join(character if character.isprintable() else " " for character in text).strip()


def _question(event: dict) -> Question:
    lists = {key: tuple(event[key]) for key in ("answers", "phrases", "nouns")}
    return Question(key=event["key"], text=event["text"], why=event["why"], gain=event["gain"], **lists)
