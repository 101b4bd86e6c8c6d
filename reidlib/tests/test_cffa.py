"""CFFA as a method: embeddings, options, groups, awkward captions, mixed precision."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reidlib.data import load
from reidlib.data.batches import data_pixels
from reidlib.errors import ConfigError
from reidlib.evaluation import Encoder, evaluate, tasks
from reidlib.methods import cffa
from reidlib.methods.cffa import CFFA, CFFAConfig, select_patches, select_words
from reidlib.models import load_model
from reidlib.paths import run_dir
from reidlib.query import Query
from reidlib.tests.training import train

CAPTIONS = ["a man in a red coat and black shoes", "woman", "a boy with a bag", "the same boy, seen from behind"]
START, END = 49406, 49407


ALL = {"mlm_weight": 1.4, "id_weight": 1.0, "augment_words": 0.2}  # losses and words that the toy preset leaves out


def build(**overrides) -> CFFA:
    torch.manual_seed(0)
    return CFFA(CFFAConfig.preset("toy", backbone="toy-random", **(ALL | overrides)), num_classes=3)


@pytest.fixture(scope="module")
def model() -> CFFA:
    return build().eval()


def batch(model: CFFA, captions: list[str] = CAPTIONS) -> dict[str, Tensor]:
    torch.manual_seed(1)
    images = torch.randn(len(captions), 3, *model.image_size)
    pids = torch.tensor([0, 1, 2, 2])[: len(captions)]
    return {"images": images, "text": model.tokenize(captions), "pids": pids}


@torch.no_grad()
def test_embeddings_are_unit_vectors_that_do_not_depend_on_the_batch(model):
    data = batch(model)
    for embed, queries in ((model.embed_image, data["images"]), (model.embed_text, data["text"])):
        together = embed(queries)
        assert together.shape == (4, model.clip.embed_dim + 256)
        assert_close(together.norm(dim=1), torch.ones(4))
        assert_close(torch.cat([embed(query[None]) for query in queries]), together, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_trimmed_captions_embed_as_whole_ones(model):
    ids = model.tokenize(CAPTIONS)
    whole = model.head.embedding(model.head.text(*model.clip.text_tokens(ids, attention=True), ids))
    assert_close(model.embed_text(ids), whole, atol=1e-5, rtol=1e-4)


def test_losses_reach_every_parameter():
    model = build(mask_words=0.9).train()
    losses = model.losses(batch(model))
    assert list(losses) == ["mal", "mal_local", "id", "mlm"]
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ({"local_dim": 0}, {"mal", "id", "mlm"}),
        ({"mlm_weight": 0.0}, {"mal", "mal_local", "id"}),
        ({"id_weight": 0.0, "local_dim": 0, "mlm_weight": 0.0}, {"mal"}),
    ],
)
def test_ablations_drop_the_loss_and_its_weights(overrides, kept):
    model = build(**overrides).train()
    assert set(model.losses(batch(model))) == kept
    state = " ".join(model.state_dict())
    assert ("_local" in state) == ("mal_local" in kept) and ("reasoning" in state) == ("mlm" in kept)
    assert_close(model.eval().embed_text(model.tokenize(CAPTIONS)).norm(dim=1), torch.ones(4))


@pytest.mark.parametrize(("share", "passes"), [(True, 1), (False, 2)])
def test_shared_masking_hides_words_from_all_losses_and_saves_a_pass(monkeypatch, share, passes):
    model, seen = build(share_masked=share, augment_words=1e-9).train(), []
    plain = model.clip.text_tokens
    monkeypatch.setattr(model.clip, "text_tokens", lambda ids, **how: seen.append(ids) or plain(ids, **how))
    monkeypatch.setattr(cffa, "mask_tokens", lambda ids, _: (ids.where(ids != 786, 49405), ids.where(ids == 786, 0)))
    model.losses(batch(model))
    assert len(seen) == passes
    assert (49405 in seen[0]) == share and 49405 in seen[-1]


def test_sum_and_mean():
    model = build(text_dropout=0.0, augment_words=1e-9, mlm_weight=0.0).train()
    data = batch(model)
    total = model.losses(data)
    model.config.mal_reduction = "mean"
    assert_close(model.losses(data)["mal"] * 4, total["mal"])


def test_words_and_patches_are_taken_by_attention():
    ids = torch.tensor([[START, 11, 12, 13, END, 0, 0], [START, 11, END, 0, 0, 0, 0]])
    attention = torch.zeros(2, 7, 7)
    attention[0, 4] = torch.tensor([0.9, 0.1, 0.3, 0.2, 0.8, 0.7, 0.7])
    attention[1, 2] = torch.tensor([0.9, 0.1, 0.5, 0.6, 0.4, 0.3, 0.2])
    assert select_words(attention, ids, 3)[0].tolist() == [2, 3, 1]
    assert select_words(attention, ids, 3)[1, 0] == 1
    assert not set(select_words(attention, ids, 5)[1].tolist()) & {0, 2}
    assert select_patches(attention.roll(-4, dims=1), 2)[0].tolist() in ([4, 5], [4, 6])


def test_only_words_enter_the_maximum():
    torch.manual_seed(0)
    layer = cffa.LocalEmbedding(8, 6).eval()
    tokens = torch.randn(3, 4, 8)
    lengths = torch.tensor([2, 4, 0])
    result = layer(tokens, lengths)
    for row, count in enumerate([2, 4, 1]):
        assert_close(result[row], layer(tokens[row : row + 1, :count])[0])


@pytest.mark.parametrize("captions", [["red", "coat"], ["", "a"], ["", ""]])
def test_the_shortest_captions_train(captions):
    for rate in (1e-9, 0.999):
        model = build(augment_words=rate).train()
        losses = model.losses(batch(model, captions))
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_keeps_float32_weights_and_finite_losses(dtype):
    model = build().train()
    with torch.autocast("cpu", dtype=dtype):
        losses = model.losses(batch(model))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "lr", "decay"),
    [
        ("clip.model.visual.proj", 1e-5, 4e-5),
        ("clip.model.ln_final.bias", 2e-5, 0),
        ("clip.model.ln_final.weight", 1e-5, 4e-5),
        ("head.reasoning.cross_attn.in_proj_weight", 5e-5, 4e-5),
        ("head.reasoning.cross_attn.in_proj_bias", 2e-5, 0),
        ("head.reasoning.cross_modal_transformer.resblocks.0.ln_1.bias", 2e-5, 0),
        ("head.reasoning.mlm_head.fc.bias", 5e-5, 0),
        ("head.classifier.weight", 5e-5, 4e-5),
        ("head.classifier.bias", 5e-5, 0),
        ("head.image_local.mlp.0.weight", 1e-3, 4e-5),
        ("head.text_local.project.bias", 1e-3, 0),
    ],
)
def test_rules_of_learning_rates(model, name, lr, decay):
    assert model.rate_of(name, model.get_parameter(name), CFFAConfig.paper()) == pytest.approx((lr, decay))


def test_groups_hold_every_trained_parameter_once(model):
    grouped = [p for group in model.parameter_groups(model.config) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(grouped) == len({id(p) for p in grouped})


@pytest.mark.parametrize("field", ["mal_factor", "mal_reduction"])
def test_unknown_options_are_refused(field):
    with pytest.raises(ConfigError, match=field):
        build(**{field: "median"})


def test_training_finds_people_and_its_model_loads_again(toy_root):
    data = load("toy", toy_root)
    torch.manual_seed(0)
    config = CFFAConfig.preset("toy", batch_size=32, epochs=6)
    model = CFFA(config, data.split("train")["pid"].nunique())
    encoder = Encoder(model, data_pixels(data, config.image_size))
    task = tasks(data, "train", ["text"])
    before = evaluate(encoder, task)[0][0]["mAP"]
    rows = list(train(model, data, config, run_dir("test-cffa")))
    after = evaluate(Encoder(model, encoder.pixels), task)[0][0]["mAP"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert after > before + 2.5  # measured: 4.2; without a step nothing changes
    again = load_model("test-cffa")
    queries = [Query(text=caption) for caption in CAPTIONS]
    assert_close(Encoder(again).queries(queries), Encoder(model).queries(queries))


def test_words_are_guessed_alike_whether_or_not_the_last_block_reads_the_others():
    torch.manual_seed(0)
    reasoning = build(mlm_weight=1.0).head.reasoning
    text, image = torch.randn(2, 3, 9, reasoning.ln_post.weight.numel())
    labels = torch.zeros(3, 9, dtype=torch.long)
    labels[0, [2, 7]], labels[1, 4] = torch.tensor([5, 6]), 7  # nothing is hidden in the third caption
    everything = torch.arange(9).expand(3, -1)
    hidden = labels != 0
    logits = reasoning.mlm_head(reasoning.fuse(text, image, everything)[hidden])
    assert_close(reasoning(text, image, labels), torch.nn.functional.cross_entropy(logits, labels[hidden]))
    assert float(reasoning(text, image, torch.zeros_like(labels))) == 0
