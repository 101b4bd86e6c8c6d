"""A folder of one's own with metadata.csv or metadata.jsonl reads, or says in a sentence which row is wrong and how."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reidlib.data import check, load, write_folder
from reidlib.errors import DataError
from reidlib.tests.test_readers import draw, write
from reidlib.tests.test_readers_faults import JSON, RELAXED, reads_or_says

PEOPLE = """file_name,caption,caption_2,pid,camid,split,sketch_file_name,coat
photos/1.png,"A man, in red",tall man,anna,front,train,drawn/1.png,red
photos/2.png,a man,,anna,back,train,,
photos/3.png,a woman,,ben,front,train,,blue
photos/4.png,somebody,,cleo,front,test,drawn/4.png,
photos/5.png,,,-1,back,test,,
"""


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_a_csv_file_with_everything(tmp_path):
    write(tmp_path / "metadata.csv", PEOPLE)
    draw(tmp_path, *(f"photos/{n}.png" for n in range(1, 6)), "drawn/1.png", "drawn/4.png")
    data = load("folder", tmp_path)
    rows = data.table.set_index("image")
    assert rows["pid"].tolist() == [0, 0, 1, 2, -1] and rows["camid"].tolist() == [0, 1, 0, 0, 1]
    assert rows["text"].tolist() == [["A man, in red", "tall man"], ["a man"], ["a woman"], ["somebody"], []]
    assert rows["sketch"]["photos/4.png"] == ["drawn/4.png"] and data.sketch_of == "image"
    assert rows["attributes"].tolist() == [{"coat": "red"}, {}, {"coat": "blue"}, {}, {}]
    assert (rows["split"] == "val").sum() in (1, 2)  # of the two people in train, one is held out
    report = check(data)
    assert report.ok and not report.notes
    assert report.counts.loc["test"].to_dict() == {
        "identities": 1, "pictures": 2, "captions": 1, "dialogues": 0, "sketches": 1
    }  # fmt: skip


def test_json_lines_with_lists_and_dialogues(tmp_path):
    talk = [["hat?", "no"], ["coat?", "red"]]
    write(
        tmp_path / "metadata.jsonl",
        lines(
            {"file_name": "1.png", "captions": ["a", "b"], "pid": 7, "dialogue": talk, "attributes": {"hat": "none"}},
            {"file_name": "2.png", "text": "c", "pid": 9, "dialogue": [talk, talk[:1]], "age": 30},
            {"file_name": "3.png", "text": None},
        ),
    )
    draw(tmp_path, "1.png", "2.png", "3.png")
    data = load("folder", tmp_path)
    assert data.table["pid"].tolist() == [7, 9, 10]
    assert data.table["text"].tolist() == [["a", "b"], ["c"], []]
    pairs = [tuple(turn) for turn in talk]
    assert data.table["turns"].tolist() == [[pairs], [pairs, pairs[:1]], []]
    assert data.table["attributes"].tolist() == [{"hat": "none"}, {"age": "30"}, {}]
    assert set(data.table["split"]) == {"test"} and "without a split, so all is test" in data.found


def test_metadata_in_the_folders_of_the_splits(tmp_path):
    for split in ("train", "validation", "test"):
        write(tmp_path / split / "metadata.csv", "file_name,text,pid\n1.png,a man,1\n")
        draw(tmp_path, f"{split}/1.png")
    data = load("folder", tmp_path)
    assert sorted(data.table["image"]) == ["test/1.png", "train/1.png", "validation/1.png"]
    assert set(data.table["split"]) == {"train", "val", "test"}
    assert check(data).problems == ["Identities in more than one split: 1 (1)."]


def test_a_sketch_named_twice_is_the_person_s(tmp_path):
    write(
        tmp_path / "metadata.csv",
        "file_name,text,pid,sketch\n1.png,a,1,s.png\n2.png,b,1,s.png\n3.png,c,1,\n4.png,d,2,t.png\n",
    )
    draw(tmp_path, *(f"{name}.png" for name in "1234st"))
    data = load("folder", tmp_path)
    assert data.sketch_of == "person"
    assert data.table["sketch"].tolist() == [["s.png"]] * 3 + [["t.png"]]
    assert data.table["text"].tolist() == [["a"], ["b"], ["c"], ["d"]]


def test_what_is_missing_repeated_or_without_a_row_is_told(tmp_path):
    write(
        tmp_path / "metadata.csv",
        "file_name,text,sketch\n1.png,a man,\n2.png,gone,\n1.png,a man,\n1.png,once more,\n3.png,c,none.png\n",
    )
    draw(tmp_path, "1.png", "3.png", "4.png")
    with pytest.warns(UserWarning, match="line 3: the picture '2.png' is not there"):
        data = load("folder", tmp_path)
    assert data.table["image"].tolist() == ["1.png", "3.png"]
    assert data.table["text"].tolist() == [["a man", "once more"], ["c"]]
    report = check(data)
    assert len(report.problems) == 2 and "line 6: the sketch 'none.png' is not there" in " ".join(report.problems)
    assert any("repeat another" in note and "line 4" in note for note in report.notes)
    assert any("without a row" in note and "'4.png'" in note for note in report.notes)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"file_name": "../1.png"}, "leaves its folder"),
        ({"file_name": "/1.png"}, "leaves its folder"),
        ({"file_name": "1.png", "sketch": "../../x.png"}, "leaves its folder"),
        ({"file_name": ""}, "text with words"),
        ({"image": "1.png"}, "the key 'file_name'"),
        ({"file_name": "1.png", "split": "query9"}, "'split' to be train, val or test"),
        ({"file_name": "1.png", "pid": 1.5}, "'pid' to be a number or a name"),
        ({"file_name": "1.png", "pid": -2}, "'pid' to be a whole number from -1"),
        ({"file_name": "1.png", "pid": True}, "'pid'"),
        ({"file_name": "1.png", "caption": 3}, "'caption' to be a text or texts"),
        ({"file_name": "1.png", "caption": [["a"]]}, "'caption' to be a text or texts"),
        ({"file_name": "1.png", "dialogue": [["hat?"]]}, "'dialogue' to be a list of"),
        ({"file_name": "1.png", "dialogue": "hat?"}, "expected JSON"),
        ({"file_name": "1.png", "attributes": ["red"]}, "'attributes' to be named values"),
        ({"file_name": "1.png", "coat": ["red"]}, "'coat' to be a text or a number"),
    ],
)
def test_wrong_rows_name_the_file_and_the_line(tmp_path, row, says):
    write(tmp_path / "metadata.jsonl", lines({"file_name": "0.png"}, row))
    draw(tmp_path, "0.png", "1.png")
    with pytest.raises(DataError, match=f"metadata.jsonl, line 2: .*{says}"):
        load("folder", tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "a heading of different columns with file_name"),
        ("name,text\na.png,b\n", "a heading of different columns with file_name"),
        ("file_name,text,text\n", "a heading of different columns"),
        ("file_name,text\n", "at least one row"),
        ("file_name,text\n1.png,a,b\n", "line 2: expected 2 values"),
        ("file_name,text\n1.png\n", "line 2: expected 2 values"),
        ('file_name,text\n1.png,"a\n', "comma-separated values"),
        ("file_name,text\n1.png," + "x" * 200_000, "comma-separated values"),
        ('file_name,dialogue\n1.png,"' + "[" * 100_000 + '"\n', "line 2: .*nested too deep"),
    ],
)
def test_wrong_csv_files(tmp_path, content, says):
    write(tmp_path / "metadata.csv", content)
    draw(tmp_path, "1.png")
    with pytest.raises(DataError, match=f"metadata.csv.*{says}"):
        load("folder", tmp_path)


def test_one_kind_of_metadata(tmp_path):
    draw(tmp_path, "1.png")
    (tmp_path / "metadata.parquet").touch()
    with pytest.raises(DataError, match="metadata.parquet is not read"):
        load("folder", tmp_path)
    write(tmp_path / "metadata.csv", "file_name\n1.png\n")
    assert load("folder", tmp_path).table["text"].tolist() == [[]]
    write(tmp_path / "metadata.jsonl", "")
    with pytest.raises(DataError, match="found both"):
        load("folder", tmp_path)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.parquet").unlink()
    (tmp_path / "metadata.csv").mkdir()
    assert load("folder", tmp_path).found.startswith("a folder of pictures")


@RELAXED
@given(
    record=st.dictionaries(
        st.sampled_from(["file_name", "pid", "camid", "split", "caption", "sketch", "dialogue", "attributes", "coat"]),
        JSON,
    )
)
def test_any_row_reads_or_says_why(tmp_path, record):
    write(tmp_path / "metadata.jsonl", lines({"file_name": "a.png"}, record))
    reads_or_says("folder", tmp_path)


def test_market_names_with_the_benchmark_s_folders(tmp_path):
    draw(
        tmp_path,
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0007_c2s1_000451_03.jpg",
        "bounding_box_test/0000_c1s1_000451_03.jpg",
        "bounding_box_test/-1_c1s1_000451_03.jpg",
        "bounding_box_test/0003_c4s1_000451_03.jpg",
        "query/0003_c1s1_000451_00.jpg",
        "gt_bbox/0003_c1s1_000451_00.jpg",
    )
    data = load("folder", tmp_path)
    test = data.split("test").set_index("image")
    assert test["pid"].to_dict() == {
        "bounding_box_test/0000_c1s1_000451_03.jpg": -1,
        "bounding_box_test/0003_c4s1_000451_03.jpg": 3,
        "query/0003_c1s1_000451_00.jpg": 3,
    }
    assert set(data.table["split"]) == {"train", "val", "test"}
    assert "junk left out: 1" in data.found and "distractors: 1" in data.found
    assert check(data).ok and check(data).counts.loc["test", "identities"] == 1


def test_what_was_written_reads_as_it_was(tmp_path, toy_root):
    data = load("toy", toy_root)
    data.table = data.table[data.table["pid"].isin(data.table["pid"].unique()[:3])].reset_index(drop=True)
    write_folder(data, tmp_path / "own")
    again = load("folder", tmp_path / "own")
    assert check(again).ok and again.sketch_of == data.sketch_of
    columns = ["pid", "image", "camid", "text", "turns", "sketch", "attributes"]
    assert again.table[columns].equals(data.table[columns])


def test_broken_pictures_are_left_out_with_one_warning(tmp_path):
    draw(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "2.png").write_text("words")
    data = load("folder", tmp_path)
    report = check(data)
    with pytest.warns(UserWarning, match="that cannot be read and are left out: 1. .*2.png"):
        data.leave_out(report.unreadable)
    assert data.table["image"].tolist() == ["1.png", "3.png"] and data.table.index.tolist() == [0, 1]
    assert check(data).problems == list(report.unreadable.values())
    with pytest.raises(DataError, match="None of the 2 pictures"):
        data.leave_out({"1.png": "One.", "3.png": "Three."})


def test_what_a_notebook_cannot_do_without(tmp_path):
    write(tmp_path / "metadata.csv", "file_name,text,pid,split\n1.png,a,1,train\n2.png,,2,test\n")
    draw(tmp_path, "1.png", "2.png")
    data = load("folder", tmp_path)
    data.require("text")
    data.require("text|turns", splits=["train"])
    for parts, splits, says in (
        (["sketch"], [], "needs sketches, and folder at .* has none;"),
        (["text"], ["test"], "needs captions, .* in its test split"),
        (["sketch|turns"], [], "needs sketches or dialogues"),
        ([], ["val"], "needs a val split"),
    ):
        with pytest.raises(DataError, match=says):
            data.require(*parts, splits=splits)
