"""Which model a demo searches with."""

import os

import pytest

from reidlib import paths, runs, weights
from reidlib.errors import CheckpointError, ReidError
from reidlib.methods.clip import Clip, ClipConfig


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Two trainings: of words, then of sketches."""
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path))
    for age, (part, view) in enumerate((("one", "text"), ("two", "sketch"))):
        config = ClipConfig.preset("toy", views=[view], backbone="toy-random")
        file = tmp_path / "02_clip" / part / "checkpoint" / "best.safetensors"
        weights.save(file, Clip(config), {"method": "clip", "config": config.as_dict(), "num_classes": 0})
        os.utime(file.with_suffix(".json"), (age, age))
    return paths.outputs_dir()


def test_the_newest_that_takes_the_query_is_taken(outputs):
    assert runs.trained() == [("02_clip", "one"), ("02_clip", "two")]
    model, which = runs.searcher("text", "sketch")
    assert model.reads == ("sketch",) and "02_clip/two" in which and not model.training
    assert runs.searcher("text")[1] == "The model is clip from the run 02_clip/one."


def test_a_run_by_name_and_one_that_does_not_fit(outputs):
    assert runs.searcher("text", run="02_clip/one")[0].reads == ("text",)
    with pytest.raises(ReidError, match="02_clip/one reads text; expected sketch"):
        runs.searcher("sketch", run="02_clip/one")
    with pytest.raises(CheckpointError):
        runs.searcher("sketch", run="03_none")


def test_without_a_run_that_fits_the_small_clip_serves(outputs):
    model, which = runs.searcher("turns")
    assert model.reads == ("text", "sketch") and "zero-shot" in which
