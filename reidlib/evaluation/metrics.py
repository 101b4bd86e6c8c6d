"""Where the right pictures land in the ranking, block by block, and the metrics that follow from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reidlib.errors import ReidError

QUERY_BLOCK, GALLERY_BLOCK = 512, 16_384  # 32 MB of float32 similarities at a time, however large the gallery
DRAWN = 1_000_000  # random numbers held at a time by a test of significance: 16 MB
RESAMPLES, FLIPS = 2_000, 10_000  # draws of the bootstrap and of the paired test


@dataclass
class Ranks:
    """For each query: rank of its first right picture (1-based, 0: there is none), average precision, and inverse
    negative penalty. All (Q,)."""

    first: np.ndarray
    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray

    @property
    def answerable(self) -> np.ndarray:
        """Which queries have a right picture in the gallery at all, (Q,) bool."""
        return self.first > 0

    def examples(self) -> dict[str, int]:
        """An easy, a median and a hard query: a tenth, half and nine tenths of the way through the queries in order of
        their first right picture's rank (then of average precision), those without one left out."""
        order = np.lexsort((-self.average_precision, self.first))
        order = order[self.answerable[order]]
        shares = {"easy": 0.1, "median": 0.5, "hard": 0.9}
        return {name: int(order[int(share * (len(order) - 1))]) for name, share in shares.items()}

    def summary(self, ks: tuple[int, ...] = (1, 5, 10), unanswerable: str = "apart") -> dict[str, float]:
        """R@k, mAP, mINP in percent; the mean first rank counted from 1 (MFR) and from 0 (MFR0).

        Queries without a right picture are counted in `queries_without_positive` and leave every mean ("apart"), or
        stay in R@k as misses as InteractReID's code has it ("miss").
        """
        valid = self.answerable
        if not valid.any():
            raise ReidError("No query has a right picture in the gallery, so there is nothing to measure.")
        base = np.ones_like(valid) if unanswerable == "miss" else valid
        first = self.first[valid]
        return {
            **{f"R@{k}": 100.0 * float((first <= k).sum() / base.sum()) for k in ks},
            "mAP": 100.0 * float(self.average_precision[valid].mean()),
            "mINP": 100.0 * float(self.inverse_negative_penalty[valid].mean()),
            "MFR": float(first.mean()),
            "MFR0": float(first.mean() - 1),
            "n_queries": int(len(valid)),
            "queries_without_positive": int((~valid).sum()),
        }


