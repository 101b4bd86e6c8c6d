"""How long a ranking takes, how it grows with the gallery, and how much memory it needs beside the embeddings."""

from collections.abc import Sequence
from statistics import median

import torch
from torch.nn.functional import normalize

from reidlib.benchmarks.machine import alternate
from reidlib.benchmarks.memory import LiveMemory
from reidlib.devices import pick_device
from reidlib.evaluation import rank

QUERIES, PICTURES, PEOPLE = 6_156, 3_074, 1_000  # the test split of CUHK-PEDES
WIDTH = 512


def evaluation(
    galleries: Sequence[int] = (PICTURES, 10_000, 30_000, 100_000), queries: int = QUERIES, repeats: int = 1
) -> list[dict]:
    """Time to rank `queries` against each gallery and to take the metrics, and the peak of the tensors made for it.

    The embeddings are random, which changes nothing in what is computed; pictures beyond those of CUHK-PEDES are of
    nobody whom a query looks for. `extra_mb` counts the memory beside the embeddings, on the CPU and on a GPU alike.
    """
    device = pick_device()
    generator = torch.Generator().manual_seed(0)
    asked = _unit(queries, generator).to(device)
    query_pids = torch.randint(PEOPLE, (queries,), generator=generator).to(device)
    rows = []
    for pictures in galleries:
        gallery = _unit(pictures, generator).to(device)
        pids = torch.arange(pictures, device=device)
        pids = torch.where(pids < PICTURES, pids % PEOPLE, pids)

        def run(gallery=gallery, pids=pids):
            return rank(asked, gallery, query_pids, pids).summary()

        with LiveMemory() as live:
            run()  # which warms up too
        seconds = median(alternate({"run": run}, repeats, warm_up=0)["run"])
        row = {"queries": queries, "pictures": pictures, "seconds": seconds, "extra_mb": live.peak / 1e6}
        rows.append(row | {"billion_pairs_per_minute": 60e-9 * queries * pictures / seconds})
    return rows


def _unit(count: int, generator: torch.Generator) -> torch.Tensor:
    return normalize(torch.randn(count, WIDTH, generator=generator), dim=1)
