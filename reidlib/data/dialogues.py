"""Conversations as text: one layout for language models, captions told as one turn."""

import re
import zlib
from collections.abc import Sequence

Dialogue = Sequence[tuple[str, str]]  # turns of (question, answer); a round is one turn

ASKS, ANSWERS = "ASSISTANT:", "USER:"
SYSTEM = (
    "Below, a witness talks with an assistant who is searching street cameras for one person. The assistant asks about "
    "clothes, hair, shoes and things carried, and the witness answers from memory with whatever could be seen."
)
CAPTION_QUESTIONS = (
    "Whom are you looking for?",
    "What did this person look like?",
    "How would you describe this pedestrian?",
    "Could you tell me what you saw?",
    "What was the person wearing and carrying?",
    "Please sum up how this person looks.",
    "Which details of the person do you remember?",
)


def serialise(dialogue: Dialogue, system: str = "") -> str:
    """The system prompt, an empty line, then two lines a turn: `ASSISTANT: question` and `USER: answer`.

    Nothing follows the last answer, and white space inside a message is one space, so that a message is one line.
    """
    turns = [f"{ASKS} {_one_line(question)}\n{ANSWERS} {_one_line(answer)}" for question, answer in dialogue]
    return "\n\n".join(part for part in (system, "\n".join(turns)) if part).rstrip()


def caption_turn(caption: str, questions: Sequence[str] = CAPTION_QUESTIONS) -> list[tuple[str, str]]:
    """A caption as the answer to one of `questions`, the same one each time for the same caption."""
    return [(questions[zlib.crc32(caption.encode()) % len(questions)], caption)]


def clean_caption(caption: str) -> str:
    """Lower case, without the punctuation that web captions are full of, single spaces."""
    return _one_line(re.sub(r'[.!"()*#:;~]', " ", caption.lower()))


def _one_line(text: str) -> str:
    return " ".join(text.split())
