"""Dictionaries with the tensor names and shapes that official checkpoints have, small and random."""

import torch
from torch import Tensor


def image_tower(width: int, blocks: int, patch: int, patches: int) -> dict[str, Tensor]:
    """OpenAI's image tower without its projection."""
    return {
        "class_embedding": torch.randn(width),
        "positional_embedding": torch.randn(patches + 1, width),
        "conv1.weight": torch.randn(width, 3, patch, patch),
        **norm("ln_pre", width),
        **transformer("transformer", width, blocks),
        **norm("ln_post", width),
    }


def text_tower(width: int, blocks: int, embed_dim: int) -> dict[str, Tensor]:
    return {
        "positional_embedding": torch.randn(77, width),
        "token_embedding.weight": torch.randn(49408, width),
        "text_projection": torch.randn(width, embed_dim),
        **transformer("transformer", width, blocks),
        **norm("ln_final", width),
    }


def transformer(name: str, width: int, blocks: int) -> dict[str, Tensor]:
    state = {}
    for block in (f"{name}.resblocks.{i}" for i in range(blocks)):
        state |= attention(f"{block}.attn", width) | norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
        state |= linear(f"{block}.mlp.c_fc", width, 4 * width) | linear(f"{block}.mlp.c_proj", 4 * width, width)
    return state


def attention(name: str, width: int) -> dict[str, Tensor]:
    weights = {f"{name}.in_proj_weight": torch.randn(3 * width, width), f"{name}.in_proj_bias": torch.randn(3 * width)}
    return weights | linear(f"{name}.out_proj", width, width)


def linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(outputs, inputs), f"{name}.bias": torch.randn(outputs)}


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(width), f"{name}.bias": torch.randn(width)}


def batch_norm(name: str, width: int) -> dict[str, Tensor]:
    statistics = {f"{name}.running_mean": torch.randn(width), f"{name}.running_var": torch.rand(width) + 0.5}
    return norm(name, width) | statistics | {f"{name}.num_batches_tracked": torch.tensor(3)}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}
