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
SURE = 0.6  # probability from which the reason speaks of what a candidate looks like
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

    p(answer | picture) is the softmax over the answers of b + a z, where z is the picture's similarity to the phrase,
    less the phrase's mean over the gallery, in units of the spread over all phrases. One unit for the whole bank keeps
    a question the method is blind to nearly uniform, so that it promises nothing.

    known: an index of pictures whose metadata tell the answers ("attributes", or captions under "text"), best not
    trained on. On them a and b are fitted for each question; without, a is `SHARPNESS` and b 0. Many attributes are
    nearly invisible to a model that is as confident about them as about all others: fitted, a is about 0 for these,
    they are asked last, and their answers move the search little.

    `evidence` holds, by (question, phrase), what an answer adds to a picture's log odds, as a vector to multiply the
    picture's embedding with: a times the phrase's embedding less the mean over the answers, in the same unit.
    """

    def __init__(
        self,
        encoder: Encoder,
        index: GalleryIndex,
        questions: Sequence[Question] | None = None,
        known: GalleryIndex | None = None,
    ):
        self.questions = list(DEFAULT_QUESTIONS if questions is None else questions)
        keys = [question.key for question in self.questions]
        if len(set(keys)) < len(keys) or not keys:
            raise ConfigError("The questions need different keys, and there must be at least one.")
        self._place = {key: place for place, key in enumerate(keys)}
        self._sizes = [len(question.answers) for question in self.questions]
        encoder.model.require("text", "turns")
        phrases = [Query(text=phrase) for question in self.questions for phrase in question.phrases]
        self.phrases = encoder.queries(phrases).cpu()
        similarity = index.vectors(index.sample(SAMPLE)) @ self.phrases.T
        self.centre = similarity.mean(0)
        self.spread = (similarity - self.centre).std().clamp_min(1e-6)
        self.sharpness, self.offsets = [SHARPNESS] * len(keys), [torch.zeros(size) for size in self._sizes]
        if known is not None:
            self._calibrate(known)
        self.evidence = {
            (question.text, phrase): sharpness * told / self.spread
            for question, sharpness, part in zip(
                self.questions, self.sharpness, self.phrases.split(self._sizes), strict=True
            )
            for phrase, told in zip(question.phrases, part - part.mean(0), strict=True)
        }

    def answer_probabilities(self, embeddings: torch.Tensor) -> list[torch.Tensor]:
        """For each question p(answer | picture), (N, answers), of pictures given as embeddings (N, D)."""
        fitted = zip(self.sharpness, self._scores(embeddings), self.offsets, strict=True)
        return [(sharpness * z + offset).softmax(1) for sharpness, z, offset in fitted]

    def _scores(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ((embeddings @ self.phrases.T - self.centre) / self.spread).split(self._sizes, 1)

    def _calibrate(self, known: GalleryIndex) -> None:
        ids = known.sample(SAMPLE)
        scores, rows = self._scores(known.vectors(ids)), known.rows(ids)
        for place, (question, z) in enumerate(zip(self.questions, scores, strict=True)):
            truths = [truth(question, row) for row in rows]
            told = [number for number, answer in enumerate(truths) if answer in question.answers]
            labels = torch.tensor([question.answers.index(truths[number]) for number in told], dtype=torch.long)
            self.sharpness[place], self.offsets[place] = _fitted(z[told], labels)

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
        return replace(question, gain=gain, why=_why(question, probabilities[:FIRST]))

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


def _why(question: Question, probabilities: torch.Tensor) -> str:
    """What the model sees in the first candidates, (n, answers); nothing is said of those it is unsure about."""
    best = probabilities.max(1)
    likely = [question.answers[i] for i in best.indices[best.values >= SURE].tolist()]
    counts = sorted(((likely.count(answer), answer) for answer in set(likely)), reverse=True)
    unsure = len(probabilities) - len(likely)
    if unsure >= len(probabilities) / 2:
        return f"The model is unsure about this in {unsure} of the first {len(probabilities)} candidates."
    parts = [f"{count} “{answer}”" for count, answer in counts]
    if len(counts) == 1:
        return f"To the model {len(likely)} of the first {len(probabilities)} candidates look like “{likely[0]}”."
    parts += [f"{unsure} unclear"] if unsure else []
    return f"The first {len(probabilities)} candidates look different to the model: {', '.join(parts)}."


def _fitted(z: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Sharpness and offsets (A,) of the softmax that fits labels (N,) best, given z (N, A).

    Their squares are penalised, so that few pictures give small ones; a negative sharpness, which is noise, becomes 0.
    """
    sharpness = torch.zeros((), requires_grad=True)
    offsets = torch.zeros(z.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([sharpness, offsets], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        wrong = torch.nn.functional.cross_entropy(sharpness * z + offsets, labels, reduction="sum")
        total = (wrong + 0.5 * sharpness**2 + 0.5 * (offsets**2).sum()) / max(1, len(labels))
        total.backward()
        return total

    if len(labels):
        optimizer.step(loss)
    return max(0.0, sharpness.item()), offsets.detach()


def truth(question: Question, known: Mapping) -> str | None:
    """The answer that a picture's metadata give: its attributes, else the first mention in its captions."""
    if question.key in (known.get("attributes") or {}):
        return known["attributes"][question.key]
    return next((answer for text in known.get("text") or () for answer in mentions(text, question)), None)


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
