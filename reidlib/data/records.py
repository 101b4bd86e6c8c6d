"""Layouts that are lists of JSON records: the CUHK-PEDES family, ChatPedes, MALS and Tri-PEDES."""

import json
import os
import posixpath
import reprlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pandas as pd

from reidlib.data.table import SPLITS, Read, absent, make_table
from reidlib.errors import DataError
from reidlib.paths import inside

TRI_PARTS = ("CUHK-PEDES", "ICFG-PEDES", "RSTPReid")
ANNOTATIONS = ("reid_raw.json", "ICFG-PEDES.json", "ICFG_PEDES.json", "data_captions.json")
MAX_ID = 2**31 - 1


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, found another encoding at byte {error.start}.") from None
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, but {error.strerror}.") from None


def parse_json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: expected JSON, but {error.msg} at line {error.lineno}.") from None
    except RecursionError:
        raise DataError(f"{where}: expected a list of records, found JSON nested too deep to read.") from None
    except ValueError:
        raise DataError(f"{where}: expected JSON with numbers of ordinary size.") from None


def expect(ok: bool, wanted: str, value: object) -> None:
    if not ok:
        raise DataError(f"expected {wanted}, found {reprlib.repr(value)}.")


def get(record: dict, *keys: str) -> object:
    """The value under the first of `keys` that `record` has."""
    for key in keys:
        if key in record:
            return record[key]
    raise DataError(f"expected the key {' or '.join(map(repr, keys))}, found only {reprlib.repr(sorted(record))}.")


def text_of(value: object, what: str) -> str:
    expect(isinstance(value, str) and not value.isspace() and value != "", f"{what} to be a text with words", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"expected {what} to be valid Unicode, found half a surrogate pair.") from None
    return value


def texts_of(value: object, what: str) -> list[str]:
    expect(isinstance(value, list) and value, f"{what} to be a list with at least one text", value)
    return [text_of(item, f"every text of {what}") for item in value]


def id_of(value: object) -> int:
    expect(type(value) is int and 0 <= value <= MAX_ID, f"'id' to be a whole number from 0 to {MAX_ID}", value)
    return value


def picture_of(value: object, root: Path) -> str:
    path = text_of(value, "the picture's path")
    expect("\0" not in path, "a path without a null character", path)
    inside(root, path)
    return posixpath.normpath(path.replace("\\", "/"))


def dialogues_of(value: object) -> list[list[tuple[str, str]]]:
    """`chats` as a list of dialogues of (question, answer); one dialogue alone is wrapped into a list."""
    expect(isinstance(value, list) and value and value[0] and isinstance(value[0], list), "'chats' of turns", value)
    return [_dialogue(turns) for turns in ([value] if isinstance(value[0][0], dict) else value)]


def _dialogue(turns: object) -> list[tuple[str, str]]:
    expect(isinstance(turns, list) and turns, "a dialogue to be a list with at least one turn", turns)
    pairs = []
    for turn in turns:
        two = isinstance(turn, list) and len(turn) == 2 and all(isinstance(message, dict) for message in turn)
        expect(two, "a turn to be a question and an answer", turn)
        speakers = [message.get("from") for message in turn]
        expect(speakers == ["gpt", "user"], "a turn to come from 'gpt' and then 'user'", speakers)
        pairs.append(tuple(text_of(get(message, "value"), "a turn's 'value'") for message in turn))
    return pairs


def person_row(record: dict, root: Path, split: str) -> dict:
    """A row from {id, file_path or img_path, captions and / or chats, captions_bt, split}.

    `split` is the one that the file's name says, "" where each record says its own; `captions_bt` may lack.
    """
    row = {"pid": id_of(get(record, "id")), "image": picture_of(get(record, "file_path", "img_path"), root)}
    row["split"] = get(record, "split") if not split else record.get("split", split)
    expect(row["split"] in ((split,) if split else SPLITS), f"'split' to be {split or ', '.join(SPLITS)}", row["split"])
    if "chats" in record:
        row["turns"] = dialogues_of(record["chats"])
    if "captions" in record or "chats" not in record:
        row["text"] = texts_of(get(record, "captions"), "'captions'")
    if "captions_bt" in record:
        row["text_bt"] = _back_translations(record["captions_bt"], row.get("text", []))
    return row


def _back_translations(value: object, captions: list[str]) -> list[str]:
    """A back-translation that is blank is the caption itself, so that training never meets an empty text."""
    expect(isinstance(value, list) and len(value) in (0, len(captions)), "a 'captions_bt' for each caption", value)
    expect(all(isinstance(text, str) for text in value), "'captions_bt' to hold texts", value)
    pairs = zip(value, captions[: len(value)], strict=True)
    return [text_of(back if back.strip() else caption, "'captions_bt'") for back, caption in pairs]


def rows_of(records: object, where: str, row: Callable, kind: type = dict) -> Iterator:
    """`row(record)` for each record, a dict or, by `kind`, a list; a fault names the file and the record's number."""
    if not isinstance(records, list):
        raise DataError(f"{where}: expected a list of records, found {reprlib.repr(records)}.")
    for number, record in enumerate(records):
        try:
            expect(isinstance(record, kind), "a record with named fields" if kind is dict else "a list", record)
            yield row(record)
        except DataError as error:
            raise DataError(f"{where}, record {number} (counted from 0): {error}") from None


