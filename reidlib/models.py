"""Models by name: a trained run, an open_clip model or the toy; the one that fits a search; a start for a training."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from reidlib import methods, paths, weights
from reidlib.backbones import create_clip
from reidlib.backbones.clip import TOY
from reidlib.backbones.positions import resized_positions, stretched
from reidlib.config import Config
from reidlib.devices import pick_device
from reidlib.errors import CheckpointError, ConfigError, ReidError, nearest
from reidlib.methods.base import Method
from reidlib.methods.clip import Clip, ClipConfig

SMALL = "ViT-B-32-256:datacomp_s34b_b86k"  # for photos where nothing has been trained: 151 million weights, MIT licence
OWN_FILE = "reidlib.safetensors"  # a trained model in a folder that was exported or fetched
loaded: dict[str, str] = {}  # the trained models that this process has loaded, with a fingerprint of their weights


def load_model(name: str, part: str = "", which: str = "best") -> Method:
    """A model by name, on the CPU in evaluation mode.

    name: a run of one's own under outputs/, "<run>" or "<run>/<part>"; "toy", the small CLIP that has seen drawn people
    only; `ARCH:TAG` or `ARCH:/file` of open_clip; a folder in open_clip's layout or one that `reid export` wrote; a
    checkpoint's file; `hf-hub:<user>/<name>`. part: as in `<run>/<part>`. which: "best" or "last", of a run.

    Nothing is fetched for a run, a file or a folder. An open_clip model reads texts and sketches, and prepares pictures
    as open_clip does. Raises ConfigError for a name that means nothing and CheckpointError for a damaged file.
    """
    name = "/".join(filter(None, (name, part)))
    if not name:
        raise ConfigError("There is no model without a name; expected a run, 'toy', ARCH:TAG, a folder or hf-hub:....")
    run = _run_folder(name)
    if run is not None:
        file = run / "checkpoint" / f"{which}.safetensors"
        if not file.is_file():
            parts = [inner for outer, inner in trained() if outer == name and inner]
            if len(parts) != 1:
                told = f"; name one of its trainings: {', '.join(f'{name}/{p}' for p in parts)}" if parts else ""
                raise CheckpointError(f"The run {name} has no trained model of its own{told}.")
            return load_model(f"{name}/{parts[0]}", which=which)
        model = _read(file)
        loaded[name] = weights.fingerprint(model)
        return model
    file = _own_file(name)
    return _read(file) if file else _zero_shot(name)


def pick_model(reads: Sequence[str], photos: bool, name: str = "", also: Sequence[str] = ()) -> tuple[Method, str]:
    """A model to search with, on the device there is, and one sentence that says which and why.

    It reads one of `reads` ("text", "turns", "sketch") and all of `also`. That of `name` if one is given; else the
    newest training that fits, on photos where `photos` says that photos are searched, on the drawn world where not;
    else a small open_clip model, fetched once, or for drawings the toy CLIP. The toy is never used on photos unless it
    is named. Raises ReidError where `name` does not read them, or where a model must be fetched and cannot be.
    """
    if name:
        model, why = load_model(name), f"The model is {name}, as asked for."
        if not _reads(model, reads, also):
            wanted = " and ".join([" or ".join(reads), *also])
            raise ReidError(f"{name} reads {' and '.join(model.reads)}; expected {wanted}.")
        return model.to(pick_device()), why
    for run, part in reversed(trained()):
        where = "/".join(filter(None, (run, part)))
        if on_photos(where) == photos:
            model = load_model(where)
            if _reads(model, reads, also):
                kind = "photos" if photos else "drawn people"
                return model.to(pick_device()), f"The model is {model.name} from the run {where}, trained on {kind}."
    if not set(reads) & {"text", "sketch"}:
        raise ReidError(f"No run has trained a model that reads {' or '.join(reads)}; train one, or name a model.")
    if not photos:
        model = load_model("toy")
        return model.to(pick_device()), "No run has trained a model that fits, so this is the toy CLIP as it comes."
    model = _small()
    return (
        model.to(pick_device()),
        f"No run was trained on photos, so this is {SMALL} as it comes; pictures are squashed to "
        f"{model.image_size[0]} x {model.image_size[1]}, so that nothing of a person is cut off.",
    )


def _reads(model: Method, one_of: Sequence[str], also: Sequence[str]) -> bool:
    return bool(set(one_of) & set(model.reads)) and set(also) <= set(model.reads)


def on_photos(name: str) -> bool:
    """Whether a run, "<run>" or "<run>/<part>", was trained on photos and not on the drawn world.

    Data sets of the drawn world have names that begin with "toy"; a run that does not say its data counts as drawn.
    """
    description = paths.outputs_dir() / name.split("/")[0] / "config.json"
    dataset = _json(description, "the description of a run").get("dataset", "toy") if description.is_file() else "toy"
    return not str(dataset).startswith("toy")


def trained(method: str = "", **described: Any) -> list[tuple[str, str]]:
    """(run, part) of every finished training under outputs/, newest last.

    Of one method or of all; `described` asks for values in the run's config.json, such as dataset="toy", seed=0.
    """
    files = sorted(paths.outputs_dir().glob("[!.]*/**/checkpoint/best.json"), key=lambda file: file.stat().st_mtime)
    found = []
    for file in files:
        name = _json(file, "the JSON beside a checkpoint").get("method")
        run, *part = file.parent.parent.relative_to(paths.outputs_dir()).parts
        description = paths.outputs_dir() / run / "config.json"
        fits = not described or (
            description.is_file() and described.items() <= _json(description, "the description of a run").items()
        )
        if fits and method in ("", name):
            found.append((run, str(Path(*part)) if part else ""))
    return found


def save_model(model: Method, file: Path, **more: Any) -> None:
    """Writes a model as `load_model` reads it; `more` (JSON values) is kept beside it."""
    about = {"method": model.name, "num_classes": model.num_classes, "config": model.config.as_dict()}
    weights.save(file, model, json.loads(json.dumps(about | {"towers": model.made_of} | more)))


def begin(kind: type[Method], config: Config, num_classes: int = 0, start: str = "", run: Any = None) -> Method:
    """A model of a method before its first step: from its backbone or, where `start` names a model, from that one.

    The backbone's weights are then not fetched. run: a `runs.Run`, whose config.json keeps what `start_from` tells.
    """
    if not start:
        return kind(config, num_classes)
    if not config.backbone.startswith("hf-hub:"):
        config = config.replace(backbone=config.backbone.partition(":")[0])
    model = kind(config, num_classes)
    told = start_from(model, start)
    if run is not None:
        run.note(start=told)
    return model


def start_from(model: Method, name: str) -> dict[str, Any]:
    """Begins a training from another model: what fits of its weights is taken, in place, and what happened is printed.

    Weights fit by name and shape, whatever the methods: the towers of every CLIP are called alike. Positions of
    another grid of patches are interpolated, and those of short texts stretched for long ones. Mean and deviation of
    pictures come with the weights where the method has none of its own.

    Returns {"start", "taken", "left", "new"}: the name, and parts of the model with their numbers of tensors: taken,
    left in the other model, and still as they were made. Raises ReidError where no image tower fits.
    """
    other = load_model(name)
    mine, clip = _clip_of(model), _clip_of(other)
    if mine is not None and clip is not None and _activation(mine) != _activation(clip):
        raise ReidError(f"{name} computes with {_activation(clip)} and the model with {_activation(mine)}.")
    own = {_shared_name(key): (key, tensor) for key, tensor in model.state_dict().items()}
    given = {_shared_name(key): tensor for key, tensor in other.state_dict().items()}
    taken: dict[str, Tensor] = {}
    for key, tensor in given.items():
        if key in own:
            fitted = _fitted(key, tensor, own[key][1], clip, mine, model.config)
            if fitted is not None:
                taken[own[key][0]] = fitted
    told = {
        "start": name,
        "taken": _counted(taken),
        "left": _counted(key for key in given if key not in own or own[key][0] not in taken),
        "new": _counted(key for key, _ in own.values() if key not in taken),
    }
    if not any("visual." in key or "vision." in key for key in taken):
        raise ReidError(f"Nothing of the image tower of {name} ({other.name}) fits a {model.name} of these settings.")
    model.load_state_dict(taken, strict=False)
    if mine is not None and clip is not None:
        mine.preprocess = replace(mine.preprocess, mean=other.mean, std=other.std)
    parts = [f"{kind} {', '.join(f'{p} ({n})' for p, n in told[kind].items()) or 'nothing'}" for kind in list(told)[1:]]
    print(f"Starts from {name}: {'; '.join(parts)}.")
    return told


def import_run(kind: str, file: str | Path, name: str, **settings: Any) -> tuple[Method, Path]:
    """Makes an official checkpoint a run that everything takes by `name`; returns its model and the run's folder.

    kind, file, settings: as in `official.import_official`. Raises ConfigError where a run of this name is there, and
    for a name that means another model.
    """
    from reidlib.official import import_official

    if name in TOY or ":" in name or name.startswith((".", "~")):
        raise ConfigError(f"A run cannot be called {name!r}, as a model's name that means something else.")
    folder = paths.inside(paths.outputs_dir(), name)
    if folder.exists():
        raise ConfigError(f"There is a run {name} in {folder}; import under another name, or delete it first.")
    model = import_official(kind, file, **settings)
    folder = paths.run_dir(name)
    save_model(model, folder / "checkpoint" / "best.safetensors")
    about = {"run": name, "dataset": f"unknown: imported from a checkpoint of {kind}", "config": model.config.as_dict()}
    paths.write_json(folder / "config.json", about | {"imported": {"kind": kind, "file": str(file)}}, indent=1)
    return model, folder


# -- names -----------------------------------------------------------------------------------------------------------


def _run_folder(name: str) -> Path | None:
    """The folder of a run or of one of its trainings; None where `name` is something else."""
    if not name or Path(name).is_absolute() or name.startswith((".", "~", "hf-hub:", "local-dir:")):
        return None
    folder = paths.inside(paths.outputs_dir(), name)
    return folder if folder.is_dir() and not (folder / OWN_FILE).is_file() else None


def _own_file(name: str) -> Path | None:
    """The checkpoint of this workbook in a folder, a file or a repository of the hub; None where there is none."""
    if name.startswith("hf-hub:"):
        return _hub_file(name.removeprefix("hf-hub:"))
    path = Path(name).expanduser()
    found = [path / OWN_FILE, path / "checkpoint" / "best.safetensors"]
    found += [path] if path.suffix == ".safetensors" else []
    return next((file for file in found if file.is_file()), None)


def _hub_file(repository: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        with weights.hub():
            return Path(hf_hub_download(repository, OWN_FILE))
    except LocalEntryNotFoundError:  # offline: whether the repository has the file is not known
        return None
    except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None


def _read(file: Path) -> Method:
    """The model of a checkpoint of this workbook."""
    state = weights.state_of(file)
    try:
        method, settings, towers = state["method"], dict(state["config"]), dict(state.get("towers") or {})
        people = int(state["num_classes"])
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} does not say of which method it is; expected a checkpoint of fit.") from error
    model = methods.create(method, settings, people, towers)
    weights.load(file, model)
    return model.eval()


def _zero_shot(name: str) -> Clip:
    """A CLIP as it comes."""
    arch, _, tag = name.partition(":")
    if name not in TOY and not tag and not Path(name).is_dir():
        import open_clip

        if arch not in open_clip.list_models():
            known = [run for run, _ in trained()] + ["toy", *open_clip.list_models()]
            raise ConfigError(f"There is no run and no model {name!r}; {nearest(name, known)}.")
        tags = ", ".join(f"{arch}:{tag}" for tag in open_clip.list_pretrained_tags_by_model(arch))
        raise ConfigError(f"{arch} has random weights without a tag; expected {arch}:/file or one of {tags}.")
    clip = create_clip(name)
    config = ClipConfig(backbone=name, image_size=clip.image_size, views=("text", "sketch"))
    return Clip(config, clip=clip).eval()


def _small() -> Clip:
    """The small model for photos, fetched where it is not on this machine; ReidError where it cannot be."""
    import open_clip

    repository = open_clip.get_pretrained_cfg(*SMALL.split(":"))["hf_hub"].strip("/")
    try:
        size = _size_to_fetch(repository)
        if size:
            print(f"{SMALL} is fetched once from https://huggingface.co/{repository} ({size / 1e6:,.0f} MB).")
        model = _zero_shot(SMALL)
    except (ReidError, OSError) as error:
        raise ReidError(
            f"No run was trained on photos, and {SMALL} is not on this machine and cannot be fetched: where there is a "
            f"network run `hf download {repository} --local-dir FOLDER`, bring the folder here and give its path as "
            "the model's name; model='toy' insists on the toy CLIP, which has only seen drawn people."
        ) from error
    # A person who stands fills a tall crop, from which open_clip's own pipeline would cut head and feet.
    model.clip.preprocess = replace(model.clip.preprocess, resize="squash")
    return model


def _size_to_fetch(repository: str) -> int:
    """Bytes of a repository's weights, 0 where they are on this machine already."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return 0
    try:
        files = {file.rfilename: file.size for file in HfApi().model_info(repository, files_metadata=True).siblings}
    except Exception as error:  # without a network each version of the hub's library has an error of its own
        raise ReidError(f"https://huggingface.co/{repository} could not be asked ({error}).") from error
    return next((files[name] or 0 for name in names if name in files), 0)


