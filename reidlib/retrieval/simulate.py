"""Simulated searches: a witness who answers from annotations, and ways of asking, measured after every round."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reidlib.errors import ConfigError
from reidlib.methods.base import Method
from reidlib.query import Turn
from reidlib.retrieval.gallery import Gallery
from reidlib.retrieval.questions import (
    NONE_OF_THESE,
    UNKNOWN,
    Question,
    QuestionBank,
    find_words,
    mentions,
    split_words,
    truth,
)
from reidlib.retrieval.session import QuerySession

POLICIES = ("none", "fixed", "random", "informative")
SHOWN = 8  # candidates the witness looks at when giving feedback
ALIKE = 0.5  # share of the attributes known of both on which two people agree who look alike


class Witness:
    """Knows one person by attributes, captions (text) or dialogues (turns); attributes are trusted first.

    With probability `forget` an answer is `UNKNOWN`, with probability `wrong` it is another of the answers offered.
    The draw depends on the seed and the question alone, so a witness asked twice says the same.
    """

    def __init__(
        self,
        attributes: Mapping[str, str] | None = None,
        text: Sequence[str] = (),
        turns: Sequence[Sequence[Turn]] = (),
        forget: float = 0.0,
        wrong: float = 0.0,
        seed: int = 0,
    ):
        if not (0 <= forget <= 1 and 0 <= wrong <= 1):
            raise ConfigError(f"forget={forget} and wrong={wrong} are rates; expected numbers from 0 to 1.")
        self.attributes = dict(attributes or {})
        self.text, self.turns = list(text), list(turns)
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
        return " ".join(self.text[0].split()[:5]) if self.text else "a person"

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
        told = truth(question, {"attributes": self.attributes, "text": self.text})
        if told is not None:
            return told if told in question.answers else NONE_OF_THESE
        turns = (turn for turns in self.turns for turn in turns)
        return next((found for turn in turns for found in _told_in_turn(turn, question)), UNKNOWN)


def _told_in_turn(turn: tuple[str, str], question: Question) -> list[str]:
    asked, said = turn
    if question.nouns and any(find_words(split_words(asked), noun) for noun in question.nouns):
        return [answer for answer in question.answers if find_words(split_words(said), answer)]
    return mentions(said, question)


@dataclass
class PolicyRun:
    """`ranks` (queries, rounds + 1): the 1-based rank of the person's first picture; column 0 is before any question.

    `asked` holds the keys of the questions put in each search.
    """

    policy: str
    feedback: bool
    ranks: np.ndarray
    asked: list[list[str]]

    def summary(self) -> dict:
        """R@1 and cumulative Hits@10 by round in percent, and BRI."""
        hits = (np.minimum.accumulate(self.ranks, axis=1) <= 10).mean(0) * 100
        return {"R@1": ((self.ranks == 1).mean(0) * 100).tolist(), "Hits@10": hits.tolist(), "BRI": bri(self.ranks)}


def bri(ranks: np.ndarray) -> float:
    """Best log Rank Integral of 1-based ranks (queries, T + 1); lower is better, 0 is a hit at the start.

    With pi_t the best rank up to round t: the mean over queries of
    log(pi_0 pi_T) / (2 T) + sum_{t=1}^{T-1} log(pi_t) / T, natural logarithms: the area under log pi by the
    trapezium rule, per round. Source: Lee et al., "Interactive Text-to-Image Retrieval with Large Language Models:
    A Plug-and-Play Approach" (PlugIR), ACL 2024, definition 2.
    """
    best = np.log(np.minimum.accumulate(np.asarray(ranks, dtype=float), axis=1))
    return float(((best[:, :-1] + best[:, 1:]) / 2).mean())


def run_policy(
    model: Method,
    gallery: Gallery,
    targets: Sequence[int],
    policy: str = "informative",
    rounds: int = 5,
    feedback: bool = False,
    questions: QuestionBank | Sequence[Question] | None = None,
    forget: float = 0.0,
    wrong: float = 0.0,
    seed: int = 0,
    depth: int = 100_000,
) -> PolicyRun:
    """Searches for each target (a row of the gallery) with a simulated witness, one question a round.

    The witness opens with a few words, then answers what the policy asks: "none" asks nothing, "fixed" goes through
    the questions in order, "random" in an order drawn for each search, "informative" by expected information gain.
    With `feedback` the witness also marks the best candidate not marked yet, every round. The gallery's metadata
    must name the `pid`, and `attributes`, `text` or `turns` for the witness to know anything.
    """
    if policy not in POLICIES:
        raise ConfigError(f"The policy {policy!r} is unknown; expected one of {', '.join(POLICIES)}.")
    session, index = QuerySession(model, gallery, questions), gallery.index
    ranks, asked = [], []
    for number, target in enumerate(targets):
        [known] = index.rows([target])
        facts = {key: known.get(key) or () for key in ("attributes", "text", "turns")}
        own = set(index.ids(where={"pid": known["pid"]}))
        witness = Witness(**facts, forget=forget, wrong=wrong, seed=seed * 1_000_003 + number)
        order = _order(session.bank.questions, policy, witness.seed)
        session.restart()
        session.say(witness.opening())
        ranks.append([_rank(session, own, depth)])
        for round_ in range(rounds):
            _ask(session, witness, policy, order[round_ : round_ + 1])
            if feedback:
                _give_feedback(session, witness)
            ranks[-1].append(_rank(session, own, depth))
        asked.append([event["key"] for event in session.history if event["kind"] == "ask"])
    return PolicyRun(policy, feedback, np.array(ranks), asked)


def _order(questions: list[Question], policy: str, seed: int) -> list[Question]:
    if policy == "none":
        return []
    return random.Random(seed).sample(questions, len(questions)) if policy == "random" else questions


def _ask(session: QuerySession, witness: Witness, policy: str, next_in_order: list[Question]) -> None:
    question = session.ask() if policy == "informative" else next(map(session.ask, next_in_order), None)
    if question is not None:
        session.answer(witness.reply(question))


def _give_feedback(session: QuerySession, witness: Witness) -> None:
    for row, _, _ in session.results(SHOWN):
        if row not in session.marks:
            mark = witness.judge(session.gallery.index.rows([row])[0].get("attributes") or {}, row)
            if mark is not None:
                {"like": session.like, "dislike": session.dislike}[mark](row)
                return


def _rank(session: QuerySession, own: set[int], depth: int) -> int:
    """One more than the pictures of others that score at least the person's best; a disliked picture counts as last."""
    count = len(session.gallery)
    found = session.results(min(depth, count))
    best = next((score for row, _, score in found if row in own), None)
    if best is None:
        return 1 + min(depth, count - len(own))
    return 1 + sum(row not in own and score >= best for row, _, score in found)
