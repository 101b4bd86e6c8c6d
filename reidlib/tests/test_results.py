import json
import math
import os

import numpy as np
import pytest

from reidlib.data import load
from reidlib.evaluation import Ranks
from reidlib.methods.clip import ClipConfig
from reidlib.results import as_csv, as_text, find_results, per_query, summarise
from reidlib.runs import Run


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


def test_runs_with_other_settings_stay_apart(tmp_path):
    write(tmp_path, "a", [row(60.0, preset="toy", settings="")], age=30)
    write(tmp_path, "b", [row(70.0, preset="toy", settings="epochs=4")], age=20)
    write(tmp_path, "c", [row(80.0, preset="paper", settings="")], age=10)
    write(tmp_path, "d", [row(20.0, label="CFine", preset="paper", settings="lr=0.1")])
    summary = summarise(find_results(tmp_path)).set_index("label")["R@1"]
    assert summary.to_dict() == {"CLIP (toy)": 60.0, "CLIP (toy) (epochs=4)": 70.0, "CLIP (paper)": 80.0, "CFine": 20.0}


def test_a_run_says_its_preset_and_settings(tmp_path, monkeypatch, toy_root):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path))
    data = load("toy", toy_root)
    for name, settings in (("plain", {"seed": 3, "workers": 1}), ("short", {"epochs": 31, "lr": 7e-3})):
        run = Run(name)
        run.describe(data, ClipConfig.preset("toy", **settings), preset="toy")
        found = Ranks(np.array([1, 2]), np.array([1.0, 0.5]), np.array([1.0, 0.5]))
        run.add([row(50.0)], {"t2i": found}, method="clip", label="CLIP", dataset="toy", seed=0)
    assert find_results(tmp_path)["settings"].tolist() == ["", "epochs=31, lr=0.007"]
    assert set(per_query(tmp_path, "toy")) == {("CLIP", "t2i"), ("CLIP (epochs=31, lr=0.007)", "t2i")}


def test_queries_stand_in_the_order_of_seeds_whichever_was_run_first(tmp_path, monkeypatch, toy_root):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path))
    data = load("toy", toy_root)
    for seed in (10, 0, 2):
        run = Run(f"seed {seed}")
        run.describe(data, ClipConfig.preset("toy", seed=seed), preset="toy")
        found = Ranks(np.array([1 + seed, 2]), np.array([1.0, 0.5]), np.array([1.0, 0.5]))
        run.add([row(50.0)], {"t2i": found}, method="clip", label="CLIP", dataset="toy", seed=seed)
    [arrays] = per_query(tmp_path, "toy").values()
    assert arrays["first"][:, 0].tolist() == [1, 3, 11]


def test_formulas_are_text_in_csv(tmp_path):
    write(tmp_path, "02", [row(-1.0, label="=HYPERLINK(1)", method="@x")])
    line = as_csv(summarise(find_results(tmp_path))).splitlines()[1]
    assert line.startswith("'@x,'=HYPERLINK(1),toy") and ",-1.0," in line


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


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '{"rows": [{"method": "x"}]}', '{"rows": 3}', '{"rows": ["x"]}', "\xff",
     '{"rows": [{"method": "x", "dataset": "toy", "task": "t2i", "R@1": "high"}]}',
     '{"rows": [{"method": "x", "dataset": "toy", "task": ["t2i"]}]}',
     '{"rows": [{"method": "x", "dataset": "toy", "task": "t2i", "seed": "one"}]}', '{"rows": ' + "[" * 9999],
)  # fmt: skip
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
