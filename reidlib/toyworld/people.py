"""Who lives in the toy world: the attributes that words can tell, and people drawn from them."""

import random
import zlib
from dataclasses import dataclass, replace

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "black": (32, 32, 36),
    "white": (238, 238, 234),
    "grey": (136, 138, 142),
    "navy": (34, 44, 92),
    "blue": (58, 108, 198),
    "red": (196, 36, 40),
    "green": (44, 128, 66),
    "yellow": (234, 196, 48),
    "brown": (112, 70, 40),
    "beige": (206, 184, 146),
    "pink": (236, 138, 172),
    "purple": (116, 62, 150),
}
HAIR_COLOURS: dict[str, RGB] = {
    "black": (28, 24, 24),
    "brown": (92, 58, 34),
    "blonde": (222, 186, 104),
    "grey": (168, 168, 168),
    "red": (168, 74, 30),
}
SKINS: tuple[RGB, ...] = ((244, 208, 180), (230, 184, 148), (200, 148, 108), (150, 100, 68), (100, 66, 46))

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "sex": ("man", "woman"),
    "hair": ("short", "long", "ponytail", "bun", "curly", "bald"),
    "hair_colour": ("none", *HAIR_COLOURS),
    "upper": ("t-shirt", "shirt", "jumper", "hoodie", "jacket", "coat"),
    "upper_colour": tuple(COLOURS),
    "upper_pattern": ("plain", "striped", "checked", "spotted", "logo"),
    "lower": ("trousers", "jeans", "shorts", "skirt", "leggings"),
    "lower_colour": tuple(COLOURS),
    "shoes": ("trainers", "boots", "sandals", "shoes"),
    "shoes_colour": ("black", "white", "grey", "blue", "red", "brown", "beige", "pink"),
    "bag": ("none", "backpack", "shoulder bag", "handbag"),
    "bag_colour": ("none", *COLOURS),
    "hat": ("none", "cap", "beanie", "sun hat"),
    "hat_colour": ("none", *COLOURS),
    "carried": ("none", "phone", "umbrella", "cup", "folder", "parcel"),
}

# What goes with what; a key that is absent here goes with everything.
HAIR_OF = {
    "man": ("short", "short", "short", "curly", "long", "bald"),
    "woman": ("long", "long", "ponytail", "bun", "short", "curly"),
}
LOWER_OF = {"man": ("trousers", "jeans", "jeans", "shorts"), "woman": ATTRIBUTES["lower"]}
PATTERN_OF = {
    "t-shirt": ("plain", "striped", "spotted", "logo"),
    "shirt": ("plain", "striped", "checked", "spotted"),
    "jumper": ("plain", "plain", "striped", "logo"),
    "hoodie": ("plain", "plain", "logo"),
    "jacket": ("plain",),
    "coat": ("plain", "plain", "checked"),
}
LOWER_COLOUR_OF = {
    "jeans": ("blue", "blue", "navy", "black", "grey", "white"),
    "trousers": ("black", "black", "grey", "navy", "brown", "beige", "green", "white", "red"),
    "leggings": ("black", "black", "grey", "navy", "purple", "pink", "green"),
}
HAT_OF = {"man": ("cap", "beanie"), "woman": ("cap", "beanie", "sun hat")}
WITH_COAT = ("trousers", "jeans", "leggings")
PRETRAINING_RESIDUE, RESIDUES = 0, 4


@dataclass(frozen=True)
class Person:
    """One identity: the attributes a witness may tell, then what is only drawn."""

    sex: str
    hair: str
    hair_colour: str
    upper: str
    upper_colour: str
    upper_pattern: str
    lower: str
    lower_colour: str
    shoes: str
    shoes_colour: str
    bag: str
    bag_colour: str
    hat: str
    hat_colour: str
    carried: str
    skin: int = 0
    height: float = 1.0
    build: float = 1.0
    shade: float = 0.0

    @property
    def attributes(self) -> dict[str, str]:
        """The keys of ATTRIBUTES and their values, without what is only drawn."""
        return {key: getattr(self, key) for key in ATTRIBUTES}


