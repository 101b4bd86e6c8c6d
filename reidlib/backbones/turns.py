"""CLIP as both towers of a dialogue model: the text tower reads each turn on its own, the turns are then pooled."""

import torch
from torch import Tensor, nn

from reidlib.backbones.clip import CLIP, MASK_ID, PAD
from reidlib.backbones.transformers import Features
from reidlib.data.dialogues import Dialogue, caption_turn


class ClipTowers(nn.Module):
    """A dialogue is its turns' token sequences one after another, so ids (B, L) hold any number of turns.

    The pooled feature is a weighted mean of the turns' end-of-text features; the weights are learned and start equal,
    so an untrained model averages. As turns are read apart, a dialogue's length is not bound by CLIP's.
    """

    def __init__(self, clip: CLIP):
        super().__init__()
        self.clip = clip
        clip.logit_scale.requires_grad_(False)  # the method has its own
        self.turn_score = nn.Linear(clip.embed_dim, 1, bias=False)
        nn.init.zeros_(self.turn_score.weight)
        tokenizer = clip._tokenizer[0]
        self.start, self.end, self.pad, self.mask = tokenizer.sot_token_id, tokenizer.eot_token_id, PAD, MASK_ID

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
        """(B, L) -> the mean over turns and the features of all tokens of all turns, (B, L, D)."""
        starts, real = ids == self.start, ids != self.pad
        column = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        turn = starts.flatten().cumsum(0).view_as(ids) - 1  # numbered through the whole batch
        place = column - torch.where(starts, column, 0).cummax(dim=1).values
        longest = int(place[real].max()) + 1
        turns = ids.new_full((int(starts.sum()), longest), self.pad)
        turns[turn[real], place[real]] = ids[real]
        tokens = self.clip.text_tokens(turns).tokens[turn, place.clamp(max=longest - 1)]
        weights = self.turn_score(tokens).squeeze(-1).masked_fill(ids != self.end, -torch.inf).softmax(dim=1)
        return Features((weights[:, None] @ tokens).squeeze(1), tokens)

    def tokenize(self, dialogues: list[Dialogue]) -> Tensor:
        """Ids (B, L), each turn as `start question answer end`; CLIP's tokenizer warns of turns that it cuts."""
        turns = [[f"{question} {answer}".strip() for question, answer in dialogue] for dialogue in dialogues]
        texts = list(dict.fromkeys(text for dialogue in turns for text in dialogue))
        ids = dict(zip(texts, (row[: int(row.argmax()) + 1] for row in self.clip.tokenize(texts)), strict=True))
        rows = [torch.cat([ids[text] for text in dialogue]) for dialogue in turns]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad)

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
        return [self.clip._tokenizer[0].decode([i]).strip() for i in ids[ids != self.pad].tolist()]
