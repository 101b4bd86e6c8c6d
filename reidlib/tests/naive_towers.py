"""CLIP's and BERT's passes written out from the official names alone: what imported models are compared with."""

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, softmax


def picture_tokens(state: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, D) after the final norm and, where there is one, the projection; the last block's attention."""
    kernel = state["conv1.weight"]
    side = kernel.shape[-1]
    patches = images.unfold(2, side, side).unfold(3, side, side)  # (B, 3, rows, columns, side, side)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)
    x = patches @ kernel.flatten(1).T
    x = torch.cat([state["class_embedding"].expand(len(x), 1, -1), x], dim=1) + state["positional_embedding"]
    x, attention = blocks(state, _norm(state, "ln_pre", x))
    x = _norm(state, "ln_post", x)
    return (x @ state["proj"] if "proj" in state else x), attention


def word_tokens(state: dict[str, Tensor], ids: Tensor, embedded: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `picture_tokens`, for ids (B, L) at the full length, under the causal mask."""
    x = state["token_embedding.weight"][ids] if embedded is None else embedded
    length = ids.shape[1]
    future = torch.full((length, length), -torch.inf).triu(1)
    x, attention = blocks(state, x + state["positional_embedding"][:length], future)
    return _norm(state, "ln_final", x) @ state["text_projection"], attention


def blocks(state: dict[str, Tensor], x: Tensor, mask: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    count = len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})
    for name in (f"transformer.resblocks.{i}" for i in range(count)):
        y, attention = attend(state, f"{name}.attn", *(_norm(state, f"{name}.ln_1", x),) * 2, mask)
        x = x + y
        x = x + _mlp(state, f"{name}.mlp", _norm(state, f"{name}.ln_2", x))
    return x, attention


def attend(state: dict[str, Tensor], name: str, queries: Tensor, keys: Tensor, mask=0.0) -> tuple[Tensor, Tensor]:
    """Multi-head attention with heads 64 wide: the result, and the weights averaged over heads."""
    weights, biases = state[f"{name}.in_proj_weight"].chunk(3), state[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (
        linear(x, w, b).unflatten(-1, (-1, 64)).transpose(-2, -3)
        for x, w, b in zip((queries, keys, keys), weights, biases, strict=True)
    )
    seen = softmax(q @ k.transpose(-1, -2) / 8 + mask, dim=-1)
    out = (seen @ v).transpose(-2, -3).flatten(-2)
    return linear(out, state[f"{name}.out_proj.weight"], state[f"{name}.out_proj.bias"]), seen.mean(dim=-3)


def refined(state: dict[str, Tensor], tokens: Tensor, group: Tensor, padding: Tensor | None = None) -> Tensor:
    """CFine's block on [CLS] and a group of tokens, then all tokens: (B, L, D), (B, K, D) -> (B, D)."""
    x = torch.cat([tokens[:, :1], group], dim=1)
    x = x + attend(state, "self_attn", *(_norm(state, "ln_0", x),) * 2)[0]
    mask = 0.0 if padding is None else torch.zeros(padding.shape).masked_fill(padding, -torch.inf)[:, None, None]
    x = x + attend(state, "attn", _norm(state, "ln_1", x), tokens, mask)[0]
    return (x + _mlp(state, "mlp", _norm(state, "ln_2", x)))[:, 0]


def bert_tokens(state: dict[str, Tensor], ids: Tensor) -> tuple[Tensor, Tensor]:
    x = state["embeddings.word_embeddings.weight"][ids] + state["embeddings.token_type_embeddings.weight"][0]
    x = _norm(state, "embeddings.LayerNorm", x + state["embeddings.position_embeddings.weight"][: ids.shape[1]], 1e-12)
    mask = torch.zeros(ids.shape).masked_fill(ids == 0, -torch.inf)[:, None, None]
    for name in (f"encoder.layer.{i}" for i in range(2)):
        packed = {
            f"a.in_proj_{kind}": torch.cat(
                [state[f"{name}.attention.self.{p}.{kind}"] for p in ("query", "key", "value")]
            )
            for kind in ("weight", "bias")
        } | {f"a.out_proj.{kind}": state[f"{name}.attention.output.dense.{kind}"] for kind in ("weight", "bias")}
        y, attention = attend(packed, "a", x, x, mask)
        x = _norm(state, f"{name}.attention.output.LayerNorm", x + y, 1e-12)
        y = gelu(_linear(state, f"{name}.intermediate.dense", x))
        x = _norm(state, f"{name}.output.LayerNorm", x + _linear(state, f"{name}.output.dense", y), 1e-12)
    return x, attention


def batch_norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = (x - state[f"{name}.running_mean"]) / (state[f"{name}.running_var"] + 1e-5).sqrt()
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _mlp(state, name, x):
    x = _linear(state, f"{name}.c_fc", x)
    return _linear(state, f"{name}.c_proj", x * torch.sigmoid(1.702 * x))


def _linear(state, name, x):
    return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state, name, x, eps=1e-5):
    return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)
