"""InteractReID: search by a sketch and a sentence, the sketch entering the sentence as a pseudo-word (ICME 2025)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from reidlib.backbones.adapters import add_adapters, merge_adapters
from reidlib.backbones.clip import CLIP, PAD, create_clip, trim
from reidlib.config import Config
from reidlib.data.augment import IMAGENET
from reidlib.data.dialogues import clean_caption
from reidlib.devices import gather
from reidlib.errors import CheckpointError, ConfigError
from reidlib.losses import identity_targets, infonce, nitc, ritc
from reidlib.methods.base import learnt_scale
from reidlib.methods.clip import TwoTowers

PLACEHOLDER = "*"
PROMPT = "a photo of *"
Composition = Literal["pseudo-word", "sum", "pseudo-text"]
COMPOSITIONS: tuple[str, ...] = get_args(Composition)
PKU_SKETCH = {"batch_size": 16, "epochs": 40}  # what InvertConfig.paper() changes for that data set


@dataclass
class AdaptConfig(Config):
    """Stage 1. `alpha=0, ritc_weight=0` gives the plain matching that the paper describes; its code does more.

    The paper's batch lies on four GPUs; any number of `devices` that divides it computes the same.
    """

    augment: str = "interactreid"
    captions: bool = True  # False: photos and sketches alone, so N-ISC alone, for data without words
    text_dropout: float = 0.05  # of attention weights in the text tower
    alpha: float = 0.5  # share of the model's own view in the targets, reached at the end of the first epoch
    second_pass: bool = True  # soft targets of captions from a pass with another dropout; False: from the same pass
    ritc_weight: float = 1.0
    freeze_patches: bool = True  # the first convolution keeps its weights
    back_translation: float = 0.1
    clean_captions: bool = True  # official for Tri-PEDES; not for Market-Sketch-1K and PKU-Sketch

    @classmethod
    def paper(cls) -> Self:
        return cls(**_paper(1e-4), epochs=5, batch_size=240, warmup_epochs=1, seed=1, select_by="s2i R@1")

    @classmethod
    def toy(cls) -> Self:
        """As tuned (`study.csv`). With its full weight R-ITC is content, while little is known, with a model that finds
        everything alike."""
        return cls(
            epochs=2,
            batch_size=64,
            lr=4.4e-4,
            weight_decay=0.05,
            warmup_epochs=0.5,
            betas=(0.9, 0.98),
            alpha=0.0,
            ritc_weight=0.3,
            augment="cfine",
            select_by="st2i mAP",
        )


@dataclass
class InvertConfig(Config):
    """Stage 2. Published figures are for Market-Sketch-1K; PKU-Sketch differs by `PKU_SKETCH`.

    `text_dropout` stays active in the frozen text tower while training, as in the official code; 0 turns it off.
    """

    augment: str = "interactreid"
    text_dropout: float = 0.05
    mapping_width: int = 768  # of the mapping's hidden layer
    mapping_dropout: float = 0.1
    mapping_lr: float = 10.0  # times lr
    freeze_patches: bool = True
    clean_captions: bool = False  # official for Tri-PEDES; not for Market-Sketch-1K and PKU-Sketch
    composition: Composition = "pseudo-word"  # how sketch and sentence become one query

    @classmethod
    def paper(cls) -> Self:
        return cls(**_paper(1e-5), epochs=20, batch_size=32, warmup_epochs=5, seed=0, select_by="st2i R@1")

    @classmethod
    def toy(cls) -> Self:
        return cls(
            epochs=1,
            warmup_epochs=0.5,
            batch_size=32,
            lr=1.1e-4,
            weight_decay=0.0,
            betas=(0.9, 0.98),
            mapping_width=192,
            mapping_lr=20.0,
            augment="cfine",
            select_by="st2i mAP",
        )


def _paper(lr: float) -> dict[str, Any]:
    """What the paper's presets of both stages share: rates from 1e-6 up to `lr` and down to 5e-6."""
    return {
        "backbone": "ViT-B-16-quickgelu:openai",
        "image_size": (224, 224),
        "interpolation": "bilinear",
        "lr": lr,
        "warmup_from": 1e-6 / lr,
        "warmup_shape": "linspace",
        "end_factor": 5e-6 / lr,
        "betas": (0.9, 0.98),
        "eps": 1e-8,
        "weight_decay": 0.02,
        "precision": "fp16",
    }


