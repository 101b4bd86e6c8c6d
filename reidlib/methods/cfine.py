"""CFine: a picture and a caption matched as wholes, by two groups of their most attended tokens, and token by token.

CLIP's image tower, without its projection, and a BERT give a vector for every patch and word. What the last layer's
[CLS] attends to most is worth comparing. `Head` holds everything after the two towers:

1. *Multi-grained features*. The K best-attended tokens form group 1, the next K group 2. One block, the same for both
   groups and both modalities, refines [CLS] within the group and then looks back at all tokens. With the plain [CLS]
   that makes three features a sample: global, part 1, part 2. Each goes through its modality's batch-norm neck. The
   three are joined, brought to length 1, and compared by inner product: nothing else is used in a search.
2. *Cross-grained refinement* and *fine-grained discovery* (training only). Similarities of a whole with the other
   side's tokens, and of tokens with the tokens that answer them, are ranked so that the right pair beats its hardest
   negative. See `cross_grained` and `fine_grained`.

    L = sum_b w_b CMPM_b + sum_b CMPC_b + 0.2 (diversity of image parts + of text parts) + 10 ranking(S)

Source: Yan et al., "CLIP-Driven Fine-grained Text-Image Person Re-identification", IEEE TIP 2023, arXiv 2210.10276,
and its code, whose behaviour is the default where the two differ.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from reidlib.backbones.adapters import add_adapters
from reidlib.backbones.attention import attend
from reidlib.backbones.bert import TextEncoder, create_text_encoder
from reidlib.backbones.clip import CLIP, Tokens, create_clip
from reidlib.config import Config
from reidlib.devices import gather
from reidlib.errors import ConfigError
from reidlib.losses import cmpc, cmpm, diversity, hardest_ranking
from reidlib.methods.base import Method


@dataclass
class CFineConfig(Config):
    """CFine's settings. `cross_weight=0, fine_weight=0` leaves the training-only similarities out altogether.

    `lr` and `weight_decay` are those of the image tower; nothing else decays.
    """

    # A transformers encoder by name or folder, one of backbones.bert.RANDOM, or "clip": the backbone's own text tower.
    text_encoder: str = "clip"
    text_length: int = 64  # tokens a caption is padded and cut to
    heads: int = 4  # of the refining block
    image_ratio: float = 0.3  # of the tokens, in each of the two groups
    text_ratio: float = 0.2
    matches: int = 3  # best words that make up a patch's answer, and the reverse

    cmpm_weights: tuple[float, float, float] = (1.0, 1.0, 0.1)  # global, part 1, part 2
    # "l2" as the official code; "distribution": rows that sum to 1, as the paper
    cmpm_target: Literal["l2", "distribution"] = "l2"
    diversity_weight: float = 0.2
    ranking_weight: float = 10.0
    # over anchors, "sum" as the official code; "mean" does not grow with the batch
    ranking_reduction: Literal["sum", "mean"] = "sum"
    cross_weight: float = 1.0  # of the cross-grained similarity in the ranked one; 0: not computed
    fine_weight: float = 1.0  # of the fine-grained one
    text_lr: float = 1e-3  # of a text encoder that is not CLIP's own
    head_lr: float = 1e-3  # of everything else

    @classmethod
    def paper(cls) -> Self:
        return cls(
            backbone="ViT-B-16-quickgelu:openai",
            image_size=(224, 224),
            augment="cfine",
            text_encoder="bert-base-uncased",
            text_length=100,
            heads=12,
            image_ratio=0.1,
            text_ratio=0.2,
            epochs=50,
            batch_size=32,
            optimizer="adam",
            lr=1e-5,
            text_lr=1e-5,
            head_lr=1e-4,
            weight_decay=4e-5,
            schedule="step",
            schedule_every="epoch",
            milestones=(20, 25, 35),
            decay=0.1,
            warmup_epochs=10,
            warmup_from=0.01,
            precision="fp32",
            workers=4,
            seed=42,
        )

    @classmethod
    def toy(cls) -> Self:
        return cls(
            augment="cfine",
            text_length=60,
            epochs=2,
            batch_size=64,
            optimizer="adam",
            lr=6e-4,
            weight_decay=0.0,
            ranking_weight=1.0,  # the official sum, times 10, makes all tokens equal
            ranking_reduction="mean",
        )


class Features(NamedTuple):
    """What the head makes of one modality."""

    branches: Tensor  # (B, 3, D): global, part 1, part 2, after the neck
    whole: Tensor  # (B, D): the tower's [CLS]
    selected: Tensor  # (B, 2K, D): the towers' tokens of both groups, the best-attended first


class Head(nn.Module):
    """Everything after the two encoders. width: of the tokens of both. num_classes: identities in training."""

    def __init__(self, config: CFineConfig, width: int, num_classes: int):
        super().__init__()
        self.config = config
        self.block = RefiningBlock(width, config.heads)
        self.neck_image, self.neck_text = _neck(width), _neck(width)
        self.classifier = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, num_classes)))  # CMPC's W

    def image(self, tokens: Tensor, attention: Tensor) -> Features:
        """tokens: (B, L, D), [CLS] first; attention: (B, L, L) of the last layer, averaged over heads."""
        return self._features(tokens, attention, share(tokens.shape[1], self.config.image_ratio), self.neck_image)

    def text(self, tokens: Tensor, attention: Tensor, padding: Tensor, length: int = 0) -> Features:
        """As `image`; padding: (B, L) true where there is no word, which the refining block must not look at. length:
        of a full caption, where padding was cut off."""
        count = share(length or tokens.shape[1], self.config.text_ratio)
        return self._features(tokens, attention, count, self.neck_text, padding)

    def _features(self, tokens, attention, count, neck, padding=None) -> Features:
        index = select(attention, count)
        selected = tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))
        parts = self.block(tokens, selected.unflatten(1, (2, -1)), padding)
        # The neck normalises each branch by its own batch statistics.
        branches = [neck(branch.float()) for branch in (tokens[:, 0], parts[:, 0], parts[:, 1])]
        return Features(torch.stack(branches, dim=1), tokens[:, 0].float(), selected.float())

    def similarity(self, image: Features, text: Features) -> Tensor:
        """The similarity that training ranks, images by texts: (B, D) features -> (B, B)."""
        config, similarity = self.config, 0.0
        if config.cross_weight:
            similarity = config.cross_weight * cross_grained(image, text)
        if config.fine_weight:
            similarity = similarity + config.fine_weight * fine_grained(image, text, config.matches)
        return similarity

    def losses(self, image: Features, text: Features, pids: Tensor) -> dict[str, Tensor]:
        """Weighted losses by name, in float32; image and text: pair i is row i of both. pids: (B,)."""
        config = self.config
        pair = image.branches.transpose(0, 1), text.branches.transpose(0, 1)
        matched = (cmpm(*branches, pids, target=config.cmpm_target) for branches in zip(*pair, strict=True))
        losses = {
            "cmpm": sum(weight * loss for weight, loss in zip(config.cmpm_weights, matched, strict=True)),
            "cmpc": cmpc(*pair, self.classifier, pids).sum(),
        }
        losses["diversity"] = config.diversity_weight * (
            diversity(image.branches[:, 1:]) + diversity(text.branches[:, 1:])
        )
        if config.ranking_weight and (config.cross_weight or config.fine_weight):
            losses["ranking"] = config.ranking_weight * hardest_ranking(
                self.similarity(image, text), pids, reduction=config.ranking_reduction
            )
        return losses

    @staticmethod
    def embedding(features: Features) -> Tensor:
        """All three branches as one vector of length 1, (B, 3D); a longer branch counts more."""
        return normalize(features.branches.flatten(1), dim=1)


class RefiningBlock(nn.Module):
    """[CLS] refined within a group of tokens, then by all tokens: the residual cross-attention block of CFine.

        x = [CLS; group];  x += SelfMHA(LN x);  x += MHA(q = LN x, k = v = all tokens);  x += MLP(LN x)

    Only the [CLS] of the result is used and the block stands alone, so only its row is computed: what the other rows
    would be changes nothing. Names of parameters are the official ones.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        from open_clip.transformer import QuickGELU

        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_0 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, groups: Tensor, padding: Tensor | None) -> Tensor:
        """tokens (B, L, D), groups (B, G, K, D), padding (B, L) or None -> (B, G, D)."""
        cls = tokens[:, None, :1].expand(-1, groups.shape[1], -1, -1)
        x = torch.cat([cls, groups], dim=2).flatten(0, 1)
        inner = self.ln_0(x)
        x = x[:, :1] + attend(self.self_attn, inner[:, :1], inner)
        x = x.view(len(tokens), -1, tokens.shape[2])
        x = x + attend(self.attn, self.ln_1(x), tokens, padding)
        return x + self.mlp(self.ln_2(x))


