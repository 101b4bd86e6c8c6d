"""Omni reads any mix of parts: it begins as the hand-set rule, and what it learns depends on what is there alone."""

import copy

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from reidlib.backbones.clip import CLIP
from reidlib.data import load
from reidlib.data.batches import MixedBatches, data_pixels
from reidlib.errors import DataError, ReidError
from reidlib.evaluation import Encoder, evaluate
from reidlib.evaluation.tasks import mixed_task
from reidlib.losses import both_ways, identity_targets, itc
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.methods.omni import Omni, OmniConfig
from reidlib.models import load_model, save_model
from reidlib.query import Query
from reidlib.retrieval import Gallery, QuerySession
from reidlib.tests.training import train

SIZE = (32, 16)
TURNS = (("What colour is the hat?", "red"), ("And the shoes?", "white boots"), ("A bag?", "no"))


def tiny_clip(seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    vision = {"width": 64, "head_width": 64, "layers": 1, "patch_size": 8, "image_size": SIZE}
    model = open_clip.CLIP(32, vision, {"width": 32, "heads": 1, "layers": 1}, quick_gelu=True)
    return CLIP(model, open_clip.SimpleTokenizer())


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(256, size=(*SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def marks(seed: int, n: int) -> torch.Tensor:
    return torch.randn(n, 32, generator=torch.Generator().manual_seed(seed))


QUERIES = [
    Query(text="a man in a red coat"),
    Query(sketch=picture(0)),
    Query(photo=picture(1)),
    Query(text="a woman", sketch=picture(2)),
    Query(text="a woman", sketch=picture(2), photo=picture(3)),
    Query(text="a man", liked=marks(0, 2)),
    Query(sketch=picture(4), liked=marks(1, 1), disliked=marks(2, 3)),
    Query(liked=marks(3, 2), disliked=marks(4, 1)),
    Query(disliked=marks(5, 2)),
    Query(text="a man", photo=picture(5), liked=marks(6, 3), disliked=marks(7, 1)),
]
LONG = Query(text="a man", turns=[(f"question {n}?", f"answer {n}") for n in range(40)], sketch=picture(6))


@pytest.fixture
def model():
    return Omni(OmniConfig(image_size=SIZE), 5, clip=tiny_clip()).eval()


@pytest.fixture
def taught(model):
    """A model whose new parts are no longer zero."""
    torch.manual_seed(1)
    for linear in (model.weigh, model.correct):
        torch.nn.init.normal_(linear.weight, std=0.1)
    return model


@torch.no_grad()
def test_begins_as_what_a_session_does_by_hand(model):
    """The base class adds unit vectors and moves them by Rocchio's rule for any CLIP."""
    plain = Clip(ClipConfig(image_size=SIZE, views=("text", "sketch")), clip=copy.deepcopy(model.clip)).eval()
    torch.testing.assert_close(model.embed(QUERIES), plain.embed(QUERIES), atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_dialogue_begins_as_the_sum_of_its_turns(model):
    turns = normalize(model.embed_text(model.tokenize_turns(TURNS)).sum(0), dim=0)
    torch.testing.assert_close(model.embed([Query(turns=TURNS)])[0], turns)
    text = model.embed_text(model.tokenize(["a man"]))[0]
    torch.testing.assert_close(model.embed([Query(text="a man", turns=TURNS)])[0], normalize(text + turns, dim=0))


@torch.no_grad()
def test_compositions_are_named(model):
    query = [Query(text="a man", liked=marks(0, 2), disliked=marks(1, 1))]
    model.config = model.config.replace(composition="sum")
    units = normalize(marks(0, 2), dim=1).mean(0) - normalize(marks(1, 1), dim=1)[0]
    text = model.embed_text(model.tokenize(["a man"]))[0]
    torch.testing.assert_close(model.embed(query)[0], normalize(text + units, dim=0))


@torch.no_grad()
def test_a_query_is_embedded_alike_alone_and_among_others(taught):
    queries = [*QUERIES, LONG, Query(turns=TURNS), Query(turns=TURNS[:1])]
    together = taught.embed(queries)
    assert together.norm(dim=1).allclose(torch.ones(len(queries)))
    for row, query in zip(together, queries, strict=True):
        torch.testing.assert_close(row, taught.embed([query])[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_was_learned_reads_kinds_and_no_order(taught):
    by_rule = Omni(taught.config.replace(composition="rule"), 5, clip=taught.clip).eval()
    assert (taught.embed(QUERIES) - by_rule.embed(QUERIES)).norm(dim=1).min() > 1e-2
    turned = [Query(turns=TURNS), Query(turns=TURNS[::-1])]
    torch.testing.assert_close(*taught.embed(turned), atol=1e-5, rtol=1e-5)
    assert (taught.embed([Query(photo=picture(0))]) - taught.embed([Query(sketch=picture(0))])).norm() > 1e-3


@torch.no_grad()
def test_no_dialogue_is_cut(taught):
    other = Query(text="a man", turns=[*LONG.turns[:-1], ("question 39?", "a green umbrella")], sketch=picture(6))
    first, second = taught.embed([LONG, other])
    assert (first - second).norm() > 1e-4


def test_weights_tell_what_counts(model, taught):
    query = Query(text="a man", turns=TURNS, liked=marks(0, 3), disliked=marks(1, 2))
    by_rule = Omni(model.config.replace(composition="rule"), 5, clip=model.clip).eval().weights(query)
    assert by_rule["liked"] == pytest.approx(0.75) and by_rule["disliked"] == pytest.approx(-0.15)
    learned = taught.weights(query)
    assert learned.keys() == by_rule.keys() and all(learned[part] != by_rule[part] for part in learned)


def test_an_empty_query_is_one_sentence(model):
    with pytest.raises(ReidError, match="The query is empty"):
        model.embed([Query()])


def batch_of(model, size: int = 6) -> dict:
    torch.manual_seed(3)
    ids = model.tokenize(["a man", "a woman in red", "a boy", "a girl", "a hat", "shoes"])
    return {
        "images": torch.randn(size, 3, *SIZE),
        "pids": torch.tensor([0, 1, 2, 3, 4, 0]),
        "progress": 0.0,
        "text": ids,
        "has_text": torch.tensor([True, True, True, False, True, True]),
        "sketch": torch.randn(size, 3, *SIZE),
        "has_sketch": torch.tensor([True, False, True, True, False, True]),
        "turns": torch.stack([ids, ids.flip(0)], dim=1),
        "has_turns": torch.tensor([[1, 1], [1, 0], [0, 0], [1, 1], [1, 1], [0, 0]]).bool(),
    }


def test_losses_against_a_naive_twin(model):
    """With every part kept, no marks, and before the first step, a loss is ITC of sums of unit vectors."""
    model.config = model.config.replace(keep=1.0, marks=0.0)
    batch = batch_of(model)
    found = model.losses(batch)
    photos, scale = model.embed_image(batch["images"]), model.clip.logit_scale.exp()
    parts = {"text": [], "turns": [], "sketch": [], "mix": []}
    for n in range(6):
        has = {}
        if batch["has_text"][n]:
            has["text"] = model.embed_text(batch["text"][n : n + 1])[0]
        if batch["has_turns"][n].any():
            each = [model.embed_text(ids[None])[0] for ids in batch["turns"][n][batch["has_turns"][n]]]
            has["turns"] = normalize(sum(each), dim=0)
        if batch["has_sketch"][n]:
            has["sketch"] = model.embed_image(batch["sketch"][n : n + 1])[0]
        mix = normalize(sum(has.values()), dim=0)
        for name, rows in parts.items():
            rows.append(mix if name == "mix" else has.get(name, mix))
    targets = identity_targets(batch["pids"])
    for name, rows in parts.items():
        weight = 1.0 if name == "mix" else model.config.alone_weight / 3
        expected = weight * both_ways(itc, scale * torch.stack(rows) @ photos.T, targets)
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-5)
    assert found.keys() == parts.keys()


def test_training_reaches_every_weight_and_keeps_a_photo_of_each(model):
    model.train()
    batch = batch_of(model)
    photos = model.embed_image(batch["images"]).detach()
    sum(model.losses(batch).values()).backward()
    torch.testing.assert_close(model.known[1], photos[1])
    torch.testing.assert_close(model.known[0], photos[[0, 5]].mean(0))
    torch.nn.init.normal_(model.correct.weight)
    model.zero_grad()
    sum(model.losses(batch).values()).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_an_item_with_marks_is_asked_with_one_part_and_no_photo(model):
    batch = batch_of(model)
    batch |= {"photo": batch["sketch"], "has_photo": torch.tensor([True] * 6)}
    told = model._encoded(batch)
    whole = {part: there.any(1) for part, (_, there) in told.items()}
    for share in (0.0, 1.0):
        model.config = model.config.replace(marks=share)
        mixed, marked = model._mix(told)
        kept = torch.stack([there.any(1) for _, there in mixed.values()], 1)
        assert (marked == bool(share)).all() and kept.any(1).all()
        assert all((kept[:, n] <= whole[part]).all() for n, part in enumerate(told))
        if share:
            assert (kept.sum(1) == 1).all() and not kept[:, list(told).index("photo")].any()


def test_marks_are_made_as_a_witness_makes_them():
    model = Omni(OmniConfig(image_size=SIZE, shown=6), 40, clip=tiny_clip())
    model.known.copy_(normalize(torch.randn(40, 32, generator=torch.Generator().manual_seed(0)), dim=1))
    model.known[39] = 0  # nobody has been seen under this number yet
    pids = torch.arange(10)
    queries, photos = normalize(marks(1, 10), dim=1), normalize(marks(2, 10), dim=1)
    marked = torch.arange(10)[:, None] < 8
    told = model._marks(queries, photos, pids, marked)
    liked, disliked = (told[name][0][:, :6] for name in ("liked", "disliked"))
    yes, no = told["liked"][1][:, :6], told["disliked"][1]
    assert yes.any() and no.any() and not (yes & no).any() and not (yes.all(1) & (yes.shape[1] > 1)).all()
    torch.testing.assert_close(liked, disliked)  # the candidates shown, marked this way or that
    for n in range(10):
        scores = queries[n] @ model.known.T
        scores[pids[n]] = -torch.inf
        torch.testing.assert_close(liked[n], model.known[scores.topk(6).indices])
        likeness = liked[n] @ photos[n]
        if yes[n].any() and no[n].any():
            assert likeness[yes[n]].min() > likeness[no[n]].max()
    assert not yes[8:].any() and not no[8:].any() and not told["liked"][1][8:].any()
    unseen = ~liked.any(dim=-1)
    assert not (yes & unseen).any() and not (no & unseen).any()


@pytest.fixture(scope="module")
def toy(toy_root):
    data = load("toy", toy_root)
    return data, data_pixels(data, SIZE)


def batches(toy, **settings) -> MixedBatches:
    data, pixels = toy
    config = OmniConfig(image_size=SIZE, batch_size=16).replace(**settings)
    return MixedBatches(data, Omni(config, clip=tiny_clip()), config, pixels)


def test_batches_hold_what_belongs_to_the_picture(toy):
    data, pixels = toy
    mixed = batches(toy, batch_size=15, drop_last=False)
    rows, seen = data.split("train"), []
    for batch in mixed.epoch(0):
        for n, row in enumerate(rows.loc[batch["image_ids"].tolist()].itertuples()):
            seen.append(row.Index)
            assert torch.equal(batch["images"][n], pixels[[pixels.index[row.image]]][0])
            assert batch["text"][n].tolist() in mixed.text_ids[: len(mixed.texts.items)].tolist()
            assert torch.equal(batch["sketch"][n], pixels[[pixels.index[row.sketch[0]]]][0])
            others = [path for path in rows["image"][rows["pid"] == row.pid] if path != row.image]
            assert any(torch.equal(batch["photo"][n], pixels[[pixels.index[path]]][0]) for path in others)
            turns = [f"{q} {a}" for dialogue in row.turns for q, a in dialogue]
            ids = mixed.turn_ids[[mixed.turns.items.index(turn) for d in row.turns for turn in d]].tolist()
            chosen = batch["turns"][n][batch["has_turns"][n]].tolist()
            assert 1 <= len(chosen) <= 4 and all(one in ids for one in chosen) and len(turns) >= len(chosen)
    assert sorted(seen) == list(range(len(rows)))


def test_batches_depend_on_seed_and_epoch_alone(toy):
    def told(epoch, **settings):
        return [batch["turns"] for batch in batches(toy, **settings).epoch(epoch)]

    assert all(map(torch.equal, told(1), told(1)))
    assert not all(map(torch.equal, told(0), told(1))) and not all(map(torch.equal, told(0), told(0, seed=1)))


def test_data_sets_are_joined_and_lack_parts(toy_root):
    joined = load("toy+toy/icfg-pedes+toy/pku-sketch", toy_root)
    first, icfg, pku = (load(name, toy_root) for name in ("toy", "toy/icfg-pedes", "toy/pku-sketch"))
    trained = [data.split("train") for data in (first, icfg, pku)]
    rows = joined.split("train")
    assert len(rows) == sum(map(len, trained)) and rows["pid"].nunique() == sum(t["pid"].nunique() for t in trained)
    pd.testing.assert_frame_equal(joined.split("test")[["pid", "text"]], first.split("test")[["pid", "text"]])
    assert all((joined.root / path).is_file() for path in joined.pictures)
    pixels = data_pixels(joined, SIZE)
    config = OmniConfig(image_size=SIZE, batch_size=len(rows))
    [batch] = MixedBatches(joined, Omni(config, clip=tiny_clip()), config, pixels).epoch(0)
    several = rows.groupby("pid")["image"].transform("size").to_numpy() > 1
    for name, has in {"text": rows["text"], "turns": rows["turns"], "sketch": rows["sketch"]}.items():
        there = batch[f"has_{name}"]
        expected = (has.str.len() > 0).to_numpy()[batch["image_ids"]]
        assert ((there if there.ndim == 1 else there.any(1)).numpy() == expected).all()
        assert expected.any() and (name != "turns" or not expected.all())
    assert (batch["has_photo"].numpy() == several[batch["image_ids"]]).all()


def test_pictures_alone_are_nothing_to_train_on(toy):
    data, pixels = toy
    bare = copy.copy(data)
    bare.table = data.table.assign(**{part: [[]] * len(data.table) for part in ("text", "turns", "sketch")})
    config = OmniConfig(image_size=SIZE)
    with pytest.raises(DataError, match="has no pictures with text, turns or sketch"):
        MixedBatches(bare, Omni(config, clip=tiny_clip()), config, pixels)


def test_a_picture_of_which_nothing_is_told_is_no_item(toy):
    data, pixels = toy
    some = copy.copy(data)
    some.table = data.table.copy()
    silent = data.table["split"].eq("train") & (data.table.index % 3 == 0)
    for part in ("text", "turns", "sketch"):
        some.table[part] = [[] if quiet else given for quiet, given in zip(silent, data.table[part], strict=True)]
    config = OmniConfig(image_size=SIZE)
    mixed = MixedBatches(some, Omni(config, clip=tiny_clip()), config, pixels)
    assert len(mixed) == (data.table["split"].eq("train") & ~silent).sum()


def test_a_mixed_task_asks_with_the_picture_it_leaves_out(toy):
    data, _ = toy
    task = mixed_task(data, "test", ("text", "turns", "photo"))
    rows = data.split("test")
    assert len(task.queries) == len(rows) and task.sources.tolist() == list(range(len(rows)))
    query, row = task.queries[3], rows.loc[3]
    assert (query.text, query.photo, query.sketch) == (row["text"][0], row["image"], None)
    assert list(query.turns) == list(row["turns"][0]) and task.name == "mix text+turns+photo"


def test_a_session_tells_it_everything_side_by_side(model, tmp_path, toy):
    data, _ = toy
    gallery = Gallery.encode(model, data.split("test"), data.root)
    session = QuerySession(model, gallery)
    session.say("a woman in a red coat")
    question = session.ask()
    session.answer(question.answers[0])
    session.draw(picture(0))
    session.show(picture(1))
    session.like(0)
    session.dislike(3)
    query = session.query
    assert query.parts == ("text", "turns", "sketch", "photo", "liked", "disliked")
    assert query.text == "a woman in a red coat." and query.turns == [(question.text, question.answers[0])]
    torch.testing.assert_close(session.embedding(), Encoder(model).queries([query])[0].cpu())
    assert 3 not in [row for row, _, _ in session.results(10)]


def test_learns_a_mix_and_is_loaded_again(toy_root, tmp_path):
    """From random new parts on a small world: a mix of parts must find better than it did by the rule."""
    data = load("toy", toy_root)
    config = OmniConfig.toy().replace(epochs=4, batch_size=32)
    torch.manual_seed(0)
    model = Omni(config, data.split("train")["pid"].nunique())
    task = mixed_task(data, "train", ("text", "turns", "sketch"))
    encoder = Encoder(model, data_pixels(data, model.preprocess))
    before = evaluate(encoder, [task])[0][0]["mAP"]
    rows = list(train(model, data, config, tmp_path / "run", select=[]))
    after = evaluate(Encoder(model, encoder.pixels), [task])[0][0]["mAP"]
    assert rows[-1]["mix"] < rows[0]["mix"] and after > before + 10, (before, after)
    save_model(model, tmp_path / "omni.safetensors")
    again = load_model(str(tmp_path / "omni.safetensors"))
    queries = [Query(text="a man in a red coat", turns=TURNS)]
    with torch.no_grad():
        torch.testing.assert_close(again.embed(queries), model.embed(queries))
