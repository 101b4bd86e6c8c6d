"""Contrastive losses that know which pictures and captions show the same person: ITC and SDM."""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def identity_targets(pids: Tensor, gallery_pids: Tensor | None = None) -> Tensor:
    """T_ij = 1[p_i = p_j] / (number of such j): each row spreads probability 1 over its positives.

    pids: (N,), gallery_pids: (M,), the same as `pids` when left out. Returns (N, M) float32; a row without positives
    is zero.
    """
    gallery_pids = pids if gallery_pids is None else gallery_pids
    same = (pids[:, None] == gallery_pids[None, :]).float()
    return same / same.sum(dim=1, keepdim=True).clamp(min=1)


def itc(similarity: Tensor, targets: Tensor) -> Tensor:
    """Image-text contrastive loss with soft targets, one direction: -mean_i sum_j T_ij log softmax_j(S_ij).

    similarity: (N, M) logits, that is already divided by the temperature. targets: (N, M) rows that sum to 1.
    With one-hot targets this is InfoNCE (van den Oord et al. 2018; CLIP, Radford et al. 2021).
    """
    return -(targets * log_softmax(similarity.float(), dim=1)).sum(dim=1).mean()


def sdm(similarity: Tensor, targets: Tensor, eps: float = 1e-8) -> Tensor:
    """Similarity distribution matching, one direction: mean_i sum_j p_ij (log p_ij - log(T_ij + eps)), p = softmax(S).

    Shapes as in `itc`. Source: IRRA (Jiang and Ye, CVPR 2023), eps 1e-8; DiaNA uses 1e-6.
    """
    log_p = log_softmax(similarity.float(), dim=1)
    return (log_p.exp() * (log_p - torch.log(targets + eps))).sum(dim=1).mean()


def both_ways(loss, similarity: Tensor, targets: Tensor, reverse_targets: Tensor | None = None, **options) -> Tensor:
    """Half the sum of `loss` over rows and over columns; for a square batch the targets are symmetric in pattern."""
    reverse_targets = targets if reverse_targets is None else reverse_targets
    return (loss(similarity, targets, **options) + loss(similarity.T, reverse_targets, **options)) / 2
