"""The ways people are searched for: by text, by sketch, by both, by dialogue; what counts as found in each."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from reidlib.config import Config
from reidlib.data import PersonData
from reidlib.data.images import Pixels
from reidlib.errors import DataError
from reidlib.evaluation.encoding import Encoder
from reidlib.evaluation.metrics import Ranks, rank
from reidlib.methods.base import Method
from reidlib.query import Query

VALIDATED = ("R@1", "R@5", "R@10", "mAP", "mINP")


@dataclass(frozen=True)
class Task:
    """Queries against a gallery; a gallery picture of the query's pid is a right answer.

    Pictures, those of queries too, are paths relative to the data set's root.
    sources: for each query the gallery row that it came from and that must be left out, or -1.
    """

    name: str  # "t2i", "s2i", "st2i", "d2i", perhaps with more words
    split: str
    gallery: tuple[str, ...]
    gallery_pids: np.ndarray
    queries: tuple[Query, ...]
    query_pids: np.ndarray
    sources: np.ndarray | None = None
    questions: np.ndarray | None = None  # queries of one number are asked as one, by the mean of their unit vectors

    def subset(self, queries: Sequence[int]) -> "Task":
        """The same task with some of its queries."""
        chosen = list(queries)
        return replace(
            self,
            queries=tuple(self.queries[i] for i in chosen),
            query_pids=self.query_pids[chosen],
            sources=None if self.sources is None else self.sources[chosen],
            questions=None if self.questions is None else self.questions[chosen],
        )

    def ranking(self, encoder: Encoder, queries: Sequence[int], root: Path, k: int = 10) -> list[tuple]:
        """For each of some queries what a figure of its ranking needs: (query, pictures, correct, scores, ranks).

        The query is its words, its sketch, or (sketch, words); pictures are paths, the `k` best first. Where none of
        these is right, the best right one follows with its rank, from 1; ties count against it.
        """
        part = replace(self.subset(queries), questions=None)
        asked, gallery = encoder.queries(part.queries), encoder.images(self.gallery)
        first = part.rank(asked, gallery).first.tolist()
        best, rows = (asked @ gallery.T).topk(min(k + 1, len(gallery)), dim=1)  # of few queries
        found = []
        for number, query in enumerate(part.queries):
            own = -1 if part.sources is None else part.sources[number]
            shown = [pair for pair in zip(rows[number].tolist(), best[number].tolist(), strict=True) if pair[0] != own]
            shown, ranks = shown[:k], list(range(1, len(shown[:k]) + 1))
            right = [row for row in np.flatnonzero(self.gallery_pids == part.query_pids[number]) if row != own]
            if right and not {row for row, _ in shown} & set(right):
                score, place = (gallery[right].to(asked) @ asked[number]).max(dim=0)
                shown.append((right[int(place)], float(score)))
                ranks.append(first[number])
            words = query.text.strip() or " / ".join(answer for _, answer in query.turns)
            drawn = root / query.sketch if query.sketch else None
            asked_with = (drawn, words) if drawn and words else drawn or words
            pictures = [root / self.gallery[row] for row, _ in shown]
            correct = [bool(self.gallery_pids[row] == part.query_pids[number]) for row, _ in shown]
            found.append((asked_with, pictures, correct, [score for _, score in shown], ranks))
        return found

    def rank(self, queries: Tensor, gallery: Tensor) -> Ranks:
        """Ranks embeddings (Q, D) and (G, D) under this protocol."""
        device = queries.device
        query_pids = torch.as_tensor(self.query_pids, device=device)
        if self.questions is not None:
            _, first, question = np.unique(self.questions, return_index=True, return_inverse=True)
            query_pids, question = query_pids[first], torch.as_tensor(question, device=device)
            unit = normalize(queries, dim=1)
            queries = torch.zeros(len(first), queries.shape[1], device=device).index_add_(0, question, unit)
        sources = ()
        if self.sources is not None:
            sources = (torch.as_tensor(self.sources, device=device), torch.arange(len(gallery), device=device))
        return rank(queries, gallery, query_pids, torch.as_tensor(self.gallery_pids, device=device), *sources)


def evaluate(encoder: Encoder, todo: Iterable[Task]) -> tuple[list[dict], dict[str, Ranks]]:
    """Metrics of each task as rows {task, split, n_gallery, R@1, ...}, and the ranks of every query by task name."""
    rows, ranks = [], {}
    for task in todo:
        found = task.rank(encoder.queries(task.queries), encoder.images(task.gallery))
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


@dataclass(frozen=True)
class Validation:
    """Measures a model while it is trained: `validation(model) -> {"t2i R@1": 12.5, ...}`, in percent."""

    tasks: tuple[Task, ...]
    pixels: Pixels  # the data set's pictures at the model's size

    def __call__(self, model: Method) -> dict[str, float]:
        rows, _ = evaluate(Encoder(model, self.pixels), self.tasks)
        return {f"{row['task']} {name}": row[name] for row in rows for name in VALIDATED}


def validation(data: PersonData, model: Method, config: Config, pixels: Pixels) -> Validation:
    """On every task that the split `config.select_on` has for what the model reads."""
    return Validation(tuple(tasks(data, config.select_on, model.reads)), pixels)


def tasks(data: PersonData, split: str, reads: Iterable[str]) -> list[Task]:
    """Every task that the split has queries for and that holds only what is in `reads` ("text", "turns", "sketch")."""
    makers = {text_task: {"text"}, sketch_task: {"sketch"}, composed_task: {"sketch", "text"}, dialogue_task: {"turns"}}
    made = [maker(data, split) for maker, parts in makers.items() if parts <= set(reads)]
    made = [task for task in made if len(task.queries)]
    if not made:
        raise DataError(f"The {split} split of {data.name} has no queries that hold {' or '.join(reads)}.")
    return made


def text_task(data: PersonData, split: str) -> Task:
    """Every caption finds its person."""
    rows = _Gallery.of(data, split)
    queries = rows.frame.explode("text").dropna(subset="text")
    if data.sketch_of == "person":  # captions describe the person and stand on each picture's row
        queries = queries.drop_duplicates(["pid", "text"])
    return rows.task("t2i", queries, ["text"])


def sketch_task(data: PersonData, split: str, pooled: bool = False) -> Task:
    """Every sketch finds photos of its person, but not the photo that it was made from.

    pooled: the multi-query protocol of Market-Sketch-1K, all sketches of a person as one query.
    """
    rows = _Gallery.of(data, split)
    queries = _sketches(data, rows.frame)
    sources = np.array(queries.index) if data.sketch_of == "image" else None
    if pooled:
        return rows.task("s2i multi", queries, ["sketch"], questions=np.array(queries["pid"]))
    return rows.task("s2i", queries, ["sketch"], sources=sources)


def composed_task(data: PersonData, split: str) -> Task:
    """A sketch with each caption of its picture (or the first caption of its person, where sketches are of people)."""
    rows = _Gallery.of(data, split)
    queries = _sketches(data, rows.frame)
    if data.sketch_of == "person":
        said = rows.frame.explode("text").dropna(subset="text").groupby("pid")["text"].first()
        queries = queries.assign(text=queries["pid"].map(said))
    queries = queries.explode("text").dropna(subset="text")
    sources = np.array(queries.index) if data.sketch_of == "image" else None
    return rows.task("st2i", queries, ["sketch", "text"], sources=sources)


def dialogue_task(data: PersonData, split: str, rounds: int = 0) -> Task:
    """Every dialogue finds pictures of its person, cut to its first `rounds` turns (0: whole)."""
    rows = _Gallery.of(data, split)
    queries = rows.frame.explode("turns").dropna(subset="turns")
    queries["turns"] = [tuple(turns)[: rounds or None] for turns in queries["turns"]]
    return rows.task(f"d2i round {rounds}" if rounds else "d2i", queries, ["turns"])


def mixed_task(data: PersonData, split: str, parts: Sequence[str]) -> Task:
    """Every picture that has all of `parts` finds others of its person, asked for by the first of each part.

    parts: of "text", "turns", "sketch" and "photo", which is the picture itself; it is always left out of its ranking.
    """
    rows = _Gallery.of(data, split)
    first = {part: rows.frame[part].str[0] for part in parts if part != "photo"}
    queries = rows.frame.assign(**first, photo=rows.frame["image"]).dropna(subset=list(first))
    return rows.task(f"mix {'+'.join(parts)}", queries, list(parts), sources=np.array(queries.index))


def protocol_tasks(data: PersonData, reads: Iterable[str]) -> list[Task]:
    """The tasks that a data set sets itself: ORBench's modes, Interactive-PEDES' rounds, ITCPR's composed search.

    Only those whose queries hold nothing but what is in `reads`, and photos, which every model reads. `evaluate` gives
    a row a task; of ORBench the means over the modes of one, two, three and four parts are published, of
    Interactive-PEDES `metrics.best_rank_integral` over the rounds.
    """
    rows, known = _Gallery.of(data, "test"), {*reads, "photo"}
    return [
        Task(
            name=name,
            split="test",
            gallery=tuple(rows.frame["image"]),
            gallery_pids=np.array(rows.frame["pid"], dtype=np.int64),
            queries=tuple(asked.queries),
            query_pids=np.array(asked.pids, dtype=np.int64),
            questions=None if asked.questions is None else np.array(asked.questions),
        )
        for name, asked in data.protocol.items()
        if all(known.issuperset(query.parts) for query in asked.queries)
    ]


@dataclass(frozen=True)
class _Gallery:
    split: str
    frame: pd.DataFrame

    @classmethod
    def of(cls, data: PersonData, split: str) -> "_Gallery":
        frame = data.split(split)
        if frame.empty:
            raise DataError(
                f"{data.name} has no {split} split; it has {', '.join(sorted(data.table['split'].unique()))}."
            )
        return cls(split, frame)

    def task(self, name: str, queries: pd.DataFrame, parts: list[str], **more) -> Task:
        """A task whose queries are rows of a table; parts: the columns that are parts of them."""
        return Task(
            name=name,
            split=self.split,
            gallery=tuple(self.frame["image"]),
            gallery_pids=np.array(self.frame["pid"], dtype=np.int64),
            queries=tuple(Query(**row) for row in queries[parts].to_dict("records")),
            query_pids=np.array(queries["pid"], dtype=np.int64),
            **more,
        )


def _sketches(data: PersonData, frame: pd.DataFrame) -> pd.DataFrame:
    queries = frame.explode("sketch").dropna(subset="sketch")
    return queries.drop_duplicates("sketch") if data.sketch_of == "person" else queries
