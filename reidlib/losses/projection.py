"""Cross-modal projection losses: CMPM matches distributions of projections, CMPC classifies what is projected."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize


def cmpm(image: Tensor, text: Tensor, pids: Tensor, *, target: str = "l2", eps: float = 1e-8) -> Tensor:
    """Cross-modal projection matching, both directions.

    The anchor x_i is projected on the direction of every candidate of the other modality, and the softmax p of these
    lengths should be the pattern of matches:

        sum over directions of mean_i sum_j p_ij (log p_ij - log(q_ij + eps)),   p_i = softmax_j(x_i . y_j / |y_j|)

    image, text: (N, D), not normalised: a longer anchor is a more certain one. pids: (N,). target: how the 0/1 matrix M
    of matches becomes q. "distribution" divides a row by its sum, as the paper says. "l2" divides it by its Euclidean
    norm, as the code of CFine does: with k matches q is 1/sqrt(k), so the loss may go below zero.
    Source: Zhang and Lu, ECCV 2018; `target="l2"`: CFine.
    """
    matches = (pids[:, None] == pids[None, :]).float()
    q = normalize(matches, p=2 if target == "l2" else 1, dim=1)
    log_q = torch.log(q + eps)
    loss = 0.0
    for anchor, other in ((image.float(), text.float()), (text.float(), image.float())):
        log_p = log_softmax(anchor @ normalize(other, dim=1).T, dim=1)
        loss = loss + (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
    return loss


def cmpc(image: Tensor, text: Tensor, weight: Tensor, pids: Tensor) -> Tensor:
    """Cross-modal projection classification, both directions.

    Each feature is projected on its partner's direction before it is classified, so that what classifies an identity is
    what the two have in common:

        CE((v . t^) t^ W^, pid) + CE((t . v^) v^ W^, pid)        (^ is of length 1, W by columns)

    image, text: (N, D) pairs; weight: (D, identities); pids: (N,). Mean over N. Source: Zhang and Lu, ECCV 2018.
    """
    image, text, weight = image.float(), text.float(), normalize(weight.float(), dim=0)
    loss = 0.0
    for anchor, other in ((image, normalize(text, dim=1)), (text, normalize(image, dim=1))):
        length = (anchor * other).sum(dim=1, keepdim=True)
        loss = loss + cross_entropy(length * (other @ weight), pids)
    return loss
