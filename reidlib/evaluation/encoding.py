"""Turning pictures, captions, sketches and dialogues into embeddings, each once, in batches."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributed

from reidlib.data.images import Pixels
from reidlib.data.transforms import normalise
from reidlib.devices import autocast
from reidlib.methods.base import Method


class Encoder:
    """Embeds with one model, in evaluation mode and without gradients; a gallery asked for twice is encoded once.

    pixels: the decoded pictures and sketches by path, at the model's size. shared: the processes of torch.distributed
    take turns at the batches and each gets all embeddings, the very ones of a single process; all have to ask alike.
    """

    def __init__(self, model: Method, pixels: Pixels, batch_size: int = 256, shared: bool = False):
        self.model, self.pixels, self.batch_size, self.shared = model, pixels, batch_size, shared
        self._galleries: dict[tuple[str, ...], Tensor] = {}

    def gallery(self, paths: Sequence[str]) -> Tensor:
        """(N, D) float32 embeddings of pictures, on the model's device."""
        key = tuple(paths)
        if key not in self._galleries:
            self._galleries[key] = self._run(paths, lambda part: self.model.embed_image(self.pictures(part)))
        return self._galleries[key]

    def sketches(self, paths: Sequence[str]) -> Tensor:
        return self._run(paths, lambda part: self.model.embed_sketch(self.pictures(part)))

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D); texts of similar length share a batch, so that little is spent on padding."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        done = self._run(
            [texts[i] for i in order],
            lambda part: self.model.embed_text(self.model.tokenize(part).to(self.model.device)),
        )
        return _unsorted(done, order)

    def dialogues(self, dialogues: Sequence[list[tuple[str, str]]]) -> Tensor:
        order = sorted(range(len(dialogues)), key=lambda i: sum(len(q) + len(a) for q, a in dialogues[i]))
        done = self._run(
            [dialogues[i] for i in order],
            lambda part: self.model.embed_dialogue(self.model.tokenize_dialogues(part).to(self.model.device)),
        )
        return _unsorted(done, order)

    def composed(self, sketches: Sequence[str], texts: Sequence[str]) -> Tensor:
        """(N, D) of sketches each with its sentence."""

        def embed(part):
            ids = self.model.tokenize_feedback([text for _, text in part]).to(self.model.device)
            return self.model.compose(self.pictures([path for path, _ in part]), ids)

        return self._run(list(zip(sketches, texts, strict=True)), embed)

    def pictures(self, paths: Sequence[str]) -> Tensor:
        """Pictures by path as the model takes them, (B, 3, H, W) normalised, on its device."""
        pixels = self.pixels[[self.pixels.index[path] for path in paths]].to(self.model.device)
        return normalise(pixels, self.model.mean, self.model.std, white=255)

    @torch.inference_mode()
    def _run(self, items: Sequence, embed: Callable) -> Tensor:
        was_training = self.model.training
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if self.shared else (0, 1)
        starts = range(0, len(items), self.batch_size)
        self.model.eval()
        try:
            with autocast(self.model.device, self.model.config.precision):
                parts = [embed(items[start : start + self.batch_size]).float() for start in starts[rank::world]]
        finally:
            self.model.train(was_training)
        if self.shared:
            held: list[list[Tensor]] = [[] for _ in range(world)]
            distributed.all_gather_object(held, [part.cpu() for part in parts])
            parts = [held[number % world][number // world] for number in range(len(starts))]
        return torch.cat(parts).to(self.model.device)


def _unsorted(rows: Tensor, order: list[int]) -> Tensor:
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return rows[back.to(rows.device)]
