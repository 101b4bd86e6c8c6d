"""Training items: what an epoch visits, who shares a batch, and that processes share an epoch out."""

import numpy as np
import pytest
import torch

from reidlib.data import load
from reidlib.data.batches import PER_PERSON, TrainSet, data_pixels
from reidlib.errors import DataError

SIZE = (32, 16)


@pytest.fixture(scope="module")
def toy(toy_root):
    data = load("toy", toy_root)
    return data, data_pixels(data, SIZE)


def test_an_epoch_visits_every_caption_once_with_its_picture(toy):
    data, pixels = toy
    train = TrainSet(data, pixels, ("text", "sketch"))
    train.tokenize(lambda words: torch.arange(len(words))[:, None])
    batches = list(train.batches(0, 10, drop_last=False))
    seen = torch.cat([batch["text"] for batch in batches]).flatten().tolist()
    assert sorted(seen) == list(range(len(train)))
    rows = data.split("train")
    assert len(train) == rows["text"].str.len().sum()
    batch = batches[0]
    for n in range(len(batch["pids"])):
        row = rows.loc[int(batch["image_ids"][n])]
        assert train.words[int(batch["text"][n])] in row["text"]
        assert torch.equal(batch["images"][n], pixels[[pixels.index[row["image"]]]][0])
        assert torch.equal(batch["sketch"][n], pixels[[pixels.index[row["sketch"][0]]]][0])
        assert train.people[int(batch["pids"][n])] == row["pid"]


def test_the_same_seed_and_epoch_give_the_same_order(toy):
    train = TrainSet(*toy, ("text",), seed=3)
    assert (train.order(2, "random") == train.order(2, "random")).all()
    assert (train.order(2, "random") != train.order(3, "random")).any()


def test_the_identity_sampler_brings_people_together(toy):
    train = TrainSet(*toy, ("text",))
    order = train.order(0, "identity")
    assert sorted(order) == list(range(len(train)))
    pids = train.pids[order]
    runs = np.split(pids, np.flatnonzero(np.diff(pids)) + 1)
    assert np.mean([len(run) for run in runs]) > 0.8 * PER_PERSON


def test_processes_share_an_epoch(toy):
    train = TrainSet(*toy, ("text",))
    train.tokenize(lambda words: torch.arange(len(words))[:, None])

    def served(rank, world, size):
        return [batch["text"].flatten().tolist() for batch in train.batches(1, size, rank=rank, world=world)]

    alone = served(0, 1, 8)
    assert [a + b for a, b in zip(served(0, 2, 8), served(1, 2, 8), strict=True)] == alone
    assert served(0, 1, 8)[2:] == [batch["text"].flatten().tolist() for batch in train.batches(1, 8, skip=2)]


@pytest.mark.parametrize("name", ["toy/pku-sketch", "toy/market-sketch-1k"])
def test_sketches_of_a_person_meet_photos_of_that_person(toy_root, name):
    data = load(name, toy_root)
    pixels = data_pixels(data, SIZE)
    train = TrainSet(data, pixels, ("sketch",))
    rows = data.split("train")
    owner = {pixels.index[path]: pid for pid, paths in zip(rows["pid"], rows["sketch"], strict=True) for path in paths}
    photo = {pixels.index[path]: pid for pid, path in zip(rows["pid"], rows["image"], strict=True)}
    for epoch in (0, 1):
        train.set_epoch(epoch)
        pids = train.people[train.pids]
        assert [owner[row] for row in train._sketches] == pids.tolist()
        assert [photo[row] for row in train._images] == pids.tolist()
    drawn = {path for paths in rows["sketch"] for path in paths}
    assert len(train) == max(len(drawn), (rows["sketch"].str.len() > 0).sum())


def test_back_translations_replace_a_share_of_the_captions(toy):
    train = TrainSet(*toy, ("text",), back_translation=0.25)
    train.tokenize(lambda words: torch.arange(len(words))[:, None])
    assert len(train.word_ids) == 2 * len(train) and all(train.other_words)
    ids = torch.cat([batch["text"] for epoch in range(4) for batch in train.batches(epoch, 16)]).flatten()
    assert ((ids >= len(train)).float().mean() - 0.25).abs() < 0.1


def test_nothing_to_train_on_is_one_sentence(toy_root):
    data = load("toy/icfg-pedes", toy_root)
    with pytest.raises(DataError, match="no pictures with turns"):
        TrainSet(data, data_pixels(data, SIZE), ("turns",))
