"""A trained model leaves the workbook: open_clip's folder, ONNX towers with a script that needs numpy only, a card."""

import gzip
import json
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reidlib import paths
from reidlib.backbones.adapters import merge_adapters
from reidlib.backbones.clip import write_folder
from reidlib.errors import ConfigError, ReidError
from reidlib.methods.base import Method
from reidlib.models import OWN_FILE, load_model, save_model

SCRIPT = Path(__file__).with_name("search_onnx.py.txt")
METRICS = ("R@1", "R@5", "R@10", "mAP")


def export(name: str, folder: Path, licence: str = "") -> list[str]:
    """Writes a model for use elsewhere and returns one sentence on each thing written.

    name: as `load_model` takes it. folder: new or empty. There come to lie in it the model as this workbook reads it,
    open_clip's files where the method is one CLIP, ONNX files of the towers with a search script, and a model card.
    licence: of the weights, for the card. Raises ConfigError where `folder` holds something else.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} should be a new or an empty folder.")
    model = merge_adapters(load_model(name))
    model.config = model.config.replace(lora=0)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder / OWN_FILE)
    told = [f"{OWN_FILE}: load_model({str(folder)!r}) reads it."]
    if one_clip(model):
        write_open_clip(model, folder)
        told.append(f"open_clip_config.json, open_clip_model.safetensors: open_clip reads them as local-dir:{folder}.")
    else:
        told.append(f"No open_clip files: {model.name} is more than one CLIP.")
    told += write_onnx(model, folder)
    (folder / "README.md").write_text(card(name, model, licence))
    return [*told, "README.md: the model card; say there what is not known here."]


def publish(folder: Path, repository: str, private: bool = True, api: Any = None) -> str:
    """Uploads an exported folder to the Hugging Face hub and returns its address.

    repository: "<user>/<name>"; made if it is not there. api: of huggingface_hub, by default with the token that
    `hf auth login` left. Raises ReidError for a folder without a card or when the hub refuses.
    """
    folder = Path(folder)
    if not (folder / "README.md").is_file():
        raise ReidError(f"{folder} has no README.md; expected a folder that `reid export` wrote.")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder))
    except Exception as error:  # the hub's library has errors of many kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ReidError(f"{repository} could not be written ({reason}); `hf auth login` sets the token.") from error
    return f"https://huggingface.co/{repository}"


# -- open_clip -------------------------------------------------------------------------------------------------------


def one_clip(model: Method) -> bool:
    """Whether the embeddings of a method are those of its CLIP and nothing more."""
    clip = getattr(model, "clip", None)
    if clip is None or clip.config is None or model.config.lora:
        return False
    own = {name for name, _ in model.named_children()} == {"clip"} and not hasattr(model, "bert")
    return own or (model.name == "cffa" and not model.config.local_dim)


def write_open_clip(model: Method, folder: Path) -> None:
    """`open_clip_config.json`, the weights, and the tokenizer's files where it is not CLIP's own."""
    clip, how = model.clip, model.preprocess
    config = json.loads(json.dumps(clip.config))
    config["vision_cfg"]["image_size"] = how.size[0] if how.size[0] == how.size[1] else list(how.size)
    tokenizer = clip._tokenizer[0]
    if hasattr(tokenizer, "tokenizer"):
        tokenizer.tokenizer.save_pretrained(folder)
    write_folder(folder, config, how)
    state = {key: tensor.contiguous().clone() for key, tensor in clip.model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


# -- ONNX ------------------------------------------------------------------------------------------------------------


class _Part(nn.Module):
    """One of a method's `embed_*` as a module, for the exporter."""

    def __init__(self, model: Method, part: str):
        super().__init__()
        self.model, self.part = model, part

    def forward(self, given: Tensor) -> Tensor:
        return getattr(self.model, f"embed_{self.part}")(given)


