"""The methods by name; each lives in one file and is imported when it is first asked for."""

from importlib import import_module
from typing import Any

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


def create(name: str, settings: dict[str, Any], num_classes: int = 0) -> Method:
    """A method with the settings of an earlier run and no weights fetched, ready to take that run's weights."""
    config = config_class(name)().replace(**{**settings, "pretrained": ""})
    return _part(name, 1)(config, num_classes)


def _part(name: str, which: int) -> Any:
    if name not in METHODS:
        raise ConfigError(f"There is no method {name!r}; {nearest(name, METHODS)}.")
    return getattr(import_module(f"reidlib.methods.{METHODS[name][0]}"), METHODS[name][which])
