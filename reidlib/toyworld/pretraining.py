"""Pictures and captions in memory to pre-train a toy backbone on, of people who live in no toy world."""

import random
from dataclasses import replace

import numpy as np

from reidlib.toyworld import draw, people, shots, sketch

# As on the web: short, loose, and now and then about a drawing.
PHOTO = ("a photo of a {who}, {things}", "a {who} with {things}", "{things}", "{who}, {things}")
DRAWING = ("a drawing of a {who}, {things}", "a sketch of a {who} with {things}", "{things}, pencil sketch")
DRAWN = 0.4  # of the pictures, the last ones
DARK, LIGHT = ("black", "navy", "brown", "red", "purple"), ("white", "beige", "yellow", "pink", "blonde")
VAGUE = 0.1  # of the photos' captions tell no colours either, only dark and light
TOLD = ("hair", "upper", "lower", "shoes", "bag", "hat", "carried")


def pretraining_pairs(identities: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """`identities` pictures (N, 128, 64, 3) uint8, one a person, with a short caption each.

    The people are drawn from the part of all combinations of attributes that `make` never uses, whatever its seed. As
    the web differs from a camera and its alt texts from a witness, these pictures are evenly lit, sharp and
    unobstructed, their captions name two to four things by one plain word each, without the synonyms and sentences of
    the worlds, and the last `DRAWN` share of them are drawings, whose captions tell dark and light and no colours.
    """
    rng = random.Random(f"pre-training {seed}")
    crowd = people.sample(identities, rng, pretraining=True, twins=0.0)
    pictures, captions = np.empty((identities, 128, 64, 3), np.uint8), []
    for n, person in enumerate(crowd):
        shot = replace(shots.sample(rng), light=1.0, warmth=0.0, blur=0.0, occluder="none")
        seen = shots.visible(person, shot)
        drawn = n >= round(identities * (1 - DRAWN))
        if drawn:
            pictures[n] = np.asarray(sketch.draw(person, shot, rng.choice(sketch.HANDS), rng.getrandbits(32)))
        else:
            pictures[n] = np.asarray(draw.photo(person, shot))
        if drawn or rng.random() < VAGUE:
            seen = {key: tone(value) if key.endswith("_colour") else value for key, value in seen.items()}
        captions.append(short_caption(seen, DRAWING if drawn else PHOTO, rng))
    return pictures, captions


def short_caption(seen: dict[str, str], plans: tuple[str, ...], rng: random.Random) -> str:
    can_tell = [key for key in TOLD if seen.get(key, "none") not in ("none", "straps", "tied back")]
    told = rng.sample(can_tell, min(len(can_tell), rng.randint(2, 4)))
    return rng.choice(plans).format(who=seen["sex"], things=", ".join(plain_words(key, seen) for key in told))


def tone(colour: str) -> str:
    """What is left of a colour in a pencil drawing; an empty string for a middling one."""
    return "dark" if colour in DARK else "light" if colour in LIGHT else ""


def plain_words(key: str, seen: dict[str, str]) -> str:
    """A thing by the names of its attributes: "red striped jumper", "short brown hair"."""
    pattern = seen.get(f"{key}_pattern", "plain")
    words = [seen.get(f"{key}_colour", ""), "" if pattern == "plain" else pattern, seen[key]]
    if key == "hair":
        words = [seen[key], seen.get("hair_colour", ""), "" if seen[key] == "bald" else "hair"]
    return " ".join(word for word in words if word not in ("", "none"))
