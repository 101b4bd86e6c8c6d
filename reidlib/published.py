"""The published numbers that runs are compared with, each with its source and how it was read."""

from dataclasses import astuple, dataclass

import pandas as pd

NONE = float("nan")
COLUMNS = ["method", "dataset", "task", "R@1", "R@5", "R@10", "mAP", "mINP", "setting", "source", "read"]


@dataclass(frozen=True)
class Published:
    """One published row in percent, NaN where a figure is not given.

    `task` is t2i or i2t (text and image), s2i (sketch to image), st2i (sketch and text to image), s2s (pseudo-word
    token of a sketch to the sketches) or d2i (dialogue to image). `read` tells how the numbers reached us: "log",
    "image" (a table shipped as a picture), "readme", "fragments" (of the paper), "note" (somebody's note on the
    paper) or "third party" (another paper's comparison).
    """

    method: str
    dataset: str
    task: str
    r1: float = NONE
    r5: float = NONE
    r10: float = NONE
    map: float = NONE
    minp: float = NONE
    setting: str = ""
    source: str = ""
    read: str = ""


def _rows(source: str, read: str, task: str, *rows: tuple, setting: str = "") -> list[Published]:
    """Rows (method, dataset, R@1, ..., mINP) that share a source; a row may end early."""
    return [
        Published(method, dataset, task, *figures, setting=setting, source=source, read=read)
        for method, dataset, *figures in rows
    ]


# The survey of the best results was read from several places at once, without a record of which gave which figure.
SURVEY = "notes on CECA (CVPR 2026) and MVR (arXiv 2604.18376), the text of FMFA, a table of the CFFA repository"
KTCAA = "text of KTCAA (AAAI 2026)"

