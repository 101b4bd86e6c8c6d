"""Which device to compute on, in which precision, and with which other processes."""

import contextlib

import torch
from torch import Tensor, distributed

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
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast(device: torch.device, precision: str = "auto"):
    """A context in which matrix products on a GPU run in the chosen precision; weights stay float32.

    A CPU computes with float32 whatever is chosen: halves would take it four times as long.
    """
    precision = pick_precision(precision, device)
    if precision == "fp32" or device.type == "cpu":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def processes() -> int:
    """How many processes compute together; 1 outside a training on several devices."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather(features: Tensor) -> Tensor:
    """The features of all processes, (B, ...) -> (processes * B, ...), with their gradients; as they are in one."""
    return _Gather.apply(features) if processes() > 1 else features


def weight_of(count: Tensor) -> Tensor:
    """What a mean over `count` () items of this process weighs in the mean over the items of all; 1 in one process.

    The processes' losses and gradients are averaged as if each held as many items.
    """
    return count * processes() / gather(count.reshape(1)).sum().clamp(min=1) if processes() > 1 else count.new_ones(())


class _Gather(torch.autograd.Function):
    """torch's own sums a gradient that is not contiguous wrongly on the CPU (torch 2.15, gloo)."""

    @staticmethod
    def forward(_context, features: Tensor) -> Tensor:
        parts = [torch.empty_like(features, memory_format=torch.contiguous_format) for _ in range(processes())]
        distributed.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(_context, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        distributed.all_reduce(gradient)
        return gradient.chunk(processes())[distributed.get_rank()]
