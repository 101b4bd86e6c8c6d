"""The vector store: it answers like the exact index, filters in the engine, and never loses what is there."""

import sys
import threading
from datetime import datetime

import numpy as np
import pytest
import torch

from reidlib.errors import ConfigError, DataError
from reidlib.retrieval import Gallery, GalleryIndex, QuerySession, run_policy
from reidlib.tests.attribute_model import QUESTIONS, AttributeModel, caption, make_gallery
from reidlib.tests.test_index import names, random_rows

pytest.importorskip("lancedb")

from reidlib.retrieval.store import connect, create, id_of


def test_it_answers_like_the_exact_index(tmp_path):
    rows, queries = random_rows(40), torch.from_numpy(random_rows(3, seed=1))
    store, exact = create(tmp_path, "gallery", rows, names(40)), GalleryIndex(rows, names(40))
    scores, ids = store.search(queries, 5)
    right, places = exact.search(queries, 5)
    torch.testing.assert_close(scores, right, atol=1e-5, rtol=0)
    assert [[row["image"] for row in store.rows(line)] for line in ids.tolist()] == [
        [row["image"] for row in exact.rows(line)] for line in places.tolist()
    ]
    twice = create(tmp_path, "twice", np.concatenate([rows, rows[:1] * 0.5]), [*names(40), {"image": "0.png"}])
    assert len(twice) == 40 and torch.equal(twice.vectors([id_of("0.png")])[0], torch.from_numpy(rows[0] * 0.5))
    chosen = [store.find("7.png"), store.find("3.png")]
    torch.testing.assert_close(store.vectors(chosen), torch.from_numpy(rows[[7, 3]]))
    assert chosen == [id_of("7.png"), id_of("3.png")] and store.find("99.png") is None
    assert store.search(queries, 99)[0].shape == (3, 40)


def test_adding_twice_changes_nothing_and_deleting_is_seen_elsewhere(tmp_path):
    rows = random_rows(20)
    store, other = create(tmp_path, "gallery", rows[:10], names(10)), connect(tmp_path, "gallery")
    store.add(rows[5:], names(15, 5))
    assert len(store) == len(other) == 20
    other.delete([id_of("4.png")])
    assert store.count() == 19 and store.count({"image": ["4.png", "5.png"]}) == 1
    pages = [store.ids(start, 7) for start in (0, 7, 14)]
    assert sorted(sum(pages, [])) == sorted(store.ids()) and list(map(len, pages)) == [7, 7, 5]
    assert set(store.sample(19)) <= set(store.ids())
    with pytest.raises(DataError, match=f"Row {id_of('4.png')} is not in the store of 19 pictures"):
        store.delete([id_of("5.png"), id_of("4.png")])


def test_what_is_there_is_opened_and_not_overwritten(tmp_path):
    create(tmp_path, "people", random_rows(3), names(3), about={"model": "clip"})
    with pytest.raises(DataError, match="holds a collection 'people' already"):
        create(tmp_path, "people", random_rows(5), names(5))
    assert len(connect(tmp_path, "people")) == 3 and connect(tmp_path, "people").about == {"model": "clip"}
    assert len(create(tmp_path, "people", random_rows(5), names(5), replace=True)) == 5
    with pytest.raises(DataError, match="no collection 'cars'; it holds people"):
        connect(tmp_path, "cars")
    with pytest.raises(DataError, match="There is no store"):
        connect(tmp_path / "nowhere", "people")


def test_a_server_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for address in ("localhost:6333", "http://localhost:6333"):
        with pytest.raises(ConfigError, match="address of a server"):
            create(address, "people", random_rows(3), names(3))
    assert not list(tmp_path.iterdir())


def test_filters_and_odd_metadata(tmp_path):
    metadata = [
        {
            "image": f"it's {i}.png",
            "camid": i % 3,
            "time": datetime(2024, 5, 1, i),
            "place": ["gate", "O'Hara's"][i % 2],
            "indoors": i < 4,
            "text": [f"person {i}"],
            "height": 1.5 + i / 10 if i else None,
        }
        for i in range(12)
    ]
    rows, query = random_rows(12), torch.from_numpy(random_rows(1, seed=1))
    store, exact = create(tmp_path, "gallery", rows, metadata), GalleryIndex(rows, metadata)
    assert store.rows(store.ids(where={"image": "it's 5.png"})) == [metadata[5]]
    for where in (
        {"camid": 2},
        {"camid": [0, 1], "place": "O'Hara's"},
        {"time": (datetime(2024, 5, 1, 3), datetime(2024, 5, 1, 7))},
        {"height": (1.9, None)},
        {"indoors": True},
        {"camid": []},
        {"image": "' OR 1 = 1 --"},
    ):
        found = store.search(query, 12, where)
        right = exact.search(query, 12, where)
        torch.testing.assert_close(found[0], right[0], atol=1e-5, rtol=0)
        assert [r["image"] for r in store.rows(found[1][0].tolist())] == [
            r["image"] for r in exact.rows(right[1][0].tolist())
        ]
        assert store.count(where) == exact.count(where)
    for where, said in (({"text": "a"}, "no field 'text' to filter by"), ({"camid": {}}, "no value to filter by")):
        with pytest.raises(DataError, match=said):
            store.search(query, 1, where)
    with pytest.raises(DataError, match="names no picture"):
        store.add(rows[:1], [{"pid": 1}])
    with pytest.raises(DataError, match="'camid' of the metadata holds another kind"):
        store.add(rows[:1], [{"image": "x", "camid": "third"}])
    with pytest.raises(DataError, match="not finite"):
        store.add(rows[:1] * np.nan, [{"image": "x"}])


