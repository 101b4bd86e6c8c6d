"""Pictures of one's own with words: a folder with metadata.csv or metadata.jsonl, as Hugging Face's ImageFolder has it.

A row tells of one picture; several rows may tell of the same. `file_name` (relative to the file's own folder) must be
there, everything else may be: `caption` or `text` (also caption_2, caption_3 ...; in .jsonl also a list), `pid` and
`camid` (numbers or names), `split`, `sketch` or `sketch_file_name`, `dialogue` (a list of [question, answer], or of
such lists; in .csv as JSON), `attributes` (in .jsonl, a dict). Any other column is an attribute. Without `split` the
folders train/, validation/ and test/ tell it, and what lies elsewhere is test; without `pid` each picture is its own
identity.
"""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from reidlib.data.records import expect, get, parse_json, picture_of, read_text, text_of
from reidlib.data.table import DISTRACTOR, PersonData, Read, absent, examples, make_table
from reidlib.data.walk import find_pictures
from reidlib.errors import DataError
from reidlib.paths import write_text

NAMES = ("metadata.csv", "metadata.jsonl")
SPLIT_OF = dict.fromkeys(("train", "training", "bounding_box_train"), "train")
SPLIT_OF |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
SPLIT_OF |= dict.fromkeys(("test", "testing", "eval", "evaluation", "bounding_box_test", "query"), "test")
TEXT = re.compile(r"(caption|text)s?(_?\d+)?")
SKETCH = re.compile(r"sketch(es)?(_file_names?)?(_?\d+)?")
TURNS = ("dialogue", "dialogues", "turns")
KNOWN = ("file_name", "pid", "camid", "split", "attributes", *TURNS)


def metadata_files(root: Path) -> list[Path]:
    """The metadata of a folder: its own, else those of the folders in it. DataError where .csv and .jsonl mix."""
    files = [root / name for name in NAMES if (root / name).is_file()]
    files = files or sorted(path for name in NAMES for path in root.glob(f"*/{name}") if path.is_file())
    if len({path.suffix for path in files}) > 1:
        raise DataError(f"{root}: expected metadata.csv or metadata.jsonl, found both; keep one of them.")
    if not files and next(root.glob("**/metadata.parquet"), None):
        raise DataError(f"{root}: expected metadata.csv or metadata.jsonl; metadata.parquet is not read.")
    return files


def read_metadata(root: Path, files: Sequence[Path], pictures: bool = True) -> Read:
    """The table of a folder with metadata. A row whose picture or sketch is not there is left out with a sentence."""
    rows, repeats, seen = [], [], {}
    for file in files:
        for where, record in _records(file):
            try:
                row = _row(record, root, file.parent)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            first = seen.setdefault(json.dumps(row, sort_keys=True), where)
            if first is where:
                rows.append(row | {"where": where})
            else:
                repeats.append(f"{where} (as {first})")
    if not rows:
        raise DataError(f"{files[0]}: expected at least one row, found none.")
    _number(rows, "pid", "image")
    _number(rows, "camid")
    names = " and ".join(path.relative_to(root).as_posix() for path in files)
    notes = [f"Rows that repeat another and count once: {len(repeats):,} ({examples(repeats)})."] if repeats else []
    faults = _missing(rows, root) if pictures else []
    rows = [row for row in rows if row]
    layout = names if any(row.pop("told") for row in rows) else f"{names} without a split, so all is test"
    table = make_table(({k: v for k, v in row.items() if k != "where"} for row in rows), names)
    if pictures:
        found, unusable = find_pictures(root)
        faults += unusable
        spare = sorted(set(found) - set(table["image"]) - {path for paths in table["sketch"] for path in paths})
        notes += [f"Pictures without a row in {names}, left out: {len(spare):,} ({examples(spare)})."] if spare else []
    return Read(table, layout, _share_sketches(table), faults, notes)


def _records(file: Path) -> Iterator[tuple[str, dict]]:
    """(place, record) for each row of a metadata file."""
    text = read_text(file)
    if file.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                where = f"{file}, line {number}"
                record = parse_json(line, where)
                if not isinstance(record, dict):
                    raise DataError(f'{where}: expected an object such as {{"file_name": ...}}, found {line[:60]!r}.')
                yield where, record
        return
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        heading = [name.strip() for name in reader.fieldnames or []]
        if "file_name" not in heading or len(set(heading)) < len(heading):
            raise DataError(f"{file}: expected a heading of different columns with file_name, found {heading[:9]}.")
        reader.fieldnames = heading
        for record in reader:
            where = f"{file}, line {reader.line_num}"
            if None in record or None in record.values():
                raise DataError(f"{where}: expected {len(heading)} values, found another number of them.")
            yield where, record
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: expected comma-separated values, but {error}.") from None


def _row(record: dict, root: Path, folder: Path) -> dict:
    def path_of(value: object) -> str:
        name = picture_of(value, folder)
        return name if folder == root else f"{folder.relative_to(root).as_posix()}/{name}"

    row = {"image": path_of(get(record, "file_name")), "pid": _name(record, "pid"), "camid": _name(record, "camid")}
    row["split"], row["told"] = _split(record.get("split"), row["image"])
    row["text"] = [text for key in record if TEXT.fullmatch(key) for text in _texts(record[key], key)]
    row["sketch"] = [path_of(p) for key in record if SKETCH.fullmatch(key) for p in _texts(record[key], key)]
    row["turns"] = [turns for key in TURNS for turns in _dialogues(record.get(key), key)]
    row["attributes"] = _attributes(record)
    return row


