"""Layouts that are folders of pictures: PKU-Sketch, Market-Sketch-1K and any folder of one's own."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reidlib.data.metadata import SPLIT_OF, metadata_files, read_metadata
from reidlib.data.records import picture_of, read_text
from reidlib.data.table import DISTRACTOR, Read, absent, make_table
from reidlib.data.walk import find_pictures
from reidlib.errors import DataError

MARKET_NAME = re.compile(r"(-1|\d{4})(?:_c(\d+))?")  # 0002_c1s1_000451_03.jpg; -1 marks a junk box
OWN_NAME = re.compile(r"(-1|\d{1,9})_c(\d+)")
UPPER_COLOURS = ("black", "white", "red", "purple", "yellow", "gray", "blue", "green")
LOWER_COLOURS = ("black", "white", "pink", "purple", "yellow", "gray", "blue", "green", "brown")
# What 1, 2, ... mean in market_attribute.mat, as its authors list them; the colours and bags are 1 (no) or 2 (yes).
MARKET_VALUES = {
    "gender": ("sex", ("man", "woman")),
    "age": ("age", ("young", "teenager", "adult", "old")),
    "hair": ("hair", ("short", "long")),
    "hat": ("hat", ("none", "hat")),
    "up": ("upper", ("long sleeve", "short sleeve")),
    "down": ("lower_length", ("long", "short")),
    "clothes": ("lower", ("dress", "pants")),
}
MARKET_BAGS = ("backpack", "bag", "handbag")


def read_pku(root: Path, pictures: bool, trial: int = 1) -> Read:
    """PKU-Sketch: `idx/{train,test}_{visible,sketch}_<trial>.txt`, lines of path, person, camera, style.

    Captions of a person come from `TriReID.txt` where it is there, lines of `<person>/...@caption`.
    """
    rows, sketches = [], defaultdict(list)
    for split in ("train", "test"):
        for image, pid, camid in _idx_lines(root / "idx" / f"{split}_visible_{trial}.txt", root):
            rows.append({"split": split, "pid": pid, "image": image, "camid": camid})
        for sketch, pid, _ in _idx_lines(root / "idx" / f"{split}_sketch_{trial}.txt", root):
            sketches[pid].append(sketch)
    layout = f"idx/ of trial {trial}"
    if (root / "sketch").is_dir():
        gone = absent(root, [path for paths in sketches.values() for path in paths])
        sketches = {pid: [path for path in paths if path not in gone] for pid, paths in sketches.items()}
        layout += f" (sketches named there but missing: {len(gone)}, such as {min(gone)})" if gone else ""
    captions = _pku_captions(root)
    layout += " with TriReID.txt" if captions else ""
    for row in rows:
        row["sketch"], row["text"] = list(sketches.get(row["pid"], [])), list(captions.get(row["pid"], []))
    return Read(make_table(rows, str(root / "idx")), layout, "person")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) for the lines of a text file that are not blank."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield f"{path}, line {number}", line


def _idx_lines(path: Path, root: Path) -> Iterator[tuple[str, int, int]]:
    for where, line in _lines(path):
        fields = line.split()
        if len(fields) != 4 or not all(re.fullmatch(r"[0-9]{1,9}", text) for text in fields[1:]):
            raise DataError(f"{where}: expected a path and three whole numbers, found {line[:80]!r}.")
        try:
            yield picture_of(fields[0], root), int(fields[1]), int(fields[2])
        except DataError as error:
            raise DataError(f"{where}: {error}") from None


def _pku_captions(root: Path) -> dict[int, list[str]]:
    captions = defaultdict(list)
    for path in [*root.glob("TriReID.txt"), *root.glob("*/TriReID.txt")][:1]:
        for where, line in _lines(path):
            match = re.match(r"([0-9]{1,9})/[^@]*@(.*\S)", line)
            if not match:
                raise DataError(f"{where}: expected <person>/<picture>@<caption>, found {line[:80]!r}.")
            captions[int(match[1])].append(match[2].strip())
    return captions


def read_market(root: Path, pictures: bool, trial: int = 1) -> Read:
    """Market-Sketch-1K: `photo/{train,query}`, `sketch/{A..F}/{train,query}`, names that begin with the identity.

    The names are the annotations, so the pictures must be there. Attributes and captions come from
    `market_attribute.mat` of Market-1501_Attribute where it is there.
    """
    halves, faults = {"train": "train", "query": "test"}, []

    def pictures_in(folder: str) -> list[str]:
        found, unusable = find_pictures(root / folder) if (root / folder).is_dir() else ([], [])
        faults.extend(unusable)
        return [f"{folder}/{path}" for path in found]

    photos = [(split, path) for half, split in halves.items() for path in pictures_in(f"photo/{half}")]
    if not photos:
        raise DataError(f"{root}: expected photos in photo/train/ and photo/query/, found none.")
    sketches = defaultdict(list)
    for style in "ABCDEF":
        for half in halves:
            for path in pictures_in(f"sketch/{style}/{half}"):
                sketches[_market_name(path)[0]].append(path)
    mat = root / "market_attribute.mat"
    attributes = read_market_attributes(mat) if mat.is_file() else {}
    rows = []
    for split, path in photos:
        pid, camid = _market_name(path)
        if pid >= 0:
            row = {"split": split, "pid": pid, "image": path, "camid": camid, "sketch": list(sketches[pid])}
            if pid in attributes:
                row |= {"attributes": dict(attributes[pid]), "text": market_sentences(attributes[pid])}
            rows.append(row)
    layout = "photo/ and sketch/{A..F}/" + (" with market_attribute.mat" if attributes else "")
    layout += f" (junk photos left out: {len(photos) - len(rows):,})" if len(rows) < len(photos) else ""
    return Read(make_table(rows, str(root)), layout, "person", faults)


def _market_name(path: str) -> tuple[int, int]:
    match = MARKET_NAME.match(path.rpartition("/")[2])
    if not match:
        raise DataError(f"{path}: expected a name that begins with a four-digit identity.")
    return int(match[1]), int(match[2] or -1)


def read_market_attributes(path: Path) -> dict[int, dict[str, str]]:
    """pid -> attributes in words, from both halves of `market_attribute.mat`; an unlabelled colour has no entry."""
    from scipy.io import loadmat

    try:
        halves = loadmat(path, simplify_cells=True)["market_attribute"]
        attributes = {}
        for half in (halves["train"], halves["test"]):
            columns = {name: np.atleast_1d(values) for name, values in half.items()}
            for i, pid in enumerate(columns.pop("image_index")):
                attributes[int(pid)] = _market_words({name: int(values[i]) for name, values in columns.items()})
    except Exception as error:  # loadmat raises whatever its parser meets in a damaged file
        raise DataError(
            f"{path}: expected the struct market_attribute with the 27 attributes of train and test "
            f"({type(error).__name__}: {str(error)[:80]})."
        ) from None
    return attributes


def _market_words(values: dict[str, int]) -> dict[str, str]:
    words = {ours: meanings[values[theirs] - 1] for theirs, (ours, meanings) in MARKET_VALUES.items()}
    words["bag"] = " and ".join(bag for bag in MARKET_BAGS if values[bag] == 2) or "none"
    for ours, theirs, colours in (("upper_colour", "up", UPPER_COLOURS), ("lower_colour", "down", LOWER_COLOURS)):
        if found := [name for name in colours if values[theirs + name] == 2]:
            words[ours] = " and ".join(found)
    return words


def market_sentences(attributes: dict[str, str]) -> list[str]:
    """Two captions that say a person's Market-1501 attributes: as InteractReID's feedback words them, and in short."""
    who, she = f"{attributes['age']} {attributes['sex']}", "He" if attributes["sex"] == "man" else "She"
    bags = [f"a {bag}" for bag in attributes["bag"].split(" and ") if bag != "none"]
    hat = ["a hat"] if attributes["hat"] != "none" else []
    upper = f"{attributes.get('upper_colour', '')} {attributes['upper']}".strip()
    lower = f"{attributes.get('lower_colour', '')} {attributes['lower_length']} {attributes['lower']}".strip()
    has = " and ".join(["", *hat]) + (f", carrying {' and '.join(bags)}" if bags else "")
    wears = f"{lower} with {' and '.join(hat + bags)}" if hat + bags else lower
    article = "An" if who[0] in "aeiou" else "A"
    return [
        f"{article} {who} with {attributes['hair']} hair. {she} is in {upper} clothes, and wears {wears}.",
        f"{article} {who} in a {upper} top and {lower}, {attributes['hair']} hair{has}.",
    ]


def read_folder(root: Path, pictures: bool = True, trial: int = 1) -> Read:
    """A folder of one's own: with metadata.csv or metadata.jsonl, with Market-1501's names, or of pictures alone.

    By Market's names (`0002_c1s1_000451_03.jpg`: person, camera) -1 is junk and left out, 0 a distractor. Its folders
    bounding_box_train, bounding_box_test and query tell the split; everything else, and every other folder, is a
    gallery: all of it test, and without names each picture its own identity.
    """
    if files := metadata_files(root):
        return read_metadata(root, files, pictures)
    images, faults = find_pictures(root)
    if faults and not images:
        raise DataError(f"{root}: expected at least one picture that can be used; {faults[0]}")
    halves = [SPLIT_OF.get(image.split("/")[0], "") for image in images]
    if "bounding_box_test" in {image.split("/")[0] for image in images}:  # what lies beside is no part of the benchmark
        images, halves = zip(*(pair for pair in zip(images, halves, strict=True) if pair[1]), strict=True)
    matches = [OWN_NAME.match(image.rpartition("/")[2]) for image in images]
    if images and all(matches):
        people = [int(match[1]) for match in matches]
        rows = [
            {"split": half or "test", "pid": pid or DISTRACTOR, "image": image, "camid": int(match[2])}
            for image, half, pid, match in zip(images, halves, people, matches, strict=True)
            if pid >= 0
        ]
        layout = "a folder of pictures with Market-1501 names"
        layout += f" (junk left out: {people.count(-1):,})" if -1 in people else ""
        layout += f" (distractors: {people.count(0):,})" if 0 in people else ""
        return Read(make_table(rows, str(root)), layout, faults=faults)
    rows = ({"split": "test", "pid": pid, "image": image} for pid, image in enumerate(images))
    return Read(make_table(rows, str(root)), "a folder of pictures", faults=faults)
