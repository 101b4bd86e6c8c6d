"""Text encoders of the transformers library by name: tokens, the last layer's attention, and their tokenizer."""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from reidlib.backbones.clip import Tokens, packed, pad_and_cut, unpack
from reidlib.errors import ReidError, nearest
from reidlib.weights import hub

# BERTs with random weights. Their words are CLIP's byte pairs, which come with open_clip: nothing is downloaded.
RANDOM: dict[str, dict[str, Any]] = {
    "toy-random": {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512},
    "base-random": {},  # as large as bert-base at a width of 768
}


class TextEncoder(nn.Module):
    """A bidirectional text encoder behind one interface. `model` keeps the parameter names of transformers.

    model: any encoder whose output has `last_hidden_state` and `attentions`. name: whose tokenizer to use, a key of
    `RANDOM` or a Hugging Face name or folder; it is opened when it is first needed. length: captions are padded and
    cut to so many tokens. tokenizer: one of transformers, in place of that of `name`.
    """

    def __init__(self, model: nn.Module, name: str, length: int, tokenizer: Any = None):
        super().__init__()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # reads the first token through one more layer, which no method here asks for
        model.config.use_cache = False  # of what a decoder would read again
        self.model, self.name, self.length = model, name, length
        self._tokenizer = [tokenizer]  # in a list: not a module, and shared by copies

    @property
    def spec(self) -> dict[str, Any]:
        """All that `from_spec` needs to build the encoder again, without its weights: JSON values.

        Its tokenizer's files are a part of it; a tokenizer that is not on this machine stays a name.
        """
        files = None
        if self.name not in RANDOM:
            try:
                files = packed(self._words)
            except ReidError as error:  # of an imported model, which has read nothing yet
                kept = "The model is kept without its tokenizer and reads no words yet; text_encoder names its folder."
                warnings.warn(f"{kept} {error}", stacklevel=2)
        return {
            "kind": "text",
            "config": json.loads(self.model.config.to_json_string(use_diff=False)),
            "name": self.name,
            "length": self.length,
            "tokenizer": files,
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """The encoder of a `spec` with random weights; nothing is fetched."""
        from transformers import AutoModel

        model = AutoModel.from_config(config_of(spec["config"]), attn_implementation="eager")
        tokenizer = tokenizer_of(spec["tokenizer"]) if spec["tokenizer"] else None
        return cls(model, spec["name"], spec["length"], tokenizer)

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def pad(self) -> int:
        """The id of padding."""
        return self.model.config.pad_token_id

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (B, length); too long ones are cut, but for their last token, and a warning counts them."""
        words = self._words
        if self.name in RANDOM:  # 0, a rare "!", stands for padding here
            rows = [[words.sot_token_id, *filter(None, words.encode(text)), words.eot_token_id] for text in texts]
        else:
            rows = [words.encode(text, verbose=False) for text in texts]
        return pad_and_cut(rows, self.length, self.pad)

    def pieces(self, ids: Tensor) -> list[str]:
        """What each of the token ids (L,) stands for."""
        return [self._words.decode([token]).strip() for token in ids.tolist()]

    @property
    def _words(self) -> Any:
        return self._tokenizer[0] or (_clip_words() if self.name in RANDOM else _tokenizer(self.name))

    def forward(self, ids: Tensor) -> Tokens:
        """(B, L) -> tokens (B, L, width) of the last layer and its attention (B, L, L) averaged over heads.

        The attention is what the layer used, so in training it has been through dropout.
        """
        out = self.model(input_ids=ids, attention_mask=(ids != self.pad).long(), output_attentions=True)
        return Tokens(out.last_hidden_state, out.attentions[-1].mean(dim=1))

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass."""
        recompute_activations(self.model)


def create_text_encoder(name: str, length: int, width: int) -> TextEncoder:
    """A text encoder by name: a key of `RANDOM`, or a pretrained encoder's Hugging Face name or folder.

    length: captions are padded and cut to so many tokens. width: of the tokens of a random one; a pretrained one has
    its own.
    Raises ReidError when weights must be fetched and cannot be.
    """
    if name in RANDOM:
        bert = build_bert(hidden_size=width, vocab_size=_clip_words().vocab_size, **RANDOM[name])
        return TextEncoder(bert, name, length)
    from transformers import AutoModel

    # Fused kernels return no attention. At the length of a caption the plain one costs little.
    return TextEncoder(fetched(AutoModel.from_pretrained, name, RANDOM, attn_implementation="eager"), name, length)


def recompute_activations(model: nn.Module) -> None:
    """In the backward pass of a transformers model, under the name that its version has for it."""
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def build_bert(**sizes: int) -> nn.Module:
    """A BERT with random weights; sizes that are left out are those of bert-base."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(attn_implementation="eager", **sizes), add_pooling_layer=False)


def config_of(values: dict[str, Any]):
    """The config of transformers that `values`, its own dictionary, came from."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**values)


def tokenizer_of(files: dict[str, str]):
    """The tokenizer of transformers in `backbones.clip.packed` files."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        return AutoTokenizer.from_pretrained(unpack(files, Path(folder)))


@cache
def _tokenizer(name: str):
    from transformers import AutoTokenizer

    return fetched(AutoTokenizer.from_pretrained, name)


@cache
def _clip_words():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def fetched(load: Callable, name: str, known: Iterable[str] = (), **options: Any) -> Any:
    """What `load`, a `from_pretrained` of transformers, makes of a name or folder; ReidError where it cannot.

    known: names that need no download, of which the error tells the nearest.
    """
    try:
        with hub():
            return load(name, **options)
    except (OSError, ValueError) as error:
        hint = f" ({nearest(name, known)})" if known and "/" not in name else ""
        raise ReidError(
            f"{name!r} is neither a folder here nor could it be fetched{hint}: on a machine with a network run "
            f"`hf download {name} --local-dir <folder>`, after `hf auth login` where a licence must be accepted, "
            "bring the folder here and name it instead."
        ) from error
