"""Every layout, written small into a temporary folder, reads into the one table."""

import json

import numpy as np
import pytest
from PIL import Image

from reidlib.data import load, names
from reidlib.data.folders import market_sentences
from reidlib.data.table import COLUMNS
from reidlib.errors import ConfigError, DataError


def record(pid, path, split="train", captions=("a man in red", "a tall man"), **more):
    return {"id": pid, "file_path": path, "captions": list(captions), "split": split, **more}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path.parent


def draw(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8), "red").save(root / path)


def turns(*pairs):
    return [[{"from": "gpt", "value": q}, {"from": "user", "value": a}] for q, a in pairs]


RECORDS = [record(1, "A/1.png"), record(2, "A/2.png", "val"), record(3, "B/3.png", "test", ["only one"])]


@pytest.mark.parametrize("name", ["reid_raw.json", "caption_all.json", "reid_raw.part.json", "data_captions.json"])
@pytest.mark.parametrize("folder", ["imgs/", "imgs00/", ""])
def test_records_in_every_place(tmp_path, name, folder):
    write(tmp_path / name, RECORDS)
    draw(tmp_path, *(folder + r["file_path"] for r in RECORDS))
    data = load("cuhk-pedes", tmp_path)
    assert tuple(data.table.columns) == COLUMNS
    assert data.table["image"].tolist() == [folder + "A/1.png", folder + "A/2.png", folder + "B/3.png"]
    assert data.table["pid"].tolist() == [1, 2, 3]
    assert data.table["text"].tolist() == [["a man in red", "a tall man"]] * 2 + [["only one"]]
    assert data.split("test").index.tolist() == [0]
    assert data.sketch_of == ""
    assert "held out" not in data.found
    assert name in data.found


