"""CLIP by any open_clip name at any input size, with its own preprocessing, tokenizer, tokens and attention."""

import base64
import json
import logging
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from reidlib.backbones.positions import resized_positions
from reidlib.backbones.toy import IMAGE_SIZE as TOY_SIZE
from reidlib.backbones.toy import toy_model
from reidlib.data.augment import CLIP as STATISTICS
from reidlib.data.images import Preprocess
from reidlib.errors import CheckpointError, ConfigError, ReidError, nearest
from reidlib.weights import hub

PAD, MASK_ID = 0, 49405  # CLIP pads with 0; 49405 is the rare word "jekyll", which TBPS-CLIP and IRRA use as the mask
TOY = ("toy", "toy-random")
POSITIONS = ("bicubic", "bilinear")
LARGEST = 64_000_000  # bytes of a tokenizer's file


class Tokens(NamedTuple):
    """Every token of a tower and, when asked for, how the last block's heads attended on average."""

    tokens: Tensor  # (B, L, D)
    attention: Tensor | None  # (B, L, L), row = attending token


class CLIP(nn.Module):
    """An open_clip model behind one interface: pooled features, tokens, attention, tokenizer, preprocessing.

    `model` keeps open_clip's parameter names (those of OpenAI's release for its models). preprocess: how it takes
    pictures; left out, as open_clip says on the model. config: open_clip's `model_cfg` of it, without which the model
    cannot be built again from a checkpoint.

    Text towers that read causally up to an end token (`reads_words`) take captions at any length up to
    `context_length`: what follows the end changes nothing before it. Others take them at their full length only.
    """

    def __init__(
        self, model: nn.Module, tokenizer, preprocess: Preprocess | None = None, config: dict[str, Any] | None = None
    ):
        super().__init__()
        self.model, self.config = model, config
        self._tokenizer = [tokenizer]  # in a list: not a module, and shared by copies
        self.preprocess = preprocess or _preprocess(model)

    @property
    def spec(self) -> dict[str, Any] | None:
        """All that `from_spec` needs to build the model again, without its weights: JSON values; None if unknown."""
        if self.config is None:
            return None
        files = None if self._byte_pairs else packed(self._tokenizer[0].tokenizer)
        towers = {"model_cfg": self.config, "preprocess": self.preprocess.as_dict(), "tokenizer": files}
        return {"kind": "clip", **towers}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """The model of a `spec` with random weights; nothing is fetched."""
        preprocess = Preprocess.from_dict(spec["preprocess"])
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), spec["model_cfg"], preprocess)
            if spec["tokenizer"]:
                unpack(spec["tokenizer"], Path(folder))
            name = f"local-dir:{folder}"
            model, tokenizer = _built(name, None, preprocess.size, f"a model of {folder}")
        return cls(model, tokenizer, preprocess, spec["model_cfg"])

    @property
    def image_size(self) -> tuple[int, int]:
        return self.preprocess.size

    @property
    def gives_patches(self) -> bool:
        """Whether the image tower is one of open_clip's own ViT models, read at the class token."""
        from open_clip.transformer import VisionTransformer

        visual = self.model.visual
        own = isinstance(visual, VisionTransformer) and visual.attn_pool is None
        return own and visual.pool_type == "tok" and not visual.final_ln_after_pool

    @property
    def reads_words(self) -> bool:
        """Whether the text tower reads CLIP's byte pairs causally and is read at the end token."""
        text = self._text
        causal = getattr(text, "attn_mask", None) is not None and getattr(text, "cls_emb", None) is None
        pooled = getattr(text, "pool_type", getattr(text, "text_pool_type", ""))
        return self._byte_pairs and causal and pooled == "argmax" and hasattr(text, "token_embedding")

    def require(self, method: str, *, patches: bool = False, words: bool = False) -> None:
        """Raises ConfigError where a method needs the tokens of a tower that gives none."""
        visual = type(self.model.visual).__name__
        if patches and not self.gives_patches:
            raise ConfigError(
                f"{method} compares patches, and the image tower of this model ({visual}) gives none; choose one of "
                "open_clip's own ViT models, such as ViT-B-16:openai."
            )
        if words and not self.reads_words:
            raise ConfigError(
                f"{method} reads the tokens of words, and the text tower of this model is not a causal one with CLIP's "
                "byte pairs; choose a model such as ViT-B-16:openai."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return tuple(self.model.visual.grid_size)

    @property
    def embed_dim(self) -> int:
        """Width of the space that both towers share."""
        if self.config:
            return self.config["embed_dim"]
        projection = self._text.text_projection
        return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]

    @property
    def image_width(self) -> int:
        """Width of the image tower, which is that of its tokens when they are not projected."""
        return self.model.visual.conv1.out_channels

    @property
    def text_width(self) -> int:
        return self._text.token_embedding.embedding_dim

    @property
    def context_length(self) -> int:
        return getattr(self._text, "context_length", self._tokenizer[0].context_length)

    @property
    def vocab_size(self) -> int:
        return self._text.token_embedding.num_embeddings

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the inverse temperature, ()."""
        return self.model.logit_scale

    @property
    def _text(self) -> nn.Module:
        return getattr(self.model, "text", self.model)

    @property
    def _byte_pairs(self) -> bool:
        return hasattr(self._tokenizer[0], "sot_token_id")

    # -- pictures --------------------------------------------------------------------------------------------------

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, embed_dim), not normalised."""
        return self.model.encode_image(images)

    def image_tokens(self, images: Tensor, *, project: bool = True, attention: bool = False) -> Tokens:
        """All image tokens, the class token first, after the final layer norm and (`project`) the projection.

        images: (B, 3, H, W). Returns tokens (B, 1 + patches, embed_dim or image_width).
        """
        visual = self.model.visual
        with _Attention(visual.transformer.resblocks, attention) as seen:
            out = visual.forward_intermediates(
                images,
                indices=1,
                normalize_intermediates=True,
                intermediates_only=True,
                output_fmt="NLC",
                output_extra_tokens=True,
            )
        tokens = torch.cat([out["image_intermediates_prefix"][-1], out["image_intermediates"][-1]], dim=1)
        return Tokens(tokens @ visual.proj if project else tokens, seen.weights)

    # -- words -----------------------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (B, context_length), padded; texts that are too long are cut, counted and warned about."""
        tokenizer = self._tokenizer[0]
        if self._byte_pairs:
            return pad_and_cut([self._encode(text) for text in texts], self.context_length, PAD)
        ids = tokenizer(list(texts), self.context_length)
        count_cut([len(self._encode(text)) - self.context_length for text in texts], self.context_length)
        return ids

    def count_tokens(self, text: str) -> tuple[int, int]:
        """How many tokens `text` takes, and how many there is room for."""
        return len(self._encode(text)), self.context_length

    def words(self, ids: Tensor) -> list[str]:
        """The tokens of one caption (L,) as readable pieces, up to the end-of-text token."""
        if self._byte_pairs:
            return self.pieces(ids[: int(ids.argmax()) + 1])
        return self.pieces(ids[ids != self._tokenizer[0].tokenizer.pad_token_id])

    def _encode(self, text: str) -> list[int]:
        tokenizer = self._tokenizer[0]
        if self._byte_pairs:
            return [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
        return tokenizer.tokenizer(tokenizer.clean_fn(text), verbose=False).input_ids

    def encode_text(self, ids: Tensor, embedded: Tensor | None = None) -> Tensor:
        """(B, L) -> (B, embed_dim), as the model pools its text, not normalised.

        `embedded` (B, L, text_width) takes the place of the looked-up token embeddings; only where `reads_words`.
        """
        if not self.reads_words:
            return self.model.encode_text(ids)
        ids = trim(ids)
        tokens = self.text_tokens(ids, embedded=embedded).tokens
        return tokens[torch.arange(ids.shape[0], device=ids.device), ids.argmax(dim=-1)]

    def pieces(self, ids: Tensor) -> list[str]:
        """What each of the token ids (L,) stands for."""
        decode = self._tokenizer[0].decode if self._byte_pairs else self._tokenizer[0].tokenizer.decode
        return [decode([token]).strip() for token in ids.tolist()]

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token embeddings before positions are added, (B, L) -> (B, L, text_width)."""
        return self._text.token_embedding(ids)

    def text_tokens(self, ids: Tensor, *, attention: bool = False, embedded: Tensor | None = None) -> Tokens:
        """All text tokens after the final norm and the projection: (B, L, embed_dim)."""
        text, length = self._text, ids.shape[1]
        x = text.token_embedding(ids) if embedded is None else embedded[:, :length]
        x = x + text.positional_embedding[:length]
        mask = text.attn_mask if text.attn_mask is None else text.attn_mask[:length, :length]
        with _Attention(text.transformer.resblocks, attention) as seen:
            x = text.ln_final(text.transformer(x, attn_mask=mask))
        projection = text.text_projection
        return Tokens(projection(x) if isinstance(projection, nn.Linear) else x @ projection, seen.weights)

    def checkpoint_activations(self) -> None:
        """Recompute both towers' activations in the backward pass: less memory, about a third more time."""
        self.model.set_grad_checkpointing(True)


class _Attention(nn.Module):
    """While open, stands for the last of some blocks and also keeps its attention weights averaged over heads.

    The block's output stays what it was; every other block keeps the fused kernel. `weights` is set only if `on`.
    A block whose activations are recomputed is called again after closing, through this stand-in and so alike.
    """

    def __init__(self, blocks: nn.ModuleList, on: bool):
        super().__init__()
        self.blocks, self.block, self.on, self.weights = [blocks], blocks[-1], on, None  # in a list: not a part of it

    def __enter__(self):
        if self.on:
            self.blocks[0][-1] = self
        return self

    def __exit__(self, *_):
        self.blocks[0][-1] = self.block

    def forward(self, *args, **kwargs) -> Tensor:
        handles = [
            self.block.attn.register_forward_pre_hook(self._ask, with_kwargs=True),
            self.block.attn.register_forward_hook(self._keep),
        ]
        try:
            return self.block(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def _ask(self, _module, args, kwargs):
        return args, kwargs | {"need_weights": True, "average_attn_weights": True}

    def _keep(self, _module, _args, output):
        self.weights = output[1]


def pad_and_cut(
    rows: list[list[int]], length: int, pad: int, *, keep_end: bool = True, to_longest: bool = False
) -> Tensor:
    """Token ids of every tower, (B, L), padded on the right; rows beyond `length` are cut and a warning counts them.

    keep_end: a row that is cut keeps its last token. to_longest: L is that of the longest row left, not `length`.
    """
    count_cut([len(row) - length for row in rows], length)
    rows = [row if len(row) <= length else row[: length - keep_end] + row[len(row) - keep_end :] for row in rows]
    ids = torch.full((len(rows), max(map(len, rows), default=0) if to_longest else length), pad)
    for ids_row, row in zip(ids, rows, strict=True):
        ids_row[: len(row)] = torch.tensor(row, dtype=torch.long)
    return ids


def count_cut(over: list[int], length: int) -> None:
    """Warns of texts that are cut; `over`: by how many tokens each text is longer than `length`."""
    cut = [tokens for tokens in over if tokens > 0]
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(over)} texts are longer than {length} tokens and were cut, by up to {max(cut)}.",
            stacklevel=4,
        )


