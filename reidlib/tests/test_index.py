"""The gallery index and the encoding of folders: against plain recomputation, killed and damaged."""

import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reidlib.data import find_pictures
from reidlib.errors import ConfigError, DataError, ReidError
from reidlib.retrieval import Gallery, GalleryIndex, encode_folder, encode_shard, index
from reidlib.retrieval.qdrant import QdrantIndex
from reidlib.tests.attribute_model import AttributeModel, draw_table


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


def test_saved_and_loaded_index_is_the_same_and_maps_its_file(tmp_path):
    rows = random_rows(20)
    GalleryIndex(rows, pd.DataFrame(names(20))).save(tmp_path)
    loaded = GalleryIndex.load(tmp_path)
    assert isinstance(loaded.embeddings, np.memmap)
    assert loaded.metadata == names(20)
    np.testing.assert_array_equal(loaded.embeddings, rows)
    loaded.delete([0, 3])
    loaded.add(random_rows(2, seed=5), names(2, 20))
    loaded.save(tmp_path)
    again = GalleryIndex.load(tmp_path)
    assert [row["image"] for row in again.metadata] == [f"{i}.png" for i in range(22) if i not in (0, 3)]
    expected = np.concatenate([rows[[1, 2, *range(4, 20)]], random_rows(2, seed=5)])
    np.testing.assert_array_equal(again.embeddings, expected)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_save_that_dies_leaves_the_index_before_it(tmp_path, monkeypatch):
    GalleryIndex(random_rows(5), names(5)).save(tmp_path)
    monkeypatch.setattr(index, "write_json", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError):
        GalleryIndex(random_rows(9), names(9)).save(tmp_path)
    assert len(GalleryIndex.load(tmp_path)) == 5


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    GalleryIndex(random_rows(1), names(1)).save(tmp_path)
    file = next(tmp_path.glob("*.npy"))
    for content in (pickle.dumps(Trap()), None):
        if content is None:
            np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
        else:
            file.write_bytes(content)
        with pytest.raises(DataError, match="whole gallery index"):
            GalleryIndex.load(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"embeddings": "../x.npy", "metadata": "y"}', "null"])
def test_damaged_manifests_give_one_sentence(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError):
        GalleryIndex.load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        GalleryIndex.load(tmp_path / "nowhere")


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="3 embeddings and 2 rows"):
        GalleryIndex(random_rows(3), names(2))
    with pytest.raises(DataError, match="float64"):
        GalleryIndex(random_rows(3).astype(float), names(3))
    with pytest.raises(ConfigError, match="exact, faiss"):
        GalleryIndex(random_rows(3), names(3), backend="annoy")
    gallery = GalleryIndex(random_rows(3), names(3))
    with pytest.raises(DataError, match="expected \\(Q, 16\\)"):
        gallery.search(torch.zeros(1, 5), 1)
    with pytest.raises(DataError, match="Row 7"):
        gallery.delete([1, 7])
    with pytest.raises(DataError, match="expected 16"):
        gallery.add(random_rows(1, 4), names(1))


def test_faiss_finds_what_the_exact_search_finds():
    pytest.importorskip("faiss")
    rows = random_rows(2_000)
    exact, faiss = GalleryIndex(rows, names(2_000)), GalleryIndex(rows, names(2_000), backend="faiss")
    scores, found = faiss.search(torch.from_numpy(rows[:50]), 1)
    assert found[:, 0].tolist() == list(range(50))
    torch.testing.assert_close(scores, torch.ones(50, 1))
    same = exact.search(torch.from_numpy(rows[:50]), 10)[1]
    near = faiss.search(torch.from_numpy(rows[:50]), 10)[1]
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(same.tolist(), near.tolist(), strict=True)]) > 0.3
    faiss.delete([0])
    assert faiss.search(torch.from_numpy(rows[1:2]), 1)[1].tolist() == [[0]]


def test_without_faiss_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="pip install"):
        GalleryIndex(random_rows(3), names(3), backend="faiss")


