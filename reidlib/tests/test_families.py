"""One architecture of each family of open_clip: our embeddings are those of its own pipeline, from a PIL picture and a
string on, with random weights at the native size."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from reidlib.backbones.clip import CLIP, create_clip
from reidlib.errors import ConfigError, ReidError
from reidlib.methods.cffa import CFFA, CFFAConfig
from reidlib.methods.cfine import CFine, CFineConfig
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.query import Query

# Names of the published architectures with towers made small: the class, the pooling, the preprocessing are theirs.
SMALLER = {
    "ViT-B-16-SigLIP": {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map"}},
    "ViT-B-16-quickgelu": {"vision_cfg": {"layers": 2, "width": 128}},
    "ViT-L-14": {"vision_cfg": {"layers": 2, "width": 128}},
    "ViT-B-16": {"vision_cfg": {"layers": 2, "width": 128}},
    "EVA02-B-16": {"vision_cfg": {"timm_model_name": "eva02_tiny_patch14_224", "image_size": 224}},
    "convnext_base_w": {"vision_cfg": {"timm_model_name": "convnext_atto", "image_size": 256}},
}
TAGS = {
    "ViT-B-16-quickgelu": "openai",
    "ViT-B-16": "laion2b_s34b_b88k",
    "ViT-L-14": "laion2b_s32b_b82k",
    "ViT-B-16-SigLIP": "webli",
    "MobileCLIP2-S0": "dfndr2b",
    "PE-Core-T-16-384": "meta",
    "EVA02-B-16": "merged2b_s8b_b131k",
    "convnext_base_w": "laion2b_s13b_b82k",
}
SAID = ["a man in a red coat!(long)", "a woman, with a blue bag " + "and a scarf " * 40]


def unigrams(folder):
    """A tokenizer of the kind that SigLIP uses, with few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<pad>", "</s>", "▁a", "▁man", "▁woman", "▁red", "▁coat", "▁in", "▁with", "▁bag", "▁"]
    words += list("abcdefghijklmnopqrstuvwxyz")
    raw = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=0))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """A wide, a tall and a small picture."""
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), np.uint8)) for size in ((240, 500), (390, 130), (64, 48))]


@pytest.fixture
def smaller(monkeypatch):
    """Makes a published architecture's towers small, wherever open_clip reads its configuration."""
    from open_clip import factory

    def shrink(name: str) -> None:
        config = json.loads(json.dumps(factory._MODEL_CONFIGS[name]))
        for part, changes in SMALLER.get(name, {}).items():
            config[part] |= changes
        config["text_cfg"] |= {"layers": 2}
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)

    return shrink


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*longer than")
@pytest.mark.parametrize("arch", TAGS)
def test_a_picture_and_a_text_embed_as_in_open_clip(arch, tmp_path, pictures, smaller, monkeypatch):
    smaller(arch)
    unigrams(tmp_path)
    file = tmp_path / "weights.pt"
    torch.save(open_clip.create_model(arch).state_dict(), file)
    # As if the tag had been fetched.
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(file))
    quick = {"force_quick_gelu": True} if open_clip.get_pretrained_cfg(arch, TAGS[arch]).get("quick_gelu") else {}
    theirs, _, transform = open_clip.create_model_and_transforms(arch, pretrained=TAGS[arch], **quick)
    theirs.eval()
    siglip = "SigLIP" in arch
    words = (
        open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=64, clean="canonicalize")
        if siglip
        else open_clip.get_tokenizer(arch)
    )
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *_: words)
    clip = create_clip(f"{arch}:{TAGS[arch]}").eval()
    model = Clip(ClipConfig(backbone=arch, image_size=clip.image_size), clip=clip).eval()
    expected = theirs.encode_image(torch.stack([transform(picture) for picture in pictures]), normalize=True)
    ours = model.embed_image(model.pixels(pictures))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    expected = theirs.encode_text(words(SAID), normalize=True)
    torch.testing.assert_close(model.embed([Query(text) for text in SAID]), expected, atol=1e-5, rtol=0)

    again = CLIP.from_spec(json.loads(json.dumps(clip.spec))).eval()  # what a checkpoint keeps
    again.load_state_dict(clip.state_dict())
    assert again.preprocess == clip.preprocess
    assert torch.equal(again.tokenize(SAID), clip.tokenize(SAID))
    assert clip.words(clip.tokenize(SAID)[0]) and clip.count_tokens(SAID[0])[1] == clip.context_length
    if not clip.gives_patches:
        for make in (CFFA, CFine):
            config = (CFFAConfig if make is CFFA else CFineConfig).preset("toy", image_size=clip.image_size)
            with pytest.raises(ConfigError, match="gives none; choose one of open_clip's own ViT models"):
                make(config, 2, clip=clip)


@pytest.mark.parametrize("arch", ["ViT-B-16", "MobileCLIP2-S0", "PE-Core-T-16-384"])
def test_a_size_for_crops_of_people_squashes_and_the_statistics_of_a_file_are_those_of_its_tags(arch, smaller):
    smaller(arch)
    clip = create_clip(arch, (256, 128))
    known = open_clip.get_pretrained_cfg(arch, open_clip.list_pretrained_tags_by_model(arch)[0])
    assert clip.preprocess.resize == "squash" and clip.preprocess.size == (256, 128)
    assert clip.preprocess.mean == tuple(known["mean"]) and clip.preprocess.interpolation == known["interpolation"]
    assert clip.encode_image(torch.randn(1, 3, 256, 128)).shape == (1, clip.embed_dim)


def test_a_tokenizer_that_is_not_here_is_one_sentence():
    with pytest.raises(ReidError, match=r"The tokenizer of ViT-B-16-SigLIP \(timm/ViT-B-16-SigLIP\) could not be"):
        create_clip("ViT-B-16-SigLIP")


def test_a_tokenizer_beside_the_weights_is_taken(tmp_path, smaller, monkeypatch):
    smaller("ViT-B-16-SigLIP")
    unigrams(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = open_clip.create_model("ViT-B-16-SigLIP")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    clip = create_clip(f"ViT-B-16-SigLIP:{tmp_path / 'weights.pt'}")
    assert clip.tokenize(["a man"]).shape == (1, 64) and clip.preprocess.mean == (0.5, 0.5, 0.5)


def test_positions_are_interpolated_as_asked(smaller):
    smaller("ViT-B-16")
    torch.manual_seed(0)
    native = create_clip("ViT-B-16")
    with pytest.raises(ConfigError, match="positions should be one of bicubic, bilinear"):
        create_clip("ViT-B-16", (384, 128), positions="nearest")
    torch.manual_seed(0)
    clip = create_clip("ViT-B-16", (384, 128), positions="bilinear")
    known = native.model.visual.positional_embedding
    assert clip.grid == (24, 8) and clip.image_tokens(torch.randn(1, 3, 384, 128)).tokens.shape[1] == 193
    grid = known[1:].reshape(14, 14, -1)
    row, column = 3, 2  # by hand: where this patch's centre lies in the old grid, and the mean of its neighbours
    y, x = (row + 0.5) * 14 / 24 - 0.5, (column + 0.5) * 14 / 8 - 0.5
    top, left = int(y), int(x)
    (a, b), (c, d) = (1 - (y - top), y - top), (1 - (x - left), x - left)
    by_hand = a * (c * grid[top, left] + d * grid[top, left + 1]) + b * (
        c * grid[top + 1, left] + d * grid[top + 1, left + 1]
    )
    torch.testing.assert_close(clip.model.visual.positional_embedding[1 + row * 8 + column], by_hand)
