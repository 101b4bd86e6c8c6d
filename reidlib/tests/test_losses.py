"""Every loss against the same written out in loops, at the ends of its options, and where batches are awkward."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

from reidlib.losses import (
    association_factor,
    both_ways,
    cmpc,
    cmpm,
    diversity,
    hardest_ranking,
    identity_targets,
    infonce,
    itc,
    mal,
    masked_language_loss,
    nitc,
    ritc,
    sdm,
    soften,
)

seeds = st.integers(0, 10_000)
people = st.lists(st.integers(0, 3), min_size=2, max_size=7)  # with duplicates, at times one person only


def test_identity_targets():
    targets = identity_targets(torch.tensor([7, 8, 7]))
    assert targets.tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]


def test_itc_with_one_hot_targets_is_cross_entropy():
    similarity = torch.randn(5, 5)
    assert itc(similarity, torch.eye(5)).item() == pytest.approx(
        cross_entropy(similarity, torch.arange(5)).item(), rel=1e-5
    )


@pytest.mark.parametrize("loss", [itc, sdm])
def test_against_written_out_sums(loss):
    torch.manual_seed(1)
    similarity, targets = torch.randn(4, 4) * 3, identity_targets(torch.tensor([0, 1, 0, 2]))
    total = 0.0
    for i in range(4):
        normaliser = sum(math.exp(similarity[i, j]) for j in range(4))
        for j in range(4):
            p, t = math.exp(similarity[i, j]) / normaliser, targets[i, j].item()
            total += -t * math.log(p) if loss is itc else p * (math.log(p) - math.log(t + 1e-8))
    assert loss(similarity, targets).item() == pytest.approx(total / 4, rel=1e-4)


def test_both_ways_is_the_mean_over_rows_and_columns():
    similarity, targets = torch.randn(4, 4), identity_targets(torch.tensor([0, 1, 0, 2]))
    expected = (itc(similarity, targets) + itc(similarity.T, targets)) / 2
    assert both_ways(itc, similarity, targets).item() == pytest.approx(expected.item())


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


def pair(seed: int, count: int, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, count, width, generator=generator, dtype=torch.float64).float())


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


@settings(deadline=None, max_examples=25)
@given(seeds, people, st.sampled_from(["l2", "distribution"]))
def test_cmpm(seed, pids, target):
    image, text = pair(seed, len(pids))
    expected = 0.0
    for anchors, others in ((image, text), (text, image)):
        for i, anchor in enumerate(anchors):
            p = softmax([float(anchor @ other / other.norm()) for other in others])
            matches = sum(pid == pids[i] for pid in pids)
            share = 1 / math.sqrt(matches) if target == "l2" else 1 / matches
            for j, pid in enumerate(pids):
                q = share if pid == pids[i] else 0.0
                expected += p[j] * (math.log(max(p[j], 1e-300)) - math.log(q + 1e-8)) / len(pids)
    assert_close(float(cmpm(image, text, torch.tensor(pids), target=target)), expected, atol=1e-3, rtol=1e-4)


@settings(deadline=None, max_examples=25)
@given(seeds, people)
def test_cmpc(seed, pids):
    image, text = pair(seed, len(pids))
    weight = pair(seed + 1, 5, 4)[0]
    expected = 0.0
    for anchors, others in ((image, text), (text, image)):
        for anchor, other, pid in zip(anchors, others, pids, strict=True):
            direction = other / other.norm()
            logits = [float((anchor @ direction) * direction @ column / column.norm()) for column in weight.T]
            expected -= math.log(softmax(logits)[pid]) / len(pids)
    assert_close(float(cmpc(image, text, weight, torch.tensor(pids))), expected, atol=1e-4, rtol=1e-4)


def cosines(seed: int, count: int) -> Tensor:
    image, text = pair(seed, count)
    return normalize(text, dim=1) @ normalize(image, dim=1).T


@settings(deadline=None, max_examples=25)
@given(seeds, people, st.sampled_from([0.0, 0.007, 0.015, 0.166]))
def test_mal(seed, pids, factor):
    similarity, tau, margin = cosines(seed, len(pids)), 0.015, 0.1
    expected = [0.0] * len(pids)
    for matrix in (similarity.tolist(), similarity.T.tolist()):
        for i, row in enumerate(matrix):
            positives = [s for s, pid in zip(row, pids, strict=True) if pid == pids[i]]
            negatives = [s for s, pid in zip(row, pids, strict=True) if pid != pids[i]]
            if negatives:
                share = softmax([s / tau for s in positives])
                near = sum(a * s for a, s in zip(share, positives, strict=True))
                far = math.log(sum(math.exp(s / tau) for s in negatives))
                expected[i] += max(margin - near + factor * far, 0)
    result = mal(similarity, torch.tensor(pids), factor=factor)
    assert_close(result, torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_mal_pulls_positives_by_their_nearness_and_pushes_negatives():
    similarity = torch.tensor([[0.30, 0.28, 0.29], [0.1, 0.3, 0.2], [0.2, 0.1, 0.4]], requires_grad=True)
    mal(similarity, torch.tensor([0, 0, 1]), factor=0.015).sum().backward()
    gradient = similarity.grad
    assert gradient[0, 0] < gradient[0, 1] < 0 < gradient[0, 2]


@pytest.mark.parametrize(
    ("batch", "rule", "factor"),
    [(64, "floor", 0.015), (32, "floor", 0.031), (128, "floor", 0.007), (1024, "floor", 0.0), (30, "floor", 0.033)]
    + [(64, "exact", 1 / 64), (7, "tau", 0.015)],
)
def test_association_factor(batch, rule, factor):
    assert association_factor(batch, rule) == pytest.approx(factor)


@settings(deadline=None, max_examples=40)
@given(seeds, people, st.sampled_from(["sum", "mean"]))
def test_hardest_ranking(seed, pids, reduction):
    similarity, margin = cosines(seed, len(pids)), 0.2
    expected = 0.0
    for matrix in (similarity.tolist(), similarity.T.tolist()):
        hardest = {}
        for i, row in enumerate(matrix):
            negatives = [s for s, pid in zip(row, pids, strict=True) if pid != pids[i]]
            if negatives and max(negatives) > row[i]:
                hardest[i] = margin - row[i] + max(negatives)
        if not hardest and negatives:  # the last anchor and its first negative
            hardest[i] = max(margin - row[i] + negatives[0], 0)
        expected += sum(hardest.values())
    expected /= len(pids) if reduction == "mean" else 1
    result = hardest_ranking(similarity, torch.tensor(pids), margin=margin, reduction=reduction)
    assert_close(float(result), expected, atol=1e-5, rtol=1e-5)


def test_hardest_ranking_leaves_negatives_inside_the_margin_alone():
    similarity = torch.tensor([[1.0, 0.9, 0.0], [0.0, 1.0, 0.9], [0.0, 0.0, 1.0]])
    assert hardest_ranking(similarity, torch.arange(3)) == 0


def test_diversity_of_two_parts_is_a_cosine():
    parts = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 2.0], [0.0, -3.0]]])
    cosine = (math.sqrt(0.5) + 1) / 2
    assert float(diversity(parts)) == pytest.approx(math.sqrt(2) / 4 * cosine)


@pytest.mark.parametrize("pids", [[0, 0], [0, 1], [2, 2, 2]])
def test_awkward_batches_have_finite_losses_and_gradients(pids):
    image, text = (x.requires_grad_() for x in pair(0, len(pids)))
    labels, similarity = torch.tensor(pids), normalize(text, dim=1) @ normalize(image, dim=1).T
    loss = cmpm(image, text, labels) + mal(similarity, labels, factor=0.5).sum() + hardest_ranking(similarity, labels)
    loss = loss + cmpc(image, text, torch.randn(5, 3), labels) + diversity(torch.stack([image, text], dim=1))
    loss.backward()
    assert loss.isfinite() and image.grad.isfinite().all() and text.grad.isfinite().all()


def test_gradients_are_those_of_finite_differences():
    image, text = pair(3, 4)
    labels, direction, step = torch.tensor([0, 0, 1, 2]), torch.randn(4, 5), 1e-3

    def loss(x: Tensor) -> Tensor:
        similarity = normalize(text, dim=1) @ normalize(x, dim=1).T
        return cmpm(x, text, labels) + hardest_ranking(similarity, labels) + diversity(torch.stack([x, text], dim=1))

    x = image.clone().requires_grad_()
    loss(x).backward()
    numeric = (loss(image + step * direction) - loss(image - step * direction)) / (2 * step)
    assert_close((x.grad * direction).sum(), numeric, atol=2e-2, rtol=1e-2)


def test_nothing_to_guess_costs_nothing():
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = masked_language_loss(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0


def test_word_guessing_is_the_mean_over_hidden_words():
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, math.log(2), 0.0]])
    expected = (math.log(3) + math.log(2)) / 2
    assert float(masked_language_loss(logits, torch.tensor([0, 1]))) == pytest.approx(expected)


def test_projection_classification_of_several_pairs_at_once():
    image, text = torch.randn(2, 3, 8, 16, requires_grad=True)
    weight, pids = torch.randn(16, 5, requires_grad=True), torch.arange(8) % 5
    at_once = cmpc(image, text, weight, pids)
    one_by_one = torch.stack([cmpc(*pair, weight, pids) for pair in zip(image, text, strict=True)])
    torch.testing.assert_close(at_once, one_by_one)
    for ours, theirs in zip(*(torch.autograd.grad(x.sum(), weight) for x in (at_once, one_by_one)), strict=True):
        torch.testing.assert_close(ours, theirs)
