"""DiaNA: search by conversation; learned queries draw the same attributes out of pictures and dialogues (CVPR 2025)."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from reidlib.backbones.adapters import add_adapters
from reidlib.backbones.clip import create_clip
from reidlib.backbones.swin_llama import TransformerTowers
from reidlib.backbones.turns import ClipTowers
from reidlib.config import Config
from reidlib.data.augment import CHATPEDES, MALS
from reidlib.data.augment import CLIP as CLIP_STATISTICS
from reidlib.data.dialogues import CAPTION_QUESTIONS, SYSTEM, Dialogue, clean_caption
from reidlib.devices import gather
from reidlib.errors import ConfigError
from reidlib.losses import both_ways, identity_targets, itc, sdm
from reidlib.methods.base import Method, learnt_scale
from reidlib.weights import load_state

Mode = Literal["global", "local", "all"]
Reduction = Literal["avg", "max", "min", "lsp_max", "lsp_min"]
MODES: tuple[str, ...] = get_args(Mode)
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
SDM_EPS = 1e-6
FULL, ALIKE = 0.9, 8  # a batch with fewer words than this share is encoded by length, so many rows at a time


@dataclass
class DianaConfig(Config):
    """Stage 2, on dialogues. `refined_weight=0` leaves the refiner out, `sdm_weight=0` that loss.

    With towers="clip" both towers are the CLIP named by `backbone`; with "transformers" they are `image_tower` and
    `text_tower`: "toy", "swinv2-base-random" and "llama-3.2-1b-random", a name on the Hugging Face hub or a folder.
    """

    towers: Literal["clip", "transformers"] = "clip"
    image_tower: str = "toy"
    text_tower: str = "toy"
    mean: tuple[float, float, float] = CLIP_STATISTICS[0]
    std: tuple[float, float, float] = CLIP_STATISTICS[1]
    drop_path: float = 0.0  # of every Swin v2 block
    embed_dim: int = 128  # of the shared space; towers="clip" takes that of the CLIP
    num_queries: int = 16  # attributes
    refiner_layers: int = 2
    init_scale: float = 50.0  # inverse temperature at the start
    head_lr: float = 1.0  # times lr, for what is not a tower

    learn_from: Literal["turns", "text"] = "turns"
    match_by: Literal["pids", "image_ids"] = "pids"  # what makes a pair positive; "image_ids": only the pair itself
    sdm_weight: float = 1.0
    refined_weight: float = 1.0
    reduction: Reduction = "avg"  # of the attributes' similarities in training
    mode: Mode = "global"  # what a query and an image are compared by
    random_rounds: bool = True  # train on the first n rounds, n drawn anew each time
    masking: float = 0.15  # of the tokens: 8 in 10 hidden, 1 in 10 replaced, 1 in 10 left
    mask_roles: bool = False  # mask the system prompt and the role words too, as the official code does
    system: str = SYSTEM
    caption_system: bool = False  # a single caption gets the system prompt too
    caption_questions: tuple[str, ...] = CAPTION_QUESTIONS
    clean_captions: bool = False
    max_length: int = 224  # tokens of a dialogue; longer ones lose their end

    @classmethod
    def paper(cls) -> Self:
        """ChatPedes, 32 on each of 4 GPUs. The schedule is the one that ran; the official command asks otherwise."""
        return cls(
            **_paper(),
            mean=CHATPEDES[0],
            std=CHATPEDES[1],
            num_queries=16,
            epochs=10,
            batch_size=128,
            sampler="length",  # the official batches are random and padded to their longest
            lr=1e-5,
            betas=(0.9, 0.999),
            warmup_steps=50,
            max_length=400,
            select_by="d2i R@1",
        )

    @classmethod
    def toy(cls) -> Self:
        tuned = {"lr": 3.2e-4, "weight_decay": 0.0, "warmup_epochs": 1.0, "refined_weight": 0.5, "masking": 0.1}
        return cls(**_toy() | tuned | {"init_scale": 20.0}, epochs=2, select_by="d2i R@1")


@dataclass
class DianaPretrainConfig(DianaConfig):
    """Stage 1, on single captions. `caption_system=True` repeats the released script, in which `max_length` cuts every
    caption off behind the system prompt."""

    learn_from: Literal["turns", "text"] = "text"
    match_by: Literal["pids", "image_ids"] = "image_ids"
    sdm_weight: float = 0.0
    random_rounds: bool = False

    @classmethod
    def paper(cls) -> Self:
        """MALS, 64 on each of 8 GPUs."""
        return cls(
            **_paper(),
            mean=MALS[0],
            std=MALS[1],
            num_queries=24,
            epochs=3,
            batch_size=512,
            lr=1e-4,
            betas=(0.9, 0.98),
            warmup_steps=1000,
            max_length=56,
            clean_captions=True,
        )

    @classmethod
    def toy(cls) -> Self:
        return cls(**_toy(), epochs=2)


def _toy() -> dict[str, Any]:
    """What both stages of the toy preset share, as tuned for stage 1 (`study.csv`).

    The toy CLIP's towers take the place of a pre-trained Swin and Llama.
    """
    return {
        "batch_size": 32,
        "warmup_epochs": 0.2,
        "lr": 2.9e-4,
        "head_lr": 3.0,
        "num_queries": 8,
        "init_scale": 10.0,
        "masking": 0.0,
        "augment": "cfine",
    }


def _paper() -> dict[str, Any]:
    """What both stages of the paper preset share."""
    return {
        "towers": "transformers",
        "image_tower": "microsoft/swinv2-base-patch4-window12-192-22k",
        "text_tower": "meta-llama/Llama-3.2-1B",
        "image_size": (384, 192),
        "interpolation": "bilinear",
        "drop_path": 0.2,
        "embed_dim": 768,
        "mask_roles": True,
        "weight_decay": 0.05,
        "schedule": "linear",
        "warmup_from": 0.0,
        "warmup_shape": "log",
        "clip_grad": 1.0,
        "precision": "bf16",
        "checkpoint_activations": True,
    }


class Encoded(NamedTuple):
    """One side of a batch: a vector an item, a vector a token, and (where there is a refiner) a vector an attribute."""

    pooled: Tensor  # (B, D)
    dense: Tensor | None  # (B, N, D)
    attributes: Tensor | None  # (B, K, D)


class Refiner(nn.Module):
    """K learned queries look at the tokens of a picture or a dialogue and become its K attributes; shared by both."""

    def __init__(self, width: int, num_queries: int, layers: int):
        super().__init__()
        from open_clip.transformer import QuickGELU, Transformer

        heads = max(1, width // 64)
        self.attr_query_token = nn.Parameter(0.02 * torch.randn(1, num_queries, width))
        self.cross_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.transformer = Transformer(width, layers, heads, act_layer=QuickGELU)

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """tokens: (B, N, D); padding: (B, N), True where there is none. Returns (B, K, D)."""
        return self.transformer(self._look(tokens, padding)[0])

    def attention(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Where each query looks, averaged over heads: (B, K, N), rows sum to 1."""
        return self._look(tokens, padding, need_weights=True)[1]

    @torch.no_grad()
    def begin_as_means(self) -> None:
        """Lets every attribute start as a mean of the tokens, each with weights of its own: those that point the way of
        its query count more. Where both towers share a space, such means can be compared at once, whereas from random
        weights the refiner first has to find out that anything depends on its input.
        """
        nn.init.normal_(self.attr_query_token)
        self.cross_attn.in_proj_weight.copy_(torch.eye(self.cross_attn.embed_dim).repeat(3, 1))
        nn.init.eye_(self.cross_attn.out_proj.weight)
        for block in self.transformer.resblocks:
            for last in (block.attn.out_proj, block.mlp.c_proj):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def _look(self, tokens: Tensor, padding: Tensor | None, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        queries = self.attr_query_token.expand(len(tokens), -1, -1)
        return self.cross_attn(queries, tokens, tokens, key_padding_mask=padding, need_weights=need_weights)


def refined_similarity(queries: Tensor, gallery: Tensor, reduction: str = "avg") -> Tensor:
    """How alike two sets of K attributes are: the cosines of attributes of the same number, reduced to one figure.

    queries: (N, K, D), gallery: (M, K, D), not normalised. Returns (N, M) float32. reduction: mean, largest or smallest
    cosine, log sum exp of the cosines ("lsp_max", a soft maximum) or minus that of their negatives ("lsp_min").
    """
    queries, gallery = normalize(queries.float(), dim=-1), normalize(gallery.float(), dim=-1)
    if reduction == "avg":
        return queries.flatten(1) @ gallery.flatten(1).T / queries.shape[1]
    cosines = torch.einsum("nkd,mkd->nmk", queries, gallery)
    if reduction == "max":
        return cosines.amax(dim=-1)
    if reduction == "min":
        return cosines.amin(dim=-1)
    sign = 1 if reduction == "lsp_max" else -1
    return sign * (sign * cosines).logsumexp(dim=-1)


class DiaNA(Method):
    """Two towers, one linear map each into a shared space for pooled features and tokens alike, one refiner.

    By `config.mode` the embedding is the unit pooled feature ("global"), the K unit attributes side by side over
    sqrt(K), so that the inner product is their mean cosine ("local"), or both ("all", the sum of the two).
    """

    name = "diana"
    reads = ("text", "turns")
    mean, std = property(lambda self: self.config.mean), property(lambda self: self.config.std)
    config: DianaConfig

    def __init__(self, config: DianaConfig, num_classes: int = 0, *, towers: nn.Module | None = None):
        super().__init__()
        _check(config)
        self.config = config
        self.trains_on = (config.learn_from,)
        self.towers = towers or create_towers(config)
        clip = isinstance(self.towers, ClipTowers)
        for tower in (self.towers.clip.model,) if clip else (self.towers.vision, self.towers.language):
            add_adapters(tower, config.lora)
        width = self.towers.image_width if clip else config.embed_dim
        self.vision_projection = nn.Linear(self.towers.image_width, width)
        self.text_projection = nn.Linear(self.towers.text_width, width)
        for projection in (self.vision_projection, self.text_projection):
            # CLIP's features can be compared as they come, and the map starts by leaving them so.
            nn.init.eye_(projection.weight) if clip else nn.init.trunc_normal_(projection.weight, std=0.02)
            nn.init.zeros_(projection.bias)
        refined = config.refined_weight > 0
        self.refiner = Refiner(width, config.num_queries, config.refiner_layers) if refined else None
        if clip and refined:
            self.refiner.begin_as_means()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.init_scale)))

    # -- queries and pictures --------------------------------------------------------------------------------------

    def tokenize(self, texts: list[str]) -> Tensor:
        """Ids (B, L) of captions, each told as a dialogue of one turn."""
        return self.towers.tokenize_captions(list(map(clean_caption, texts)) if self.config.clean_captions else texts)

    def tokenize_turns(self, dialogues: list[Dialogue]) -> Tensor:
        return self.towers.tokenize(dialogues)

    def count_tokens(self, text: str) -> tuple[int, int]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a cut is what is counted here
            used = self.tokenize([text]).shape[1]
        limit = self.towers.max_length
        return used + (used == limit), limit

    def embed_image(self, images: Tensor) -> Tensor:
        return self._vector(self.encode_image(images, refine=self.config.mode != "global"))

    def embed_turns(self, ids: Tensor) -> Tensor:
        return self._vector(self.encode_text(ids, refine=self.config.mode != "global"))

    def embed_text(self, ids: Tensor) -> Tensor:
        return self.embed_turns(ids)

    def encode_image(self, images: Tensor, refine: bool = True) -> Encoded:
        """(B, 3, H, W) -> features before normalisation; without `refine` only the pooled ones."""
        pooled, dense = self.towers.encode_image(images)
        dense = self.vision_projection(dense) if refine else None
        return Encoded(self.vision_projection(pooled), dense, self._refined(dense))

    def encode_text(self, ids: Tensor, refine: bool = True) -> Encoded:
        """(B, L) of captions or dialogues -> as `encode_image`.

        Rows of similar length go through the tower together, so that little is spent on padding however different the
        dialogues of a batch are, as they are when random rounds of them are kept.
        """
        ids = self._trimmed(ids)
        words = (ids != self.towers.pad).sum(dim=1)
        groups = math.ceil(len(ids) / ALIKE) if words.sum() < FULL * ids.numel() else 1
        order = words.argsort()
        parts = [self._encode_alike(self._trimmed(ids[rows]), refine, ids.shape[1]) for rows in order.chunk(groups)]
        back = order.argsort()
        return Encoded(*(None if side[0] is None else torch.cat(side)[back] for side in zip(*parts, strict=True)))

    def _encode_alike(self, ids: Tensor, refine: bool, length: int) -> Encoded:
        """`encode_text` of rows of similar length; dense features are filled up to `length` with zeros."""
        pooled, dense = self.towers.encode_text(ids)
        pooled = self.text_projection(pooled)
        if not refine:
            return Encoded(pooled, None, None)
        dense = self.text_projection(dense)
        attributes = self._refined(dense, ids == self.towers.pad)
        return Encoded(pooled, pad(dense, (0, 0, 0, length - ids.shape[1])), attributes)

    def attribute_attention(self, *, images: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        """What each attribute looks at, (B, K, N): image tokens (`towers.grid`, row by row), or the tokens of `ids`."""
        if images is not None:
            return self.refiner.attention(self.vision_projection(self.towers.encode_image(images).dense))
        ids = self._trimmed(ids)
        return self.refiner.attention(self.text_projection(self.towers.encode_text(ids).dense), ids == self.towers.pad)

    # -- training --------------------------------------------------------------------------------------------------

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """ITC and SDM of the pooled features, and of the refined attributes.

        Over several processes each one compares the features of all, so that each has the whole batch's loss; the mean
        of their gradients, which is what distributed training takes, is then the gradient of that loss.
        """
        ids = batch[self.config.learn_from]
        if self.training and self.config.random_rounds:
            ids = self._retained(ids)
        if self.training and self.config.masking:
            ids = self._masked(ids)
        refine = self.refiner is not None
        images, texts = self.encode_image(batch["images"], refine), self.encode_text(ids, refine)
        labels = gather(batch[self.config.match_by])
        with torch.autocast(self.device.type, enabled=False):  # similarities in float32
            targets = identity_targets(labels)
            scale = learnt_scale(self.logit_scale)
            image, text = (normalize(gather(side.pooled).float(), dim=-1) for side in (images, texts))
            losses = self._matching(scale * text @ image.T, targets, 1.0, "")
            if refine:
                attributes = (gather(side.attributes) for side in (texts, images))
                refined = refined_similarity(*attributes, self.config.reduction)
                losses |= self._matching(scale * refined, targets, self.config.refined_weight, "refined_")
        return losses

    def _matching(self, logits: Tensor, targets: Tensor, weight: float, prefix: str) -> dict[str, Tensor]:
        losses = {f"{prefix}itc": weight * both_ways(itc, logits, targets)}
        if self.config.sdm_weight:
            matched = both_ways(sdm, logits, targets, eps=SDM_EPS)
            losses[f"{prefix}sdm"] = weight * self.config.sdm_weight * matched
        return losses

    def rate_of(self, name: str, parameter: nn.Parameter, config: DianaConfig) -> tuple[float, float]:
        """Towers and the rest at their rates. The temperature decays, nothing called a bias does, as the official code
        has it: Swin's weights of the position bias are called so, too."""
        lr = config.lr if name.startswith("towers.") else config.lr * config.head_lr
        decays = "bias" not in name and (parameter.ndim >= 2 or name == "logit_scale")
        return lr, config.weight_decay if decays else 0.0

    def start_from(self, state: dict[str, Tensor], source: object = "the checkpoint") -> None:
        """Takes the weights of the first stage, without a refiner if this model has none; where the first stage had
        another number of attributes, the queries start anew."""
        queries = "refiner.attr_query_token"
        if self.refiner is None:
            state = {name: tensor for name, tensor in state.items() if not name.startswith("refiner.")}
        elif queries in state and state[queries].shape != self.refiner.attr_query_token.shape:
            state = state | {queries: self.refiner.attr_query_token.detach()}
        load_state(self, state, source=source)

    # -- parts -----------------------------------------------------------------------------------------------------

    def _retained(self, ids: Tensor) -> Tensor:
        """Random round retaining: of each dialogue the first n rounds, n drawn evenly from 1 to all it has."""
        rounds = self.towers.rounds(ids).masked_fill(ids == self.towers.pad, 0).amax(dim=1)
        return self.towers.keep_rounds(ids, (torch.rand_like(rounds, dtype=torch.float) * rounds).long() + 1)

    def _masked(self, ids: Tensor) -> Tensor:
        draw = torch.rand(ids.shape, device=ids.device) / self.config.masking
        draw = draw.masked_fill(~self.towers.may_mask(ids, self.config.mask_roles), 1.0)
        ids = torch.where(draw < 0.8, self.towers.mask, ids)
        return torch.where((draw >= 0.9) & (draw < 1), self.towers.random_words(ids), ids)

    def _trimmed(self, ids: Tensor) -> Tensor:
        return ids[:, : int((ids != self.towers.pad).sum(dim=1).max())]

    def _refined(self, dense: Tensor | None, padding: Tensor | None = None) -> Tensor | None:
        return None if dense is None else self.refiner(dense, padding)

    def _vector(self, encoded: Encoded) -> Tensor:
        parts = []
        if self.config.mode in ("global", "all"):
            parts.append(normalize(encoded.pooled.float(), dim=-1))
        if self.config.mode in ("local", "all"):
            slots = normalize(encoded.attributes.float(), dim=-1)
            parts.append(slots.flatten(1) / math.sqrt(slots.shape[1]))
        return torch.cat(parts, dim=1)


class DiaNAPretrain(DiaNA):
    """Stage 1: the same model, on single captions; its checkpoints say so."""

    name = "diana-1"


def create_towers(config: DianaConfig) -> nn.Module:
    """The two towers that a configuration names."""
    if config.towers == "clip":
        return ClipTowers(create_clip(config.backbone, config.image_size, config.positions), config.max_length)
    return TransformerTowers.by_name(
        config.image_tower,
        config.text_tower,
        config.image_size,
        drop_path=config.drop_path,
        system=config.system,
        caption_system=config.caption_system,
        caption_questions=config.caption_questions,
        max_length=config.max_length,
    )


def _check(config: DianaConfig) -> None:
    if config.mode != "global" and config.refined_weight <= 0:
        raise ConfigError(f"mode {config.mode!r} compares attributes; it needs a refined_weight above 0.")
    if config.mode != "global" and config.reduction != "avg":
        raise ConfigError(
            f"mode {config.mode!r} is an inner product only with reduction 'avg'; got {config.reduction!r}."
        )
