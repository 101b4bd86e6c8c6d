"""CLIP by any open_clip name at any input size, with its tokens and the last block's attention on request."""

import logging
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reidlib.errors import ConfigError, ReidError

PAD, MASK_ID = 0, 49405  # CLIP pads with 0; 49405 is the rare word "jekyll", which TBPS-CLIP and IRRA use as the mask


class Tokens(NamedTuple):
    """Every token of a tower and, when asked for, how the last block's heads attended on average."""

    tokens: Tensor  # (B, L, D)
    attention: Tensor | None  # (B, L, L), row = attending token


class CLIP(nn.Module):
    """An open_clip model behind one face: pooled features, tokens, attention, tokenizer.

    `model` keeps open_clip's parameter names (those of OpenAI's release for its models). Captions may be given at any
    length up to `context_length`: under the causal mask what follows the end-of-text token changes nothing before it.
    """

    def __init__(self, model: nn.Module, tokenizer):
        super().__init__()
        self.model = model
        self._tokenizer = [tokenizer]  # in a list: not a module, and shared by copies

    @property
    def image_size(self) -> tuple[int, int]:
        size = self.model.visual.image_size
        return tuple(size) if isinstance(size, (tuple, list)) else (size, size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return tuple(self.model.visual.grid_size)

    @property
    def embed_dim(self) -> int:
        """Width of the space that both towers share."""
        projection = self._text.text_projection
        return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]

    @property
    def image_width(self) -> int:
        """Width of the image tower, which is that of its tokens when they are not projected."""
        return self.model.visual.conv1.out_channels

    @property
    def text_width(self) -> int:
        return self._text.token_embedding.embedding_dim

    @property
    def context_length(self) -> int:
        return self._text.context_length

    @property
    def vocab_size(self) -> int:
        return self._text.token_embedding.num_embeddings

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the inverse temperature, ()."""
        return self.model.logit_scale

    @property
    def _text(self) -> nn.Module:
        return getattr(self.model, "text", self.model)

    # -- pictures --------------------------------------------------------------------------------------------------

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, embed_dim), not normalised."""
        return self.model.encode_image(images)

    def image_tokens(self, images: Tensor, *, project: bool = True, attention: bool = False) -> Tokens:
        """All image tokens, the class token first, after the final layer norm and (`project`) the projection.

        images: (B, 3, H, W). Returns tokens (B, 1 + patches, embed_dim or image_width).
        """
        visual = self.model.visual
        if not hasattr(visual, "transformer"):
            raise ConfigError(
                f"{type(visual).__name__} gives no tokens; this method needs one of open_clip's own ViT models."
            )
        with _Attention(visual.transformer.resblocks, attention) as seen:
            out = visual.forward_intermediates(
                images,
                indices=1,
                normalize_intermediates=True,
                intermediates_only=True,
                output_fmt="NLC",
                output_extra_tokens=True,
            )
        tokens = torch.cat([out["image_intermediates_prefix"][-1], out["image_intermediates"][-1]], dim=1)
        return Tokens(tokens @ visual.proj if project else tokens, seen.weights)

    # -- words -----------------------------------------------------------------------------------------------------

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (B, context_length), padded with 0; texts that are too long are cut, counted and warned about."""
        return pad_and_cut([self._encode(text) for text in texts], self.context_length, PAD)

    def count_tokens(self, text: str) -> tuple[int, int]:
        """How many tokens `text` takes, and how many there is room for."""
        return len(self._encode(text)), self.context_length

    def words(self, ids: Tensor) -> list[str]:
        """The tokens of one caption (L,) as readable pieces, up to the end-of-text token."""
        ids = ids[: int(ids.argmax()) + 1].tolist()
        return [self._tokenizer[0].decode([i]).strip() for i in ids]

    def _encode(self, text: str) -> list[int]:
        tokenizer = self._tokenizer[0]
        return [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]

    def encode_text(self, ids: Tensor, embedded: Tensor | None = None) -> Tensor:
        """(B, L) -> (B, embed_dim), read at the end-of-text token, not normalised.

        `embedded` (B, L, text_width) takes the place of the looked-up token embeddings.
        """
        ids = trim(ids)
        tokens = self.text_tokens(ids, embedded=embedded).tokens
        return tokens[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]

    def pieces(self, ids: Tensor) -> list[str]:
        """What each of the token ids (L,) stands for."""
        return [self._tokenizer[0].decode([token]).strip() for token in ids.tolist()]

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token embeddings before positions are added, (B, L) -> (B, L, text_width)."""
        return self._text.token_embedding(ids)

    def text_tokens(
        self, ids: Tensor, *, project: bool = True, attention: bool = False, embedded: Tensor | None = None
    ) -> Tokens:
        """All text tokens after the final norm and, if `project`, the projection: (B, L, embed_dim or text_width)."""
        text, length = self._text, ids.shape[1]
        x = text.token_embedding(ids) if embedded is None else embedded[:, :length]
        x = x + text.positional_embedding[:length]
        mask = text.attn_mask if text.attn_mask is None else text.attn_mask[:length, :length]
        with _Attention(text.transformer.resblocks, attention) as seen:
            x = text.ln_final(text.transformer(x, attn_mask=mask))
        if project:
            projection = text.text_projection
            x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        return Tokens(x, seen.weights)

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute both towers' activations in the backward pass: less memory, about a third more time."""
        self.model.set_grad_checkpointing(on)


