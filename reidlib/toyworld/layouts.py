"""The file layouts of the data sets, each filled with its own people of the toy world."""

import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np

from reidlib.toyworld import language, people, shots, sketch
from reidlib.toyworld.album import Album
from reidlib.toyworld.people import Person
from reidlib.toyworld.shots import CAMERAS, Shot

PKU_STYLES = {"a": ("clean", 1), "b": ("shaky", 2), "c": ("shaded", 3), "d": ("clean", 4), "e": ("shaded", 4)}
PKU_TRIALS = 10
MARKET_STYLES = {"A": "clean", "B": "shaky", "C": "shaded", "D": "clean", "E": "shaky", "F": "shaded"}
ORBENCH_HANDS = {"VIS": "", "NIR": "infrared", "CP": sketch.COLOURED, "SK": "shaded"}
ORBENCH_MODES = (  # 32 of the mixes, in the order in which the official file holds a query's parts
    *("TEXT", "NIR", "CP", "SK"),
    *("+".join(pair) for pair in permutations(("TEXT", "NIR", "CP", "SK"), 2)),
    *("TEXT+CP+SK", "CP+SK+TEXT", "SK+CP+TEXT", "CP+NIR+TEXT", "NIR+CP+TEXT", "TEXT+NIR+CP"),
    *("SK+NIR+TEXT", "NIR+SK+TEXT", "TEXT+NIR+SK", "CP+NIR+SK", "NIR+CP+SK", "SK+NIR+CP"),
    *("TEXT+NIR+CP+SK", "SK+NIR+CP+TEXT", "CP+NIR+SK+TEXT", "NIR+CP+SK+TEXT"),
)
Worn = set[tuple[str, ...]]  # combinations of attributes that somebody wears already


@dataclass(frozen=True)
class Picture:
    """A photo to be: who, by which camera, and where the data set keeps it."""

    pid: int
    person: Person
    shot: Shot
    path: str


# ---------------------------------------------------------------- pictures and files


def _met(
    crowd: list[Person],
    first: int,
    rng: random.Random,
    name: Callable[[int, int, int], str],
    counts: tuple[int, ...] = (3, 4, 4, 5),
) -> Iterator[Picture]:
    """Pictures of each person, a draw from `counts`, by two cameras at least; `name(pid, camera, n)` is the path."""
    for pid, person in enumerate(crowd, first):
        cameras = rng.sample(range(len(CAMERAS)), rng.randint(2, 3))
        for n in range(rng.choice(counts)):
            shot = shots.sample(rng, cameras[n % len(cameras)])
            yield Picture(pid, person, shot, name(pid, shot.camera + 1, n))


def _photo_and_sketch(album: Album, folder: Path, picture: Picture, n: int, rng: random.Random) -> None:
    """The photo below imgs/ and its sketch, by the hand whose turn it is, under the same name below imgs-sketch/."""
    album.add(folder / "imgs" / picture.path, picture.person, picture.shot)
    hand = sketch.HANDS[n % len(sketch.HANDS)]
    album.add(folder / "imgs-sketch" / picture.path, picture.person, picture.shot, hand, rng.getrandbits(32))


