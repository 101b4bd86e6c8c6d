"""CFFA: wholes and attended tokens aligned by one loss, and words guessed from the picture; IRRA is a part of it.

A CLIP's two towers give a vector for every patch and word, in a space they share. `Head` holds everything after them:

1. *Global features*: the image's [CLS] and the caption's end-of-text token.
2. *Local features*: the tokens that those two attend to most in the last layer, each embedded by a small network, and
   the largest value of each dimension over them (`LocalEmbedding`). A search adds the cosines of both, halved.
3. *Implicit relation reasoning* (training only): a caption with hidden words looks at the patches through a
   cross-attention and a small transformer, and the hidden words are guessed. From IRRA.

    L = MAL(global) + MAL(local) + 1.4 MLM + ID

MAL is the multi-association loss (`losses.mal`), ID the cross-entropy of identities, one classifier for both
modalities. Source: CFFA, "Cross-Modal Fine-grained Feature Alignment for Text-Based Person Re-id", and its code; local
features: RDE, Qin et al., CVPR 2024; reasoning: IRRA, Jiang and Ye, CVPR 2023.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from reidlib.backbones.adapters import add_adapters
from reidlib.backbones.attention import attend
from reidlib.backbones.clip import CLIP, augment_tokens, create_clip, mask_tokens, trim
from reidlib.config import Config
from reidlib.devices import gather, weight_of
from reidlib.losses import association_factor, mal, masked_language_loss
from reidlib.methods.base import Method


@dataclass
class CFFAConfig(Config):
    """CFFA's settings. `local_dim=0` is CFFA without local features, `mlm_weight=0` without masked language."""

    text_dropout: float = 0.05  # of attention weights in the text tower
    select_ratio: float = 0.3  # of patches and of words that become a local feature
    local_dim: int = 256  # of local features; 0: none
    heads: int = 4  # of the cross-modal layers
    mlm_layers: int = 2

    tau: float = 0.015
    margin: float = 0.1
    # c of the loss: "floor" as the official code, "exact", or "tau" for RDE's TAL
    mal_factor: Literal["floor", "exact", "tau"] = "floor"
    mal_reduction: Literal["sum", "mean"] = "sum"  # over the batch, "sum" as the official code
    mlm_weight: float = 1.4
    id_weight: float = 1.0
    augment_words: float = 0.2  # probability that a word is hidden, replaced or dropped
    mask_words: float = 0.15  # probability that a word is to be guessed
    share_masked: bool = True  # all losses see the caption with words to guess hidden, as in the official code
    # Leave out columns that are padding in the whole batch; the official code computes all. A caption too short to
    # select words from is filled up with padding, and with which then depends on the batch.
    trim: bool = True

    bias_lr: float = 2.0  # times lr
    cross_lr: float = 5.0  # times lr: cross-modal layers, classifier, word head
    local_lr: float = 1e-3  # of the local embeddings, absolute

    @classmethod
    def paper(cls) -> Self:
        return cls(
            backbone="ViT-B-16-quickgelu:openai",
            image_size=(384, 128),
            interpolation="bilinear",
            positions="bilinear",  # as the official code; antialiased bicubic is open_clip's
            augment="irra",
            local_dim=1024,
            heads=8,
            mlm_layers=4,
            trim=False,
            epochs=60,
            batch_size=64,
            drop_last=False,
            optimizer="adam",
            lr=1e-5,
            betas=(0.9, 0.999),
            eps=1e-3,
            weight_decay=4e-5,
            schedule="cosine",
            schedule_every="epoch",
            warmup_epochs=5,
            warmup_from=0.1,
            workers=8,
        )

    @classmethod
    def toy(cls) -> Self:
        # At the official tau the small towers make all cosines equal. In so few steps, words to guess and people to
        # classify cost more than they teach.
        return cls(
            augment="cfine",
            epochs=2,
            optimizer="adamw",
            lr=6e-4,
            weight_decay=0.05,
            tau=0.05,
            mal_factor="tau",
            mlm_weight=0.0,
            id_weight=0.0,
            augment_words=0.0,
        )


