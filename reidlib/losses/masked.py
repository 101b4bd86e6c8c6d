"""Tokens hidden, changed or dropped at random, and the loss of guessing the hidden ones; CLIP's token ids."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from reidlib.backbones.clip import MASK_ID, PAD


def augment_tokens(ids: Tensor, probability: float = 0.2) -> Tensor:
    """Each word by `probability` becomes the mask (60 %), a random word (20 %), or is dropped (20 %).

    What follows a dropped word moves left. The start and end tokens stay. ids: (N, L), padded with 0 on the right.
    Source: the caption augmentation of RDE and CFFA.
    """
    draw = torch.rand(ids.shape, device=ids.device) / probability
    draw = draw.masked_fill(~_words(ids), 1.0)
    ids = torch.where(draw < 0.6, MASK_ID, ids)
    ids = torch.where((draw >= 0.6) & (draw < 0.8), _random_words(ids), ids)
    dropped = (draw >= 0.8) & (draw < 1)
    return ids.masked_fill(dropped, PAD).gather(1, dropped.int().argsort(dim=1, stable=True))


def mask_tokens(ids: Tensor, probability: float = 0.15) -> tuple[Tensor, Tensor]:
    """Words to guess: the ids with some hidden, and the labels, 0 where there is nothing to guess.

    Each word by `probability` is to be guessed, and is then replaced by the mask (80 %), by a random word (10 %) or
    left (10 %). Masks that are there already and the start and end tokens are not chosen. ids: (N, L).
    Source: Devlin et al., NAACL 2019; as IRRA and CFFA apply it.
    """
    draw = torch.rand(ids.shape, device=ids.device) / probability
    chosen = (draw < 1) & _words(ids) & (ids != MASK_ID)
    masked = torch.where(chosen & (draw < 0.8), MASK_ID, ids)
    masked = torch.where(chosen & (draw >= 0.8) & (draw < 0.9), _random_words(ids), masked)
    return masked, torch.where(chosen, ids, PAD)


def masked_language_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Mean cross-entropy over the words to guess: logits (M, V), words (M,); 0 where there are none."""
    return cross_entropy(logits.float(), words, reduction="sum") / max(len(words), 1)


def _words(ids: Tensor) -> Tensor:
    """Where a word or its mask stands: neither padding nor the tokens (ids above the mask's) that start and end."""
    return (ids != PAD) & (ids <= MASK_ID)


def _random_words(ids: Tensor) -> Tensor:
    return torch.randint_like(ids, 1, MASK_ID)