def trim(ids: Tensor) -> Tensor:
    """Drops the columns behind the last end-of-text token of all rows, (B, L) -> (B, longest).

    That token has the largest id. What pads, 0, is also a piece of words ("coat!(long)"), so it cannot be counted.
    """
    return ids[:, : int(ids.argmax(dim=1).max()) + 1]


def create_clip(name: str, image_size: tuple[int, int] | None = None, positions: str = "bicubic") -> CLIP:
    """A CLIP by name.

    name: "toy", the small one shipped with this package and pre-trained on drawn people, or "toy-random", the same
    without its weights; `ARCH:TAG` or `ARCH:/file` with an architecture of open_clip, one of its tags or a weights
    file, or `ARCH` alone with random weights; a folder in open_clip's layout; `hf-hub:<user>/<name>`.

    image_size: (height, width) of the crops of people it is for. Nothing may be cut off them, so they are squashed to
    it, whatever the model's own pipeline does with a picture's aspect; left out, size and resizing are the model's own.
    positions: how the grid of positions is interpolated to another size, "bicubic" with antialiasing as open_clip does
    or "bilinear" as the official code of IRRA and CFFA.

    Raises ConfigError for an unknown name or tag and ReidError when weights must be fetched and cannot be.
    """
    if positions not in POSITIONS:
        raise ConfigError(f"positions should be one of {', '.join(POSITIONS)} and is {positions!r}.")
    image_size = None if image_size is None else tuple(image_size)
    if name in TOY:
        from open_clip.tokenizer import SimpleTokenizer

        preprocess = Preprocess(image_size or TOY_SIZE, *STATISTICS)
        model, config = toy_model(preprocess.size, weights=name == "toy")
        return CLIP(model, SimpleTokenizer(), preprocess, config)
    bilinear = positions == "bilinear" and image_size is not None
    clip = _open_clip(name, None if bilinear else image_size)
    if image_size is not None:
        clip.preprocess = replace(clip.preprocess, size=image_size, resize="squash")
        if bilinear:
            _stretch_positions(clip, image_size)
    return clip


