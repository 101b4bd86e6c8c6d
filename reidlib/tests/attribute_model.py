"""A method that needs no training: it sees the colours of small drawn people and looks for words about them."""

import random
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from reidlib.methods.base import Method
from reidlib.retrieval import Gallery, Question

COLOURS = {
    "black": (20, 20, 20),
    "white": (245, 245, 245),
    "red": (200, 30, 30),
    "green": (30, 140, 60),
    "blue": (40, 80, 200),
    "yellow": (240, 210, 40),
}
# The part of the picture (rows of 32) that shows each thing, and its word.
PARTS = {"hat": (0, 8), "top": (8, 16), "trousers": (16, 26), "shoes": (26, 32)}
ATTRIBUTES = {f"{part}_colour": tuple(COLOURS) for part in PARTS}
QUESTIONS = [
    Question(f"{p}_colour", f"What colour: {p}?", tuple(COLOURS), tuple(f"a {c} {p}" for c in COLOURS), (p,))
    for p in PARTS
]
WORDS = [*COLOURS, *PARTS]
PAIRS = [(colour, part) for part in PARTS for colour in COLOURS]
LENGTH = 24


class AttributeModel(Method):
    """Embeddings (B, 24) indicate a colour for each part; a text does where the colour stands before the part."""

    name = "Attributes"
    reads = ("text", "sketch")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(image_size=(32, 16), precision="fp32")
        self.register_parameter("palette", torch.nn.Parameter(torch.tensor(list(COLOURS.values())) / 255))
        self._passes = 0

    @property
    def passes(self) -> int:
        """How often a text was embedded."""
        return self._passes

    def tokenize(self, texts: list[str]) -> Tensor:
        ids = torch.zeros(len(texts), LENGTH, dtype=torch.long)
        for row, text in enumerate(texts):
            words = re.findall(r"[a-z]+", text.lower())[:LENGTH]
            ids[row, : len(words)] = torch.tensor([WORDS.index(w) + 2 if w in WORDS else 1 for w in words])
        return ids

    def embed_image(self, images: Tensor) -> Tensor:
        bands = torch.stack([images[:, :, a + 2 : b - 2, 4:12].mean((2, 3)) for a, b in PARTS.values()], 1)
        nearest = torch.cdist(bands, self.palette.expand(len(bands), -1, -1)).argmin(2)
        return F.normalize(F.one_hot(nearest, len(COLOURS)).flatten(1).float(), dim=1)

    embed_sketch = embed_image

    def embed_text(self, ids: Tensor) -> Tensor:
        self._passes += 1
        wanted = torch.tensor([[WORDS.index(colour) + 2, WORDS.index(part) + 2] for colour, part in PAIRS])
        steps = torch.stack([ids[:, :-1], ids[:, 1:]], 2)
        found = (steps[:, :, None] == wanted).all(3).any(1)
        return F.normalize(found.float() + 1e-3, dim=1)


class Converser(AttributeModel):
    """The same, for dialogues only."""

    name = "Converser"
    reads = ("turns",)

    def tokenize_turns(self, dialogues: list[list[tuple[str, str]]]) -> Tensor:
        return self.tokenize([" ".join(f"{q} {a}" for q, a in turns) for turns in dialogues])

    embed_turns = AttributeModel.embed_text


class Composer(AttributeModel):
    """The same, that makes one query of a sketch and a sentence."""

    name = "Composer"

    def compose(self, parts: dict[str, Tensor]) -> Tensor:
        return F.normalize(self.embed_sketch(parts["sketch"]) * 0.1 + self.embed_text(parts["text"]), dim=1)


class TextOnly(AttributeModel):
    name = "TextOnly"
    reads = ("text",)


def people(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Attributes of people of whom no two are alike."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        person = {key: rng.choice(values) for key, values in ATTRIBUTES.items()}
        found.setdefault(tuple(person.values()), person)
    return list(found.values())


def picture(person: dict[str, str], size: tuple[int, int] = (16, 32)) -> Image.Image:
    image = Image.new("RGB", size, (128, 128, 128))
    draw = ImageDraw.Draw(image)
    for (first, last), colour in zip(PARTS.values(), person.values(), strict=True):
        top, bottom = first * size[1] // 32, last * size[1] // 32 - 1
        draw.rectangle([size[0] // 8, top, size[0] - size[0] // 8 - 1, bottom], COLOURS[colour])
    return image


def caption(person: dict[str, str]) -> str:
    worn = zip(PARTS, person.values(), strict=True)
    return "Someone with " + ", ".join(f"a {colour} {part}" for part, colour in worn)


def draw_table(root: Path, count: int, seed: int = 0, size: tuple[int, int] = (16, 32)) -> pd.DataFrame:
    """Draws `count` people below `root` and returns their table."""
    rows = []
    for pid, person in enumerate(people(count, seed)):
        image = f"people/{pid:05}.png"
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        picture(person, size).save(root / image)
        rows.append({"image": image, "pid": pid, "attributes": person, "text": [caption(person)]})
    return pd.DataFrame(rows)


def make_gallery(root: Path, count: int = 60, seed: int = 0, size: tuple[int, int] = (16, 32)) -> Gallery:
    """A gallery that any of the models above may search."""
    gallery = Gallery.encode(AttributeModel(), draw_table(root, count, seed, size), root)
    return Gallery(gallery.index, gallery.root)
