"""The one table every reader returns, a row a picture, and the check of such a table against the disk."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from reidlib.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
LISTS = ("text", "turns", "sketch", "text_bt")
COLUMNS = ("split", "pid", "image", "camid", "text", "turns", "sketch", "text_bt", "attributes")

# Identities, pictures, captions and sketches of each split as the data sets' authors count them (sources: the papers'
# statistics as repeated by IRRA and CFFA; DiaNA's ChatPedes has CUHK-PEDES' train and test pictures; MALS: APTM;
# PKU-Sketch: its ReadMe and the ten trials' lists; Market-Sketch-1K: its paper). "all" counts over the splits.
PUBLISHED: dict[str, dict[str, dict[str, int]]] = {
    "cuhk-pedes": {
        "train": {"identities": 11_003, "pictures": 34_054, "captions": 68_126},
        "val": {"identities": 1_000, "pictures": 3_078, "captions": 6_158},
        "test": {"identities": 1_000, "pictures": 3_074, "captions": 6_156},
    },
    "icfg-pedes": {
        "train": {"identities": 3_102, "pictures": 34_674, "captions": 34_674},
        "test": {"identities": 1_000, "pictures": 19_848, "captions": 19_848},
    },
    "rstpreid": {
        "train": {"identities": 3_701, "pictures": 18_505, "captions": 37_010},
        "val": {"identities": 200, "pictures": 1_000, "captions": 2_000},
        "test": {"identities": 200, "pictures": 1_000, "captions": 2_000},
    },
    "tri-pedes": {
        "train": {"identities": 17_806, "pictures": 87_233, "captions": 139_810},
        "val": {"identities": 1_200, "pictures": 4_078, "captions": 8_158},
        "test": {"identities": 2_200, "pictures": 23_922, "captions": 28_004},
    },
    "chatpedes": {
        "train": {"identities": 11_003, "pictures": 34_054},
        "test": {"identities": 1_000, "pictures": 3_074},
    },
    "mals": {"all": {"pictures": 1_510_330, "captions": 1_510_330}},
    "pku-sketch": {
        "train": {"identities": 150, "pictures": 300, "sketches": 150},
        "test": {"identities": 50, "pictures": 100, "sketches": 50},
    },
    "market-sketch-1k": {"all": {"sketches": 4_763}},
}


@dataclass
class PersonData:
    """A data set in memory.

    `table` has a row a picture and always the columns `COLUMNS`: split, pid (int), image (path relative to `root`),
    camid (-1 unknown), text (captions), turns (dialogues, each a list of (question, answer)), sketch (paths), text_bt
    (back-translations, as many as captions or none) and attributes. Where `sketch_of` is "person", sketches and
    captions describe the person and stand on every row of that person; where it is "image" they belong to the picture.
    """

    name: str
    root: Path
    table: pd.DataFrame
    found: str
    sketch_of: str = ""

    def split(self, name: str) -> pd.DataFrame:
        """The rows of "train", "val" or "test" with a fresh index from 0; empty where there are none."""
        if name not in SPLITS:
            raise ConfigError(f"There is no split {name!r}; expected one of {', '.join(SPLITS)}.")
        return self.table[self.table["split"] == name].reset_index(drop=True)

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the whole table: another record, split or word gives another fingerprint."""
        content = self.table.to_json(orient="split", default_handler=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


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


@dataclass
class Report:
    """What `check` found; `problems` are faults, one sentence each, `notes` are facts that need no repair."""

    name: str
    counts: pd.DataFrame  # a row a split; columns identities, pictures, captions, dialogues, sketches
    published: dict[str, dict[str, int]]  # split -> column -> count
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # one sentence a picture
    duplicated: dict[str, int] = field(default_factory=dict)  # caption -> how often
    shared_pids: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        cells = self.counts.map("{:,}".format)
        for split, columns in self.published.items():
            for column, count in columns.items():
                cells.loc[split, column] += f" ({count:,})"
        lines = [f"{self.name}: counts" + (" (published)" if self.published else ""), cells.to_string()]
        lines += [f"problem: {text}" for text in self.problems] + [f"note: {text}" for text in self.notes]
        return "\n".join([*lines, "whole" if self.ok else f"{len(self.problems)} problem(s)"])


def check(data: PersonData, *, decode: bool = True) -> Report:
    """Compares `data` with the published counts and with the disk; `decode=False` lists files without opening them."""
    table = data.table
    report = Report(data.name, *_counts(data))
    for split, columns in report.published.items():
        for column, count in columns.items():
            if (found := report.counts.loc[split, column]) != count:
                report.problems.append(f"{split} has {found:,} {column}, published are {count:,}.")

    files = list(dict.fromkeys(chain(table["image"], chain.from_iterable(table["sketch"]))))
    report.missing = absent(data.root, files)
    if report.missing:
        report.problems.append(f"Files missing under {data.root}: {len(report.missing):,} ({_some(report.missing)}).")
    if decode:
        report.unreadable = _unreadable(data.root, sorted(set(files) - set(report.missing)))
        if report.unreadable:
            report.problems.append(f"Unreadable pictures: {len(report.unreadable):,} ({_some(report.unreadable)}).")

    splits_of = table.groupby("pid")["split"].nunique()
    report.shared_pids = splits_of.index[splits_of > 1].tolist()
    if report.shared_pids:
        report.problems.append(
            f"Identities in more than one split: {len(report.shared_pids):,} ({_some(report.shared_pids)})."
        )
    _check_captions(report, described(table, data.sketch_of))
    return report


def described(table: pd.DataFrame, sketch_of: str) -> pd.DataFrame:
    """A row for each thing that captions describe, so that a person's captions are not counted once a picture."""
    return table.drop_duplicates("pid") if sketch_of == "person" else table


def _counts(data: PersonData) -> tuple[pd.DataFrame, dict[str, dict[str, int]]]:
    parts = {name: data.split(name) for name in SPLITS}
    parts["train + val"] = pd.concat([parts["train"], parts["val"]])
    parts["all"] = data.table
    published = dict(PUBLISHED.get(data.name, {}))
    if "train" in published and "val" not in published:
        published = {"train + val": published.pop("train")} | published
    wanted = [name for name, part in parts.items() if name in published or name in SPLITS and len(part)]
    rows = {}
    for name in wanted:
        part = parts[name]
        once = described(part, data.sketch_of)
        rows[name] = {
            "identities": part["pid"].nunique(),
            "pictures": len(part),
            "captions": sum(map(len, once["text"])),
            "dialogues": sum(map(len, once["turns"])),
            "sketches": len(set(chain.from_iterable(part["sketch"]))),
        }
    return pd.DataFrame.from_dict(rows, orient="index"), published


def _unreadable(root: Path, files: list[str]) -> list[str]:
    from reidlib.data.images import open_image

    def fault(path: str) -> str:
        try:
            open_image(root / path)
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        faults = tqdm(pool.map(fault, files), total=len(files), desc="decoding", disable=len(files) < 1000, leave=False)
        return [text for text in faults if text]


def _check_captions(report: Report, table: pd.DataFrame) -> None:
    captions = table[["pid", "text"]].explode("text").dropna()
    texts = list(captions.itertuples(index=False, name=None))
    wordless = [caption for _, caption in texts if not re.search(r"\w", caption)]
    if wordless:
        report.problems.append(f"Captions empty after cleaning: {len(wordless):,} ({_some(wordless)}).")
    plain = [(pid, " ".join(caption.lower().split())) for pid, caption in texts]
    report.duplicated = {text: times for text, times in Counter(text for _, text in plain).most_common() if times > 1}
    if report.duplicated:
        people = Counter(text for _, text in set(plain))
        shared = sum(people[text] > 1 for text in report.duplicated)
        report.notes.append(
            f"Captions that occur more than once: {len(report.duplicated):,}, {shared:,} of them for different people "
            f"({_some(report.duplicated)})."
        )


def _some(items: Iterable) -> str:
    items = [repr(item) if isinstance(item, str) else str(item) for item in items]
    return ", ".join(items[:3]) + (" ..." if len(items) > 3 else "")
