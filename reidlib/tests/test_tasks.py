"""Who is looked for, where, and what counts as found."""

import pickle
import statistics

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from reidlib.config import Config
from reidlib.data import load
from reidlib.data.batches import data_pixels
from reidlib.errors import DataError, ReidError
from reidlib.evaluation import (
    Encoder,
    Ranks,
    best_rank_integral,
    evaluate,
    over_trials,
    protocol_tasks,
    rank,
    tasks,
    validation,
)
from reidlib.evaluation.tasks import composed_task, dialogue_task, sketch_task, text_task
from reidlib.methods.base import Method


class Counting(Method):
    """Embeds a picture as its mean colour and a text as its length; counts what it is asked."""

    name, reads = "counting", ("text", "sketch")

    def __init__(self):
        super().__init__()
        self.config = Config(image_size=(16, 8))
        self.weight = nn.Parameter(torch.ones(1))
        self.images = 0

    def tokenize(self, texts):
        return torch.tensor([[len(text)] for text in texts])

    def embed_image(self, images):
        self.images += len(images)
        return images.mean(dim=(2, 3))

    embed_sketch = embed_image

    def embed_text(self, ids):
        return torch.cat([ids.float(), ids.float() % 7, ids.float() % 3], dim=1)


@pytest.fixture(scope="module")
def data(toy_root):
    return load("toy", toy_root)


@pytest.fixture(scope="module")
def encoder(data):
    return Encoder(Counting(), data_pixels(data, (16, 8)), batch_size=7)


def test_a_sketch_never_finds_the_photo_it_was_made_from(data):
    task = sketch_task(data, "test")
    rows = data.split("test")
    assert list(task.gallery) == rows["image"].tolist()
    for source, query in zip(task.sources, task.queries, strict=True):
        assert rows["sketch"][source] == [query.sketch]
    assert text_task(data, "test").sources is None


def test_embeddings_keep_their_order_whatever_the_batches(data, encoder):
    task = text_task(data, "test")
    lengths = encoder.queries(task.queries)[:, 0].tolist()
    assert lengths == [len(query.text) for query in task.queries]


def test_a_gallery_is_encoded_once(data, encoder):
    encoder._galleries.clear()
    encoder.model.images = 0
    evaluate(encoder, [text_task(data, "test"), text_task(data, "test")])
    assert encoder.model.images == len(data.split("test"))


def test_evaluation_agrees_with_the_full_matrix(data, encoder):
    task = sketch_task(data, "test")
    rows, _ = evaluate(encoder, [task])
    similarity = encoder.queries(task.queries) @ encoder.images(task.gallery).T
    similarity[torch.arange(len(similarity)), torch.as_tensor(task.sources)] = -torch.inf
    best = task.gallery_pids[similarity.argmax(dim=1).cpu().numpy()]
    assert rows[0]["R@1"] == pytest.approx(100 * (best == task.query_pids).mean(), abs=1e-6)


def test_a_ranking_for_a_figure(data, encoder):
    task = sketch_task(data, "test")
    found = evaluate(encoder, [task])[1]["s2i"]
    near, far = int(found.first.argmin()), int(found.first.argmax())
    for query, first in ((near, found.first[near]), (far, found.first[far])):
        [(asked, pictures, correct, scores, ranks)] = task.ranking(encoder, [query], data.root, k=4)
        assert asked == data.root / task.queries[query].sketch
        assert ranks == ([1, 2, 3, 4] if first <= 4 else [1, 2, 3, 4, first]), "the first right one stands at the end"
        assert len(pictures) == len(correct) == len(scores) == len(ranks) and correct.index(True) == ranks.index(first)
        assert data.root / task.gallery[task.sources[query]] not in pictures
        assert scores == sorted(scores, reverse=True)
    assert found.first[far] > 4


def test_examples_are_at_fixed_places_of_the_queries_in_order(data, encoder):
    first = np.array([3, 0, 1, 2, 9, 4, 5, 6, 7, 8, 10, 1])
    found = Ranks(first, np.where(np.arange(12) == 11, 0.9, 0.1), np.zeros(12))
    assert found.examples() == {"easy": 2, "median": 6, "hard": 4}
    assert Ranks(*np.ones((3, 1))).examples() == {"easy": 0, "median": 0, "hard": 0}


def test_sketches_of_people(toy_root):
    for name in ("toy/pku-sketch", "toy/market-sketch-1k"):
        data = load(name, toy_root)
        task = sketch_task(data, "test")
        assert len({query.sketch for query in task.queries}) == len(task.queries)
        assert task.sources is None
        words = text_task(data, "test")
        texts = [query.text for query in words.queries]
        assert len(set(zip(words.query_pids, texts, strict=True))) == len(texts)
        both = composed_task(data, "test")
        assert len(both.queries) == len(task.queries)
        assert all(query.parts == ("text", "sketch") for query in both.queries)


def test_pooled_sketches_make_one_query_a_person(toy_root):
    data = load("toy/market-sketch-1k", toy_root)
    task = sketch_task(data, "test", pooled=True)
    queries = torch.randn(len(task.queries), 5)
    gallery = torch.randn(len(task.gallery), 5)
    pids = np.unique(task.query_pids)
    unit = torch.nn.functional.normalize(queries, dim=1)
    mean = torch.stack([unit[torch.as_tensor(task.query_pids == pid)].mean(0) for pid in pids])
    expected = rank(mean, gallery, torch.as_tensor(pids), torch.as_tensor(task.gallery_pids))
    assert task.rank(queries, gallery).first.tolist() == expected.first.tolist()


