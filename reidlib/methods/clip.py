"""The baseline: a two-tower CLIP, fine-tuned so that pictures and captions (or sketches) of one person meet."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from reidlib.backbones import CLIP, create_clip
from reidlib.backbones.adapters import add_adapters
from reidlib.config import Config
from reidlib.devices import gather
from reidlib.errors import ConfigError
from reidlib.losses import both_ways, identity_targets, itc, sdm
from reidlib.methods.base import Method, learnt_scale


@dataclass
class ClipConfig(Config):
    """Which loss, between the photo and which of the other views."""

    loss: Literal["sdm", "itc"] = "sdm"
    views: tuple[Literal["text", "sketch"], ...] = ("text",)  # what photos are aligned with
    temperature: float = 0.02  # as in IRRA; 0: CLIP's own, which is learnt
    bias_lr: float = 1.0  # times lr
    decay_vectors: bool = False  # norms decay, too; biases never do

    def __post_init__(self):
        super().__post_init__()
        if not self.views:
            raise ConfigError("ClipConfig.views should hold 'text', 'sketch' or both and is empty.")

    @classmethod
    def paper(cls) -> "ClipConfig":
        """IRRA's fine-tuned CLIP (Jiang and Ye, CVPR 2023): the reference row of its tables."""
        return cls(
            backbone="ViT-B-16-quickgelu:openai",
            loss="itc",
            image_size=(384, 128),
            interpolation="bilinear",
            positions="bilinear",  # as the official code; antialiased bicubic is open_clip's
            epochs=60,
            batch_size=64,
            drop_last=False,
            optimizer="adam",
            lr=1e-5,
            eps=1e-3,
            weight_decay=4e-5,
            bias_lr=2.0,
            decay_vectors=True,
            schedule_every="epoch",
            warmup_epochs=5,
            workers=8,
        )

    @classmethod
    def toy(cls) -> "ClipConfig":
        return cls(
            loss="itc",
            temperature=0.0,
            augment="cfine",
            epochs=2,
            batch_size=64,
            lr=6e-4,
            weight_decay=0.05,
        )


class TwoTowers(Method):
    """What all methods share whose pictures and words are the pooled features of one `clip`, at length 1."""

    clip: CLIP

    def tokenize(self, texts: list[str]) -> Tensor:
        return self.clip.tokenize(texts)

    def count_tokens(self, text: str) -> tuple[int, int]:
        return self.clip.count_tokens(text)

    def embed_image(self, images: Tensor) -> Tensor:
        return normalize(self.clip.encode_image(images).float(), dim=-1)

    def embed_text(self, ids: Tensor) -> Tensor:
        return normalize(self.clip.encode_text(ids).float(), dim=-1)

    def embed_sketch(self, sketches: Tensor) -> Tensor:
        return self.embed_image(sketches)


class Clip(TwoTowers):
    """Cosine similarity of CLIP's two pooled features; one image tower sees photos and sketches alike.

    clip: a model to use in place of the one that `config` names.
    """

    name = "clip"

    def __init__(self, config: ClipConfig, num_classes: int = 0, *, clip: CLIP | None = None):
        super().__init__()
        self.config = config
        self.clip = clip or create_clip(config.backbone, config.image_size, config.positions)
        self.clip.logit_scale.requires_grad_(not config.temperature)
        add_adapters(self.clip.model, config.lora)
        self.reads = self.trains_on = tuple(part for part in ("text", "sketch") if part in config.views)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Identity-aware ITC or SDM between photos and captions (t2i), and between photos and sketches (s2i)."""
        photos = self.embed_image(batch["images"])
        views = {}
        if "text" in self.config.views:
            views["t2i"] = self.embed_text(batch["text"])
        if "sketch" in self.config.views:
            views["s2i"] = self.embed_sketch(batch["sketch"])
        loss = {"sdm": sdm, "itc": itc}[self.config.loss]
        with torch.autocast(self.device.type, enabled=False):  # bf16 would leave 256 similarities 93 values
            scale = 1 / self.config.temperature if self.config.temperature else learnt_scale(self.clip.logit_scale)
            all_photos, targets = gather(photos), identity_targets(gather(batch["pids"]))
            return {
                name: both_ways(loss, scale * gather(features) @ all_photos.T, targets)
                for name, features in views.items()
            }

    def rate_of(self, name: str, parameter: nn.Parameter, config: ClipConfig) -> tuple[float, float]:
        if "bias" in name:
            return config.lr * config.bias_lr, 0.0
        return config.lr, config.weight_decay if parameter.ndim >= 2 or config.decay_vectors else 0.0