def _json(file: Path, kind: str) -> dict:
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file} should be {kind} and is not ({error}).") from error


# -- a start for a training ------------------------------------------------------------------------------------------


def _clip_of(model: Method) -> Any:
    return getattr(model, "clip", None) or getattr(getattr(model, "towers", None), "clip", None)


def _activation(clip: Any) -> str:
    """What lies between the two layers of a tower's MLPs: QuickGELU in OpenAI's release, GELU elsewhere."""
    found = (type(module).__name__ for module in clip.model.modules() if "GELU" in type(module).__name__)
    return next(found, "another activation")


def _shared_name(key: str) -> str:
    key = key.replace(".base_layer.", ".")  # a layer beneath its adapter
    return key.removeprefix("towers.") if key.startswith("towers.clip.") else key


def _fitted(key: str, tensor: Tensor, own: Tensor, clip: Any, mine: Any, config: Any) -> Tensor | None:
    """A tensor in the shape of `own`; None where it does not fit."""
    if tensor.shape == own.shape and tensor.is_floating_point() == own.is_floating_point():
        return tensor
    if key.endswith("visual.positional_embedding") and tensor.shape[1:] == own.shape[1:] and clip and mine:
        return resized_positions(tensor, clip.grid, mine.grid, config.positions)
    if key.endswith("model.positional_embedding") and tensor.shape[1:] == own.shape[1:] and len(tensor) < len(own):
        return stretched(tensor, len(own))
    return None


def _counted(keys: Iterable[str]) -> dict[str, int]:
    """How many tensors of each part: "clip.model.visual" and so on."""
    parts: dict[str, int] = {}
    for key in map(_shared_name, keys):
        names = key.split(".")
        depth = (3 if names[2] == "visual" else 2) if key.startswith("clip.model.") else min(2, max(1, len(names) - 1))
        part = ".".join(names[:depth])
        parts[part] = parts.get(part, 0) + 1
    return parts
