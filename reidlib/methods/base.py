"""The interface of every method: it embeds pictures and queries, gives its losses, and names its learning rates."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from reidlib.config import Config
from reidlib.data.augment import CLIP as CLIP_STATISTICS
from reidlib.data.augment import normalise
from reidlib.data.images import Preprocess, open_image
from reidlib.errors import ReidError
from reidlib.query import Picture, Query, Turn

# Rocchio's weights of the likes and dislikes against a query of weight 1, as in the SMART system.
LIKED, DISLIKED = 0.75, 0.15
MAX_LOG_SCALE = math.log(100)
IN_WORDS = {"text": "a text", "turns": "a dialogue", "sketch": "a sketch"}  # the parts that a method may not read


class Method(nn.Module):
    """A retrieval model. The similarity of a query and an image is the inner product of their embeddings.

    A method fills in `embed_image`, `losses`, and the `tokenize` and `embed_*` of the parts of a query that it reads:

    reads: the parts it embeds itself, of "text", "turns" and "sketch". A photo is embedded as a picture of the gallery.
    trains_on: the parts that a training item must hold beside the picture.
    mixes: it reads a text and turns side by side, and trains on items that lack some of the parts in `trains_on`.
    """

    name: ClassVar[str]
    reads: tuple[str, ...] = ()
    trains_on: tuple[str, ...] = ("text",)
    mixes: ClassVar[bool] = False
    num_classes: int = 0  # identities a classification loss knows; 0 where there is no such loss
    config: Config

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures it takes, in pixels."""
        return self.config.image_size

    @property
    def mean(self) -> tuple[float, float, float]:
        """What pictures are normalised by: those of its `clip`, or a constant of the method's own."""
        return self._of_backbone.mean

    @property
    def std(self) -> tuple[float, float, float]:
        return self._of_backbone.std

    @property
    def preprocess(self) -> Preprocess:
        """How it takes pictures, all that is needed to prepare one."""
        own = replace(self._of_backbone, size=tuple(self.image_size), mean=tuple(self.mean), std=tuple(self.std))
        return replace(own, interpolation=getattr(self.config, "interpolation", "") or own.interpolation)

    @property
    def _of_backbone(self) -> Preprocess:
        clip = getattr(self, "clip", None)
        return clip.preprocess if clip is not None else Preprocess(tuple(self.image_size), *CLIP_STATISTICS)

    @property
    def made_of(self) -> dict[str, Any]:
        """What its towers are, as JSON values: with it, `methods.create` builds the model again and fetches nothing.

        The towers are its children that have a `spec`; the constructor takes each under the child's name.
        """
        specs = {name: getattr(child, "spec", None) for name, child in self.named_children()}
        return {name: spec for name, spec in specs.items() if spec is not None}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    # -- what a method fills in ------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (B, L) on the CPU, padded on the right."""
        raise NotImplementedError

    def tokenize_turns(self, dialogues: Sequence[Sequence[Turn]]) -> Tensor:
        """Token ids (B, L) on the CPU of whole dialogues, each a list of (question, answer)."""
        raise NotImplementedError

    def embed_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), normalised by `mean` and `std` -> (B, D)."""
        raise NotImplementedError

    def embed_text(self, ids: Tensor) -> Tensor:
        """(B, L) from `tokenize` -> (B, D)."""
        raise NotImplementedError

    def embed_turns(self, ids: Tensor) -> Tensor:
        """(B, L) from `tokenize_turns` -> (B, D)."""
        raise NotImplementedError

    def embed_sketch(self, sketches: Tensor) -> Tensor:
        """(B, 3, H, W), normalised -> (B, D)."""
        raise NotImplementedError

    def compose(self, parts: dict[str, Tensor]) -> Tensor:
        """Several of the parts in `reads` as one query: token ids (B, L) or pictures (B, 3, H, W) by name -> (B, D).

        By default the direction of the sum of their unit vectors, at the length of the first.
        """
        return added([self._embed_part(name, given) for name, given in parts.items()])

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Weighted scalar losses by name; training minimises their sum.

        The batch holds tensors on the model's device: images (B, 3, H, W), pids (B,) labels from 0, image_ids (B,),
        progress (float, epochs done so far), and what `trains_on` asks: text (B, L), turns (B, L), sketch (B, 3, H, W).
        """
        raise NotImplementedError

    def rate_of(self, name: str, parameter: nn.Parameter, config: Config) -> tuple[float, float]:
        """Learning rate and weight decay of a parameter. By default vectors and scalars do not decay."""
        return config.lr, config.weight_decay if parameter.ndim >= 2 else 0.0

    # -- queries ---------------------------------------------------------------------------------------------------

    def embed(self, queries: Sequence[Query]) -> Tensor:
        """The embeddings of queries of any kinds, (B, D).

        A model that reads no turns is given their answers as text, one that reads only turns a text as a first answer.
        A photo's embedding is added as one more unit vector. Marks then move the direction by Rocchio's rule,
        q + 0.75 mean(liked) - 0.15 mean(disliked) of unit vectors, at the length the query had. Raises ReidError for
        a query that is empty or holds a part this method cannot read.
        """
        queries = [self._readable(query) for query in queries]
        groups: dict[tuple[str, ...], list[int]] = {}
        for row, query in enumerate(queries):
            groups.setdefault(query.parts, []).append(row)
        features = [self._embed_alike([queries[row] for row in rows], parts) for parts, rows in groups.items()]
        order = torch.tensor([row for rows in groups.values() for row in rows], device=self.device)
        return torch.cat(features)[order.argsort()]

    def require(self, *parts: str) -> None:
        """Raises ReidError unless this method reads one of `parts`."""
        if not set(parts) & set(self.reads):
            raise ReidError(f"{self.name} reads {' and '.join(self.reads)}; it cannot read {IN_WORDS[parts[0]]}.")

    def pixels(self, pictures: Sequence[Picture] | Tensor) -> Tensor:
        """Pictures as the model takes them, (B, 3, H, W) normalised, on its device.

        uint8 pixels, (3, H, W) each or (B, 3, H, W), are taken to have the model's size; files and PIL images are
        resized to it.
        """
        if not isinstance(pictures, Tensor):
            pictures = torch.stack([self.resized(picture) for picture in pictures])
        return normalise(pictures.to(self.device), self.mean, self.std, white=255)

    def count_tokens(self, text: str) -> tuple[int, int]:
        """How many tokens a text takes, and how many the method reads; one too many where it only shows a cut."""
        pad = self.tokenize([""])[0, -1]
        ids = self.tokenize([text])[0]
        used = int((ids != pad).sum())
        return used + (used == len(ids)), len(ids)

    def resized(self, picture: Picture) -> Tensor:
        """A picture at the model's size, uint8 (3, H, W)."""
        if isinstance(picture, Tensor):
            return picture
        image = picture if isinstance(picture, Image.Image) else open_image(picture, self.image_size)
        return torch.from_numpy(self.preprocess.pixels(image).copy())

    def _readable(self, query: Query) -> Query:
        """The query with its words in the form that this method reads."""
        if self.mixes:
            pass
        elif "turns" in self.reads and (query.turns or "text" not in self.reads):
            query = replace(query, text="", turns=query.as_turns)
        elif "text" in self.reads:
            query = replace(query, text=query.as_text, turns=())
        for part in set(query.parts) & set(IN_WORDS):
            self.require(part)
        if not query.parts:
            raise ReidError("The query is empty; expected a text, turns, a sketch, a photo or marks.")
        return query

    def _embed_alike(self, queries: list[Query], parts: tuple[str, ...]) -> Tensor:
        """Embeds queries that all hold the same parts, which are in the order of `PARTS`."""
        prepare = {"text": self.tokenize, "turns": self.tokenize_turns, "sketch": self.pixels}
        told = {
            name: prepare[name]([getattr(query, name) for query in queries]).to(self.device)
            for name in parts
            if name in prepare
        }
        features = []
        if len(told) == 1:
            features = [self._embed_part(*told.popitem())]
        elif told:
            features = [self.compose(told)]
        if "photo" in parts:
            features.append(self.embed_image(self.pixels([query.photo for query in queries])))
        marks = [
            sign * torch.stack([_mean_direction(getattr(query, name)) for query in queries]).to(self.device)
            for name, sign in (("liked", LIKED), ("disliked", -DISLIKED))
            if name in parts
        ]
        return _moved(added(features) if features else None, marks)

    def _embed_part(self, name: str, given: Tensor) -> Tensor:
        return {"text": self.embed_text, "turns": self.embed_turns, "sketch": self.embed_sketch}[name](given)

    # -- training --------------------------------------------------------------------------------------------------

    def parameter_groups(self, config: Config) -> list[dict[str, Any]]:
        """The optimiser's groups of what is trained, each {params, lr, weight_decay}, by `rate_of`."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(self.rate_of(name, parameter, config), []).append(parameter)
        groups = dict(sorted(groups.items(), key=lambda group: group[0][0] != config.lr))  # logs tell the first one's
        return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]

    def checkpoint_activations(self) -> None:
        """Trades time for memory in every tower that can."""
        for module in self.modules():
            if module is not self and hasattr(module, "checkpoint_activations"):
                module.checkpoint_activations()


def learnt_scale(logit_scale: nn.Parameter) -> Tensor:
    """exp(logit_scale), at most 100 as in CLIP: the parameter itself is held there.

    Clamping what is returned would give no gradient at 100, which is where CLIP's own scale stands: it could not learn.
    """
    with torch.no_grad():
        logit_scale.clamp_(max=MAX_LOG_SCALE)
    return logit_scale.exp()


def added(features: Sequence[Tensor]) -> Tensor:
    """The direction of the sum of unit vectors, at the length of the first: (B, D) each -> (B, D)."""
    if len(features) == 1:
        return features[0]
    direction = sum(normalize(feature, dim=1) for feature in features)
    return normalize(direction, dim=1) * features[0].norm(dim=1, keepdim=True)


def _mean_direction(marked: Tensor) -> Tensor:
    """(n, D) -> (D,), the mean of unit vectors."""
    return normalize(marked.float(), dim=1).mean(0)


def _moved(told: Tensor | None, marks: Sequence[Tensor]) -> Tensor:
    """Queries (B, D), or None where only marks were given, moved by weighted marks (B, D)."""
    if not marks:
        return told
    if told is None:
        return normalize(sum(marks), dim=1)
    return normalize(normalize(told, dim=1) + sum(marks), dim=1) * told.norm(dim=1, keepdim=True)