def write_onnx(model: Method, folder: Path) -> list[str]:
    """image.onnx and text.onnx for batches of any size, preprocess.json, and a script that searches with them.

    Embeddings of both have length 1 and are compared by inner product. A tower that cannot be exported is said and left
    out. Raises ReidError without the extra `onnx`.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ReidError("ONNX files need the packages of an extra: pip install 'reidlib[onnx]'.") from error
    model.eval()
    told = [_exported(model, "image", torch.zeros(2, 3, *model.image_size), folder)]
    about = model.preprocess.as_dict()
    clip_reads = getattr(getattr(model, "clip", None), "reads_words", False) and not hasattr(model, "bert")
    if "text" not in model.reads or not clip_reads:
        told.append(f"No text.onnx: {model.name} does not read texts by a CLIP's byte pairs.")
        return [*told, _facts(about, folder)]
    ids = model.tokenize(["a man in a red coat", "a woman"])
    told.append(_exported(model, "text", ids, folder))
    if not (folder / "text.onnx").is_file():
        return [*told, _facts(about, folder)]
    about |= {"context_length": ids.shape[1], "start": int(ids[0, 0]), "end": int(ids[0].max())}
    _write_merges(folder / "merges.txt")
    shutil.copyfile(SCRIPT, folder / "search.py")
    return [*told, _facts(about, folder), "search.py: python search.py PICTURES 'a woman in red', with onnxruntime."]


def _exported(model: Method, part: str, given: Tensor, folder: Path) -> str:
    """Writes one tower, or says why it cannot be written."""
    file = folder / f"{part}.onnx"
    large = sum(p.numel() for p in model.parameters()) > 400e6  # one file holds 2 GB
    try:
        with torch.no_grad(), warnings.catch_warnings(), _full_length():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Part(model, part),
                (given,),
                file,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                input_names=["pixels" if part == "image" else "ids"],
                output_names=["unit_vector"],
                external_data=large,
                verbose=False,
            )
    except Exception as error:  # the exporter has errors of its own for what it cannot follow
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        return f"No {file.name}: the exporter cannot follow this tower of {model.name} ({reason})."
    return f"{file.name}: {file.stat().st_size / 1e6:,.0f} MB, batches of any size."


@contextmanager
def _full_length():
    """While an exporter follows the model, texts keep their padding: where they end is not known to it."""
    from reidlib.backbones import clip
    from reidlib.methods import cffa

    before, modules = clip.trim, [module for module in (clip, cffa) if hasattr(module, "trim")]
    for module in modules:
        module.trim = lambda ids: ids
    try:
        yield
    finally:
        for module in modules:
            module.trim = before


def _facts(about: dict[str, Any], folder: Path) -> str:
    (folder / "preprocess.json").write_text(json.dumps(about, indent=1))
    return "preprocess.json: size, mean, deviation, interpolation, resizing."


def _write_merges(file: Path) -> None:
    """CLIP's byte-pair merges, best first, as text."""
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as merges:
        lines = merges.read().split("\n")
    file.write_text("\n".join(lines[1 : 49152 - 256 - 2 + 1]), encoding="utf-8")


# -- the card --------------------------------------------------------------------------------------------------------


def card(name: str, model: Method, licence: str = "") -> str:
    """A model card: what it is, data, protocol, numbers with intervals, licence, what it must not be used for."""
    run = name.split("/")[0]
    about = _json(paths.outputs_dir() / run / "config.json")
    config, how = model.config.as_dict(), model.preprocess
    data = about.get("dataset", "not recorded")
    rows = _numbers(run, name.partition("/")[2], model.name)
    table = [f"| {' | '.join(row)} |" for row in rows] or [
        "No evaluation of this run was found; measure before you rely on it."
    ]
    newline = "\n"
    selected = {"val": "the validation split", "test": "the test split, as the official codes do"}
    size = sum(p.numel() for p in model.parameters()) / 1e6
    unlicensed = f"Not stated yet: that of the weights follows from the data and the backbone, {config['backbone']}"
    return f"""---
license: {licence or "unknown"}
library_name: {"open_clip" if one_clip(model) else "reidlib"}
tags: [person-retrieval, text-to-image-retrieval, clip]
---
# {name}
A model that finds a person among pictures by {" and by ".join(model.reads)}: {model.name}, {size:,.0f} million
parameters. A query and a picture are compared by the inner product of their embeddings.

## Data
Trained on: {data}. The licence of these pictures may forbid commercial use and passing them on.

## How it takes a picture
{how.size[0]} x {how.size[1]} pixels ({how.interpolation}, {how.resize}), RGB in [0, 1], mean {list(how.mean)},
deviation {list(how.std)}.

## Protocol and numbers
Every test query searches all test pictures; those of the query's person count. R@k and mAP in percent, with 95 %
intervals over queries (bootstrap). The epoch was chosen on {selected.get(config["select_on"], "?")};
seed {config["seed"]}.

{newline.join(table)}

## Licence
{licence or unlicensed}.

## What it must not be used for
Not to identify, follow or watch people who did not agree to it, not for decisions about anybody, and not by authorities
or firms to find persons in public space. It errs, and not equally for all groups of people: no result is proof.
"""


def _numbers(run: str, part: str, method: str) -> list[list[str]]:
    """The table of a run's own evaluations, header first; empty where there are none."""
    from reidlib.evaluation.metrics import bootstrap_interval

    folder = paths.outputs_dir() / run
    rows = [row for row in _json(folder / "metrics.json").get("rows", []) if row.get("method") == method]
    if not rows:
        return []
    found = np.load(folder / "per_query.npz") if (folder / "per_query.npz").is_file() else {}
    table = [["label", "data", "task", *METRICS], ["---"] * 3 + ["---:"] * len(METRICS)]
    for row in rows:
        key = "|".join(str(row.get(name, "")) for name in ("method", "label", "dataset", "seed")) + f"|{row['task']}"
        cells = []
        for metric in METRICS:
            value = row.get(metric)
            cell = "" if value is None else f"{value:.2f}"
            if metric.startswith("R@") and f"{key}|first" in found:
                hits = found[f"{key}|first"] <= int(metric[2:])
            elif metric == "mAP" and f"{key}|average_precision" in found:
                hits = found[f"{key}|average_precision"]
            else:
                hits = None
            if hits is not None and len(hits):
                low, high = bootstrap_interval(100 * np.nan_to_num(hits.astype(float)))
                cell += f" ({low:.1f} to {high:.1f})"
            cells.append(cell)
        table.append([str(row.get(name, "")) for name in ("label", "dataset", "task")] + cells)
    return table


def _json(file: Path) -> dict:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
