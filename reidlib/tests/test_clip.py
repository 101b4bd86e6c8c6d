"""The CLIP backbone by name, its tokenizer, the toy weights, and the baseline end to end."""

import math

import pytest
import torch
from PIL import Image
from torch import Tensor

from reidlib.backbones import create_clip
from reidlib.backbones.clip import MASK_ID, augment_tokens, mask_tokens
from reidlib.backbones.openai import clip_like
from reidlib.backbones.toy import WEIGHTS
from reidlib.backbones.toy_recipe import pretrain
from reidlib.data import load
from reidlib.data.batches import data_pixels
from reidlib.errors import CheckpointError, ConfigError, ReidError
from reidlib.evaluation import Encoder, evaluate
from reidlib.evaluation.tasks import text_task
from reidlib.methods.base import learnt_scale
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.query import Query
from reidlib.tests.training import train


@pytest.fixture(scope="module")
def clip():
    return create_clip("toy").eval()


def test_captions_are_padded_and_read_back(clip):
    ids = clip.tokenize(["a man", "A woman in a RED coat!"])
    assert ids.shape == (2, 77)
    assert clip.words(ids[1]) == ["<start_of_text>", "a", "woman", "in", "a", "red", "coat", "!", "<end_of_text>"]
    assert (ids != 0).sum(dim=1).tolist() == [4, 9]
    assert clip.count_tokens("a man") == (4, 77)


def test_a_cut_caption_is_said_and_keeps_its_end(clip):
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 77 tokens"):
        ids = clip.tokenize(["a man", "red " * 100])
    assert ids[1, -1] == 49407 and (ids[1] != 0).all()


def test_padding_changes_nothing(clip):
    ids = clip.tokenize(["a man in a red coat", "a woman with a long blue skirt and a handbag"])
    with torch.no_grad():
        full = clip.text_tokens(ids).tokens[torch.arange(2), ids.argmax(dim=1)]
        torch.testing.assert_close(clip.encode_text(ids), full, atol=1e-5, rtol=1e-4)


def test_a_caption_embeds_alike_alone_and_beside_a_longer_one(clip):
    words = "a red coat!(long)"  # its "!(" holds a piece of id 0, which also pads
    ids = clip.tokenize([words, "a woman with a long blue skirt, white shoes and a handbag"])
    assert (ids[0, : ids[0].argmax()] == 0).any()
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_text(ids[:1]), clip.encode_text(ids)[:1], atol=1e-5, rtol=1e-4)


def test_own_embeddings_in_place_of_looked_up_ones(clip):
    ids = clip.tokenize(["a man in a red coat"])
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_text(ids, embedded=clip.embed_tokens(ids)), clip.encode_text(ids))


def test_attention_is_given_on_request_and_changes_nothing(clip):
    images = torch.randn(2, 3, 128, 64)
    with torch.no_grad():
        plain, seen = clip.image_tokens(images), clip.image_tokens(images, attention=True)
    assert plain.attention is None
    assert seen.attention.shape == (2, 33, 33)
    torch.testing.assert_close(seen.attention.sum(dim=-1), torch.ones(2, 33))
    torch.testing.assert_close(plain.tokens, seen.tokens, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain.tokens[:, 0], clip.encode_image(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 32), (192, 96)])
def test_the_toy_clip_at_other_sizes(size):
    clip = create_clip("toy", size)
    assert clip.image_size == size and clip.grid == (size[0] // 16, size[1] // 16)
    assert clip.encode_image(torch.randn(1, 3, *size)).shape == (1, clip.embed_dim)


def test_an_open_clip_model_by_name_at_a_rectangular_size():
    clip = create_clip("ViT-S-32-alt", (128, 64))
    assert clip.grid == (4, 2)
    assert clip.image_tokens(torch.randn(1, 3, 128, 64)).tokens.shape == (1, 9, clip.embed_dim)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="the nearest is 'ViT-B-16'"):
        create_clip("ViTB16")
    with pytest.raises(ConfigError, match="has no weights 'opanai'"):
        create_clip("ViT-B-16:opanai")


def test_weights_that_cannot_be_fetched_are_one_sentence(tmp_path):
    broken = tmp_path / "weights.pt"
    broken.write_bytes(b"not weights")
    with pytest.raises(ReidError, match="could not be loaded"):
        create_clip(f"ViT-S-32-alt:{broken}")


def test_weights_from_a_file(tmp_path):
    clip = create_clip("ViT-S-32-alt", (64, 64))
    torch.save(clip.model.state_dict(), tmp_path / "weights.pt")
    again = create_clip(f"ViT-S-32-alt:{tmp_path / 'weights.pt'}", (64, 64))
    assert torch.equal(again.model.visual.conv1.weight, clip.model.visual.conv1.weight)


def test_shipped_weights_are_small_and_unseen_words_are_the_same_everywhere():
    assert WEIGHTS.stat().st_size < 5e6
    word = create_clip("toy").embed_tokens(torch.tensor([[12345]]))
    assert torch.equal(word, create_clip("toy").embed_tokens(torch.tensor([[12345]])))


