"""Every loss as a function of tensors, features or similarities and labels in, a number out; none knows a model.

`identity_targets` and `both_ways` serve all. CLIP's baseline and DiaNA: `itc`, `sdm`. InteractReID: `nitc`, `ritc`,
`infonce`. CFine: `cmpm`, `cmpc`, `diversity`, `hardest_ranking`. CFFA: `mal`, `masked_language_loss`.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize


def identity_targets(pids: Tensor) -> Tensor:
    """T_ij = 1[p_i = p_j] / (number of such j): each row spreads probability 1 over its positives, itself among them.

    pids: (N,). Returns (N, N) float32.
    """
    same = (pids[:, None] == pids[None, :]).float()
    return same / same.sum(dim=1, keepdim=True)


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


def ritc(similarity: Tensor, targets: Tensor) -> Tensor:
    """Reversed image-text contrast, half of each direction: mean_i KL(softmax(S_i) || T_i + 0.01).

    similarity: (N, N) logits; targets: (N, N). It is SDM with a far larger eps, which bounds what a wrong match costs.
    Source: TBPS-CLIP (Cao et al., AAAI 2024).
    """
    return both_ways(sdm, similarity, targets, eps=1e-2)


def infonce(similarity: Tensor) -> Tensor:
    """InfoNCE, half of each direction: row i belongs to column i and to no other, whoever they show.

    similarity: (N, N) logits. Source: van den Oord et al., 2018.
    """
    return both_ways(itc, similarity, torch.eye(len(similarity), device=similarity.device))


def cmpm(image: Tensor, text: Tensor, pids: Tensor, *, target: str = "l2") -> Tensor:
    """Cross-modal projection matching, both directions.

    The anchor x_i is projected on the direction of every candidate of the other modality, and the softmax p of these
    lengths should be the pattern of matches:

        sum over directions of mean_i sum_j p_ij (log p_ij - log(q_ij + 1e-8)),   p_i = softmax_j(x_i . y_j / |y_j|)

    image, text: (N, D), not normalised: a longer anchor is a more certain one. pids: (N,). target: how the 0/1 matrix M
    of matches becomes q. "distribution" divides a row by its sum, as the paper says. "l2" divides it by its Euclidean
    norm, as the code of CFine does: with k matches q is 1/sqrt(k), so the loss may go below zero.
    Source: Zhang and Lu, ECCV 2018; `target="l2"`: CFine.
    """
    matches = (pids[:, None] == pids[None, :]).float()
    q = normalize(matches, p=2 if target == "l2" else 1, dim=1)
    log_q = torch.log(q + 1e-8)
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

    image, text: (..., N, D) pairs; weight: (D, identities); pids: (N,). Mean over N: returns (...). The weights are the
    larger side by far, so both directions of all pairs are one product with them, and their lengths divide the result.
    Source: Zhang and Lu, ECCV 2018.
    """
    image, text, weight = image.float(), text.float(), weight.float()
    anchors, others = torch.stack([image, text]), normalize(torch.stack([text, image]), dim=-1)
    projected = (anchors * others).sum(dim=-1, keepdim=True) * others  # (2, ..., N, D)
    logits = projected.flatten(0, -2) @ weight / weight.norm(dim=0).clamp(min=1e-12)
    each = cross_entropy(logits, pids.repeat(len(logits) // len(pids)), reduction="none")
    return each.view(projected.shape[:-1]).mean(dim=-1).sum(dim=0)


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
    loss = _hardest_one_way(similarity, same, margin) + _hardest_one_way(similarity.T, same, margin)
    return loss / len(pids) if reduction == "mean" else loss


def _hardest_one_way(similarity: Tensor, same: Tensor, margin: float) -> Tensor:
    pair = similarity.diagonal()
    hardest = similarity.masked_fill(same, -torch.inf).amax(dim=1)
    above = hardest > pair
    loss = (margin - pair + hardest).relu().masked_fill(~above, 0.0).sum()
    first = (~same[-1]).int().argmax()
    last = (margin - pair[-1] + similarity[-1, first]).relu().masked_fill(same[-1].all(), 0.0)
    return torch.where(above.any(), loss, last)


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
    return _mal_one_way(similarity, same, factor, tau, margin) + _mal_one_way(similarity.T, same, factor, tau, margin)


def _mal_one_way(similarity: Tensor, same: Tensor, factor: float, tau: float, margin: float) -> Tensor:
    scaled = similarity / tau
    share = scaled.detach().masked_fill(~same, -torch.inf).softmax(dim=1)
    # A finite filling: with -inf a row without negatives would have no gradient but NaN.
    negatives = scaled.masked_fill(same, -1e9).logsumexp(dim=1)
    loss = (margin - (share * similarity).sum(dim=1) + factor * negatives).relu()
    return loss * (~same).any(dim=1)


def masked_language_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Mean cross-entropy over the words to guess: logits (M, V), words (M,); 0 where there are none."""
    return cross_entropy(logits.float(), words, reduction="sum") / max(len(words), 1)