class Features(NamedTuple):
    """What the head makes of one modality."""

    whole: Tensor  # (B, D)
    local: Tensor | None  # (B, local_dim), None where the method goes without


class Head(nn.Module):
    """Everything after the two encoders.

    width: of the tokens of both. words: tokens of a full caption, start and end included; the number of selected words
    is a share of it whatever the batch is trimmed to. vocab_size: of the words to guess.
    """

    def __init__(self, config: CFFAConfig, width: int, words: int, vocab_size: int, num_classes: int):
        super().__init__()
        self.config = config
        self.selected_words = int((words - 2) * config.select_ratio)
        if config.local_dim:
            self.image_local = LocalEmbedding(width, config.local_dim)
            self.text_local = LocalEmbedding(width, config.local_dim)
        if config.mlm_weight:
            self.reasoning = Reasoning(width, config.heads, config.mlm_layers, vocab_size)
        if num_classes:  # RDE's files know no identities
            self.classifier = nn.Linear(width, num_classes)
            nn.init.normal_(self.classifier.weight, std=0.001)
            nn.init.zeros_(self.classifier.bias)

    def image(self, tokens: Tensor, attention: Tensor | None) -> Features:
        """tokens: (B, L, D), [CLS] first; attention: (B, L, L) of the last layer, averaged over heads."""
        if not self.config.local_dim:
            return Features(tokens[:, 0], None)
        index = select_patches(attention, int((tokens.shape[1] - 1) * self.config.select_ratio))
        return Features(tokens[:, 0], self.image_local(gather_tokens(tokens, index)))

    def text(self, tokens: Tensor, attention: Tensor | None, ids: Tensor) -> Features:
        """As `image`, for captions with token ids (B, L)."""
        end = ids.argmax(dim=1)
        whole = tokens[torch.arange(ids.shape[0], device=ids.device), end]
        if not self.config.local_dim:
            return Features(whole, None)
        index = select_words(attention, ids, self.selected_words)
        return Features(whole, self.text_local(gather_tokens(tokens, index), end - 1))

    def alignment(self, image: Features, text: Features, pids: Tensor) -> dict[str, Tensor]:
        """The multi-association losses, in float32; pair i is row i of both. pids: (B,)."""
        config = self.config
        factor = association_factor(len(pids), config.mal_factor, config.tau)
        losses = {}
        for name, images, texts in (("mal", image.whole, text.whole), ("mal_local", image.local, text.local)):
            if images is not None:
                similarity = normalize(texts.float(), dim=1) @ normalize(images.float(), dim=1).T
                each = mal(similarity, pids, factor=factor, tau=config.tau, margin=config.margin)
                losses[name] = each.mean() if config.mal_reduction == "mean" else each.sum()
        return losses

    def identity(self, image: Features, text: Features, pids: Tensor) -> Tensor:
        """½ [CE(image) + CE(text)] of one classifier on both global features."""
        return sum(cross_entropy(self.classifier(x.whole.float()), pids) for x in (image, text)) / 2

    @staticmethod
    def embedding(features: Features) -> Tensor:
        """Both features at length 1, joined and divided by sqrt 2: the inner product is the mean of two cosines."""
        whole = normalize(features.whole.float(), dim=1)
        if features.local is None:
            return whole
        return torch.cat([whole, normalize(features.local.float(), dim=1)], dim=1) / 2**0.5


