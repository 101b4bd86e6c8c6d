"""Omni: one model for whatever a witness has. Words, turns, a sketch, a photo and marks are read side by side.

Beyond the four papers. That a query may be any mix of modalities is an idea of UNIReID (CVPR 2023), FlexiReID and
ReID5o (both 2025); marks on candidates and single turns of a dialogue as further parts are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from reidlib.backbones import CLIP, create_clip
from reidlib.backbones.adapters import add_adapters
from reidlib.config import Config
from reidlib.devices import gather
from reidlib.losses import both_ways, identity_targets, itc
from reidlib.methods.base import DISLIKED, LIKED, learnt_scale
from reidlib.methods.clip import TwoTowers
from reidlib.query import PARTS, Query

MARKS = ("liked", "disliked")
FOUND = 0.1  # how often a photo of the person is among the liked
Told = dict[str, tuple[Tensor, Tensor]]  # part -> unit vectors (B, n, D), and which of them are there (B, n), bool


@dataclass
class OmniConfig(Config):
    """`composition` says how the parts of a query become one: "learned" is the method; "rule" is what it starts from,
    the sum of unit vectors moved by Rocchio's rule; "sum" adds all of them, marks at plus and minus one."""

    composition: Literal["learned", "rule", "sum"] = "learned"
    layers: int = 2  # of the transformer that reads the parts
    heads: int = 4
    reader_lr: float = 1.0  # times lr, of everything but CLIP
    alone_weight: float = 4.0  # of the mean of the terms in which each part searches by itself
    keep: float = 0.5  # how often each part is kept in the mix that a training item is asked with
    marks: float = 0.5  # how often an item has marks
    shown: int = 8  # candidates that a witness looks at
    most_turns: int = 4  # turns of a dialogue in a training item

    @classmethod
    def paper(cls) -> Self:
        return cls(
            backbone="ViT-B-16-quickgelu:openai",
            image_size=(384, 128),
            epochs=30,
            batch_size=64,
            lr=1e-5,
            reader_lr=10.0,
            warmup_epochs=3,
            workers=8,
            select_by="st2i mAP",
        )

    @classmethod
    def toy(cls) -> Self:
        return cls(
            epochs=2,
            batch_size=64,
            lr=1.3e-3,
            keep=0.7,
            weight_decay=0.0,
            schedule="linear",
            warmup_epochs=1,
            augment="cfine",
            select_by="st2i mAP",
        )


