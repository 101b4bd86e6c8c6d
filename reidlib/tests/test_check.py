"""The check finds what was broken on purpose, and says nothing of a data set that is whole."""

import sys

import pytest

from reidlib.data import check, load
from reidlib.data.table import PersonData, absent, make_table
from reidlib.tests.test_readers import draw, pku, record, write


def toy_set(root, records):
    write(root / "data_captions.json", records)
    draw(root, *(f"imgs/{r['file_path']}" for r in records))
    return root


def published(monkeypatch, name, **counts):
    monkeypatch.setattr(sys.modules["reidlib.data.check"], "published", {name: counts}.get)


WHOLE = [record(p, f"{p}.png", s, [f"person {p}", f"one {p}"]) for p, s in enumerate(("train", "train", "val", "test"))]


def test_a_whole_data_set_is_ok(tmp_path, monkeypatch):
    published(monkeypatch, "rstpreid", train={"identities": 2, "captions": 4}, val={})
    report = check(load("rstpreid", toy_set(tmp_path, WHOLE)))
    assert report.ok
    assert report.problems == report.notes == []
    assert report.counts.loc["train"].to_dict() == {
        "identities": 2, "pictures": 2, "captions": 4, "dialogues": 0, "sketches": 0
    }  # fmt: skip
    assert "2 (2)" in str(report)
    assert str(report).endswith("whole")


def test_counts_that_differ_from_the_published_ones(tmp_path):
    report = check(load("rstpreid", toy_set(tmp_path, WHOLE)))
    assert "train has 2 identities, published are 3,701." in report.problems
    assert "2 (3,701)" in str(report)


def test_a_held_out_val_counts_as_training_when_none_is_published(tmp_path, monkeypatch):
    published(monkeypatch, "pku-sketch", train={"identities": 4, "pictures": 8, "sketches": 4}, all={"captions": 2})
    pku(tmp_path)
    write(tmp_path / "TriReID.txt", "1/a.jpg@a man\n1/b.jpg@a tall man\n")
    report = check(load("pku-sketch", tmp_path, trial=2))
    assert report.ok, report.problems
    assert report.counts.loc["train + val", "pictures"] == 8


def test_missing_and_truncated_pictures(tmp_path, monkeypatch):
    published(monkeypatch, "rstpreid")
    data = load("rstpreid", toy_set(tmp_path, WHOLE))
    (tmp_path / "imgs/0.png").unlink()
    picture = tmp_path / "imgs/1.png"
    picture.write_bytes(picture.read_bytes()[:-30])
    (tmp_path / "imgs/2.png").write_bytes(b"")
    report = check(data)
    assert report.missing == ["imgs/0.png"]
    assert ["1.png" in report.unreadable["imgs/1.png"], "2.png" in report.unreadable["imgs/2.png"]] == [True, True]
    assert len(report.problems) == 3
    assert check(data, decode=False).unreadable == {}


def test_a_missing_sketch_is_found(tmp_path, monkeypatch):
    published(monkeypatch, "rstpreid")
    draw(tmp_path, *(f"imgs-sketch/{p}.png" for p in range(4)))
    data = load("rstpreid", toy_set(tmp_path, WHOLE))
    (tmp_path / "imgs-sketch/3.png").unlink()
    assert check(data).missing == ["imgs-sketch/3.png"]


def test_identities_in_two_splits(tmp_path, monkeypatch):
    published(monkeypatch, "rstpreid")
    report = check(load("rstpreid", toy_set(tmp_path, [*WHOLE, record(1, "x.png", "test", ["someone"])])))
    assert report.shared_pids == [1]
    assert report.problems == ["Identities in more than one split: 1 (1)."]


def test_captions_duplicated_or_without_a_word(tmp_path, monkeypatch):
    published(monkeypatch, "rstpreid")
    records = [record(1, "1.png", captions=["A  man ", "same", "..."]), record(2, "2.png", captions=["a man", "same"])]
    records.append(record(2, "3.png", captions=["same", "unlike"]))
    report = check(load("rstpreid", toy_set(tmp_path, records)))
    assert report.duplicated == {"same": 3, "a man": 2}
    assert report.problems == ["Captions empty after cleaning: 1 ('...')."]
    assert "more than once: 2, 2 of them for different people" in report.notes[0]


def test_absent_lists_each_folder_once(tmp_path, monkeypatch):
    draw(tmp_path, "a/1.png", "a/2.png")
    from reidlib.data import table

    listed = []
    real = table.os.listdir
    monkeypatch.setattr(table.os, "listdir", lambda folder: listed.append(folder) or real(folder))
    assert absent(tmp_path, ["a/1.png", "a/3.png", "a/2.png", "b/1.png"]) == ["a/3.png", "b/1.png"]
    assert len(listed) == 2


@pytest.mark.parametrize("sketch_of", ["", "person"])
def test_captions_of_a_person_are_counted_once(tmp_path, sketch_of):
    rows = [{"split": "test", "pid": 1, "image": f"{k}.png", "text": ["a man"]} for k in range(3)]
    data = PersonData("folder", tmp_path, make_table(rows, "rows"), "", sketch_of)
    assert check(data, decode=False).counts.loc["test", "captions"] == (1 if sketch_of else 3)
