"""InteractReID against arrays that the official implementation computed."""

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from reidlib.backbones.clip import CLIP
from reidlib.methods.interactreid import (
    InteractReIDInvert,
    InvertConfig,
    adaptation_losses,
    inversion_losses,
)
from reidlib.official import NAMES, renamed
from reidlib.tests.golden_arrays import arrays, under, wave_embedding
from reidlib.weights import load_state

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
TEXT_HEADS = 4


@pytest.fixture(scope="module")
def found() -> dict[str, torch.Tensor]:
    return arrays("interactreid")


def features(found) -> list[torch.Tensor]:
    return [found[f"in/{kind}_features"].clone().requires_grad_() for kind in ("image", "sketch", "text")]


def losses(found, alpha: float, views) -> dict[str, torch.Tensor]:
    return adaptation_losses(*views, found["in/ids"], found["in/logit_scale_log"].exp(), alpha)


@pytest.mark.parametrize("alpha", ["0.0", "0.25", "0.5"])
@pytest.mark.parametrize("name", ["nitc", "nisc", "ritc"])
def test_stage1_loss(found, alpha, name):
    ours = losses(found, float(alpha), features(found))[name]
    torch.testing.assert_close(ours, found[f"out/{name}_loss_alpha{alpha}"], **CLOSE)


def test_stage1_gradients(found):
    views = features(found)
    total = sum(losses(found, 0.5, views).values())
    torch.testing.assert_close(total, found["out/total_alpha0.5"], **CLOSE)
    total.backward()
    for view, kind in zip(views, ("image", "sketch", "text"), strict=True):
        torch.testing.assert_close(view.grad, found[f"out/grad_{kind}_features_alpha0.5"], **CLOSE)


@pytest.fixture(scope="module")
def model(found) -> InteractReIDInvert:
    """The text tower and the mapping of the arrays beside an image tower that is not used."""
    length, width = found["param/text.positional_embedding"].shape
    depth = sum(name.endswith(".ln_1.weight") for name in found)
    clip = open_clip.CLIP(
        found["param/text.text_projection"].shape[1],
        {"width": 64, "layers": 1, "patch_size": 16, "image_size": (32, 32)},
        {"context_length": length, "width": width, "heads": TEXT_HEADS, "layers": depth},
        quick_gelu=True,
    )
    hidden = len(found["param/mapping.layers.0.0.weight"])
    config = InvertConfig(image_size=(32, 32), mapping_width=hidden)
    model = InteractReIDInvert(config, clip=CLIP(clip, open_clip.SimpleTokenizer(context_length=length)))
    state = {name.replace("text.", "encode_text.", 1): value for name, value in under(found, "param/").items()}
    state["encode_text.token_embedding.weight"] = wave_embedding(49408, width)
    load_state(model, renamed(state, NAMES["tbps"]), optional=("clip.model.visual.", "clip.model.logit_scale"))
    return model.eval()


def test_pseudo_word(found, model):
    torch.testing.assert_close(
        model.mapping(found["in/stage2_sketch_features"]), found["out/stage2_pseudo_word"], **CLOSE
    )


def test_pseudo_text_and_composed_and_plain_features(found, model):
    words = found["out/stage2_pseudo_word"]
    prompt = found["in/stage2_prompt_tokens"].expand(len(words), -1)
    for ours, name in (
        (model.embed_prompts(words, prompt), "pseudo_text"),
        (model.embed_prompts(words, found["in/stage2_composed_tokens"]), "composed"),
        (model.embed_text(found["in/tokens"]), "plain_text"),
    ):
        torch.testing.assert_close(ours, normalize(found[f"out/stage2_{name}_features"], dim=-1), **CLOSE)


def test_plain_text_features_before_normalisation(found, model):
    torch.testing.assert_close(
        model.clip.encode_text(found["in/tokens"]), found["out/stage2_plain_text_features"], **CLOSE
    )


def test_stage2_losses(found, model):
    ours = inversion_losses(
        found["in/stage2_photo_features"],
        found["in/stage2_sketch_features"],
        found["out/stage2_pseudo_text_features"],
        found["in/stage2_logit_scale_log"].exp(),
    )
    torch.testing.assert_close(ours["inversion"], found["out/stage2_inversion_loss"], **CLOSE)
    torch.testing.assert_close(ours["alignment"], found["out/stage2_token_align_loss"], **CLOSE)
