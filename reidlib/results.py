"""Finds the runs in outputs/ and makes one table of their metrics."""

import json
import warnings
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from reidlib.errors import DataError

METRICS = ["R@1", "R@5", "R@10", "mAP", "mINP"]
APART = ["preset", "settings"]  # what else may distinguish two runs of a label
FORMULA = ("=", "+", "-", "@", "\t", "\r")
GROUP = ["method", "label", "dataset", "split", "task", "round"]


def find_results(folder: Path) -> pd.DataFrame:
    """Every row of every `folder`/*/metrics.json, with its run's name in the column `run`; the oldest run first.

    A damaged file is passed over with a warning that names it.
    """
    rows = []
    for path in sorted(Path(folder).glob("*/metrics.json"), key=lambda path: (path.stat().st_mtime_ns, path)):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["rows"]
            rows += [{"run": path.parent.name, **_complete(row)} for row in found]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            warnings.warn(f"{path} is passed over: expected {{'rows': [...]}} ({error!r}).", stacklevel=2)
    columns = ["run", *GROUP, "seed", *METRICS]
    frame = _told_apart(pd.DataFrame(rows, columns=None if rows else [*columns, *APART]))
    return frame[columns + [column for column in frame.columns if column not in columns]]


def _told_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """Labels with their preset and settings behind them, where rows of one label differ in these.

    The column `written` keeps the label as its run wrote it.
    """
    rows["written"] = rows["label"]
    group = rows.groupby([name for name in GROUP if name != "round"], dropna=False)
    for name in APART:
        several = group[name].transform("nunique") > 1
        said = several & (rows[name] != "")
        rows.loc[said, "label"] += " (" + rows.loc[said, name] + ")"
    return rows


def _complete(row: dict) -> dict:
    """The row with every column of the table; KeyError without method, dataset and task, TypeError for other types."""
    named = {key: row[key] for key in ("method", "dataset", "task")}
    row = {**dict.fromkeys((*GROUP, *APART), ""), "seed": 0, **dict.fromkeys(METRICS), **row, **named}
    expected = dict.fromkeys((*GROUP, *APART), str) | {"round": int | str, "seed": int}
    for key, kind in (expected | dict.fromkeys(METRICS, int | float | None)).items():
        if not isinstance(row[key], kind) or isinstance(row[key], bool):
            raise TypeError(f"{key} is {row[key]!r}")
    return row


