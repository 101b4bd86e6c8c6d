"""Whatever is wrong with a file, the reader says so in one DataError and nothing else escapes."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reidlib.data import load
from reidlib.errors import DataError
from reidlib.tests.test_readers import market_mat, pku, record, turns, write

GOOD = record(1, "A/1.png")
CHAT = {"id": 1, "file_path": "1.png", "chats": turns(("who?", "a man"))}


def broken(**changes):
    return [record(7, "A/7.png"), GOOD | changes]


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ({"images": []}, "expected a list of records"),
        ([], "at least one picture"),
        ([GOOD, 3], "record 1 .*named fields"),
        (broken(id=-1), "record 1 .*'id'"),
        (broken(id=True), "'id'"),
        (broken(id=1.0), "'id'"),
        (broken(id="1"), "'id'"),
        (broken(id=2**40), "'id'"),
        (broken(captions=[]), "'captions'"),
        (broken(captions="a man"), "'captions'"),
        (broken(captions=["a man", " \n"]), "every text of 'captions'"),
        (broken(captions=[None]), "every text of 'captions'"),
        (broken(captions=["\ud800"]), "surrogate"),
        (broken(captions_bt=["one"]), "'captions_bt'"),
        (broken(captions_bt=[1, 2]), "'captions_bt'"),
        (broken(split="training"), "'split' to be train, val, test"),
        (broken(split=["train"]), "'split'"),
        (broken(file_path="../../etc/passwd"), "record 1 .*leaves its folder"),
        (broken(file_path="/etc/passwd"), "leaves its folder"),
        (broken(file_path="..\\x.png"), "leaves its folder"),
        (broken(file_path="a\0.png"), "null"),
        (broken(file_path=""), "path"),
        (broken(file_path="A/7.png"), "'imgs/A/7.png' has the pid 7 in one record and 1"),
        ([GOOD, GOOD | {"split": "test"}], "has the split 'train' in one record and 'test'"),
        ([{k: v for k, v in GOOD.items() if k != "id"}], "the key 'id'"),
        ([{k: v for k, v in GOOD.items() if k != "file_path"}], "the key 'file_path' or 'img_path'"),
        ([{k: v for k, v in GOOD.items() if k != "split"}], "the key 'split'"),
        ([{k: v for k, v in GOOD.items() if k != "captions"}], "the key 'captions'"),
    ],
)
def test_wrong_records(tmp_path, records, says):
    write(tmp_path / "reid_raw.json", records)
    with pytest.raises(DataError, match=says) as error:
        load("cuhk-pedes", tmp_path, pictures=False)
    assert "reid_raw.json" in str(error.value)


@pytest.mark.parametrize(
    ("chats", "says"),
    [
        ([], "'chats'"),
        ([[]], "'chats'"),
        ("hello", "'chats'"),
        ({"0": 1}, "'chats'"),
        ([turns(("q", "a")), []], "at least one turn"),
        ([[{"from": "gpt", "value": "q"}]], "a question and an answer"),
        ([[{"from": "user", "value": "a"}, {"from": "gpt", "value": "q"}]], "'gpt' and then 'user'"),
        ([[{"from": "gpt", "value": "q"}, {"from": "user"}]], "the key 'value'"),
        (turns(("q", " ")), "'value'"),
        (turns(("q", 3)), "'value'"),
    ],
)
def test_wrong_chats(tmp_path, chats, says):
    write(tmp_path / "train_reid.json", [CHAT | {"chats": chats}])
    with pytest.raises(DataError, match=f"record 0.*{says}"):
        load("chatpedes", tmp_path, pictures=False)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1"),
        (b'[{"id": 1}', "expected JSON"),
        (b'[{"a": "' + b"x" * 90 + b"\xe9", "byte 98"),
        ("[]".encode("utf-16"), "byte 0"),
        (b"[" * 200_000, "nested too deep"),
        (b"[" + b"9" * 5000 + b"]", "ordinary size"),
        (b"NaN", "list of records"),
    ],
)
def test_wrong_bytes(tmp_path, content, says):
    (tmp_path / "reid_raw.json").write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        load("cuhk-pedes", tmp_path, pictures=False)
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_no_annotation_file(tmp_path):
    with pytest.raises(DataError, match="expected an annotation file"):
        load("rstpreid", tmp_path)
    with pytest.raises(DataError, match="image_id"):
        load("mals", tmp_path)
    with pytest.raises(DataError, match="photo/train"):
        load("market-sketch-1k", tmp_path)
    with pytest.raises(DataError, match="at least one picture"):
        load("folder", tmp_path)
    with pytest.raises(DataError, match="No such file"):
        load("pku-sketch", tmp_path)


@pytest.mark.parametrize(
    "line", ["sketch/1.jpg 1 0", "a b c d e", "sketch/1.jpg x 0 1", "../1.jpg 1 0 1", "s.jpg -1 0 1"]
)
def test_wrong_idx_line(tmp_path, line):
    pku(tmp_path)
    write(tmp_path / "idx/test_sketch_2.txt", f"sketch/5.jpg 5 0 1\n{line}\n")
    with pytest.raises(DataError, match="test_sketch_2.txt, line 2: "):
        load("pku-sketch", tmp_path, trial=2)


@pytest.mark.parametrize("line", ["1/a.jpg a man", "man/1@text", "1/a.jpg@  ", "@"])
def test_wrong_pku_caption(tmp_path, line):
    pku(tmp_path)
    write(tmp_path / "TriReID.txt", line)
    with pytest.raises(DataError, match="TriReID.txt, line 1: "):
        load("pku-sketch", tmp_path, trial=2)


def test_wrong_mat(tmp_path):
    from scipy.io import savemat

    draw_to = tmp_path / "photo/train/0001.jpg"
    draw_to.parent.mkdir(parents=True)
    draw_to.touch()
    path = tmp_path / "market_attribute.mat"
    market_mat(path, [1, 2])
    whole = path.read_bytes()
    for write_bad in (
        lambda: path.write_bytes(b"not a mat file"),
        lambda: path.write_bytes(whole[:-200]),
        lambda: savemat(path, {"other": 1}),
        lambda: savemat(path, {"market_attribute": {"train": {"gender": 1}, "test": {}}}),
    ):
        write_bad()
        with pytest.raises(DataError, match="market_attribute.mat: expected the struct"):
            load("market-sketch-1k", tmp_path)


def test_a_picture_without_an_identity_in_its_name(tmp_path):
    (tmp_path / "photo/train").mkdir(parents=True)
    (tmp_path / "photo/train/x.jpg").touch()
    with pytest.raises(DataError, match="four-digit identity"):
        load("market-sketch-1k", tmp_path)


KEYS = ["id", "file_path", "captions", "chats", "from", "value", "image", "image_id", "caption", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
RELAXED = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reads_or_says(name, root):
    """True when `root` reads; a DataError of one line is the only other outcome allowed."""
    try:
        table = load(name, root, pictures=False).table
    except DataError as error:
        assert "\n" not in str(error)
        return False
    assert len(table)
    assert (table["pid"] >= 0).all()
    assert set(table["split"]) <= {"train", "val", "test"}
    return True


@RELAXED
@given(records=JSON)
@pytest.mark.parametrize(
    ("name", "file"), [("cuhk-pedes", "reid_raw.json"), ("chatpedes", "train_reid.json"), ("mals", "all.jsonl")]
)
def test_any_json_reads_or_says_why(tmp_path, name, file, records):
    write(tmp_path / file, json.dumps(records))
    reads_or_says(name, tmp_path)


@RELAXED
@given(data=st.data())
def test_one_changed_value_reads_or_says_why(tmp_path, data):
    records = [dict(GOOD), record(2, "A/2.png", "test"), record(3, "A/3.png", "val", captions_bt=["x", "y"])]
    records[1]["chats"] = turns(("who?", "a man"))
    target = data.draw(st.sampled_from(records))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JSON)
    write(tmp_path / "reid_raw.json", records)
    reads_or_says("cuhk-pedes", tmp_path)


@RELAXED
@given(data=st.data())
def test_changed_bytes_read_or_say_why(tmp_path, data):
    content = bytearray(json.dumps([GOOD, record(2, "A/2.png", "test")]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "reid_raw.json").write_bytes(content)
    reads_or_says("cuhk-pedes", tmp_path)


@RELAXED
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_idx_and_caption_lines_read_or_say_why(tmp_path, text):
    for name in ("train_visible", "test_visible", "train_sketch", "test_sketch"):
        write(tmp_path / f"idx/{name}_1.txt", "photo/1.jpg 1 03 0\n" if name == "train_visible" else text)
    write(tmp_path / "TriReID.txt", text)
    reads_or_says("pku-sketch", tmp_path)
