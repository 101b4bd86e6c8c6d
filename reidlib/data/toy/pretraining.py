"""Pictures and captions in memory to pre-train a toy backbone on, of people who live in no toy world."""

import random
from dataclasses import replace

import numpy as np

from reidlib.data.toy import draw, language, people, shots, sketch

# As on the web: short, loose, and now and then about a drawing.
PHOTO = ("a photo of {who}, {things}", "{who} with {things}", "{things}", "picture: {who}, {things}", "{who}. {things}")
DRAWING = ("a drawing of {who}, {things}", "a sketch of {who} with {things}", "{things}, pencil sketch")
SKETCHED = 0.3  # of the pictures


def pretraining_pairs(identities: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """`identities` pictures (N, 128, 64, 3) uint8, one a person, with a short caption each.

    The people are drawn from the part of all combinations of attributes that `make` never uses, whatever its seed. As
    a CLIP's own pictures differ from a camera's, these are evenly lit, sharp and unobstructed, their captions name two
    to four things instead of describing a person, and a share of them are drawings.
    """
    rng = random.Random(f"pre-training {seed}")
    crowd = people.sample(identities, rng, pretraining=True, twins=0.0)
    pictures, captions = np.empty((identities, 128, 64, 3), np.uint8), []
    for n, person in enumerate(crowd):
        shot = replace(shots.sample(rng), light=1.0, warmth=0.0, blur=0.0, occluder="none")
        seen = shots.visible(person, shot)
        drawn = rng.random() < SKETCHED
        if drawn:
            pictures[n] = np.asarray(sketch.draw(person, shot, rng.choice(sketch.HANDS), rng))
            seen = {key: value for key, value in seen.items() if key == "hair_colour" or not key.endswith("_colour")}
        else:
            pictures[n] = np.asarray(draw.photo(person, shot))
        captions.append(short_caption(seen, DRAWING if drawn else PHOTO, rng))
    return pictures, captions


def short_caption(seen: dict[str, str], plans: tuple[str, ...], rng: random.Random) -> str:
    can_tell = language.tellable(seen)
    facts = rng.sample(can_tell, min(len(can_tell), rng.randint(2, 4)))
    things = ", ".join(language.fact(key, seen, rng) for key in facts)
    return rng.choice(plans).format(who=rng.choice(language.WHO[seen["sex"]]), things=things)