def rank(
    queries: Tensor,
    gallery: Tensor,
    query_pids: Tensor,
    gallery_pids: Tensor,
    query_sources: Tensor | None = None,
    gallery_sources: Tensor | None = None,
) -> Ranks:
    """Ranks every query's right pictures by inner product, without the full matrix and without sorting the gallery.

    queries: (Q, D), gallery: (G, D); pids (Q,) and (G,). Where sources are given, a gallery picture whose source equals
    the query's is left out of that query's ranking (a sketch must not find the photo it was drawn from).

    The k-th right picture stands at rank k + (wrong pictures that score at least as much): ties count against the
    method, so a model that gives every picture one score looks as bad as it is. With ranks r_1 < ... < r_P of a query's
    P right pictures, AP = mean_k k / r_k and INP = P / r_P (mINP: Ye et al., TPAMI 2022).
    """
    for name, features in (("query", queries), ("gallery", gallery)):
        if features.numel() and not torch.stack(features.aminmax()).isfinite().all():  # NaN comes through as both
            raise ReidError(f"Some {name} embeddings are not finite numbers; the model that made them is broken.")
    if len(gallery) == 0 or len(queries) == 0:
        raise ReidError(f"Nothing to rank: {len(queries)} queries, {len(gallery)} gallery pictures.")
    gallery = gallery.float()
    found = []
    for start in range(0, len(queries), QUERY_BLOCK):
        rows = slice(start, start + QUERY_BLOCK)
        sources = None if query_sources is None else (query_sources[rows], gallery_sources)
        found.append(_rank_block(queries[rows].float(), gallery, query_pids[rows], gallery_pids, sources))
    return Ranks(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _rank_block(queries, gallery, query_pids, gallery_pids, sources) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`rank` for one block of queries, in two passes over the gallery: score the right ones, count the wrong ones."""

    def blocks() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start in range(0, len(gallery), GALLERY_BLOCK):
            part = slice(start, start + GALLERY_BLOCK)
            right = query_pids[:, None] == gallery_pids[None, part]
            counted = torch.ones_like(right)
            if sources is not None:
                counted = sources[0][:, None] != sources[1][None, part]
            yield queries @ gallery[part].T, right & counted, ~right & counted

    kept = list(blocks()) if len(gallery) <= GALLERY_BLOCK else None  # a small gallery is scored once
    rows, values = [], []
    for similarity, right, _ in kept or blocks():
        row, column = right.nonzero(as_tuple=True)
        rows.append(row)
        values.append(similarity[row, column])
    row, order = torch.cat(rows).sort(stable=True)
    n_right = torch.bincount(row, minlength=len(queries))
    most = max(int(n_right.max()), 1)
    scores = torch.full((len(queries), most), float("inf"), device=queries.device)
    place = torch.arange(len(row), device=row.device) - (n_right.cumsum(0) - n_right)[row]
    scores[row, place] = torch.cat(values)[order]
    scores = scores.sort(dim=1).values  # ascending, the empty places last
    beaten = torch.zeros(len(queries), most + 1, device=queries.device)
    for similarity, _, wrong in kept or blocks():
        n_beaten = torch.searchsorted(scores, similarity.contiguous(), right=True)
        beaten.scatter_add_(1, n_beaten, wrong.float())
    # a wrong picture that beats b right ones stands before the b lowest of them
    before = beaten.flip(1).cumsum(dim=1)[:, :-1].flip(1)  # (Q, most), in ascending order of score
    order = n_right[:, None] - torch.arange(most, device=queries.device)[None]  # the lowest right picture is the P-th
    exists = order > 0
    ranks = torch.where(exists, before + order, torch.inf)
    count = n_right.clamp(min=1)
    first = torch.where(n_right > 0, ranks.min(dim=1).values, 0)
    precision = torch.where(exists, order / ranks, 0).sum(dim=1) / count
    penalty = torch.where(n_right > 0, n_right / ranks[:, 0], 0)
    return first.long().cpu().numpy(), precision.double().cpu().numpy(), penalty.double().cpu().numpy()


def best_rank_integral(rounds: Sequence[np.ndarray]) -> float:
    """BRI of searches by dialogue, lower is better: the mean over rounds and queries of (ln r_i + ln r_i+1) / 2.

    rounds: the rank of the first right picture, (Q,) from 1, before the first question and after each answer; r_i is
    the best rank so far. As LLaVA-ReID's code has it. Raises ReidError for fewer than two rounds or a query without a
    right picture.
    """
    ranks = np.stack(rounds).astype(float)
    if len(ranks) < 2 or (ranks < 1).any():
        raise ReidError("BRI needs two rounds at least, and a right picture for every query.")
    logs = np.log(np.minimum.accumulate(ranks))
    return float(((logs[:-1] + logs[1:]) / 2).mean())


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of `values` (Q,) over queries."""
    rng, values = np.random.default_rng(0), np.asarray(values, dtype=float)
    evenly = np.full(len(values), 1 / len(values))
    means = [rng.multinomial(len(values), evenly, size=n) @ values for n in _shares(RESAMPLES, len(values))]
    means = np.concatenate(means) / len(values)
    return tuple(np.quantile(means, [0.025, 0.975]))


def paired_test(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p-value that two methods do equally well on the same queries, by random sign flips.

    a, b: (Q,) a value each query, such as average precision or a hit. The statistic is |mean(a - b)|; under the null
    hypothesis each difference is as likely to carry the other sign.
    """
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    rng = np.random.default_rng(0)
    shares = _shares(FLIPS, len(difference))
    flipped = [np.abs(rng.choice((-1.0, 1.0), size=(n, len(difference))) @ difference) for n in shares]
    return float((1 + (np.concatenate(flipped) >= abs(difference.sum()) - 1e-12).sum()) / (FLIPS + 1))


def versus(ours: Ranks, theirs: Ranks) -> str:
    """Two ways of searching on the same queries as words of a sentence: "mAP 41.2 against 38.0 (p = 0.004)".

    p as in `paired_test`; where it is 0.05 or more, the words say that chance explains the difference, too.
    """
    valid = ours.answerable & theirs.answerable
    a, b = (100 * ranks.average_precision[valid] for ranks in (ours, theirs))
    p = paired_test(a, b)
    certain = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"mAP {a.mean():.1f} against {b.mean():.1f} ({certain}{', which chance explains, too' if p >= 0.05 else ''})"


def _shares(draws: int, n_queries: int) -> list[int]:
    """`draws` in shares of about `DRAWN` random numbers: all at once they take 0.16 MB a query."""
    share = max(1, DRAWN // n_queries)
    return [min(share, draws - start) for start in range(0, draws, share)]
