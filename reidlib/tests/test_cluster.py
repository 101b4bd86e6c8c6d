"""Encoding in one process and on a local Ray: the same embeddings, nothing twice, nothing lost."""

import io
import os
import subprocess
import sys
import tarfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from reidlib.errors import ConfigError, DataError, ReidError
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


def pack(file, names, contents):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in zip(names, contents, strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        tar.addfile(tarfile.TarInfo("people/notes.txt"))
    return file


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
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 pictures of .* broken.jpg first"):
            assert encode_pictures(AttributeModel, tmp_path / "pictures", tmp_path / "out") == ["broken.jpg"]
    assert counted() == 13 and len(table) == 10
    assert_right(tmp_path / "out", extra, tmp_path / "pictures")


def test_bytes_that_do_not_come_are_listed_and_tried_again(tmp_path, monkeypatch, counted):
    table, honest = draw_table(tmp_path / "pictures", 5), cluster._pictures

    def lost():
        raise OSError("the network")

    def some(piece):
        return ((name, lost if name == table["image"][3] else read, more) for name, read, more in honest(piece))

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_pictures", some)
        with pytest.warns(UserWarning, match="1 pictures of"):
            assert encode_pictures(AttributeModel, tmp_path / "pictures", tmp_path / "out") == [table["image"][3]]
    assert encode_pictures(AttributeModel, tmp_path / "pictures", tmp_path / "out") == []
    assert counted() == 5
    assert_right(tmp_path / "out", table, tmp_path / "pictures")


SLOW = """
import sys, time
from reidlib.retrieval import cluster
from reidlib.tests.attribute_model import AttributeModel
class Slow(AttributeModel):
    def embed_image(self, images):
        time.sleep(0.1)
        return super().embed_image(images)
cluster.ROWS, cluster.stamp_of = 4, lambda model: "that of Slow"
cluster.encode_pictures(Slow, sys.argv[1], sys.argv[2])
"""


def test_a_job_that_was_killed_goes_on(tmp_path, monkeypatch, counted):
    monkeypatch.setattr(cluster, "ROWS", 4)
    monkeypatch.setattr(cluster, "stamp_of", lambda model: "that of Slow")
    table = draw_table(tmp_path / "pictures", 60)
    command = [sys.executable, "-c", SLOW, str(tmp_path / "pictures"), str(tmp_path / "out")]
    job = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("out/*.parquet"))) < 3:
        assert job.poll() is None
        time.sleep(0.01)
    job.kill()
    job.wait()
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("out/*.parquet")}
    done = len(read(tmp_path / "out"))
    assert 12 <= done < 60
    encode_pictures(AttributeModel, tmp_path / "pictures", tmp_path / "out")
    assert counted() == 60 - done and all(file.stat().st_mtime_ns == at for file, at in kept.items())
    assert_right(tmp_path / "out", table, tmp_path / "pictures")


def test_tars_and_parquet_files(tmp_path, monkeypatch, counted):
    from pyarrow import parquet

    monkeypatch.setattr(cluster, "ROWS", 4)
    table = draw_table(tmp_path / "pictures", 9)
    contents = [(tmp_path / "pictures" / name).read_bytes() for name in table["image"]]
    for folder in ("east", "west"):
        pack(tmp_path / "tars" / folder / "a.tar", table["image"], contents)
    for _ in range(2):
        encode_pictures(AttributeModel, tmp_path / "tars", tmp_path / "from tars")
    assert counted() == 18
    for folder in ("east", "west"):
        assert_right(tmp_path / "from tars", table, tmp_path / "pictures", f"{folder}/a.tar/")
    seen = [datetime(2024, 5, 1, i) for i in range(9)]
    columns = {"image": list(table["image"]), "bytes": contents, "camid": [i % 2 for i in range(9)], "time": seen}
    parquet.write_table(pa.table(columns), tmp_path / "people.parquet")
    encode_pictures(AttributeModel, tmp_path / "people.parquet", tmp_path / "from parquet")
    assert_right(tmp_path / "from parquet", table, tmp_path / "pictures")
    pytest.importorskip("lancedb")
    monkeypatch.setattr(cluster, "STORED", 5)
    store = into_store(
        tmp_path / "from parquet", tmp_path / "store", fields=lambda name: {"pid": int(Path(name).stem), "camid": 9}
    )
    assert len(store) == 9 and store.count({"camid": 1}) == 4 and store.about["model"] == "Attributes"
    assert store.count({"time": (seen[3], seen[7]), "pid": [2, 3, 4]}) == 2
    assert store.rows([store.find(table["image"][8])])[0]["time"] == seen[8]
    session = QuerySession(AttributeModel(), Gallery(store, tmp_path / "pictures", store.about), QUESTIONS)
    session.say(caption(table["attributes"][5]))
    assert session.results(1)[0][1] == table["image"][5]