PUBLISHED = [
    *_rows("CFine (TIP 2023, arXiv 2210.10276), official training log", "log", "t2i",
           ("CFine", "cuhk-pedes", 69.57, 85.93, 91.15), setting="epoch 40, selected on test"),
    *_rows("CFine (TIP 2023, arXiv 2210.10276), official training log", "log", "i2t",
           ("CFine", "cuhk-pedes", 81.39, 95.87, 97.95), setting="epoch 40, selected on test"),
    *_rows("README of IRRA", "third party", "t2i",
           ("CFine", "icfg-pedes", 60.83, 76.55, 82.42),
           ("CFine", "rstpreid", 50.55, 72.50, 81.60)),
    *_rows("CFFA, table in the official repository", "image", "t2i",
           ("CFFA", "cuhk-pedes", 75.44, 89.88, 94.01, 67.03),
           ("CFFA", "icfg-pedes", 66.50, 81.68, 86.82, 39.44),
           ("CFFA", "rstpreid", 62.85, 83.10, 89.65, 49.68),
           ("CFFA baseline", "cuhk-pedes", 66.96, 85.46, 91.29, 58.87),
           ("CFFA baseline", "icfg-pedes", 55.52, 74.80, 81.70, 29.84),
           ("CFFA baseline", "rstpreid", 53.80, 77.60, 86.05, 42.60)),
    *_rows("RDE (CVPR 2024)", "image", "t2i",
           ("RDE", "cuhk-pedes", 75.94, 90.14, 94.12, 67.56, 51.44),
           ("RDE", "icfg-pedes", 67.68, 82.47, 87.36, 40.06, 7.87),
           ("RDE", "rstpreid", 65.35, 83.95, 89.90, 50.88, 28.08), setting="0% noise"),
    *_rows("README of IRRA", "readme", "t2i",
           ("IRRA", "cuhk-pedes", 73.38, 89.93, 93.71, 66.13, 50.24),
           ("IRRA", "icfg-pedes", 63.46, 80.24, 85.82, 38.05, 7.92),
           ("IRRA", "rstpreid", 60.20, 81.30, 88.20, 47.17, 25.28)),
    *_rows("README of IRRA", "readme", "t2i",
           ("CLIP", "cuhk-pedes", 68.19, 86.47, 91.47, 61.12, 44.86),
           ("CLIP", "icfg-pedes", 56.74, 75.72, 82.26, 31.84, 5.03),
           ("CLIP", "rstpreid", 54.05, 80.70, 88.00, 43.41, 22.31), setting="fine-tuned"),
    *_rows("InteractReID (ICME 2025)", "fragments", "st2i",
           ("InteractReID", "pku-sketch", 92.00),
           ("InteractReID", "market-sketch-1k", 49.24)),
    *_rows("InteractReID (ICME 2025)", "fragments", "s2s",
           ("InteractReID", "market-sketch-1k", 95.64, 99.76), setting="pseudo-word token against the sketch gallery"),
    *_rows(KTCAA, "third party", "s2i",
           *(("KTCAA + Market-1501", "market-sketch-1k", 24.9, NONE, NONE, 26.2),
             ("SS-reID + KTCAA + CLIP alignment", "market-sketch-1k", 25.1, NONE, NONE, 26.5),
             ("KTCAA", "market-sketch-1k", 21.3, NONE, NONE, 22.7),
             ("SS-reID", "market-sketch-1k", 18.1, NONE, NONE, 19.6),
             ("UNIReID", "market-sketch-1k", 14.6, NONE, NONE, 13.2),
             ("DEEN", "market-sketch-1k", 12.1, NONE, NONE, 12.6),
             ("DSCNet", "market-sketch-1k", 13.8, NONE, NONE, 14.7),
             ("AIO", "market-sketch-1k", 15.4, NONE, NONE, 13.9)), setting="single query"),
    *_rows(KTCAA, "third party", "s2i",
           ("KTCAA + Market-1501", "pku-sketch", 93.6, NONE, NONE, 92.9),
           ("KTCAA", "pku-sketch", 92.7, NONE, NONE, 92.3),
           ("UNIReID", "pku-sketch", 91.4, NONE, NONE, 91.8),
           ("DALNet", "pku-sketch", 90.0, NONE, NONE, 86.2),
           ("CCSC", "pku-sketch", 86.0, NONE, NONE, 83.7),
           ("SS-reID", "pku-sketch", 78.0, NONE, NONE, 78.7),
           ("AFLNet", "pku-sketch", 34.0)),
    *_rows("DiaNA (CVPR 2025, pp. 3952-3962)", "", "d2i",
           ("DiaNA", "chatpedes"), setting="the numbers could not be found; take them from the paper's PDF"),
    *_rows("Interactive-PEDES comparison", "note", "d2i",
           ("RAVEL", "interactive-pedes", 73.73),
           ("LLaVA-ReID", "interactive-pedes", 67.94), setting="5 rounds"),
    *_rows(SURVEY, "note", "t2i",
           ("CECA + ReID pre-training", "cuhk-pedes", 79.65),
           ("CECA", "cuhk-pedes", 78.30),
           ("ICL", "cuhk-pedes", 79.06),
           ("HAM (RDE) + MVR", "cuhk-pedes", 78.54),
           ("HAM (RDE)", "cuhk-pedes", 77.99),
           ("HAM + FMFA", "cuhk-pedes", 77.46),
           ("TBPS-CLIP", "cuhk-pedes", 73.54, 88.19, 92.35, 65.38),
           ("CECA + ReID pre-training", "icfg-pedes", 74.32),
           ("CECA", "icfg-pedes", 72.25),
           ("MVR", "icfg-pedes", 70.52),
           ("ICL", "icfg-pedes", 70.05),
           ("HAM (RDE)", "icfg-pedes", 69.95),
           ("GA-DMS", "icfg-pedes", 69.51),
           ("HAM (RDE) + MVR", "rstpreid", 73.75),
           ("CECA + ReID pre-training", "rstpreid", 73.45),
           ("ICL", "rstpreid", 72.55),
           ("HAM + FMFA", "rstpreid", 71.80),
           ("HAM (RDE)", "rstpreid", 71.50),
           ("CECA", "rstpreid", 71.40),
           ("TBPS-CLIP", "rstpreid", 61.95, 83.55, 88.75, 48.26)),
]  # fmt: skip

# CFine's official training log on CUHK-PEDES: epoch -> (t2i R@1 in percent, training loss).
CFINE_LOG = {
    1: (0.49, 139.7),
    2: (20.11, 106.9),
    3: (35.66, 83.9),
    5: (48.77, 46.4),
    10: (59.31, 15.9),
    15: (63.03, 7.8),
    20: (64.57, 4.3),
    21: (67.82, 2.66),
    26: (69.17, 1.70),
    36: (69.49, 1.58),
    50: (69.25, 1.57),
}


def published() -> pd.DataFrame:
    """All published rows: method, dataset, task, R@1/5/10, mAP, mINP in percent, setting, source, read."""
    return pd.DataFrame([astuple(row) for row in PUBLISHED], columns=COLUMNS)


def published_for(dataset: str, task: str | None = None, method: str | None = None) -> pd.DataFrame:
    """The rows of a data set, best R@1 first; empty where nothing is published. Method names ignore case."""
    rows = published()
    rows = rows[rows["dataset"] == dataset]
    if task is not None:
        rows = rows[rows["task"] == task]
    if method is not None:
        rows = rows[rows["method"].str.casefold() == method.casefold()]
    return rows.sort_values("R@1", ascending=False, ignore_index=True)