def _open_clip(name: str, image_size: tuple[int, int] | None) -> CLIP:
    """The model that a name means, at its own size or another; `ARCH:/file` normalises as the tags of ARCH do."""
    import open_clip

    source, weights = _source(name)
    found = open_clip.get_pretrained_cfg(source, weights) if weights else {}
    tags = open_clip.list_pretrained_tags_by_model(source)
    about = found or (open_clip.get_pretrained_cfg(source, tags[0]) if tags else {})
    quick = {"quick_gelu": True} if found.get("quick_gelu") else {}
    model, tokenizer = _built(source, weights, image_size, name, bool(quick), about)
    return CLIP(model, tokenizer, None, _model_config(source) | quick)


def _source(name: str) -> tuple[str, str]:
    """What open_clip calls the model, and its tag or file; ConfigError where `name` means nothing."""
    import open_clip

    if name.startswith("hf-hub:"):
        return name, ""
    folder = Path(name.removeprefix("local-dir:"))
    if (folder / "open_clip_config.json").is_file():
        return f"local-dir:{folder}", ""
    arch, _, weights = name.partition(":")
    if arch not in open_clip.list_models():
        if folder.exists():
            raise ConfigError(
                f"{folder} is not a folder with open_clip_config.json; a file of weights is named with its "
                "architecture, as in ViT-B-16:/path/to/file."
            )
        raise ConfigError(f"open_clip knows no model {arch!r}; {nearest(arch, open_clip.list_models())}.")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if weights and weights not in tags and not Path(weights).is_file():
        choices = ", ".join(["a local file", *tags])
        raise ConfigError(f"{arch} has no weights {weights!r}; expected one of: {choices}.")
    return arch, weights


