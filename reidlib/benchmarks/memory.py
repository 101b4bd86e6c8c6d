"""How much GPU memory a step will take, before there is a GPU: a step on tensors that have shapes and no contents."""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from reidlib.benchmarks.shapes import CountedMasks, Unfilled, without_contents
from reidlib.benchmarks.steps import METHODS, batch, build, cuda_peak, optimizer_of, train_step
from reidlib.methods.base import Method

LONG = 8  # times the caption of the benchmarks, which fills every text length


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is open and still alive: `now`, and `peak`, their most.

    It counts storages, so a view costs nothing and what is freed is subtracted. It works alike on any device and on
    tensors without contents. Workspaces inside an operation are not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {id(leaf.untyped_storage()) for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def gone(_):
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def memory(
    preset: str = "paper", names: Sequence[str] = METHODS, batch_sizes: Sequence[int] = (16, 32, 64, 128)
) -> list[dict]:
    """An estimate of the memory of a training step on a GPU in GB (10^9 bytes): a row a method, setting and batch size.

    weights, gradients and the optimiser's two states are in float32; `kept` is what the forward pass keeps for the
    backward pass, `peak` the most that is alive at a time, all of these included. Texts are as long as the preset
    allows. Left out: CUDA itself (about half a GB), workspaces of its libraries, and what its allocator holds in
    reserve, which together ask for a tenth more and then some. Where there is a GPU, `measured` is what torch counted.
    """
    rows = []
    for name in names:
        for settings in _variants(name, preset):
            rows += _rows(name, preset, settings, batch_sizes)
    return rows


def _variants(name: str, preset: str) -> list[dict[str, Any]]:
    variants: list[dict[str, Any]] = [{"checkpoint_activations": on} for on in (False, True)]
    if name == "diana" and preset == "paper":
        variants += [variant | {"lora": 16} for variant in variants]
    return variants


def _rows(name: str, preset: str, settings: dict[str, Any], batch_sizes: Sequence[int]) -> list[dict]:
    with Unfilled():
        model = without_contents(build(name, preset, **settings))
    real = build(name, preset, **settings).to("cuda") if torch.cuda.is_available() else None
    rows = []
    for size in batch_sizes:
        row = {"method": name, "preset": preset, "batch": size, **settings}
        row |= {part: value / 1e9 for part, value in step_memory(model, batch(model, size, LONG)).items()}
        if real is not None:
            row["measured"] = _measured(real, size)
        rows.append(row)
    return rows


def step_memory(model: Method, made: dict[str, Any]) -> dict[str, int]:
    """Bytes of one training step on the batch `made`, in the parts that `memory` explains."""
    if model.config.checkpoint_activations:
        model.checkpoint_activations()
    weights, gradients = (
        _bytes([*model.parameters(), *model.buffers()]),
        _bytes(p for p in model.parameters() if p.requires_grad),
    )
    half = model.config.precision != "fp32"
    with LiveMemory() as live, CountedMasks():
        with torch.autocast("cpu", torch.bfloat16, enabled=half):  # as a GPU would
            total = sum(model.train().losses(made).values())
        kept = live.now
        total.backward()
    model.zero_grad()
    optimiser = 2 * gradients
    constant = weights + optimiser + _bytes(value for value in made.values() if isinstance(value, Tensor))
    return {
        "weights": weights, "gradients": gradients, "optimiser": optimiser, "kept": kept, "peak": constant + live.peak
    }  # fmt: skip


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _measured(model: Method, size: int) -> float:
    """GB that a step took by torch's own count; NaN where there was too little."""
    made, optimizer = batch(model, size, LONG), optimizer_of(model)
    try:
        train_step(model, optimizer, lambda: sum(model.losses(made).values()))  # makes the optimiser's states
        return cuda_peak(lambda: train_step(model, optimizer, lambda: sum(model.losses(made).values()))) / 1e9
    except torch.OutOfMemoryError:
        return float("nan")
