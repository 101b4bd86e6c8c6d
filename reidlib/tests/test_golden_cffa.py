"""CFFA after its encoders agrees with the official implementation: features, losses, gradients, word guessing."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

from reidlib.losses import association_factor, mal
from reidlib.methods.cffa import CFFAConfig, Features, Head
from reidlib.official import NAMES, renamed
from reidlib.tests.golden_arrays import arrays, under

GOLDEN = arrays("cffa")
PIDS = GOLDEN["in/pids"]


def agrees(name: str, value: Tensor) -> None:
    assert_close(value.detach(), GOLDEN[f"out/{name}"], atol=1e-4, rtol=1e-5, msg=lambda text: f"{name}: {text}")


def head() -> Head:
    ours = renamed(under(GOLDEN, "param/"), NAMES["irra"])
    state = {name.removeprefix("head."): tensor for name, tensor in ours.items()}
    num_classes, width = state["classifier.weight"].shape
    layers = sum(name.endswith(".ln_1.weight") for name in state)
    config = CFFAConfig.paper().replace(
        heads=width // 16, local_dim=len(state["image_local.project.weight"]), mlm_layers=layers
    )
    words = GOLDEN["in/caption_ids"].shape[1]
    made = Head(config, width, words, len(state["reasoning.mlm_head.fc.weight"]), num_classes)
    made.load_state_dict(state)
    return made


def features(made: Head) -> tuple[Features, Features]:
    return (
        made.image(GOLDEN["in/image_tokens"], GOLDEN["in/image_attention"]),
        made.text(GOLDEN["in/text_tokens"], GOLDEN["in/text_attention"], GOLDEN["in/caption_ids"]),
    )


@torch.no_grad()
def test_features_and_similarity_in_evaluation():
    made = head().eval()
    image, text = features(made)
    agrees("eval_visual_local", image.local)
    agrees("eval_textual_local", text.local)
    agrees("eval_similarity_text_to_image", made.embedding(text) @ made.embedding(image).T)


@torch.no_grad()
@pytest.mark.parametrize("level", ["whole", "local"])
def test_features_and_association_in_training(level: str):
    image, text = features(head().train())
    agrees("train_visual_local", image.local)
    agrees("train_textual_local", text.local)
    similarity = normalize(getattr(text, level), dim=1) @ normalize(getattr(image, level), dim=1).T
    name = {"whole": "global", "local": "local"}[level]
    agrees(f"mal_{name}_per_sample", mal(similarity, PIDS, factor=association_factor(len(PIDS))))


def test_association_in_total_and_gradients():
    made = head().train()
    image, text = features(made)
    image, text = (Features(x.whole.clone().requires_grad_(), x.local) for x in (image, text))
    total = sum(made.alignment(image, text, PIDS).values())
    agrees("mal_total", total)
    total.backward()
    agrees("grad_image_global", image.whole.grad)
    agrees("grad_text_global", text.whole.grad)
    agrees("grad_visual_fc", made.image_local.project.weight.grad)
    agrees("grad_textual_linear", made.text_local.project.weight.grad)


@torch.no_grad()
def test_identity_and_word_guessing():
    made = head().train()
    agrees("id_loss", made.identity(*features(made), PIDS))
    masked, image = GOLDEN["in/masked_text_tokens"], GOLDEN["in/image_tokens"]
    words = torch.arange(masked.shape[1]).expand(len(masked), -1)
    agrees("cross_former", made.reasoning.fuse(masked, image, words))
    agrees("mlm_loss", made.reasoning(masked, image, GOLDEN["in/mlm_labels"]))
