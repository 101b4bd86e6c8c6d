"""Where things lie: data, notebooks, outputs and caches, and the check that a path stays inside its root."""

import os
from pathlib import Path, PurePosixPath

from reidlib.errors import DataError

CHECKOUT = Path(__file__).resolve().parent.parent


def data_dir() -> Path:
    """The folder of the data sets: `REIDLIB_DATA`, else `data/` of the checkout."""
    return Path(os.environ.get("REIDLIB_DATA", CHECKOUT / "data"))


def outputs_dir() -> Path:
    """The folder of runs: `REIDLIB_OUTPUTS`, else `outputs/` of the checkout."""
    return Path(os.environ.get("REIDLIB_OUTPUTS", CHECKOUT / "outputs"))


def notebooks_dir() -> Path:
    return CHECKOUT / "notebooks"


def cache_dir() -> Path:
    """Decoded pictures and prepared backbones; safe to delete at any time."""
    return outputs_dir() / ".cache"


def run_dir(run: str) -> Path:
    """`outputs/<run>`, created. Raises DataError when the name would leave `outputs/`."""
    folder = inside(outputs_dir(), run)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def inside(root: Path, relative: str) -> Path:
    """`root / relative`, refused with DataError when it is absolute or climbs out of `root`.

    The check is on the words of the path, so it costs no look at the disk and a link that the owner of the data
    placed inside the root still works.
    """
    pure = PurePosixPath(str(relative).replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or pure.parts[0][1:2] == ":":
        raise DataError(f"The path {relative!r} leaves its folder {root}; expected a path relative to it.")
    return Path(root, *pure.parts)
