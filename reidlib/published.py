"""The published numbers that runs are compared with: `published.csv`, and CFine's official training log beside it.

A row has figures in percent, empty where one is not given. `task` is t2i or i2t (text and image), s2i (sketch to
image), st2i (sketch and text to image), s2s (pseudo-word of a sketch to the sketches) or d2i (dialogue to image).
`read` tells how the figures reached us: "log", "image" (a table shipped as a picture), "readme", "fragments" (of the
paper), "note" (somebody's note on the paper) or "third party" (another paper's comparison). What has no figure has no
row: DiaNA's stand in its paper (CVPR 2025, pp. 3952-3962), which could not be read.
"""

from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent


def published() -> pd.DataFrame:
    """All rows: method, dataset, task, R@1, R@5, R@10, mAP, mINP, setting, source, read."""
    rows = pd.read_csv(HERE / "published.csv")
    return rows.fillna({"setting": ""})


def published_for(dataset: str, task: str | None = None, method: str | None = None) -> pd.DataFrame:
    """The rows of a data set, best R@1 first; empty where nothing is published. Method names ignore case."""
    rows = published()
    chosen = rows["dataset"] == dataset
    if task is not None:
        chosen &= rows["task"] == task
    if method is not None:
        chosen &= rows["method"].str.casefold() == method.casefold()
    return rows[chosen].sort_values("R@1", ascending=False, ignore_index=True)


def cfine_log() -> pd.DataFrame:
    """CFine's official log on CUHK-PEDES: epoch, R@1 (text to image, percent, on the test split), training loss."""
    return pd.read_csv(HERE / "published_cfine_log.csv")
