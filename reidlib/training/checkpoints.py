"""A training state in one safetensors file, written whole or not at all, and read back to the last bit."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reidlib.errors import CheckpointError
from reidlib.paths import write_json, written_whole


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


def read_state(path: Path) -> dict:
    """The JSON state inside a checkpoint."""
    return _open(path)[0]


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict:
    """Restores what `save` wrote and returns its state. Raises CheckpointError for a file that is damaged, has no such
    optimiser, or belongs to another model."""
    state, tensors = _open(path)
    weights = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    own = model.state_dict()
    wrong = sorted(set(own) ^ set(weights)) or [n for n in own if own[n].shape != weights[n].shape]
    if wrong:
        raise CheckpointError(f"{path} is a checkpoint of another model: it differs in {', '.join(wrong[:3])}.")
    model.load_state_dict(weights)
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


def _open(path: Path) -> tuple[dict, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            return state, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint {path}.") from error
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint of this workbook ({error}).") from error