def _name(record: dict, key: str) -> int | str | None:
    """The value of a column of numbers or names; None where the cell is empty."""
    value = record.get(key)
    expect(value is None or type(value) is int or isinstance(value, str), f"{key!r} to be a number or a name", value)
    if isinstance(value, str):
        value = value.strip()
        value = int(value) if re.fullmatch(r"-?\d{1,9}", value) else value
    expect(type(value) is not int or -1 <= value < 2**31, f"{key!r} to be a whole number from -1 on", value)
    return None if value == "" else value


def _split(value: object, image: str) -> tuple[str, bool]:
    """The split, and whether anything told it."""
    if value is None or value == "":
        split = next((SPLIT_OF[part] for part in image.split("/")[:-1] if part in SPLIT_OF), "")
        return split or "test", bool(split)
    expect(isinstance(value, str) and value.strip().lower() in SPLIT_OF, "'split' to be train, val or test", value)
    return SPLIT_OF[value.strip().lower()], True


def _texts(value: object, key: str) -> list[str]:
    """A cell as texts: a text, a list of them, or nothing."""
    texts = [] if value is None else value if isinstance(value, list) else [value]
    expect(all(text is None or isinstance(text, str) for text in texts), f"{key!r} to be a text or texts", value)
    return [text_of(text.strip(), repr(key)) for text in texts if text and text.strip()]


def _dialogues(value: object, key: str) -> list[list[tuple[str, str]]]:
    """One dialogue of [question, answer] or a list of such; in a .csv file as JSON."""
    if isinstance(value, str):
        value = parse_json(value, repr(key)) if value.strip() else None
    if value in (None, []):
        return []
    wanted = f"{key!r} to be a list of [question, answer]"
    expect(isinstance(value, list) and isinstance(value[0], list) and value[0], wanted, value)
    dialogues = [value] if isinstance(value[0][0], str) else value
    for turns in dialogues:
        pairs = isinstance(turns, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in turns)
        expect(pairs and turns, wanted, turns)
    return [[tuple(text_of(text, f"a text of {key!r}") for text in turn) for turn in turns] for turns in dialogues]


def _attributes(record: dict) -> dict[str, str]:
    given = record.get("attributes") or {}
    expect(isinstance(given, dict), "'attributes' to be named values", given)
    others = {k: v for k, v in record.items() if k not in KNOWN and not TEXT.fullmatch(k) and not SKETCH.fullmatch(k)}
    found = {}
    for key, value in (given | others).items():
        expect(value is None or isinstance(value, str | int | float), f"{key!r} to be a text or a number", value)
        if value is not None and str(value).strip():
            found[text_of(key, "an attribute's name")] = text_of(str(value).strip(), repr(key))
    return found


def _number(rows: list[dict], column: str, each: str = "") -> None:
    """Makes a column whole numbers: as they are, or, where one of them is a name, in the order of appearance.

    A row without one gets -1, or with `each` a number of its own for every value of that other column.
    """
    values = list(dict.fromkeys(row[column] for row in rows if row[column] is not None))
    named = any(isinstance(value, str) for value in values)
    number = {v: n for n, v in enumerate(v for v in values if v != DISTRACTOR)} if named else {v: v for v in values}
    after, own = max(number.values(), default=-1) + 1, {}
    for row in rows:
        if row[column] is None and each:
            row[column] = own.setdefault(row[each], after + len(own))
        else:
            row[column] = number.get(row[column], DISTRACTOR)


def _missing(rows: list[dict], root: Path) -> list[str]:
    """Empties the rows whose picture is not there and takes missing sketches out of the others; a sentence on each."""
    gone, faults = set(absent(root, [path for row in rows for path in (row["image"], *row["sketch"])])), []
    for row in rows:
        for path in row["sketch"]:
            if path in gone:
                faults.append(f"{row['where']}: the sketch {path!r} is not there; it is left out.")
        row["sketch"] = [path for path in row["sketch"] if path not in gone]
        if row["image"] in gone:
            faults.append(f"{row['where']}: the picture {row['image']!r} is not there; it is left out.")
            row.clear()
    if not any(rows):
        raise DataError(f"{root}: expected pictures to be there; {faults[0]}")
    return faults


def _share_sketches(table: pd.DataFrame) -> str:
    """Whose sketches are: the "image"'s, or, where one is named twice, the "person"'s and so on all of their rows."""
    drawn = table[["pid", "sketch"]].explode("sketch").dropna()
    if drawn.empty or not drawn["sketch"].duplicated().any():
        return "" if drawn.empty else "image"
    owner = table["pid"].where(table["pid"] >= 0, DISTRACTOR - table.index)  # of the distractors, each picture itself
    of = table.groupby(owner)["sketch"].agg(lambda lists: list(dict.fromkeys(x for items in lists for x in items)))
    table["sketch"] = [list(of[key]) for key in owner]
    return "person"


def write_folder(data: PersonData, folder: Path | str) -> Path:
    """Writes a data set as a folder of one's own: pictures, sketches and metadata.jsonl, which is returned.

    Pictures are linked where the disk allows it, else copied. Hugging Face's `load_dataset("imagefolder")` reads it.
    """
    folder = Path(folder)
    for path in [*data.table["image"], *(path for paths in data.table["sketch"] for path in paths)]:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            try:
                os.link(data.root / path, target)
            except OSError:
                shutil.copyfile(data.root / path, target)
    lines = []
    for row in data.table.itertuples():
        about = {"file_name": row.image, "pid": row.pid, "camid": row.camid, "split": row.split, "caption": row.text}
        about |= {"sketch_file_names": row.sketch, "dialogues": row.turns, "attributes": row.attributes}
        lines.append(json.dumps(about, ensure_ascii=False) + "\n")
    write_text(folder / "metadata.jsonl", "".join(lines))
    return folder / "metadata.jsonl"
