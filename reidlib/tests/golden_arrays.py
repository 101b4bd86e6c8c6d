"""Arrays that the official implementations computed, as tensors, for the golden tests."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def golden_dir() -> Path:
    """The folder named by REIDLIB_GOLDEN, or the copy kept beside the tests."""
    return Path(os.environ.get("REIDLIB_GOLDEN") or Path(__file__).parent / "golden")


@cache
def arrays(name: str) -> dict[str, Tensor]:
    """All arrays of `<name>.npz`: halves as float32, whole numbers as int64, scalars as 0-d tensors."""
    with np.load(golden_dir() / f"{name}.npz") as file:
        found = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
    return {key: value.float() if value.is_floating_point() else value.long() for key, value in found.items()}


def under(found: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The arrays whose name starts with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}


def wave_embedding(rows: int, width: int) -> Tensor:
    """The token embedding that is not stored: 0.02 sin(0.37 i + 1.3 j + 0.011 i j)."""
    i, j = np.arange(rows)[:, None], np.arange(width)[None]
    return torch.from_numpy((0.02 * np.sin(0.37 * i + 1.3 * j + 0.011 * i * j)).astype(np.float32))