def find_annotations(root: Path) -> list[tuple[Path, str]]:
    """The annotation files of a data set folder and the split that each one's name says ("" where records say it)."""
    for name in ANNOTATIONS:
        if (root / name).is_file():
            return [(root / name, "")]
    for folder in (root, root / "processed_data"):
        if parts := [(folder / f"{s}_reid.json", s) for s in SPLITS if (folder / f"{s}_reid.json").is_file()]:
            return parts
    if raw := sorted(root.glob("reid_raw*.json")):
        return [(path, "") for path in raw]
    if (root / "caption_all.json").is_file():
        return [(root / "caption_all.json", "")]
    if (root / "synthpedes_dataset.json").is_file():  # SYNTH-PEDES names no split: all of it is for pre-training
        return [(root / "synthpedes_dataset.json", "train")]
    if len(only := list(root.glob("*.json"))) == 1:
        return [(only[0], "")]
    raise DataError(
        f"{root}: expected an annotation file ({', '.join(ANNOTATIONS)}, caption_all.json or "
        "train_reid.json, val_reid.json, test_reid.json), found none."
    )


def read_records(root: Path, pictures: bool, trial: int = 1) -> Read:
    """CUHK-PEDES, ICFG-PEDES, RSTPReid and ChatPedes, whichever of the known annotation files is there."""
    files = find_annotations(root)
    rows = [
        row
        for path, split in files
        for row in rows_of(parse_json(read_text(path), str(path)), str(path), lambda r, s=split: person_row(r, root, s))
    ]
    return place(rows, root, pictures, " and ".join(path.name for path, _ in files))


def read_mals(root: Path, pictures: bool, trial: int = 1) -> Read:
    """MALS: records {image, image_id, caption} in JSON or JSON-lines files of the folder or one level below it."""
    pids: dict = {}

    def row(record: dict) -> dict:
        key = get(record, "image_id")
        expect(type(key) is int or isinstance(key, str), "'image_id' to be a number or a name", key)
        image, caption = picture_of(get(record, "image"), root), get(record, "caption")
        captions = texts_of(caption if isinstance(caption, list) else [caption], "'caption'")
        return {"pid": pids.setdefault(key, len(pids)), "image": image, "split": "train", "text": captions}

    files = sorted(root.glob("*.json*")) or sorted(root.glob("*/*.json*"))
    if not files:
        raise DataError(f"{root}: expected JSON files with records of image, image_id and caption, found none.")
    rows = chain.from_iterable(rows_of(_json_or_lines(path), str(path), row) for path in files)
    return place(list(rows), root, pictures, files[0].name if len(files) == 1 else f"{len(files)} files of records")


def _json_or_lines(path: Path) -> object:
    text = read_text(path)
    if path.suffix != ".jsonl":
        return parse_json(text, str(path))
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [parse_json(line, f"{path}, line {number}") for number, line in lines]


def read_tri(root: Path, pictures: bool, trial: int = 1) -> Read:
    """Tri-PEDES: the three data sets beside each other, identities kept apart by an offset, paths by the folder."""
    tables, layouts, offset = [], [], 0
    for part in TRI_PARTS:
        if not (root / part).is_dir():
            raise DataError(f"{root}: expected the folders {', '.join(TRI_PARTS)}, but {part} is missing.")
        table, layout, *_ = read_records(root / part, pictures)
        table["pid"] += offset
        table["image"] = f"{part}/" + table["image"]
        table["sketch"] = [[f"{part}/{path}" for path in paths] for paths in table["sketch"]]
        offset = int(table["pid"].max()) + 1
        tables.append(table)
        layouts.append(f"{part}/{layout}")
    joined = pd.concat(tables, ignore_index=True)
    return Read(joined, ", ".join(layouts), "image" if joined["sketch"].str.len().any() else "")


def place(rows: list[dict], root: Path, pictures: bool, layout: str) -> Read:
    """The table of `rows` with pictures where they lie (`imgs/`, `imgs00/` or the folder itself) and their sketches."""
    tops = dict.fromkeys(row["image"].split("/")[0] for row in rows)
    folders = ("imgs", "", "imgs00")
    # os.path.exists is False for a name that is too long, where Path.exists raises.
    prefix = next((p for p in folders if any(os.path.exists(root / p / top) for top in tops)), None)  # noqa: PTH110
    if prefix is None:
        if pictures and rows:
            raise DataError(
                f"{root}: expected the pictures in imgs/, such as imgs/{rows[0]['image']}, found none of the "
                f"{len(rows):,} there (pictures=False reads the annotations alone)."
            )
        prefix = "" if set(tops) == {"imgs"} else "imgs"
    has_sketches, leading = (root / "imgs-sketch").is_dir(), f"{prefix or 'imgs'}/"
    for row in rows:
        if prefix:
            row["image"] = f"{prefix}/{row['image']}"
        if has_sketches:
            row["sketch"] = ["imgs-sketch/" + row["image"].removeprefix(leading)]
    table = make_table(rows, str(root / layout))
    if not has_sketches:
        return Read(table, layout)
    gone = set(absent(root, [path for paths in table["sketch"] for path in paths]))
    table["sketch"] = [[path for path in paths if path not in gone] for paths in table["sketch"]]
    note = f" (pictures without a sketch: {len(gone):,})" if gone else ""
    return Read(table, f"{layout} with imgs-sketch/{note}", "image")
