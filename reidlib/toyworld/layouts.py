"""The file layouts of the data sets, each filled with its own people of the toy world."""

import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from reidlib.toyworld import draw, language, people, shots, sketch
from reidlib.toyworld.people import Person
from reidlib.toyworld.shots import CAMERAS, Shot

PKU_STYLES = {"a": ("clean", 1), "b": ("shaky", 2), "c": ("shaded", 3), "d": ("clean", 4), "e": ("shaded", 4)}
PKU_TRIALS = 10
MARKET_STYLES = {"A": "clean", "B": "shaky", "C": "shaded", "D": "clean", "E": "shaky", "F": "shaded"}
Worn = set[tuple[str, ...]]  # combinations of attributes that somebody wears already


@dataclass(frozen=True)
class Picture:
    """A photo to be: who, by which camera, and where the data set keeps it."""

    pid: int
    person: Person
    shot: Shot
    path: str


# ---------------------------------------------------------------- pictures and files


def _album(
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


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **({"quality": 92} if path.suffix == ".jpg" else {"compress_level": 1}))


def _photo(folder: Path, picture: Picture) -> None:
    _save(draw.photo(picture.person, picture.shot), folder / picture.path)


def _photo_and_sketch(folder: Path, picture: Picture, n: int, rng: random.Random) -> None:
    """The photo below imgs/ and its sketch, by the hand whose turn it is, under the same name below imgs-sketch/."""
    _photo(folder / "imgs", picture)
    hand = sketch.HANDS[n % len(sketch.HANDS)]
    _save(sketch.draw(picture.person, picture.shot, hand, rng), folder / "imgs-sketch" / picture.path)


def _json(path: Path, records: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1) + "\n")


def _lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# ---------------------------------------------------------------- one function a data set


def cuhk_and_chat(world: Path, splits: dict[str, int], taken: Worn, rng: random.Random) -> None:
    """CUHK-PEDES (captions, sketches, attributes), and ChatPedes on the same pictures."""

    def name(pid: int, camera: int, n: int) -> str:
        return f"cam_{camera}/{pid:04d}_c{camera}s1_{n + 1:06d}_00.{'png' if camera == 4 else 'jpg'}"

    cuhk, chat = world / "CUHK-PEDES", world / "ChatPedes"
    records, attributes, chats, first = [], {}, {"train": [], "test": []}, 1
    for split, size in splits.items():
        for picture in _album(people.sample(size, rng, taken), first, rng, name):
            _photo_and_sketch(cuhk, picture, len(records), rng)
            _link(cuhk / "imgs" / picture.path, chat / "imgs" / picture.path)
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


def _chats(picture: Picture, split: str, rng: random.Random) -> list:
    """One or two dialogues as a list in the training file, one dialogue by itself in the test file."""
    dialogues = []
    for _ in range(1 if split == "test" else rng.randint(1, 2)):
        turns = language.dialogue(picture.person, picture.shot, rng)
        dialogues.append([[{"from": "gpt", "value": q}, {"from": "user", "value": a}] for q, a in turns])
    return dialogues[0] if split == "test" else dialogues


def icfg(folder: Path, size: int, taken: Worn, rng: random.Random) -> None:
    """ICFG-PEDES: one caption a picture, no validation split, identities from 0."""
    records, tests, first = [], round(size / 3), 0
    for split, n in (("train", size - tests), ("test", tests)):

        def name(pid: int, camera: int, n: int, split: str = split) -> str:
            return f"{split}/{pid:04d}/{pid:04d}_{n:03d}_{camera:02d}_0303morning_{n + 7:04d}_0.jpg"

        for picture in _album(people.sample(n, rng, taken), first, rng, name):
            _photo_and_sketch(folder, picture, len(records), rng)
            captions = language.captions(picture.person, picture.shot, rng)[:1]
            records.append({"split": split, "captions": captions, "file_path": picture.path, "id": picture.pid})
        first += n
    _json(folder / "ICFG_PEDES.json", records)


def rstp(folder: Path, size: int, taken: Worn, rng: random.Random) -> None:
    """RSTPReid: the picture's key is img_path, identities from 0."""
    records, few, first = [], round(size / 5), 0
    for split, n in (("train", size - 2 * few), ("val", few), ("test", few)):
        crowd = people.sample(n, rng, taken)
        for picture in _album(crowd, first, rng, lambda pid, camera, n: f"{pid:04d}_c{camera}_{n + 11:04d}.jpg"):
            _photo_and_sketch(folder, picture, len(records), rng)
            captions = language.captions(picture.person, picture.shot, rng)
            records.append({"id": picture.pid, "img_path": picture.path, "captions": captions, "split": split})
        first += n
    _json(folder / "data_captions.json", records)


def mals(folder: Path, size: int, taken: Worn, rng: random.Random) -> None:
    """MALS: a caption a picture, no identities."""
    records = []
    crowd = people.sample(size, rng, taken, twins=0.0)
    for picture in _album(crowd, 0, rng, lambda pid, camera, n: f"gene_crop/c_{camera}/{pid}.jpg", counts=(1,)):
        _photo(folder, picture)
        caption = language.captions(picture.person, picture.shot, rng)[0]
        records.append({"image": picture.path, "image_id": picture.pid, "caption": caption})
    _json(folder / "train.json", records)


def pku(folder: Path, size: int, taken: Worn, rng: random.Random) -> None:
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
            _photo(folder, Picture(pid, person, shot, path))
            captions.append(f"{pid}/{Path(path).name}@{language.captions(person, shot, rng)[0]}")
        _save(sketch.draw(person, rng.choice(views), PKU_STYLES[style][0], rng), folder / "sketch" / f"{pid}.jpg")
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


def market(folder: Path, size: int, taken: Worn, rng: random.Random) -> None:
    """Market-Sketch-1K: photos and six styles of sketches in train and query, and Market-1501_Attribute beside them."""
    first, attributes = 1, {}
    for split, n in (("train", size - size // 2), ("query", size // 2)):
        crowd = people.sample(n, rng, taken)

        def name(pid: int, camera: int, n: int, split: str = split) -> str:
            return f"photo/{split}/{pid:04d}_c{camera}s1_{rng.randrange(1, 90000):06d}_{n:02d}.jpg"

        for picture in _album(crowd, first, rng, name, counts=(4, 5, 6)):
            _photo(folder, picture)
        for pid, person in enumerate(crowd, first):
            for style, hand in MARKET_STYLES.items():
                if style == "A" or rng.random() < 0.8:
                    drawn = sketch.draw(person, shots.sample(rng), hand, rng)
                    _save(drawn, folder / "sketch" / style / split / f"{pid:04d}_{style}.jpg")
        attributes["train" if split == "train" else "test"] = {
            f"{pid:04d}": market_values(p, rng) for pid, p in enumerate(crowd, first)
        }
        first += n
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
