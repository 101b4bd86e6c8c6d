"""The real files, where they are at hand: their counts are what the papers say."""

import os
from pathlib import Path

import pytest

from reidlib.data import check, load

SHARED = Path(os.environ.get("REIDLIB_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
CUHK, PKU = SHARED / "CUHK-PEDES-captions", SHARED / "PKU-Sketch"
needs_cuhk = pytest.mark.skipif(not CUHK.is_dir(), reason=f"needs CUHK-PEDES' captions at {CUHK}")
needs_pku = pytest.mark.skipif(not PKU.is_dir(), reason=f"needs PKU-Sketch at {PKU}")


@needs_cuhk
@pytest.mark.parametrize("name", ["reid_raw.json", "reid_raw.val_test.json"])
def test_cuhk_pedes_captions(tmp_path, name):
    (tmp_path / name).symlink_to(CUHK / "reid_raw.val_test.json")
    data = load("cuhk-pedes", tmp_path, pictures=False)
    report = check(data, decode=False)
    assert report.counts.loc["val", ["identities", "pictures", "captions"]].tolist() == [1000, 3078, 6158]
    assert report.counts.loc["test", ["identities", "pictures", "captions"]].tolist() == [1000, 3074, 6156]
    assert len(report.missing) == 6152
    plain = [" ".join(caption.lower().split()) for captions in data.table["text"] for caption in captions]
    assert sum(report.duplicated.values()) - len(report.duplicated) == len(plain) - len(set(plain)) == 123
    assert not report.shared_pids
    assert data.split("val")["pid"].agg(["min", "max"]).tolist() == [11004, 12003]


@needs_pku
def test_pku_sketch_all_trials():
    lacking = 0
    for trial in range(1, 11):
        data = load("pku-sketch", PKU, trial=trial)
        test, rest = data.split("test"), data.table[data.table["split"] != "test"]
        assert (test["pid"].nunique(), rest["pid"].nunique(), len(test), len(rest)) == (50, 150, 100, 300)
        assert not set(test["pid"]) & set(rest["pid"])
        assert data.split("val")["pid"].nunique() == 15
        people = data.table.drop_duplicates("pid")
        lacking += (people["sketch"].str.len() == 0).sum()
        assert set(people["pid"][people["sketch"].str.len() == 0]) == {160, 168, 169}
        assert (people["pid"].map(lambda pid: f"sketch/{pid}.jpg") == people["sketch"].str[0])[
            people["sketch"].str.len() > 0
        ].all()
    assert lacking == 30


@needs_pku
def test_pku_sketch_pictures_are_whole():
    report = check(load("pku-sketch", PKU))
    assert not report.missing
    assert not report.unreadable
    assert report.problems == [
        "train + val has 148 sketches, published are 150.",
        "test has 49 sketches, published are 50.",
    ]
