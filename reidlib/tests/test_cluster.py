"""Encoding in one process and on a local Ray: the same embeddings, nothing twice, nothing lost."""

import io
import os
import sys
import tarfile

import numpy as np
import pytest
import torch

from reidlib.errors import ConfigError, DataError
from reidlib.retrieval import Gallery, QuerySession, cluster
from reidlib.retrieval.cluster import encode_pictures, encoded, into_store
from reidlib.tests.attribute_model import QUESTIONS, AttributeModel, caption, draw_table

pa = pytest.importorskip("pyarrow")


def read(out):
    """Picture -> its embedding, None for an unreadable one; every picture stands there once."""
    rows = [row for table in encoded(out) for row in table.to_pylist()]
    assert len({row["image"] for row in rows}) == len(rows)
    return {row["image"]: row["vector"] for row in rows}


def assert_right(out, table, root, prefix=""):
    whole = Gallery.encode(AttributeModel(), table, root).index
    found = read(out)
    for image, row in zip(table["image"], whole.embeddings, strict=True):
        np.testing.assert_allclose(found[prefix + image], row, atol=1e-6)


@pytest.fixture
def counted(monkeypatch):
    """How many pictures were embedded in this process."""
    seen, honest = [], AttributeModel.embed_image
    monkeypatch.setattr(AttributeModel, "embed_image", lambda self, x: seen.append(len(x)) or honest(self, x))
    return lambda: sum(seen)


def test_a_folder_is_encoded_once_and_new_pictures_later(tmp_path, monkeypatch, counted):
    monkeypatch.setattr(cluster, "ROWS", 4)
    table = draw_table(tmp_path / "pictures", 10)
    assert encode_pictures(AttributeModel, tmp_path / "pictures", tmp_path / "out") == []
    assert counted() == 10
    extra = draw_table(tmp_path / "pictures", 13)
    (tmp_path / "pictures" / "broken.jpg").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1 pictures of .* broken.jpg first"):
        assert encode_pictures(AttributeModel, tmp_path / "pictures", tmp_path / "out") == ["broken.jpg"]
    assert counted() == 13 and len(table) == 10
    assert_right(tmp_path / "out", extra, tmp_path / "pictures")


def test_a_job_that_was_cut_off_goes_on(tmp_path, monkeypatch, counted):
    monkeypatch.setattr(cluster, "ROWS", 4)
    table = draw_table(tmp_path / "pictures", 12)
    honest, written = cluster._Worker._write, []

    def dies(self, file, part):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(file)
        honest(self, file, part)

    with monkeypatch.context() as patch:
        patch.setattr(cluster._Worker, "_write", dies)
        with pytest.raises(KeyboardInterrupt):
            encode_pictures(AttributeModel, tmp_path / "pictures", tmp_path / "out")
    encode_pictures(AttributeModel, tmp_path / "pictures", tmp_path / "out")
    assert counted() == 12
    assert_right(tmp_path / "out", table, tmp_path / "pictures")


def test_tars_and_parquet_files(tmp_path, monkeypatch, counted):
    from pyarrow import parquet

    monkeypatch.setattr(cluster, "ROWS", 4)
    table = draw_table(tmp_path / "pictures", 9)
    contents = [(tmp_path / "pictures" / name).read_bytes() for name in table["image"]]
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for name, content in zip(table["image"], contents, strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        tar.addfile(tarfile.TarInfo("people/notes.txt"))
    for _ in range(2):
        encode_pictures(AttributeModel, tmp_path / "tars", tmp_path / "from tars")
    assert counted() == 9
    assert_right(tmp_path / "from tars", table, tmp_path / "pictures", "a.tar/")
    parquet.write_table(
        pa.table({"image": list(table["image"]), "bytes": contents, "camid": [i % 2 for i in range(9)]}),
        tmp_path / "people.parquet",
    )
    encode_pictures(AttributeModel, tmp_path / "people.parquet", tmp_path / "from parquet")
    assert_right(tmp_path / "from parquet", table, tmp_path / "pictures")
    pytest.importorskip("lancedb")
    store = into_store(tmp_path / "from parquet", tmp_path / "store")
    assert len(store) == 9 and store.count({"camid": 1}) == 4 and store.about["model"] == "Attributes"
    session = QuerySession(AttributeModel(), Gallery(store, tmp_path / "pictures", store.about), QUESTIONS)
    session.say(caption(table["attributes"][5]))
    assert session.results(1)[0][1] == table["image"][5]


def test_what_cannot_be_encoded_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture, tar or Parquet file"):
        encode_pictures(AttributeModel, tmp_path / "empty", tmp_path / "out")
    draw_table(tmp_path / "pictures", 2)

    def other():
        model = AttributeModel()
        with torch.no_grad():
            model.palette += 0.1
        return model

    with pytest.raises(DataError, match="holds the embeddings of Attributes .*; choose another folder"):
        encode_pictures(other, tmp_path / "pictures", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'reidlib\[cluster\]'"):
        encode_pictures(AttributeModel, tmp_path / "pictures", tmp_path / "ray", workers=2)


def test_two_workers_on_ray_do_the_same(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    table = draw_table(tmp_path / "pictures", 40)
    (tmp_path / "pictures" / "broken.jpg").write_bytes(b"no picture")
    monkeypatch.setattr(cluster, "ROWS", 10)
    driver, died = os.getpid(), tmp_path / "died"

    def dies_once():
        if os.getpid() != driver and not died.exists():  # the first worker, when it makes its model
            died.touch()
            os._exit(1)
        return AttributeModel()

    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")  # a busy machine
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        with pytest.warns(UserWarning, match="broken.jpg first"):
            encode_pictures(dies_once, tmp_path / "pictures", tmp_path / "out", workers=2)
    finally:
        ray.shutdown()
    assert died.exists(), "a worker was lost"
    assert_right(tmp_path / "out", table, tmp_path / "pictures")
