"""Settings of a method: one dataclass each, named presets, and overrides that are checked by name and type."""

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, Self

from reidlib.errors import ConfigError, nearest

# Told by the row itself (seed), or by how and where a training ran, which does not change what it comes to
INERT = ("seed", "device", "devices", "nodes", "workers", "compile", "checkpoint_activations", "save_every")

# Smallest values that mean something
AT_LEAST = dict.fromkeys(("batch_size", "accumulate", "devices", "nodes"), 1)
AT_LEAST |= dict.fromkeys(("epochs", "max_steps", "save_every", "workers", "lr", "warmup_steps", "warmup_epochs"), 0)


@dataclass
class Config:
    """What every method shares: how it sees pictures, how it is optimised, how it runs.

    Learning rates are absolute; `warmup_from` and `end_factor` are fractions of them. `schedule_every` says whether the
    factor changes with each step or with each epoch, as the papers differ in this.
    """

    backbone: str = "toy"  # a CLIP by name: "toy", "ARCH:TAG", "ARCH:/file", a folder, "hf-hub:..."; see create_clip
    positions: str = "bicubic"  # how its grid of positions is interpolated to image_size, or "bilinear"
    image_size: tuple[int, int] = (128, 64)  # height, width
    interpolation: str = ""  # how pictures are resized to it, "bicubic" or "bilinear"; empty: as the backbone has it
    lora: int = 0  # rank of low-rank adapters in the towers, whose own weights are then frozen; 0: trained whole
    augment: str = "irra"
    back_translation: float = 0.0  # how often a caption is replaced by its back-translation, where there is one

    epochs: int = 10
    batch_size: int = 64  # of all devices together
    drop_last: bool = True  # leave out the smaller last batch of an epoch
    sampler: str = "random"  # "identity": a batch holds several pictures of a person; "length": texts of like length
    optimizer: str = "adamw"  # or "adam": weight decay as a part of the gradient
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.02
    schedule: str = "cosine"  # "constant", "cosine", "linear", "step"
    schedule_every: str = "step"  # or "epoch"
    warmup_epochs: float = 1.0
    warmup_steps: int = 0  # wins over warmup_epochs when it is not 0
    warmup_from: float = 0.1
    warmup_shape: str = "linear"  # or "linspace", "log"
    end_factor: float = 0.0
    milestones: tuple[int, ...] = ()  # epochs, for "step"
    decay: float = 0.1  # at each milestone
    clip_grad: float = 0.0  # largest gradient norm; 0: no limit
    accumulate: int = 1  # batches an optimiser step; each has its own negatives, so two of 32 are not one of 64

    precision: str = "auto"  # "auto": bf16 where the GPU has it, else fp32; "fp32", "bf16", "fp16" (GPU only)
    checkpoint_activations: bool = False  # recompute activations in the backward pass to save memory
    compile: bool = False  # torch.compile
    device: str = "auto"  # "auto", "cpu", "cuda"
    devices: int = 1
    nodes: int = 1
    workers: int = 0  # loader processes
    seed: int = 0
    max_steps: int = 0  # stop after so many steps; 0: run all epochs
    save_every: int = 0  # steps between checkpoints, all that a kill can cost; 0: at the end of each epoch
    select_on: str = "val"  # "test" repeats the habit of the official codes and is marked in the results
    select_by: str = "t2i R@1"  # task and metric that choose the best epoch

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The settings called `name` ("toy", "paper", ...) with `overrides`.

        Raises ConfigError for an unknown preset, an unknown field (naming the nearest) or a value of the wrong type.
        """
        presets = [key for key in ("toy", "paper") if hasattr(cls, key)]
        if name not in presets:
            raise ConfigError(f"There is no preset {name!r} of {cls.__name__}; choose one of {', '.join(presets)}.")
        return getattr(cls, name)().replace(**overrides)

    def replace(self, **overrides: Any) -> Self:
        """A copy with some fields changed; raises ConfigError as `preset` does."""
        hints = typing.get_type_hints(type(self))
        fields = [field.name for field in dataclasses.fields(self)]
        values = {}
        for name, value in overrides.items():
            if name not in fields:
                raise ConfigError(f"{type(self).__name__} has no setting {name!r}; {nearest(name, fields)}.")
            values[name] = _fitted(f"{type(self).__name__}.{name}", value, hints[name])
            if name in AT_LEAST and values[name] < AT_LEAST[name]:
                raise ConfigError(
                    f"{type(self).__name__}.{name} should be at least {AT_LEAST[name]} and got {value!r}."
                )
        return dataclasses.replace(self, **values)

    def changes(self, preset: str) -> str:
        """What differs from the preset and may change results, such as "epochs=4, lr=0.001"; empty if nothing does."""
        plain = self.preset(preset).as_dict()
        changed = {key: value for key, value in self.as_dict().items() if value != plain[key] and key not in INERT}
        return ", ".join(f"{key}={value}" for key, value in changed.items())

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _fitted(where: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` asks (an int serves as a float, a list as a tuple), or ConfigError."""
    error = ConfigError(f"{where} should be {getattr(hint, '__name__', hint)} and got {value!r}.")
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        for part in parts:
            if part is type(None) and value is None:
                return None
            try:
                return _fitted(where, value, part)
            except ConfigError:
                continue
        raise error
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise error
        if len(parts) == 2 and parts[1] is Ellipsis:
            return tuple(_fitted(where, item, parts[0]) for item in value)
        if len(value) != len(parts):
            raise error
        return tuple(_fitted(where, item, part) for item, part in zip(value, parts, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise error
    return value
