"""The CLIP backbone by name, its tokenizer, the toy weights, and the baseline end to end."""

import pytest
import torch

from reidlib.backbones import create_clip
from reidlib.backbones.openai import clip_like
from reidlib.backbones.toy import WEIGHTS, pretrain
from reidlib.data import load
from reidlib.data.batches import data_pixels
from reidlib.errors import CheckpointError, ConfigError, ReidError
from reidlib.evaluation import Encoder, evaluate
from reidlib.evaluation.protocols import text_task
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.training import fit


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
    with pytest.raises(ConfigError, match="did you mean 'ViT-B-16'"):
        create_clip("ViTB16")
    with pytest.raises(ConfigError, match="has no weights 'opanai'"):
        create_clip("ViT-B-16", pretrained="opanai")


def test_weights_that_cannot_be_fetched_are_one_sentence(tmp_path):
    broken = tmp_path / "weights.pt"
    broken.write_bytes(b"not weights")
    with pytest.raises(ReidError, match="could not be loaded"):
        create_clip("ViT-S-32-alt", pretrained=str(broken))


def test_weights_from_a_file(tmp_path):
    clip = create_clip("ViT-S-32-alt", (64, 64))
    torch.save(clip.model.state_dict(), tmp_path / "weights.pt")
    again = create_clip("ViT-S-32-alt", (64, 64), pretrained=str(tmp_path / "weights.pt"))
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
    rows = list(fit(model, data, config, tmp_path, select=[]))
    after = evaluate(Encoder(model, data_pixels(data, config.image_size)), [task])[0][0]["mAP"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert after > before + 10


def test_a_checkpoint_that_asks_for_far_more_than_it_holds():
    state = {
        "visual.conv1.weight": torch.zeros(64, 3, 16, 16),
        "visual.positional_embedding": torch.zeros(5, 64),
        "positional_embedding": torch.zeros(300_000, 1),  # its causal mask would take 360 GB
    }
    with pytest.raises(CheckpointError, match="holds .* numbers and its shapes ask for a model of 90,0"):
        clip_like(state)
