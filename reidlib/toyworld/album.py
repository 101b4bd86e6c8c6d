"""Pictures to be drawn, and drawing them: by several processes where there are many, the same whoever draws."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reidlib.toyworld import draw, sketch
from reidlib.toyworld.people import Person
from reidlib.toyworld.shots import Shot

A_SHARE = 1000  # pictures: fewer are drawn sooner than another process has started
WORKER = "from reidlib.toyworld.album import draw_share; draw_share()"


@dataclass(frozen=True)
class Drawing:
    """A picture to be: the photo that `shot` describes, or what `hand` draws of it with a pencil led by `seed`.

    hand: empty for a photo, "infrared" for a photo by night, or one of `sketch.HANDS`.
    """

    path: Path
    person: Person
    shot: Shot
    hand: str = ""
    seed: int = 0

    def save(self) -> None:
        """Draw it and write it; the suffix says whether as a JPEG or a PNG."""
        if self.hand in ("", "infrared"):
            picture = draw.photo(self.person, self.shot, infrared=bool(self.hand))
        else:
            picture = sketch.draw(self.person, self.shot, self.hand, self.seed)
        options = {"quality": 92} if self.path.suffix == ".jpg" else {"compress_level": 1, "compress_type": 3}
        picture.save(self.path, **options)


class Album:
    """All pictures of a world: first listed, then drawn at once, each once; data sets that share one link to it."""

    def __init__(self):
        self.drawings: list[Drawing] = []
        self.links: list[tuple[Path, Path]] = []

    def add(self, path: Path, person: Person, shot: Shot, hand: str = "", seed: int = 0) -> None:
        self.drawings.append(Drawing(path, person, shot, hand, seed))

    def link(self, source: Path, target: Path) -> None:
        """The picture `source` of this album lies at `target` too."""
        self.links.append((source, target))

    def draw(self) -> None:
        """Write all pictures and links."""
        for folder in {drawing.path.parent for drawing in self.drawings} | {path.parent for _, path in self.links}:
            folder.mkdir(parents=True, exist_ok=True)
        _draw(self.drawings)
        for source, target in self.links:
            try:
                os.link(source, target)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, target)


def _draw(drawings: list[Drawing]) -> None:
    """Draws in this process and, of many pictures, a part in others.

    Others are started as commands of their own: a fork is unsafe beside threads, and a spawned process would run the
    caller's script again. What one of them does not finish is drawn here.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = max(1, min(cores, len(drawings) // A_SHARE))
    shares = [drawings[i::processes] for i in range(processes)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    others: list[subprocess.Popen] = []
    try:
        for share in shares[1:]:
            other = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, env=environment)
            others.append(other)
            pickle.dump(share, other.stdin)
            other.stdin.close()
        _save(shares[0])
        for share, other in zip(shares[1:], others, strict=True):
            if other.wait():
                _save(share)
    finally:
        for other in others:
            other.kill()
            other.wait()


def _save(drawings: Iterable[Drawing]) -> None:
    for drawing in drawings:
        drawing.save()


def draw_share() -> None:
    """What a helping process does: draw the pictures that it reads from its standard input."""
    _save(pickle.load(sys.stdin.buffer))
