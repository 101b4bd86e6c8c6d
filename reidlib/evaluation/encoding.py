"""The one encoder: pictures and queries become embeddings, each once, in batches, with any method."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, distributed

from reidlib.data.images import Pixels
from reidlib.devices import autocast, processes
from reidlib.methods.base import Method
from reidlib.query import Picture, Query


class Encoder:
    """Embeds with one model, in evaluation mode and without gradients.

    Pictures are paths in `pixels` (the decoded pictures of a data set, at the model's size), files, or PIL images. A
    gallery of `pixels` that is asked for twice is encoded once. Embeddings are float32 and on the model's device.

    Under torch.distributed the processes take turns at the batches and each gets all embeddings, the very ones of a
    single process; all have to ask alike.
    """

    def __init__(self, model: Method, pixels: Pixels | None = None, batch_size: int = 256):
        self.model, self.pixels, self.batch_size = model, pixels, batch_size
        self._known = {} if pixels is None else pixels.index  # path -> place in `pixels`
        self._galleries: dict[tuple[str, ...], Tensor] = {}

    def images(self, pictures: Sequence[Picture]) -> Tensor:
        """(N, D) of gallery pictures."""
        key = tuple(pictures) if all(isinstance(p, str) and p in self._known for p in pictures) else None
        if key in self._galleries:
            return self._galleries[key]
        found = self._run(pictures, lambda part: self.model.embed_image(self.pictures(part)))
        if key is not None:
            self._galleries[key] = found
        return found

    def queries(self, queries: Sequence[Query]) -> Tensor:
        """(N, D) of queries. Those of like kind and length share a batch, so that little is spent on padding."""
        order = sorted(range(len(queries)), key=lambda row: (queries[row].parts, _length(queries[row])))
        done = self._run([queries[row] for row in order], lambda part: self.model.embed(list(map(self._decoded, part))))
        return done[torch.tensor(order).argsort().to(done.device)]

    def pictures(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures as the model takes them, (B, 3, H, W) normalised, on its device."""
        if all(isinstance(picture, str) and picture in self._known for picture in pictures):
            return self.model.pixels(self.pixels[[self._known[picture] for picture in pictures]])
        return self.model.pixels([self._pixels_of(picture) for picture in pictures])

    def _decoded(self, query: Query) -> Query:
        """The query with pixels in place of paths that `pixels` knows."""
        return replace(query, sketch=self._pixels_of(query.sketch), photo=self._pixels_of(query.photo))

    def _pixels_of(self, picture: Picture | None) -> Picture | None:
        known = isinstance(picture, str) and picture in self._known
        return self.pixels[[self._known[picture]]][0] if known else picture

    @torch.inference_mode()
    def _run(self, items: Sequence, embed: Callable[[Sequence], Tensor]) -> Tensor:
        was_training = self.model.training
        world = processes()
        rank = distributed.get_rank() if world > 1 else 0
        starts = range(0, len(items), self.batch_size)
        self.model.eval()
        try:
            with autocast(self.model.device, self.model.config.precision):
                parts = [embed(items[start : start + self.batch_size]).float() for start in starts[rank::world]]
        finally:
            self.model.train(was_training)
        if world > 1:
            held: list[list[Tensor]] = [[] for _ in range(world)]
            distributed.all_gather_object(held, [part.cpu() for part in parts])
            parts = [held[number % world][number // world] for number in range(len(starts))]
        return torch.cat(parts).to(self.model.device)


def _length(query: Query) -> int:
    """Letters to read."""
    return len(query.text) + sum(len(question) + len(answer) for question, answer in query.turns)
