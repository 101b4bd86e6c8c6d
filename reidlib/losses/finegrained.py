"""Losses of CFine on parts and pairs: parts that should differ, and pairs ranked against their hardest negative."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def diversity(parts: Tensor) -> Tensor:
    """How alike the parts of one sample are: mean_i |G_i - diag G_i|_F / P^2, G_i the cosines between its parts.

    parts: (N, P, D). With two parts this is sqrt(2)/4 |cos|, whose minimum is parts at right angles. Source: CFine.
    """
    parts = normalize(parts.float(), dim=-1)
    others = ~torch.eye(parts.shape[1], dtype=torch.bool, device=parts.device)
    gram = (parts @ parts.transpose(1, 2))[:, others]
    return gram.norm(dim=1).mean() / parts.shape[1] ** 2


def hardest_ranking(similarity: Tensor, pids: Tensor, *, margin: float = 0.2, reduction: str = "sum") -> Tensor:
    """Ranking of each pair against its hardest negative, both directions.

        sum_i [ margin - S_ii + max_{j: p_j != p_i} S_ij ]_+    over the i whose hardest negative lies above S_ii

    A negative inside the margin but below the pair is left alone. Where no anchor has one above, the last anchor is
    compared with its first negative, as the official code does. similarity: (N, N), pair i on the diagonal; pids: (N,).
    reduction: "sum", the official one, or "mean" over anchors. Without any negative the loss is 0. Source: CFine.
    """
    similarity = similarity.float()
    same = pids[:, None] == pids[None, :]
    loss = _one_way(similarity, same, margin) + _one_way(similarity.T, same, margin)
    return loss / len(pids) if reduction == "mean" else loss


def _one_way(similarity: Tensor, same: Tensor, margin: float) -> Tensor:
    pair = similarity.diagonal()
    hardest = similarity.masked_fill(same, -torch.inf).amax(dim=1)
    above = hardest > pair
    loss = (margin - pair + hardest).relu().masked_fill(~above, 0.0).sum()
    first = (~same[-1]).int().argmax()
    last = (margin - pair[-1] + similarity[-1, first]).relu().masked_fill(same[-1].all(), 0.0)
    return torch.where(above.any(), loss, last)
