"""Compares a data set with what its authors count (counts.csv) and with what is on the disk."""

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd

from reidlib.data.table import SPLITS, PersonData, absent, captions, counts, examples
from reidlib.errors import DataError
from reidlib.progress import tqdm

PUBLISHED = Path(__file__).with_name("counts.csv")  # of the data sets' authors; the split "all" counts over all splits


@dataclass
class Report:
    """What `check` found; `problems` are faults, one sentence each, `notes` are facts that need no repair."""

    name: str
    counts: pd.DataFrame  # a row a split; columns identities, pictures, captions, dialogues, sketches
    published: dict[str, dict[str, int]]  # split -> column -> count
    missing: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)  # picture -> a sentence
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


@cache
def published(name: str) -> dict[str, dict[str, int]]:
    """split -> column -> count, as the authors of the data set `name` say; empty where they are not known."""
    found: dict[str, dict[str, int]] = {}
    for row in pd.read_csv(PUBLISHED).query("dataset == @name").itertuples():
        found.setdefault(row.split, {})[row.column] = int(row.number)
    return found


def check(data: PersonData, *, decode: bool = True) -> Report:
    """Compares `data` with the published counts and with the disk; `decode=False` lists files without opening them."""
    table = data.table
    report = Report(data.name, *_counts(data), problems=list(data.faults), notes=list(data.notes))
    for split, columns in report.published.items():
        for column, count in columns.items():
            if (found := report.counts.loc[split, column]) != count:
                report.problems.append(f"{split} has {found:,} {column}, published are {count:,}.")

    files = data.pictures
    report.missing = absent(data.root, files)
    if report.missing:
        report.problems.append(
            f"Files missing under {data.root}: {len(report.missing):,} ({examples(report.missing)})."
        )
    if decode:
        report.unreadable = unreadable(data.root, sorted(set(files) - set(report.missing)))
        report.problems += report.unreadable.values()

    splits_of = table[table["pid"] >= 0].groupby("pid")["split"].nunique()
    report.shared_pids = splits_of.index[splits_of > 1].tolist()
    if report.shared_pids:
        report.problems.append(
            f"Identities in more than one split: {len(report.shared_pids):,} ({examples(report.shared_pids)})."
        )
    _check_captions(report, captions(table, data.sketch_of))
    return report


def _counts(data: PersonData) -> tuple[pd.DataFrame, dict[str, dict[str, int]]]:
    parts = {name: data.split(name) for name in SPLITS}
    parts["train + val"] = pd.concat([parts["train"], parts["val"]])
    parts["all"] = data.table
    expected = dict(published(data.name))
    if "train" in expected and "val" not in expected:
        expected = {"train + val": expected.pop("train")} | expected
    wanted = [name for name, part in parts.items() if name in expected or name in SPLITS and len(part)]
    rows = {name: counts(parts[name], data.sketch_of) for name in wanted}
    return pd.DataFrame.from_dict(rows, orient="index"), expected


def unreadable(root: Path, files: list[str]) -> dict[str, str]:
    """What is wrong with those of `files` that cannot be decoded, a sentence each."""
    from reidlib.data.images import open_image

    def fault(path: str) -> str:
        try:
            open_image(root / path)
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        faults = tqdm(pool.map(fault, files), total=len(files), desc="decoding", disable=len(files) < 1000, leave=False)
        return {path: text for path, text in zip(files, faults, strict=True) if text}


def _check_captions(report: Report, table: pd.DataFrame) -> None:
    texts = list(table.itertuples(index=False, name=None))
    wordless = [caption for _, caption in texts if not re.search(r"\w", caption)]
    if wordless:
        report.problems.append(f"Captions empty after cleaning: {len(wordless):,} ({examples(wordless)}).")
    plain = [(pid, " ".join(caption.lower().split())) for pid, caption in texts]
    report.duplicated = {text: times for text, times in Counter(text for _, text in plain).most_common() if times > 1}
    if report.duplicated:
        people = Counter(text for _, text in set(plain))
        shared = sum(people[text] > 1 for text in report.duplicated)
        report.notes.append(
            f"Captions that occur more than once: {len(report.duplicated):,}, {shared:,} of them for different people "
            f"({examples(report.duplicated)})."
        )
