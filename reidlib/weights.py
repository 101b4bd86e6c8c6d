"""Weights on the disk: a training's state written whole, strangers' files read without running what is in them."""

import hashlib
import json
import pickle
import socket
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reidlib.errors import CheckpointError, ReidError
from reidlib.paths import write_json, written_whole

# -- our own: one safetensors file, read back to the last bit ------------------------------------------------------


def save(path: Path, model: nn.Module, state: dict, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Writes weights, the optimiser's moments and `state` (JSON values) to `path`, and `state` beside it as .json.

    The file appears under its name only when it is complete; a file of that name stays good until then. Raises
    ReidError where it cannot be written.
    """
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    if optimizer is not None:
        tensors |= {f"optimizer/{index}/{name}": value for index, name, value in _moments(optimizer)}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob("*.part"):  # by a run that was killed while it wrote; one process writes here
        left.unlink()
    with written_whole(path) as part:
        try:
            save_file(tensors, part, metadata={"state": json.dumps(state)})
        except SafetensorError as error:  # its own kind of error for a full disk
            raise OSError(str(error)) from error
    write_json(path.with_suffix(".json"), state, indent=1)


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits of the weights."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def state_of(path: Path) -> dict:
    """The JSON state inside a checkpoint."""
    with _opened(path) as (state, _):
        return state


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict:
    """Restores what `save` wrote and returns its state. Raises CheckpointError for a file that is damaged, has no such
    optimiser, or belongs to another model."""
    with _opened(path) as (state, file):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    weights = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    load_state(model, weights, source=path)
    if optimizer is not None:
        _restore_moments(path, optimizer, tensors)
    return state


def _moments(optimizer: torch.optim.Optimizer):
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            yield index, name, torch.as_tensor(value)


def _restore_moments(path: Path, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            moments.setdefault(int(index), {})[name] = tensor
    if not moments:
        raise CheckpointError(f"{path} holds weights only; training cannot go on from it.")
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


@contextmanager
def _opened(path: Path) -> Iterator[tuple[dict, safe_open]]:
    """The JSON state of a checkpoint and its file, whose tensors are read when they are asked for."""
    try:
        with safe_open(path, framework="pt") as file:
            yield json.loads((file.metadata() or {})["state"]), file
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint {path}.") from error
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint of this workbook ({error}).") from error


# -- anybody's -----------------------------------------------------------------------------------------------------


def read(path: str | Path, *keys: str, allow: Iterable[type] = ()) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, float32, without `module.` prefixes.

    keys: where in the file the weights may lie ("model", "network", ...); the first one found is taken, and a file that
    is itself the dictionary of weights is accepted too. allow: classes that the file's pickle may build, besides
    tensors and plain containers. A folder is read as a Hugging Face checkpoint: all its .safetensors files.
    Raises CheckpointError with one sentence for anything else.
    """
    content = read_content(path, allow)
    return plain_state(
        next((content[key] for key in keys if isinstance(content, dict) and key in content), content), path
    )


def read_content(path: str | Path, allow: Iterable[type] = ()) -> object:
    """All that is in a checkpoint, read as `read` does."""
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise CheckpointError(f"{path} should be a checkpoint file or a folder with .safetensors files.")
    try:
        if files[0].suffix == ".safetensors":
            return {name: tensor for file in files for name, tensor in load_file(file).items()}
        _refuse_compression(path)
        with torch.serialization.safe_globals(list(allow)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write, which it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds objects other than tensors and was not opened; expected plain weights."
        ) from error
    except Exception as error:  # a damaged file fails in many ways, in zip, pickle and safetensors alike
        raise CheckpointError(f"{path} is damaged or no checkpoint ({type(error).__name__}).") from error


def _refuse_compression(path: Path) -> None:
    """torch never compresses; what does may be made to fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"{path} is compressed and was not opened; expected a file as torch.save writes.")


@contextmanager
def hub() -> Iterator[None]:
    """Around what may fetch from the Hugging Face hub: where that does not answer, what this machine has must do, at
    once. Its library would try again for half a minute a file, with a line each time."""
    from huggingface_hub import constants

    asked, place = constants.HF_HUB_OFFLINE, urlsplit(constants.ENDPOINT)
    try:
        if not asked and not getproxies():  # a proxy answers in its place
            socket.create_connection((place.hostname, place.port or 443), timeout=5).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = asked


@contextmanager
def fitting(source: object) -> Iterator[None]:
    """Around building a model from a checkpoint's tensors: sizes that no such model has become a CheckpointError."""
    try:
        yield
    except ReidError:
        raise
    except Exception as error:  # each library has errors of its own for sizes that do not agree
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"{source} has impossible sizes ({reason[:300]}).") from error


def plain_state(content: object, source: object = "the checkpoint") -> dict[str, Tensor]:
    """Name -> float32 tensor (whole numbers stay), without `module.`; CheckpointError if it is no such thing."""
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) and _is_plain(v) for k, v in content.items()
    ):
        raise CheckpointError(f"{source} should hold a dictionary of named tensors.")
    for name, tensor in content.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # one number seen many times
            raise CheckpointError(f"{source}: {name} {tuple(tensor.shape)} has more elements than the file holds.")
    return {
        name.removeprefix("module."): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in content.items()
    }


def _is_plain(tensor: Tensor) -> bool:
    """Neither sparse nor quantised nor without numbers (on the device "meta")."""
    return tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"


def load_state(
    model: nn.Module, state: dict[str, Tensor], *, optional: tuple[str, ...] = (), source: object = "the checkpoint"
) -> None:
    """Loads `state`, already under the model's own names; every name and shape must agree.

    optional: prefixes of model parameters that the checkpoint may lack. Raises CheckpointError that lists what is
    missing, unexpected, of another shape, or whole numbers in the place of fractions.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.startswith(optional or ("\0",))]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    types = [
        f"{name} {state[name].dtype} instead of {own[name].dtype}"
        for name in own
        if name in state and state[name].is_floating_point() != own[name].is_floating_point()
    ]
    told = [
        f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of another type", types),
        )
        if names
    ]
    if told:
        raise CheckpointError(f"{source} does not fit {type(model).__name__}; {'; '.join(told)}.")
    model.load_state_dict(state, strict=False)
