"""How a camera meets a person: view, pose, light and what stands in the way, and what can then be seen."""

import random
from dataclasses import dataclass

from reidlib.toyworld.people import Person

VIEWS = ("front", "back", "left", "right")
CAMERAS = ("street", "brick wall", "park", "shop", "station", "square")
OCCLUDERS = ("pole", "car", "bush", "person")


@dataclass(frozen=True)
class Shot:
    """One picture to be taken; with the Person it settles every pixel."""

    camera: int
    view: str
    phase: float  # of the stride, 0 to 1
    swing: float  # how far the limbs swing, about 1
    x: float  # the middle of the body, in pixels of the 64 x 128 picture
    feet: float
    size: float  # height of a person of height 1, in pixels
    light: float
    warmth: float
    blur: float
    occluder: str
    seed: int


def sample(rng: random.Random, camera: int | None = None) -> Shot:
    """A shot by `camera` (0 to 5; any when None)."""
    return Shot(
        camera=rng.randrange(len(CAMERAS)) if camera is None else camera,
        view=rng.choice(VIEWS),
        phase=rng.random(),
        swing=rng.uniform(0.5, 1.2),
        x=rng.uniform(28, 36),
        feet=rng.uniform(119, 125),
        size=rng.uniform(102, 112),
        light=rng.uniform(0.78, 1.1),
        warmth=rng.uniform(-0.07, 0.07),
        blur=max(0.0, rng.uniform(-0.6, 0.6)),
        occluder=rng.choice(OCCLUDERS) if rng.random() < 0.12 else "none",
        seed=rng.getrandbits(32),
    )


def visible(person: Person, shot: Shot) -> dict[str, str]:
    """The attributes that this picture shows; a key that is missing is hidden, "none" was looked for and is not there.

    Two values exist only here: a backpack seen from the front is "straps", a ponytail is "tied back".
    """
    seen = person.attributes
    hidden = set()
    if shot.view == "front":
        seen["bag"] = "straps" if person.bag == "backpack" else person.bag
        seen["hair"] = "tied back" if person.hair == "ponytail" else person.hair
    if person.upper_pattern == "logo" and (shot.view == "back" or person.carried in ("folder", "parcel")):
        hidden |= {"upper_pattern"}
    if shot.view == "back" and person.carried != "umbrella":
        hidden |= {"carried"}
    if person.hat != "none" and person.hair in ("bald", "short"):
        hidden |= {"hair", "hair_colour"}
    if shot.occluder in ("car", "bush"):
        hidden |= {"shoes", "shoes_colour"}
    return {key: value for key, value in seen.items() if key not in hidden}
