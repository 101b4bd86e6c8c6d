"""CLIP as both towers of a dialogue model: its text tower reads all turns as one text, with stretched positions."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from reidlib.backbones.clip import CLIP, MASK_ID, PAD, pad_and_cut
from reidlib.backbones.positions import stretched
from reidlib.backbones.swin_llama import Features
from reidlib.data.dialogues import Dialogue, caption_turn


class ClipTowers(nn.Module):
    """A dialogue is `start question answer end` turn after turn, read at the last `end`.

    As the text tower is causal, the feature at the n-th `end` is that of the first n turns alone. max_length: tokens of
    the longest dialogue; positions are interpolated to it where CLIP has fewer, and longer dialogues lose their end.
    """

    def __init__(self, clip: CLIP, max_length: int):
        super().__init__()
        self.clip, self.max_length = clip, max_length
        clip.require("A dialogue model", patches=True, words=True)
        clip.logit_scale.requires_grad_(False)  # the method has its own
        _stretch(clip._text, max_length)
        tokenizer = clip._tokenizer[0]
        self.start, self.end, self.pad, self.mask = tokenizer.sot_token_id, tokenizer.eot_token_id, PAD, MASK_ID

    @property
    def spec(self) -> dict[str, Any] | None:
        clip = self.clip.spec
        return clip and {"kind": "clip-turns", "clip": clip, "max_length": self.max_length}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        return cls(CLIP.from_spec(spec["clip"]), spec["max_length"])

    @property
    def image_width(self) -> int:
        return self.clip.embed_dim

    @property
    def text_width(self) -> int:
        return self.clip.embed_dim

    @property
    def grid(self) -> tuple[int, int]:
        return self.clip.grid

    def encode_image(self, images: Tensor) -> Features:
        """(B, 3, H, W) -> the class token's feature and the patches', both projected into CLIP's shared space."""
        tokens = self.clip.image_tokens(images).tokens
        return Features(tokens[:, 0], tokens[:, 1:])

    def encode_text(self, ids: Tensor) -> Features:
        """(B, L) -> the feature at the last `end`, and those of all tokens, (B, L, D)."""
        tokens = self.clip.text_tokens(ids).tokens
        last = (ids != self.pad).sum(dim=1) - 1
        return Features(tokens[torch.arange(len(ids), device=ids.device), last], tokens)

    def tokenize(self, dialogues: list[Dialogue]) -> Tensor:
        """Ids (B, L), each turn as `start question answer end`, padded on the right to the longest dialogue."""
        turns = [[f"{question} {answer}".strip() for question, answer in dialogue] for dialogue in dialogues]
        words = {text: self.clip._encode(text) for dialogue in turns for text in dialogue}
        ids = {text: [i for i in row if i != self.pad] for text, row in words.items()}  # CLIP pads with a rare "!"
        rows = [[i for text in dialogue for i in ids[text]] for dialogue in turns]
        return pad_and_cut(rows, self.max_length, self.pad, to_longest=True)

    def tokenize_captions(self, captions: list[str]) -> Tensor:
        """Ids (B, L) of captions, each one turn without a question."""
        return self.tokenize([caption_turn(caption, [""]) for caption in captions])

    def rounds(self, ids: Tensor) -> Tensor:
        """Which round each token belongs to, counted from 1, (B, L)."""
        return (ids == self.start).cumsum(dim=1)

    def keep_rounds(self, ids: Tensor, n: Tensor) -> Tensor:
        """Ids with only the first n (B,) rounds left, the rest padding."""
        return ids.masked_fill(self.rounds(ids) > n[:, None], self.pad)

    def may_mask(self, ids: Tensor, roles: bool) -> Tensor:
        """True for words, (B, L); there are no role words here, so `roles` changes nothing."""
        return (ids != self.pad) & (ids != self.start) & (ids != self.end)

    def random_words(self, ids: Tensor) -> Tensor:
        """An evenly drawn word for each place."""
        return torch.randint_like(ids, 1, self.mask)

    def words(self, ids: Tensor) -> list[str]:
        """The tokens of one dialogue (L,) as readable pieces, padding left out."""
        marks = {self.start: "[turn]", self.end: "[end]"}
        decode = self.clip._tokenizer[0].decode
        return [marks.get(i) or decode([i]).strip() for i in ids[ids != self.pad].tolist()]


def _stretch(text: nn.Module, length: int) -> None:
    """Gives a text tower of open_clip `length` positions, in place, where it has fewer."""
    known = text.positional_embedding.detach()
    if length <= len(known):
        return
    text.positional_embedding = nn.Parameter(stretched(known, length))
    text.attn_mask = torch.full((length, length), -torch.inf).triu(1)
    text.context_length = length