class LocalEmbedding(nn.Module):
    """Selected tokens as one vector: max over tokens of W x + MLP(x), x at length 1, dimension by dimension."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.project = nn.Linear(width, dim)
        self.mlp = nn.Sequential(
            nn.Linear(width, dim // 2), nn.BatchNorm1d(dim // 2), nn.ReLU(), nn.Linear(dim // 2, dim)
        )

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """tokens: (B, K, D), best first. lengths: (B,) how many of them are words; the rest is left out of the maximum.

        A caption that has no word left is read by its first selected token, so that it gives numbers at all.
        """
        x = normalize(tokens.float(), dim=2)
        y = self.project(x) + self.mlp(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        if lengths is not None:
            beyond = torch.arange(x.shape[1], device=x.device) >= lengths.clamp(min=1)[:, None]
            y = y.masked_fill(beyond[:, :, None], -torch.inf)
        return y.amax(dim=1)


class Reasoning(nn.Module):
    """Implicit relation reasoning of IRRA: hidden words guessed with the help of the patches.

    y = LN T(MHA(q = LN words, k = v = LN patches)), T a transformer; the guess is a two-layer head on y.
    """

    def __init__(self, width: int, heads: int, layers: int, vocab_size: int):
        super().__init__()
        from open_clip.transformer import QuickGELU, Transformer

        self.cross_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_modal_transformer = Transformer(width, layers, heads, act_layer=QuickGELU)
        self.ln_pre_t, self.ln_pre_i, self.ln_post = (nn.LayerNorm(width) for _ in range(3))
        self.mlm_head = nn.Sequential()
        self.mlm_head.add_module("dense", nn.Linear(width, width))
        self.mlm_head.add_module("gelu", QuickGELU())
        self.mlm_head.add_module("ln", nn.LayerNorm(width))
        self.mlm_head.add_module("fc", nn.Linear(width, vocab_size))
        self._start_small()

    def _start_small(self) -> None:
        """Normal weights that shrink with width and depth: CLIP's scheme, which IRRA applies here."""
        blocks = self.cross_modal_transformer.resblocks
        width = self.ln_post.normalized_shape[0]
        deep = (2 * width * len(blocks)) ** -0.5
        for attention in (self.cross_attn, *(block.attn for block in blocks)):
            nn.init.normal_(attention.in_proj_weight, std=width**-0.5)
            nn.init.normal_(attention.out_proj.weight, std=deep)
        for first, last in ((self.mlm_head.dense, self.mlm_head.fc), *((b.mlp.c_fc, b.mlp.c_proj) for b in blocks)):
            nn.init.normal_(first.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(last.weight, std=deep)

    def fuse(self, text: Tensor, image: Tensor, wanted: Tensor) -> Tensor:
        """Words that have seen the patches and each other, those at `wanted` (B, K): (B, K, D).

        text: (B, L, D), image: (B, M, D). The last block is computed for the wanted words alone.
        """
        image = self.ln_pre_i(image)
        x = self.cross_attn(self.ln_pre_t(text), image, image, need_weights=False)[0]
        *blocks, last = self.cross_modal_transformer.resblocks
        for block in blocks:
            x = block(x)
        inner = last.ln_1(x)
        x = gather_tokens(x, wanted) + attend(last.attn, gather_tokens(inner, wanted), inner)
        return self.ln_post(x + last.mlp(last.ln_2(x)))

    def forward(self, text: Tensor, image: Tensor, labels: Tensor) -> Tensor:
        """The loss of guessing; labels: (B, L), 0 where there is nothing to guess.

        Only the hidden words reach the head: logits are (M, vocabulary), not (B, L, vocabulary).
        """
        hidden = labels != 0
        count = hidden.sum(dim=1, keepdim=True)
        most = max(int(count.max()), 1)
        first = hidden.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # the hidden ones, then others
        words = self.fuse(text, image, first)[torch.arange(most, device=count.device) < count]
        loss = masked_language_loss(self.mlm_head(words), labels[hidden])
        return loss * weight_of(hidden.sum())


def select_patches(attention: Tensor, count: int) -> Tensor:
    """Indices (B, count) of the patches that [CLS] attends to most, best first. attention: (B, L, L)."""
    scores = attention[:, 0].clone()
    scores[:, 0] = -1
    return scores.topk(count, dim=1).indices


def select_words(attention: Tensor, ids: Tensor, count: int) -> Tensor:
    """Indices (B, count) of the words that the end-of-text token attends to most, best first.

    attention: (B, L, L). Padding has score 0, the start and end tokens -1: a short caption is filled up with padding.
    """
    rows, end = torch.arange(ids.shape[0], device=ids.device), ids.argmax(dim=1)
    scores = attention[rows, end].masked_fill(ids == 0, 0.0)
    scores[:, 0] = -1
    scores[rows, end] = -1
    return scores.topk(min(count, ids.shape[1]), dim=1).indices


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """tokens (B, L, D), index (B, K) -> (B, K, D)."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


class CFFA(Method):
    """A CLIP and `Head`. See the module's text. clip: a model to use in place of the one that `config` names."""

    name = "cffa"
    reads = ("text",)
    config: CFFAConfig

    def __init__(self, config: CFFAConfig, num_classes: int = 0, *, clip: CLIP | None = None):
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.clip = clip or create_clip(config.backbone, config.image_size, config.positions)
        self.clip.require(self.name, patches=True, words=True)
        for block in self.clip.model.transformer.resblocks:
            block.attn.dropout = config.text_dropout
        self.clip.logit_scale.requires_grad_(False)  # the temperature is tau
        add_adapters(self.clip.model, config.lora)
        self.head = Head(config, self.clip.embed_dim, self.clip.context_length, self.clip.vocab_size, num_classes)

    def tokenize(self, texts: list[str]) -> Tensor:
        return self.clip.tokenize(texts)

    def count_tokens(self, text: str) -> tuple[int, int]:
        return self.clip.count_tokens(text)

    def embed_image(self, images: Tensor) -> Tensor:
        return self.head.embedding(self.head.image(*self._image_tokens(images)))

    def embed_text(self, ids: Tensor) -> Tensor:
        ids = self._trimmed(ids)
        return self.head.embedding(self.head.text(*self._text_tokens(ids), ids))

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Weighted losses. Words are changed, then some hidden, here.

        The official code hides the words to guess in the caption of all losses: a copy that was meant to be one shares
        its memory. So one pass of the text tower serves them all; `share_masked=False` makes two of it.
        """
        config, pids = self.config, batch["pids"]
        ids = batch["text"]
        ids = augment_tokens(self._trimmed(ids) if config.trim else ids, config.augment_words)
        masked, labels = mask_tokens(ids, config.mask_words)
        if config.mlm_weight and config.share_masked:
            ids = masked
        image_tokens, text_tokens = self._image_tokens(batch["images"]), self._text_tokens(ids)
        image, text = self.head.image(*image_tokens), self.head.text(*text_tokens, ids)
        with torch.autocast(self.device.type, enabled=False):
            losses = self.head.alignment(self._gathered(image), self._gathered(text), gather(pids))
            if config.id_weight:
                losses["id"] = config.id_weight * self.head.identity(image, text, pids)
        if config.mlm_weight:
            hidden = text_tokens if config.share_masked else self.clip.text_tokens(masked)
            losses["mlm"] = config.mlm_weight * self.head.reasoning(hidden.tokens, image_tokens.tokens, labels)
        return losses

    def rate_of(self, name: str, parameter: nn.Parameter, config: CFFAConfig) -> tuple[float, float]:
        """By name, as the official code has it. A later rule wins: a cross-modal bias is a bias first."""
        lr, decay = config.lr, config.weight_decay
        if "cross" in name:
            lr = config.lr * config.cross_lr
        if "bias" in name:
            lr, decay = config.lr * config.bias_lr, 0.0
        if "classifier" in name or "mlm_head" in name:
            lr = config.lr * config.cross_lr
        if "_local." in name:
            lr = config.local_lr
        return lr, decay

    def _image_tokens(self, images: Tensor):
        return self.clip.image_tokens(images, attention=bool(self.config.local_dim))

    def _text_tokens(self, ids: Tensor):
        return self.clip.text_tokens(ids, attention=bool(self.config.local_dim))

    def _trimmed(self, ids: Tensor) -> Tensor:
        """Without the padding that all captions share, but long enough to select words from."""
        return ids[:, : max(trim(ids).shape[1], self.head.selected_words + 2)]

    def _gathered(self, features: Features) -> Features:
        return Features(*(None if tensor is None else gather(tensor) for tensor in features))
