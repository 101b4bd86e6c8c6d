"""A gallery: pictures on the disk, their embeddings, and how to encode many of them without losing work."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from reidlib import weights
from reidlib.data.images import open_image
from reidlib.data.walk import SUFFIXES, find_pictures
from reidlib.errors import ConfigError, DataError
from reidlib.methods.base import Method
from reidlib.paths import inside, write_json
from reidlib.retrieval.embedder import Embedder
from reidlib.retrieval.index import MANIFEST, GalleryIndex, save_array, write_manifest

PROGRESS = "progress.json"
QUIET = 2_000  # so few pictures need no progress bar


@dataclass
class Gallery:
    """An index (`GalleryIndex` or `QdrantIndex`) whose metadata name pictures ("image") relative to `root`."""

    index: GalleryIndex
    root: Path
    _thumbnails: object = field(init=False, repr=False)

    def __post_init__(self):
        self.root = Path(self.root)
        self._thumbnails = lru_cache(maxsize=4_096)(self._thumbnail)

    @classmethod
    def encode(cls, model: Method, table: pd.DataFrame, root: Path, batch_size: int = 64) -> "Gallery":
        """Encodes the pictures of a table (column `image`, the others become metadata) in memory."""
        embedder = Embedder(model)
        parts = []
        for start in tqdm(range(0, len(table), batch_size), "encoding", disable=None if len(table) > QUIET else True):
            names = table["image"].iloc[start : start + batch_size]
            parts.append(embedder.images([open_image(inside(root, name)) for name in names]).numpy())
        if not parts:
            raise DataError(f"The gallery under {root} is empty; expected at least one picture.")
        return cls(GalleryIndex(np.concatenate(parts), table), root)

    def __len__(self) -> int:
        return len(self.index)

    def image(self, i: int) -> str:
        """The picture's path relative to the root."""
        return self.index.metadata[i]["image"]

    def open(self, i: int) -> Image.Image:
        return open_image(inside(self.root, self.image(i)))

    def thumbnail(self, i: int) -> bytes:
        """A JPEG at most 160 x 224 pixels; the latest few thousand are kept."""
        return self._thumbnails(i)

    def _thumbnail(self, i: int) -> bytes:
        picture, out = self.open(i), BytesIO()
        scale = min(160 / picture.width, 224 / picture.height)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture.resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=85)
        return out.getvalue()


def encode_folder(
    model: Method,
    root: Path,
    folder: Path,
    paths: Sequence[str] | None = None,
    batch_size: int = 64,
    shards: int = 0,
) -> Gallery:
    """Encodes the pictures under `root` into `folder`, and goes on where it stopped when called again.

    A run killed at any moment loses at most one batch and ends with the same bytes. Another model, picture or batch
    size starts afresh; a finished folder is only read. Pictures that cannot be read are left out with a warning.
    shards: puts together what so many processes did with `encode_shard`, to the same bytes, and does what they left.
    """
    root, folder = Path(root), Path(folder)
    paths = _pictures(root, paths)
    folder.mkdir(parents=True, exist_ok=True)
    stamp = _stamp(model, root, paths, batch_size)
    manifest = folder / MANIFEST
    if not (manifest.exists() and _read(manifest).get("stamp") == stamp):
        if shards:
            unreadable = _join_shards(model, root, folder, paths, batch_size, shards, stamp)
        else:
            unreadable = _encode_rows(model, root, folder, paths, batch_size, stamp)
        _finish(folder, paths, unreadable, stamp)
        for number in range(shards):
            shutil.rmtree(_shard(folder, number, shards), ignore_errors=True)
    return Gallery(GalleryIndex.load(folder), root)


def encode_shard(
    model: Method,
    root: Path,
    folder: Path,
    number: int,
    shards: int,
    paths: Sequence[str] | None = None,
    batch_size: int = 64,
) -> None:
    """Encodes part `number` (from 0) of `shards` of a folder, for `encode_folder` with these arguments to put together.

    For several shells, the jobs of an array or the processes of torchrun, each with a number of its own; one that was
    killed goes on where it stopped.
    """
    if not 0 <= number < shards:
        raise ConfigError(f"There is no shard {number} of {shards}; they count from 0.")
    root, paths = Path(root), _pictures(Path(root), paths)
    part = _slices(len(paths), batch_size, shards)[number]
    _encode_shard(model, root, _shard(Path(folder), number, shards), paths[part], batch_size)


