"""The ways people are searched for: by caption, by sketch, by both, by dialogue; what counts as found in each."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from reidlib.data import PersonData
from reidlib.errors import DataError
from reidlib.evaluation.encoding import Encoder
from reidlib.evaluation.metrics import Ranks, rank, top_k

KIND_OF = {"t2i": "text", "s2i": "sketch", "st2i": "sketch+text", "d2i": "dialogue"}
QUERY_PARTS = ("texts", "sketches", "dialogues")


@dataclass(frozen=True)
class Task:
    """Queries of one kind against a gallery; a gallery picture of the query's pid is a right answer.

    sources: for each query the gallery row that it came from and that must be left out, or -1.
    """

    name: str  # "t2i", "s2i", "st2i", "d2i"
    split: str
    gallery: tuple[str, ...]  # picture paths
    gallery_pids: np.ndarray
    query_pids: np.ndarray
    texts: tuple[str, ...] = ()
    sketches: tuple[str, ...] = ()
    dialogues: tuple = ()
    sources: np.ndarray | None = None
    pooled: bool = False  # all sketches of a person make one query

    @property
    def kind(self) -> str:
        return KIND_OF[self.name.split()[0]]

    def embed(self, encoder: Encoder) -> Tensor:
        """The queries' embeddings, (Q, D)."""
        if self.kind == "text":
            return encoder.texts(self.texts)
        if self.kind == "sketch":
            return encoder.sketches(self.sketches)
        if self.kind == "dialogue":
            return encoder.dialogues(self.dialogues)
        return encoder.composed(self.sketches, self.texts)

    def subset(self, queries: Sequence[int]) -> "Task":
        """The same task with some of its queries."""
        chosen = list(queries)
        parts = {name: tuple(getattr(self, name)[i] for i in chosen if getattr(self, name)) for name in QUERY_PARTS}
        sources = None if self.sources is None else self.sources[chosen]
        return replace(self, query_pids=self.query_pids[chosen], sources=sources, **parts)

    def ranking(self, encoder: Encoder, queries: Sequence[int], root: Path, k: int = 10) -> list[tuple]:
        """For each of some queries what a figure of its ranking needs: (query, pictures, correct, scores), best first.

        The query is its words, its sketch, or (sketch, words); pictures are paths.
        """
        part = self.subset(queries)
        scores, rows = top_k(part.embed(encoder), encoder.gallery(self.gallery), k + 1)
        found = []
        for number in range(len(part.query_pids)):
            own = -1 if part.sources is None else part.sources[number]
            best = [
                (row, score)
                for row, score in zip(rows[number].tolist(), scores[number].tolist(), strict=True)
                if row != own
            ][:k]
            words = (
                part.texts[number]
                if part.texts
                else " / ".join(a for _, a in part.dialogues[number])
                if part.dialogues
                else ""
            )
            drawn = root / part.sketches[number] if part.sketches else None
            query = (drawn, words) if drawn and words else drawn or words
            pictures = [root / self.gallery[row] for row, _ in best]
            correct = [bool(self.gallery_pids[row] == part.query_pids[number]) for row, _ in best]
            found.append((query, pictures, correct, [score for _, score in best]))
        return found

    def rank(self, queries: Tensor, gallery: Tensor) -> Ranks:
        """Ranks embeddings (Q, D) and (G, D) under this protocol."""
        device = queries.device
        query_pids = torch.as_tensor(self.query_pids, device=device)
        if self.pooled:
            query_pids, person = query_pids.unique(return_inverse=True)
            unit = torch.nn.functional.normalize(queries, dim=1)
            queries = torch.zeros(len(query_pids), queries.shape[1], device=device).index_add_(0, person, unit)
        sources = ()
        if self.sources is not None:
            sources = (torch.as_tensor(self.sources, device=device), torch.arange(len(gallery), device=device))
        return rank(queries, gallery, query_pids, torch.as_tensor(self.gallery_pids, device=device), *sources)


def evaluate(encoder: Encoder, todo: Iterable[Task]) -> tuple[list[dict], dict[str, Ranks]]:
    """Metrics of each task as rows {task, split, n_gallery, R@1, ...}, and the ranks of every query by task name."""
    rows, ranks = [], {}
    for task in todo:
        found = task.rank(task.embed(encoder), encoder.gallery(task.gallery))
        rows.append({"task": task.name, "split": task.split, "n_gallery": len(task.gallery), **found.summary()})
        ranks[task.name] = found
    return rows, ranks


def over_trials(found: Sequence[tuple[list[dict], dict[str, Ranks]]]) -> tuple[list[dict], dict[str, Ranks]]:
    """What `evaluate` gave for each trial of a data set as one: every metric's mean, its spread over trials beside it
    as `<metric> spread` (sample standard deviation), and the ranks of all queries, trial after trial."""
    if len(found) == 1:
        return found[0]
    rows = []
    for same in zip(*(rows for rows, _ in found), strict=True):
        row = same[0] | {"trials": len(found)}
        for name in [name for name, value in same[0].items() if isinstance(value, float)]:
            values = [each[name] for each in same]
            row |= {name: float(np.mean(values)), f"{name} spread": float(np.std(values, ddof=1))}
        rows.append(row)
    joined = {task: _joined([ranks[task] for _, ranks in found]) for task in found[0][1]}
    return rows, joined


