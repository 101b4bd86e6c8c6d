"""A simulated witness, who answers from a picture's annotations, forgets and errs at set rates."""

import random
import re
from collections.abc import Mapping, Sequence

from reidlib.errors import ConfigError
from reidlib.retrieval.embedder import Dialogue
from reidlib.retrieval.questions import NONE_OF_THESE, THINGS, UNKNOWN, Question

REACH = 6  # words from a colour to the thing it belongs to: "a red and white striped cotton shirt"
ALIKE = 0.5


class Witness:
    """Knows one person by attributes, captions or dialogues; attributes are trusted first.

    With probability `forget` an answer is `UNKNOWN`, with probability `wrong` it is another of the answers offered.
    The draw depends on the seed and the question alone, so a witness asked twice says the same.
    """

    def __init__(
        self,
        attributes: Mapping[str, str] | None = None,
        captions: Sequence[str] = (),
        dialogues: Sequence[Dialogue] = (),
        forget: float = 0.0,
        wrong: float = 0.0,
        seed: int = 0,
    ):
        if not (0 <= forget <= 1 and 0 <= wrong <= 1):
            raise ConfigError(f"forget={forget} and wrong={wrong} are rates; expected numbers from 0 to 1.")
        self.attributes = dict(attributes or {})
        self.captions, self.dialogues = list(captions), list(dialogues)
        self.forget, self.wrong, self.seed = forget, wrong, seed

    def reply(self, question: Question) -> str:
        """One of the question's answers, "none of these" where the truth is not offered, or `UNKNOWN`."""
        chance = random.Random(f"{self.seed}/{question.key}")
        forgets, errs = chance.random() < self.forget, chance.random() < self.wrong
        truth = self._truth(question)
        if truth == UNKNOWN or forgets:
            return UNKNOWN
        return chance.choice([answer for answer in question.answers if answer != truth]) if errs else truth

    def opening(self) -> str:
        """What a witness says first: the sex where it is known, else the first caption's first few words."""
        if "sex" in self.attributes:
            return f"a {self.attributes['sex']}"
        return " ".join(self.captions[0].split()[:5]) if self.captions else "a person"

    def judge(self, attributes: Mapping[str, str], row: int) -> str | None:
        """ "like" or "dislike" for a candidate's attributes, or None when the witness cannot tell.

        A candidate is alike when more than half of the attributes known of both agree. `row` seeds the draw.
        """
        chance = random.Random(f"{self.seed}/mark/{row}")
        forgets, errs = chance.random() < self.forget, chance.random() < self.wrong
        common = self.attributes.keys() & attributes.keys()
        if not common or forgets:
            return None
        alike = sum(self.attributes[key] == attributes[key] for key in common) > ALIKE * len(common)
        return "like" if alike != errs else "dislike"

    def _truth(self, question: Question) -> str:
        if question.key in self.attributes:
            value = self.attributes[question.key]
            return value if value in question.answers else NONE_OF_THESE
        told = [found for text in self.captions for found in _mentions(text, question)]
        told += [found for turns in self.dialogues for turn in turns for found in _told_in_turn(turn, question)]
        return told[0] if told else UNKNOWN


def _mentions(text: str, question: Question) -> list[str]:
    """The answers a sentence gives, in its order.

    Where the question is about nouns, an answer counts when one of them is the next thing named after it.
    """
    words = _words(text)
    found = sorted((place, answer) for answer in question.answers for place in _find(words, answer))
    if question.nouns:
        things = {*THINGS, *question.nouns}
        named = {place: next((w for w in words[place : place + REACH] if w in things), None) for place, _ in found}
        found = [(place, answer) for place, answer in found if named[place] in question.nouns]
    return [answer for _, answer in found]


def _told_in_turn(turn: tuple[str, str], question: Question) -> list[str]:
    asked, said = turn
    if question.nouns and any(_find(_words(asked), noun) for noun in question.nouns):
        return [answer for answer in question.answers if _find(_words(said), answer)]
    return _mentions(said, question)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w-]+", text.lower())


def _find(words: list[str], phrase: str) -> list[int]:
    """Where a phrase stands in a list of words."""
    wanted = _words(phrase)
    return [i for i in range(len(words) - len(wanted) + 1) if words[i : i + len(wanted)] == wanted]
