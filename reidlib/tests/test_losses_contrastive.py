"""ITC and SDM against sums written out."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from reidlib.losses.contrastive import both_ways, identity_targets, itc, sdm


def test_identity_targets():
    targets = identity_targets(torch.tensor([7, 8, 7]), torch.tensor([8, 7, 7, 9]))
    assert targets.tolist() == [[0, 0.5, 0.5, 0], [1, 0, 0, 0], [0, 0.5, 0.5, 0]]
    assert identity_targets(torch.tensor([1]), torch.tensor([2])).tolist() == [[0]]


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
