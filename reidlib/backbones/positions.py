"""Positions of transformer towers at other sizes: of a grid of patches, of a longer text."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

WELL_TRAINED = 20  # positions that short captions taught CLIP well; Long-CLIP (ECCV 2024) keeps these as they are


def resized_positions(known: Tensor, grid: tuple[int, int], new: tuple[int, int], mode: str) -> Tensor:
    """Positions (1 + patches, D) of a class token and a grid of patches, interpolated to another grid.

    mode: "bicubic" antialiases, as open_clip does; "bilinear" does not, as the official code of IRRA and CFFA.
    """
    if tuple(grid) == tuple(new):
        return known
    patches = known[1:].T.reshape(1, -1, *grid)
    patches = interpolate(patches, size=tuple(new), mode=mode, antialias=mode == "bicubic", align_corners=False)
    return torch.cat([known[:1], patches.flatten(2)[0].T])


def stretched(known: Tensor, length: int) -> Tensor:
    """Positions (L, D) of a text interpolated to more of them, (length, D), the well-trained ones as they are."""
    rest = interpolate(known[WELL_TRAINED:].T[None], size=length - WELL_TRAINED, mode="linear", align_corners=True)
    return torch.cat([known[:WELL_TRAINED], rest[0].T])