class _SketchAndWords(TwoTowers):
    """What both stages share: one CLIP whose image tower sees photos and sketches alike."""

    reads = ("text", "sketch")
    mean, std = IMAGENET
    config: AdaptConfig | InvertConfig

    def __init__(self, config: AdaptConfig | InvertConfig, num_classes: int = 0, *, clip: CLIP | None = None):
        super().__init__()
        self.config = config
        self.clip = clip or create_clip(config.backbone, config.image_size, config.positions)
        self.clip.require(self.name, patches=True, words=True)
        if self.clip.image_size != config.image_size:
            raise ConfigError(f"image_size is {config.image_size} and the model takes {self.clip.image_size}.")
        self.clip.model.visual.conv1.requires_grad_(not config.freeze_patches)
        for name, module in self.clip.model.named_modules():
            if isinstance(module, nn.MultiheadAttention) and not name.startswith("visual."):
                module.dropout = config.text_dropout
        add_adapters(self.clip.model, config.lora)

    def tokenize(self, texts: list[str]) -> Tensor:
        return self.clip.tokenize([clean_caption(text) for text in texts] if self.config.clean_captions else texts)

    def _pictures(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Features of photos and of sketches, not normalised, from one pass of the shared tower."""
        return self.clip.encode_image(torch.cat([batch["images"], batch["sketch"]])).float().chunk(2)

    def _scale(self) -> Tensor:
        return learnt_scale(self.clip.logit_scale)


class InteractReIDAdapt(_SketchAndWords):
    """Stage 1, task-oriented knowledge adaptation: the whole CLIP learns from photo, caption and sketch together."""

    name: ClassVar[str] = "interactreid-1"
    config: AdaptConfig

    @property
    def trains_on(self) -> tuple[str, ...]:
        return ("text", "sketch") if self.config.captions else ("sketch",)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        alpha = self.config.alpha * min(1.0, batch["progress"])
        photos, sketches = self._pictures(batch)
        if not self.config.captions:
            photos, sketches, pids = map(gather, (photos, sketches, batch["pids"]))
            return {"nisc": nisc(photos, sketches, pids, self._scale(), alpha)}
        words = self.clip.encode_text(batch["text"]).float()
        teacher = None
        if self.training and self.config.second_pass and self.config.text_dropout and alpha:
            with torch.no_grad():
                teacher = gather(self.clip.encode_text(batch["text"]).float())
        photos, sketches, words, pids = map(gather, (photos, sketches, words, batch["pids"]))
        terms = adaptation_losses(photos, sketches, words, pids, self._scale(), alpha, teacher)
        return terms | {"ritc": self.config.ritc_weight * terms["ritc"]}


class InteractReIDInvert(_SketchAndWords):
    """Stage 2, textual inversion: a sketch becomes a pseudo-word that the frozen text tower reads like any other.

    clip: the adapted model of stage 1, which is copied; left out, the backbone as it comes.
    """

    name: ClassVar[str] = "interactreid"
    trains_on = ("sketch",)
    config: InvertConfig

    def __init__(self, config: InvertConfig, num_classes: int = 0, *, clip: CLIP | None = None):
        super().__init__(config, clip=copy.deepcopy(clip))
        for name, parameter in self.clip.model.named_parameters():
            if not name.startswith("visual."):
                parameter.requires_grad_(False)
        self.mapping = Mapping(self.clip.embed_dim, config.mapping_width, self.clip.text_width, config.mapping_dropout)
        placeholder, prompt, lead = map(trim, self.clip.tokenize([PLACEHOLDER, PROMPT, f"{PROMPT} , and"]).split(1))
        self.placeholder = int(placeholder[0, 1])
        # copies with strides of their own: several processes copy their buffers, and cannot copy a part of a padded row
        self.register_buffer("prompt", prompt.clone(memory_format=torch.contiguous_format), persistent=False)
        self.register_buffer("lead", lead[:, :-1].clone(memory_format=torch.contiguous_format), persistent=False)

    @classmethod
    def from_stage1(cls, config: InvertConfig, adapted: InteractReIDAdapt) -> Self:
        """Stage 2 on a copy of a stage-1 model; CheckpointError for a model of another method."""
        if not isinstance(adapted, InteractReIDAdapt):
            raise CheckpointError(f"Stage 2 starts from a model of interactreid-1 and got one of {adapted.name}.")
        return cls(config, clip=merge_adapters(copy.deepcopy(adapted.clip)))

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        photos, sketches = self._pictures(batch)
        pseudo_text = self.embed_pseudo_text(self.mapping(sketches))
        return inversion_losses(*map(gather, (photos, sketches, pseudo_text)), self._scale())

    def rate_of(self, name: str, parameter: nn.Parameter, config: Config) -> tuple[float, float]:
        lr, decay = super().rate_of(name, parameter, config)
        return lr * config.mapping_lr if name.startswith("mapping.") else lr, decay

    # -- pseudo-words ----------------------------------------------------------------------------------------------

    def pseudo_words(self, sketches: Tensor) -> Tensor:
        """(B, 3, H, W) -> pseudo-words (B, text_width), in the space of CLIP's token embeddings."""
        return self.mapping(self.clip.encode_image(sketches).float())

    def embed_prompts(self, pseudo_words: Tensor, ids: Tensor) -> Tensor:
        """Prompts with each row's pseudo-word read in place of its first `*`: (B, text_width), (B, L) -> (B, D).

        `*` may stand anywhere, in each row elsewhere.
        """
        ids = trim(ids)
        stars = ids == self.placeholder
        here = (stars & (stars.cumsum(dim=1) == 1))[:, :, None]
        embedded = torch.where(here, pseudo_words[:, None], self.clip.embed_tokens(ids))
        return normalize(self.clip.encode_text(ids, embedded=embedded).float(), dim=-1)

    def embed_pseudo_text(self, pseudo_words: Tensor) -> Tensor:
        """The prompt "a photo of *" with each pseudo-word in place of `*`: (B, text_width) -> (B, D)."""
        return self.embed_prompts(pseudo_words, self.prompt.expand(len(pseudo_words), -1))

    def compose(self, parts: dict[str, Tensor]) -> Tensor:
        """A sketch and a sentence as one query, in the way that the config's `composition` names.

        "pseudo-word" reads "a photo of * , and {text}" with the sketch's pseudo-word for `*`; "pseudo-text" reads only
        "a photo of *" and ignores the sentence; "sum" adds the two normalised features. A text without words leaves
        "a photo of *" alone.
        """
        if self.config.composition == "sum":
            return super().compose(parts)
        words = self.pseudo_words(parts["sketch"])
        if self.config.composition == "pseudo-text":
            return self.embed_pseudo_text(words)
        return self.embed_prompts(words, self._prompted(parts["text"]))

    def _prompted(self, ids: Tensor) -> Tensor:
        """Ids (B, L) of sentences -> of "a photo of * , and {sentence}", without ", and" where nothing is said."""
        end = self.clip.vocab_size - 1
        told = torch.cat([self.lead.expand(len(ids), -1), trim(ids)[:, 1:]], dim=1)[:, : self.clip.context_length]
        told[:, -1] = told[:, -1].where((told == end).any(dim=1), end)  # a sentence that was cut has to end, too
        alone = torch.full_like(told[0], PAD)
        alone[: self.prompt.shape[1]] = self.prompt[0]
        return torch.where(ids[:, 1:2] == end, alone, told)

    @torch.no_grad()
    def nearest_words(
        self, pseudo_words: Tensor, k: int = 5, among: Sequence[str] | None = None
    ) -> list[list[tuple[str, float]]]:
        """For each pseudo-word (B, text_width) the `k` tokens nearest to it, and their cosines.

        among: texts whose tokens are looked at; left out, the whole vocabulary.
        """
        last = self.clip.vocab_size - 1  # end of text; start of text is the one before, and neither is a word
        known = torch.arange(last - 1) if among is None else self.clip.tokenize(list(among)).unique()
        known = known[(known > PAD) & (known < last - 1)].to(self.device)
        table = normalize(self.clip.embed_tokens(known), dim=-1)
        values, rows = (normalize(pseudo_words, dim=-1) @ table.T).topk(min(k, len(known)))
        ids = torch.cat([known[rows], torch.full_like(rows[:, :1], last)], dim=1)
        words = [self.clip.words(row)[:-1] for row in ids]
        return [list(zip(*pair, strict=True)) for pair in zip(words, values.tolist(), strict=True)]


class Mapping(nn.Module):
    """Two layers from an image feature, not normalised, to a token embedding: (B, D) -> (B, text_width)."""

    def __init__(self, features: int, hidden: int, words: int, dropout: float):
        super().__init__()
        # nested as in the official checkpoints, whose names these are
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(features, hidden), nn.Dropout(dropout), nn.ReLU()))
        self.fc_out = nn.Linear(hidden, words)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc_out(self.layers(features))


