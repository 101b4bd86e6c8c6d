"""How well a way of asking works: simulated searches for many people, measured after every round."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from reidlib.errors import ConfigError
from reidlib.methods.base import Method
from reidlib.retrieval.gallery import Gallery
from reidlib.retrieval.questions import Question, QuestionBank
from reidlib.retrieval.session import QuerySession
from reidlib.retrieval.witness import Witness

POLICIES = ("none", "fixed", "random", "informative")
SHOWN = 8  # candidates the witness looks at when giving feedback


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
) -> PolicyRun:
    """Searches for each target (a row of the gallery) with a simulated witness, one question a round.

    The witness opens with a few words, then answers what the policy asks: "none" asks nothing, "fixed" goes through
    the questions in order, "random" in an order drawn for each search, "informative" by expected information gain.
    With `feedback` the witness also marks the best candidate not marked yet, every round. The gallery's metadata
    must name the `pid`, and `attributes`, `text` or `turns` for the witness to know anything.
    """
    if policy not in POLICIES:
        raise ConfigError(f"The policy {policy!r} is unknown; expected one of {', '.join(POLICIES)}.")
    session = QuerySession(model, gallery, questions)
    embeddings = gallery.index.vectors(gallery.index.ids)
    pids = np.array([row["pid"] for row in gallery.index.metadata])
    ranks, asked = [], []
    for number, target in enumerate(targets):
        known = gallery.index.metadata[target]
        facts = [known.get(key) or () for key in ("attributes", "text", "turns")]
        witness = Witness(*facts, forget=forget, wrong=wrong, seed=seed * 1_000_003 + number)
        order = _order(session.bank.questions, policy, witness.seed)
        session.restart()
        session.say(witness.opening())
        ranks.append([_rank(session, embeddings, pids == pids[target])])
        for round_ in range(rounds):
            _ask(session, witness, policy, order[round_ : round_ + 1])
            if feedback:
                _give_feedback(session, witness)
            ranks[-1].append(_rank(session, embeddings, pids == pids[target]))
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
            mark = witness.judge(session.gallery.index.metadata[row].get("attributes") or {}, row)
            if mark is not None:
                {"like": session.like, "dislike": session.dislike}[mark](row)
                return


def _rank(session: QuerySession, embeddings: Tensor, own: np.ndarray) -> int:
    """One more than the pictures of others that score at least the person's best; a disliked picture counts as last."""
    scores = (embeddings @ session.query()).numpy()
    scores[[row for row, mark in session.marks.items() if mark == "dislike"]] = -np.inf
    return 1 + int((scores[~own] >= scores[own].max()).sum())