class Omni(TwoTowers):
    """One CLIP, whose picture side is the gallery's, and a small transformer that reads the parts of a query.

    Each part becomes unit vectors e_i of CLIP's space, one for a text, a sketch or a photo, one for each turn and each
    marked picture. With w_i the weight that the hand-set rule gives it (`rule`), and h_i what the transformer says at
    its place, the query is the direction of

        sum_i w_i (1 + g(h_i)) e_i + mean_i V h_i

    with g and V linear and zero at first, so that training begins at the rule exactly.
    num_classes: training identities, of each of which one embedding is kept as a gallery to simulate marks in.
    """

    name: ClassVar[str] = "omni"
    reads = ("text", "turns", "sketch")
    trains_on = ("text", "turns", "sketch", "photo")
    mixes = True
    config: OmniConfig

    def __init__(self, config: OmniConfig, num_classes: int = 0, *, clip: CLIP | None = None):
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.clip = clip or create_clip(config.backbone, config.image_size, config.positions)
        add_adapters(self.clip.model, config.lora)
        width = self.clip.embed_dim
        self.kinds = nn.Embedding(len(PARTS), width)
        nn.init.normal_(self.kinds.weight, std=width**-0.5)  # as long as the unit vectors that they are added to
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.reader = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.weigh, self.correct = nn.Linear(width, 1), nn.Linear(width, width)
        for linear in (self.weigh, self.correct):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.register_buffer("known", torch.zeros(num_classes, width))  # the last photo seen of each identity

    def tokenize_turns(self, turns: Sequence[tuple[str, str]]) -> Tensor:
        """Ids (T, L) of turns, each of them (question, answer) and a text of its own."""
        return self.tokenize([f"{question} {answer}".strip() for question, answer in turns])

    embed_turns = TwoTowers.embed_text  # each by itself, before it is read beside the others

    def _embed_alike(self, queries: list[Query], parts: tuple[str, ...]) -> Tensor:
        return self.fuse({part: self._told(part, [getattr(query, part) for query in queries]) for part in parts})

    def _told(self, part: str, given: list[Any]) -> tuple[Tensor, Tensor]:
        """One part of several queries as unit vectors, and which of them are there."""
        if part in MARKS:
            each = [normalize(marked.float().to(self.device), dim=-1) for marked in given]
        elif part == "turns":
            flat = self.embed_text(self.tokenize_turns([turn for turns in given for turn in turns]).to(self.device))
            each = flat.split([len(turns) for turns in given])
        elif part == "text":
            each = self.embed_text(self.tokenize(given).to(self.device)).split(1)
        else:
            each = self.embed_image(self.pixels(given)).split(1)
        lengths = torch.tensor([len(vectors) for vectors in each], device=self.device)
        vectors = pad_sequence(list(each), batch_first=True)
        return vectors, torch.arange(vectors.shape[1], device=self.device) < lengths[:, None]

    def fuse(self, told: Told) -> Tensor:
        """The parts of B queries -> unit vectors (B, D)."""
        vectors = torch.cat([vectors for vectors, _ in told.values()], dim=1)
        weights, correction = self._weigh(told, vectors)
        return normalize((weights[..., None] * vectors).sum(dim=1) + correction, dim=-1)

    def _weigh(self, told: Told, vectors: Tensor) -> tuple[Tensor, Tensor | float]:
        """Weights (B, n) of the parts' vectors (B, n, D) in their order, and what is added to their sum, (B, D)."""
        weights = rule(told, rocchio=self.config.composition != "sum")
        if self.config.composition != "learned":
            return weights, 0.0
        there = torch.cat([there for _, there in told.values()], dim=1)
        kinds = torch.cat([torch.full_like(t, PARTS.index(part), dtype=torch.long) for part, (_, t) in told.items()], 1)
        read = self.reader(vectors + self.kinds(kinds), src_key_padding_mask=~there)
        correction = (self.correct(read) * there[..., None]).sum(dim=1) / there.sum(dim=1, keepdim=True)
        return weights * (1 + self.weigh(read).squeeze(-1)), correction

    @torch.no_grad()
    def weights(self, query: Query) -> dict[str, float]:
        """How much each part of a query counts for, the weights of several turns or marks added up."""
        told = {part: self._told(part, [getattr(query, part)]) for part in query.parts}
        weights, _ = self._weigh(told, torch.cat([vectors for vectors, _ in told.values()], dim=1))
        each = weights[0].split([vectors.shape[1] for vectors, _ in told.values()])
        return {part: float(share.sum()) for part, share in zip(told, each, strict=True)}

    # -- training ----------------------------------------------------------------------------------------------------

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """ITC of a random mix of the parts of each item, and of each part alone, with the photos.

        The batch is one of `MixedBatches`: an item lacks some of the parts, and then searches with all that it has.
        """
        told = self._encoded(batch)
        photos, pids = self.embed_image(batch["images"]), batch["pids"]
        with torch.autocast(self.device.type, enabled=False):
            everyone, targets = gather(photos), identity_targets(gather(pids))
            mixed, marked = self._mix(told)
            queries = {"mix": self.fuse(mixed | self._marks(self.fuse(mixed), photos, pids, marked))}
            lacking = {part: ~there.any(dim=1, keepdim=True) for part, (_, there) in told.items()}
            whole = self.fuse(told) if any(lacks.any() for lacks in lacking.values()) else queries["mix"]
            for part, (vectors, there) in told.items():
                first = torch.arange(there.shape[1], device=self.device) == 0  # of what is not there, to be replaced
                alone = self.fuse({part: (vectors, there | (first & lacking[part]))})
                queries[part] = torch.where(lacking[part], whole, alone)
            scale = learnt_scale(self.clip.logit_scale)
            terms = {name: both_ways(itc, scale * gather(q) @ everyone.T, targets) for name, q in queries.items()}
            with torch.no_grad():  # one photo of each identity, the same whatever the order they come in
                self.known[gather(pids)] = targets @ everyone
        alone = self.config.alone_weight / max(1, len(told))
        return {name: term if name == "mix" else alone * term for name, term in terms.items()}

    def _encoded(self, batch: dict[str, Any]) -> Told:
        """The parts that a batch holds; those that no item has are left out."""
        told = {}
        for part in ("text", "turns", "sketch", "photo"):
            if part in batch:
                there = batch[f"has_{part}"]
                there = there if there.ndim == 2 else there[:, None]
                given = batch[part] if part == "turns" else batch[part][:, None]
                embed = self.embed_text if part in ("text", "turns") else self.embed_image
                with torch.set_grad_enabled(torch.is_grad_enabled() and part != "photo"):  # it learns as a gallery's
                    features = embed(given[there])
                vectors = features.new_zeros(*there.shape, features.shape[-1])
                told[part] = vectors.masked_scatter(there[..., None], features), there
        return told

    def _mix(self, told: Told) -> tuple[Told, Tensor]:
        """The parts that each item is asked with, and which items are asked with marks, (B, 1).

        Each part is kept with probability `keep`, all of them where none would be left. Marks matter while little is
        known: an item with marks keeps one part alone, and no photo.
        """
        has = torch.stack([there.any(dim=1) for _, there in told.values()], dim=1)
        kept = has & (torch.rand(has.shape, device=has.device) < self.config.keep)
        kept = torch.where(kept.any(dim=1, keepdim=True), kept, has)
        able = has & torch.tensor([part != "photo" for part in told], device=has.device)
        one = torch.rand(has.shape, device=has.device).masked_fill(~able, -1).argmax(dim=1, keepdim=True)
        marked = (torch.rand(len(has), 1, device=has.device) < self.config.marks) & able.any(dim=1, keepdim=True)
        kept = torch.where(marked, torch.zeros_like(kept).scatter(1, one, True), kept)
        return {part: (v, there & kept[:, n : n + 1]) for n, (part, (v, there)) in enumerate(told.items())}, marked

    @torch.no_grad()
    def _marks(self, queries: Tensor, photos: Tensor, pids: Tensor, marked: Tensor) -> Told:
        """What a witness would mark among the first candidates of a gallery of other people, as an earlier step saw it.

        Candidates more like the person's photo than a level drawn for each search are liked, the others disliked, and
        now and then another photo of the person is among the liked. queries, photos: (B, D) unit vectors. marked:
        (B, 1), True for items that have marks; how many of the candidates are marked then is drawn for each.
        """
        shape, level = (len(pids), min(self.config.shown, self.num_classes - 1)), torch.rand(2, len(pids), 1)
        level = level.to(photos.device)
        scores = (queries @ self.known.T).scatter(1, pids[:, None], -torch.inf)
        shown = self.known[scores.topk(shape[1]).indices]
        likeness = (shown * photos[:, None]).sum(dim=-1)
        low, high = likeness.aminmax(dim=1, keepdim=True)
        liked = likeness > low + (high - low) * level[0]
        chosen = marked & (torch.rand(shape, device=photos.device) < level[1]) & shown.any(dim=-1)
        own = self.known[pids][:, None]
        found = marked & (torch.rand(shape[0], 1, device=photos.device) < FOUND) & own.any(dim=-1)
        return {
            "liked": (torch.cat([shown, own], dim=1), torch.cat([chosen & liked, found], dim=1)),
            "disliked": (shown, chosen & ~liked),
        }

    def rate_of(self, name: str, parameter: nn.Parameter, config: Config) -> tuple[float, float]:
        lr, decay = super().rate_of(name, parameter, config)
        return lr if name.startswith("clip.") else lr * config.reader_lr, decay