def _model_config(source: str) -> dict[str, Any]:
    from open_clip.factory import get_model_config

    return deepcopy(get_model_config(source))


def _built(
    source: str,
    weights: str | None,
    image_size: tuple[int, int] | None,
    name: str,
    quick_gelu: bool = False,
    about: dict[str, Any] | None = None,
) -> tuple[nn.Module, Any]:
    """open_clip's model and tokenizer; ReidError, in one sentence, where something must be fetched and cannot be."""
    import open_clip

    size = image_size[0] if image_size and image_size[0] == image_size[1] else image_size  # ResNets take numbers only
    options = {"force_image_size": size, "pretrained_text": False, "force_quick_gelu": quick_gelu}
    told = {key: (about or {})[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in (about or {})}
    what = f"The weights of {name}"
    elsewhere = source.startswith("hf-hub:") or bool(weights) and not Path(weights).is_file()
    try:
        with _silent(), hub() if elsewhere else nullcontext():
            model = open_clip.create_model(source, pretrained=weights or None, force_preprocess_cfg=told, **options)
            words = _model_config(source)["text_cfg"].get("hf_tokenizer_name", "its own")
            what = f"The tokenizer of {name} ({words})"
            beside = Path(weights or "").parent
            if weights and (beside / "tokenizer_config.json").is_file():
                tokenizer = _tokenizer_beside(beside, model, source)
            else:
                tokenizer = open_clip.get_tokenizer(source)
    except TypeError as error:  # a ResNet computes with one side
        raise ConfigError(f"{name} does not take pictures of {image_size}; expected its own size ({error}).") from error
    except (OSError, RuntimeError, ValueError, UnpicklingError, ImportError) as error:
        said = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__
        raise ReidError(
            f"{what} could not be loaded: {said[:300]}. Without a network, fetch it elsewhere (`hf download`) and "
            "name the file as ARCH:/file, its tokenizer's files beside it, or the folder."
        ) from error
    return model, tokenizer


def _tokenizer_beside(folder: Path, model: nn.Module, source: str):
    from open_clip.tokenizer import HFTokenizer

    text = _model_config(source)["text_cfg"]
    options = {"tokenizer_mode": text.get("tokenizer_mode"), **text.get("tokenizer_kwargs", {})}
    return HFTokenizer(str(folder), context_length=text.get("context_length", 77), **options)


def _preprocess(model: nn.Module) -> Preprocess:
    """As open_clip says on the model, or its defaults."""
    from open_clip.transform import PreprocessCfg

    default = PreprocessCfg()
    said = getattr(model.visual, "preprocess_cfg", None) or vars(default) | {"size": model.visual.image_size}
    size = said["size"]
    size = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    # Where sides differ, `shortest` would cut people off: see `create_clip`.
    resize = said["resize_mode"] if size[0] == size[1] else "squash"
    return Preprocess(size, tuple(said["mean"]), tuple(said["std"]), said["interpolation"], resize)


def _stretch_positions(clip: CLIP, image_size: tuple[int, int]) -> None:
    """Interpolates the positions of open_clip's own ViT bilinearly to another picture size, in place."""
    clip.require("positions='bilinear'", patches=True)
    visual = clip.model.visual
    grid = tuple(side // patch for side, patch in zip(image_size, visual.patch_size, strict=True))
    known = visual.positional_embedding.detach()
    visual.positional_embedding = nn.Parameter(resized_positions(known, visual.grid_size, grid, "bilinear"))
    visual.image_size, visual.grid_size = image_size, grid


def write_folder(folder: Path, config: dict[str, Any], preprocess: Preprocess) -> None:
    """`open_clip_config.json` as open_clip's `local-dir:` reads it."""
    told = {"mean": preprocess.mean, "std": preprocess.std, "interpolation": preprocess.interpolation}
    content = {"model_cfg": config, "preprocess_cfg": {**told, "resize_mode": preprocess.resize}}
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=1))


