"""Tuning with equal effort: every method draws from the same ranges, and no trial is run twice."""

import pytest

from reidlib import study
from reidlib.methods import METHODS, config_class


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
    arguments = ["clip", "--root", str(toy_root), "--log", str(log), "--trials"]
    study.main([*arguments, "1"])
    first = log.read_text()
    tried = []
    monkeypatch.setattr(study, "run_trial", lambda *of: tried.append(of[:2]) or dict.fromkeys(study.COLUMNS, 0))
    study.main([*arguments, "2"])
    assert tried == [("clip", 1)] and log.read_text().startswith(first)
    table = study.trials(log)
    assert len(table) == 2 and list(table.columns) == list(study.COLUMNS) and "clip" in capsys.readouterr().out
