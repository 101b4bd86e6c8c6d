"""InteractReID's contrastive losses: targets softened by the model's own view (N-ITC, N-ISC), R-ITC and InfoNCE."""

import torch
from torch import Tensor

from reidlib.losses.contrastive import both_ways, itc, sdm


def soften(targets: Tensor, similarity: Tensor, alpha: float) -> Tensor:
    """alpha softmax_j(S_ij) + (1 - alpha) T_ij: the labels, part replaced by what the model already believes.

    targets, similarity (logits): (N, M); no gradient flows into the result.
    """
    return alpha * similarity.detach().float().softmax(dim=1) + (1 - alpha) * targets


def nitc(similarity: Tensor, targets: Tensor, alpha: float, teacher: Tensor | None = None) -> Tensor:
    """Noise-tolerant image-text contrast, half of each direction: -mean_i sum_j q_ij log softmax_j(S_ij).

    q softens `targets` in each direction by the logits of `teacher`, or of `similarity` itself where it is left out.
    similarity, teacher: (N, N) logits; targets: (N, N) from `identity_targets`. With sketches in place of words this
    is N-ISC. Source: InteractReID (ICME 2025), after TBPS-CLIP (Cao et al., AAAI 2024).
    """
    teacher = similarity if teacher is None else teacher
    return both_ways(itc, similarity, soften(targets, teacher, alpha), soften(targets, teacher.T, alpha))


def ritc(similarity: Tensor, targets: Tensor, eps: float = 1e-2) -> Tensor:
    """Reversed image-text contrast, half of each direction: mean_i KL(softmax(S_i) || T_i + eps).

    similarity: (N, N) logits; targets: (N, N). It is SDM with a far larger eps, which bounds what a wrong match costs.
    Source: TBPS-CLIP (Cao et al., AAAI 2024).
    """
    return both_ways(sdm, similarity, targets, eps=eps)


def infonce(similarity: Tensor) -> Tensor:
    """InfoNCE, half of each direction: row i belongs to column i and to no other, whoever they show.

    similarity: (N, N) logits. Source: van den Oord et al., 2018.
    """
    return both_ways(itc, similarity, torch.eye(len(similarity), device=similarity.device))
