"""Reading official checkpoints without running what is in them, and loading them without silent gaps."""

import pickle
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reidlib.errors import CheckpointError, ReidError


def read_state(path: str | Path, *keys: str, allow: Iterable[type] = ()) -> dict[str, Tensor]:
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
    """All that is in a checkpoint, read as `read_state` does."""
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise CheckpointError(f"{path} should be a checkpoint file or a folder with .safetensors files.")
    try:
        if files[0].suffix == ".safetensors":
            return {name: tensor for file in files for name, tensor in load_file(file).items()}
        _refuse_compression(path)
        with torch.serialization.safe_globals(list(allow)):
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