def _json(path: Path, records: object) -> None:
    """A record a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(records, dict):
        lines, brackets = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in records.items()], "{}"
    else:
        lines, brackets = map(json.dumps, records), "[]"
    path.write_text(brackets[0] + "\n" + ",\n".join(lines) + "\n" + brackets[1] + "\n")


def _lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


# ---------------------------------------------------------------- one function a data set


def cuhk_and_chat(
    world: Path, splits: dict[str, int], taken: Worn, rng: random.Random, album: Album
) -> dict[str, list[Picture]]:
    """CUHK-PEDES (captions, sketches, attributes), and ChatPedes on the same pictures; returns these by split."""

    def name(pid: int, camera: int, n: int) -> str:
        return f"cam_{camera}/{pid:04d}_c{camera}s1_{n + 1:06d}_00.{'png' if camera == 4 else 'jpg'}"

    cuhk, chat = world / "CUHK-PEDES", world / "ChatPedes"
    records, attributes, chats, first = [], {}, {"train": [], "test": []}, 1
    pictures: dict[str, list[Picture]] = {}
    for split, size in splits.items():
        pictures[split] = list(_met(people.sample(size, rng, taken), first, rng, name))
        for picture in pictures[split]:
            _photo_and_sketch(album, cuhk, picture, len(records), rng)
            album.link(cuhk / "imgs" / picture.path, chat / "imgs" / picture.path)
            captions, paraphrases = language.captions_and_paraphrases(picture.person, picture.shot, rng)
            record = {"split": split, "captions": captions, "file_path": picture.path, "id": picture.pid}
            record["processed_tokens"] = [language.tokens(caption) for caption in captions]
            if rng.random() < 0.5:
                record["captions_bt"] = paraphrases
            records.append(record)
            attributes[picture.path] = picture.person.attributes
            chats["test" if split == "test" else "train"].append(
                {"id": picture.pid, "file_path": picture.path, "chats": _chats(picture, split, rng)}
            )
        first += size
    _json(cuhk / "reid_raw.json", records)
    _json(cuhk / "attributes.json", attributes)
    for split, dialogues in chats.items():
        _json(chat / f"{split}_reid.json", dialogues)
    return pictures


def _chats(picture: Picture, split: str, rng: random.Random) -> list:
    """One or two dialogues as a list in the training file, one dialogue by itself in the test file."""
    dialogues = []
    for _ in range(1 if split == "test" else rng.randint(1, 2)):
        turns = language.dialogue(picture.person, picture.shot, rng)
        dialogues.append([[{"from": "gpt", "value": q}, {"from": "user", "value": a}] for q, a in turns])
    return dialogues[0] if split == "test" else dialogues


def icfg(folder: Path, size: int, taken: Worn, rng: random.Random, album: Album) -> dict[str, list[Picture]]:
    """ICFG-PEDES: one caption a picture, no validation split, identities from 0; returns its pictures by split."""
    records, tests, first = [], round(size / 3), 0
    pictures: dict[str, list[Picture]] = {}
    for split, n in (("train", size - tests), ("test", tests)):

        def name(pid: int, camera: int, n: int, split: str = split) -> str:
            return f"{split}/{pid:04d}/{pid:04d}_{n:03d}_{camera:02d}_0303morning_{n + 7:04d}_0.jpg"

        pictures[split] = list(_met(people.sample(n, rng, taken), first, rng, name))
        for picture in pictures[split]:
            _photo_and_sketch(album, folder, picture, len(records), rng)
            captions = language.captions(picture.person, picture.shot, rng)[:1]
            records.append({"split": split, "captions": captions, "file_path": picture.path, "id": picture.pid})
        first += n
    _json(folder / "ICFG_PEDES.json", records)
    return pictures


def rstp(folder: Path, size: int, taken: Worn, rng: random.Random, album: Album) -> None:
    """RSTPReid: the picture's key is img_path, identities from 0."""
    records, few, first = [], round(size / 5), 0
    for split, n in (("train", size - 2 * few), ("val", few), ("test", few)):
        crowd = people.sample(n, rng, taken)
        for picture in _met(crowd, first, rng, lambda pid, camera, n: f"{pid:04d}_c{camera}_{n + 11:04d}.jpg"):
            _photo_and_sketch(album, folder, picture, len(records), rng)
            captions = language.captions(picture.person, picture.shot, rng)
            records.append({"id": picture.pid, "img_path": picture.path, "captions": captions, "split": split})
        first += n
    _json(folder / "data_captions.json", records)


def mals(folder: Path, size: int, taken: Worn, rng: random.Random, album: Album) -> None:
    """MALS: a caption a picture, no identities."""
    records = []
    crowd = people.sample(size, rng, taken, twins=0.0)
    for picture in _met(crowd, 0, rng, lambda pid, camera, n: f"gene_crop/c_{camera}/{pid}.jpg", counts=(1,)):
        album.add(folder / picture.path, picture.person, picture.shot)
        caption = language.captions(picture.person, picture.shot, rng)[0]
        records.append({"image": picture.path, "image_id": picture.pid, "caption": caption})
    _json(folder / "train.json", records)


