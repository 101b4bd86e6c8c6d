"""CLIP's tokens and attention agree with those that OpenAI's implementation computed."""

import pytest
import torch
from torch.testing import assert_close

from reidlib.backbones.clip import CLIP
from reidlib.backbones.openai import clip_like
from reidlib.tests.golden_arrays import arrays, under, wave_embedding


@pytest.fixture(scope="module")
def clip() -> CLIP:
    found = arrays("clip_tokens")
    state = under(found, "param/")
    state["token_embedding.weight"] = wave_embedding(49408, state["positional_embedding"].shape[1])
    clip = clip_like(state, image_size=tuple(found["in/images"].shape[-2:]))
    missing, unexpected = clip.model.load_state_dict(state, strict=False)
    assert missing == ["logit_scale"] and not unexpected
    return clip.eval()


@torch.no_grad()
@pytest.mark.parametrize("side", ["image", "text"])
def test_tokens_and_attention(clip: CLIP, side: str):
    found = arrays("clip_tokens")
    if side == "image":
        tokens, attention = clip.image_tokens(found["in/images"], attention=True)
    else:
        tokens, attention = clip.text_tokens(found["in/caption_ids"], attention=True)
    assert_close(tokens, found[f"out/{side}_tokens"], atol=1e-4, rtol=1e-5)
    assert_close(attention, found[f"out/{side}_attention"], atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_pooled_features_are_single_tokens(clip: CLIP):
    found = arrays("clip_tokens")
    ids = found["in/caption_ids"]
    assert_close(clip.encode_image(found["in/images"]), found["out/image_tokens"][:, 0], atol=1e-4, rtol=1e-5)
    words = found["out/text_tokens"][torch.arange(len(ids)), ids.argmax(dim=1)]
    assert_close(clip.encode_text(ids), words, atol=1e-4, rtol=1e-5)
