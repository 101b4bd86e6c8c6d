"""The one table that every reader returns, a row a picture, and the data set around it."""

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from reidlib.errors import ConfigError, DataError

if TYPE_CHECKING:  # it needs torch, which is slow to import
    from reidlib.query import Query

SPLITS = ("train", "val", "test")
PARTS = {"text": "captions", "turns": "dialogues", "sketch": "sketches"}  # a part, and its name in a sentence
LISTS = (*PARTS, "text_bt")
COLUMNS = ("split", "pid", "image", "camid", *LISTS, "attributes")
DISTRACTOR = -1  # the pid of a picture of somebody whom no query looks for
NAMED = 10  # pictures that a warning names one by one; `check` names all


class Asked(NamedTuple):
    """Queries that a data set's own protocol asks of its test pictures, with the person each one looks for."""

    queries: "Sequence[Query]"  # pictures as paths relative to the root
    pids: Sequence[int]
    questions: Sequence[int] | None = None  # queries of one number are asked as one, the mean of their unit vectors


class Read(NamedTuple):
    """What a reader returns."""

    table: pd.DataFrame
    layout: str  # in words, for `PersonData.found`
    sketch_of: str = ""
    faults: Sequence[str] = ()
    notes: Sequence[str] = ()
    protocol: Mapping[str, Asked] = {}