class _Attention(nn.Module):
    """While open, stands for the last of some blocks and also keeps its attention weights averaged over heads.

    The block's output stays what it was; every other block keeps the fused kernel. `weights` is set only if `on`.
    A block whose activations are recomputed is called again after closing, through this stand-in and so alike.
    """

    def __init__(self, blocks: nn.ModuleList, on: bool):
        super().__init__()
        self.blocks, self.block, self.on, self.weights = [blocks], blocks[-1], on, None  # in a list: not a part of it

    def __enter__(self):
        if self.on:
            self.blocks[0][-1] = self
        return self

    def __exit__(self, *_):
        self.blocks[0][-1] = self.block

    def forward(self, *args, **kwargs) -> Tensor:
        handles = [
            self.block.attn.register_forward_pre_hook(self._ask, with_kwargs=True),
            self.block.attn.register_forward_hook(self._keep),
        ]
        try:
            return self.block(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def _ask(self, _module, args, kwargs):
        return args, kwargs | {"need_weights": True, "average_attn_weights": True}

    def _keep(self, _module, _args, output):
        self.weights = output[1]


def pad_and_cut(
    rows: list[list[int]], length: int, pad: int, *, keep_end: bool = True, to_longest: bool = False
) -> Tensor:
    """Token ids of every tower, (B, L), padded on the right; rows beyond `length` are cut and a warning counts them.

    keep_end: a row that is cut keeps its last token. to_longest: L is that of the longest row left, not `length`.
    """
    over = [len(row) - length for row in rows if len(row) > length]
    if over:
        warnings.warn(
            f"{len(over)} of {len(rows)} texts are longer than {length} tokens and were cut, by up to {max(over)}.",
            stacklevel=3,
        )
    rows = [row if len(row) <= length else row[: length - keep_end] + row[len(row) - keep_end :] for row in rows]
    ids = torch.full((len(rows), max(map(len, rows), default=0) if to_longest else length), pad)
    for ids_row, row in zip(ids, rows, strict=True):
        ids_row[: len(row)] = torch.tensor(row, dtype=torch.long)
    return ids


def trim(ids: Tensor) -> Tensor:
    """Drops the columns behind the last end-of-text token of all rows, (B, L) -> (B, longest).

    That token has the largest id. What pads, 0, is also a piece of words ("coat!(long)"), so it cannot be counted.
    """
    return ids[:, : int(ids.argmax(dim=1).max()) + 1]


def create_clip(
    name: str, image_size: tuple[int, int] | None = None, pretrained: str = "", text_dropout: float = 0.0
) -> CLIP:
    """A CLIP by name.

    name: any open_clip model name; "toy" is the small one shipped with this package, pre-trained on drawn people, and
    "toy-random" the same without its weights. image_size: (height, width); positions are interpolated to it.
    pretrained: an open_clip tag or a local file; empty leaves the weights random. text_dropout: probability that an
    attention weight of the text tower is dropped in training. Raises ConfigError for an unknown name or tag and
    ReidError when weights must be fetched and cannot be.
    """
    if name in ("toy", "toy-random"):
        from reidlib.backbones.toy import toy_clip

        clip = toy_clip(image_size, weights=name == "toy")
    else:
        clip = _open_clip(name, image_size, pretrained)
    for block in clip._text.transformer.resblocks if text_dropout else ():
        block.attn.dropout = text_dropout
    return clip


def _open_clip(name: str, image_size: tuple[int, int] | None, pretrained: str) -> CLIP:
    import open_clip

    if name not in open_clip.list_models():
        from reidlib.config import nearest

        raise ConfigError(f"open_clip knows no model {name!r}; {nearest(name, open_clip.list_models())}.")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained and pretrained not in tags and not Path(pretrained).is_file():
        choices = ", ".join(["a local file", *tags])
        raise ConfigError(f"{name} has no weights {pretrained!r}; expected one of: {choices}.")
    logging.getLogger().addFilter(_nothing)  # open_clip narrates every step on the root logger
    try:
        model = open_clip.create_model(name, pretrained=pretrained or None, force_image_size=image_size)
        return CLIP(model, open_clip.get_tokenizer(name))
    except (OSError, RuntimeError, ValueError, UnpicklingError) as error:
        what = f"The weights {pretrained!r} of {name}" if pretrained else f"What {name} is made of"
        raise ReidError(
            f"{what} could not be loaded: {str(error).splitlines()[0].rstrip('.')}. Without a network, fetch them on "
            "another machine and give the file's path as `pretrained`."
        ) from error
    finally:
        logging.getLogger().removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def augment_tokens(ids: Tensor, probability: float = 0.2) -> Tensor:
    """Each word by `probability` becomes the mask (60 %), a random word (20 %), or is dropped (20 %).

    What follows a dropped word moves left. The start and end tokens stay. ids: (N, L), padded with 0 on the right.
    Source: the caption augmentation of RDE and CFFA.
    """
    draw = torch.rand(ids.shape, device=ids.device) / probability
    draw = draw.masked_fill(~_are_words(ids), 1.0)
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
    chosen = (draw < 1) & _are_words(ids) & (ids != MASK_ID)
    masked = torch.where(chosen & (draw < 0.8), MASK_ID, ids)
    masked = torch.where(chosen & (draw >= 0.8) & (draw < 0.9), _random_words(ids), masked)
    return masked, torch.where(chosen, ids, PAD)


def _are_words(ids: Tensor) -> Tensor:
    """Where a word or its mask stands: neither padding nor the tokens (ids above the mask's) that start and end."""
    return (ids != PAD) & (ids <= MASK_ID)


def _random_words(ids: Tensor) -> Tensor:
    return torch.randint_like(ids, 1, MASK_ID)
