"""The toy world's truth and its words: who differs from whom, and what a witness may and may not say."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidlib.toyworld import draw, language, people, pretraining_pairs, shots, sketch
from reidlib.toyworld.words import CONTINUATIONS, NOUNS, OPENINGS, QUESTIONS, VAGUE_NOUNS

SEEDS = st.integers(0, 2**32 - 1)


def witness(seed):
    rng = random.Random(seed)
    return people.anyone(rng), shots.sample(rng), rng


def names(text, key):
    """Whether the text uses a noun of the attribute `key`."""
    nouns = [noun for value in NOUNS[key].values() for noun in value] + list(VAGUE_NOUNS.get(key, ()))
    return any(re.search(rf"\b{re.escape(noun)}\b", text.lower()) for noun in nouns)


def distance(a, b):
    return sum(a.attributes[key] != b.attributes[key] for key in people.ATTRIBUTES)


def test_attributes_are_the_fields_in_order():
    assert tuple(people.Person.__dataclass_fields__)[: len(people.ATTRIBUTES)] == tuple(people.ATTRIBUTES)


@given(SEEDS)
def test_sampled_people_use_the_vocabulary_and_fit(seed):
    person, _, _ = witness(seed)
    assert people.fits(person)
    assert all(value in people.ATTRIBUTES[key] for key, value in person.attributes.items())


def test_no_two_people_wear_the_same_and_a_quarter_are_near_twins():
    crowd = people.sample(300, random.Random(0))
    assert len({tuple(p.attributes.values()) for p in crowd}) == 300
    twins = sum(distance(a, b) == 1 for a, b in zip(crowd, crowd[1:], strict=False))
    assert 45 <= twins <= 105


def test_pretraining_people_live_in_no_world():
    taken = set()
    for seed in range(5):
        people.sample(200, random.Random(seed), taken)
    apart = set()
    people.sample(1000, random.Random(0), apart, pretraining=True)
    assert not taken & apart
    kept = [people.for_pretraining(people.anyone(random.Random(seed))) for seed in range(400)]
    assert 0.15 < np.mean(kept) < 0.35


def test_the_partition_depends_on_what_words_can_tell_only():
    person, _, _ = witness(3)
    assert people.for_pretraining(person) == people.for_pretraining(
        replace(person, skin=0, height=0.9, build=1.1, shade=0.1)
    )


def test_pretraining_pairs():
    pictures, captions = pretraining_pairs(6, seed=1)
    again, same = pretraining_pairs(6, seed=1)
    assert pictures.shape == (6, 128, 64, 3) and pictures.dtype == np.uint8 and len(captions) == 6
    assert (pictures == again).all() and captions == same
    assert (pictures != pretraining_pairs(6, seed=2)[0]).any()
    drawn = " ".join(captions[4:])  # the last four in ten
    assert not set(drawn.replace(",", " ").split()) & {"red", "blue", "green", "yellow", "pink", "purple", "navy"}


# ---------------------------------------------------------------- what the view hides


def person_with(**attributes):
    worn = "woman ponytail brown t-shirt red logo jeans blue trainers white backpack green none none cup"
    return replace(people.Person(*worn.split()), **attributes)


def test_visible_by_view():
    rng = random.Random(0)
    shot = replace(shots.sample(rng), occluder="none")
    front = shots.visible(person_with(), replace(shot, view="front"))
    assert front["bag"] == "straps" and front["hair"] == "tied back" and front["upper_pattern"] == "logo"
    back = shots.visible(person_with(), replace(shot, view="back"))
    assert back["bag"] == "backpack" and "upper_pattern" not in back and "carried" not in back
    behind_car = shots.visible(person_with(), replace(shot, view="left", occluder="car"))
    assert "shoes" not in behind_car and "shoes_colour" not in behind_car
    assert "hair" not in shots.visible(person_with(hair="short", hat="cap", hat_colour="red"), shot)


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_captions_tell_some_of_what_is_seen_and_nothing_else(seed):
    person, shot, rng = witness(seed)
    seen = shots.visible(person, shot)
    (first, second), bt = language.captions_and_paraphrases(person, shot, rng)
    for text in (first, second, *bt):
        assert 12 <= len(language.tokens(text)) <= 45
        assert text[0].isupper() and text.endswith(".") and "{" not in text
        told = {key for key in NOUNS if names(text, key)}
        assert told <= set(language.tellable(seen))
        assert told & {"upper", "lower"}
        tells_hair = bool(re.search(r"\b(hair|curls|ponytail|bald|shaved)\b", text.lower()))
        assert tells_hair <= ("hair" in seen)
        assert len(told) + tells_hair < len(language.tellable(seen))
        if seen.get("bag") != "backpack":
            assert not re.search(r"backpack|rucksack|school bag", text.lower())
        if "upper_pattern" not in seen:
            assert not re.search(r"print|logo|picture on|plain", text.lower())
        wrong = {"man": r"\b(woman|lady|girl|female|she|her)\b", "woman": r"\b(man|guy|gentleman|male|he|his|him)\b"}
        assert not re.search(wrong[person.sex], text.lower())


def test_the_grammar_is_wide():
    assert len(OPENINGS) + len(CONTINUATIONS) >= 48
    person, shot, rng = witness(1)
    assert len({language.captions(person, shot, rng)[0] for _ in range(50)}) > 45


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_dialogues(seed):
    person, shot, rng = witness(seed)
    turns = language.dialogue(person, shot, rng)
    assert 5 <= len(turns) <= 9
    questions = [q for q, _ in turns]
    assert len(set(questions)) == len(questions)
    assert all(q and a and "{" not in q + a and a[0].isupper() for q, a in turns)


@pytest.mark.parametrize("key", people.ATTRIBUTES)
def test_every_attribute_can_be_asked_and_answered(key):
    assert QUESTIONS[key]
    for seed in range(40):
        person, shot, rng = witness(seed)
        assert language.answer(person, shot, key, rng)


def test_a_witness_does_not_know_what_is_hidden():
    person, rng = person_with(), random.Random(0)
    shot = replace(shots.sample(rng), view="back", occluder="car")
    for _ in range(30):
        assert not names(language.answer(person, shot, "carried", rng), "carried")
        assert not re.search("white", language.answer(person, shot, "shoes_colour", rng))


# ---------------------------------------------------------------- pictures


def test_a_photo_is_settled_by_person_and_shot():
    person, shot, _ = witness(5)
    picture = draw.photo(person, shot)
    assert picture.size == (64, 128) and picture.mode == "RGB"
    assert picture.tobytes() == draw.photo(person, shot).tobytes()
    assert draw.photo(person, random.Random(1)).size == (64, 128)


def test_a_photo_by_night_has_no_colours():
    person, shot, _ = witness(5)
    night = np.asarray(draw.photo(person, shot, infrared=True), dtype=int)
    assert night.shape == (128, 64, 3) and (night.max(axis=2) == night.min(axis=2)).all()


def test_one_attribute_changes_the_photo():
    shot = replace(witness(0)[1], view="left", occluder="none")
    person = person_with()
    changes = {
        "upper_colour": "green",
        "lower": "skirt",
        "bag": "shoulder bag",
        "hair": "long",
        "carried": "umbrella",
        "shoes": "boots",
    }
    base = draw.photo(person, shot).tobytes()
    for key, value in changes.items():
        assert draw.photo(replace(person, **{key: value}), shot).tobytes() != base, key


def test_colours_survive_every_camera():
    """Red stays redder than green on the torso, whatever the camera does to the light."""
    for camera in range(len(shots.CAMERAS)):
        shot = replace(shots.sample(random.Random(camera), camera), view="back", occluder="none")
        bare = {"bag": "none", "bag_colour": "none", "carried": "none", "upper_pattern": "plain"}
        for colour, sign in (("red", 1), ("green", -1)):
            photo = np.asarray(draw.photo(person_with(upper_colour=colour, **bare), shot), dtype=int)
            torso = photo[45:60, 28:36].mean(axis=(0, 1))
            assert sign * (torso[0] - torso[1]) > 20


@pytest.mark.parametrize("hand", [*sketch.HANDS, sketch.COLOURED])
def test_sketches_are_dark_lines_on_white(hand):
    person, shot, _ = witness(2)
    picture = np.asarray(sketch.draw(person, shot, hand, 2), dtype=int)
    assert picture.shape == (128, 64, 3)
    assert ((picture.max(axis=2) - picture.min(axis=2)).max() > 8) == (hand == sketch.COLOURED)
    assert (picture > 250).mean() > 0.5 and picture.min() < 90


def test_sketches_come_from_the_truth_not_from_the_photo():
    """Hands differ; light, blur and backdrop leave no trace; the remembered pose is another one."""
    person, shot, _ = witness(2)
    drawn = {hand: sketch.draw(person, shot, hand, 0).tobytes() for hand in sketch.HANDS}
    assert len(set(drawn.values())) == len(sketch.HANDS)
    elsewhere = replace(shot, camera=(shot.camera + 1) % 6, light=0.5, blur=2.0, occluder="car", seed=1)
    assert sketch.draw(person, elsewhere, "clean", 0).tobytes() == drawn["clean"]
    assert sketch.draw(person, shot, "clean", 1).tobytes() != drawn["clean"]


def test_dark_clothes_are_darker_in_every_hand():
    shot = replace(witness(0)[1], view="front")

    def ink(colour, hand):
        person = person_with(upper_colour=colour, upper_pattern="plain", bag="none", bag_colour="none")
        return np.mean([255 - np.asarray(sketch.draw(person, shot, hand, s)).mean() for s in range(5)])

    contrast = {hand: ink("black", hand) - ink("white", hand) for hand in sketch.HANDS}
    assert all(contrast[hand] > 5 for hand in sketch.HANDS)
    assert contrast["shaded"] > contrast["clean"] + 3


def test_memory_fails_now_and_then():
    person, rng = person_with(), random.Random(0)
    memories = [sketch.remembered(person, rng) for _ in range(400)]
    assert 20 < sum(m.bag == "none" for m in memories) < 90
    assert 0 < sum(m.upper_pattern != person.upper_pattern for m in memories) < 60