@cache
def packed(tokenizer) -> dict[str, str]:
    """A tokenizer of transformers as its files: name -> compressed content, to be kept in a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = [file for file in sorted(Path(folder).iterdir()) if file.is_file()]
        return {file.name: base64.b64encode(zlib.compress(file.read_bytes(), 9)).decode() for file in files}


def unpack(files: dict[str, str], folder: Path) -> Path:
    """Writes the files of `packed` into a folder; CheckpointError for what `packed` never writes."""
    for name, content in files.items():
        if Path(name).name != name or name in ("", "..") or not name.endswith((".json", ".txt", ".model", ".jinja")):
            raise CheckpointError(f"A checkpoint's tokenizer has a file {name!r}; expected names as tokenizer.json.")
        engine = zlib.decompressobj()
        (folder / name).write_bytes(engine.decompress(base64.b64decode(content), LARGEST))
        if engine.unconsumed_tail:
            raise CheckpointError(f"A checkpoint's tokenizer file {name} unpacks to more than {LARGEST:,} bytes.")
    return folder


@contextmanager
def _silent() -> Iterator[None]:
    """open_clip narrates every step on the root logger."""
    log = logging.getLogger()
    log.addFilter(_nothing)
    try:
        yield
    finally:
        log.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def augment_tokens(ids: Tensor, probability: float = 0.2) -> Tensor:
    """Each word by `probability` becomes the mask (60 %), a random word (20 %), or is dropped (20 %).

    What follows a dropped word moves left. The start and end tokens stay. ids: (N, L), padded with 0 on the right.
    Source: the caption augmentation of RDE and CFFA.
    """
    draw = torch.rand(ids.shape, device=ids.device) / probability
    draw = draw.masked_fill(~_are_words(ids), 1.0)
    ids = torch.where(draw < 0.6, MASK_ID, ids)
    ids = torch.where((draw >= 0.6) & (draw < 0.8), _random_words(ids), ids)
    dropped = (draw >= 0.8) & (draw < 1)
    return ids.masked_fill(dropped, PAD).gather(1, dropped.int().argsort(dim=1, stable=True))


def mask_tokens(ids: Tensor, probability: float = 0.15) -> tuple[Tensor, Tensor]:
    """Words to guess: the ids with some hidden, and the labels, 0 where there is nothing to guess.

    Each word by `probability` is to be guessed, and is then replaced by the mask (80 %), by a random word (10 %) or
    left (10 %). Masks that are there already and the start and end tokens are not chosen. ids: (N, L).
    Source: Devlin et al., NAACL 2019; as IRRA and CFFA apply it.
    """
    draw = torch.rand(ids.shape, device=ids.device) / probability
    chosen = (draw < 1) & _are_words(ids) & (ids != MASK_ID)
    masked = torch.where(chosen & (draw < 0.8), MASK_ID, ids)
    masked = torch.where(chosen & (draw >= 0.8) & (draw < 0.9), _random_words(ids), masked)
    return masked, torch.where(chosen, ids, PAD)


def _are_words(ids: Tensor) -> Tensor:
    """Where a word or its mask stands: neither padding nor the tokens (ids above the mask's) that start and end."""
    return (ids != PAD) & (ids <= MASK_ID)


def _random_words(ids: Tensor) -> Tensor:
    return torch.randint_like(ids, 1, MASK_ID)