@pytest.mark.parametrize("place", [":memory:", "folder"])
def test_the_vector_store_answers_like_the_index(tmp_path, place):
    pytest.importorskip("qdrant_client")
    rows, queries = random_rows(40), torch.from_numpy(random_rows(3, seed=1))
    store = QdrantIndex(rows, names(40), place if place == ":memory:" else str(tmp_path / place))
    exact = GalleryIndex(rows, names(40))
    for one, other in zip(store.search(queries, 5), exact.search(queries, 5), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    torch.testing.assert_close(store.vectors([7, 3]), torch.from_numpy(rows[[7, 3]]))
    store.delete([int(exact.search(queries, 1)[1][0, 0])])
    assert store.search(queries[:1], 1)[1][0, 0] == exact.search(queries[:1], 2)[1][0, 1]
    store.add(random_rows(1, seed=9), names(1, 40))
    assert store.search(torch.from_numpy(random_rows(1, seed=9)), 1)[1].tolist() == [[40]]
    assert len(store) == 40 and store.metadata[40] == {"image": "40.png"}


def test_without_the_vector_store_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ConfigError, match="pip install"):
        QdrantIndex(random_rows(3), names(3))


def test_a_folder_is_encoded_once_and_equals_encoding_its_table(tmp_path, monkeypatch):
    table = draw_table(tmp_path / "pictures", 10)
    model = AttributeModel()
    gallery = encode_folder(model, tmp_path / "pictures", tmp_path / "index", batch_size=4)
    np.testing.assert_array_equal(
        gallery.index.embeddings, Gallery.encode(model, table, tmp_path / "pictures").index.embeddings
    )
    assert [gallery.image(i) for i in range(10)] == find_pictures(tmp_path / "pictures")[0] == list(table["image"])
    monkeypatch.setattr(model, "embed_image", None)
    assert len(encode_folder(model, tmp_path / "pictures", tmp_path / "index", batch_size=4)) == 10
    with torch.no_grad():
        model.palette += 1
    with pytest.raises(TypeError):  # other weights: what is there does not count
        encode_folder(model, tmp_path / "pictures", tmp_path / "index", batch_size=4)


def test_unreadable_pictures_are_left_out_and_named(tmp_path):
    draw_table(tmp_path / "pictures", 6)
    for name in ("people/00002.png", "people/00003.png"):
        (tmp_path / "pictures" / name).write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="2 of 6 pictures .* people/00002.png first"):
        gallery = encode_folder(AttributeModel(), tmp_path / "pictures", tmp_path / "index", batch_size=2)
    assert [gallery.image(i)[-5:] for i in range(4)] == ["0.png", "1.png", "4.png", "5.png"]
    whole = Gallery.encode(AttributeModel(), pd.DataFrame(gallery.index.metadata), tmp_path / "pictures")
    np.testing.assert_array_equal(gallery.index.embeddings, whole.index.embeddings)


def test_a_folder_without_pictures_gives_one_sentence(tmp_path):
    with pytest.raises(ReidError, match="holds no picture"):
        encode_folder(AttributeModel(), tmp_path, tmp_path / "index")


@pytest.mark.parametrize(("pictures", "shards"), [(11, 3), (4, 2), (3, 4)])
def test_shards_put_together_equal_one_go(tmp_path, monkeypatch, pictures, shards):
    root, model, encoded = tmp_path / "pictures", AttributeModel(), []
    draw_table(root, pictures)
    (root / "people" / "00001.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1 of"):
        whole = encode_folder(model, root, tmp_path / "whole", batch_size=2)
    honest = model.embed_image
    monkeypatch.setattr(model, "embed_image", lambda images: encoded.append(len(images)) or honest(images))
    for number in range(1, shards):
        encode_shard(model, root, tmp_path / "shared", number, shards, batch_size=2)
    others = sum(encoded)
    with pytest.warns(UserWarning, match="1 of"):  # the first was never begun
        joined = encode_folder(model, root, tmp_path / "shared", batch_size=2, shards=shards)
    assert 0 < sum(encoded) - others < pictures and sum(encoded) == pictures - 1, "each picture once"
    assert joined.index.embeddings.tobytes() == whole.index.embeddings.tobytes()
    assert joined.index.metadata == whole.index.metadata
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def test_a_shard_that_is_not_one_of_them(tmp_path):
    with pytest.raises(ConfigError, match="There is no shard 3 of 3"):
        encode_shard(AttributeModel(), tmp_path, tmp_path / "shared", 3, 3)


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
    progress = tmp_path / "killed" / "progress.json"
    for wait in (0.0, 0.17):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        before = progress.read_text() if progress.exists() else ""
        while process.poll() is None and (progress.read_text() if progress.exists() else "") == before:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "index.json").exists()
    resumed = encode_folder(AttributeModel(), tmp_path / "pictures", tmp_path / "killed", batch_size=4)
    assert resumed.index.embeddings.tobytes() == whole.index.embeddings.tobytes()
    assert resumed.index.metadata == whole.index.metadata