def without_rounds(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of whole queries: those measured after a certain round of a dialogue or session are left out."""
    return results[pd.to_numeric(results["round"], errors="coerce").isna()]


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each method, label, dataset, split, task and round: mean over seeds, `<metric> sd` beside it.

    `seeds` counts the seeds; the standard deviation is the sample's (n - 1), NaN for one seed. Where the same seed
    was scored twice, the newer run counts.
    """
    newest = results.drop_duplicates([*GROUP, "seed"], keep="last")
    scores = newest.astype(dict.fromkeys(METRICS, float)).groupby(GROUP, sort=True)
    table = scores["seed"].nunique().to_frame("seeds")
    for metric in METRICS:
        table[metric] = scores[metric].mean()
        table[f"{metric} sd"] = scores[metric].std(ddof=1)
    return table.reset_index()


def per_query(folder: Path, dataset: str) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """What each query of the test split fared: (label, task) -> {"first", "average_precision"}, each (seeds, Q).

    Labels are those of `find_results`. Newer runs of the same seed win; runs whose number of queries differs from the
    newest are left out. A damaged file is passed over with a warning that names it.
    """
    found: dict[tuple[str, str], dict[str, dict[str, np.ndarray]]] = {}
    rows = find_results(folder)
    labels = {
        (run, written): label for run, written, label in zip(rows["run"], rows["written"], rows["label"], strict=True)
    }
    for path in sorted(Path(folder).glob("*/per_query.npz"), key=lambda path: (path.stat().st_mtime_ns, path)):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                parts = {tuple(key.split("|")): arrays[key] for key in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(f"{path} is passed over: expected arrays of a run ({error!r}).", stacklevel=2)
            continue
        for (_, label, of, seed, task, what), array in parts.items():
            if of == dataset:
                label = labels.get((path.parent.name, label), label)
                found.setdefault((label, task), {}).setdefault(what, {})[seed] = array
    return {key: {what: _stacked(seeds) for what, seeds in parts.items()} for key, parts in found.items()}


def _stacked(seeds: dict[str, np.ndarray]) -> np.ndarray:
    """In the order of the seeds, whichever was run first, so that two ways of searching are paired seed by seed."""
    newest = len(list(seeds.values())[-1])
    return np.stack(
        [seeds[seed] for seed in sorted(seeds, key=lambda seed: (len(seed), seed)) if len(seeds[seed]) == newest]
    )


def differences(before: Path, after: Path) -> pd.DataFrame:
    """What differs between the metrics of two runs' folders, exactly: columns value, before, after; empty if nothing.

    Raises DataError where a run has no metrics.json.
    """
    old, new = (_values(_read(Path(folder) / "metrics.json", {"built_on"})) for folder in (before, after))
    changed = [name for name in {**old, **new} if not _same(old.get(name, ""), new.get(name, ""))]
    rows = [(name, old.get(name, ""), new.get(name, "")) for name in changed]
    return pd.DataFrame(rows, columns=["value", "before", "after"])


def other_conditions(before: Path, after: Path) -> list[str]:
    """A sentence for each of versions, machine, commit, data and models built on in which two runs' folders differ."""
    old, new = ({**_read(Path(folder) / "config.json"), **_built_on(folder)} for folder in (before, after))
    told = []
    for key in ("config", "data_fingerprint", "versions", "machine", "commit", "built_on"):
        was, now = _values(old.get(key), key), _values(new.get(key), key)
        told += [
            f"{name} was {was.get(name, 'not recorded')!r} and is {now.get(name, 'not recorded')!r}."
            for name in {**was, **now}
            if name not in was or name not in now or not _same(was[name], now[name])
        ]
    if old.get("commit") == new.get("commit") and "dirty" in str(old.get("commit")):
        told.append(f"The code differed from commit {old['commit']} and may have changed between the runs.")
    return told


def _built_on(folder: Path) -> dict:
    return {"built_on": _read(Path(folder) / "metrics.json").get("built_on")}


def _read(file: Path, without: Collection[str] = ()) -> dict:
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file} cannot be read; expected what a finished run writes ({error}).") from error
    return {key: value for key, value in content.items() if key not in without}


def _values(content: object, where: str = "") -> dict[str, object]:
    """Every single value in nested lists and dictionaries, by a readable path."""
    if isinstance(content, dict):
        inner = [(f"{where} {key}".strip(), value) for key, value in content.items()]
    elif isinstance(content, list):
        inner = [(f"{where} {_called(number, value)}", value) for number, value in enumerate(content)]
    else:
        return {} if content is None else {where: content}
    return {name: value for path, part in inner for name, value in _values(part, path).items()}


def _called(number: int, row: object) -> str:
    words = [str(row[key]) for key in ("label", "task", "round") if row.get(key)] if isinstance(row, dict) else []
    return f"{number} ({', '.join(words)})" if words else str(number)


def _same(one: object, other: object) -> bool:
    return one == other or (one != one and other != other)  # NaN is as good as NaN


def as_markdown(table: pd.DataFrame) -> str:
    """A table as Markdown."""
    lines = [table.columns, ["---"] * table.shape[1], *table.astype(str).to_numpy()]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def as_csv(summary: pd.DataFrame) -> str:
    """The summary as comma-separated values; text that a spreadsheet would take for a formula gets a ' in front."""
    plain = summary.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell[:1] in FORMULA else cell)
    return plain.to_csv(index=False)


def blocks(summary: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The summary to be read: for each data set and split a title and a table of `mean ± sd` in percent.

    Columns that say nothing are left out.
    """
    shown = summary[[*GROUP, "seeds"]].copy()
    shown["label"] = shown["label"].where(shown["label"] != "", shown["method"])
    for metric in METRICS:
        shown[metric] = [_cell(mean, sd) for mean, sd in zip(summary[metric], summary[f"{metric} sd"], strict=True)]
    for (dataset, split), block in shown.groupby(["dataset", "split"], sort=False):
        columns = [name for name in ("label", "task", "round", "seeds", *METRICS) if (block[name] != "").any()]
        yield ", ".join(filter(None, [dataset, split])), block[columns]


def as_text(summary: pd.DataFrame, width: int = 200) -> str:
    """`blocks` for a terminal `width` columns wide: where they are wider, metrics are left out and long labels cut."""
    texts = []
    for title, block in blocks(summary):
        for last in ("mINP", "R@5", "R@10", "mAP"):
            if _widest(block) > width:
                block = block.drop(columns=last, errors="ignore")
        longest = max(block["label"].str.len().max() - max(_widest(block) - width, 0), 8)
        labels = [label if len(label) <= longest else f"{label[: longest - 1]}…" for label in block["label"]]
        texts.append(f"{title}\n{block.assign(label=labels).to_string(index=False)}\n")
    return "\n".join(texts)


def _widest(table: pd.DataFrame) -> int:
    return len(table.to_string(index=False).split("\n", 1)[0])


def _cell(mean: float, sd: float) -> str:
    if pd.isna(mean):
        return ""
    return f"{mean:.2f}" if pd.isna(sd) else f"{mean:.2f} ± {sd:.2f}"
