"""What witnesses say in the toy world: two captions a picture and a dialogue, told from the truth and the view."""

import random
import re
from string import Formatter

from reidlib.toyworld import words as say
from reidlib.toyworld.people import Person
from reidlib.toyworld.shots import Shot, visible

Dialogue = list[tuple[str, str]]
FACTS = ("hair", "upper", "lower", "shoes", "bag", "hat", "carried")
MIN_WORDS, MAX_WORDS = 12, 45


def _slots(plan: str) -> frozenset[str]:
    return frozenset(name.lower() for _, name, _, _ in Formatter().parse(plan) if name) & set(FACTS)


_OPENINGS = tuple((plan, _slots(plan)) for plan in say.OPENINGS)
_CONTINUATIONS = tuple((plan, _slots(plan)) for plan in say.CONTINUATIONS)


# ---------------------------------------------------------------- noun phrases


def colour(name: str, rng: random.Random, vague: float = 0.1) -> str:
    """A word for a garment's colour, now and then a vague one."""
    if rng.random() < vague:
        words = [word for word, names in say.VAGUE_COLOURS.items() if name in names]
        if words:
            return rng.choice(words)
    return rng.choice(say.COLOUR_WORDS[name])


def qualified(noun: str, looks: list[str]) -> str:
    """Colour and pattern before the noun, but after an adjective of size: "a long red checked coat"."""
    first, _, rest = noun.partition(" ")
    return " ".join([first, *looks, rest] if first in say.LEADING else [*looks, noun])


def with_article(phrase: str, rng: random.Random) -> str:
    """`phrase` with "a", "an", "a pair of" or, for a plural or uncountable thing, often nothing."""
    noun = phrase.split(" with ")[0]
    if noun.endswith("footwear"):
        return phrase
    if noun.endswith(say.PLURAL):
        return f"a pair of {phrase}" if rng.random() < 0.3 else phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def thing(key: str, seen: dict[str, str], rng: random.Random) -> str:
    """A noun phrase for a garment or a thing carried, such as "a dark blue striped jumper"."""
    value = seen[key]
    vague = key in say.VAGUE_NOUNS and value != "straps" and rng.random() < 0.06
    noun = rng.choice(say.VAGUE_NOUNS[key] if vague else say.NOUNS[key][value])
    if f"{key}_colour" in seen:
        pattern, looks = seen.get(f"{key}_pattern", ""), []
        if rng.random() < 0.93:
            looks.append(colour(seen[f"{key}_colour"], rng))
        if pattern == "plain" and rng.random() < 0.12:
            looks.insert(0, rng.choice(say.PATTERN_WORDS[pattern]))
        elif pattern not in ("plain", "logo", "") and rng.random() < 0.85:
            looks.append(rng.choice(say.PATTERN_WORDS[pattern]))
        noun = qualified(noun, looks)
        if pattern == "logo" and rng.random() < 0.6:
            noun = f"{noun} {rng.choice(say.LOGOS)}"
    if value == "straps":
        return f"{noun} over both shoulders"
    return with_article(noun, rng)


def hair(seen: dict[str, str], rng: random.Random) -> str:
    plan = rng.choice(say.HAIR[seen["hair"]])
    return plan.format(c=rng.choice(say.HAIR_COLOUR_WORDS[seen["hair_colour"]])) if "{c}" in plan else plan


def fact(key: str, seen: dict[str, str], rng: random.Random) -> str:
    return hair(seen, rng) if key == "hair" else thing(key, seen, rng)


def tellable(seen: dict[str, str]) -> list[str]:
    """The facts that a witness of this picture could mention."""
    return [key for key in FACTS if seen.get(key, "none") != "none"]


# ---------------------------------------------------------------- captions


def _filled(plan: str, words: dict[str, str]) -> str:
    """`plan` with its slots filled; a slot with a capital initial gets a capital."""
    return plan.format(**words, **{key.capitalize(): value[:1].upper() + value[1:] for key, value in words.items()})


def tell(facts: list[str], seen: dict[str, str], shot: Shot, rng: random.Random) -> str:
    """One caption that mentions exactly `facts`, by sentence plans drawn at random."""
    words = {key: fact(key, seen, rng) for key in facts}
    words |= {
        "who": rng.choice(say.WHO[seen["sex"]]),
        "walks": rng.choice(say.WALKS[shot.view]),
        **say.PRONOUNS[seen["sex"]],
    }
    left, plans = set(facts), []
    choices = [plan for plan in _OPENINGS if plan[1] <= left]
    while True:
        plan, used = rng.choice(choices)
        plans.append(plan)
        left -= used
        if not left:
            return " ".join(_filled(plan, words) for plan in plans)
        walked = any("{walks}" in plan.lower() for plan in plans)
        choices = [
            (plan, used)
            for plan, used in _CONTINUATIONS
            if used and used <= left and not (walked and "{walks}" in plan)
        ]


