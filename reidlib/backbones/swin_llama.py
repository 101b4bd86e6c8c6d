"""Swin v2 and a decoder-only language model from transformers as the two towers of a dialogue model."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from reidlib.backbones.bert import config_of, fetched, recompute_activations, tokenizer_of
from reidlib.backbones.clip import packed, pad_and_cut
from reidlib.data.dialogues import ANSWERS, ASKS, CAPTION_QUESTIONS, SYSTEM, Dialogue, caption_turn, serialise
from reidlib.errors import ConfigError

SWINV2 = {  # random weights; sizes of the published models
    "toy": {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 4},
    "swinv2-base-random": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
}
LLAMA = {
    "toy": {
        "vocab_size": 49410,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "llama-3.2-1b-random": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 131072,
    },
}


class Features(NamedTuple):
    """One vector an item and one a token."""

    pooled: Tensor  # (B, D)
    dense: Tensor  # (B, N, D)


class Vocabulary(NamedTuple):
    """What the towers need of a tokenizer. Texts are encoded without special tokens."""

    encode: Callable[[list[str]], list[list[int]]]
    decode: Callable[[list[int]], str]
    size: int
    pad: int
    mask: int
    bos: int | None
    special: frozenset[int]
    tokenizer: Any = None  # of transformers; None for CLIP's byte pairs

    @classmethod
    def clip_bpe(cls) -> Self:
        """CLIP's byte-pair encoding, which comes with open_clip, with tokens for padding and masking added."""
        from open_clip.tokenizer import SimpleTokenizer

        bpe = SimpleTokenizer(additional_special_tokens=["<pad>", "<mask>"])
        filler, mask = bpe.encoder["<pad>"], bpe.encoder["<mask>"]
        special = frozenset(bpe.all_special_ids)
        return cls(
            lambda texts: [bpe.encode(text) for text in texts],
            bpe.decode,
            bpe.vocab_size,
            filler,
            mask,
            bpe.sot_token_id,
            special,
        )

    @classmethod
    def pretrained(cls, name: str) -> Self:
        """The tokenizer of a model on the Hugging Face hub or in a folder.

        Llama 3 keeps reserved tokens that serve for padding and masking; others get tokens of these names added.
        """
        from transformers import AutoTokenizer

        return cls.of(fetched(AutoTokenizer.from_pretrained, name))

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """A tokenizer of transformers."""
        for kind, token in (("pad", "<|finetune_right_pad_id|>"), ("mask", "<|reserved_special_token_0|>")):
            if getattr(tokenizer, f"{kind}_token_id", None) in (None, tokenizer.eos_token_id):
                tokenizer.add_special_tokens({f"{kind}_token": token})
        return cls(
            lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"],
            tokenizer.decode,
            len(tokenizer),
            tokenizer.pad_token_id,
            tokenizer.mask_token_id,
            tokenizer.bos_token_id,
            frozenset(tokenizer.all_special_ids),
            tokenizer,
        )

    def without_newline(self) -> Tensor:
        """For each id the id of the same piece without the line break that ends it, (size,).

        Tokenizers merge a full stop and the line break after it. A dialogue cut after some round must end as if nothing
        had followed: such a token becomes the bare stop, and a token that is only a line break becomes padding.
        """
        table = torch.arange(self.size)
        for i in range(self.size):
            piece = self.decode([i])
            if piece.endswith("\n") and i not in self.special:
                bare = self.encode([piece.rstrip()])[0]
                table[i] = self.pad if not bare else bare[0] if len(bare) == 1 else i
        return table


