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


def towers(width: int = 64, *, words: int = 77, patches: int = 6) -> dict[str, Tensor]:
    """Both towers of a CLIP of OpenAI's release, pictures in patches of 16."""
    image = image_tower(width, blocks=2, patch=16, patches=patches) | {"proj": torch.randn(width, width)}
    text = text_tower(width, 1, width) | {"positional_embedding": torch.randn(words, width)}
    return prefixed("visual.", image) | text


def irra(width: int = 64, *, words: int = 77, classes: int = 9) -> dict[str, Tensor]:
    """IRRA trained with SDM, ID and MLM."""
    state = prefixed("base_model.", towers(width, words=words))
    state |= linear("classifier", width, classes) | attention("cross_attn", width)
    state |= transformer("cross_modal_transformer", width, 3)
    for name in ("ln_pre_t", "ln_pre_i", "ln_post", "mlm_head.ln"):
        state |= norm(name, width)
    return state | linear("mlm_head.dense", width, width) | linear("mlm_head.fc", width, 49408)


def local_layers(width: int = 64, dim: int = 96) -> dict[str, Tensor]:
    """What RDE and CFFA have beside the towers."""
    state = {}
    for layer, projections in (("visul_emb_layer", ("linear", "fc")), ("texual_emb_layer", ("linear",))):
        for projection in projections:
            state |= linear(f"{layer}.{projection}", width, dim)
        state |= linear(f"{layer}.mlp.layers.0", width, dim // 2) | linear(f"{layer}.mlp.layers.1", dim // 2, dim)
        state |= batch_norm(f"{layer}.mlp.bns.0", dim // 2) | batch_norm(f"{layer}.mlp.bns.1", dim)
    return state


def rde(width: int = 64) -> dict[str, Tensor]:
    return prefixed("base_model.", towers(width)) | local_layers(width)


def tbps_clip(width: int = 64) -> dict[str, Tensor]:
    """TBPS-CLIP with its SimCLR head; InteractReID's first stage is the same without it."""
    state = interactreid_1(width)
    return state | linear("simclr_mlp.0", width, 32) | linear("simclr_mlp.2", 32, width)


def interactreid_1(width: int = 64) -> dict[str, Tensor]:
    state = {name if "visual." in name else f"encode_text.{name}": t for name, t in towers(width, patches=8).items()}
    return state | {"logit_scale": torch.tensor(4.6)}


def interactreid(width: int = 64, hidden: int = 48) -> dict[str, Tensor]:
    mapping = linear("mapping.layers.0.0", width, hidden) | linear("mapping.fc_out", hidden, width)
    return prefixed("tbps_clip.", interactreid_1(width)) | mapping


def cfine(width: int = 64) -> dict[str, Tensor]:
    """All but W, which lies beside the network."""
    layer = {}
    for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
        layer |= linear(part, width, width)
    layer |= norm("attention.output.LayerNorm", width) | norm("output.LayerNorm", width)
    layer |= linear("intermediate.dense", width, 96) | linear("output.dense", 96, width)
    text = {
        "embeddings.word_embeddings.weight": torch.randn(50, width),
        "embeddings.position_embeddings.weight": torch.randn(120, width),
        "embeddings.token_type_embeddings.weight": torch.randn(2, width),
        **norm("embeddings.LayerNorm", width),
        **prefixed("encoder.layer.0.", layer),
        **prefixed("encoder.layer.1.", layer),
        **linear("pooler.dense", width, width),
    }
    block = attention("self_attn", width) | attention("attn", width)
    block |= linear("mlp.c_fc", width, 4 * width) | linear("mlp.c_proj", 4 * width, width)
    for name in ("ln_0", "ln_1", "ln_2"):
        block |= norm(name, width)
    return {
        **prefixed("image_model.clip_model.", image_tower(width, blocks=2, patch=16, patches=16)),
        **prefixed("language_model.textExtractor.", text),
        **prefixed("block.layers.0.", block),
        **batch_norm("bottleneck_image", width),
        **batch_norm("bottleneck_text", width),
    }