def adaptation_losses(
    photos: Tensor,
    sketches: Tensor,
    words: Tensor,
    pids: Tensor,
    scale: Tensor,
    alpha: float,
    teacher_words: Tensor | None = None,
) -> dict[str, Tensor]:
    """Stage 1's N-ITC, N-ISC and R-ITC from features (N, D), normalised here, and labels (N,).

    teacher_words: (N, D) captions' features behind the soft targets, where they differ from `words`.
    """
    targets = identity_targets(pids)
    with_words = scale * _cosines(photos, words)
    teacher = None if teacher_words is None else scale * _cosines(photos, teacher_words)
    return {
        "nitc": nitc(with_words, targets, alpha, teacher),
        "nisc": nisc(photos, sketches, pids, scale, alpha),
        "ritc": ritc(with_words, targets),
    }


def nisc(photos: Tensor, sketches: Tensor, pids: Tensor, scale: Tensor, alpha: float) -> Tensor:
    """N-ISC: `nitc` of photos and sketches (N, D), normalised here, the model's own view standing in for a teacher."""
    return nitc(scale * _cosines(photos, sketches), identity_targets(pids), alpha)


def inversion_losses(photos: Tensor, sketches: Tensor, pseudo_text: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Stage 2's losses: the pseudo-text should find its own sketch ("inversion") and its own photo ("alignment").

    All (N, D), normalised here. Two pictures of one person count as different, as in the official code.
    """
    return {
        "inversion": infonce(scale * _cosines(sketches, pseudo_text)),
        "alignment": infonce(scale * _cosines(photos, pseudo_text)),
    }


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """(N, D), (M, D) -> (N, M), in float32 even where autocast would halve the product."""
    with torch.autocast(a.device.type, enabled=False):
        return normalize(a.float(), dim=-1) @ normalize(b.float(), dim=-1).T
