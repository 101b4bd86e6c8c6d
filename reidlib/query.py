"""What a witness has given, as one value from the notebook to the model: words, turns, a sketch, a photo, marks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

Turn = tuple[str, str]  # (question, answer); a round of a dialogue
Picture = str | Path | Image.Image | Tensor  # a path, a decoded picture, or uint8 pixels (3, H, W)

PARTS = ("text", "turns", "sketch", "photo", "liked", "disliked")
OPENING = "What does the person look like?"  # the question that a description answers where only turns are read


@dataclass(frozen=True, eq=False)
class Query:
    """A search for one person. What is left out was not given.

    text: a description. turns: (question, answer) pairs in their order. sketch, photo: a drawing of the person, a
    picture of somebody who looks like them. liked, disliked: (n, D) embeddings of gallery pictures marked so.
    """

    text: str = ""
    turns: Sequence[Turn] = ()
    sketch: Picture | None = None
    photo: Picture | None = None
    liked: Tensor | None = None
    disliked: Tensor | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts that were given, in the order of `PARTS`."""
        given = {name: getattr(self, name) for name in PARTS}
        return tuple(name for name, value in given.items() if value is not None and _size(value))

    @property
    def as_text(self) -> str:
        """Description and answers as one text, for a model that reads no turns."""
        return " ".join(filter(None, [self.text, *(" ".join(answer.split()) for _, answer in self.turns)]))

    @property
    def as_turns(self) -> list[Turn]:
        """The turns, after one in which the description answers `OPENING`, for a model that reads only turns."""
        return ([(OPENING, self.text)] if self.text else []) + list(self.turns)


def _size(value: object) -> int:
    """The length of what has one (texts, turns, marks); 1 for a picture."""
    return len(value) if isinstance(value, str | Sequence | Tensor) else 1