def tokens(text: str) -> list[str]:
    """The words of a caption in lower case, without punctuation."""
    return re.findall(r"[\w'-]+", text.lower())


def caption(seen: dict[str, str], shot: Shot, rng: random.Random) -> tuple[str, str]:
    """A caption that leaves something visible out, and a paraphrase of it."""
    can_tell = tellable(seen)
    while True:
        most = len(can_tell) - 1
        facts = rng.sample(can_tell, rng.randint(min(3, most), most))
        if "upper" not in facts and "lower" not in facts:
            continue
        texts = tell(facts, seen, shot, rng), tell(facts, seen, shot, rng)
        if texts[0] != texts[1] and all(MIN_WORDS <= len(tokens(text)) <= MAX_WORDS for text in texts):
            return texts


def captions_and_paraphrases(person: Person, shot: Shot, rng: random.Random) -> tuple[tuple[str, str], tuple[str, str]]:
    """Two captions by two witnesses of one picture, and a paraphrase of each."""
    seen = visible(person, shot)
    first, second = caption(seen, shot, rng), caption(seen, shot, rng)
    return (first[0], second[0]), (first[1], second[1])


def captions(person: Person, shot: Shot, rng: random.Random) -> tuple[str, str]:
    """Two captions of 12 to 45 words, each naming only what the picture shows and not all of it."""
    return captions_and_paraphrases(person, shot, rng)[0]


# ---------------------------------------------------------------- dialogues


def value_in_words(key: str, seen: dict[str, str], rng: random.Random) -> str:
    """A short answer about one attribute that is there."""
    value = seen[key]
    if key == "sex":
        return with_article(rng.choice(say.WHO[value][:3]), rng)
    if key == "hair":
        return {"tied back": "tied back", "ponytail": "in a ponytail", "bun": "in a bun"}.get(value, value)
    if key == "hair_colour":
        return rng.choice(say.HAIR_COLOUR_WORDS[value])
    if key == "upper_pattern":
        return rng.choice(say.LOGOS if value == "logo" else say.PATTERN_WORDS[value])
    if key.endswith("_colour"):
        return colour(value, rng, vague=0.15)
    if rng.random() < 0.3 and f"{key}_colour" in seen:
        return thing(key, seen, rng)
    if value == "straps":
        return "straps over both shoulders, so probably a backpack"
    return with_article(rng.choice(say.NOUNS[key][value]), rng)


def answer(person: Person, shot: Shot, key: str, rng: random.Random) -> str:
    """What a witness of this picture says when asked about the attribute `key`."""
    seen = visible(person, shot)
    words = {**say.PRONOUNS[person.sex], "walks": rng.choice(say.WALKS[shot.view])}
    if key not in seen:
        return _filled(rng.choice(say.HIDDEN), words)
    if seen[key] == "none":
        return _filled(rng.choice(say.NOTHING[key]), words)
    if key != "sex" and rng.random() < 0.07:
        return rng.choice(say.UNSURE)
    words["value"] = value_in_words(key, seen, rng)
    if key == "upper_pattern" and seen[key] == "logo":
        reply = f"Plain, but {words['value']}."
    else:
        reply = _filled(rng.choice(say.THING_REPLIES if key in say.NOUNS else say.REPLIES), words)
    others = [other for other in tellable(seen) if not key.startswith(other)]
    if rng.random() < 0.12:
        words["fact"] = fact(rng.choice(others), seen, rng)
        reply = f"{reply} {_filled(rng.choice(say.EXTRAS), words)}"
    return reply


def dialogue(person: Person, shot: Shot, rng: random.Random) -> Dialogue:
    """Five to nine turns (question, answer) about one picture, in an order of the questioner's own.

    A colour is asked for only after its thing has been spoken of, and only where there is such a thing.
    """
    seen = visible(person, shot)
    words = say.PRONOUNS[person.sex]
    first = f"{with_article(rng.choice(say.WHO[person.sex]), rng)} {rng.choice(say.WALKS[shot.view])}"
    turns = [(rng.choice(say.FIRST_QUESTIONS), first[0].upper() + first[1:] + ".")]
    topics = ["upper", "lower", *rng.sample(("hair", "shoes", "bag", "hat", "carried"), rng.randint(2, 4))]
    rng.shuffle(topics)
    for topic in topics:
        keys = [topic]
        if topic != "carried" and seen.get(topic, "none") not in ("none", "bald") and rng.random() < 0.45:
            keys.append(f"{topic}_colour")
        if topic == "upper" and rng.random() < 0.35:
            keys.append("upper_pattern")
        for key in keys:
            turns.append((_filled(rng.choice(say.QUESTIONS[key]), words), answer(person, shot, key, rng)))
    return turns[: max(5, rng.randint(6, 9))]
