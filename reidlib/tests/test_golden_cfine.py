"""CFine after its encoders agrees with the official implementation: features, similarities, losses, gradients."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reidlib.losses import cmpc, cmpm, diversity, hardest_ranking
from reidlib.methods.cfine import CFineConfig, Features, Head, cross_grained, fine_grained
from reidlib.official import NAMES, renamed
from reidlib.tests.golden_arrays import arrays, under

GOLDEN = arrays("cfine")
PIDS = GOLDEN["in/labels"]


def agrees(name: str, value: Tensor) -> None:
    assert_close(value.detach(), GOLDEN[f"out/{name}"], atol=1e-4, rtol=1e-5, msg=lambda text: f"{name}: {text}")


def head() -> Head:
    state = renamed(under(GOLDEN, "param/"), NAMES["cfine"])
    width, num_classes = state["head.classifier"].shape
    config = CFineConfig.paper().replace(heads={48: 4, 96: 6}.get(width, max(width // 16, 1)))
    made = Head(config, width, num_classes)
    made.load_state_dict({name.removeprefix("head."): tensor for name, tensor in state.items()})
    return made


def features(made: Head) -> tuple[Features, Features]:
    return (
        made.image(GOLDEN["in/img"], GOLDEN["in/img_att"]),
        made.text(GOLDEN["in/txt"], GOLDEN["in/txt_att"], GOLDEN["in/tokens"] == 0),
    )


@pytest.fixture(scope="module")
def trained() -> tuple[Head, Features, Features]:
    made = head().train()
    return made, *features(made)


@torch.no_grad()
def test_features_and_similarity_in_evaluation():
    made = head().eval()
    image, text = features(made)
    for branch in range(3):
        agrees(f"eval_image_{branch}", image.branches[:, branch])
        agrees(f"eval_text_{branch}", text.branches[:, branch])
    agrees("eval_similarity_text_to_image", made.embedding(text) @ made.embedding(image).T)


@pytest.mark.parametrize("branch", range(3))
def test_branches_in_training(trained, branch: int):
    made, image, text = trained
    pair = image.branches[:, branch], text.branches[:, branch]
    agrees(f"train_image_{branch}", pair[0])
    agrees(f"train_text_{branch}", pair[1])
    agrees(f"cmpm_{branch}", cmpm(*pair, PIDS))
    agrees(f"cmpc_{branch}", cmpc(*pair, made.classifier, PIDS))


def test_similarities_and_their_losses(trained):
    made, image, text = trained
    agrees("sim_cs", cross_grained(image, text))
    agrees("sim_cd", fine_grained(image, text))
    agrees("sim_loss", hardest_ranking(made.similarity(image, text), PIDS))
    agrees("diversity", diversity(image.branches[:, 1:]) + diversity(text.branches[:, 1:]))


def test_total_and_gradients():
    made = head().train()
    losses = made.losses(*features(made), PIDS)
    agrees("cmpm", losses["cmpm"])
    agrees("cmpc", losses["cmpc"])
    agrees("loss_without_sim", sum(losses.values()) - losses["ranking"])
    total = sum(losses.values())
    agrees("total", total)
    total.backward()
    agrees("grad_W", made.classifier.grad)
    agrees("grad_block_attn_in_proj", made.block.attn.in_proj_weight.grad)
    agrees("grad_bn_image_weight", made.neck_image.weight.grad)