def share(length: int, ratio: float) -> int:
    """The tokens of a group: `ratio` of `length`, at least one."""
    return max(int(length * ratio), 1)


def select(attention: Tensor, count: int) -> Tensor:
    """Indices (B, 2 count) of the tokens that the first one attends to most, best first.

    attention: (B, L, L). The first token's own score is set to 0 and so comes last, with padding; of equal scores the
    earlier token comes first, where the official code leaves the order to topk.
    """
    scores = attention[:, 0].clone()
    scores[:, 0] = 0
    return scores.sort(dim=1, descending=True, stable=True).indices[:, : 2 * count]


def cross_grained(image: Features, text: Features, temperature: float = 0.07) -> Tensor:
    """Similarity of wholes with tokens (CFR), images by texts, (B, B):

        ½ [ sum_k a_ijk s(v_i, w_jk) + sum_n b_ijn s(p_in, t_j) ],   s = cos / temperature, a and b its softmax

    over the tokens. v, t: [CLS] of picture and caption; w, p: selected words and patches. Memory: (B, B, 2K).
    """
    words = _attended(image.whole, text.selected, temperature)
    patches = _attended(text.whole, image.selected, temperature)
    return (words + patches.T) / 2


def _attended(whole: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    logits = torch.einsum("id,jkd->ijk", normalize(whole, dim=1), normalize(tokens, dim=2)) / temperature
    return (logits.softmax(dim=2) * logits).sum(dim=2)


def fine_grained(image: Features, text: Features, matches: int = 3, temperature: float = 0.01) -> Tensor:
    """Similarity of tokens with the tokens that answer them (FCD), images by texts, (B, B).

    Within each pair, A = softmax over words of cos(patch, word), both of group 1. The answer q_n to patch n is the mean
    of the words with the `matches` highest A in its row, the answer r_w to word w the mean of the patches highest in
    its column. Then

        S_ij = ½ [ mean_n cos(p_in, q_jn) + mean_w cos(r_iw, w_jw) ] / temperature

    A sum of inner products over aligned tokens is the inner product of the tokens joined into one vector, so the
    (B, B, K) tensors of the official code need not exist.
    """
    patches, words = _group1(image), _group1(text)
    aligned = (normalize(patches, dim=2) @ normalize(words, dim=2).transpose(1, 2)).softmax(dim=2)
    answers_to_patches = _mean_of_best(words, aligned, matches)
    answers_to_words = _mean_of_best(patches, aligned.transpose(1, 2), matches)
    return (_aligned_cosine(patches, answers_to_patches) + _aligned_cosine(answers_to_words, words)) / (2 * temperature)


def _group1(features: Features) -> Tensor:
    return features.selected[:, : features.selected.shape[1] // 2]


def _mean_of_best(candidates: Tensor, scores: Tensor, count: int) -> Tensor:
    """candidates (B, M, D), scores (B, N, M) -> (B, N, D), the mean of each row's `count` best."""
    best = scores.topk(min(count, scores.shape[2]), dim=2).indices
    chosen = torch.zeros_like(scores).scatter(2, best, 1.0)
    return chosen @ candidates / best.shape[2]


def _aligned_cosine(a: Tensor, b: Tensor) -> Tensor:
    """mean_n cos(a_in, b_jn): (B, N, D), (B, N, D) -> (B, B)."""
    return normalize(a, dim=2).flatten(1) @ normalize(b, dim=2).flatten(1).T / a.shape[1]


def _neck(width: int) -> nn.BatchNorm1d:
    neck = nn.BatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck


class CFine(Method):
    """CLIP's image tower, a text encoder, and `Head`. See the module's text.

    clip, bert: towers to use in place of those that `config` names.
    """

    name = "cfine"
    reads = ("text",)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config: CFineConfig

    def __init__(
        self, config: CFineConfig, num_classes: int = 0, *, clip: CLIP | None = None, bert: TextEncoder | None = None
    ):
        super().__init__()
        self.config, self.num_classes = config, num_classes
        clip = clip or create_clip(config.backbone, config.image_size, config.positions)
        self.project = bert is None and config.text_encoder == "clip"  # into the space that both towers of CLIP share
        clip.require(self.name, patches=True, words=self.project)
        self.clip = clip if self.project else _image_tower(clip)
        if self.project:
            self.bert = OwnWords(clip, config.text_length)
        else:
            self.bert = bert or create_text_encoder(config.text_encoder, config.text_length, clip.image_width)
        add_adapters(self.clip.model, config.lora)
        if not self.project:
            add_adapters(self.bert.model, config.lora)
        width = clip.embed_dim if self.project else clip.image_width
        if width != self.bert.width:
            raise ConfigError(
                f"CFine compares tokens of equal width; {config.backbone} gives {width} and "
                f"{config.text_encoder} {self.bert.width}."
            )
        self.head = Head(config, self.bert.width, num_classes)

    def tokenize(self, texts: list[str]) -> Tensor:
        return self.bert.tokenize(texts)

    def embed_image(self, images: Tensor) -> Tensor:
        return self.head.embedding(self.image_features(images))

    def embed_text(self, ids: Tensor) -> Tensor:
        return self.head.embedding(self.text_features(ids))

    def image_features(self, images: Tensor) -> Features:
        """(B, 3, H, W) -> branches and selected patches."""
        return self.head.image(*self.image_tokens(images))

    def image_tokens(self, images: Tensor) -> Tokens:
        """(B, 3, H, W) -> the image tower's tokens (B, L, D) and its last attention (B, L, L)."""
        return self.clip.image_tokens(images, project=self.project, attention=True)

    def text_features(self, ids: Tensor) -> Features:
        """(B, L) -> branches and selected words.

        Columns that are padding in the whole batch are cut off before the text encoder, but for those that a short
        caption fills its groups up with: what is selected and all features are those of the full length.
        """
        length, words = ids.shape[1], ids != self.bert.pad
        longest = int((words * torch.arange(1, length + 1, device=ids.device)).max())
        ids = ids[:, : max(longest, 2 * share(length, self.config.text_ratio))]
        return self.head.text(*self.bert(ids), ids == self.bert.pad, length)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image, text = self.image_features(batch["images"]), self.text_features(batch["text"])
        # At a temperature of 0.01 a similarity needs more digits than bf16 has.
        with torch.autocast(self.device.type, enabled=False):
            gathered = (Features(*(gather(tensor) for tensor in features)) for features in (image, text))
            return self.head.losses(*gathered, gather(batch["pids"]))

    def rate_of(self, name: str, parameter: nn.Parameter, config: CFineConfig) -> tuple[float, float]:
        """The image tower, the text encoder and the head, each at its own rate; only the image tower decays."""
        if name.startswith("clip."):
            return config.lr, config.weight_decay
        return config.text_lr if name.startswith("bert.") else config.head_lr, 0.0


class OwnWords(nn.Module):
    """CLIP's text tower in the place of a BERT, for backbones that come with no other pre-trained text encoder.

    The end token, which has seen all words, takes the place of [CLS] and comes first; the start token is left out, and
    its id pads. Tokens are projected. The weights are the CLIP's: this module has none of its own.
    """

    def __init__(self, clip: CLIP, length: int):
        super().__init__()
        self._clip = [clip]  # in a list: not a part of it
        self.length = min(length, clip.context_length - 1)
        self.pad, *_, self.end = clip.tokenize(["a"])[0][:3].tolist()

    @property
    def width(self) -> int:
        return self._clip[0].embed_dim

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (B, length): the end token, the words, padding."""
        ids = self._clip[0].tokenize(texts)
        last = ids.argmax(dim=1, keepdim=True)
        ids = ids.masked_fill(torch.arange(ids.shape[1]) >= last, self.pad)
        ids[:, 0] = self.end
        return ids[:, : self.length]

    def pieces(self, ids: Tensor) -> list[str]:
        """What each of the token ids (L,) stands for."""
        return self._clip[0].pieces(ids)

    def forward(self, ids: Tensor) -> Tokens:
        """(B, L) -> tokens (B, L, width), zero for padding, and the last layer's attention (B, L, L) over heads."""
        length, padding = ids.shape[1], ids == self.pad
        last = (~padding).sum(dim=1, keepdim=True)  # where the end token stands for CLIP
        as_read = pad(ids, (0, 1), value=self.pad).scatter(1, last, self.end)
        as_read[:, 0] = self.pad  # the start token
        longest = int(last.max()) + 1  # what follows the end token changes nothing before it
        tokens, attention = self._clip[0].text_tokens(as_read[:, :longest], attention=True)
        places = torch.arange(length, device=ids.device).clamp(max=longest - 1).repeat(len(ids), 1)
        places[:, :1] = last
        tokens = tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))
        attention = attention.gather(1, places[:, :, None].expand(-1, -1, longest))
        attention = attention.gather(2, places[:, None].expand(-1, length, -1))
        return Tokens(tokens.masked_fill(padding[:, :, None], 0.0), attention.masked_fill(padding[:, None], 0.0))


def _image_tower(clip: CLIP) -> CLIP:
    """The same CLIP without what CFine does not use: the text tower and the image projection."""
    model = clip.model
    for name, _ in [*model.named_children(), *model.named_parameters(recurse=False)]:
        if name != "visual":
            delattr(model, name)
    model.transformer = nn.Identity()  # open_clip sets a flag on it when activations are to be recomputed
    model.visual.proj = None
    return clip
