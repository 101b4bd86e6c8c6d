"""Training batches: what an epoch visits, who shares a batch, and that processes share an epoch out."""

import pickle

import numpy as np
import pytest
import torch

from reidlib.config import Config
from reidlib.data import load
from reidlib.data.augment import CLIP
from reidlib.data.batches import PER_PERSON, TrainBatches, data_pixels
from reidlib.data.images import Pixels, Preprocess
from reidlib.errors import ConfigError, DataError

SIZE = (32, 16)


class Reader:
    """Stands for a model; the id of a text is its place."""

    preprocess = Preprocess(SIZE, *CLIP)

    def __init__(self, *parts):
        self.trains_on = parts

    def tokenize(self, words):
        return torch.arange(len(words))[:, None]

    tokenize_turns = tokenize


@pytest.fixture(scope="module")
def toy(toy_root):
    data = load("toy", toy_root)
    return data, data_pixels(data, SIZE)


def served(toy, *parts, **settings):
    """The batches of a model that trains on these parts."""
    data, pixels = toy
    return TrainBatches(data, Reader(*parts), Config().replace(**settings), pixels)


def test_an_epoch_visits_every_caption_once_with_its_picture(toy):
    data, pixels = toy
    train = served(toy, "text", "sketch", batch_size=10, drop_last=False)
    batches = list(train.epoch(0))
    seen = torch.cat([batch["text"] for batch in batches]).flatten().tolist()
    assert sorted(seen) == list(range(len(train)))
    rows = data.split("train")
    assert len(train) == rows["text"].str.len().sum() and len(batches) == train.steps_per_epoch
    batch = batches[0]
    for n in range(len(batch["pids"])):
        row = rows.loc[int(batch["image_ids"][n])]
        assert train.words[int(batch["text"][n])] in row["text"]
        assert torch.equal(batch["images"][n], pixels[[pixels.index[row["image"]]]][0])
        assert torch.equal(batch["sketch"][n], pixels[[pixels.index[row["sketch"][0]]]][0])
        assert train.people[int(batch["pids"][n])] == row["pid"]


def test_the_same_seed_and_epoch_give_the_same_order(toy):
    train = served(toy, "text", seed=3)
    assert np.array_equal(np.concatenate(train.order(2)), np.concatenate(train.order(2)))
    assert not np.array_equal(np.concatenate(train.order(2)), np.concatenate(train.order(3)))


def test_the_identity_sampler_brings_people_together(toy):
    train = served(toy, "text", sampler="identity", drop_last=False)
    order = np.concatenate(train.order(0))
    assert sorted(order) == list(range(len(train)))
    pids = train.pids[order]
    runs = np.split(pids, np.flatnonzero(np.diff(pids)) + 1)
    assert np.mean([len(run) for run in runs]) > 0.8 * PER_PERSON


@pytest.mark.parametrize("part", ["text", "turns"])
def test_the_length_sampler_brings_lengths_together(toy, part):
    train = served(toy, part, sampler="length", batch_size=9, drop_last=False)
    mixed = served(toy, part, batch_size=9, drop_last=False)

    def padded(batches):
        return sum(len(items) * train.lengths[items].max() for items in batches) / train.lengths.sum()

    order = train.order(1)
    assert len(np.unique(np.concatenate(order))) == sum(map(len, order)) >= len(train) - 1  # a batch of one is left out
    assert all(np.array_equal(a, b) for a, b in zip(order, train.order(1), strict=True))
    assert not np.array_equal(order[0], train.order(2)[0])
    assert padded(order) - 1 < 0.5 * (padded(mixed.order(1)) - 1)
    longest = [train.lengths[items].max() for items in order[:-1]]
    assert longest != sorted(longest)  # an epoch does not begin with what is short
    assert sorted(map(len, order)) == sorted(map(len, mixed.order(1)))


def test_processes_share_an_epoch(toy):
    def ids(rank, world, skip=0, **more):
        train = served(toy, "text", batch_size=8, devices=world, **more)
        return [batch["text"].flatten().tolist() for batch in train.epoch(1, skip, rank, world)]

    alone = ids(0, 1)
    assert [a + b for a, b in zip(ids(0, 2), ids(1, 2), strict=True)] == alone
    assert alone[2:] == ids(0, 1, skip=2) == ids(0, 1, skip=2, workers=2)


@pytest.mark.parametrize("name", ["toy/pku-sketch", "toy/market-sketch-1k"])
def test_sketches_of_a_person_meet_photos_of_that_person(toy_root, name):
    data = load(name, toy_root)
    pixels = data_pixels(data, SIZE)
    train = served((data, pixels), "sketch")
    rows = data.split("train")
    owner = {pixels.index[path]: pid for pid, paths in zip(rows["pid"], rows["sketch"], strict=True) for path in paths}
    photo = {pixels.index[path]: pid for pid, path in zip(rows["pid"], rows["image"], strict=True)}
    for epoch in (0, 1):
        train._draw(epoch)
        pids = train.people[train.pids]
        assert [owner[row] for row in train._sketches] == pids.tolist()
        assert [photo[row] for row in train._images] == pids.tolist()
    drawn = {path for paths in rows["sketch"] for path in paths}
    assert len(train) == max(len(drawn), (rows["sketch"].str.len() > 0).sum())


def test_back_translations_replace_a_share_of_the_captions(toy):
    train = served(toy, "text", back_translation=0.25, batch_size=16)
    assert len(train.ids) == 2 * len(train) and all(train.other_words)
    ids = torch.cat([batch["text"] for epoch in range(4) for batch in train.epoch(epoch)]).flatten()
    assert ((ids >= len(train)).float().mean() - 0.25).abs() < 0.1


def test_nothing_to_train_on_is_one_sentence(toy, toy_root):
    data = load("toy/icfg-pedes", toy_root)
    with pytest.raises(DataError, match="no pictures with turns"):
        TrainBatches(data, Reader("turns"), Config())
    with pytest.raises(ConfigError, match="sampler should be 'random', 'identity' or 'length' and got 'best'"):
        next(served(toy, "text", sampler="best").epoch(0))
    with pytest.raises(DataError, match="cannot be shared by 9999 processes"):
        served(toy, "text", devices=9999)


def test_batches_travel_to_other_processes(toy):
    train = served(toy, "text")
    there = pickle.loads(pickle.dumps(train))
    for here, far in zip(train.epoch(0), there.epoch(0), strict=True):
        assert all(torch.equal(here[name], far[name]) for name in here)
    assert there.fingerprint == toy[0].fingerprint()


def test_loader_processes_decode_where_nothing_is_cached(toy):
    data, pixels = toy
    fresh = Pixels(data.root, pixels.paths, SIZE, cached=False)
    cached, decoded = served(toy, "text"), served((data, fresh), "text", workers=2)
    for one, other in zip(cached.epoch(0), decoded.epoch(0), strict=True):
        assert torch.equal(one["images"], other["images"]) and torch.equal(one["text"], other["text"])
