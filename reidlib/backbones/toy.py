"""The toy CLIP: open_clip's own class, a few layers deep, pre-trained on drawn people by the recipe in `toy_recipe`."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reidlib.backbones.positions import resized_positions

WEIGHTS = Path(__file__).with_name("toy_clip.safetensors")
IMAGE_SIZE = (128, 64)
WIDTH = 96
VISION = {"layers": 4, "width": WIDTH, "patch_size": 16, "head_width": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 3, "layers": 2}
POSITIONS, WORDS = "visual.positional_embedding", "token_embedding.weight"


def toy_model(image_size: tuple[int, int] = IMAGE_SIZE, weights: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    """open_clip's model for pictures of (height, width), with its shipped weights or random ones, and its `model_cfg`.

    Words that its training captions never used keep a small random embedding that is the same on every machine.
    """
    import open_clip

    config = {"embed_dim": WIDTH, "vision_cfg": {**VISION, "image_size": image_size}, "text_cfg": TEXT}
    model = open_clip.CLIP(**config)
    if weights:
        state = {name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}
        state[WORDS] = all_words(state.pop("words").long(), state[WORDS])
        grid = IMAGE_SIZE[0] // VISION["patch_size"], IMAGE_SIZE[1] // VISION["patch_size"]
        state[POSITIONS] = resized_positions(state[POSITIONS], grid, model.visual.grid_size, "bicubic")
        model.load_state_dict(state)
    return model, config


def all_words(rows: Tensor, known: Tensor) -> Tensor:
    """The whole table of word embeddings: `known` in its `rows`, the same small random numbers elsewhere."""
    words = torch.randn(TEXT["vocab_size"], TEXT["width"], generator=torch.Generator().manual_seed(0)) * 0.02
    words[rows] = known
    return words