def _encode_shard(model: Method, root: Path, folder: Path, paths: list[str], batch_size: int) -> tuple[list[int], Path]:
    """The rows of the unreadable among `paths`, and the file that holds the embeddings of the others."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = _stamp(model, root, paths, batch_size)
    return _encode_rows(model, root, folder, paths, batch_size, stamp), folder / f"{stamp}.npy"


def _join_shards(
    model: Method, root: Path, folder: Path, paths: list[str], batch_size: int, shards: int, stamp: str
) -> list[int]:
    """`_encode_rows` from shards, of which those that are done are only read."""
    unreadable, arrays = [], []
    for number, part in enumerate(_slices(len(paths), batch_size, shards)):
        missing, file = _encode_shard(model, root, _shard(folder, number, shards), paths[part], batch_size)
        unreadable += [part.start + row for row in missing]
        if file.exists():
            arrays.append((part, np.load(file, mmap_mode="r")))
    if arrays:
        rows = np.zeros((len(paths), arrays[0][1].shape[1]), np.float32)
        for part, array in arrays:
            rows[part] = array
        save_array(folder / f"{stamp}.npy", rows)
    return unreadable


def _shard(folder: Path, number: int, shards: int) -> Path:
    return folder / f"shard-{number}-of-{shards}"


def _slices(count: int, batch_size: int, shards: int) -> list[slice]:
    """Shares of `count` rows, in order and in whole batches, so that no batch is other than it would be in one go."""
    share = -(-count // (batch_size * shards)) * batch_size
    return [slice(min(n * share, count), min((n + 1) * share, count)) for n in range(shards)]


def _pictures(root: Path, paths: Sequence[str] | None) -> list[str]:
    paths = find_pictures(root)[0] if paths is None else list(paths)
    if not paths:
        raise DataError(f"{root} holds no picture; expected files ending in {', '.join(SUFFIXES)}.")
    return paths


def _encode_rows(model: Method, root: Path, folder: Path, paths: list[str], batch_size: int, stamp: str) -> list[int]:
    embedder, state, rows = Embedder(model), folder / PROGRESS, folder / f"{stamp}.npy"
    progress = _read(state)
    if progress.get("stamp") != stamp or not rows.exists():
        progress = {"stamp": stamp, "done": 0, "unreadable": []}
    starts = range(progress["done"], len(paths), batch_size)
    for start in tqdm(starts, "encoding", disable=None if len(paths) > QUIET else True):
        batch = range(start, min(start + batch_size, len(paths)))
        pictures = {row: picture for row in batch if (picture := _open(root, paths[row])) is not None}
        if pictures:
            found = embedder.images(list(pictures.values())).numpy()
            _write_rows(rows, (len(paths), found.shape[1]), list(pictures), found)
        missing = [row for row in batch if row not in pictures]
        progress = {**progress, "done": batch.stop, "unreadable": progress["unreadable"] + missing}
        write_json(state, progress)  # after the rows are on the disk: what it counts as done is done
    return progress["unreadable"]


def _write_rows(path: Path, shape: tuple[int, int], rows: list[int], found: np.ndarray) -> None:
    """Writes some rows of the array in a file, through the file: on a full disk, writing to a map kills the process."""
    try:
        array = _rows_file(path, shape)
        with path.open("r+b") as out:
            for row, embedding in zip(rows, found, strict=True):
                out.seek(array.offset + row * array.strides[0])
                out.write(embedding.tobytes())
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise DataError(f"The embeddings {path} could not be written ({error.strerror or error}).") from error


def _rows_file(path: Path, shape: tuple[int, int]) -> np.memmap:
    try:
        array = np.lib.format.open_memmap(path, mode="r+")
        if array.shape == shape:
            return array
    except (FileNotFoundError, ValueError):  # none yet, or killed while its first bytes were written
        pass
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)


def _finish(folder: Path, paths: list[str], unreadable: list[int], stamp: str) -> None:
    if len(unreadable) == len(paths):
        raise DataError(f"None of the {len(paths)} pictures for {folder} can be read.")
    name, keep = f"{stamp}.npy", np.setdiff1d(np.arange(len(paths)), unreadable)
    if unreadable:
        first = paths[unreadable[0]]
        warnings.warn(
            f"{len(unreadable)} of {len(paths)} pictures cannot be read and are left out, {first} first.", stacklevel=3
        )
        name = f"{stamp}-readable.npy"
        save_array(folder / name, np.load(folder / f"{stamp}.npy", mmap_mode="r")[keep])
    write_manifest(folder, name, [{"image": paths[row]} for row in keep], stamp=stamp)
    (folder / PROGRESS).unlink(missing_ok=True)


def _open(root: Path, path: str) -> Image.Image | None:
    try:
        return open_image(inside(root, path))
    except DataError:
        return None


def _read(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _stamp(model: Method, root: Path, paths: list[str], batch_size: int) -> str:
    about = f"{model.name} {batch_size} {model.image_size} {weights.fingerprint(model)}"
    digest = hashlib.blake2b(about.encode())
    for path in paths:
        file = inside(root, path)
        status = file.stat() if file.exists() else None
        digest.update(f"\0{path} {status and (status.st_size, status.st_mtime_ns)}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]
