"""The gallery index and the encoding of folders: against plain recomputation, killed and damaged."""

import signal
import subprocess
import sys
import time
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reidlib.data import find_pictures
from reidlib.errors import DataError, ReidError
from reidlib.retrieval import Gallery, GalleryIndex, encode_folder, index
from reidlib.retrieval.gallery import stamp_of
from reidlib.tests.attribute_model import AttributeModel, draw_table, picture


def random_rows(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def names(count: int, first: int = 0) -> list[dict]:
    return [{"image": f"{i}.png"} for i in range(first, first + count)]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 50), k=st.integers(1, 60), block=st.integers(1, 60), half=st.booleans())
def test_search_equals_sorting_the_whole_matrix(count, k, block, half):
    rows = random_rows(count).astype(np.float16 if half else np.float32)
    queries = torch.from_numpy(random_rows(3, seed=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "BLOCK", block)
        scores, found = GalleryIndex(rows, names(count)).search(queries, k)
    matrix = queries.numpy() @ rows.astype(np.float32).T
    expected = -np.sort(-matrix, axis=1)[:, :k]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(matrix, found.numpy(), 1), expected, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    scores=st.lists(st.sampled_from([-2.0, -1.5, -1e-9, -0.0, 0.0, 1e-9, 0.5, 3.0]), min_size=1, max_size=40),
    k=st.integers(1, 40),
)
def test_equal_scores_come_in_the_order_of_rows(scores, k):
    rows = np.array(scores, np.float32)[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "BLOCK", 7)
        values, found = GalleryIndex(rows, names(len(rows))).search(torch.ones(1, 1), k)
    expected = np.argsort(-rows[:, 0], kind="stable")[:k]
    assert found[0].tolist() == expected.tolist()
    assert values[0].tolist() == rows[expected, 0].tolist()


def test_memory_of_search_does_not_grow_with_the_gallery(tmp_path):
    script = """
import resource, sys, numpy as np, torch
from reidlib.retrieval import GalleryIndex
rows = np.load(sys.argv[1], mmap_mode="c")
gallery = GalleryIndex(rows, [{}] * len(rows))
query = torch.from_numpy(np.array(rows[:1]))
gallery.search(query, 10)
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("RssAnon")))
"""
    used = []
    for count in (50_000, 400_000):
        np.save(tmp_path / "rows.npy", np.ones((count, 64), np.float32))
        used.append(int(subprocess.check_output([sys.executable, "-c", script, tmp_path / "rows.npy"])))
    assert used[1] - used[0] < 30_000  # kilobytes; the larger file alone has 100,000


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="3 embeddings and 2 rows"):
        GalleryIndex(random_rows(3), names(2))
    with pytest.raises(DataError, match="float64"):
        GalleryIndex(random_rows(3).astype(float), names(3))
    gallery, query = GalleryIndex(random_rows(3), names(3)), torch.zeros(1, 16)
    with pytest.raises(DataError, match="expected \\(Q, 16\\)"):
        gallery.search(torch.zeros(1, 5), 1)
    with pytest.raises(DataError, match="k=0 results"):
        gallery.search(query, 0)
    with pytest.raises(DataError, match="query's embedding .* not finite"):
        gallery.search(query * np.nan, 1)
    for row in (7, -1, 10**30, 1.5, True, None):
        with pytest.raises(DataError, match="Row .* is n"):
            gallery.rows([1, row])
    broken = random_rows(9)
    broken[6, 3] = np.nan
    with pytest.raises(DataError, match="Row 6 of the embeddings"):
        GalleryIndex(broken, names(9))


def test_a_search_among_some_rows(monkeypatch):
    rows, query = random_rows(30), torch.from_numpy(random_rows(2, seed=1))
    gallery = GalleryIndex(rows, [{**row, "camid": i % 3} for i, row in enumerate(names(30))])
    monkeypatch.setattr(index, "BLOCK", 7)
    scores, found = gallery.search(query, 50, {"camid": [0, 2], "image": ("0.png", None)})
    among = np.array([i for i in range(30) if i % 3 != 1])
    matrix = query.numpy() @ rows[among].T
    np.testing.assert_allclose(scores, -np.sort(-matrix, axis=1), atol=1e-5)
    np.testing.assert_array_equal(found, among[np.argsort(-matrix, axis=1)])
    assert gallery.count({"camid": 1}) == 10 and gallery.search(query, 5, {"camid": 9})[1].shape == (2, 0)
    assert gallery.find("4.png") == 4 and gallery.find("x.png") is None and list(gallery.ids(28, 9)) == [28, 29]


def test_a_gallery_beyond_memory_is_told(monkeypatch):
    monkeypatch.setattr(index, "memory", lambda: 100)
    with pytest.warns(UserWarning, match="put them into a store"):
        GalleryIndex(random_rows(3), names(3))


def test_a_folder_is_encoded_once_and_equals_encoding_its_table(tmp_path, monkeypatch):
    table = draw_table(tmp_path / "pictures", 10)
    model = AttributeModel()
    gallery = encode_folder(model, tmp_path / "pictures", tmp_path / "index", batch_size=4)
    np.testing.assert_array_equal(
        gallery.index.embeddings, Gallery.encode(model, table, tmp_path / "pictures").index.embeddings
    )
    assert [gallery.image(i) for i in range(10)] == find_pictures(tmp_path / "pictures")[0] == list(table["image"])
    assert gallery.about == {"model": "Attributes", "stamp": stamp_of(model)}
    monkeypatch.setattr(model, "embed_image", None)
    assert len(encode_folder(model, tmp_path / "pictures", tmp_path / "index", batch_size=4)) == 10


