"""`reid reproduce`: a run once more, and whether it comes to the same numbers."""

import json
import math

import pytest
import torch

from reidlib import models, paths, runner, runs, weights
from reidlib.cli import main
from reidlib.errors import DataError
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.results import differences, find_results, other_conditions
from reidlib.tests.test_runner import write

# Writes what a run writes; the file `luck` is what a repetition cannot know of.
CELL = """
import json, os, pathlib
folder = pathlib.Path(os.environ["REIDLIB_OUTPUTS"], run)
luck = float(pathlib.Path("luck").read_text())
rows = [{"label": "CLIP", "task": "t2i", "seed": seed, "R@1": 0.1 + seed, "mAP": luck}]
(folder / "metrics.json").write_text(json.dumps({"rows": rows, "built_on": {"14": str(luck)}}))
(folder / "config.json").write_text(json.dumps({"versions": {"torch": "2"}, "commit": "abc"}))
"""


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    write(tmp_path, "02_lucky", CELL)
    (tmp_path / "luck").write_text("1")
    monkeypatch.setattr(runner, "notebooks_dir", lambda: tmp_path)
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


def test_a_run_again(shelf, capsys):
    assert main(["run", "2", "-p", "seed", "3", "-p", "rounds", "[1, 2]", "--run", "mine"]) == 0
    first = {path.name: path.read_bytes() for path in (shelf / "outputs" / "mine").iterdir()}
    capsys.readouterr()
    assert main(["reproduce", "mine"]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == "equal" and output.err == ""
    assert not (shelf / "outputs" / ".again" / "mine").exists()

    (shelf / "luck").write_text("2")
    assert main(["reproduce", "mine"]) == 1
    output = capsys.readouterr()
    changed = next(line for line in output.out.splitlines() if "mAP" in line)
    assert changed.split() == ["rows", "0", "(CLIP,", "t2i)", "mAP", "1.0", "2.0"] and "R@1" not in output.out
    assert output.err == "reid: warning: built_on 14 was '1.0' and is '2.0'.\n"
    second = shelf / "outputs" / ".again" / "mine"
    assert json.loads((second / "metrics.json").read_text())["rows"][0]["seed"] == 3
    assert {path.name: path.read_bytes() for path in (shelf / "outputs" / "mine").iterdir()} == first
    assert set(find_results(paths.outputs_dir())["run"]) <= {"mine"}, "the second run is no result"

    (shelf / "luck").unlink()
    assert main(["reproduce", "mine"]) == 1
    assert "FileNotFoundError" in capsys.readouterr().err


def test_what_cannot_be_run_again_is_said(shelf, capsys):
    folder = shelf / "outputs" / "02_lucky"
    folder.mkdir(parents=True)
    assert main(["reproduce", "02_lucki"]) == 2
    assert "No run '02_lucki' was finished" in capsys.readouterr().err
    (folder / "executed.ipynb").write_text("{}")
    assert main(["reproduce", "02_lucki"]) == 2
    assert "the nearest is '02_lucky'" in capsys.readouterr().err
    assert main(["reproduce", "02_lucky"]) == 2
    assert "does not say how it was run" in capsys.readouterr().err
    about = {"reidlib_notebook": "02_lucky", "papermill": {"parameters": {"gone": 1}}}
    (folder / "executed.ipynb").write_text(json.dumps({"metadata": about, "cells": []}))
    assert main(["reproduce", "02_lucky"]) == 2
    assert "is called 'gone'" in capsys.readouterr().err


def kept(folder, metrics, **config):
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_every_value_is_compared_exactly(tmp_path):
    row = {"label": "CLIP", "task": "t2i", "R@1": 0.1 + 0.2, "mAP": math.nan}
    one = kept(tmp_path / "one", {"rows": [row, row], "counts": {"a": [1, 2]}, "built_on": {"x": "1"}})
    same = kept(tmp_path / "same", {"rows": [row, row], "counts": {"a": [1, 2]}, "built_on": {}})
    other = kept(tmp_path / "other", {"rows": [row, row | {"R@1": 0.3}], "counts": {"a": [1]}})
    assert differences(one, same).empty
    found = differences(one, other).to_dict("records")
    assert found == [
        {"value": "rows 1 (CLIP, t2i) R@1", "before": 0.1 + 0.2, "after": 0.3},
        {"value": "counts a 1", "before": 2, "after": ""},
    ]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="metrics.json cannot be read"):
        differences(one, tmp_path / "none")


def test_other_conditions_are_told(tmp_path):
    one = kept(tmp_path / "one", {}, commit="a-dirty", versions={"torch": "1", "numpy": "2"}, data_fingerprint="x")
    two = kept(tmp_path / "two", {"built_on": {"14": "f"}}, commit="b", versions={"torch": "2"}, machine={"gpu": "H"})
    assert other_conditions(one, two) == [
        "data_fingerprint was 'x' and is 'not recorded'.",
        "versions torch was '1' and is '2'.",
        "versions numpy was '2' and is 'not recorded'.",
        "machine gpu was 'not recorded' and is 'H'.",
        "commit was 'a-dirty' and is 'b'.",
        "built_on 14 was 'not recorded' and is 'f'.",
    ]
    assert other_conditions(two, two) == []
    assert other_conditions(one, one) == [
        "The code differed from commit a-dirty and may have changed between the runs."
    ]


def test_metrics_say_on_which_models_they_are_built(tmp_path, monkeypatch):
    built_on = {}
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path))
    for module in (models, runs):
        monkeypatch.setattr(module, "loaded", built_on)
    config = ClipConfig.preset("toy", backbone="toy-random")
    for run in ("02_clip/text", "13_mine/stage1", ".again/02_clip"):
        state = {"method": "clip", "config": config.as_dict(), "num_classes": 0}
        weights.save(tmp_path / run / "checkpoint" / "best.safetensors", Clip(config), state)
    assert set(models.trained()) == {("02_clip", "text"), ("13_mine", "stage1")}, "not the repetitions"
    model = models.load_model("02_clip", "text")
    models.load_model("13_mine", "stage1")
    run = runs.Run("13_mine")

    def mark():
        run.write_json("metrics.json", {"rows": []})
        [(name, mark)] = json.loads((run.folder / "metrics.json").read_text())["built_on"].items()
        assert name == "02_clip/text"
        return mark

    before = mark()
    with torch.no_grad():
        model.clip.logit_scale.add_(1e-3)
    weights.save(tmp_path / "02_clip/text/checkpoint/best.safetensors", model, state)
    models.load_model("02_clip", "text")
    assert mark() != before