def test_damaged_tars_and_parquet_files_are_listed_and_taken_up_when_they_are_mended(tmp_path, monkeypatch, counted):
    monkeypatch.setattr(cluster, "ROWS", 4)
    table = draw_table(tmp_path / "pictures", 10)
    contents = [(tmp_path / "pictures" / name).read_bytes() for name in table["image"]]
    good = pack(tmp_path / "tars" / "a.tar", table["image"], contents).read_bytes()
    (tmp_path / "tars" / "b.parquet").write_bytes(b"PAR1 nonsense")
    lost = [f"{tmp_path}/tars/{name}" for name in ("a.tar", "b.parquet")]
    header = good.index(b"people/00008.png")  # where a copy that was cut off looks like one that has ended
    for end in (header, header + 600):
        (tmp_path / "tars" / "a.tar").write_bytes(good[:end])
        with pytest.warns(UserWarning) as told:
            assert encode_pictures(AttributeModel, tmp_path / "tars", tmp_path / "out") == lost
        said = [str(warning.message) for warning in told]
        assert [" could not be read to its end" in sentence for sentence in said] == [True, True, False]
    assert counted() == 8
    (tmp_path / "tars" / "a.tar").write_bytes(good)
    (tmp_path / "tars" / "b.parquet").unlink()
    assert encode_pictures(AttributeModel, tmp_path / "tars", tmp_path / "out") == []
    assert counted() == 10
    assert_right(tmp_path / "out", table, tmp_path / "pictures", "a.tar/")


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
    with pytest.raises(DataError, match="holds no embeddings"):
        into_store(tmp_path / "empty", tmp_path / "store")
    with monkeypatch.context() as patch, pytest.raises(DataError, match="Attributes embeds .* not finite"):
        patch.setattr(AttributeModel, "embed_image", lambda self, images: torch.full((len(images), 4), torch.nan))
        encode_pictures(AttributeModel, tmp_path / "pictures", tmp_path / "nan")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'reidlib\[cluster\]'"):
        encode_pictures(AttributeModel, tmp_path / "pictures", tmp_path / "ray", workers=2)


@pytest.fixture
def local_ray():
    ray = pytest.importorskip("ray")
    for attempt in range(3):  # its start has half a minute, which is little on a busy machine
        try:
            ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
            break
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise
    yield
    ray.shutdown()


@pytest.mark.timeout(600)
def test_two_workers_on_ray_do_the_same(tmp_path, monkeypatch, local_ray):
    table = draw_table(tmp_path / "pictures", 40)
    (tmp_path / "pictures" / "broken.jpg").write_bytes(b"no picture")
    monkeypatch.setattr(cluster, "ROWS", 10)
    driver, died, failed = os.getpid(), tmp_path / "died", tmp_path / "failed"

    class FailsOnce(AttributeModel):  # in a batch of the first worker that has one
        def embed_image(self, images):
            if os.getpid() != driver and not failed.exists():
                failed.touch()
                raise RuntimeError("out of memory")
            return super().embed_image(images)

    def dies_once():
        if os.getpid() != driver and not died.exists():  # the first worker, when it makes its model
            died.touch()
            os._exit(1)
        return FailsOnce()

    with pytest.warns(UserWarning, match="broken.jpg first"):
        encode_pictures(dies_once, tmp_path / "pictures", tmp_path / "out", workers=2)
    assert died.exists() and failed.exists(), "a worker was lost, and a batch failed"
    assert_right(tmp_path / "out", table, tmp_path / "pictures")

    class Fails(AttributeModel):
        def embed_image(self, images):
            raise RuntimeError("no such kernel")

    with pytest.raises(ReidError, match="Encoding on Ray failed .*no such kernel"):
        encode_pictures(Fails, tmp_path / "pictures", tmp_path / "never", workers=2)
