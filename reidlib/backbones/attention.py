"""Attention of few queries to many tokens, without projecting the tokens."""

import torch
from torch import Tensor, nn


def attend(module: nn.MultiheadAttention, queries: Tensor, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
    """What `module(queries, tokens, tokens, key_padding_mask=padding)` gives, for few queries: (B, Q, D) -> (B, Q, D).

    tokens: (B, L, D), padding: (B, L), true where none may look. Each head's key matrix is applied to its queries,
    q^T (W_k x) = (W_k^T q)^T x, and its value matrix to the weighted sum of the tokens, so that no token is projected:
    Q (2 heads L D + 2 D^2) products instead of 2 L (D^2 + Q D), which is less where Q heads < D; elsewhere the module
    itself is called. A bias of the keys adds the same to all scores of a query and falls out of the softmax.
    """
    heads, width = module.num_heads, module.head_dim
    if queries.shape[1] * heads >= tokens.shape[2]:
        return module(queries, tokens, tokens, key_padding_mask=padding, need_weights=False)[0]
    query_weight, key_weight, value_weight = module.in_proj_weight.chunk(3)
    query_bias, _, value_bias = module.in_proj_bias.chunk(3)
    q = nn.functional.linear(queries, query_weight, query_bias).unflatten(2, (heads, width)) * width**-0.5
    reach = torch.einsum("bqhd,hde->bqhe", q, key_weight.unflatten(0, (heads, width))).flatten(1, 2)
    scores = reach @ tokens.transpose(1, 2)  # (B, Q heads, L)
    if padding is not None:
        scores = scores.masked_fill(padding[:, None], -torch.inf)
    seen = (scores.softmax(dim=2) @ tokens).unflatten(1, (-1, heads))  # (B, Q, heads, D)
    values = torch.einsum("bqhe,hde->bqhd", seen, value_weight.unflatten(0, (heads, width))).flatten(2)
    return module.out_proj(values + value_bias)
