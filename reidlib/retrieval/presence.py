"""How likely it is that the person is among the pictures shown, or in the gallery at all: a calibrated probability.

Every search has a best candidate, whoever is looked for. How far that candidate stands out is compared with searches
of which the answer is known: people of an annotated split, of whom a random half is taken out of the gallery each time.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from reidlib.errors import DataError
from reidlib.evaluation import Encoder
from reidlib.methods.base import Method
from reidlib.paths import write_json
from reidlib.query import Query
from reidlib.retrieval.gallery import Gallery, stamp_of

SHOWN = (1, 5, 10, 20)  # candidates of which "among those shown" is learnt
DRAWS = 12  # galleries drawn from a split
SAMPLE = 1_024  # pictures that tell the scores' mean and spread
MOST = 2_000  # queries that are searched with in each gallery


class Presence:
    """Two logistic regressions on the best score, and how far it stands out from those that follow.

    They hold for the model they were fitted for and for queries of the kind they were fitted on, descriptions; answers
    and marks move a query away from these. `here` and `shown`: the weights (F,).
    """

    def __init__(self, here: Sequence[float], shown: Sequence[float]):
        self.here, self.shown = (np.asarray(weights, float) for weights in (here, shown))

    @classmethod
    def fit(cls, searches: Sequence[tuple]) -> "Presence":
        """From searches as `open_set` makes them."""
        found = [(_features(best, spread, size, k), rank, k) for best, spread, size, rank in searches for k in SHOWN]
        here = [(features[0], rank > 0) for features, rank, k in found if k == SHOWN[0]]
        shown = [(features[1], 0 < rank <= k) for features, rank, k in found]
        return cls(*(_logistic(*map(np.array, zip(*rows, strict=True))) for rows in (here, shown)))

    @classmethod
    def kept(cls, model: Method, table: pd.DataFrame, root: Path, file: Path, folder: Path | None = None) -> "Presence":
        """The one in `file` if it was fitted for this model, else one fitted on a table's people and written there.

        folder: where the embeddings of the table's pictures are kept, if they are.
        """
        stamp = stamp_of(model)
        try:
            known = json.loads(file.read_text())
            if known["stamp"] == stamp:
                return cls(known["here"], known["shown"])
        except (OSError, ValueError, LookupError, TypeError):  # none yet, or damaged: it is fitted anew
            pass
        made = cls.fit(open_set(model, table, root, folder=folder))
        write_json(file, {"stamp": stamp, "here": made.here.tolist(), "shown": made.shown.tolist()})
        return made

    def probabilities(self, best: Sequence[float], spread: float, size: int, k: int) -> tuple[float, float]:
        """That the person is among the first k, and in the gallery.

        best: the highest scores, best first, k + 1 of them where there are as many. spread: of all scores of the
        query. size: pictures in the gallery.
        """
        here, shown = _features(best, spread, size, k)
        anywhere = float(_sigmoid(here @ self.here))
        return (min(float(_sigmoid(shown @ self.shown)), anywhere) if k < size else anywhere), anywhere


def open_set(
    model: Method, table: pd.DataFrame, root: Path, draws: int = DRAWS, seed: int = 0, folder: Path | None = None
) -> list[tuple]:
    """Searches by the annotations of a split in galleries from which a random half of its people was taken out.

    Returns, for each, (best scores, spread of all, size of the gallery, rank of the person or 0 where they are out).
    Texts are searched whole and cut to half, as witnesses begin with little. Raises DataError where there is nothing
    to search with.
    """
    gallery = Gallery.encode(model, table, root, folder)
    rows = gallery.index.metadata
    pids = np.array([row["pid"] for row in rows])
    asked = [(query, row["pid"]) for row in rows for query in _queries(model, row)]
    if not asked or len(set(pids)) < 4:
        raise DataError(f"{root} annotates too few people to tell who is in a gallery; expected at least four.")
    asked = random.Random(seed).sample(asked, MOST) if len(asked) > MOST else asked
    embedded = Encoder(model).queries([query for query, _ in asked]).cpu()
    scores = (embedded @ gallery.index.vectors(range(len(rows))).T).numpy()
    found, people = [], sorted(set(pids))
    for draw in range(draws):
        chance = random.Random(f"{seed}/{draw}")
        kept = np.isin(pids, chance.sample(people, len(people) // 2))
        for line, (_, pid) in zip(scores[:, kept], asked, strict=True):
            order = np.argsort(-line, kind="stable")
            own = np.flatnonzero(pids[kept][order] == pid)
            best = line[order[: max(SHOWN) + 1]]
            found.append((best, line.std(), len(line), int(own[0]) + 1 if len(own) else 0))
    return found


def auroc(likely: np.ndarray, truth: np.ndarray) -> float:
    """The share of pairs, one true and one not, of which the true one is thought likelier; ties count half."""
    order = pd.Series(likely).rank().to_numpy()
    true = int(truth.sum())
    return float((order[truth].sum() - true * (true + 1) / 2) / max(1, true * (len(truth) - true)))


def reliability(likely: np.ndarray, truth: np.ndarray) -> list[tuple[float, float, int]]:
    """For each tenth of the probabilities from 0 to 1 that occurs: their mean, the share that is true, their number."""
    place = np.minimum((10 * likely).astype(int), 9)
    return [
        (float(likely[place == b].mean()), float(truth[place == b].mean()), int((place == b).sum()))
        for b in range(10)
        if (place == b).any()
    ]


def _queries(model: Method, row: dict) -> list[Query]:
    if "text" in model.reads and row.get("text"):
        halves = [" ".join(text.split()[: max(3, len(text.split()) // 2)]) for text in row["text"]]
        return [Query(text=text) for text in [*row["text"], *halves]]
    if "turns" in model.reads and row.get("turns"):
        return [Query(turns=turns[:count]) for turns in row["turns"] for count in {max(1, len(turns) // 2), len(turns)}]
    return []


def _features(best: Sequence[float], spread: float, size: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What tells that the person is in the gallery (3,), and among the first k (5,)."""
    best = np.asarray(best, float)
    after = [(best[0] - best[min(place, len(best) - 1)]) / max(spread, 1e-9) for place in (1, k)]
    common = [1.0, 10 * best[0], after[0]]
    return np.array(common), np.array([*common, after[1], np.log(k / size)])


def _logistic(features: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Weights (F,) of a logistic regression, slightly regularised."""
    x, y = torch.tensor(features), torch.tensor(truth, dtype=torch.float64)
    weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        wrong = torch.nn.functional.binary_cross_entropy_with_logits(x @ weights, y, reduction="sum")
        total = (wrong + 0.5 * (weights**2).sum()) / len(y)
        total.backward()
        return total

    optimizer.step(loss)
    return weights.detach().numpy()


def _sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-np.clip(x, -40, 40)))
