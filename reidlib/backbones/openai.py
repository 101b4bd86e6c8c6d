"""A CLIP sized by the tensors of a checkpoint that has the names of OpenAI's release."""

import math
import re

import torch
from torch import Tensor

from reidlib.backbones.clip import CLIP
from reidlib.data.augment import CLIP as STATISTICS
from reidlib.data.images import Preprocess
from reidlib.errors import CheckpointError

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
SPARE = 10_000_000  # numbers that a model may have beyond twice those of its checkpoint


def clip_like(
    state: dict[str, Tensor], image_size: tuple[int, int] | None = None, statistics: Statistics = STATISTICS
) -> CLIP:
    """A CLIP with random weights of the sizes in `state`, heads 64 wide.

    state: names as `visual.conv1.weight`, `transformer.resblocks.0.ln_1.weight`; without those of a text
    tower it has a tiny one. image_size: (height, width), needed where the patches are not a square. statistics: mean
    and deviation of its pictures, OpenAI's where nothing else is said. Raises
    CheckpointError for a name that is missing, patches that do not fit `image_size`, and sizes far beyond the file.
    """
    import open_clip

    try:
        width, _, _, patch = state["visual.conv1.weight"].shape
        patches = len(state["visual.positional_embedding"]) - 1
        length, text_width = state["positional_embedding"].shape if "positional_embedding" in state else (1, 64)
        vocab = len(state["token_embedding.weight"]) if "token_embedding.weight" in state else 1
        embed_dim = state["text_projection"].shape[1] if "text_projection" in state else 1
    except KeyError as error:
        raise CheckpointError(f"The checkpoint has no CLIP image tower: {error.args[0]} is missing.") from error
    height, across = image_size or (math.isqrt(patches) * patch,) * 2
    if (height // patch) * (across // patch) != patches:
        raise CheckpointError(
            f"The checkpoint's image tower has {patches} patches of {patch} pixels, which pictures of {height} x "
            f"{across} do not give; pass its image_size (height, width)."
        )
    vision = {"width": width, "layers": _depth(state, "visual."), "patch_size": patch, "image_size": (height, across)}
    config = {
        "embed_dim": embed_dim,
        "vision_cfg": vision,
        "text_cfg": {
            "width": text_width,
            "layers": max(_depth(state, ""), 1),
            "heads": max(text_width // 64, 1),
            "context_length": length,
            "vocab_size": vocab,
        },
        "quick_gelu": True,
    }
    with torch.device("meta"):  # no memory before it is known that the file is about as large as what it asks for
        empty = open_clip.CLIP(**config)
    asked = sum(tensor.numel() for tensor in (*empty.parameters(), *empty.buffers()))
    held = sum(tensor.numel() for tensor in state.values())
    if asked > 2 * held + SPARE:
        raise CheckpointError(f"The checkpoint holds {held:,} numbers and its shapes ask for a model of {asked:,}.")
    tokenizer, preprocess = open_clip.SimpleTokenizer(context_length=length), Preprocess((height, across), *statistics)
    return CLIP(open_clip.CLIP(**config), tokenizer, preprocess, config)


def _depth(state: dict[str, Tensor], tower: str) -> int:
    """How many blocks a tower has."""
    blocks = (re.match(rf"{tower}transformer\.resblocks\.(\d+)\.", name) for name in state)
    return len({match[1] for match in blocks if match})
