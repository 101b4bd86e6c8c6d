"""Finds the nearest of many embeddings exactly, in blocks, over an array in memory or mapped from a file."""

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch

from reidlib.errors import DataError

BLOCK = 131_072  # rows of the gallery at a time
CONVERTED = 1_048_576  # and so many numbers, where they must be made float32: more would be written to memory and back
SCORES = 4_194_304  # and so many scores, where there are many queries
ALONE = 16_777_216  # numbers of a block from which on waking other threads pays
MAGNITUDE = 0x7FFFFFFF


class GalleryIndex:
    """Embeddings (N, D), float32 or float16, with one dict of metadata a row; the score is the inner product.

    A search reads the embeddings once, block by block, so memory does not grow with the gallery. An index does not
    change; for a gallery that grows, or beyond this machine's memory, `reidlib.retrieval.store` answers to the same
    calls. `where` in any of them keeps the rows whose metadata fit (see `fits`).
    """

    def __init__(self, embeddings: np.ndarray | torch.Tensor, metadata: Sequence[dict] | pd.DataFrame):
        self.embeddings, self.metadata = checked(embeddings, metadata)
        if self.embeddings.nbytes > memory():
            warnings.warn(
                f"The gallery's {self.embeddings.nbytes / 1e9:.0f} GB of embeddings exceed this machine's "
                f"{memory() / 1e9:.0f} GB of memory, so each search reads the disk; put them into a store "
                "(reidlib.retrieval.store.create) and build an index there.",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self.metadata)

    def count(self, where: Mapping | None = None) -> int:
        return len(self.ids(where=where))

    def ids(self, start: int = 0, count: int | None = None, where: Mapping | None = None) -> Sequence[int]:
        """The numbers of rows `start` to `start + count` of those that fit, in order."""
        found = range(len(self)) if not where else [i for i, row in enumerate(self.metadata) if fits(row, where)]
        return found[start : None if count is None else start + count]

    def sample(self, count: int) -> Sequence[int]:
        """At most `count` rows, spread over all."""
        return range(len(self))[:: max(1, -(-len(self) // count))]

    def rows(self, ids: Sequence[int]) -> list[dict]:
        """The metadata of some rows. Raises DataError for a row that is not there."""
        return [self.metadata[i] for i in self._present(ids)]

    def find(self, image: str) -> int | None:
        """The row of a picture, by its path."""
        return next(iter(self.ids(where={"image": image})), None)

    def vectors(self, ids: Sequence[int]) -> torch.Tensor:
        """The embeddings of some rows, (len(ids), D) float32."""
        return torch.from_numpy(np.asarray(self.embeddings[self._present(ids)], dtype=np.float32))

    def search(self, queries: torch.Tensor, k: int, where: Mapping | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (Q, D) -> scores and row numbers, both (Q, at most k), best first.

        Works on the queries' device. Equal scores come in the order of their rows.
        """
        queries = asked(queries, self.embeddings.shape[1], k)
        rows = np.array(self.ids(where=where), dtype=np.int64) if where else None
        return _search_blocks(self.embeddings, queries, min(k, len(self) if rows is None else len(rows)), rows)

    def _present(self, ids: Sequence[int]) -> np.ndarray:
        array = np.array([_number(i) for i in ids], dtype=np.int64)
        gone = array[(array < 0) | (array >= len(self))]
        if len(gone):
            raise DataError(f"Row {gone[0]} is not in the gallery of {len(self)} pictures.")
        return array


def fits(row: Mapping, where: Mapping) -> bool:
    """True if each field of `row` that `where` names has that value, is in that list, or lies in that range.

    A range is a tuple (low, high), both included, None for an open end. A missing field fits nothing.
    """
    return all(_value_fits(row.get(field), wanted) for field, wanted in where.items())


def _value_fits(value: object, wanted: object) -> bool:
    if isinstance(wanted, tuple):
        low, high = wanted
        return value is not None and (low is None or value >= low) and (high is None or value <= high)
    return value in wanted if isinstance(wanted, list) else value == wanted


def checked(embeddings: np.ndarray | torch.Tensor, metadata: Sequence[dict] | pd.DataFrame):
    """Embeddings as a (N, D) float array of finite numbers and metadata as N dicts; DataError where they do not fit."""
    rows = metadata.to_dict("records") if isinstance(metadata, pd.DataFrame) else list(metadata)
    array = embeddings.detach().cpu().numpy() if isinstance(embeddings, torch.Tensor) else embeddings
    if array.ndim != 2 or array.dtype not in (np.float32, np.float16):
        raise DataError(f"The embeddings are {array.dtype} {array.shape}; expected float32 or float16 (N, D).")
    if len(array) != len(rows):
        raise DataError(f"There are {len(array)} embeddings and {len(rows)} rows of metadata; expected as many.")
    for start in range(0, len(array), BLOCK):
        wrong = np.flatnonzero(~np.isfinite(array[start : start + BLOCK]).all(1))
        if len(wrong):
            raise DataError(f"Row {start + wrong[0]} of the embeddings holds numbers that are not finite.")
    return array, rows


def asked(queries: torch.Tensor, width: int, k: int) -> torch.Tensor:
    """The queries as float32; DataError unless they are (Q, width) finite numbers, and k at least 1."""
    if k < 1:
        raise DataError(f"k={k} results were asked for; expected at least 1.")
    if queries.ndim != 2 or queries.shape[1] != width:
        raise DataError(f"The queries have shape {tuple(queries.shape)}; expected (Q, {width}).")
    if not queries.isfinite().all():
        raise DataError("The query's embedding holds numbers that are not finite.")
    return queries.float()


def memory() -> int:
    """Bytes of this machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 2**63


def _number(i: object) -> int:
    if isinstance(i, bool) or not isinstance(i, int | np.integer) or not -(2**63) <= i < 2**63:
        raise DataError(f"Row {i!r} is no row of a gallery; expected an integer.")
    return int(i)


def _search_blocks(
    embeddings: np.ndarray, queries: torch.Tensor, k: int, rows: np.ndarray | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best k, among `rows` (sorted) if they are given."""
    count = len(embeddings) if rows is None else len(rows)
    most = BLOCK if embeddings.dtype == np.float32 else min(BLOCK, CONVERTED // embeddings.shape[1])
    step = min(most, max(1_024, SCORES // max(1, len(queries))))
    best = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, count, step):
            part = slice(start, start + step) if rows is None else rows[start : start + step]
            block = torch.from_numpy(embeddings[part]).to(queries.device).float()
            scores = _scores(block, queries, pool)
            mark = scores.topk(min(k, len(block))).values[:, -1:]
            good = (scores >= mark).any(0).nonzero()[:, 0]  # the others need no key
            best = torch.cat([best, _keys(scores[:, good], start + good)], 1)
            best = best.topk(min(k, best.shape[1])).values
    scores, places = _unpacked(best)
    return scores, places if rows is None else torch.from_numpy(rows).to(places.device)[places]


def _scores(block: torch.Tensor, queries: torch.Tensor, pool: ThreadPoolExecutor) -> torch.Tensor:
    """(N, D), (Q, D) -> (Q, N).

    One query waits for memory alone. A dot product a row reads it nearly as fast as it can be read, where the
    matrix-vector products of BLAS took up to three times as long. Few queries are faster as columns than as rows.
    """
    if len(queries) > 1 or queries.device.type != "cpu":
        return (block @ queries.T).T
    column = queries.detach().numpy().T
    # The added axis makes it one product of (1, D) and (D, 1) a row.
    parts = block.chunk(torch.get_num_threads() if block.numel() >= ALONE else 1)
    run = map if len(parts) == 1 else pool.map
    scores = run(lambda rows: np.matmul(rows.numpy()[:, None], column), parts)
    return torch.from_numpy(np.concatenate(list(scores))[None, :, 0, 0])


def _keys(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """One integer for score (Q, N) and row (N,), larger for a better score and, at the same score, an earlier row.

    So equal scores have one order, whatever k and the blocks. The bits of a float sort like an integer, but for the
    magnitude of negative ones, which is turned round; they go above the row's 32 bits.
    """
    bits = (scores + 0.0).view(torch.int32).long()  # + 0 makes one zero of the two that floats have
    return ((bits ^ ((bits >> 63) & MAGNITUDE)) << 32) - rows


def _unpacked(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = -keys & 0xFFFFFFFF
    high = (keys + rows) >> 32
    return (high ^ ((high >> 63) & MAGNITUDE)).int().view(torch.float32), rows
