"""Tuning with equal effort: every method draws from the same ranges, and no trial is run twice."""

import dataclasses

import numpy as np
import pytest

from reidlib import study
from reidlib.evaluation import Ranks
from reidlib.methods import METHODS, config_class
from reidlib.runs import Run


@pytest.mark.parametrize("method", METHODS)
def test_trials_are_settings_of_the_method_and_the_same_again(method):
    preset = config_class(method).preset("toy")
    assert study.drawn(method, 0, preset) == {}
    for trial in range(1, 5):
        settings = study.drawn(method, trial, preset)
        assert settings == study.drawn(method, trial, preset) != study.drawn(method, trial + 1, preset)
        preset.replace(**settings)
        assert preset.lr / 4.1 < settings["lr"] < preset.lr * 4.1
        assert set(settings) == {"lr", "weight_decay", "schedule", "warmup_epochs", *study.OWN.get(method, ())}


def test_a_study_goes_on_where_it_was(toy_root, tmp_path, monkeypatch, capsys):
    log = tmp_path / "study.csv"
    arguments = ["tune", "clip", "--root", str(toy_root), "--log", str(log), "--trials"]
    study.main([*arguments, "1"])
    first = log.read_text()
    tried = []
    monkeypatch.setattr(study, "run_trial", lambda *of: tried.append(of[:2]) or dict.fromkeys(study.COLUMNS, 0))
    study.main([*arguments, "2"])
    assert tried == [("clip", 1)] and log.read_text().startswith(first)
    table = study.trials(log)
    assert len(table) == 2 and list(table.columns) == list(study.COLUMNS) and "clip" in capsys.readouterr().out


def test_one_training_with_settings_of_ones_own_is_kept(toy_root, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "WHY", tmp_path / "why.csv")
    for steps in (1, 2):
        study.main(["try", "clip", f'{{"max_steps": {steps}}}'])
    kept = study.trials(study.WHY)
    assert set(kept["settings"]) == {'{"max_steps": 1}', '{"max_steps": 2}'} and set(kept["method"]) == {"clip"}
    assert all(kept["value"].between(0, 100)) and kept["mAP"].nunique() == 2  # the second step moved something


def test_a_comparison_runs_what_is_missing_and_writes_its_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "CHECKOUT", tmp_path)
    monkeypatch.setattr(study, "COMPARED", ("10", "15"))
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "notebooks" / "images").mkdir(parents=True)
    begin, held = (study.BEGIN.format(command=f"{study.COMMAND}{root}") for root in ("", " --root HELD_OUT"))
    for file in ("README.md", "docs/toyworld.md"):
        (tmp_path / file).write_text(f"before\n{begin}\nold\n{study.END}\nafter\n{held}\nother\n{study.END}\n")

    def execute(run) -> float:
        made = Run(run.name)
        values = np.random.default_rng(run.parameters["seed"]).random(40)
        for label, more in (("CLIP fine-tuned", 0.0), ("CFFA", 0.2)):
            ranks = Ranks(**{f.name: np.ones(40) for f in dataclasses.fields(Ranks)})
            ranks = dataclasses.replace(ranks, average_precision=(values + more) / 2)
            row = {"task": "t2i", "split": "test", "n_queries": 40, "R@1": 30.0, "R@5": 50.0, "R@10": 60.0}
            row |= {"mAP": 100 * ranks.average_precision.mean(), "mINP": 20.0}
            made.add([row], {"t2i": ranks}, method="x", label=label, dataset="toy", seed=run.parameters["seed"])
        (made.folder / "executed.ipynb").write_text("{}")
        executed.append(run.name)
        return 0.0

    executed = []
    monkeypatch.setattr(study.runner, "execute", execute)
    study.main(["compare", "--seeds", "2"])
    assert len(executed) == 4 and "old" in (tmp_path / "docs" / "toyworld.md").read_text()
    study.main(["compare", "--seeds", "2", "--write"])
    assert len(executed) == 4, "what is there is not run again"
    page, readme = (tmp_path / "docs" / "toyworld.md").read_text(), (tmp_path / "README.md").read_text()
    assert "| CFFA | 30.0 ± 0.0 |" in page and "| CFFA | 30.0 ± 0.0 |" in readme and "old" not in readme
    assert "beats a fine-tuned CLIP | 10.0 | 10.0 | 10.0 | 2 | holds here |" in page
    for text in (page, readme):
        assert text.startswith(f"before\n{begin}\n") and text.endswith(f"after\n{held}\nother\n{study.END}\n")
    assert (tmp_path / "notebooks" / "images" / "forest.png").is_file()