def _joined(parts: Sequence[Ranks]) -> Ranks:
    return Ranks(*(np.concatenate(column) for column in zip(*map(astuple, parts), strict=True)))


def tasks(data: PersonData, split: str, kinds: Iterable[str]) -> list[Task]:
    """Every task of `kinds` ("text", "sketch", "sketch+text", "dialogue") that the split has queries for."""
    makers = {"text": text_task, "sketch": sketch_task, "sketch+text": composed_task, "dialogue": dialogue_task}
    made = [makers[kind](data, split) for kind in kinds]
    made = [task for task in made if len(task.query_pids)]
    if not made:
        raise DataError(f"The {split} split of {data.name} has no queries of the kinds {', '.join(kinds)}.")
    return made


def text_task(data: PersonData, split: str, leave_out_source: bool = False) -> Task:
    """Every caption finds its person. Leaving out the picture it describes makes it comparable to sketches."""
    rows = _gallery(data, split)
    queries = rows.frame.explode("text").dropna(subset="text")
    if data.sketch_of == "person":  # captions describe the person and stand on each picture's row
        queries = queries.drop_duplicates(["pid", "text"])
    sources = np.array(queries.index) if leave_out_source else None
    return rows.task("t2i", queries, texts=tuple(queries["text"]), sources=sources)


def sketch_task(data: PersonData, split: str, pooled: bool = False) -> Task:
    """Every sketch finds photos of its person, but not the photo that it was made from.

    pooled: the multi-query protocol of Market-Sketch-1K, all sketches of a person as one query.
    """
    rows = _gallery(data, split)
    queries = _sketches(data, rows.frame)
    sources = np.array(queries.index) if data.sketch_of == "image" else None
    made = rows.task("s2i", queries, sketches=tuple(queries["sketch"]), sources=sources)
    return replace(made, name="s2i multi", pooled=True, sources=None) if pooled else made


def composed_task(data: PersonData, split: str) -> Task:
    """A sketch with each caption of its picture (or the first caption of its person, where sketches are of people)."""
    rows = _gallery(data, split)
    if data.sketch_of == "person":
        said = rows.frame.explode("text").dropna(subset="text").groupby("pid")["text"].first()
        queries = _sketches(data, rows.frame)
        queries = queries.assign(text=queries["pid"].map(said)).dropna(subset="text")
        sources = None
    else:
        queries = _sketches(data, rows.frame).explode("text").dropna(subset="text")
        sources = np.array(queries.index)
    return rows.task("st2i", queries, sketches=tuple(queries["sketch"]), texts=tuple(queries["text"]), sources=sources)


def dialogue_task(data: PersonData, split: str, rounds: int = 0) -> Task:
    """Every dialogue finds pictures of its person, cut to its first `rounds` turns (0: whole)."""
    rows = _gallery(data, split)
    queries = rows.frame.explode("turns").dropna(subset="turns")
    cut = tuple(list(dialogue)[:rounds] if rounds else list(dialogue) for dialogue in queries["turns"])
    return rows.task(f"d2i round {rounds}" if rounds else "d2i", queries, dialogues=cut)


def answers_task(data: PersonData, split: str, rounds: int = 0) -> Task:
    """The same information as `dialogue_task` for a method without dialogue: the answers joined to one text."""
    asked = dialogue_task(data, split, rounds)
    texts = tuple(" ".join(answer for _, answer in dialogue) for dialogue in asked.dialogues)
    return replace(asked, name=f"t2i answers round {rounds}" if rounds else "t2i answers", texts=texts, dialogues=())


@dataclass(frozen=True)
class _Gallery:
    split: str
    frame: pd.DataFrame

    def task(self, name: str, queries: pd.DataFrame, **of) -> Task:
        return Task(
            name=name,
            split=self.split,
            gallery=tuple(self.frame["image"]),
            gallery_pids=np.array(self.frame["pid"], dtype=np.int64),
            query_pids=np.array(queries["pid"], dtype=np.int64),
            **of,
        )


def _gallery(data: PersonData, split: str) -> _Gallery:
    frame = data.split(split)
    if frame.empty:
        raise DataError(f"{data.name} has no {split} split; it has {', '.join(sorted(data.table['split'].unique()))}.")
    return _Gallery(split, frame)


def _sketches(data: PersonData, frame: pd.DataFrame) -> pd.DataFrame:
    queries = frame.explode("sketch").dropna(subset="sketch")
    return queries.drop_duplicates("sketch") if data.sketch_of == "person" else queries
