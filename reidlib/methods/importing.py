"""Reading official checkpoints without running what is in them, and loading them without silent gaps."""

import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reidlib.errors import CheckpointError


def read_state(path: str | Path, *keys: str, allow: Iterable[type] = ()) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, float32, without `module.` prefixes.

    keys: where in the file the weights may lie ("model", "network", ...); the first one found is taken, and a file that
    is itself the dictionary of weights is accepted too. allow: classes that the file's pickle may build, besides
    tensors and plain containers. A folder is read as a Hugging Face checkpoint: all its .safetensors files.
    Raises CheckpointError with one sentence for anything else.
    """
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise CheckpointError(f"{path} should be a checkpoint file or a folder with .safetensors files.")
    try:
        if files[0].suffix == ".safetensors":
            content = {name: tensor for file in files for name, tensor in load_file(file).items()}
        else:
            with torch.serialization.safe_globals(list(allow)):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds objects other than tensors and was not opened; expected plain weights."
        ) from error
    except Exception as error:  # a damaged file fails in many ways, in zip, pickle and safetensors alike
        raise CheckpointError(f"{path} is damaged or no checkpoint ({type(error).__name__}).") from error
    return plain_state(
        next((content[key] for key in keys if isinstance(content, dict) and key in content), content), path
    )


def plain_state(content: object, source: object = "the checkpoint") -> dict[str, Tensor]:
    """Name -> float32 tensor (whole numbers stay), without `module.`; CheckpointError if it is no such thing."""
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise CheckpointError(f"{source} should hold a dictionary of named tensors.")
    return {
        name.removeprefix("module."): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in content.items()
    }


def load_state(
    model: nn.Module, state: dict[str, Tensor], *, optional: tuple[str, ...] = (), source: object = "the checkpoint"
) -> None:
    """Loads `state`, already under the model's own names; every name and shape must agree.

    optional: prefixes of model parameters that the checkpoint may lack. Raises CheckpointError that lists what is
    missing, unexpected or of another shape.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.startswith(optional or ("\0",))]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    told = [
        f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if told:
        raise CheckpointError(f"{source} does not fit {type(model).__name__}; {'; '.join(told)}.")
    model.load_state_dict(state, strict=False)
