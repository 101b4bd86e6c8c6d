import pandas as pd
import pytest

from reidlib.published import cfine_log, published, published_for

METRICS = ["R@1", "R@5", "R@10", "mAP", "mINP"]


@pytest.mark.parametrize(
    ("dataset", "task", "method", "figures"),
    [
        ("cuhk-pedes", "t2i", "cfine", [69.57, 85.93, 91.15]),
        ("cuhk-pedes", "i2t", "CFine", [81.39, 95.87, 97.95]),
        ("rstpreid", "t2i", "cffa", [62.85, 83.10, 89.65, 49.68]),
        ("icfg-pedes", "t2i", "irra", [63.46, 80.24, 85.82, 38.05, 7.92]),
        ("pku-sketch", "st2i", "interactreid", [92.00]),
    ],
)
def test_known_figures(dataset, task, method, figures):
    row = published_for(dataset, task, method)[METRICS].squeeze()
    assert row.dropna().tolist() == figures


def test_every_row_is_complete_and_possible():
    rows = published()
    assert list(rows.columns) == ["method", "dataset", "task", *METRICS, "setting", "source", "read"] and len(rows) > 50
    assert set(rows["task"]) <= {"t2i", "i2t", "s2i", "st2i", "s2s", "d2i"}
    assert set(rows["read"]) <= {"log", "image", "readme", "fragments", "note", "third party"}
    assert not rows[["method", "dataset", "task", "source", "setting"]].isna().any(axis=None)
    assert rows["R@1"].notna().all(), "a row without a figure says nothing"
    assert rows[METRICS].stack().dropna().between(0, 100).all()
    ranks = rows[["R@1", "R@5", "R@10"]].dropna()
    assert (ranks["R@1"] < ranks["R@5"]).all() and (ranks["R@5"] < ranks["R@10"]).all()
    assert not rows.duplicated(["method", "dataset", "task"]).any()


def test_rows_of_a_dataset_are_sorted_and_unknown_ones_are_empty():
    rows = published_for("market-sketch-1k", "s2i")
    assert rows["R@1"].is_monotonic_decreasing and rows.index.tolist() == list(range(len(rows)))
    assert published_for("toy").empty and isinstance(published_for("toy"), pd.DataFrame)


def test_the_log_of_cfine_rises():
    log = cfine_log()
    assert log["epoch"].is_monotonic_increasing and log["loss"].is_monotonic_decreasing
    assert log["R@1"].iloc[:-1].is_monotonic_increasing and log["R@1"].iloc[-1] < log["R@1"].max()
