"""The methods by name; each lives in one file and is imported when it is first asked for."""

import os
from importlib import import_module
from typing import Any

from reidlib.backbones import from_spec
from reidlib.config import Config
from reidlib.errors import ConfigError, nearest
from reidlib.methods.base import Method

# name -> (model, settings), each a class or where it lies: (module, name)
METHODS: dict[str, tuple[Any, Any]] = {
    "clip": (("clip", "Clip"), ("clip", "ClipConfig")),
    "cfine": (("cfine", "CFine"), ("cfine", "CFineConfig")),
    "cffa": (("cffa", "CFFA"), ("cffa", "CFFAConfig")),
    "interactreid-1": (("interactreid", "InteractReIDAdapt"), ("interactreid", "AdaptConfig")),
    "interactreid": (("interactreid", "InteractReIDInvert"), ("interactreid", "InvertConfig")),
    "diana-1": (("diana", "DiaNAPretrain"), ("diana", "DianaPretrainConfig")),
    "diana": (("diana", "DiaNA"), ("diana", "DianaConfig")),
    "omni": (("omni", "Omni"), ("omni", "OmniConfig")),
}


def register(model: type[Method], config: type[Config]) -> None:
    """Makes a method of one's own known by its `name`, wherever methods are named: checkpoints, notebooks, `reid`.

    Other processes know it once the module that calls this is named by the environment variable REIDLIB_METHODS
    (several: with commas between them).
    """
    METHODS[model.name] = (model, config)


def config_class(name: str) -> type[Config]:
    """The settings class of a method; ConfigError, naming the nearest, where there is none of that name."""
    return _part(name, 1)


def model_class(name: str) -> type[Method]:
    """A method by its name; ConfigError as `config_class`."""
    return _part(name, 0)


def create(name: str, settings: dict[str, Any], num_classes: int = 0, towers: dict[str, Any] | None = None) -> Method:
    """A method with the settings of an earlier run, ready to take that run's weights.

    towers: the `made_of` of its model; its towers are built from that and nothing is fetched. Left out, they are those
    that the settings name, with their weights.
    """
    config = config_class(name)().replace(**settings)
    return model_class(name)(config, num_classes, **{part: from_spec(spec) for part, spec in (towers or {}).items()})


def _part(name: str, which: int) -> Any:
    """The model (0) or the settings (1) of a method."""
    if name not in METHODS:
        for module in filter(None, os.environ.get("REIDLIB_METHODS", "").split(",")):
            import_module(module.strip())
    if name not in METHODS:
        raise ConfigError(
            f"There is no method {name!r}; {nearest(name, METHODS)} (REIDLIB_METHODS names modules with others)."
        )
    found = METHODS[name][which]
    return getattr(import_module(f"reidlib.methods.{found[0]}"), found[1]) if isinstance(found, tuple) else found
