"""Which device to compute on and in which precision."""

import contextlib

import torch

from reidlib.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" is the GPU where there is one. Raises ConfigError when a GPU is asked for and there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r} was asked for, but torch sees no CUDA GPU here; use device='cpu'.")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """ "auto" is bf16 on GPUs that have it and fp32 elsewhere."""
    if name not in ("auto", "fp32", "bf16", "fp16"):
        raise ConfigError(f"precision should be 'auto', 'fp32', 'bf16' or 'fp16' and got {name!r}.")
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast(device: torch.device, precision: str = "auto"):
    """A context in which matrix products run in the chosen precision; weights stay float32."""
    precision = pick_precision(precision, device)
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
