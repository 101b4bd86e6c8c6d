"""InteractReID's two stages on a tiny CLIP: passes, placement of the pseudo-word, freezing, composition."""

import dataclasses

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from reidlib.backbones.clip import CLIP
from reidlib.data import load
from reidlib.data.batches import data_pixels
from reidlib.errors import ConfigError
from reidlib.evaluation import Encoder, evaluate
from reidlib.evaluation.tasks import composed_task, sketch_task, text_task
from reidlib.methods import interactreid
from reidlib.methods.interactreid import (
    COMPOSITIONS,
    PKU_SKETCH,
    AdaptConfig,
    InteractReIDAdapt,
    InteractReIDInvert,
    InvertConfig,
    adaptation_losses,
    inversion_losses,
)
from reidlib.models import load_model
from reidlib.query import Query
from reidlib.tests.training import train

SIZE = (32, 16)
WORDS = ["a man in a red shirt", "a woman with a blue bag", "somebody in black trousers", "a boy who wears a cap"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads only wait for each other on tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_clip() -> CLIP:
    torch.manual_seed(0)
    vision = {"width": 64, "head_width": 64, "layers": 1, "patch_size": 8, "image_size": SIZE}
    model = open_clip.CLIP(32, vision, {"width": 32, "heads": 1, "layers": 1}, quick_gelu=True)
    return CLIP(model, open_clip.SimpleTokenizer())


def adapt(**overrides) -> InteractReIDAdapt:
    return InteractReIDAdapt(AdaptConfig(image_size=SIZE).replace(**overrides), clip=tiny_clip())


def invert(**overrides) -> InteractReIDInvert:
    return InteractReIDInvert(InvertConfig(image_size=SIZE, mapping_width=48).replace(**overrides), clip=tiny_clip())


def batch_for(model, n: int = 4, progress: float = 2.0) -> dict:
    draw = torch.Generator().manual_seed(1)
    photos = torch.randn(n, 3, *SIZE, generator=draw)
    return {
        "images": photos,
        "sketch": photos.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1) + 0.1,
        "text": model.tokenize([f"{WORDS[i % 4]} {i}" for i in range(n)]),
        "pids": torch.arange(n) // 2,
        "image_ids": torch.arange(n),
        "progress": progress,
    }


@pytest.fixture(scope="module")
def stage2() -> InteractReIDInvert:
    return invert().eval()


# -- stage 1 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "training", "progress", "passes"),
    [
        ({}, True, 2.0, 2),
        ({}, True, 0.0, 1),  # alpha is 0: there is nothing to soften
        ({}, False, 2.0, 1),
        ({"text_dropout": 0.0}, True, 2.0, 1),
        ({"second_pass": False}, True, 2.0, 1),
        ({"alpha": 0.0}, True, 2.0, 1),
    ],
)
def test_second_text_pass_only_where_dropout_asks_for_it(monkeypatch, overrides, training, progress, passes):
    model = adapt(**overrides).train(training)
    calls = {"text": [], "image": []}
    text, image = model.clip.encode_text, model.clip.encode_image
    monkeypatch.setattr(
        model.clip, "encode_text", lambda ids: calls["text"].append(torch.is_grad_enabled()) or text(ids)
    )
    monkeypatch.setattr(
        model.clip, "encode_image", lambda pictures: calls["image"].append(len(pictures)) or image(pictures)
    )
    model.losses(batch_for(model, progress=progress))
    assert calls["text"] == [True, False][:passes]
    assert calls["image"] == [8], "photos and sketches share one pass"


@pytest.mark.parametrize(("progress", "alpha"), [(0.0, 0.0), (0.5, 0.25), (1.0, 0.5), (3.7, 0.5)])
def test_alpha_rises_during_the_first_epoch(progress, alpha):
    model = adapt().eval()
    batch = batch_for(model, progress=progress)
    views = [model.clip.encode_image(batch["images"]), model.clip.encode_image(batch["sketch"])]
    expected = adaptation_losses(
        *views, model.clip.encode_text(batch["text"]), batch["pids"], model.clip.logit_scale.exp(), alpha
    )
    for name, value in model.losses(batch).items():
        torch.testing.assert_close(value, expected[name])


def test_losses_use_the_features_and_identities_of_all_processes(monkeypatch):
    model = adapt().eval()
    batch = batch_for(model)
    alone = model.losses(batch)
    monkeypatch.setattr("reidlib.methods.interactreid.gather", lambda tensor: torch.cat([tensor, tensor]))
    assert model.losses(batch)["nitc"] > alone["nitc"] + 0.3, "each row has twice as many candidates"


