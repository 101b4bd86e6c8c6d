"""The face every method shows: tokenize, embed each kind of query, give its losses, name its learning rates."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reidlib.config import Config
from reidlib.data.transforms import CLIP as CLIP_STATISTICS
from reidlib.errors import ReidError


class Method(nn.Module):
    """A retrieval model. The similarity of a query and an image is the inner product of their embeddings.

    A method fills in what it has of `embed_*` and `compose`, lists the query kinds it takes in `queries`, and what a
    training batch must hold in `needs` ("captions", "sketches", "dialogues").
    """

    name: ClassVar[str]
    queries: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("captions",)
    mean: tuple[float, float, float] = CLIP_STATISTICS[0]
    std: tuple[float, float, float] = CLIP_STATISTICS[1]
    num_classes: int = 0  # identities a classification loss knows; 0 where there is no such loss
    config: Config

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures it takes, in pixels."""
        return self.config.image_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (B, L) on the CPU, padded on the right."""
        raise NotImplementedError

    def tokenize_dialogues(self, dialogues: list[list[tuple[str, str]]]) -> Tensor:
        """Token ids (B, L) of whole dialogues, each a list of (question, answer)."""
        return self._refuse("dialogue")

    def tokenize_feedback(self, texts: list[str]) -> Tensor:
        """Token ids (B, L) of the sentences that `compose` takes beside a sketch."""
        return self.tokenize(texts)

    def embed_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), normalised by `mean` and `std` -> (B, D)."""
        raise NotImplementedError

    def embed_text(self, ids: Tensor) -> Tensor:
        """(B, L) from `tokenize` -> (B, D)."""
        return self._refuse("text")

    def embed_sketch(self, sketches: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        return self._refuse("sketch")

    def embed_dialogue(self, ids: Tensor) -> Tensor:
        """(B, L) from `tokenize_dialogues` -> (B, D)."""
        return self._refuse("dialogue")

    def compose(self, sketches: Tensor, ids: Tensor) -> Tensor:
        """A sketch and a sentence as one query: (B, 3, H, W), (B, L) -> (B, D)."""
        return self._refuse("sketch+text")

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Weighted scalar losses by name; training minimises their sum.

        The batch holds tensors on the model's device: images (B, 3, H, W), pids (B,) labels from 0, image_ids (B,),
        progress (float, epochs done so far), and what `needs` asks: caption_ids (B, L), sketches (B, 3, H, W),
        dialogue_ids (B, L).
        """
        raise NotImplementedError

    def parameter_groups(self, config: Config) -> list[dict[str, Any]]:
        """Optimiser groups, each {params, lr, weight_decay}. By default no decay on vectors and scalars."""
        matrices = [p for p in self.parameters() if p.requires_grad and p.ndim >= 2]
        vectors = [p for p in self.parameters() if p.requires_grad and p.ndim < 2]
        return [
            {"params": matrices, "lr": config.lr, "weight_decay": config.weight_decay},
            {"params": vectors, "lr": config.lr, "weight_decay": 0.0},
        ]

    def gather(self, features: Tensor) -> Tensor:
        """The features of all processes, (B, ...) -> (processes * B, ...), with gradients; training installs it."""
        return features

    def checkpoint_activations(self) -> None:
        """Trades time for memory in every tower that can."""
        for module in self.modules():
            if module is not self and hasattr(module, "checkpoint_activations"):
                module.checkpoint_activations()

    def _refuse(self, kind: str):
        takes = ", ".join(self.queries)
        raise ReidError(f"{self.name} takes no {kind} queries; it takes {takes}.")
