"""DiaNA's parts against naive recomputation; both stages and both kinds of towers end to end, tiny."""

import math
import warnings

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from reidlib.backbones.swin_llama import LLAMA, SWINV2, TransformerTowers
from reidlib.benchmarks import Unfilled
from reidlib.data import PersonData, load
from reidlib.data.batches import data_pixels
from reidlib.errors import ConfigError
from reidlib.evaluation import Encoder, evaluate
from reidlib.evaluation.tasks import dialogue_task, text_task
from reidlib.methods.diana import (
    MODES,
    REDUCTIONS,
    DiaNA,
    DianaConfig,
    DiaNAPretrain,
    DianaPretrainConfig,
    refined_similarity,
)
from reidlib.models import load_model, trained
from reidlib.tests.training import train

TALKS = [
    [("What top?", f"a {colour} coat"), ("What bag?", f"a {bag}"), ("And shoes?", f"{shoes} ones")]
    for colour, bag, shoes in (
        ("red", "rucksack", "white"),
        ("blue", "handbag", "black"),
        ("green", "suitcase", "brown"),
        ("grey", "pouch", "yellow"),
    )
]
TINY = {"embed_dim": 64, "num_queries": 4, "refiner_layers": 1}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def build(towers: str = "transformers", **fields) -> DiaNA:
    return DiaNA(DianaConfig.preset("toy", **({"towers": towers, "backbone": "toy-random"} | TINY | fields)))


def batch(model: DiaNA, n: int = 4) -> dict[str, Tensor]:
    return {
        "images": torch.randn(n, 3, 128, 64),
        "turns": model.tokenize_turns([TALKS[i % 4] for i in range(n)]),
        "pids": torch.arange(n) // 2,
        "image_ids": torch.arange(n),
    }


# -- similarities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_pair_by_pair(reduction: str):
    queries, gallery = torch.randn(3, 4, 5), torch.randn(2, 4, 5)
    reduce = {
        "avg": lambda c: sum(c) / len(c),
        "max": max,
        "min": min,
        "lsp_max": lambda c: math.log(sum(map(math.exp, c))),
        "lsp_min": lambda c: -math.log(sum(math.exp(-x) for x in c)),
    }[reduction]
    expected = [[reduce([float(x) for x in cosine_similarity(q, g, dim=-1)]) for g in gallery] for q in queries]
    torch.testing.assert_close(refined_similarity(queries, gallery, reduction), torch.tensor(expected))


