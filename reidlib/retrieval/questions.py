"""What a session may ask, and which question is expected to tell most about the candidates that are left."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from reidlib.errors import ConfigError
from reidlib.evaluation import Encoder
from reidlib.query import Query
from reidlib.retrieval.index import GalleryIndex

NOT_SURE, NONE_OF_THESE, UNKNOWN, NOTHING = "not sure", "none of these", "I don't know", "none"
TELLS_NOTHING = tuple(map(str.lower, (NOT_SURE, NONE_OF_THESE, UNKNOWN, NOTHING)))
SHARPNESS = 2.0
REACH = 6  # words from a colour to the thing it belongs to: "a red and white striped cotton shirt"
SAMPLE = 4_096  # pictures that tell a phrase's mean
UNSEEN = 0.25  # times chance: what the model sees in so few candidates, an answer contradicts
FIRST = 8  # candidates the reason speaks about


@dataclass(frozen=True)
class Question:
    """One question about one attribute; `phrases` are the answers as captions that a text encoder understands.

    `nouns` are the words an annotation uses for the thing asked about: a witness needs them to tell whose colour a
    colour is. `why` and `gain` (bits) are filled in by `QuestionBank.best`.
    """

    key: str
    text: str
    answers: tuple[str, ...]
    phrases: tuple[str, ...]
    nouns: tuple[str, ...] = ()
    why: str = ""
    gain: float = 0.0

    def phrase(self, answer: str) -> str | None:
        """The caption for an answer in the list, None for any other."""
        return dict(zip(map(str.lower, self.answers), self.phrases, strict=True)).get(answer.strip().lower())


TOPS = ("top", "shirt", "t-shirt", "jumper", "sweater", "hoodie", "jacket", "coat", "blouse", "vest")
BOTTOMS = ("trousers", "pants", "jeans", "shorts", "skirt", "leggings")
SHOES = ("shoes", "trainers", "sneakers", "boots", "sandals")
BAGS = ("bag", "backpack", "handbag", "rucksack", "satchel")
HATS = ("hat", "cap", "beanie", "helmet")
KINDS = {"upper": TOPS, "lower": BOTTOMS, "shoes": SHOES, "bag": BAGS, "hat": HATS}  # what such a question asks for
THINGS = ("hair", *TOPS, *BOTTOMS, *SHOES, *BAGS, *HATS)
COLOURS = ("black", "white", "grey", "blue", "red", "green", "yellow", "brown", "beige", "pink", "purple")

# For each attribute: the question, the caption of an answer, the nouns it is about.
TEMPLATES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "sex": ("Is the person a man or a woman?", "a {}", ()),
    "hair": ("How is the hair worn?", "a person with {} hair", ("hair",)),
    "hair_colour": ("What colour is the hair?", "a person with {} hair", ("hair",)),
    "upper": ("What is worn on the upper body?", "a person in a {}", ()),
    "upper_colour": ("What colour is the top?", "a person in a {} top", TOPS),
    "upper_pattern": ("What pattern has the top?", "a person in a {} top", TOPS),
    "lower": ("What is worn on the legs?", "a person in {}", ()),
    "lower_colour": ("What colour is worn on the legs?", "a person in {} trousers", BOTTOMS),
    "shoes": ("What kind of shoes are they?", "a person in {}", ()),
    "shoes_colour": ("What colour are the shoes?", "a person in {} shoes", SHOES),
    "bag": ("Is there a bag?", "a person with a {}", ()),
    "bag_colour": ("What colour is the bag?", "a person with a {} bag", BAGS),
    "hat": ("Is there something on the head?", "a person in a {}", ()),
    "hat_colour": ("What colour is the hat?", "a person in a {} hat", HATS),
    "carried": ("What is carried in the hand?", "a person holding a {}", ()),
}
# Absence has no caption: annotators seldom write what is not there, so text encoders do not learn "without a hat".
ANYONE = "a person"
# Answers that need a caption of their own.
WORDED = {
    ("hair", "ponytail"): "a person with a ponytail",
    ("hair", "bun"): "a person with the hair in a bun",
    ("hair", "bald"): "a bald person",
    ("upper_pattern", "logo"): "a person in a top with a logo",
}


def make_questions(attributes: Mapping[str, Sequence[str]]) -> list[Question]:
    """A question for each attribute and its possible values; an attribute without a template gets a plain one."""
    return [_question(key, tuple(values)) for key, values in attributes.items() if len(values) > 1]


def questions_about(known: Sequence[Mapping[str, str]]) -> list[Question]:
    """A question for each attribute that annotations of people name and differ in; `DEFAULT_QUESTIONS` without any."""
    values: dict[str, set[str]] = {}
    for person in known:
        for key, value in person.items():
            values.setdefault(key, set()).add(value)
    return make_questions({key: sorted(seen) for key, seen in values.items()}) or DEFAULT_QUESTIONS


def _question(key: str, values: tuple[str, ...]) -> Question:
    words = key.replace("_", " ")
    plain = f"What is the person's {words}?", f"a person with {words} {{}}", ()
    text, phrase, nouns = TEMPLATES.get(key, plain)
    phrases = tuple(WORDED.get((key, value), phrase.format(value)) if value != NOTHING else ANYONE for value in values)
    return Question(key, text, values, phrases, nouns)


# For pictures of real people without annotations.
DEFAULT_QUESTIONS = make_questions(
    {
        "sex": ("man", "woman"),
        "hair": ("short", "long", "ponytail", "bald"),
        "hair_colour": ("black", "brown", "blonde", "grey", "red"),
        "upper": ("t-shirt", "shirt", "sweater", "hoodie", "jacket", "coat", "dress"),
        "upper_colour": COLOURS,
        "upper_pattern": ("plain", "striped", "checked", "logo"),
        "lower": ("trousers", "jeans", "shorts", "skirt", "leggings"),
        "lower_colour": COLOURS,
        "shoes": ("trainers", "boots", "sandals", "leather shoes"),
        "shoes_colour": ("black", "white", "grey", "blue", "red", "brown"),
        "bag": ("none", "backpack", "shoulder bag", "handbag"),
        "hat": ("none", "cap", "hat"),
        "carried": ("none", "phone", "umbrella", "cup", "book"),
    }
)


class QuestionBank:
    """Questions made ready for one method and one gallery: every answer phrase is encoded once.

    p(answer | picture) = softmax over the answers of `SHARPNESS` * z, where z is the picture's similarity to the
    phrase, less the phrase's mean over the gallery, in units of the spread over all phrases. One unit for the whole
    bank keeps a question the method is blind to nearly uniform, so that it promises nothing.

    `evidence` holds, by (question, phrase), what an answer says beyond its question: the phrase's embedding less the
    mean over the question's answers.
    """

    def __init__(self, encoder: Encoder, index: GalleryIndex, questions: Sequence[Question] | None = None):
        self.questions = list(DEFAULT_QUESTIONS if questions is None else questions)
        keys = [question.key for question in self.questions]
        if len(set(keys)) < len(keys) or not keys:
            raise ConfigError("The questions need different keys, and there must be at least one.")
        self._place = {key: place for place, key in enumerate(keys)}
        encoder.model.require("text", "turns")
        phrases = [Query(text=phrase) for question in self.questions for phrase in question.phrases]
        self.phrases = encoder.queries(phrases).cpu()
        parts = self.phrases.split([len(question.answers) for question in self.questions])
        self.evidence = {
            (question.text, phrase): told
            for question, part in zip(self.questions, parts, strict=True)
            for phrase, told in zip(question.phrases, part - part.mean(0), strict=True)
        }
        similarity = index.vectors(index.sample(SAMPLE)) @ self.phrases.T
        self.centre = similarity.mean(0)
        self.spread = (similarity - self.centre).std().clamp_min(1e-6)

    def answer_probabilities(self, embeddings: torch.Tensor) -> list[torch.Tensor]:
        """For each question p(answer | picture), (N, answers), of pictures given as embeddings (N, D)."""
        z = SHARPNESS * (embeddings @ self.phrases.T - self.centre) / self.spread
        return [part.softmax(1) for part in z.split([len(question.answers) for question in self.questions], 1)]

    def best(self, embeddings: torch.Tensor, weights: torch.Tensor, asked: Sequence[str]) -> Question | None:
        """The question not asked yet with the largest expected information gain about the candidates, in bits.

        Candidates (N, D) come best first with posterior weights (N,) summing to one. The gain is the mutual
        information of answer and candidate, H(sum_i w_i p_i) - sum_i w_i H(p_i). None when all have been asked.
        """
        options = [
            (information_gain(probabilities, weights), question, probabilities)
            for question, probabilities in zip(self.questions, self.answer_probabilities(embeddings), strict=True)
            if question.key not in asked
        ]
        if not options:
            return None
        gain, question, probabilities = max(options, key=lambda option: option[0])
        return replace(question, gain=gain, why=_why(question, probabilities[:FIRST].argmax(1).tolist()))

    def contradicts(self, question: Question, answer: str, embeddings: torch.Tensor, weights: torch.Tensor) -> bool:
        """True if an answer is one that the model sees in hardly any candidate: below a quarter of chance."""
        given = [answer.lower()] + [found.lower() for found in mentions(answer, question)]
        places = [place for place, offered in enumerate(question.answers) if offered.lower() in given]
        if not places or answer.lower() in TELLS_NOTHING or question not in self:
            return False
        seen = weights @ self.answer_probabilities(embeddings)[self._place[question.key]]
        return bool(seen[places].sum() < UNSEEN / len(question.answers))

    def __contains__(self, question: Question) -> bool:
        known = self._place.get(question.key)
        return known is not None and self.questions[known].answers == question.answers

    def answered_by(self, text: str) -> set[str]:
        """The keys of the questions whose answer a description tells."""
        return {question.key for question in self.questions if _is_answered(question, text)}


def information_gain(probabilities: torch.Tensor, weights: torch.Tensor) -> float:
    """Mutual information in bits of candidate and answer: p(answer | candidate) (N, A), p(candidate) (N,)."""
    return float(_entropy(weights @ probabilities) - weights @ _entropy(probabilities))


def _entropy(p: torch.Tensor) -> torch.Tensor:
    return -torch.special.xlogy(p, p).sum(-1) / torch.log(torch.tensor(2.0))


def _why(question: Question, likely: list[int]) -> str:
    counts = sorted(((likely.count(answer), question.answers[answer]) for answer in set(likely)), reverse=True)
    if len(counts) == 1:
        return f"The first {len(likely)} candidates all look like “{counts[0][1]}”; the answer would confirm it."
    parts = [f"{count} “{answer}”" for count, answer in counts]
    return f"The first {len(likely)} candidates seem to differ: {', '.join(parts[:-1])} and {parts[-1]}."


def _is_answered(question: Question, text: str) -> bool:
    words = split_words(text)
    named = any(find_words(words, thing) for thing in KINDS.get(question.key, ()))
    return named or bool(mentions(text, question))


def mentions(text: str, question: Question) -> list[str]:
    """The question's answers that a sentence gives, in its order.

    Where the question is about nouns, an answer counts when one of them is the next thing named after it.
    """
    words = split_words(text)
    found = sorted((place, answer) for answer in question.answers for place in find_words(words, answer))
    if question.nouns:
        things = {*THINGS, *question.nouns}
        named = {place: next((w for w in words[place : place + REACH] if w in things), None) for place, _ in found}
        found = [(place, answer) for place, answer in found if named[place] in question.nouns]
    return [answer for _, answer in found]


def split_words(text: str) -> list[str]:
    return re.findall(r"[\w-]+", text.lower())


def find_words(words: list[str], phrase: str) -> list[int]:
    """Where a phrase stands in a list of words."""
    wanted = split_words(phrase)
    return [i for i in range(len(words) - len(wanted) + 1) if words[i : i + len(wanted)] == wanted]
