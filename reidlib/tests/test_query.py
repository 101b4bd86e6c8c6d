"""Queries of every kind embedded by one call: how parts are read, added, moved by marks, and refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from reidlib import methods
from reidlib.errors import ReidError
from reidlib.query import OPENING, Query
from reidlib.tests.attribute_model import AttributeModel, Composer, Converser, TextOnly, people, picture

PERSON, OTHER = map(picture, people(2))
TURNS = (("What colour: hat?", "a red hat"), ("What colour: shoes?", "blue shoes"))


@pytest.fixture
def model():
    return AttributeModel().eval()


def alone(model, **part):
    return model.embed([Query(**part)])[0]


def test_parts_are_those_given():
    assert Query().parts == Query(text="", turns=[], liked=torch.empty(0, 4)).parts == ()
    assert Query(photo="a.png", text="a man").parts == ("text", "photo")
    assert Query(text="a man", turns=TURNS).as_text == "a man a red hat blue shoes"
    assert Query(text="a man", turns=TURNS).as_turns == [(OPENING, "a man"), *TURNS]


def test_mixed_queries_keep_their_rows(model):
    queries = [
        Query(text="a red hat"),
        Query(sketch=PERSON),
        Query(text="a blue top", sketch=OTHER),
        Query(text="a green hat"),
        Query(photo=OTHER),
        Query(turns=TURNS),
    ]
    together = model.embed(queries)
    for row, query in zip(together, queries, strict=True):
        torch.testing.assert_close(row, model.embed([query])[0])


def test_a_picture_is_a_file_an_image_or_pixels(model, tmp_path):
    PERSON.save(tmp_path / "one.png")
    pixels = torch.tensor(list(PERSON.convert("RGB").tobytes()), dtype=torch.uint8).view(32, 16, 3).permute(2, 0, 1)
    grey = Image.new("L", (40, 90), 200)
    embeddings = [
        alone(model, photo=given) for given in (PERSON, pixels, tmp_path / "one.png", str(tmp_path / "one.png"))
    ]
    for embedding in embeddings:
        torch.testing.assert_close(embedding, model.embed_image(model.pixels([PERSON]))[0])
    assert model.pixels([grey, pixels]).shape == (2, 3, 32, 16)


def test_several_parts_are_unit_vectors_added_at_the_length_of_the_first(model):
    model.embed_text = lambda ids: 3 * AttributeModel.embed_text(model, ids)
    told, drawn = alone(model, text="a red hat"), alone(model, sketch=PERSON)
    expected = 3 * normalize(normalize(told, dim=0) + normalize(drawn, dim=0), dim=0)
    torch.testing.assert_close(alone(model, text="a red hat", sketch=PERSON), expected)
    photographed = normalize(normalize(expected, dim=0) + alone(model, photo=OTHER), dim=0)
    torch.testing.assert_close(alone(model, text="a red hat", sketch=PERSON, photo=OTHER), 3 * photographed)


def test_a_method_composes_in_its_own_way():
    model = Composer().eval()
    ids, drawn = model.tokenize(["a red hat"]), model.pixels([PERSON])
    expected = model.compose({"text": ids, "sketch": drawn})[0]
    torch.testing.assert_close(alone(model, text="a red hat", sketch=PERSON), expected)
    photographed = normalize(expected + alone(model, photo=OTHER), dim=0)
    torch.testing.assert_close(alone(model, text="a red hat", sketch=PERSON, photo=OTHER), photographed)


def test_marks_move_by_rocchio(model):
    told, (good, fine), bad = alone(model, text="a red hat"), torch.rand(2, 24), torch.rand(1, 24)
    units = [normalize(marked, dim=-1) for marked in (good, fine, bad[0])]
    expected = normalize(told, dim=0) + 0.75 * (units[0] + units[1]) / 2 - 0.15 * units[2]
    moved = alone(model, text="a red hat", liked=torch.stack([good, fine]), disliked=bad)
    torch.testing.assert_close(moved, normalize(expected, dim=0) * told.norm())
    torch.testing.assert_close(alone(model, liked=good[None]), units[0])
    torch.testing.assert_close(alone(model, disliked=bad), -units[2])


def test_words_take_the_form_that_a_method_reads(model):
    reader, talker = TextOnly().eval(), Converser().eval()
    torch.testing.assert_close(alone(reader, turns=TURNS), alone(reader, text="a red hat blue shoes"))
    torch.testing.assert_close(alone(talker, text="a red hat"), alone(talker, turns=[(OPENING, "a red hat")]))
    both = alone(talker, text="a man", turns=TURNS)
    torch.testing.assert_close(both, alone(talker, turns=[(OPENING, "a man"), *TURNS]))


def test_what_cannot_be_read_is_one_sentence():
    with pytest.raises(ReidError, match="TextOnly reads text; it cannot read a sketch"):
        alone(TextOnly(), sketch=PERSON)
    drawn = AttributeModel()
    drawn.reads = ("sketch",)
    for part, what in (({"text": "a hat"}, "a text"), ({"turns": TURNS}, "a dialogue")):
        with pytest.raises(ReidError, match=f"Attributes reads sketch; it cannot read {what}"):
            alone(drawn, **part)
    with pytest.raises(ReidError, match="The query is empty"):
        alone(TextOnly())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pictures_are_resized_as_the_settings_say(model, interpolation):
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(90, 40, 3), dtype=np.uint8))
    model.config.interpolation = interpolation
    own = picture.resize((16, 32), getattr(Image.Resampling, interpolation.upper()))
    assert (model.resized(picture).permute(1, 2, 0).numpy() == np.asarray(own)).all()


def test_the_papers_pictures_are_resized_as_their_code_does():
    names = ("clip", "cffa", "interactreid-1", "interactreid", "diana-1", "diana")
    assert {methods.config_class(name).preset("paper").interpolation for name in names} == {"bilinear"}
    assert methods.config_class("cfine").preset("paper").interpolation == ""  # bicubic, as the backbone has it
