"""The toy world on disk: layouts readable with plain json, the same bytes every time, whole or not there."""

import hashlib
import json
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from scipy.io import loadmat

from reidlib.errors import DataError
from reidlib.toyworld import VERSION, album, layouts, make, people
from reidlib.toyworld import world as drawn


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("data") / "toy", people=8, seed=3)


def read(path):
    return json.loads(path.read_text())


def digest(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def splits_of(records):
    """Identities by split; each must be in one only."""
    by_split = {}
    for record in records:
        by_split.setdefault(record["split"], set()).add(record["id"])
    seen = [pid for pids in by_split.values() for pid in pids]
    assert len(seen) == len(set(seen))
    return by_split


def test_same_bytes(world, tmp_path):
    assert digest(make(tmp_path / "toy", people=8, seed=3)) == digest(world)


def test_several_processes_draw_the_same(world, tmp_path, monkeypatch):
    monkeypatch.setattr(album, "A_SHARE", 100)
    assert digest(make(tmp_path / "toy", people=8, seed=3)) == digest(world)


def test_what_another_process_does_not_draw_is_drawn_here(world, tmp_path, monkeypatch):
    monkeypatch.setattr(album, "A_SHARE", 100)
    monkeypatch.setattr(album, "WORKER", "import sys; sys.stdin.buffer.read(); sys.exit(1)")
    assert digest(make(tmp_path / "toy", people=8, seed=3)) == digest(world)


def test_another_seed_is_another_world(world, tmp_path, monkeypatch):
    monkeypatch.setattr(album.Album, "draw", lambda _: None)
    other = make(tmp_path / "toy", people=8, seed=4)
    assert read(other / "CUHK-PEDES/reid_raw.json") != read(world / "CUHK-PEDES/reid_raw.json")


def test_every_picture_opens_at_its_size(world):
    pictures = [p for p in world.rglob("*") if p.suffix in (".jpg", ".png")]
    assert {p.suffix for p in pictures} == {".jpg", ".png"}
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
            assert picture.size == (64, 128) and picture.mode == "RGB", path


def test_cuhk_pedes(world):
    root = world / "CUHK-PEDES"
    records, attributes = read(root / "reid_raw.json"), read(root / "attributes.json")
    by_split = splits_of(records)
    assert {split: len(pids) for split, pids in by_split.items()} == {"train": 8, "val": 2, "test": 2}
    assert sorted(pid for pids in by_split.values() for pid in pids) == list(range(1, 13))
    assert set(attributes) == {record["file_path"] for record in records}
    for record in records:
        assert (root / "imgs" / record["file_path"]).is_file() and (
            root / "imgs-sketch" / record["file_path"]
        ).is_file()
        assert len(record["captions"]) == len(record["processed_tokens"]) == 2
        assert record["processed_tokens"][0] == re.findall(r"[\w'-]+", record["captions"][0].lower())
        assert set(attributes[record["file_path"]]) == set(people.ATTRIBUTES)
    translated = [record for record in records if "captions_bt" in record]
    assert 0 < len(translated) < len(records)
    assert all(len(r["captions_bt"]) == 2 and r["captions_bt"][0] != r["captions"][0] for r in translated)


def test_every_person_is_met_by_two_cameras_at_least(world):
    cameras = {}
    for record in read(world / "CUHK-PEDES/reid_raw.json"):
        cameras.setdefault(record["id"], set()).add(record["file_path"].split("/")[0])
    assert all(len(met) >= 2 for met in cameras.values())


def test_the_pictures_of_one_person_share_the_truth(world):
    truth = read(world / "CUHK-PEDES/attributes.json")
    of = {}
    for record in read(world / "CUHK-PEDES/reid_raw.json"):
        of.setdefault(record["id"], set()).add(tuple(truth[record["file_path"]].values()))
    assert all(len(values) == 1 for values in of.values())
    assert len(set.union(*of.values())) == len(of)


def test_chatpedes(world):
    cuhk = {record["file_path"]: record for record in read(world / "CUHK-PEDES/reid_raw.json")}
    train, test = (read(world / f"ChatPedes/{split}_reid.json") for split in ("train", "test"))
    assert {r["file_path"] for r in train} == {path for path, r in cuhk.items() if r["split"] != "test"}
    assert {r["file_path"] for r in test} == {path for path, r in cuhk.items() if r["split"] == "test"}
    dialogues = [r["chats"] for r in test] + [dialogue for r in train for dialogue in r["chats"]]
    for dialogue in dialogues:
        assert len(dialogue) >= 5
        assert all([message["from"] for message in turn] == ["gpt", "user"] for turn in dialogue)
    for record in train + test:
        assert record["id"] == cuhk[record["file_path"]]["id"]
        same = (world / place / "imgs" / record["file_path"] for place in ("ChatPedes", "CUHK-PEDES"))
        assert next(same).read_bytes() == next(same).read_bytes()


def test_icfg_pedes(world):
    root = world / "ICFG-PEDES"
    records = read(root / "ICFG_PEDES.json")
    assert set(splits_of(records)) == {"train", "test"}
    assert all(len(r["captions"]) == 1 and r["file_path"].startswith(r["split"]) for r in records)
    assert all((root / kind / r["file_path"]).is_file() for r in records for kind in ("imgs", "imgs-sketch"))


def test_rstpreid(world):
    root = world / "RSTPReid"
    records = read(root / "data_captions.json")
    assert set(splits_of(records)) == {"train", "val", "test"}
    assert all(len(r["captions"]) == 2 and "file_path" not in r for r in records)
    assert all((root / kind / r["img_path"]).is_file() for r in records for kind in ("imgs", "imgs-sketch"))


def test_mals(world):
    records = read(world / "MALS/train.json")
    assert len({r["image_id"] for r in records}) == len(records) >= 20
    assert all((world / "MALS" / r["image"]).is_file() and isinstance(r["caption"], str) for r in records)


def test_pku_sketch(world):
    root = world / "PKU-Sketch"
    people_here = {p.stem for p in (root / "sketch").iterdir()}
    for trial in range(1, 11):
        files = ("train_sketch", "test_sketch", "train_visible", "test_visible")
        lines = {name: (root / f"idx/{name}_{trial}.txt").read_text().splitlines() for name in files}
        pids = {name: [line.split()[1] for line in rows] for name, rows in lines.items()}
        assert set(pids["train_sketch"]) | set(pids["test_sketch"]) == people_here
        assert not set(pids["train_sketch"]) & set(pids["test_sketch"])
        assert len(pids["train_sketch"]) == 3 * len(pids["test_sketch"])
        for split in ("train", "test"):
            assert sorted(pids[f"{split}_visible"]) == sorted(2 * pids[f"{split}_sketch"])
        for line in lines["train_visible"] + lines["test_visible"]:
            assert re.fullmatch(r"photo/(\d+)_(0\d)_\d+\.jpg \1 \2 0", line) and (root / line.split()[0]).is_file()
        for line in lines["train_sketch"] + lines["test_sketch"]:
            assert re.fullmatch(r"sketch/(\d+)\.jpg \1 0 [1-4]", line) and (root / line.split()[0]).is_file()
    captions = [line.split("@") for line in (root / "TriReID.txt").read_text().splitlines()]
    assert sorted(path.split("/")[0] for path, _ in captions) == sorted(2 * sorted(people_here))
    for path in (root / "styleAnnotation").iterdir():
        assert len(path.read_text().split()) == int(path.stem.split("_")[1])


def test_interactive_pedes(world):
    root = world / "Interactive-PEDES"
    records, attributes = read(root / "Interactive-PEDES_interactive_annos.json"), read(root / "attributes.json")
    by_split = splits_of(records)
    assert set(by_split) == {"train", "val", "test"} and by_split["train"] == set(range(len(by_split["train"])))
    for record in records:
        name, _, path = record["file_path"].partition("/imgs/")
        assert (root / record["file_path"]).samefile(world / name / "imgs" / path)
        assert set(attributes[record["file_path"]]) == set(people.ATTRIBUTES)
        first, whole = record["initial_description"], record["fine-grained_description"]
        assert len(record["captions"]) == 2 and 2 <= len(first.split()) < len(whole.split())
        assert (record["split"] == "train") == ("questions" in record) == ("answers" in record)
        assert len(record.get("questions", ())) == len(record.get("answers", ()))


def test_orbench(world):
    root = world / "ORBench"
    train, protocol = read(root / "train_annos.json"), read(root / "test_gallery_and_queries.json")
    gallery = protocol.pop("RGB_GALLERY")
    assert all((root / path).is_file() for path in [r["file_path"] for r in train] + [path for _, path in gallery])
    assert not {r["id"] for r in train} & {pid for pid, _ in gallery}
    assert (
        len(protocol) == 32
        and sorted(len(mode.split("+")) for mode in protocol) == [1] * 4 + [2] * 12 + [3] * 12 + [4] * 4
    )
    for mode, rows in protocol.items():
        assert {pid for pid, *_ in rows} == {pid for pid, _ in gallery}
        for pid, *parts in rows:
            for kind, part in zip(mode.split("+"), parts, strict=True):
                if kind == "TEXT":
                    assert part.endswith(".")
                else:
                    assert part.startswith(f"{kind.lower()}/{pid:04d}/") and (root / part).is_file()
    assert {path.name for path in root.iterdir() if path.is_dir()} == {"vis", "nir", "cp", "sk"}


def test_market_sketch(world):
    root = world / "Market-Sketch-1K"
    pids = {split: {p.name[:4] for p in (root / "photo" / split).iterdir()} for split in ("train", "query")}
    assert not pids["train"] & pids["query"]
    assert {p.name for p in (root / "sketch").iterdir()} == set("ABCDEF")
    for split in pids:
        assert {p.name[:4] for p in (root / "sketch/A" / split).iterdir()} == pids[split]
    table = loadmat(root / "market_attribute.mat", simplify_cells=True)["market_attribute"]
    for split, part in (("train", "train"), ("query", "test")):
        fields = table[part]
        assert set(fields["image_index"]) == pids[split]
        assert len(fields) == 28 and all(len(values) == len(pids[split]) for values in fields.values())
        assert set(fields.pop("age")) <= {1, 2, 3, 4}
        assert all(set(values) <= {1, 2} for key, values in fields.items() if key != "image_index")


def test_market_attributes_of_a_person():
    worn = "woman long black t-shirt navy plain skirt grey boots black handbag red none none none"
    person = people.Person(*worn.split())
    values = layouts.market_values(person, random.Random(0))
    yes = {key for key, value in values.items() if value == 2 and key != "age"}
    assert yes == {"handbag", "down", "up", "hair", "gender", "upblue", "downgray"}
    assert len(values) == 27


# ---------------------------------------------------------------- whole or not there


def test_made_once(world, monkeypatch):
    monkeypatch.setattr(drawn, "_write_all", lambda *_: pytest.fail("written twice"))
    assert make(world, people=8, seed=3) == world
    assert make(world) == world  # of the size and seed that it has


def test_an_interrupted_world_is_not_there(tmp_path, monkeypatch):
    def half(world, *_):
        world.mkdir()
        (world / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(drawn, "_write_all", half)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


def test_an_older_world_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn, "_write_all", lambda world, *_: world.mkdir())
    root = make(tmp_path / "toy", seed=1)
    (root / "of the first").touch()
    make(root, seed=2)
    assert read(root / drawn.MARKER) == {"version": VERSION, "people": drawn.PEOPLE, "seed": 2}
    assert [p.name for p in root.iterdir()] == [drawn.MARKER] and list(tmp_path.iterdir()) == [root]


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DataError, match="not a toy world"):
        make(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_too_few_identities(tmp_path):
    with pytest.raises(DataError, match="at least 8"):
        make(tmp_path / "toy", people=5)


def test_two_at_once(tmp_path, monkeypatch):
    """Both have a whole world to rename at the same time; one wins, the other takes what is there."""
    meeting = threading.Barrier(2, timeout=10)
    monkeypatch.setattr(drawn, "_write_all", lambda world, *_: world.mkdir())
    put_in_place = drawn._put_in_place
    monkeypatch.setattr(drawn, "_put_in_place", lambda *args: meeting.wait() + 1 and put_in_place(*args))
    with ThreadPoolExecutor(2) as pool:
        roots = list(pool.map(lambda _: make(tmp_path / "toy"), range(2)))
    assert roots == [tmp_path / "toy"] * 2 and list(tmp_path.iterdir()) == [tmp_path / "toy"]
    assert read(tmp_path / "toy" / drawn.MARKER)["people"] == drawn.PEOPLE
