"""The multi-association loss of CFFA: every caption against all its pictures at once, and the log-sum of the others."""

import math

import torch
from torch import Tensor


def association_factor(batch: int, rule: str = "floor", tau: float = 0.015) -> float:
    """The factor c before the log-sum of the negatives.

    "floor": 1/batch cut to three decimals, as the official code has it (64 -> 0.015, which is tau; 1024 -> 0).
    "exact": 1/batch. "tau": tau whatever the batch, which makes the loss RDE's triplet alignment loss (TAL).
    """
    return {"floor": math.floor(1000 / batch) / 1000, "exact": 1 / batch, "tau": tau}[rule]


def mal(similarity: Tensor, pids: Tensor, *, factor: float, tau: float = 0.015, margin: float = 0.1) -> Tensor:
    """Multi-association loss of each sample, both directions added: (N, N), (N,) -> (N,).

        l_i = [ m - sum_j a_ij S_ij + c log sum_{j: p_j != p_i} exp(S_ij / tau) ]_+        on S, plus the same on S^T

    a_ij = softmax over the positives of S_ij / tau, without gradient: the nearer positives of a person weigh more.
    The log-sum stands for the hardest negative, softly, so that all of them are pushed; `factor` is c, and c = tau is
    the triplet alignment loss (TAL) of RDE. A sample without negatives costs nothing.
    similarity: cosines, texts by images. Reduce by the sum as the official code does, or by the mean.
    Source: CFFA; TAL: Qin et al., CVPR 2024.
    """
    similarity = similarity.float()
    same = pids[:, None] == pids[None, :]
    return _one_way(similarity, same, factor, tau, margin) + _one_way(similarity.T, same, factor, tau, margin)


def _one_way(similarity: Tensor, same: Tensor, factor: float, tau: float, margin: float) -> Tensor:
    scaled = similarity / tau
    share = scaled.detach().masked_fill(~same, -torch.inf).softmax(dim=1)
    # A finite filling: with -inf a row without negatives would have no gradient but NaN.
    negatives = scaled.masked_fill(same, -1e9).logsumexp(dim=1)
    loss = (margin - (share * similarity).sum(dim=1) + factor * negatives).relu()
    return loss * (~same).any(dim=1)
