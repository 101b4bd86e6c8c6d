"""How long one query waits for its answer, exactly and with faiss, beside the time to read the embeddings once."""

import itertools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import median

import numpy as np
import torch

from reidlib.benchmarks.machine import alternate, paired_ratio
from reidlib.retrieval import GalleryIndex

PER_PERSON = 10  # pictures of a person
SPREAD = 0.8  # of the pictures of one person, in lengths of the vector they lie around
ROWS = 65_536  # made at a time


def searches(
    sizes: Sequence[int] = (10_000, 100_000, 1_000_000), width: int = 512, queries: int = 50, k: int = 10
) -> list[dict]:
    """Milliseconds a query, one at a time, for each size of a gallery, a row each.

    `read_ms` is the time to go through the embeddings once (their largest value), `ratio` that of the exact search to
    it. Where faiss is installed, `faiss_ms` and `recall`, the share of the exact k best that it finds too. Embeddings
    lie in clusters, as pictures of people do: among unrelated ones nothing could be left out of a search.
    """
    rows = []
    for size in sizes:
        gallery, asked = clustered(size, width, queries)
        exact = GalleryIndex(gallery, [{}] * size)
        runs = {"exact": _taking_turns(exact, asked, k), "read": torch.from_numpy(gallery).max}
        faiss = GalleryIndex(gallery, [{}] * size, "faiss") if find_spec("faiss") else None
        if faiss is not None:
            runs["faiss"] = _taking_turns(faiss, asked, k)
        seconds = alternate(runs, repeats=queries)
        row = {"pictures": size, "width": width, **{f"{name}_ms": 1e3 * median(seconds[name]) for name in runs}}
        row["ratio"] = paired_ratio(seconds, "exact", "read")
        if faiss is not None:
            row["recall"] = recall(exact.search(asked, k)[1], faiss.search(asked, k)[1])
        rows.append(row)
    return rows


def recall(right: torch.Tensor, found: torch.Tensor) -> float:
    """The share of the rows in `right` (Q, k) that are in the same line of `found` (Q, k) too."""
    return float((right[:, :, None] == found[:, None, :]).any(dim=2).float().mean())


def clustered(size: int, width: int, queries: int) -> tuple[np.ndarray, torch.Tensor]:
    """Embeddings (size, width) of length 1 around random people, and queries (queries, width) around some of them."""
    rng = np.random.default_rng(0)
    people = _unit(rng.standard_normal((max(1, size // PER_PERSON), width), dtype=np.float32))
    gallery = np.empty((size, width), dtype=np.float32)
    for start in range(0, size, ROWS):
        rows = np.arange(start, min(start + ROWS, size)) % len(people)
        gallery[start : start + len(rows)] = _around(people[rows], rng)
    return gallery, torch.from_numpy(_around(people[rng.integers(len(people), size=queries)], rng))


def _around(people: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(people.shape, dtype=np.float32)
    return _unit(people + noise * np.float32(SPREAD / people.shape[1] ** 0.5))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _taking_turns(index: GalleryIndex, queries: torch.Tensor, k: int) -> Callable[[], object]:
    """Searches for the next query each time it is called, over and over."""
    order = itertools.cycle(range(len(queries)))
    return lambda: index.search(queries[[next(order)]], k)