def test_what_is_new_or_changed_is_all_that_is_encoded(tmp_path, monkeypatch):
    root, model, encoded = tmp_path / "pictures", AttributeModel(), []
    table = draw_table(root, 10)
    encode_folder(model, root, tmp_path / "index")
    honest = model.embed_image
    monkeypatch.setattr(model, "embed_image", lambda images: encoded.append(len(images)) or honest(images))
    (root / "a first one.png").write_bytes((root / "people/00003.png").read_bytes())
    picture(table["attributes"][9]).save(root / "people/00005.png")
    (root / "people" / "00001.png").unlink()
    gallery = encode_folder(model, root, tmp_path / "index")
    assert sum(encoded) == 2 and len(gallery) == 10 and gallery.image(0) == "a first one.png"
    whole = Gallery.encode(model, pd.DataFrame({"image": find_pictures(root)[0]}), root)
    np.testing.assert_array_equal(gallery.index.embeddings, whole.index.embeddings)


def test_models_and_settings_share_a_folder_and_never_an_embedding(tmp_path):
    root = tmp_path / "pictures"
    draw_table(root, 5)
    models = [AttributeModel() for _ in range(5)]
    with torch.no_grad():
        models[1].palette += 0.01
    models[2].mean = (0.5, 0.5, 0.5)
    models[3].config.image_size = (64, 32)
    models[4].mode = "upside down"
    assert len({stamp_of(model) for model in models}) == 5
    for model in models:
        encode_folder(model, root, tmp_path / "index")
    assert len(list((tmp_path / "index").glob("*.rows"))) == 5
    models[0].embed_image = None
    assert len(encode_folder(models[0], root, tmp_path / "index")) == 5


@pytest.mark.parametrize("ending", ["rows", "ledger"])
@pytest.mark.parametrize("keep", [0, 200])
def test_a_damaged_encoding_is_made_anew(tmp_path, ending, keep):
    root, model = tmp_path / "pictures", AttributeModel()
    draw_table(root, 10)
    whole = np.array(encode_folder(model, root, tmp_path / "index").index.embeddings)
    [file] = (tmp_path / "index").glob(f"*.{ending}")
    file.write_bytes(file.read_bytes()[:keep])
    np.testing.assert_array_equal(encode_folder(model, root, tmp_path / "index").index.embeddings, whole)


def test_a_folder_has_one_writer_a_model(tmp_path):
    from reidlib.rowstore import RowStore

    draw_table(tmp_path / "pictures", 3)
    model = AttributeModel()
    with RowStore(tmp_path / "index" / stamp_of(model)).writing(), pytest.raises(ReidError, match="Another run"):
        encode_folder(model, tmp_path / "pictures", tmp_path / "index")


def test_a_model_of_nonsense_is_named(tmp_path, monkeypatch):
    draw_table(tmp_path / "pictures", 3)
    model = AttributeModel()
    monkeypatch.setattr(model, "embed_image", lambda images: torch.full((len(images), 4), torch.nan))
    with pytest.raises(DataError, match="Attributes embeds .*00000.png as numbers that are not finite"):
        encode_folder(model, tmp_path / "pictures", tmp_path / "index")


def test_a_gone_picture_has_a_thumbnail(tmp_path):
    gallery = Gallery.encode(AttributeModel(), draw_table(tmp_path, 2), tmp_path)
    (tmp_path / gallery.image(1)).unlink()
    assert Image.open(BytesIO(gallery.thumbnail(1))).size == (160, 224)
    assert gallery.thumbnail(1) != gallery.thumbnail(0)


def test_unreadable_pictures_are_left_out_and_named(tmp_path):
    draw_table(tmp_path / "pictures", 6)
    for name in ("people/00002.png", "people/00003.png"):
        (tmp_path / "pictures" / name).write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="2 of 6 pictures .*: people/00002.png, people/00003.png"):
        gallery = encode_folder(AttributeModel(), tmp_path / "pictures", tmp_path / "index", batch_size=2)
    assert [gallery.image(i)[-5:] for i in range(4)] == ["0.png", "1.png", "4.png", "5.png"]
    assert gallery.unreadable == ["people/00002.png", "people/00003.png"]
    whole = Gallery.encode(AttributeModel(), pd.DataFrame(gallery.index.metadata), tmp_path / "pictures")
    np.testing.assert_array_equal(gallery.index.embeddings, whole.index.embeddings)


def test_a_folder_without_pictures_gives_one_sentence(tmp_path):
    with pytest.raises(ReidError, match="holds no picture"):
        encode_folder(AttributeModel(), tmp_path, tmp_path / "index")


SLOW = """
import sys, time, torch
from reidlib.retrieval import encode_folder
from reidlib.tests.attribute_model import AttributeModel
class Slow(AttributeModel):
    def embed_image(self, images):
        time.sleep(0.05)
        return super().embed_image(images)
encode_folder(Slow(), sys.argv[1], sys.argv[2], batch_size=4)
"""


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path):
    draw_table(tmp_path / "pictures", 80)
    whole = encode_folder(AttributeModel(), tmp_path / "pictures", tmp_path / "whole", batch_size=4)
    command = [sys.executable, "-c", SLOW, str(tmp_path / "pictures"), str(tmp_path / "killed")]

    def progress():
        return sum(file.stat().st_size for file in (tmp_path / "killed").glob("*.ledger"))

    for wait in (0.0, 0.17):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        before = progress()
        while process.poll() is None and progress() == before:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
    resumed = encode_folder(AttributeModel(), tmp_path / "pictures", tmp_path / "killed", batch_size=4)
    assert resumed.index.embeddings.tobytes() == whole.index.embeddings.tobytes()
    assert resumed.index.metadata == whole.index.metadata