def test_weights_of_the_losses_and_the_frozen_convolution():
    model, plain = adapt(), adapt(ritc_weight=0.0, freeze_patches=False)
    assert plain.losses(batch_for(plain))["ritc"] == 0
    sum(model.losses(batch_for(model)).values()).backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == {"clip.model.visual.conv1.weight"}
    assert plain.clip.model.visual.conv1.weight.requires_grad


def overfit(model, steps: int, lr: float) -> tuple[float, float]:
    batch = batch_for(model, n=8)
    optimiser = torch.optim.AdamW(model.parameter_groups(model.config.replace(lr=lr)))
    values = []
    for _ in range(steps):
        loss = sum(model.losses(batch).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    return values[0], sum(values[-3:]) / 3


def test_stage1_learns_eight_samples():
    first, last = overfit(adapt(alpha=0.0).train(), steps=25, lr=3e-3)
    assert last < 0.5 * first


def test_stage1_without_captions_is_photos_and_sketches_alone():
    model, whole = adapt(captions=False).eval(), adapt().eval()
    assert model.trains_on == ("sketch",) and whole.trains_on == ("text", "sketch")
    batch = batch_for(whole)
    expected = whole.losses(batch)["nisc"]
    del batch["text"]
    assert model.losses(batch).keys() == {"nisc"}
    torch.testing.assert_close(model.losses(batch)["nisc"], expected)


# -- stage 2 -------------------------------------------------------------------------------------------------------


def test_stage2_learns_eight_samples_and_leaves_the_words_alone():
    model = invert().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, last = overfit(model, steps=60, lr=1e-3)
    assert last < 0.7 * first
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "mapping.fc_out.weight" in changed
    assert all(name.startswith(("mapping.", "clip.model.visual.")) for name in changed)
    assert "clip.model.visual.conv1.weight" not in changed


def test_mapping_learns_ten_times_faster():
    model = invert()
    rates = {p: group["lr"] for group in model.parameter_groups(model.config) for p in group["params"]}
    mapping = set(model.mapping.parameters())
    assert set(rates) == {p for p in model.parameters() if p.requires_grad}
    for parameter, rate in rates.items():
        assert rate == pytest.approx(model.config.lr * (10 if parameter in mapping else 1))


def test_dropout_of_the_frozen_text_tower_is_active_unless_turned_off():
    for dropout, equal in ((0.3, False), (0.0, True)):
        model = invert(text_dropout=dropout, mapping_dropout=0.0).train()
        words = torch.randn(2, 32)
        assert torch.equal(model.embed_pseudo_text(words), model.embed_pseudo_text(words)) is equal
        assert torch.equal(model.eval().embed_pseudo_text(words), model.embed_pseudo_text(words))


def test_stage2_losses_come_from_their_features(stage2):
    batch = batch_for(stage2)
    photos, sketches = (stage2.clip.encode_image(batch[name]) for name in ("images", "sketch"))
    words = stage2.embed_pseudo_text(stage2.mapping(sketches))
    expected = inversion_losses(photos, sketches, words, stage2.clip.logit_scale.exp())
    del batch["text"]  # this stage learns without words
    for name, value in stage2.losses(batch).items():
        torch.testing.assert_close(value, expected[name])


def test_stage2_starts_from_a_copy_of_stage1():
    adapted = adapt()
    model = InteractReIDInvert.from_stage1(InvertConfig(image_size=SIZE, mapping_width=8), adapted)
    pictures = batch_for(adapted)["images"]
    assert torch.equal(model.eval().embed_image(pictures), adapted.eval().embed_image(pictures))
    model.clip.model.visual.proj.data.zero_()
    assert adapted.clip.model.visual.proj.abs().sum() > 0
    assert all(p.requires_grad for name, p in adapted.named_parameters() if "conv1" not in name)
    with pytest.raises(ConfigError, match="image_size"):
        InteractReIDInvert.from_stage1(InvertConfig(image_size=(64, 32)), adapted)


# -- the pseudo-word's place ---------------------------------------------------------------------------------------

prompt_rows = st.lists(
    st.tuples(st.lists(st.integers(1, 49000), max_size=9), st.lists(st.integers(1, 49000), max_size=9)),
    min_size=1,
    max_size=5,
)


@given(prompt_rows)
@settings(max_examples=10, deadline=None)
def test_pseudo_word_stands_at_the_first_star_of_any_row(stage2, rows):
    star, start, end = stage2.placeholder, 49406, 49407
    longest = max(len(before) + len(after) for before, after in rows) + 3
    ids = torch.zeros(len(rows), longest + 2, dtype=torch.long)
    for i, (before, after) in enumerate(rows):
        row = [start, *before, star, *after, end]
        ids[i, : len(row)] = torch.tensor(row)
    words = torch.randn(len(rows), 32)
    together = stage2.embed_prompts(words, ids)
    for i, (before, after) in enumerate(rows):
        row = torch.tensor([[start, *before, star, *after, end]])
        embedded = stage2.clip.embed_tokens(row).clone()
        embedded[0, row[0].tolist().index(star)] = words[i]
        alone = normalize(stage2.clip.encode_text(row, embedded=embedded), dim=-1)[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-4)


def prompted(model, texts):
    """The prompts that `compose` should read, tokenised whole."""
    return model.clip.tokenize([f"a photo of * , and {text}" if text.strip() else "a photo of *" for text in texts])


def test_prompt_ids_are_those_of_the_official_tokenizer(stage2):
    assert stage2.prompt.tolist() == [[49406, 320, 1125, 539, 265, 49407]]
    ids = stage2._prompted(stage2.tokenize(["a black hat"]))
    assert ids[0, :8].tolist() == [49406, 320, 1125, 539, 265, 267, 537, 320]


@pytest.mark.parametrize("texts", [["a black hat", " ", "a man in a long red coat"], [" "], ["hat " * 80, "hat"]])
def test_a_sentence_follows_the_prompt_as_if_read_at_once(stage2, texts):
    ours, whole = stage2._prompted(stage2.tokenize(texts)), prompted(stage2, texts)
    assert torch.equal(ours, whole[:, : ours.shape[1]])
    assert not whole[:, ours.shape[1] :].any()


def test_nearest_words_of_a_real_word_is_itself(stage2):
    ids = stage2.clip.tokenize(["umbrella", "shirt"])[:, 1]
    found = stage2.nearest_words(3 * stage2.clip.embed_tokens(ids), k=3)
    assert [row[0][0] for row in found] == ["umbrella", "shirt"]
    assert all(row[0][1] == pytest.approx(1, abs=1e-5) and len(row) == 3 for row in found)


def test_nearest_words_among_those_of_some_texts(stage2):
    word = stage2.clip.embed_tokens(stage2.clip.tokenize(["umbrella"])[:, 1])
    [found] = stage2.nearest_words(word, k=9, among=["a red shirt", "a shirt"])
    assert sorted(name for name, _ in found) == ["a", "red", "shirt"]


# -- composition ---------------------------------------------------------------------------------------------------


def made(model, sketches, texts, composition=""):
    """What `compose` makes of sketches and texts; composition: to use in place of the config's."""
    own = model.config
    if composition:
        model.config = own.replace(composition=composition)
    try:
        return model.compose({"text": model.tokenize(texts), "sketch": sketches})
    finally:
        model.config = own


def test_compositions(stage2):
    sketches = batch_for(stage2)["sketch"]
    by = {name: made(stage2, sketches, WORDS, name) for name in COMPOSITIONS}
    total = stage2.embed_sketch(sketches) + stage2.embed_text(stage2.tokenize(WORDS))
    torch.testing.assert_close(by["sum"], normalize(total, dim=-1))
    words = stage2.pseudo_words(sketches)
    torch.testing.assert_close(by["pseudo-text"], stage2.embed_prompts(words, prompted(stage2, [""] * 4)))
    torch.testing.assert_close(by["pseudo-word"], stage2.embed_prompts(words, prompted(stage2, WORDS)))
    for features in by.values():
        torch.testing.assert_close(features.norm(dim=1), torch.ones(4))


def test_a_query_of_sketch_and_text_is_composed(stage2):
    sketches = torch.randint(256, (4, 3, *stage2.image_size), dtype=torch.uint8)
    queries = [Query(text=text, sketch=sketch) for text, sketch in zip(WORDS, sketches, strict=True)]
    torch.testing.assert_close(stage2.embed(queries), made(stage2, stage2.pixels(sketches), WORDS))


def test_unknown_composition_is_refused():
    with pytest.raises(
        ConfigError, match="composition should be 'pseudo-word', 'sum' or 'pseudo-text' and got 'pseudoword'"
    ):
        invert(composition="pseudoword")


def test_silent_feedback_is_the_sketch_alone(stage2):
    sketches = batch_for(stage2)["sketch"][:1]
    alone = made(stage2, sketches, [" "])
    torch.testing.assert_close(alone, stage2.embed_pseudo_text(stage2.pseudo_words(sketches)))


def test_both_the_sketch_and_the_sentence_matter(stage2):
    sketches = batch_for(stage2)["sketch"]
    here = made(stage2, sketches, WORDS)
    assert (here - made(stage2, sketches.flip(0), WORDS)).abs().max() > 1e-4
    assert (here - made(stage2, sketches, WORDS[::-1])).abs().max() > 1e-4


def test_stage1_composes_by_sum():
    model = adapt().eval()
    sketches, ids = batch_for(model)["sketch"], model.tokenize(WORDS)
    total = model.embed_sketch(sketches) + model.embed_text(ids)
    torch.testing.assert_close(model.compose({"text": ids, "sketch": sketches}), normalize(total, dim=-1))


def test_similarities_stay_float32_under_autocast():
    features = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = interactreid._cosines(features.bfloat16(), features.bfloat16())
    exact = normalize(features.bfloat16().float(), dim=1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, exact @ exact.T)


# -- captions, presets ------------------------------------------------------------------------------------


def test_cleaning_is_an_option():
    said = ["A Man; (tall)."]
    assert torch.equal(adapt().tokenize(said), adapt().tokenize(["a man tall"]))
    kept = adapt(clean_captions=False)
    assert not torch.equal(kept.tokenize(said), kept.tokenize(["a man tall"]))
    assert torch.equal(invert(clean_captions=True).tokenize(said), invert().tokenize(["a man tall"]))


def test_published_settings():
    one, two = AdaptConfig.paper(), InvertConfig.paper()
    assert one.batch_size == 240
    assert (one.lr * one.warmup_from, one.lr, one.lr * one.end_factor) == pytest.approx((1e-6, 1e-4, 5e-6))
    assert (two.lr * two.warmup_from, two.lr, two.lr * two.end_factor) == pytest.approx((1e-6, 1e-5, 5e-6))
    assert (one.epochs, one.warmup_epochs, two.epochs, two.warmup_epochs) == (5, 1, 20, 5)
    assert two.batch_size == 32 and two.replace(**PKU_SKETCH).batch_size == 16
    assert InteractReIDAdapt.mean == (0.485, 0.456, 0.406)


# -- both stages, end to end ---------------------------------------------------------------------------------------


def test_both_stages_learn_to_find_the_people_they_train_on(toy_root, tmp_path, monkeypatch):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path))
    data = load("toy", toy_root)
    adapted = InteractReIDAdapt(AdaptConfig.preset("toy", epochs=8, batch_size=32))
    pixels = data_pixels(data, adapted.image_size)
    sketched, said, both = sketch_task(data, "train"), text_task(data, "train"), composed_task(data, "train")

    def found(model) -> dict[str, float]:
        rows, _ = evaluate(Encoder(model, pixels), [sketched, said, both])
        return {row["task"]: row["mAP"] for row in rows}

    before = found(adapted)
    list(train(adapted, data, adapted.config, tmp_path / "one"))
    after = found(load_model("one"))
    assert after["s2i"] > 1.3 * before["s2i"] and after["t2i"] > 1.3 * before["t2i"]

    torch.manual_seed(0)
    inverted = InteractReIDInvert.from_stage1(InvertConfig.preset("toy", epochs=8, lr=1e-4), load_model("one"))
    silent = tuple(dataclasses.replace(query, text=" ") for query in both.queries)
    silent = dataclasses.replace(both, name="st2i silent", queries=silent)

    def composed(model) -> dict[str, float]:
        return {row["task"]: row["mAP"] for row in evaluate(Encoder(model, pixels), [both, silent])[0]}

    untrained = composed(inverted)
    list(train(inverted, data, inverted.config, tmp_path / "two"))
    inverted = load_model("two")
    assert inverted.name == "interactreid"
    trained = composed(inverted)
    assert trained["st2i silent"] > 2 * untrained["st2i silent"], "the pseudo-word leads to the person drawn"
    assert trained["st2i"] > untrained["st2i"] + 1, "also beside a sentence it tells more than noise in its place"
    assert trained["st2i"] > trained["st2i silent"] + 5, "and the sentence is heard"