def test_split_files_in_either_folder(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b" / "processed_data"):
        for r in RECORDS:
            write(folder / f"{r['split']}_reid.json", [{k: v for k, v in r.items() if k != "split"}])
    for root in (tmp_path / "a", tmp_path / "b"):
        table = load("cuhk-pedes", root, pictures=False).table
        assert table["split"].tolist() == ["train", "val", "test"]


def test_a_split_file_that_contradicts_its_records(tmp_path):
    write(tmp_path / "train_reid.json", [record(1, "1.png", "test")])
    with pytest.raises(DataError, match="record 0.*'split' to be train"):
        load("cuhk-pedes", tmp_path, pictures=False)


def test_rstpreid_names_the_path_img_path_and_windows_separators_are_read(tmp_path):
    row = record(0, "x")
    row["img_path"] = "a\\b.jpg"
    del row["file_path"]
    write(tmp_path / "data_captions.json", [row])
    assert load("rstpreid", tmp_path, pictures=False).table["image"].tolist() == ["imgs/a/b.jpg"]


def test_byte_order_mark_is_accepted(tmp_path):
    (tmp_path / "reid_raw.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(RECORDS).encode())
    assert len(load("cuhk-pedes", tmp_path, pictures=False).table) == 3


def test_val_is_held_out_by_identity_and_the_same_each_time(tmp_path):
    rows = [record(pid, f"{pid}_{k}.png") for pid in range(40) for k in range(2)] + [record(99, "t.png", "test")]
    write(tmp_path / "ICFG_PEDES.json", rows)
    data = load("icfg-pedes", tmp_path, pictures=False)
    val, train = set(data.split("val")["pid"]), set(data.split("train")["pid"])
    assert len(val) == 4
    assert len(train) == 36
    assert not val & train
    assert len(data.split("val")) == 8
    assert "4 training identities is held out as val" in data.found
    assert data.table.equals(load("icfg-pedes", tmp_path, pictures=False).table)


def test_at_least_one_identity_is_held_out(tmp_path):
    write(tmp_path / "ICFG-PEDES.json", [record(1, "1.png"), record(2, "2.png")])
    data = load("icfg-pedes", tmp_path, pictures=False)
    assert sorted(data.table["split"]) == ["train", "val"]


def test_records_of_one_picture_become_one_row(tmp_path):
    rows = [record(1, "1.png", captions=["a"]), record(1, "./1.png", captions=["b"], captions_bt=["B"])]
    write(tmp_path / "reid_raw.json", rows)
    (row,) = load("cuhk-pedes", tmp_path, pictures=False).table.to_dict("records")
    assert row["text"] == ["a", "b"]
    assert row["text_bt"] == ["a", "B"]


def test_a_blank_back_translation_is_the_caption(tmp_path):
    write(tmp_path / "reid_raw.json", [record(1, "1.png", captions_bt=["", "big man"]), record(2, "2.png")])
    table = load("cuhk-pedes", tmp_path, pictures=False).table
    assert table["text_bt"].tolist() == [["a man in red", "big man"], []]


def test_sketches_lie_beside_the_pictures_and_only_the_leading_folder_changes(tmp_path):
    rows = [record(1, "imgs/1.png"), record(2, "imgs/2.png", "val")]
    write(tmp_path / "reid_raw.json", rows)
    draw(tmp_path, "imgs/imgs/1.png", "imgs/imgs/2.png", "imgs-sketch/imgs/1.png")
    data = load("cuhk-pedes", tmp_path)
    assert data.table["image"].tolist() == ["imgs/imgs/1.png", "imgs/imgs/2.png"]
    assert data.table["sketch"].tolist() == [["imgs-sketch/imgs/1.png"], []]
    assert data.sketch_of == "image"
    assert "pictures without a sketch: 1" in data.found


def test_missing_pictures_are_told_but_not_fatal_unless_all_are(tmp_path):
    write(tmp_path / "reid_raw.json", RECORDS)
    with pytest.raises(DataError, match="expected the pictures in imgs/"):
        load("cuhk-pedes", tmp_path)
    draw(tmp_path, "imgs/A/1.png")
    assert "pictures missing: 2" in load("cuhk-pedes", tmp_path).found
    (tmp_path / "imgs/A/1.png").unlink()
    with pytest.raises(DataError, match="found none of the 3"):
        load("cuhk-pedes", tmp_path)


def test_chats_as_one_dialogue_or_many(tmp_path):
    one, two = turns(("who?", "a man"), ("hat?", "no")), turns(("who?", "a lady"))
    write(tmp_path / "train_reid.json", [{"id": 1, "file_path": "1.png", "chats": one}])
    write(tmp_path / "test_reid.json", [{"id": 2, "file_path": "2.png", "chats": [one, two]}])
    table = load("chatpedes", tmp_path, pictures=False).table
    assert table["turns"].tolist() == [
        [[("who?", "a man"), ("hat?", "no")]],
        [[("who?", "a man"), ("hat?", "no")], [("who?", "a lady")]],
    ]
    assert table["text"].tolist() == [[], []]


def test_mals_as_a_list_a_folder_and_lines(tmp_path):
    rows = [{"image": f"g/{k}.jpg", "image_id": f"g_{k}", "caption": f"person {k}"} for k in range(4)]
    write(tmp_path / "list" / "all.json", rows)
    write(tmp_path / "folder" / "gene_attrs" / "a.json", rows[:2])
    write(tmp_path / "folder" / "gene_attrs" / "b.json", rows[2:])
    write(tmp_path / "lines" / "all.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    for root in ("list", "folder", "lines"):
        table = load("mals", tmp_path / root, pictures=False).table
        assert table["pid"].tolist() == [0, 1, 2, 3]
        assert table["text"].tolist() == [[f"person {k}"] for k in range(4)]
        assert table["image"].tolist() == [f"imgs/g/{k}.jpg" for k in range(4)]


def test_tri_pedes_keeps_identities_and_paths_apart(tmp_path, monkeypatch):
    for part, name in (("CUHK-PEDES", "reid_raw"), ("ICFG-PEDES", "ICFG-PEDES"), ("RSTPReid", "data_captions")):
        write(tmp_path / part / f"{name}.json", RECORDS)
        draw(tmp_path / part, *("imgs/" + r["file_path"] for r in RECORDS), "imgs-sketch/A/1.png")
    data = load("tri-pedes", tmp_path)
    assert data.table["pid"].tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert data.table["image"].iloc[3] == "ICFG-PEDES/imgs/A/1.png"
    assert data.table["sketch"].iloc[6] == ["RSTPReid/imgs-sketch/A/1.png"]
    monkeypatch.setenv("REIDLIB_DATA", str(tmp_path))
    assert load("tri-pedes").table.equals(data.table)  # the three beside each other
    with pytest.raises(DataError, match="RSTPReid is missing"):
        (tmp_path / "RSTPReid").rename(tmp_path / "other")
        load("tri-pedes", tmp_path)


def pku(root, missing=()):
    for split, pids in (("train", range(1, 5)), ("test", range(5, 7))):
        photos = [(f"photo/{p}_0{c}_77.jpg", p, c) for p in pids for c in (3, 4)]
        write(root / f"idx/{split}_visible_2.txt", "".join(f"{path} {p} 0{c} 0\n" for path, p, c in photos))
        write(root / f"idx/{split}_sketch_2.txt", "".join(f"sketch/{p}.jpg {p} 0 4\n" for p in pids))
        draw(root, *(path for path, _, _ in photos), *(f"sketch/{p}.jpg" for p in pids if p not in missing))


def test_pku_sketch_by_trial(tmp_path):
    pku(tmp_path, missing=[2])
    write(tmp_path / "TriReID.txt", "".join(f"{p}/0{c}.jpg@ person {p} seen by {c} \n" for p in (1, 2) for c in (3, 4)))
    data = load("pku-sketch", tmp_path, trial=2)
    assert data.sketch_of == "person"
    rows = data.table.set_index("image")
    assert rows.loc["photo/1_03_77.jpg", "sketch"] == ["sketch/1.jpg"]
    assert rows.loc["photo/1_04_77.jpg", "text"] == ["person 1 seen by 3", "person 1 seen by 4"]
    assert rows.loc["photo/2_03_77.jpg", "sketch"] == []
    assert rows.loc["photo/5_04_77.jpg", ["split", "camid", "pid"]].tolist() == ["test", 4, 5]
    assert data.found.count("missing") == 1
    assert "sketch/2.jpg" in data.found
    assert "4 captions, 5 sketches" in data.found
    assert data.split("val")["pid"].nunique() == 1
    with pytest.raises(DataError, match="train_visible_1.txt"):
        load("pku-sketch", tmp_path)


def market_mat(path, pids):
    from scipy.io import savemat

    values = dict.fromkeys(["gender", "hair", "up", "down", "clothes", "hat", "backpack", "bag", "handbag", "age"], 1)
    values |= {f"up{c}": 1 for c in ("black", "white", "red", "purple", "yellow", "gray", "blue", "green")}
    values |= {f"down{c}": 1 for c in ("black", "white", "pink", "purple", "yellow", "gray", "blue", "green", "brown")}
    assert len(values) == 27
    values |= {"gender": 2, "hair": 2, "up": 2, "down": 2, "upwhite": 2, "downblack": 2, "backpack": 2}
    values |= {"age": 2, "upred": 2}

    def half(ids):
        index = np.array([f"{p:04d}" for p in ids], dtype=object)
        return {k: np.full((1, len(ids)), v) for k, v in values.items()} | {"image_index": index}

    savemat(path, {"market_attribute": {"train": half(pids[:-1]), "test": half(pids[-1:])}})


def test_market_sketch_1k(tmp_path):
    photos = ["photo/train/0002_c1s1_1.jpg", "photo/train/0002_c3s1_1.jpg", "photo/train/0007_c2s1_1.jpg"]
    draw(tmp_path, *photos, "photo/query/0009_c6s1_2.jpg", "photo/query/-1_c6s1_2.jpg")
    draw(tmp_path, "sketch/A/train/0002_A.jpg", "sketch/F/train/0002.png", "sketch/B/query/0009_B.jpg")
    market_mat(tmp_path / "market_attribute.mat", [2, 7, 9])
    data = load("market-sketch-1k", tmp_path)
    rows = data.table.set_index("image")
    assert rows["sketch"][photos[1]] == ["sketch/A/train/0002_A.jpg", "sketch/F/train/0002.png"]
    assert rows["sketch"]["photo/query/0009_c6s1_2.jpg"] == ["sketch/B/query/0009_B.jpg"]
    assert rows["sketch"][photos[2]] == []
    assert rows["camid"].tolist() == [1, 3, 2, 6]
    assert rows["split"]["photo/query/0009_c6s1_2.jpg"] == "test"
    assert data.split("val")["pid"].nunique() == 1
    assert rows["attributes"][photos[0]]["upper_colour"] == "white and red"
    assert rows["text"][photos[0]][0] == (
        "A teenager woman with long hair. She is in white and red short sleeve clothes, "
        "and wears black short dress with a backpack."
    )
    assert data.sketch_of == "person"
    assert "junk photos left out: 1" in data.found


def test_market_sentences_say_hats_bags_and_lacking_colours():
    words = {"sex": "man", "age": "adult", "hair": "short", "hat": "hat", "upper": "long sleeve", "lower": "pants"}
    words |= {"lower_length": "long", "bag": "backpack and handbag", "upper_colour": "red"}
    assert market_sentences(words) == [
        "An adult man with short hair. He is in red long sleeve clothes, "
        "and wears long pants with a hat and a backpack and a handbag.",
        "An adult man in a red long sleeve top and long pants, short hair and a hat, "
        "carrying a backpack and a handbag.",
    ]


def test_a_plain_folder(tmp_path):
    draw(tmp_path, "b/2.PNG", "a.jpg", ".hidden/x.jpg")
    write(tmp_path / "notes.txt", "no picture")
    data = load("folder", tmp_path)
    assert data.table[["image", "pid", "split", "camid"]].values.tolist() == [
        ["a.jpg", 0, "test", -1],
        ["b/2.PNG", 1, "test", -1],
    ]


def test_a_folder_with_market_names(tmp_path):
    draw(tmp_path, "0002_c1s1_000451_03.jpg", "0002_c5s1_000451_03.jpg", "x/-1_c1s1_000451_03.jpg")
    table = load("folder", tmp_path).table
    assert table["pid"].tolist() == [2, 2]
    assert table["camid"].tolist() == [1, 5]


def test_wrong_arguments_name_the_nearest():
    with pytest.raises(ConfigError, match="the nearest is 'cuhk-pedes'"):
        load("cuhk-pedas")
    with pytest.raises(ConfigError, match="the nearest is 'toy/icfg-pedes'"):
        load("toy/icfg_pedes")
    with pytest.raises(ConfigError, match="trial"):
        load("cuhk-pedes", trial=2)
    with pytest.raises(ConfigError, match="10 trial"):
        load("pku-sketch", trial=11)


@pytest.mark.parametrize("name", [name for name in names if name != "toy"])
def test_a_missing_root_says_what_to_put_where(tmp_path, monkeypatch, name):
    monkeypatch.setenv("REIDLIB_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match="put .* there, and ask for|needs root"):
        load(name)


def test_an_unknown_split_is_refused(tmp_path):
    draw(tmp_path, "a.jpg")
    data = load("folder", tmp_path)
    assert len(data.split("train")) == 0
    with pytest.raises(ConfigError, match="valid"):
        data.split("valid")