def interactive(folder: Path, sources: dict[str, dict[str, list[Picture]]], rng: random.Random, album: Album) -> None:
    """Interactive-PEDES on the pictures of other data sets of the world, `sources` by name and split.

    A first description of little, one of everything that is seen, two captions, and for training what was asked and
    answered. Training identities count from 0. Beside it the attributes of each picture, for a simulated witness.
    """
    records, attributes = [], {}
    pids: dict[tuple[str, int], int] = {}
    for split in ("train", "val", "test"):
        for name, pictures in sources.items():
            for picture in pictures.get(split, []):
                pid = pids.setdefault((name, picture.pid), len(pids))
                path = f"{name}/imgs/{picture.path}"
                album.link(folder.parent / name / "imgs" / picture.path, folder / path)
                attributes[path] = picture.person.attributes
                records.append({"split": split, "file_path": path, "id": pid, **_record(picture, split, rng)})
    _json(folder / "Interactive-PEDES_interactive_annos.json", records)
    _json(folder / "attributes.json", attributes)


def _record(picture: Picture, split: str, rng: random.Random) -> dict[str, object]:
    """What a record of Interactive-PEDES says of its picture."""
    person, shot = picture.person, picture.shot
    seen = shots.visible(person, shot)
    told: dict[str, object] = {
        "initial_description": language.tell(rng.sample(["upper", "lower"], 1), seen, shot, rng),
        "fine-grained_description": language.tell(language.tellable(seen), seen, shot, rng),
        "captions": language.captions(person, shot, rng),
    }
    if split == "train":
        told["questions"], told["answers"] = zip(*language.dialogue(person, shot, rng)[1:], strict=True)
    return told


def orbench(folder: Path, size: int, taken: Worn, rng: random.Random, album: Album) -> None:
    """ORBench: photos by day and night, drawings in colour pencil and in pencil, a caption a photo by day.

    Two thirds of the people train; queries of the others are drawn for each of the 32 modes.
    """
    tests, train, gallery = size // 3, [], []
    queries: dict[str, list[list]] = {mode: [] for mode in ORBENCH_MODES}
    for pid, person in enumerate(people.sample(size, rng, taken), 1):
        training = pid <= size - tests
        items: dict[str, list[str]] = {"TEXT": []}
        for mode, hand in ORBENCH_HANDS.items():
            items[mode] = [f"{mode.lower()}/{pid:04d}/{n + 1:04d}.jpg" for n in range(rng.randint(2, 3))]
            for path in items[mode]:
                shot = shots.sample(rng)
                album.add(folder / path, person, shot, hand, rng.getrandbits(32))
                if mode == "VIS":
                    items["TEXT"].append(language.captions(person, shot, rng)[0])
        if training:
            pairs = zip(items["VIS"], items["TEXT"], strict=True)
            train += [{"id": pid, "file_path": path, "caption": told, "split": "train"} for path, told in pairs]
        else:
            gallery += [[pid, path] for path in items["VIS"]]
            for mode, rows in queries.items():
                rows += [[pid, *(rng.choice(items[part]) for part in mode.split("+"))] for _ in range(2)]
    _json(folder / "train_annos.json", train)
    _json(folder / "test_gallery_and_queries.json", {"RGB_GALLERY": gallery, **queries})


def pku(folder: Path, size: int, taken: Worn, rng: random.Random, album: Album) -> None:
    """PKU-Sketch: two photos, one sketch and two captions a person; ten trials, three quarters of each style train."""
    photos: dict[int, list[str]] = {}
    styles: dict[str, list[int]] = {style: [] for style in PKU_STYLES}
    captions: list[str] = []
    for pid, person in enumerate(people.sample(size, rng, taken), 1):
        style = rng.choice("aaabccccdde") if pid > len(PKU_STYLES) else tuple(PKU_STYLES)[pid - 1]
        styles[style].append(pid)
        cameras = rng.choice(((3, 5), (4, 6)))
        views = [shots.sample(rng, camera - 1) for camera in cameras]
        photos[pid] = [f"photo/{pid}_{camera:02d}_{rng.randrange(13, 29000)}.jpg" for camera in cameras]
        for path, shot in zip(photos[pid], views, strict=True):
            album.add(folder / path, person, shot)
            captions.append(f"{pid}/{Path(path).name}@{language.captions(person, shot, rng)[0]}")
        hand = PKU_STYLES[style][0]
        album.add(folder / "sketch" / f"{pid}.jpg", person, rng.choice(views), hand, rng.getrandbits(32))
    _lines(folder / "TriReID.txt", captions)
    for style, pids in styles.items():
        _lines(folder / "styleAnnotation" / f"{style}_{len(pids)}.txt", [str(pid) for pid in pids])
    _pku_trials(folder / "idx", photos, styles, rng)