class TransformerTowers(nn.Module):
    """Swin v2 for pictures; any decoder-only model, read at the last token, for dialogues.

    system: the prompt before a dialogue; caption_system: whether a single caption gets it too. max_length: longer
    texts lose their end, with a warning. caption_questions: what a caption is the answer to.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: nn.Module,
        vocabulary: Vocabulary,
        system: str = SYSTEM,
        caption_system: bool = False,
        caption_questions: Sequence[str] = CAPTION_QUESTIONS,
        max_length: int = 400,
    ):
        super().__init__()
        self.vision, self.language = vision, language
        self.vocabulary = vocabulary
        self.system, self.caption_system, self.caption_questions = system, caption_system, caption_questions
        self.max_length = max_length
        self.pad, self.mask = vocabulary.pad, vocabulary.mask
        if language.get_input_embeddings().num_embeddings < vocabulary.size:
            language.resize_token_embeddings(vocabulary.size)
        asks, answers = vocabulary.encode([ASKS, ANSWERS])
        ids = {
            "_ordinary": torch.tensor([i for i in range(vocabulary.size) if i not in vocabulary.special]),
            "_special": torch.tensor(sorted(vocabulary.special)),
            "_asks": torch.tensor(asks),
            "_answers": torch.tensor(answers),
            "_bare": vocabulary.without_newline(),
        }
        for name, tensor in ids.items():
            self.register_buffer(name, tensor, persistent=False)
        if self.rounds(self._rows([serialise([("a", "b"), ("c", "d")])])).max() != 2:
            raise ConfigError(
                f"This tokenizer splits {ASKS!r} differently by what stands before it; choose another model."
            )

    @classmethod
    def by_name(
        cls,
        image_tower: str,
        text_tower: str,
        image_size: tuple[int, int],
        drop_path: float = 0.0,
        **options: Any,
    ) -> Self:
        """Towers by the names `swin` and `decoder` take; `options` as the class takes them."""
        language, vocabulary = decoder(text_tower)
        return cls(swin(image_tower, image_size, drop_path), language, vocabulary, **options)

    @property
    def spec(self) -> dict[str, Any]:
        """All that `from_spec` needs to build the towers again, without their weights: JSON values."""
        vision, language = (
            json.loads(tower.config.to_json_string(use_diff=False)) for tower in (self.vision, self.language)
        )
        tokenizer = self.vocabulary.tokenizer
        return {
            "kind": "transformers",
            "vision": vision,
            "drop_path": self.vision.encoder.layers[0].blocks[0].drop_path.drop_prob,
            "language": language,
            "tokenizer": packed(tokenizer) if tokenizer else None,
            "options": {
                "system": self.system,
                "caption_system": self.caption_system,
                "caption_questions": self.caption_questions,
                "max_length": self.max_length,
            },
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """The towers of a `spec` with random weights; nothing is fetched."""
        from transformers import AutoModel

        vocabulary = Vocabulary.of(tokenizer_of(spec["tokenizer"])) if spec["tokenizer"] else Vocabulary.clip_bpe()
        vision = swin_of(config_of(spec["vision"]), spec["drop_path"])
        return cls(vision, AutoModel.from_config(config_of(spec["language"])), vocabulary, **spec["options"])

    @property
    def image_width(self) -> int:
        return self.vision.num_features

    @property
    def text_width(self) -> int:
        return self.language.config.hidden_size

    @property
    def grid(self) -> tuple[int, int]:
        """Image tokens down and across."""
        step = 2 ** (self.vision.num_layers - 1)
        return tuple(side // step for side in self.vision.embeddings.patch_grid)

    def encode_image(self, images: Tensor) -> Features:
        """(B, 3, H, W) -> the mean of the last stage's tokens, and these tokens, (B, H/32 * W/32, image_width)."""
        out = self.vision(images)
        return Features(out.pooler_output, out.last_hidden_state)

    def encode_text(self, ids: Tensor) -> Features:
        """(B, L) -> the last token's state, and all states, (B, L, text_width).

        The causal mask keeps what is padded on the right from the tokens before it, so no padding mask is needed.
        """
        dense = self.language(input_ids=ids, use_cache=False).last_hidden_state
        last = (ids != self.pad).sum(dim=1) - 1
        return Features(dense[torch.arange(len(ids), device=ids.device), last], dense)

    def checkpoint_activations(self) -> None:
        """Recomputes both towers' activations in the backward pass: less memory, about a third more time."""
        for tower in (self.vision, self.language):
            recompute_activations(tower)

    def tokenize(self, dialogues: list[Dialogue]) -> Tensor:
        """Ids (B, L) of dialogues after the system prompt, padded on the right to the longest."""
        return self._rows([serialise(dialogue, self.system) for dialogue in dialogues])

    def tokenize_captions(self, captions: list[str]) -> Tensor:
        """Ids (B, L) of captions, each told as the answer to one question."""
        system = self.system if self.caption_system else ""
        return self._rows([serialise(caption_turn(caption, self.caption_questions), system) for caption in captions])

    def _rows(self, texts: list[str]) -> Tensor:
        bos = [] if self.vocabulary.bos is None else [self.vocabulary.bos]
        rows = [bos + ids for ids in self.vocabulary.encode(texts)]
        return pad_and_cut(rows, self.max_length, self.pad, keep_end=False, to_longest=True)

    def rounds(self, ids: Tensor) -> Tensor:
        """Which round each token belongs to, (B, L): counted from 1, 0 for what stands before the first question."""
        return _occurrences(ids, self._asks).cumsum(dim=1)

    def keep_rounds(self, ids: Tensor, n: Tensor) -> Tensor:
        """Ids with only the first n (B,) rounds left, exactly as if only they had been tokenised."""
        ids = ids.masked_fill(self.rounds(ids) > n[:, None], self.pad)
        last = (ids != self.pad).sum(dim=1, keepdim=True) - 1
        return ids.scatter(1, last, self._bare[ids.gather(1, last)])

    def may_mask(self, ids: Tensor, roles: bool) -> Tensor:
        """True for what may be masked, (B, L): all but special tokens; without `roles` only what was asked and said."""
        words = ~torch.isin(ids, self._special)
        if roles:
            return words
        for header in (self._asks, self._answers):
            starts = _occurrences(ids, header).int()
            words &= pad(starts, (len(header) - 1, 0)).unfold(1, len(header), 1).amax(dim=-1) == 0
        return words & (self.rounds(ids) > 0)

    def random_words(self, ids: Tensor) -> Tensor:
        """An evenly drawn ordinary token for each place."""
        return self._ordinary[torch.randint_like(ids, len(self._ordinary))]

    def words(self, ids: Tensor) -> list[str]:
        """The tokens of one dialogue (L,) as readable pieces, padding left out."""
        return [self.vocabulary.decode([i]).strip() for i in ids[ids != self.pad].tolist()]


