"""The losses of CFine and CFFA against the same written out in loops, and where batches are awkward."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

from reidlib.backbones.clip import MASK_ID
from reidlib.losses.association import association_factor, mal
from reidlib.losses.finegrained import diversity, hardest_ranking
from reidlib.losses.masked import augment_tokens, mask_tokens, masked_language_loss
from reidlib.losses.projection import cmpc, cmpm

START, END = 49406, 49407
seeds = st.integers(0, 10_000)
people = st.lists(st.integers(0, 3), min_size=2, max_size=7)  # with duplicates, at times one person only


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


# -- tokens --------------------------------------------------------------------------------------------------------


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


def test_nothing_to_guess_costs_nothing():
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = masked_language_loss(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0


def test_word_guessing_is_the_mean_over_hidden_words():
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, math.log(2), 0.0]])
    expected = (math.log(3) + math.log(2)) / 2
    assert float(masked_language_loss(logits, torch.tensor([0, 1]))) == pytest.approx(expected)
