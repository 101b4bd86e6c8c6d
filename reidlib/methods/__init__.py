"""The methods by name; each lives in one file and is imported when it is first asked for."""

from importlib import import_module
from typing import Any

from reidlib.backbones import from_spec
from reidlib.config import Config, nearest
from reidlib.errors import ConfigError
from reidlib.methods.base import Method

# name -> (module, model, settings)
METHODS = {
    "clip": ("clip", "Clip", "ClipConfig"),
    "cfine": ("cfine", "CFine", "CFineConfig"),
    "cffa": ("cffa", "CFFA", "CFFAConfig"),
    "interactreid-1": ("interactreid", "InteractReIDAdapt", "AdaptConfig"),
    "interactreid": ("interactreid", "InteractReIDInvert", "InvertConfig"),
    "diana-1": ("diana", "DiaNAPretrain", "DianaPretrainConfig"),
    "diana": ("diana", "DiaNA", "DianaConfig"),
}


def config_class(name: str) -> type[Config]:
    """The settings class of a method; ConfigError, naming the nearest, where there is none of that name."""
    return _part(name, 2)


def create(name: str, settings: dict[str, Any], num_classes: int = 0, towers: dict[str, Any] | None = None) -> Method:
    """A method with the settings of an earlier run, ready to take that run's weights.

    towers: the `made_of` of its model; its towers are built from that and nothing is fetched. Left out, they are those
    that the settings name, with their weights.
    """
    config = config_class(name)().replace(**settings)
    return _part(name, 1)(config, num_classes, **{part: from_spec(spec) for part, spec in (towers or {}).items()})


def _part(name: str, which: int) -> Any:
    if name not in METHODS:
        raise ConfigError(f"There is no method {name!r}; {nearest(name, METHODS)}.")
    return getattr(import_module(f"reidlib.methods.{METHODS[name][0]}"), METHODS[name][which])