def swin(name: str, image_size: tuple[int, int], drop_path: float = 0.0) -> nn.Module:
    """A Swin v2 without its classifier at any image size.

    name: one of SWINV2 (random weights), or a model on the Hugging Face hub or a folder (its weights). drop_path: as in
    `swin_of`.
    """
    from transformers import Swinv2Config, Swinv2Model

    if name in SWINV2:
        return swin_of(Swinv2Config(**SWINV2[name], image_size=image_size), drop_path)
    model = fetched(Swinv2Model.from_pretrained, name, SWINV2, image_size=image_size).float()
    if model.config.model_type != "swinv2":
        raise ConfigError(f"{name} is a {model.config.model_type} model and the image tower should be a swinv2 one.")
    return _with_drop_path(model, drop_path)


def swin_of(config: Any, drop_path: float = 0.0) -> nn.Module:
    """A Swin v2 with random weights.

    drop_path: probability of skipping a residual branch, the same in every block, as in the release of transformers
    that the official model was trained with.
    """
    from transformers import Swinv2Model

    return _with_drop_path(Swinv2Model(config), drop_path)


def _with_drop_path(model: nn.Module, drop_path: float) -> nn.Module:
    from transformers.models.swinv2.modeling_swinv2 import Swinv2DropPath

    for stage in model.encoder.layers:
        for block in stage.blocks:
            block.drop_path = Swinv2DropPath(drop_path)
    return model


def decoder(name: str) -> tuple[nn.Module, Vocabulary]:
    """A decoder-only language model without its head, and its vocabulary; names as in `swin`, random ones from LLAMA.

    Models with random weights by name read CLIP's byte-pair encoding, which needs no download.
    """
    from transformers import AutoModel, LlamaConfig, LlamaModel

    if name in LLAMA:
        return LlamaModel(LlamaConfig(**LLAMA[name])), Vocabulary.clip_bpe()
    model = fetched(AutoModel.from_pretrained, name, LLAMA).float()
    if model.config.is_encoder_decoder:
        raise ConfigError(f"{name} has an encoder and a decoder; the text tower should be a decoder-only model.")
    return model, Vocabulary.pretrained(name)


def _occurrences(ids: Tensor, sequence: Tensor) -> Tensor:
    """True where `sequence` begins, (B, L)."""
    return (pad(ids, (0, len(sequence) - 1), value=-1).unfold(1, len(sequence), 1) == sequence).all(dim=-1)
