"""The toy world on disk: all data sets, written whole or not at all."""

import contextlib
import json
import random
import tempfile
from pathlib import Path

from reidlib.errors import DataError
from reidlib.toyworld import layouts
from reidlib.toyworld.album import Album

VERSION = 4
MARKER = "toy_world.json"
PEOPLE = 1000  # who train, in the main data set
DEFAULT = {"version": VERSION, "people": PEOPLE, "seed": 0}
VAL, TEST = (1 / 5, 40), (3 / 10, 60)  # people for every one who trains, and the most of them
SIDE, MARKET, MALS = (1 / 5, 40), (3 / 20, 30), (3, 600)  # people (of MALS pairs) of another data set, likewise


def make(root: Path | str, people: int | None = None, seed: int | None = None) -> Path:
    """Write all toy data sets below `root` and return it; nothing is done when such a world is there already.

    people: how many train in CUHK-PEDES and ChatPedes; 40 more are their val and 60 their test split, and each of the
    other data sets has some tens of its own (fewer where `people` is below 200). seed: another one is another world, of
    other people, on which a conclusion can be tried again. Unsaid, they are PEOPLE and 0 in a new world, and a world of
    any size or seed stays. The files depend on these, and on VERSION, only. They are written in a sibling folder that
    is renamed when it is complete, so an interruption leaves no world and two processes may call at once.
    Raises DataError when `root` holds something that is not a toy world.
    """
    root = Path(root)
    there = _marker(root)
    told = {key: value for key, value in (("people", people), ("seed", seed)) if value is not None}
    made_from = (there if there and there.get("version") == VERSION else DEFAULT) | told
    if there == made_from:
        return root
    if there is None and root.exists() and any(root.iterdir()):
        raise DataError(f"{root} is not a toy world; expected an empty or missing folder, or one with {MARKER}.")
    if made_from["people"] < 8:
        raise DataError(f"people={made_from['people']} is too few for the splits of a toy world; expected at least 8.")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        world = Path(scratch, "world")
        _write_all(world, made_from["people"], made_from["seed"])
        (world / MARKER).write_text(json.dumps(made_from) + "\n")
        _put_in_place(world, root, made_from)
    return root


def _marker(root: Path) -> dict | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads((root / MARKER).read_text()))
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


def _write_all(world: Path, people: int, seed: int) -> None:
    def size(share: float, most: int, least: int = 8) -> int:
        return min(most, max(least, round(share * people)))

    def rng(name: str) -> random.Random:
        return random.Random(f"toy world {seed} {name}")

    taken: layouts.Worn = set()
    album = Album()
    splits = {"train": people, "val": size(*VAL, least=2), "test": size(*TEST, least=2)}
    cuhk = layouts.cuhk_and_chat(world, splits, taken, rng("CUHK-PEDES"), album)
    icfg = layouts.icfg(world / "ICFG-PEDES", size(*SIDE), taken, rng("ICFG-PEDES"), album)
    layouts.rstp(world / "RSTPReid", size(*SIDE), taken, rng("RSTPReid"), album)
    layouts.mals(world / "MALS", size(*MALS), taken, rng("MALS"), album)
    layouts.pku(world / "PKU-Sketch", size(*SIDE), taken, rng("PKU-Sketch"), album)
    layouts.market(world / "Market-Sketch-1K", size(*MARKET), taken, rng("Market-Sketch-1K"), album)
    layouts.orbench(world / "ORBench", size(*SIDE, least=12), taken, rng("ORBench"), album)
    few = {split: [p for p in pictures if p.pid < pictures[0].pid + size(*SIDE)] for split, pictures in cuhk.items()}
    both = {"CUHK-PEDES": few, "ICFG-PEDES": icfg}
    layouts.interactive(world / "Interactive-PEDES", both, rng("Interactive-PEDES"), album)
    album.draw()
