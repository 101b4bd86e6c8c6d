"""The toy world's every layout reads, is whole, and has what its notebooks need."""

import pytest

from reidlib.data import check, load, toys
from reidlib.errors import DataError
from reidlib.toyworld import make
from reidlib.toyworld.people import ATTRIBUTES


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("toy") / "world", people=16)


@pytest.mark.parametrize("name", toys)
def test_every_toy_layout_is_whole(world, name):
    data = load(name, world)
    report = check(data)
    assert report.ok, report.problems
    assert len(data.split("train"))
    assert len(data.split("val"))
    assert name == "toy/mals" or len(data.split("test"))
    kinds = {column for column in ("text", "turns", "sketch") if data.table[column].str.len().any()}
    assert kinds == {
        "toy": {"text", "turns", "sketch"},
        "toy/chatpedes": {"turns"},
        "toy/mals": {"text"},
        "toy/interactive-pedes": {"text", "turns"},
    }.get(name, {"text", "sketch"})
    of_people = ("toy/pku-sketch", "toy/market-sketch-1k", "toy/orbench")
    assert data.sketch_of == ("" if "sketch" not in kinds else "person" if name in of_people else "image")
    assert bool(data.protocol) == (name in ("toy/orbench", "toy/interactive-pedes"))


def test_toy_joins_dialogues_and_attributes_of_every_picture(world):
    table = load("toy", world).table
    assert table["turns"].str.len().min() >= 1
    assert all(set(ATTRIBUTES) <= set(words) for words in table["attributes"])
    assert all(isinstance(turn, tuple) and len(turn) == 2 for turns in table["turns"].str[0] for turn in turns)


def test_toy_is_drawn_on_first_use_below_the_data_folder(tmp_path, monkeypatch):
    from reidlib import toyworld

    made = []
    monkeypatch.setattr(toyworld, "make", made.append)
    monkeypatch.setenv("REIDLIB_DATA", str(tmp_path))
    with pytest.raises(DataError, match="CUHK-PEDES"):
        load("toy")
    assert made == [tmp_path / "toy"]
