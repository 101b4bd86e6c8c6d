"""CFine as a method: embeddings, options, groups, awkward captions, mixed precision."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reidlib.backbones.attention import attend
from reidlib.backbones.bert import create_text_encoder
from reidlib.data import load
from reidlib.data.batches import data_pixels
from reidlib.errors import ConfigError, ReidError
from reidlib.evaluation import Encoder, evaluate, tasks
from reidlib.methods import cfine
from reidlib.methods.cfine import CFine, CFineConfig
from reidlib.models import load_model
from reidlib.paths import run_dir
from reidlib.query import Query
from reidlib.tests.training import train

CAPTIONS = ["a man in a red coat and black shoes", "woman", "a boy with a bag", "the same boy, seen from behind"]


def build(**overrides) -> CFine:
    torch.manual_seed(0)
    config = CFineConfig.preset("toy", backbone="toy-random", text_encoder="toy-random", **overrides)
    return CFine(config, num_classes=3)


@pytest.fixture(scope="module")
def model() -> CFine:
    return build().eval()


def batch(model: CFine) -> dict[str, Tensor]:
    torch.manual_seed(1)
    images = torch.randn(4, 3, *model.image_size)
    return {"images": images, "text": model.tokenize(CAPTIONS), "pids": torch.tensor([0, 1, 2, 2])}


@torch.no_grad()
def test_embeddings_are_unit_vectors_that_do_not_depend_on_the_batch(model):
    data = batch(model)
    for embed, queries in ((model.embed_image, data["images"]), (model.embed_text, data["text"])):
        together = embed(queries)
        assert together.shape == (4, 3 * model.clip.image_width)
        assert_close(together.norm(dim=1), torch.ones(4))
        assert_close(torch.cat([embed(query[None]) for query in queries]), together, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("captions", [CAPTIONS, CAPTIONS[1:2], ["a man, " * 15, "a boy"]])
def test_padding_that_is_cut_off_changes_nothing(model, captions):
    """Neither which padding fills up the groups of a short caption, nor what the block makes of it."""
    ids = model.tokenize(captions)
    full = model.head.text(*model.bert(ids), ids == model.bert.pad)
    seen = []
    handle = model.bert.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    trimmed = model.text_features(ids)
    handle.remove()
    assert seen[0] == max(2 * int(60 * 0.2), int((ids != model.bert.pad).sum(dim=1).max())) < ids.shape[1]
    for ours, whole in zip(trimmed, full, strict=True):
        assert_close(ours, whole, atol=1e-5, rtol=1e-4)


def test_of_equal_scores_the_earlier_token_is_selected():
    attention = torch.rand(1, 9, 9)
    attention[0, 0] = torch.tensor([0.9, 0.1, 0.0, 0.3, 0.0, 0.1, 0.3, 0.0, 0.0])  # zeros: padding is not attended to
    assert cfine.select(attention, 3).tolist() == [[3, 6, 1, 5, 0, 2]], "the first token counts as padding"
    assert cfine.select(attention, 4).tolist() == [[3, 6, 1, 5, 0, 2, 4, 7]]


def test_attention_without_projecting_the_tokens():
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    torch.nn.init.normal_(module.in_proj_bias)
    queries, tokens = torch.randn(3, 2, 32), torch.randn(3, 9, 32, requires_grad=True)
    for padding in (None, torch.arange(9) >= torch.tensor([9, 5, 1])[:, None]):
        plain = module(queries, tokens, tokens, key_padding_mask=padding, need_weights=False)[0]
        ours = attend(module, queries, tokens, padding)
        assert_close(ours, plain, atol=1e-6, rtol=1e-5)
        wanted = [module.in_proj_weight, module.out_proj.bias, tokens]
        for a, b in zip(*(torch.autograd.grad(x.square().sum(), wanted) for x in (ours, plain)), strict=True):
            assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_losses_reach_every_parameter():
    model = build().train()
    losses = model.losses(batch(model))
    assert list(losses) == ["cmpm", "cmpc", "diversity", "ranking"]
    sum(losses.values()).backward()
    still = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not still
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("overrides", "unused"),
    [
        ({"cross_weight": 0.0}, ["cross_grained"]),
        ({"fine_weight": 0.0}, ["fine_grained"]),
        ({"cross_weight": 0.0, "fine_weight": 0.0}, ["cross_grained", "fine_grained", "hardest_ranking"]),
        ({"ranking_weight": 0.0}, ["cross_grained", "fine_grained", "hardest_ranking"]),
    ],
)
def test_what_weighs_nothing_is_not_computed(monkeypatch, overrides, unused):
    for name in unused:
        monkeypatch.setattr(cfine, name, lambda *_, **__: pytest.fail("computed"))
    model = build(**overrides).train()
    assert ("ranking" in model.losses(batch(model))) == ("hardest_ranking" not in unused)


def test_bf16_keeps_float32_weights_and_finite_losses():
    model = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses(batch(model))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_padding_is_not_looked_at(model):
    ids = model.tokenize(["a red coat"])
    tokens, attention = model.bert(ids)
    changed = tokens.clone()
    changed[ids == model.bert.pad] = 7.0
    # The few words and some padding are selected, so compare only the block's look at all tokens.
    groups = tokens[:, None, 1:3]
    block = model.head.block
    assert_close(block(changed, groups, ids == 0), block(tokens, groups, ids == 0))


def test_parameter_groups():
    config = CFineConfig.paper()
    model = build()
    towers, text, head = model.parameter_groups(config)
    assert (towers["lr"], towers["weight_decay"]) == (1e-5, 4e-5)
    assert (text["lr"], text["weight_decay"]) == (1e-5, 0) and (head["lr"], head["weight_decay"]) == (1e-4, 0)
    grouped = sum(p.numel() for group in (towers, text, head) for p in group["params"])
    assert grouped == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert not model.head.neck_image.bias.requires_grad
    assert not any(name.startswith(("clip.model.token", "clip.model.visual.proj")) for name in model.state_dict())


def test_checkpointed_activations_change_nothing():
    model = build().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    before = sum(model.losses(batch(model)).values())
    model.checkpoint_activations()
    assert_close(sum(model.losses(batch(model)).values()), before)


@pytest.mark.parametrize("field", ["cmpm_target", "ranking_reduction"])
def test_unknown_options_are_refused(field):
    with pytest.raises(ConfigError, match=field):
        build(**{field: "median"})


def test_clips_own_text_tower_as_the_text_encoder():
    """The end token is first and what CLIP would pool; nothing depends on padding; weights are there once."""
    model = CFine(CFineConfig.preset("toy", backbone="toy-random"), 3).eval()
    captions = ["a woman in a red coat", "a man, coat!(long)"]  # whose piece "!" has the id that CLIP pads with
    ids = model.tokenize(captions)
    tokens, attention = model.bert(ids)
    assert tokens.shape == (2, 60, 96) and attention.shape == (2, 60, 60)
    torch.testing.assert_close(tokens[:, 0], model.clip.encode_text(model.clip.tokenize(captions)))
    n = int((ids[1] != model.bert.pad).sum())
    assert model.bert.pieces(ids[1, 1:n]) == ["a", "man", ",", "coat", "!", "(", "long", ")"]
    assert not attention[1, 0, n:].any() and attention[1, 0, :n].all()
    torch.testing.assert_close(model.bert(ids[1:, :n]).tokens[0], tokens[1, :n])
    assert len(list(model.bert.parameters())) == 0 and any(
        name.startswith("clip.model.token") for name in model.state_dict()
    )


def test_text_encoder_that_is_not_at_hand_gives_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ReidError, match="no-such/encoder.*on a machine with a network run .hf download no-such/encoder"
    ):
        create_text_encoder("no-such/encoder", 10, 64)


def test_long_captions_keep_their_end():
    encoder = create_text_encoder("toy-random", 6, 64)
    with pytest.warns(UserWarning, match="1 of 2 texts"):
        ids = encoder.tokenize(["one two three four five six", "man"])
    assert encoder.pieces(ids[1, :3]) == ["<start_of_text>", "man", "<end_of_text>"]
    assert ids.shape == (2, 6) and ids[0, -1] == ids[1, 2] and (ids[1, 3:] == encoder.pad).all()


def test_training_finds_people_and_its_model_loads_again(toy_root):
    data = load("toy", toy_root)
    torch.manual_seed(0)
    config = CFineConfig.preset("toy", epochs=8)
    model = CFine(config, data.split("train")["pid"].nunique())
    encoder = Encoder(model, data_pixels(data, config.image_size))
    task = tasks(data, "train", ["text"])
    before = evaluate(encoder, task)[0][0]["mAP"]
    rows = list(train(model, data, config, run_dir("test-cfine")))
    after = evaluate(Encoder(model, encoder.pixels), task)[0][0]["mAP"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert after > before + 20
    again = load_model("test-cfine")
    queries = [Query(text=caption) for caption in CAPTIONS]
    assert_close(Encoder(again).queries(queries), Encoder(model).queries(queries))