@pytest.mark.parametrize("towers", ["clip", "transformers"])
def test_every_mode_is_one_inner_product(towers: str):
    model = build(towers).eval()
    data = batch(model)
    with torch.no_grad():
        image, text = model.encode_image(data["images"]), model.encode_text(data["turns"])
        found = {}
        for mode in MODES:
            model.config.mode = mode
            found[mode] = model.embed_turns(data["turns"]) @ model.embed_image(data["images"]).T
    overall = cosine_similarity(text.pooled[:, None], image.pooled[None], dim=-1)
    slots = cosine_similarity(text.attributes[:, None], image.attributes[None], dim=-1).mean(dim=-1)
    for mode, expected in {"global": overall, "local": slots, "all": overall + slots}.items():
        assert found[mode].dtype == torch.float32
        torch.testing.assert_close(found[mode], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("towers", ["clip", "transformers"])
def test_padding_changes_nothing(towers: str):
    model = build(towers, mode="all").eval()
    short, long = model.tokenize_turns([TALKS[0][:1]]), model.tokenize_turns([TALKS[0][:1], TALKS[1]])
    with torch.no_grad():
        alone, beside = model.embed_turns(short)[0], model.embed_turns(long)[0]
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("towers", ["clip", "transformers"])
def test_attributes_look_at_tokens_that_are_there(towers: str):
    model = build(towers).eval()
    data = batch(model, 2) | {"turns": model.tokenize_turns([TALKS[0], TALKS[1][:1]])}
    with torch.no_grad():
        seen = model.attribute_attention(images=data["images"])
        read = model.attribute_attention(ids=data["turns"])
    assert seen.shape == (2, 4, math.prod(model.towers.grid))
    assert read.shape == (2, 4, data["turns"].shape[1])
    torch.testing.assert_close(read.sum(dim=-1), torch.ones(2, 4))
    assert (read[1][:, data["turns"][1] == model.towers.pad] == 0).all()
    assert len(model.towers.words(data["turns"][1])) == int((read[1, 0] > 0).sum())


# -- rounds and masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("towers", ["clip", "transformers"])
def test_random_rounds_are_whole_and_drawn_evenly(towers: str):
    model = build(towers)
    ids = model.tokenize_turns([TALKS[0], TALKS[1][:1]]).repeat(300, 1)
    kept = model._retained(ids)
    length = (kept != model.towers.pad).sum(dim=1)
    allowed = [(model.tokenize_turns([TALKS[0][:n]]) != model.towers.pad).sum() for n in (1, 2, 3)]
    counts = [int((length[::2] == n).sum()) for n in allowed]
    assert sum(counts) == 300 and min(counts) > 60
    assert torch.equal(kept[1::2], ids[1::2])  # a single round is always kept


@pytest.mark.parametrize("towers", ["clip", "transformers"])
@pytest.mark.parametrize("roles", [False, True])
def test_masking_shares_and_what_it_spares(towers: str, roles: bool):
    model = build(towers, masking=0.5, mask_roles=roles)
    ids = model.tokenize_turns(TALKS).repeat(300, 1)
    masked, free = model._masked(ids), model.towers.may_mask(ids, roles)
    assert torch.equal(masked[~free], ids[~free])
    changed = (masked != ids)[free].float().mean().item()
    hidden = (masked == model.towers.mask)[free].float().mean().item()
    assert abs(hidden - 0.4) < 0.02 and abs(changed - 0.45) < 0.02
    assert not (masked == model.towers.pad)[free].any()


def test_evaluation_neither_masks_nor_cuts():
    model = build().eval()
    data = batch(model)
    with torch.no_grad():
        first, second = model.losses(data), model.losses(data)
    assert first == second and set(first) == {"itc", "sdm", "refined_itc", "refined_sdm"}


# -- the two stages ----------------------------------------------------------------------------------------------------


def caption_loss(captions: list[str], **fields) -> Tensor:
    torch.manual_seed(0)
    model = DiaNA(DianaPretrainConfig.preset("toy", towers="transformers", masking=0.0, **TINY, **fields))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ids = model.tokenize(captions)
    images = torch.randn(2, 3, 128, 64, generator=torch.Generator().manual_seed(0))
    return sum(model.losses({"images": images, "text": ids, "image_ids": torch.arange(2)}).values()).detach()


@pytest.mark.parametrize("reaches", [True, False], ids=["ours", "as released"])
def test_the_first_stage_reads_its_captions(reaches: bool):
    """With the system prompt before it, a caption lies behind the 56 tokens that the released script keeps."""
    released = {} if reaches else {"caption_system": True}
    fields = {"max_length": 56, "caption_questions": ("What did this person look like to you, from head to toe?",)}
    one = caption_loss(["a man in a red coat", "a woman with a bag"], **fields, **released)
    other = caption_loss(["a girl in blue shorts", "someone in black boots"], **fields, **released)
    assert bool((one - other).abs() > 1e-4) == reaches


def test_stages_differ_in_what_they_match():
    pretrain, train = DianaPretrainConfig.paper(), DianaConfig.paper()
    assert (pretrain.match_by, pretrain.sdm_weight, pretrain.learn_from) == ("image_ids", 0, "text")
    assert (train.match_by, train.sdm_weight, train.learn_from) == ("pids", 1, "turns")
    assert pretrain.batch_size == 512 and train.batch_size == 128


def test_the_second_stage_starts_from_the_first_with_another_number_of_attributes():
    first = DiaNA(DianaPretrainConfig.preset("toy", towers="transformers", **(TINY | {"num_queries": 6})))
    second = build()
    queries = second.refiner.attr_query_token.clone()
    second.start_from(first.state_dict())
    assert torch.equal(second.text_projection.weight, first.text_projection.weight)
    assert torch.equal(second.refiner.attr_query_token, queries)
    bare = build(refined_weight=0.0)
    bare.start_from(first.state_dict())
    assert torch.equal(bare.text_projection.weight, first.text_projection.weight)


@pytest.mark.parametrize(("towers", "steps"), [("clip", 20), ("transformers", 40)])
def test_learns_four_dialogues_by_heart(towers: str, steps: int):
    model = build(towers, mode="all", masking=0.0, random_rounds=False, init_scale=10.0, system="")
    colours = torch.tensor([[2.0, -2, -2], [-2, -2, 2], [-2, 2, -2], [0, 0, 0]])
    data = batch(model) | {"pids": torch.arange(4), "images": colours[:, :, None, None].expand(-1, -1, 128, 64)}
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model.losses(data).values()).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        similarity = model.embed_turns(data["turns"]) @ model.embed_image(data["images"]).T
    assert similarity.argmax(dim=1).tolist() == similarity.argmax(dim=0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("towers", ["clip", "transformers"])
def test_every_trained_parameter_gets_a_gradient(towers: str):
    """Distributed training stops at a parameter that takes no part in the loss."""
    model = build(towers)
    sum(model.losses(batch(model)).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("towers", ["clip", "transformers"])
def test_rows_of_similar_length_are_encoded_together(towers: str, monkeypatch):
    model = build(towers).eval()
    ids = model.tokenize_turns([TALKS[0], TALKS[1][:1], TALKS[2][:2], TALKS[3][:1], TALKS[1]])
    seen = []
    encode = model.towers.encode_text
    monkeypatch.setattr(model.towers, "encode_text", lambda ids: seen.append(ids.shape[1]) or encode(ids))
    monkeypatch.setattr("reidlib.methods.diana.ALIKE", 2)
    with torch.no_grad():
        grouped = model.encode_text(ids)
        monkeypatch.setattr("reidlib.methods.diana.FULL", 0.0)
        whole = model.encode_text(ids)
    real = ids != model.towers.pad
    assert seen[:-1] == sorted(seen[:-1]) and len(seen) > 2 and seen[0] < seen[-1] == real.shape[1]
    torch.testing.assert_close(grouped.pooled, whole.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(grouped.attributes, whole.attributes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(grouped.dense[real], whole.dense[real], atol=1e-5, rtol=1e-4)


def test_little_is_spent_on_padding(monkeypatch):
    model = build("clip").eval()
    ids = model.tokenize_turns([TALKS[1][:1] * rounds for rounds in range(1, 33)]).clone()
    seen = []
    encode = model.towers.encode_text
    monkeypatch.setattr(model.towers, "encode_text", lambda ids: seen.append(ids.numel()) or encode(ids))
    with torch.no_grad():
        model.encode_text(ids, refine=False)
    read = int((ids != model.towers.pad).sum())
    assert read <= sum(seen) < 1.25 * read and ids.numel() > 1.5 * read


@pytest.mark.parametrize("towers", ["clip", "transformers"])
def test_tokens_are_counted_against_the_models_own_limit(towers: str):
    model = build(towers, max_length=40)
    used, limit = model.count_tokens("a man in a red coat")
    assert limit == 40 and used == model.tokenize(["a man in a red coat"]).shape[1] < 40
    assert model.count_tokens("red " * 80) == (41, 40)


def test_without_the_refiner():
    model = build(refined_weight=0.0)
    assert set(model.losses(batch(model))) == {"itc", "sdm"} and model.refiner is None


@pytest.mark.parametrize("towers", ["clip", "transformers"])
def test_checkpointing_changes_no_gradient(towers: str):
    model = build(towers, random_rounds=False, masking=0.0)
    data = batch(model)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        sum(model.losses(data).values()).backward()
        gradients.append(model.text_projection.weight.grad.clone())
        model.checkpoint_activations()
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_adapters_train_and_the_language_model_does_not():
    pytest.importorskip("peft")
    model = build(lora=2)
    sum(model.losses(batch(model)).values()).backward()
    trained = {name for name, p in model.towers.language.named_parameters() if p.grad is not None}
    assert trained and all("lora_" in name for name in trained)
    assert any(p.grad is not None for p in model.towers.vision.parameters())


def test_parameter_groups_hold_everything_once_and_decay_matrices_and_temperature():
    model = build(head_lr=5.0, weight_decay=0.02)
    groups = model.parameter_groups(model.config)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    where = {id(p): (g["lr"] / model.config.lr, g["weight_decay"] > 0) for g in groups for p in g["params"]}
    assert where[id(model.logit_scale)] == pytest.approx((5.0, True))
    assert where[id(model.refiner.attr_query_token)] == pytest.approx((5.0, True))
    assert where[id(model.text_projection.bias)] == pytest.approx((5.0, False))
    assert where[id(model.towers.language.norm.weight)] == pytest.approx((1.0, False))
    position = [p for name, p in model.named_parameters() if "continuous_position_bias_mlp" in name]
    assert position and not any(where[id(p)][1] for p in position)  # official: nothing called a bias decays


# -- end to end --------------------------------------------------------------------------------------------------------


def measured(model: DiaNA, data: PersonData, rounds: int = 0) -> float:
    """mAP of the training people's dialogues, cut to so many rounds."""
    encoder = Encoder(model, data_pixels(data, model.image_size))
    return evaluate(encoder, [dialogue_task(data, "train", rounds)])[0][0]["mAP"]


def test_training_learns_and_later_rounds_help(toy_root, tmp_path):
    data = load("toy", toy_root)
    few = {"lr": 3e-4, "weight_decay": 0.02, "warmup_epochs": 0.5, "masking": 0.0, "refined_weight": 1.0}
    config = DianaConfig.preset("toy", epochs=6, **few)  # the preset is tuned for far more people
    model = DiaNA(config)
    before = measured(model, data)
    list(train(model, data, config, tmp_path, select=[]))
    first, whole = measured(model, data, rounds=1), measured(model, data)
    assert whole > before + 4 and whole > first + 8, (before, first, whole)


def test_both_stages_with_language_models_and_what_a_run_remembers(toy_root, monkeypatch, tmp_path):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path))
    tiny = {"towers": "transformers", "max_steps": 4, "system": ""} | TINY
    data = load("toy", toy_root)
    pretraining = DianaPretrainConfig.preset("toy", **tiny)
    list(train(DiaNAPretrain(pretraining), data, pretraining, tmp_path / "one", select=[text_task(data, "val")]))
    first = load_model("one")
    config = DianaConfig.preset("toy", **tiny)
    model = DiaNA(config)
    model.start_from(first.state_dict())
    rows = list(train(model, data, config, tmp_path / "two", select=[dialogue_task(data, "val")]))
    again = load_model("two")
    assert type(first) is DiaNAPretrain and first.config == pretraining
    assert type(again) is DiaNA and again.config == config
    assert math.isfinite(rows[-1]["refined_sdm"]) and not torch.equal(again.logit_scale, first.logit_scale)
    assert trained("diana-1") == [("one", "")] and trained("diana") == [("two", "")]


# -- towers and settings -----------------------------------------------------------------------------------------------


def test_the_untrained_clip_variant_compares_as_clip_does():
    model = build("clip").eval()
    ids, images = model.tokenize(["a man in a red coat"]), torch.randn(2, 3, 128, 64)
    with torch.no_grad():
        ours = model.embed_text(ids) @ model.embed_image(images).T
        clip = model.towers.clip
        theirs = cosine_similarity(clip.encode_text(clip.tokenize(["a man in a red coat"])), clip.encode_image(images))
    torch.testing.assert_close(ours[0], theirs, atol=1e-5, rtol=1e-4)


def test_the_published_sizes_build_without_a_download():
    from transformers import LlamaConfig, LlamaModel, Swinv2Config, Swinv2Model

    with Unfilled():
        vision = Swinv2Model(Swinv2Config(**SWINV2["swinv2-base-random"]))
    with torch.device("meta"):  # shapes without memory
        language = LlamaModel(LlamaConfig(**LLAMA["llama-3.2-1b-random"]))
    assert vision.num_features == 1024
    assert sum(p.numel() for p in language.parameters()) == pytest.approx(1.236e9, rel=1e-3)


def test_stochastic_depth_is_the_same_in_every_block():
    model = build(drop_path=0.3)
    rates = [block.drop_path.drop_prob for stage in model.towers.vision.encoder.layers for block in stage.blocks]
    assert rates == [0.3] * len(rates)


def test_towers_read_from_a_folder(tmp_path):
    from reidlib.tests.test_dialogues import llama3_like, tiny_llama

    tiny_llama(300).save_pretrained(llama3_like(tmp_path))
    towers = TransformerTowers.by_name("toy", str(tmp_path), (128, 64))
    with torch.no_grad():
        features = towers.encode_text(towers.tokenize(TALKS[:2]))
    assert features.dense.shape[-1] == towers.text_width == 16


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"mode": "both"}, "mode should be 'global', 'local' or 'all' and got 'both'"),
        ({"mode": "local", "refined_weight": 0.0}, "refined_weight above 0"),
        ({"mode": "all", "reduction": "max"}, "reduction 'avg'"),
    ],
)
def test_settings_that_do_not_fit_are_named(fields: dict, told: str):
    with pytest.raises(ConfigError, match=told):
        build(**fields)
