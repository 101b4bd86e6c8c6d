"""Layouts that are folders of pictures: PKU-Sketch, Market-Sketch-1K and any plain folder."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reidlib.data.readers.records import Read, picture_of, read_text, text_of
from reidlib.data.table import absent, make_table
from reidlib.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
MARKET_NAME = re.compile(r"(-1|\d{4})(?:_c(\d+))?")  # 0002_c1s1_000451_03.jpg; -1 marks a junk box
UPPER_COLOURS = ("black", "white", "red", "purple", "yellow", "gray", "blue", "green")
LOWER_COLOURS = ("black", "white", "pink", "purple", "yellow", "gray", "blue", "green", "brown")
# What 1, 2, ... mean in market_attribute.mat, as its authors list them; the colours and bags are 1 (no) or 2 (yes).
MARKET_VALUES = {
    "gender": ("sex", ("man", "woman")),
    "age": ("age", ("young", "teenage", "adult", "old")),
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
    return make_table(rows, str(root / "idx")), layout, "person"


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


def pictures_in(folder: Path) -> list[str]:
    """Paths of all pictures below `folder`, relative to it, sorted; hidden folders and files are left out."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        base = Path(parent).relative_to(folder)
        found += [(base / n).as_posix() for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    return sorted(text_of(path, "a picture's name") for path in found)


def read_market(root: Path, pictures: bool, trial: int = 1) -> Read:
    """Market-Sketch-1K: `photo/{train,query}`, `sketch/{A..F}/{train,query}`, names that begin with the identity.

    The names are the annotations, so the pictures must be there. Attributes and captions come from
    `market_attribute.mat` of Market-1501_Attribute where it is there.
    """
    halves = {"train": "train", "query": "test"}
    photos = [
        (split, f"photo/{half}/{p}") for half, split in halves.items() for p in pictures_in(root / "photo" / half)
    ]
    if not photos:
        raise DataError(f"{root}: expected photos in photo/train/ and photo/query/, found none.")
    sketches = defaultdict(list)
    for style in "ABCDEF":
        for half in halves:
            for name in pictures_in(root / "sketch" / style / half):
                path = f"sketch/{style}/{half}/{name}"
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
    return make_table(rows, str(root)), layout, "person"


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
        if colour := next((name for name in colours if values[theirs + name] == 2), ""):
            words[ours] = colour
    return words


def market_sentences(attributes: dict[str, str]) -> list[str]:
    """Two captions that say a person's Market-1501 attributes: as InteractReID's feedback words them, and in short."""
    who, she = f"{attributes['age']} {attributes['sex']}", "He" if attributes["sex"] == "man" else "She"
    hat = "" if attributes["hat"] == "none" else " and a hat"
    bag = "" if attributes["bag"] == "none" else " with a " + attributes["bag"].replace(" and ", " and a ")
    upper = f"{attributes.get('upper_colour', '')} {attributes['upper']}".strip()
    lower = f"{attributes.get('lower_colour', '')} {attributes['lower_length']} {attributes['lower']}".strip()
    carrying = bag.replace(" with", ", carrying")
    article = "An" if who[0] in "aeiou" else "A"
    return [
        f"{article} {who} with {attributes['hair']} hair{hat}. {she} is in {upper} clothes, and wears {lower}{bag}.",
        f"{article} {who} in a {upper} top and {lower}, {attributes['hair']} hair{hat}{carrying}.",
    ]


def read_folder(root: Path, pictures: bool, trial: int = 1) -> Read:
    """Any folder of pictures as a gallery: each its own identity, or Market's identities where all names say them."""
    images = pictures_in(root)
    matches = [re.match(r"(-1|\d{4})_c(\d+)s\d+_", image.rpartition("/")[2]) for image in images]
    if images and all(matches):
        rows = [
            {"split": "test", "pid": int(match[1]), "image": image, "camid": int(match[2])}
            for image, match in zip(images, matches, strict=True)
            if match[1] != "-1"
        ]
        return make_table(rows, str(root)), "a folder of pictures with Market-1501 names", ""
    rows = ({"split": "test", "pid": pid, "image": image} for pid, image in enumerate(images))
    return make_table(rows, str(root)), "a folder of pictures", ""