@dataclass
class PersonData:
    """A data set in memory.

    `table` has a row a picture and always the columns `COLUMNS`: split, pid (int; -1 for a distractor, a person whom no
    query looks for), image (path relative to `root`), camid (-1 unknown), text (captions), turns (dialogues, each a
    list of (question, answer)), sketch (paths), text_bt (back-translations, as many as captions or none) and
    attributes. Where `sketch_of` is "person", a sketch shows the person and stands on every row of that person, and so
    may captions; where it is "image" they belong to the picture.

    `faults` tell, a sentence each, of pictures that are left out of the table because they cannot be used; `notes` are
    facts that need no repair. `protocol` holds, by name, the queries of a data set that says itself what is asked of
    its test pictures; it is empty where every caption, dialogue and sketch is a query.
    """

    name: str
    root: Path
    table: pd.DataFrame
    found: str
    sketch_of: str = ""
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    protocol: dict[str, Asked] = field(default_factory=dict)

    def split(self, name: str) -> pd.DataFrame:
        """The rows of "train", "val" or "test" with a fresh index from 0; empty where there are none."""
        if name not in SPLITS:
            raise ConfigError(f"There is no split {name!r}; expected one of {', '.join(SPLITS)}.")
        return self.table[self.table["split"] == name].reset_index(drop=True)

    def has(self, part: str, split: str = "") -> bool:
        """Whether a picture (of `split`) has a "text", "turns" or "sketch"."""
        rows = self.split(split) if split else self.table
        return bool(rows[part].str.len().any())

    def require(self, *parts: str, splits: Sequence[str] = ()) -> None:
        """Raises DataError, one sentence, where the data set lacks a part or a split that a notebook cannot do without.

        A part is "text", "turns" or "sketch"; "a|b" asks for either. It must be there in each of `splits`, or, where
        none is named, anywhere.
        """
        for split in splits:
            if self.split(split).empty:
                raise DataError(f"This needs a {split} split, and {self.name} at {self.root} has none; {self.found}")
        for wanted in parts:
            either = wanted.split("|")
            for split in splits or ("",):
                if not any(self.has(part, split) for part in either):
                    words = " or ".join(PARTS[part] for part in either)
                    where = f" in its {split} split" if split else ""
                    raise DataError(f"This needs {words}, and {self.name} at {self.root} has none{where}; {self.found}")

    @property
    def pictures(self) -> list[str]:
        """Every picture by its path, once: photos, sketches, and what the protocol asks with."""
        sketches = (path for paths in self.table["sketch"] for path in paths)
        asked = (p for a in self.protocol.values() for query in a.queries for p in (query.sketch, query.photo) if p)
        return list(dict.fromkeys([*self.table["image"], *sketches, *asked]))

    def leave_out(self, faults: Mapping[str, str]) -> None:
        """Takes pictures and sketches that cannot be read out of the table, with one warning; path -> what is wrong.

        Raises DataError where no picture would be left.
        """
        if not faults:
            return
        first = first_faults(faults.values())
        kept = self.table[~self.table["image"].isin(faults.keys())].reset_index(drop=True)
        if kept.empty:
            raise DataError(f"None of the {len(self.table):,} pictures of {self.name} can be read: {first}")
        kept["sketch"] = [[path for path in paths if path not in faults] for paths in kept["sketch"]]
        warnings.warn(
            f"Pictures of {self.name} that cannot be read and are left out: {len(faults):,}. {first}",
            stacklevel=3,
        )
        self.table = kept
        for name, asked in self.protocol.items():
            whole = [n for n, query in enumerate(asked.queries) if not {query.sketch, query.photo} & faults.keys()]
            columns = [None if column is None else [column[n] for n in whole] for column in asked]
            self.protocol[name] = Asked(*columns)
        self.faults += faults.values()

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the whole table: another record, split or word gives another fingerprint."""
        content = self.table.to_json(orient="split", default_handler=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def join(sets: Sequence[PersonData]) -> PersonData:
    """Several data sets as one to train on: all of their training people, and of the first val and test as well.

    Identities stay apart. Parts that only some of the sets have are missing in the rows of the others.
    """
    first = sets[0]
    root = Path(os.path.commonpath([data.root.resolve() for data in sets]))
    tables, above = [], 0
    for data in sets:
        table = data.table if data is first else data.split("train")
        prefix = data.root.resolve().relative_to(root).as_posix()
        table = table.assign(
            pid=table["pid"].where(table["pid"] == DISTRACTOR, table["pid"] + above),
            image=[f"{prefix}/{path}" for path in table["image"]],
            sketch=[[f"{prefix}/{path}" for path in paths] for paths in table["sketch"]],
        )
        above = max(above, table["pid"].max() + 1)
        tables.append(table)
    name, found = "+".join(data.name for data in sets), " ".join(data.found for data in sets)
    faults, notes = ([text for data in sets for text in getattr(data, kind)] for kind in ("faults", "notes"))
    return PersonData(name, root, pd.concat(tables, ignore_index=True), found, first.sketch_of, faults, notes)


def make_table(rows: Iterable[dict], source: str) -> pd.DataFrame:
    """The table of `rows`, dicts with at least split, pid and image; several rows of one picture become one.

    Raises DataError, naming `source`, for no row at all and for a picture with two identities or two splits.
    """
    merged: dict[str, dict] = {}
    for row in rows:
        first = merged.setdefault(row["image"], row)
        if first is not row:
            _merge(first, row, source)
    if not merged:
        raise DataError(f"{source}: expected at least one picture, found none.")
    blank = {"camid": lambda: -1, "attributes": dict} | dict.fromkeys(LISTS, list)
    columns = {
        name: [row[name] if name in row else blank[name]() for row in merged.values()]  # noqa: SIM401 a fresh default
        for name in COLUMNS
    }
    return pd.DataFrame(columns).astype({"pid": "int64", "camid": "int64"})


def _merge(first: dict, row: dict, source: str) -> None:
    for key in ("pid", "split"):
        if first[key] != row[key]:
            raise DataError(
                f"{source}: the picture {row['image']!r} has the {key} {first[key]!r} in one record and {row[key]!r} "
                "in another; expected one."
            )
    texts, more = first.get("text", []), row.get("text", [])
    if first.get("text_bt") or row.get("text_bt"):
        first["text_bt"] = (first.get("text_bt") or texts) + (row.get("text_bt") or more)
    first["text"] = texts + more
    first["turns"] = first.get("turns", []) + row.get("turns", [])
    first["sketch"] = list(dict.fromkeys([*first.get("sketch", []), *row.get("sketch", [])]))


def captions(table: pd.DataFrame, sketch_of: str) -> pd.DataFrame:
    """pid and text, a row a caption; one that stands on several rows of its person, as `sketch_of` allows, is one."""
    found = table[["pid", "text"]].explode("text").dropna()
    return found.drop_duplicates() if sketch_of == "person" else found


def counts(table: pd.DataFrame, sketch_of: str) -> dict[str, int]:
    """How many identities, pictures, captions, dialogues and sketches a table holds."""
    return {
        "identities": table["pid"][table["pid"] >= 0].nunique(),
        "pictures": len(table),
        "captions": len(captions(table, sketch_of)),
        "dialogues": int(table["turns"].str.len().sum()),
        "sketches": len({path for paths in table["sketch"] for path in paths}),
    }


def absent(root: Path, paths: Iterable[str]) -> list[str]:
    """Those of `paths` (relative to `root`) that are not there; lists each folder once instead of asking a file."""
    listed: dict[str, set[str]] = {}
    missing = []
    for path in dict.fromkeys(paths):
        folder, _, name = path.rpartition("/")
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(root / folder))  # noqa: PTH208 names, not paths
            except OSError:
                listed[folder] = set()
        if name not in listed[folder]:
            missing.append(path)
    return missing


def first_faults(faults: Iterable[str]) -> str:
    """The first ten of many sentences."""
    faults = list(faults)
    rest = f" ... (`reid check` names all {len(faults):,})" if len(faults) > NAMED else ""
    return " ".join(faults[:NAMED]) + rest


def examples(items: Iterable) -> str:
    """The first three of `items`, in words."""
    items = [repr(item) if isinstance(item, str) else str(item) for item in items]
    return ", ".join(items[:3]) + (" ..." if len(items) > 3 else "")
