"""What other people's checkpoints call things: one table of names for all methods, and the models such files make.

A file is read without running what is in it. Sizes come from its tensors; parts that a search does not need may be
absent; a name that is neither known nor named here as unused is refused.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reidlib.backbones.bert import TextEncoder, build_bert
from reidlib.backbones.openai import clip_like
from reidlib.backbones.swin_llama import TransformerTowers, Vocabulary, swin_of
from reidlib.config import Config
from reidlib.data.augment import IMAGENET
from reidlib.errors import CheckpointError, ConfigError, nearest
from reidlib.methods.base import Method
from reidlib.methods.cffa import CFFA, CFFAConfig
from reidlib.methods.cfine import CFine, CFineConfig
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.methods.diana import DiaNA, DianaConfig, DiaNAPretrain, DianaPretrainConfig
from reidlib.methods.interactreid import AdaptConfig, InteractReIDAdapt, InteractReIDInvert, InvertConfig
from reidlib.weights import fitting, load_state, plain_state, read, read_content

# What names in the file begin with -> what ours do; None: never used in a search or in further training.
Names = dict[str, str | None]
WORD_GUESSING = ("cross_attn", "cross_modal_transformer", "ln_pre_t", "ln_pre_i", "ln_post", "mlm_head")
NAMES: dict[str, Names] = {
    "cfine": {
        "image_model.clip_model.": "clip.model.visual.",
        "language_model.textExtractor.": "bert.model.",
        "language_model.textExtractor.pooler.": None,
        "language_model.textExtractor.embeddings.position_ids": None,
        "block.layers.0.": "head.block.",
        "bottleneck_image.": "head.neck_image.",
        "bottleneck_text.": "head.neck_text.",
        "W": "head.classifier",
    },
    "irra": {  # also CFFA, RDE, MLLM4Text-ReID, HAM and LLaVA-ReID's retriever; the spelling is theirs
        "base_model.": "clip.model.",
        "classifier.": "head.classifier.",
        **{f"{part}.": f"head.reasoning.{part}." for part in WORD_GUESSING},
        "visul_emb_layer.fc.": "head.image_local.project.",
        "visul_emb_layer.mlp.layers.0.": "head.image_local.mlp.0.",
        "visul_emb_layer.mlp.bns.0.": "head.image_local.mlp.1.",
        "visul_emb_layer.mlp.layers.1.": "head.image_local.mlp.3.",
        "visul_emb_layer.linear.": None,
        "visul_emb_layer.mlp.bns.1.": None,
        "texual_emb_layer.linear.": "head.text_local.project.",
        "texual_emb_layer.mlp.layers.0.": "head.text_local.mlp.0.",
        "texual_emb_layer.mlp.bns.0.": "head.text_local.mlp.1.",
        "texual_emb_layer.mlp.layers.1.": "head.text_local.mlp.3.",
        "texual_emb_layer.mlp.bns.1.": None,
    },
    "tbps": {  # TBPS-CLIP and both stages of InteractReID, where stage 2 holds `tbps_clip.` before what is not its own
        "": "clip.model.",
        "encode_text.": "clip.model.",
        "tbps_clip.": "clip.model.",
        "tbps_clip.encode_text.": "clip.model.",
        "mapping.": "mapping.",
        **dict.fromkeys(("input_resolution", "context_length", "vocab_size", "simclr_mlp.", "classifier.")),
        **dict.fromkeys(f"{part}." for part in WORD_GUESSING),
    },
    "diana": {
        "vision_model.": "towers.vision.",
        "llama.": "towers.language.",
        "refiner.query_token": "refiner.attr_query_token",
    },
}


class Kind(NamedTuple):
    """A kind of checkpoint: how to build its model, and the beginnings of names that it has and has not."""

    build: Callable[..., Method]
    has: tuple[str, ...] = ()
    has_not: tuple[str, ...] = ()


def import_official(kind: str, path: str | Path, **settings: Any) -> Method:
    """The model in a checkpoint that the official code of a method wrote, in evaluation mode.

    kind: a key of `KINDS`. path: the file, or for DiaNA the folder. settings: fields of the method's paper preset, such
    as `image_size` (height, width) where the file's patches are not a square. Raises ConfigError for an unknown kind
    and CheckpointError for a file of another kind, of sizes that do not fit, or with a foreign pickle.
    """
    if kind not in KINDS:
        raise ConfigError(f"There is no kind of checkpoint {kind!r}; {nearest(kind, KINDS)}.")
    if "image_size" in settings:
        settings["image_size"] = Config().replace(image_size=settings["image_size"]).image_size
    # The device decides how to compute: halves on a CPU are slower than whole numbers.
    return KINDS[kind].build(kind, Path(path), {"precision": "auto"} | settings).eval()


def renamed(state: dict[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Official names as ours by the longest beginning in `names`; names that are not known stay, to be refused."""
    ours = {}
    for name, tensor in state.items():
        prefix = max((prefix for prefix in names if name.startswith(prefix)), key=len, default=None)
        new = "" if prefix is None else names[prefix]
        if new is not None:
            ours[new + name.removeprefix(prefix or "")] = tensor
    return ours