def for_pretraining(person: Person) -> bool:
    """Whether this combination of attributes is kept for pre-training; such people live in no world."""
    words = "|".join(person.attributes.values())
    return zlib.crc32(words.encode()) % RESIDUES == PRETRAINING_RESIDUE


def fits(person: Person) -> bool:
    """Whether the attributes go together: nothing coloured that is absent, nothing long hidden under a coat."""
    return (
        (person.hair_colour == "none") == (person.hair == "bald")
        and (person.bag_colour == "none") == (person.bag == "none")
        and (person.hat_colour == "none") == (person.hat == "none")
        and person.hair in HAIR_OF[person.sex]
        and person.lower in LOWER_OF[person.sex]
        and (person.upper != "coat" or person.lower in WITH_COAT)
        and person.upper_pattern in PATTERN_OF[person.upper]
        and person.lower_colour in LOWER_COLOUR_OF.get(person.lower, COLOURS)
        and (person.hat == "none" or person.hat in HAT_OF[person.sex])
        and not (person.bag == "handbag" and person.sex == "man")
        and not (person.carried == "umbrella" and person.hat == "sun hat")
    )


def anyone(rng: random.Random) -> Person:
    """A person at random; the attributes fit together, nothing else is promised."""
    pick = rng.choice
    sex = pick(ATTRIBUTES["sex"])
    hair = pick(HAIR_OF[sex])
    upper = pick(ATTRIBUTES["upper"])
    lower = pick(WITH_COAT[: 2 if sex == "man" else 3] if upper == "coat" else LOWER_OF[sex])
    bag = pick(
        ("none", "none", "backpack", "backpack", "shoulder bag", "handbag" if sex == "woman" else "shoulder bag")
    )
    hat = pick(HAT_OF[sex]) if rng.random() < 0.25 else "none"
    carried = pick(ATTRIBUTES["carried"][1:]) if rng.random() < 0.3 else "none"
    return Person(
        sex=sex,
        hair=hair,
        hair_colour="none" if hair == "bald" else pick(tuple(HAIR_COLOURS) + ("black", "brown")),
        upper=upper,
        upper_colour=pick(ATTRIBUTES["upper_colour"]),
        upper_pattern=pick(PATTERN_OF[upper]),
        lower=lower,
        lower_colour=pick(LOWER_COLOUR_OF.get(lower, ATTRIBUTES["lower_colour"])),
        shoes=pick(("trainers", "trainers", "boots", "shoes", "sandals")),
        shoes_colour=pick(ATTRIBUTES["shoes_colour"]),
        bag=bag,
        bag_colour="none" if bag == "none" else pick(ATTRIBUTES["bag_colour"][1:]),
        hat=hat,
        hat_colour="none" if hat == "none" else pick(ATTRIBUTES["hat_colour"][1:]),
        carried="phone" if carried == "umbrella" and hat == "sun hat" else carried,
        skin=rng.randrange(len(SKINS)),
        height=rng.uniform(0.93, 1.05) - (0.03 if sex == "woman" else 0.0),
        build=rng.uniform(0.9, 1.15),
        shade=rng.uniform(-0.12, 0.12),
    )


def near_twin(person: Person, rng: random.Random) -> Person:
    """The same person but for one attribute (never the sex)."""
    while True:
        key = rng.choice(tuple(ATTRIBUTES)[1:])
        twin = replace(person, **{key: rng.choice(ATTRIBUTES[key])})
        if twin != person and fits(twin):
            return twin


def sample(
    n: int,
    rng: random.Random,
    taken: set[tuple[str, ...]] | None = None,
    *,
    pretraining: bool = False,
    twins: float = 0.25,
) -> list[Person]:
    """`n` people of whom no two wear the same; about the share `twins` of them follow their near-twin in the list.

    `taken` holds combinations of attributes already used (and receives the new ones); `pretraining` chooses on which
    side of the partition of all combinations the people lie.
    """
    taken = set() if taken is None else taken
    people: list[Person] = []
    while len(people) < n:
        person = near_twin(people[-1], rng) if people and rng.random() < twins else anyone(rng)
        wears = tuple(person.attributes.values())
        if wears not in taken and for_pretraining(person) == pretraining:
            taken.add(wears)
            people.append(person)
    return people