def rule(told: Told, rocchio: bool = True) -> Tensor:
    """The hand-set weights of all parts' vectors, in their order, (B, n); 0 where nothing is.

    What `Method.embed` does to embeddings: text, sketch and dialogue (the direction of the sum of its turns) count
    alike, the photo as much as their direction, and the means of liked and disliked pictures move the direction of all
    that by Rocchio's 0.75 and -0.15; without `rocchio` by 1 and -1.
    """
    weights = {part: there.float() for part, (_, there) in told.items()}

    def to_unit(*parts: str) -> None:
        """Brings the sum of some parts to length 1."""
        parts = [part for part in parts if part in told]
        if parts:
            length = sum((weights[part][..., None] * told[part][0]).sum(dim=1) for part in parts).norm(dim=1)
            weights.update({part: weights[part] / length.clamp(min=1e-6)[:, None] for part in parts})

    to_unit("turns")
    to_unit("text", "turns", "sketch")
    to_unit("text", "turns", "sketch", "photo")
    for part, share in zip(MARKS, (LIKED, -DISLIKED) if rocchio else (1.0, -1.0), strict=True):
        if part in told:
            weights[part] = share * weights[part] / weights[part].sum(dim=1, keepdim=True).clamp(min=1)
    return torch.cat(list(weights.values()), dim=1)
