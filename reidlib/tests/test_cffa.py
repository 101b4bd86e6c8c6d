"""CFFA as a method: embeddings, options, groups, awkward captions, mixed precision, official checkpoints."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reidlib.data import load
from reidlib.data.batches import data_pixels
from reidlib.errors import CheckpointError, ConfigError
from reidlib.evaluation import Encoder, evaluate, tasks
from reidlib.methods import cffa
from reidlib.methods.cffa import CFFA, CFFAConfig, group_of, import_official, select_patches, select_words
from reidlib.paths import run_dir
from reidlib.runs import load_model
from reidlib.tests import official_names as names
from reidlib.training import fit

CAPTIONS = ["a man in a red coat and black shoes", "woman", "a boy with a bag", "the same boy, seen from behind"]
START, END = 49406, 49407


def build(**overrides) -> CFFA:
    torch.manual_seed(0)
    return CFFA(CFFAConfig.preset("toy", backbone="toy-random", **overrides), num_classes=3)


@pytest.fixture(scope="module")
def model() -> CFFA:
    return build().eval()


def batch(model: CFFA, captions: list[str] = CAPTIONS) -> dict[str, Tensor]:
    torch.manual_seed(1)
    images = torch.randn(len(captions), 3, *model.image_size)
    pids = torch.tensor([0, 1, 2, 2])[: len(captions)]
    return {"images": images, "caption_ids": model.tokenize(captions), "pids": pids}


@torch.no_grad()
def test_embeddings_are_unit_vectors_that_do_not_depend_on_the_batch(model):
    data = batch(model)
    for embed, queries in ((model.embed_image, data["images"]), (model.embed_text, data["caption_ids"])):
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
def test_rules_of_learning_rates(name, lr, decay):
    assert group_of(name, CFFAConfig.paper()) == pytest.approx((lr, decay))


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
    rows = list(fit(model, data, config, run_dir("test-cffa")))
    after = evaluate(Encoder(model, encoder.pixels), task)[0][0]["mAP"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert after > before + 2.5  # measured: 4.2; without a step nothing changes
    again = load_model("test-cffa")
    assert_close(Encoder(again, encoder.pixels).texts(CAPTIONS), Encoder(model, encoder.pixels).texts(CAPTIONS))


# -- official checkpoints ------------------------------------------------------------------------------------------


def irra(width: int = 64) -> dict[str, Tensor]:
    image = names.image_tower(width, blocks=2, patch=16, patches=6) | {"proj": torch.randn(width, width)}
    state = names.prefixed("base_model.", names.prefixed("visual.", image) | names.text_tower(width, 1, width))
    state |= names.linear("classifier", width, 9) | names.attention("cross_attn", width)
    state |= names.transformer("cross_modal_transformer", width, 3)
    for norm in ("ln_pre_t", "ln_pre_i", "ln_post", "mlm_head.ln"):
        state |= names.norm(norm, width)
    return state | names.linear("mlm_head.dense", width, width) | names.linear("mlm_head.fc", width, 49408)


def local_layers(width: int = 64, dim: int = 96) -> dict[str, Tensor]:
    state = {}
    for layer, projections in (("visul_emb_layer", ("linear", "fc")), ("texual_emb_layer", ("linear",))):
        for projection in projections:
            state |= names.linear(f"{layer}.{projection}", width, dim)
        state |= names.linear(f"{layer}.mlp.layers.0", width, dim // 2)
        state |= names.linear(f"{layer}.mlp.layers.1", dim // 2, dim)
        state |= names.batch_norm(f"{layer}.mlp.bns.0", dim // 2) | names.batch_norm(f"{layer}.mlp.bns.1", dim)
    return state


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": state, "epoch": 3, "iteration": 10}, folder / "best.pth")
    return folder / "best.pth"


@torch.no_grad()
@pytest.mark.parametrize(("prefix", "half"), [("", True), ("module.", False)])
def test_official_checkpoint(tmp_path, prefix, half):
    state = {**irra(), **local_layers()}
    state = {name: t.half() if half and t.is_floating_point() else t for name, t in state.items()}
    model = import_official(saved(tmp_path, names.prefixed(prefix, state)), image_size=(48, 32)).eval()
    assert (model.config.mlm_layers, model.config.local_dim, model.config.heads) == (3, 96, 1)
    assert model.clip.model.transformer.resblocks[0].attn.dropout == model.config.text_dropout == 0.05
    own = model.state_dict()
    for ours, theirs in {
        "clip.model.visual.conv1.weight": "base_model.visual.conv1.weight",
        "clip.model.text_projection": "base_model.text_projection",
        "head.classifier.bias": "classifier.bias",
        "head.image_local.project.weight": "visul_emb_layer.fc.weight",
        "head.text_local.project.weight": "texual_emb_layer.linear.weight",
        "head.text_local.mlp.3.bias": "texual_emb_layer.mlp.layers.1.bias",
        "head.image_local.mlp.1.running_mean": "visul_emb_layer.mlp.bns.0.running_mean",
        "head.reasoning.mlm_head.fc.weight": "mlm_head.fc.weight",
    }.items():
        assert_close(own[ours], state[theirs].float())
    assert model.embed_image(torch.randn(2, 3, 48, 32)).shape == (2, 64 + 96)
    assert model.embed_text(model.tokenize(CAPTIONS)).isfinite().all()


@torch.no_grad()
def test_irra_is_cffa_without_local_features(tmp_path):
    model = import_official(saved(tmp_path, irra()), image_size=(48, 32)).eval()
    assert model.config.local_dim == 0
    ids = model.tokenize(CAPTIONS)
    assert_close(model.embed_text(ids), torch.nn.functional.normalize(model.clip.encode_text(ids), dim=1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("ln_post.weight"), "missing: head.reasoning.ln_post.weight"),
        (lambda state: state.pop("base_model.visual.conv1.weight"), "conv1.weight is missing"),
        (lambda state: state.pop("texual_emb_layer.linear.bias"), "missing: head.text_local.project.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda state: state.update({"classifier.bias": torch.zeros(8)}), r"classifier.bias \(8,\) instead of \(9,\)"),
        (lambda state: state.pop("classifier.weight"), "missing: head.classifier.weight"),
    ],
)
def test_official_checkpoint_that_does_not_fit(tmp_path, change, told):
    state = {**irra(), **local_layers()}
    change(state)
    with pytest.raises(CheckpointError, match=told):
        import_official(saved(tmp_path, state), image_size=(48, 32))


def test_pictures_of_another_size_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="6 patches of 16 pixels"):
        import_official(saved(tmp_path, irra()))
