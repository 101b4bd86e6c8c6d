"""Turns pictures, words, dialogues and sketches into embeddings with any method, and says so when it cannot."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from reidlib.data.transforms import normalise
from reidlib.devices import autocast
from reidlib.errors import ReidError
from reidlib.methods.base import Method

Dialogue = list[tuple[str, str]]
OPENING = "What does the person look like?"


class Embedder:
    """A method in evaluation mode; every call returns float32 embeddings (B, D) on the CPU."""

    def __init__(self, model: Method):
        self.model = model.eval()

    def takes(self, kind: str) -> bool:
        return kind in self.model.queries

    def require(self, *kinds: str) -> None:
        """Raises ReidError unless the method takes one of these kinds of query."""
        if not any(map(self.takes, kinds)):
            takes = ", ".join(self.model.queries)
            raise ReidError(f"{self.model.name} takes no {kinds[0]} queries; it takes {takes}.")

    def images(self, pictures: list[Image.Image]) -> torch.Tensor:
        return self._run(self.model.embed_image, self._pixels(pictures))

    def sketch(self, picture: Image.Image) -> torch.Tensor:
        return self._run(self.model.embed_sketch, self._pixels([picture]))

    def texts(self, texts: list[str]) -> torch.Tensor:
        """Each text as a query of its own; a method that only converses hears it as a dialogue of one turn."""
        if self.takes("text"):
            return self._run(self.model.embed_text, self.model.tokenize(texts))
        return self.dialogues([[(OPENING, text)] for text in texts])

    def dialogues(self, dialogues: list[Dialogue]) -> torch.Tensor:
        return self._run(self.model.embed_dialogue, self.model.tokenize_dialogues(dialogues))

    def compose(self, picture: Image.Image, text: str) -> torch.Tensor:
        return self._run(self.model.compose, self._pixels([picture]), self.model.tokenize_feedback([text]))

    def count_tokens(self, text: str) -> tuple[int, int]:
        """How many tokens a text takes and how many the method reads; one too many where it only shows a cut."""
        if hasattr(self.model, "count_tokens"):
            return self.model.count_tokens(text)
        pad = self.model.tokenize([""])[0, -1]
        ids = self.model.tokenize([text])[0]
        used = int((ids != pad).sum())
        return used + (used == len(ids)), len(ids)

    def _pixels(self, pictures: list[Image.Image]) -> torch.Tensor:
        height, width = self.model.image_size
        resized = [picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC) for picture in pictures]
        pixels = torch.from_numpy(np.stack([np.asarray(p) for p in resized])).permute(0, 3, 1, 2)
        return normalise(pixels, self.model.mean, self.model.std, white=255)

    @torch.inference_mode()
    def _run(self, embed: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        with autocast(self.model.device, self.model.config.precision):
            return embed(*(tensor.to(self.model.device) for tensor in inputs)).float().cpu()