def test_the_recipe_learns_and_repeats_itself():
    losses = []
    first = pretrain(pictures=96, epochs=3, report=lambda step, loss: losses.append(loss))
    again = pretrain(pictures=96, epochs=3, report=lambda step, loss: None)
    assert losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_fine_tuning_learns_its_people(toy_root, tmp_path):
    data = load("toy", toy_root)
    config = ClipConfig.preset("toy", epochs=4)
    model = Clip(config)
    task = text_task(data, "train")
    before = evaluate(Encoder(model, data_pixels(data, config.image_size)), [task])[0][0]["mAP"]
    rows = list(train(model, data, config, tmp_path, select=[]))
    after = evaluate(Encoder(model, data_pixels(data, config.image_size)), [task])[0][0]["mAP"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert after > before + 10


@pytest.mark.parametrize("start", [math.log(100), math.log(100) + 1])
def test_the_temperature_learns_where_it_starts_at_clips_own(start):
    """At ln 100 a clamp of the scale has no gradient, and the parameter would stand still for ever."""
    scale = torch.nn.Parameter(torch.tensor(start))
    optimiser = torch.optim.SGD([scale], lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        (value := learnt_scale(scale)).backward()
        assert float(value) <= 100.0001 and float(scale.grad) == pytest.approx(float(value))
        optimiser.step()
    assert float(scale) < math.log(100) - 0.2
    model = Clip(ClipConfig(loss="itc", backbone="toy-random", temperature=0.0))
    assert model.clip.logit_scale.requires_grad
    assert not Clip(ClipConfig(loss="itc", backbone="toy-random")).clip.logit_scale.requires_grad


def test_the_papers_learning_rates():
    """IRRA's: biases twice as fast and without decay, everything else decays, norms too."""
    config = ClipConfig.paper()
    model = Clip(config.replace(backbone="toy-random", positions="bicubic", image_size=(128, 64)))
    rates = {p: (g["lr"], g["weight_decay"]) for g in model.parameter_groups(config) for p in g["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[parameter] == ((2e-5, 0.0) if "bias" in name else (1e-5, 4e-5)), name
    toy = {(g["lr"], g["weight_decay"]) for g in model.parameter_groups(ClipConfig.toy())}
    assert toy == {(6e-4, 0.05), (6e-4, 0.0)}


@pytest.mark.parametrize("loss", ["itc", "sdm"])
def test_logits_stay_float32_under_autocast(loss, monkeypatch):
    model = Clip(ClipConfig(loss=loss, backbone="toy-random"))
    photos, texts = torch.nn.functional.normalize(torch.randn(2, 32, 16), dim=2)
    monkeypatch.setattr(model, "embed_image", lambda images: photos)
    monkeypatch.setattr(model, "embed_text", lambda ids: texts)
    batch = {"images": None, "text": None, "pids": torch.arange(32) // 2}
    expected = model.losses(batch)["t2i"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.losses(batch)["t2i"], expected)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_on_a_cpu_a_model_embeds_in_float32_whatever_it_was_trained_in(precision):
    model = Clip(ClipConfig(backbone="toy-random"))
    pictures, queries = [Image.new("RGB", (40, 80), "red")] * 2, [Query(text="a man in red")] * 2
    expected = Encoder(model).images(pictures), Encoder(model).queries(queries)
    model.config = model.config.replace(precision=precision)
    assert torch.equal(Encoder(model).images(pictures), expected[0])
    assert torch.equal(Encoder(model).queries(queries), expected[1])


def test_a_checkpoint_that_asks_for_far_more_than_it_holds():
    state = {
        "visual.conv1.weight": torch.zeros(64, 3, 16, 16),
        "visual.positional_embedding": torch.zeros(5, 64),
        "positional_embedding": torch.zeros(300_000, 1),  # its causal mask would take 360 GB
    }
    with pytest.raises(CheckpointError, match="holds .* numbers and its shapes ask for a model of 90,0"):
        clip_like(state)


# -- words hidden, changed and dropped

START, END = 49406, 49407


def captions(count: int, words: int, length: int = 20) -> Tensor:
    ids = torch.zeros(count, length, dtype=torch.long)
    ids[:, 0], ids[:, words + 1] = START, END
    ids[:, 1 : words + 1] = torch.arange(1000, 1000 + words)
    return ids


def test_augmented_captions_keep_their_ends_and_order():
    torch.manual_seed(0)
    ids = captions(500, words=12)
    changed = augment_tokens(ids, 0.5)
    assert changed.shape == ids.shape and (changed[:, 0] == START).all() and ((changed == END).sum(dim=1) == 1).all()
    for row in changed.tolist():
        end = row.index(END)
        assert 0 not in row[:end] and not any(row[end + 1 :])
        kept = [token for token in row[1:end] if 1000 <= token < 1012]
        assert len(set(kept)) >= len(kept) - 1  # a random word may repeat one, hardly two
        assert all(token <= MASK_ID for token in row[1:end])


def test_augmentation_rates():
    torch.manual_seed(0)
    ids = captions(4000, words=12)
    changed = augment_tokens(ids, 0.2)
    words = 4000 * 12
    dropped = 12 - (changed.argmax(dim=1) - 1)
    masked = (changed == MASK_ID).sum() / words
    kept = ((changed >= 1000) & (changed < 1012)).sum() / words
    assert float(masked) == pytest.approx(0.12, abs=0.01)
    assert float(dropped.sum()) / words == pytest.approx(0.04, abs=0.01)
    assert float(kept) == pytest.approx(0.8, abs=0.01)


def test_masking_rates_and_labels():
    torch.manual_seed(0)
    ids = captions(4000, words=12)
    ids[:, 3] = MASK_ID
    masked, labels = mask_tokens(ids)
    chosen = labels != 0
    assert float(chosen.sum()) / (4000 * 11) == pytest.approx(0.15, abs=0.01)
    assert not chosen[:, [0, 3, 13]].any() and not chosen[:, 14:].any()
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(masked[~chosen], ids[~chosen])
    assert float((masked[chosen] == MASK_ID).float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float((masked[chosen] == ids[chosen]).float().mean()) == pytest.approx(0.1, abs=0.02)


def test_a_caption_may_lose_every_word():
    changed = augment_tokens(captions(200, words=1), 0.999)
    assert (changed[:, 1] == END).any() and ((changed == END).sum(dim=1) == 1).all()