@pytest.mark.parametrize("kind, settings", [("IVF_PQ", {"num_sub_vectors": 8}), ("IVF_SQ", {}), ("IVF_HNSW_SQ", {})])
def test_a_quantised_index_finds_most_and_its_recall_is_told(tmp_path, kind, settings):
    rows, queries = random_rows(2_000), torch.from_numpy(random_rows(20, seed=1))
    store = create(
        tmp_path, "gallery", rows, [{**row, "camid": i % 4} for i, row in enumerate(names(2_000))], nprobes=8
    )
    store.build_index(kind, fields=["camid"], num_partitions=8, **settings)
    assert store.recall(queries) > 0.9
    exact = torch.from_numpy(rows) @ queries[0]
    scores, ids = store.search(queries[:1], 5, {"camid": 3})
    torch.testing.assert_close(scores[0], store.vectors(ids[0].tolist()) @ queries[0], atol=1e-5, rtol=0)
    assert scores[0, 0] <= exact.max() and {row["camid"] for row in store.rows(ids[0].tolist())} == {3}
    store.add(random_rows(1, seed=7), names(1, 5_000))
    store.optimize()
    assert store.search(torch.from_numpy(random_rows(1, seed=7)), 1)[1].tolist() == [[id_of("5000.png")]]
    with pytest.raises(ConfigError, match="IVF_PQ"):
        store.build_index("LSH")


def test_searching_while_another_thread_adds(tmp_path):
    rows = random_rows(300)
    store = create(tmp_path, "gallery", rows[:100], names(100))
    writer = threading.Thread(target=lambda: [store.add(rows[i : i + 50], names(50, i)) for i in range(100, 300, 50)])
    writer.start()
    while writer.is_alive():
        scores, ids = store.search(torch.from_numpy(rows[:1]), 5)
        assert ids[0, 0] == id_of("0.png") and len(store.rows(ids[0].tolist())) == 5
    assert len(store) == 300


def test_a_session_and_a_policy_work_on_it(tmp_path):
    gallery = make_gallery(tmp_path / "pictures", 60)
    store = create(tmp_path / "store", "gallery", gallery.index.embeddings, gallery.index.metadata)
    there = Gallery(store, gallery.root)
    session = QuerySession(AttributeModel(), there, QUESTIONS)
    assert len(session.results(10)) == 10
    session.say(caption(gallery.index.metadata[7]["attributes"]))
    assert session.results(1)[0][:2] == (id_of("people/00007.png"), "people/00007.png")
    session.dislike(id_of("people/00007.png"))
    assert session.results(1)[0][1] != "people/00007.png"
    session.only({"pid": (3, 5)})
    assert {path for _, path, _ in session.results()} == {f"people/0000{i}.png" for i in (3, 4, 5)}
    session.restart()
    session.say("a red top")
    session.dislike(id_of("people/00007.png"))
    assert session.ask() is not None
    session.save(tmp_path / "s.json")
    assert QuerySession.load(tmp_path / "s.json", AttributeModel(), there).marks == session.marks

    def run(where, targets):
        return run_policy(AttributeModel(), where, targets, "fixed", 3, questions=QUESTIONS).ranks

    targets = range(0, 60, 12)
    images = [id_of(gallery.image(row)) for row in targets]
    assert (run(there, images) == run(gallery, targets)).mean() > 0.9  # equal scores may differ in their last bit


def test_without_the_engine_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ConfigError, match=r"pip install 'reidlib\[store\]'"):
        connect(tmp_path)


def test_an_object_store(tmp_path, monkeypatch):
    """The real client and engine against an S3 server in this process; there is none in the package registries."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        import boto3

        url = "http://{}:{}".format(*server.get_host_and_port())
        for name, value in {
            "AWS_ENDPOINT": url,
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="people")
        rows = random_rows(600)
        store = create("s3://people/galleries", "station", rows, names(600))
        store.build_index("IVF_SQ", num_partitions=4)
        store.add(random_rows(1, seed=5), names(1, 600))
        again = connect("s3://people/galleries", "station", nprobes=4)
        assert len(again) == 601
        assert again.search(torch.from_numpy(rows[9:10]), 1)[1].tolist() == [[id_of("9.png")]]
    finally:
        server.stop()
