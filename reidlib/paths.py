"""Where things lie, the check that a path stays inside its root, and writing files whole or not at all."""

import errno
import json
import os
import re
import reprlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from reidlib.errors import DataError, ReidError

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent
FIRST_NOTEBOOK = "00_start_here.ipynb"


def in_checkout() -> bool:
    """True where the package lies in a checkout of the project, False where it was installed without one."""
    return (CHECKOUT / "pyproject.toml").is_file()


def home() -> Path:
    """The folder that holds data/ and outputs/: the checkout, else the working folder.

    For a copy of the notebooks, which Jupyter runs in their own folder, it is the folder above.
    """
    if in_checkout():
        return CHECKOUT
    here = Path.cwd()
    return here.parent if (here / FIRST_NOTEBOOK).is_file() else here


def data_dir() -> Path:
    """The folder of the data sets: `REIDLIB_DATA`, else `data/` of the home."""
    return Path(os.environ.get("REIDLIB_DATA") or home() / "data").absolute()


def outputs_dir() -> Path:
    """The folder of runs: `REIDLIB_OUTPUTS`, else `outputs/` of the home."""
    return Path(os.environ.get("REIDLIB_OUTPUTS") or home() / "outputs").absolute()


def notebooks_dir() -> Path:
    """The notebooks: those of the checkout, else a copy in the working folder, else those inside the package."""
    beside = home() / "notebooks"
    return beside if (beside / FIRST_NOTEBOOK).is_file() else PACKAGE / "notebooks"


def cache_dir() -> Path:
    """Decoded pictures and prepared backbones; safe to delete at any time."""
    return outputs_dir() / ".cache"


def run_dir(run: str) -> Path:
    """`outputs/<run>`, created. Raises DataError when the name would leave `outputs/`."""
    folder = inside(outputs_dir(), run)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def inside(root: Path, relative: str) -> Path:
    """`root / relative`, refused with DataError when it is absolute, climbs out of `root`, or is no name of a file.

    The check is on the words of the path, so it costs no look at the disk and a link that the owner of the data
    placed inside the root still works.
    """
    pure = PurePosixPath(str(relative).replace("\\", "/"))
    drive = re.match(r"[A-Za-z]:", pure.parts[0]) if pure.parts else None  # `9:30.png` is a name, `C:/x` a way out
    drive = drive and (os.name == "nt" or drive[0] == pure.parts[0])
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or drive:
        raise DataError(f"The path {relative!r} leaves its folder {root}; expected a path relative to it.")
    if not all(map(_may_be_called, pure.parts)):
        raise DataError(
            f"The path {reprlib.repr(str(relative))} is longer, or has other characters, than file names may."
        )
    return Path(root, *pure.parts)


def _may_be_called(name: str) -> bool:
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return b"\0" not in encoded and len(encoded) <= 255 and "".join(name.splitlines()) == name  # messages are one line


@contextmanager
def written_whole(path: Path | str) -> Iterator[Path]:
    """Gives a path beside `path` to write to; when the block is done, that file takes the name `path` in one step.

    So a reader, and whoever comes after a crash or a full disk, finds the file as it was or as it is meant to be. What
    fails leaves nothing behind, a killed process at most `<name>.<process>.part`. Raises ReidError where the disk is
    full or forbids writing.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # several processes may write one file
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise ReidError(f"{path} could not be written ({reason}); what was there before is untouched.") from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes UTF-8, whole or not at all; bytes of file names that are no UTF-8 are written as they are."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def write_json(path: Path | str, data: object, **options: object) -> None:
    write_text(path, json.dumps(data, **options))


@contextmanager
def owned(lock: Path, what: object, wait: bool = False) -> Iterator[None]:
    """Makes this process the only one to write `what` until the block ends, however the process ends.

    lock: a file for the operating system's lock; it stays, empty. A second owner, a thread of this process too, waits
    or (`wait=False`) gets a ReidError.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+b")
    except OSError as error:
        raise ReidError(f"{what} could not be written ({error.strerror or error}).") from error
    with file:
        while not _lock(file):
            if not wait:
                raise ReidError(f"Another run is writing {what}; wait until it has ended, or choose another name.")
            time.sleep(0.05)
        yield  # closing the file gives the lock back


def _lock(file: BinaryIO) -> bool:
    """Takes the system's lock on an open file, if nobody has it."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True