def _cfine(kind: str, path: Path, settings: dict[str, Any]) -> CFine:
    """`best_model.pth.tar`: W, the classifier's weights, lies beside the network."""
    content = read_content(path)
    if isinstance(content, dict) and isinstance(content.get("network"), dict):
        beside = {"W": content["W"]} if content.get("W") is not None else {}
        content = beside | content["network"]
    state = _checked(plain_state(content, path), kind, path)
    state = renamed(state, NAMES["cfine"])
    with fitting(path):
        clip = clip_like(_under(state, "clip.model."), settings.get("image_size"))
        told = CFineConfig.paper().replace(**settings)
        text = TextEncoder(_bert_like(state), told.text_encoder, told.text_length)
        sizes = {"image_size": clip.image_size, "heads": max(text.width // 64, 1)}
        people = state["head.classifier"].shape[-1] if "head.classifier" in state else 0
        model = CFine(CFineConfig.paper().replace(**sizes | settings), people, clip=clip, bert=text)
    load_state(model, state, optional=_unless("head.classifier", state), source=path)
    return model


def _irra_family(kind: str, path: Path, settings: dict[str, Any]) -> CFFA | Clip:
    """IRRA is CFFA without local features, RDE without word guessing; towers alone are a fine-tuned CLIP."""
    settings = {"image_size": (384, 128)} | settings
    state = renamed(_checked(read(path, "model"), kind, path), NAMES["irra"])
    with fitting(path):
        clip = clip_like(_under(state, "clip.model."), settings["image_size"])
    if all(name.startswith("clip.model.") for name in state):
        model = Clip(ClipConfig.paper().replace(**settings), clip=clip)
        load_state(model, state, optional=("clip.model.logit_scale",), source=path)
        return model
    sizes = {
        "heads": max(clip.embed_dim // 64, 1),
        "local_dim": len(state.get("head.image_local.project.weight", ())),
        "mlm_layers": _count(state, "head.reasoning.cross_modal_transformer.resblocks."),
        **({} if any(name.startswith("head.reasoning.") for name in state) else {"mlm_weight": 0.0}),
        **({} if "head.classifier.weight" in state else {"id_weight": 0.0}),
    }
    people = len(state.get("head.classifier.weight", state.get("head.classifier.bias", ())))
    with fitting(path):
        model = CFFA(CFFAConfig.paper().replace(**sizes | settings), people, clip=clip)
    load_state(model, state, optional=("clip.model.logit_scale", *_unless("head.classifier.", state)), source=path)
    return model


# InteractReID's files hold their settings in a class of the package easydict, which is not needed to read them: torch's
# restricted unpickler fills no class but its own few dictionaries, so the name stands for one of those.
_EasyDict = type("EasyDict", (), {"__module__": "easydict", "__new__": lambda cls: OrderedDict()})


def _tbps(kind: str, path: Path, settings: dict[str, Any]) -> Method:
    """TBPS-CLIP and InteractReID's first stage are one CLIP; the second stage has a mapping network beside it."""
    state = renamed(_checked(read(path, "model", allow=[_EasyDict]), kind, path), NAMES["tbps"])
    with fitting(path):
        clip = clip_like(_under(state, "clip.model."), settings.get("image_size"), IMAGENET)
        settings = {"image_size": clip.image_size} | settings
        if kind == "tbps-clip":
            model = Clip(ClipConfig.paper().replace(**settings), clip=clip)
        elif kind == "interactreid":
            hidden = state["mapping.fc_out.weight"].shape[1]
            model = InteractReIDInvert(InvertConfig.paper().replace(mapping_width=hidden, **settings), clip=clip)
        else:
            model = InteractReIDAdapt(AdaptConfig.paper().replace(**settings), clip=clip)
    load_state(model, state, source=path)
    return model


def _diana(kind: str, path: Path, settings: dict[str, Any]) -> DiaNA:
    """A folder: config.json, .safetensors files and the tokenizer.

    It does not hold the picture size or the system prompt that the model was trained with: the official prompt can be
    given as `system`.
    """
    from transformers import LlamaConfig, LlamaModel, Swinv2Config

    config = _sizes(path)
    state = renamed(read(path), NAMES["diana"])
    if "refiner.attr_query_token" not in state:
        raise CheckpointError(f"{path} should hold refiner.attr_query_token; it has no refiner.")
    with fitting(path):
        _, num_queries, embed_dim = state["refiner.attr_query_token"].shape
    sizes = {
        "embed_dim": embed_dim,
        "num_queries": num_queries,
        "refiner_layers": _count(state, "refiner.transformer.resblocks."),
    }
    method, settings_class = (DiaNAPretrain, DianaPretrainConfig) if kind == "diana-1" else (DiaNA, DianaConfig)
    settings = settings_class.preset("paper", **(sizes | settings))
    with fitting(path):
        vision = Swinv2Config(**config["vision_config"] | {"image_size": settings.image_size})
        told = {
            name: getattr(settings, name) for name in ("system", "caption_system", "caption_questions", "max_length")
        }
        words = LlamaConfig(**config["llama_config"])
        with torch.device("meta"):  # what a file says its sizes are may be more than any memory holds
            planned = sum(p.numel() for tower in (swin_of(vision), LlamaModel(words)) for p in tower.parameters())
        if planned > sum(tensor.numel() for tensor in state.values()):
            raise CheckpointError(f"{path / 'config.json'} tells of larger towers than there are weights for.")
        towers = TransformerTowers(
            swin_of(vision, settings.drop_path), LlamaModel(words), Vocabulary.pretrained(str(path)), **told
        )
        model = method(settings, towers=towers)
    load_state(model, state, source=path)
    return model


TOWERS = "base_model.visual."
KINDS: dict[str, Kind] = {
    "cfine": Kind(_cfine, ("image_model.", "language_model.")),
    "cffa": Kind(_irra_family, (TOWERS, "visul_emb_layer.", "mlm_head.")),
    "irra": Kind(_irra_family, (TOWERS,), ("visul_emb_layer.",)),
    "rde": Kind(_irra_family, (TOWERS, "visul_emb_layer."), ("mlm_head.",)),
    "mllm4text": Kind(_irra_family, (TOWERS,), ("visul_emb_layer.", "mlm_head.")),
    "ham": Kind(_irra_family, (TOWERS,), ("visul_emb_layer.", "mlm_head.")),
    "llava-reid": Kind(_irra_family, (TOWERS,), ("visul_emb_layer.",)),
    "tbps-clip": Kind(_tbps, ("visual.",), ("tbps_clip.", "mapping.")),
    "interactreid-1": Kind(_tbps, ("visual.",), ("tbps_clip.", "mapping.")),
    "interactreid": Kind(_tbps, ("tbps_clip.", "mapping.")),
    "diana-1": Kind(_diana),
    "diana": Kind(_diana),
}


def _sizes(folder: Path) -> dict[str, Any]:
    """The config.json of an official DiaNA checkpoint."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is missing or not valid JSON; expected DiaNA's settings.") from error
    if not isinstance(content, dict) or not all(
        isinstance(content.get(f"{k}_config"), dict) for k in ("llama", "vision")
    ):
        raise CheckpointError(f"{path} should hold llama_config and vision_config.")
    return content


def _checked(state: dict[str, Tensor], kind: str, path: Path) -> dict[str, Tensor]:
    """`state` where its names are those of `kind`; CheckpointError, with the kind that they fit, where not."""

    def wrong(kind: str) -> list[str]:
        held = {mark: any(name.startswith(mark) for name in state) for mark in (*KINDS[kind].has, *KINDS[kind].has_not)}
        missing = [f"no {mark}*" for mark in KINDS[kind].has if not held[mark]]
        return missing + [f"{mark}*" for mark in KINDS[kind].has_not if held[mark]]

    found = wrong(kind)
    if found:
        fits = next((f"; it looks like one of {other}" for other, k in KINDS.items() if k.has and not wrong(other)), "")
        raise CheckpointError(f"{path} is no checkpoint of {kind}: it has {', '.join(found)}{fits}.")
    return state


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _unless(prefix: str, state: dict[str, Tensor]) -> tuple[str, ...]:
    """`prefix` as one that may be absent, unless a part of it is there."""
    return () if any(name.startswith(prefix) for name in state) else (prefix,)


def _count(names: Iterable[str], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


def _bert_like(state: dict[str, Tensor]) -> nn.Module:
    """A BERT with random weights of the sizes in `state`, heads 64 wide."""
    bert = _under(state, "bert.model.")
    try:
        vocab, width = bert["embeddings.word_embeddings.weight"].shape
        return build_bert(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=_count(bert, "encoder.layer."),
            num_attention_heads=max(width // 64, 1),
            intermediate_size=len(bert["encoder.layer.0.intermediate.dense.weight"]),
            max_position_embeddings=len(bert["embeddings.position_embeddings.weight"]),
            type_vocab_size=len(bert["embeddings.token_type_embeddings.weight"]),
        )
    except KeyError as error:
        raise CheckpointError(f"The checkpoint has no BERT text encoder: {error.args[0]} is missing.") from error
