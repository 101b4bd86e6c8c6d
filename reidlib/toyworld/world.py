"""The toy world on disk: all data sets, written whole or not at all."""

import contextlib
import json
import random
import tempfile
from pathlib import Path

from reidlib.errors import DataError
from reidlib.toyworld import layouts

VERSION = 3
MARKER = "toy_world.json"
SIDE_WORLD, MARKET_WORLD, MALS_PAIRS = 40, 30, 600  # people (pairs) for every 300 identities


def make(root: Path | str, identities: int = 300, seed: int = 0) -> Path:
    """Write all toy data sets below `root` and return it; nothing is done when the same world is there already.

    The files depend on `identities`, `seed` and VERSION only. They are written in a sibling folder that is renamed
    when it is complete, so an interruption leaves no world and two processes may call at once. Raises DataError when
    `root` holds something that is not a toy world.
    """
    root = Path(root)
    made_from = {"version": VERSION, "identities": identities, "seed": seed}
    if _marker(root) == made_from:
        return root
    if _marker(root) is None and root.exists() and any(root.iterdir()):
        raise DataError(f"{root} is not a toy world; expected an empty or missing folder, or one with {MARKER}.")
    if identities < 12:
        raise DataError(f"identities={identities} is too few for the splits of a toy world; expected at least 12.")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        world = Path(scratch, "world")
        _write_all(world, identities, seed)
        (world / MARKER).write_text(json.dumps(made_from) + "\n")
        _put_in_place(world, root, made_from)
    return root


def _marker(root: Path) -> dict | None:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((root / MARKER).read_text())
    return None


def _put_in_place(world: Path, root: Path, made_from: dict) -> None:
    """Rename `world` to `root`, moving another world out of the way; another process may win the race."""
    if _marker(root) != made_from:
        with contextlib.suppress(FileNotFoundError):
            root.rename(world.with_name("replaced"))
    try:
        world.rename(root)
    except OSError:
        if _marker(root) != made_from:
            raise


def _write_all(world: Path, identities: int, seed: int) -> None:
    taken: layouts.Worn = set()

    def side(size: int) -> int:
        return max(8, round(size * identities / 300))

    val, test = round(identities * 2 / 15), round(identities / 5)
    splits = {"train": identities - val - test, "val": val, "test": test}
    rng = random.Random(f"toy world {seed}")
    layouts.cuhk_and_chat(world, splits, taken, rng)
    layouts.icfg(world / "ICFG-PEDES", side(SIDE_WORLD), taken, rng)
    layouts.rstp(world / "RSTPReid", side(SIDE_WORLD), taken, rng)
    layouts.mals(world / "MALS", side(MALS_PAIRS), taken, rng)
    layouts.pku(world / "PKU-Sketch", side(SIDE_WORLD), taken, rng)
    layouts.market(world / "Market-Sketch-1K", side(MARKET_WORLD), taken, rng)