def _pku_trials(folder: Path, photos: dict[int, list[str]], styles: dict[str, list[int]], rng: random.Random) -> None:
    """Lines `path pid camera modality`: modality 0 is a photo, another number a style; a sketch's camera is 0."""
    joined: dict[str, list[str]] = {}
    for trial in range(1, PKU_TRIALS + 1):
        files: dict[str, list[str]] = {
            f"{split}_{kind}": [] for split in ("train", "test") for kind in ("visible", "sketch")
        }
        in_order = [(style, pid) for style, pids in styles.items() for pid in rng.sample(pids, len(pids))]
        for i, (style, pid) in enumerate(in_order):
            split = "test" if i % 4 == trial % 4 else "train"
            files[f"{split}_sketch"].append(f"sketch/{pid}.jpg {pid} 0 {PKU_STYLES[style][1]}")
            files[f"{split}_visible"] += [f"{path} {pid} {path.split('_')[1]} 0" for path in photos[pid]]
        for name, lines in files.items():
            _lines(folder / f"{name}_{trial}.txt", lines)
            joined.setdefault(name, []).extend(lines)
    for name, lines in joined.items():
        _lines(folder / f"{name}.txt", lines)


def market(folder: Path, size: int, taken: Worn, rng: random.Random, album: Album) -> None:
    """Market-Sketch-1K: photos and six styles of sketches in train and query, and Market-1501_Attribute beside them."""
    first, attributes = 1, {}
    for split, n in (("train", size - size // 2), ("query", size // 2)):
        crowd = people.sample(n, rng, taken)

        def name(pid: int, camera: int, n: int, split: str = split) -> str:
            return f"photo/{split}/{pid:04d}_c{camera}s1_{rng.randrange(1, 90000):06d}_{n:02d}.jpg"

        for picture in _met(crowd, first, rng, name, counts=(4, 5, 6)):
            album.add(folder / picture.path, picture.person, picture.shot)
        for pid, person in enumerate(crowd, first):
            for style, hand in MARKET_STYLES.items():
                if style == "A" or rng.random() < 0.8:
                    path = folder / "sketch" / style / split / f"{pid:04d}_{style}.jpg"
                    album.add(path, person, shots.sample(rng), hand, rng.getrandbits(32))
        attributes["train" if split == "train" else "test"] = {
            f"{pid:04d}": market_values(p, rng) for pid, p in enumerate(crowd, first)
        }
        first += n
    folder.mkdir(parents=True)
    (folder / "market_attribute.mat").write_bytes(_mat(attributes))


def market_values(person: Person, rng: random.Random) -> dict[str, int]:
    """The 27 attributes of one person: age 1 to 4, everything else 1 or 2 (no or yes, or the first or second kind)."""

    def colours(prefix: str, names: str, worn: str) -> dict[str, int]:
        worn = {"navy": "blue", "grey": "gray"}.get(worn, worn)
        return {f"{prefix}{name}": 1 + (worn == name) for name in names.split()}

    return {
        "age": 4 if person.hair_colour == "grey" else rng.choice((2, 3, 3)),
        "backpack": 1 + (person.bag == "backpack"),
        "bag": 1 + (person.bag == "shoulder bag"),
        "handbag": 1 + (person.bag == "handbag"),
        "clothes": 1 if person.lower == "skirt" else 2,
        "down": 2 if person.lower in ("skirt", "shorts") else 1,
        "up": 2 if person.upper == "t-shirt" else 1,
        "hair": 2 if person.hair in ("long", "ponytail") else 1,
        "hat": 1 + (person.hat != "none"),
        "gender": 2 if person.sex == "woman" else 1,
        **colours("up", "black white red purple yellow gray blue green", person.upper_colour),
        **colours("down", "black white pink purple yellow gray blue green brown", person.lower_colour),
    }


def _mat(attributes: dict[str, dict[str, dict[str, int]]]) -> bytes:
    """The structure `market_attribute` with an array over identities a field; the date is taken out of the header."""
    from scipy.io import savemat

    structure = {}
    for split, by_pid in attributes.items():
        fields = {
            key: np.array([[values[key] for values in by_pid.values()]], dtype=float)
            for key in next(iter(by_pid.values()))
        }
        structure[split] = fields | {"image_index": np.array([list(by_pid)], dtype=object)}
    buffer = io.BytesIO()
    savemat(buffer, {"market_attribute": structure})
    return b"MATLAB 5.0 MAT-file, a toy world".ljust(116) + buffer.getvalue()[116:]