def test_trials_are_averaged_with_their_spread(toy_root):
    found = []
    for trial in (1, 2, 3):
        task = sketch_task(load("toy/pku-sketch", toy_root, trial=trial), "test")
        ranks = task.rank(torch.randn(len(task.queries), 5), torch.randn(len(task.gallery), 5))
        found.append(([{"task": "s2i", **ranks.summary()}], {"s2i": ranks}))
    [row], ranks = over_trials(found)
    values = [rows[0]["mAP"] for rows, _ in found]
    assert row["mAP"] == pytest.approx(sum(values) / 3)
    assert row["mAP spread"] == pytest.approx(statistics.stdev(values))
    assert row["trials"] == 3 and row["n_queries"] == found[0][0][0]["n_queries"]
    assert ranks["s2i"].first.tolist() == [rank for _, each in found for rank in each["s2i"].first.tolist()]
    assert over_trials(found[:1]) is found[0]


def test_dialogues_by_round(data):
    whole, second = dialogue_task(data, "test"), dialogue_task(data, "test", rounds=2)
    assert all(len(query.turns) == 2 for query in second.queries)
    assert [query.turns[:2] for query in whole.queries] == [query.turns for query in second.queries]


def test_a_validation_can_be_given_to_another_process(data, encoder):
    measure = validation(data, encoder.model, encoder.model.config, encoder.pixels)
    found = pickle.loads(pickle.dumps(measure))(encoder.model)
    rows, _ = evaluate(encoder, tasks(data, "val", encoder.model.reads))
    assert {row["task"] for row in rows} == {"t2i", "s2i", "st2i"}
    assert found["st2i mAP"] == rows[2]["mAP"] and found["t2i R@1"] == rows[0]["R@1"]


def test_what_is_not_there_is_one_sentence(toy_root, data):
    with pytest.raises(DataError, match="no queries that hold turns"):
        tasks(load("toy/icfg-pedes", toy_root), "test", ["turns"])
    with pytest.raises(DataError, match="has no train split"):
        folder = load("folder", toy_root / "PKU-Sketch" / "photo")
        text_task(folder, "train")


def test_the_tasks_that_a_data_set_sets_itself(toy_root):
    data = load("toy/orbench", toy_root)
    made = {task.name: task for task in protocol_tasks(data, ("text", "sketch"))}
    assert len(made) == len(data.protocol) == 32
    assert {task.name for task in protocol_tasks(data, ("text",))} == {"TEXT", "NIR", "TEXT+NIR", "NIR+TEXT"}
    encoder = Encoder(Counting(), data_pixels(data, (16, 8)))
    asked = [made["NIR"], made["CP+TEXT"], made["SK+NIR+CP"]]
    rows, ranks = evaluate(encoder, asked)
    assert len(ranks["SK+NIR+CP"].first) == len(ranks["NIR"].first) == rows[2]["n_queries"]
    assert len(made["SK+NIR+CP"].queries) == 2 * len(made["NIR"].queries)
    assert [row["queries_without_positive"] for row in rows] == [0, 0, 0]
    half = made["SK+NIR+CP"].subset(range(4))
    assert len(half.rank(encoder.queries(half.queries), encoder.images(half.gallery)).first) == 2


def test_rounds_of_interactive_pedes_and_their_bri(toy_root):
    data = load("toy/interactive-pedes", toy_root)
    (task,) = protocol_tasks(data, ("text",))
    assert task.name == "round 0" and all(query.parts == ("text",) for query in task.queries)
    rounds = [np.array([8, 1]), np.array([9, 2]), np.array([2, 3])]
    by_hand = [(np.log(8) + np.log(8)) / 2, (np.log(8) + np.log(2)) / 2, 0, 0]
    assert best_rank_integral(rounds) == pytest.approx(np.mean(by_hand))
    with pytest.raises(ReidError, match="a right picture"):
        best_rank_integral([np.array([0]), np.array([1])])


def test_broken_pictures_are_left_out_of_training_and_evaluation(tmp_path):
    for n in range(6):
        Image.new("RGB", (8, 16), (40 * n, 0, 0)).save(tmp_path / f"{n}.png")
    (tmp_path / "2.png").write_text("words")
    (tmp_path / "5.png").write_bytes(b"")
    rows = "".join(f"{n}.png,person {n // 2},{n // 2},test\n" for n in range(6))
    (tmp_path / "metadata.csv").write_text("file_name,text,pid,split\n" + rows)
    data = load("folder", tmp_path)
    with pytest.warns(UserWarning, match="left out: 2. .*2.png is empty or no picture.*5.png") as told:
        pixels = data_pixels(data, (16, 8))
    assert len(told) == 1
    (task,) = tasks(data, "test", ("text",))
    assert task.gallery == ("0.png", "1.png", "3.png", "4.png") and len(task.queries) == 4
    evaluate(Encoder(Counting(), pixels), [task])
