"""InteractReID's losses against sums written out, and what they must do at the ends of their options."""

import math

import pytest
import torch

from reidlib.losses.contrastive import both_ways, identity_targets, itc
from reidlib.losses.soft import infonce, nitc, ritc, soften


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(5, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets() -> torch.Tensor:
    return identity_targets(torch.tensor([0, 0, 1, 2, 1]))


def naive_softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def naive_nitc(logits: torch.Tensor, targets: torch.Tensor, alpha: float, teacher: torch.Tensor) -> float:
    total, n = 0.0, len(logits)
    for s, t in ((logits, teacher), (logits.T, teacher.T)):
        for i in range(n):
            p, belief = naive_softmax(s[i].tolist()), naive_softmax(t[i].tolist())
            for j in range(n):
                total -= (alpha * belief[j] + (1 - alpha) * float(targets[i, j])) * math.log(p[j]) / n / 2
    return total


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5])
def test_nitc_is_the_sum_written_out(logits, targets, alpha):
    assert nitc(logits, targets, alpha).item() == pytest.approx(naive_nitc(logits, targets, alpha, logits), rel=1e-5)


def test_nitc_takes_its_targets_from_the_teacher(logits, targets):
    teacher = logits.flip(0)
    expected = naive_nitc(logits, targets, 0.5, teacher)
    assert nitc(logits, targets, 0.5, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert nitc(logits, targets, 0.5).item() != pytest.approx(expected, rel=1e-2)


def test_without_alpha_nitc_is_itc(logits, targets):
    assert torch.equal(nitc(logits, targets, 0.0), both_ways(itc, logits, targets))


def test_ritc_is_the_divergence_written_out(logits, targets):
    expected = 0.0
    for s in (logits, logits.T):
        for i in range(5):
            p = naive_softmax(s[i].tolist())
            expected += sum(p[j] * (math.log(p[j]) - math.log(float(targets[i, j]) + 0.01)) for j in range(5)) / 10
    assert ritc(logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_infonce_is_cross_entropy_on_the_diagonal(logits):
    own = torch.arange(5)
    expected = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
    assert infonce(logits).item() == pytest.approx(expected.item(), rel=1e-6)


def test_softened_rows_are_distributions_without_gradient(logits, targets):
    soft = soften(targets, logits.requires_grad_(), 0.4)
    assert not soft.requires_grad
    assert torch.allclose(soft.sum(dim=1), torch.ones(5))


def test_full_alpha_leaves_a_model_that_believes_itself_alone(logits):
    """With alpha 1 the targets are the model's own softmax, where cross-entropy has no slope."""
    logits.requires_grad_()
    rows = both_ways(itc, logits, logits.detach().softmax(dim=1), logits.detach().T.softmax(dim=1))
    assert torch.equal(nitc(logits, torch.zeros(5, 5), 1.0), rows)
    nitc(logits, torch.zeros(5, 5), 1.0).backward()
    assert logits.grad.abs().max() < 1e-6


def test_losses_are_float32_from_halves(logits, targets):
    half = logits.half()
    assert nitc(half, targets, 0.5).dtype == ritc(half, targets).dtype == infonce(half).dtype == torch.float32
