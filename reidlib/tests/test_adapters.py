"""Low-rank adapters in every method's towers: nothing changes at first, only adapters and heads learn, all is kept."""

import copy

import pytest
import torch

from reidlib import paths
from reidlib.backbones.adapters import merge_adapters
from reidlib.methods.interactreid import AdaptConfig, InteractReIDAdapt, InteractReIDInvert, InvertConfig
from reidlib.models import load_model, save_model, start_from
from reidlib.query import Query
from reidlib.tests.test_models import MAKE

pytest.importorskip("peft")
SAID = [Query("a man in a red coat"), Query("a woman with a bag")]
TOWERS = ("clip.", "bert.", "towers.clip.", "towers.vision.", "towers.language.")


def disturbed(model):
    """Adapters begin as zero; here as if they had learnt something."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.mark.parametrize("method", MAKE)
def test_adapters_of_every_method(tmp_path, monkeypatch, method):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    whole = MAKE[method](tmp_path).eval()
    config = whole.config.replace(lora=4)
    torch.manual_seed(0)
    kind, towers = (
        type(whole),
        {name: child for name, child in copy.deepcopy(whole).named_children() if name in whole.made_of},
    )
    model = kind(config, whole.num_classes, **towers).eval()
    learning = [name for name, p in model.named_parameters() if p.requires_grad and name.startswith(TOWERS)]
    assert learning and all("lora_" in name or name.endswith("logit_scale") for name in learning)
    images = torch.randn(2, 3, *model.image_size)
    with torch.no_grad():
        tower = model.clip if hasattr(model, "clip") else model.towers
        before = whole.clip if hasattr(whole, "clip") else whole.towers
        if hasattr(tower, "image_tokens"):
            ours, theirs = (clip.image_tokens(images, project=False).tokens for clip in (tower, before))
            torch.testing.assert_close(ours, theirs)
    disturbed(model)
    folder = paths.run_dir("adapted")
    save_model(model, folder / "checkpoint" / "best.safetensors")
    again = load_model("adapted")
    with torch.no_grad():
        torch.testing.assert_close(again.embed_image(images), model.embed_image(images))
        torch.testing.assert_close(again.embed(SAID), model.embed(SAID))
        plain = merge_adapters(copy.deepcopy(model))
        assert set(plain.state_dict()) == set(whole.state_dict())
        torch.testing.assert_close(plain.embed_image(images), model.embed_image(images), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(plain.embed(SAID), model.embed(SAID), atol=1e-5, rtol=1e-4)


def test_a_start_with_adapters_and_a_second_stage_without(tmp_path, monkeypatch):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    first = disturbed(InteractReIDAdapt(AdaptConfig.preset("toy", backbone="toy-random", lora=4))).eval()
    second = InteractReIDInvert.from_stage1(InvertConfig.preset("toy"), first).eval()
    images = torch.randn(2, 3, *first.image_size)
    with torch.no_grad():
        torch.testing.assert_close(second.embed_image(images), first.embed_image(images), atol=1e-5, rtol=1e-4)
    paths.run_dir("plain")
    save_model(second, paths.outputs_dir() / "plain" / "checkpoint" / "best.safetensors")
    begun = InteractReIDAdapt(AdaptConfig.preset("toy", backbone="toy-random", lora=4)).eval()
    start_from(begun, "plain")
    with torch.no_grad():
        torch.testing.assert_close(begun.embed_image(images), second.embed_image(images), atol=1e-5, rtol=1e-4)
