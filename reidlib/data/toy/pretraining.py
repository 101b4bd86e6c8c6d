"""Pictures and captions in memory to pre-train a toy backbone on, of people who live in no toy world."""

import random

import numpy as np

from reidlib.data.toy import draw, language, people, shots


def pretraining_pairs(identities: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """`identities` pictures (N, 128, 64, 3) uint8, one a person, with a caption each.

    The people are drawn from the part of all combinations of attributes that `make` never uses, whatever its seed.
    """
    rng = random.Random(f"pre-training {seed}")
    crowd = people.sample(identities, rng, pretraining=True, twins=0.0)
    pictures, captions = np.empty((identities, 128, 64, 3), np.uint8), []
    for n, person in enumerate(crowd):
        shot = shots.sample(rng)
        pictures[n] = np.asarray(draw.photo(person, shot))
        captions.append(language.captions(person, shot, rng)[0])
    return pictures, captions
