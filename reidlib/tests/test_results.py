import json
import math
import os

import pytest

from reidlib.results import as_text, find_results, summarise


def write(folder, run, rows, age=0):
    path = folder / run / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"rows": rows}))
    os.utime(path, (1_000_000 - age, 1_000_000 - age))


def row(recall, seed=0, **more):
    return {"method": "clip", "label": "CLIP", "dataset": "toy", "split": "test", "task": "t2i", "seed": seed,
            "R@1": recall, "R@5": 80.0, "R@10": 90.0, "mAP": 50.0, "mINP": 30.0, **more}  # fmt: skip


def test_mean_and_deviation_over_seeds(tmp_path):
    for seed, recall in enumerate([60.0, 62.0, 67.0]):
        write(tmp_path, f"02+seed={seed}", [row(recall, seed)])
    [summary] = summarise(find_results(tmp_path)).to_dict("records")
    assert summary["seeds"] == 3
    assert summary["R@1"] == pytest.approx(63.0)
    assert summary["R@1 sd"] == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert "63.00 ± 3.61" in as_text(summarise(find_results(tmp_path)))


def test_the_newer_run_of_a_seed_counts(tmp_path):
    write(tmp_path, "a_new", [row(70.0)], age=0)
    write(tmp_path, "b_old", [row(10.0)], age=100)
    [summary] = summarise(find_results(tmp_path)).to_dict("records")
    assert summary["seeds"] == 1 and summary["R@1"] == 70.0 and math.isnan(summary["R@1 sd"])


def test_tasks_data_sets_labels_and_rounds_stay_apart(tmp_path):
    rows = [row(1.0), row(2.0, task="i2t"), row(3.0, dataset="rstpreid"), row(4.0, label="CLIP tuned")]
    write(tmp_path, "02", rows + [row(5.0, task="dialogue", round=number) for number in (0, 1)])
    summary = summarise(find_results(tmp_path))
    assert len(summary) == 6
    assert sorted(summary["R@1"]) == [1.0, 2.0, 3.0, 4.0, 5.0, 5.0]


def test_a_row_may_lack_metrics_and_have_more(tmp_path):
    short = {"method": "diana", "dataset": "toy", "task": "dialogue", "R@1": 12.5, "Hits@1": 20.0}
    write(tmp_path, "15", [short])
    found = find_results(tmp_path)
    assert found["Hits@1"].tolist() == [20.0]
    text = as_text(summarise(found))
    assert "12.50" in text and "mINP" not in text and "nan" not in text.lower()


@pytest.mark.parametrize("damage", ["{", "[]", '{"rows": [{"method": "x"}]}', '{"rows": 3}', '{"rows": ["x"]}', "\xff"])
def test_a_damaged_file_is_named_and_passed_over(tmp_path, damage):
    write(tmp_path, "02", [row(60.0)])
    (tmp_path / "03").mkdir()
    (tmp_path / "03" / "metrics.json").write_text(damage, encoding="latin-1")
    with pytest.warns(UserWarning, match=r"03.metrics\.json is passed over"):
        found = find_results(tmp_path)
    assert found["run"].tolist() == ["02"]


def test_no_runs(tmp_path):
    assert find_results(tmp_path).empty
    assert find_results(tmp_path / "absent").empty
