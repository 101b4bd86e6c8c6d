"""A gallery: pictures on the disk, their embeddings, and how to encode many of them without losing work."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from reidlib.data.images import open_image
from reidlib.errors import DataError
from reidlib.methods.base import Method
from reidlib.paths import inside
from reidlib.retrieval.embedder import Embedder
from reidlib.retrieval.index import MANIFEST, GalleryIndex, write_json, write_manifest

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
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


def find_pictures(root: Path) -> list[str]:
    """The pictures under a folder, as sorted paths relative to it."""
    files = (file for file in Path(root).rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(file.relative_to(root).as_posix() for file in files)


def encode_folder(
    model: Method, root: Path, folder: Path, paths: Sequence[str] | None = None, batch_size: int = 64
) -> Gallery:
    """Encodes the pictures under `root` into `folder`, and goes on where it stopped when called again.

    A run killed at any moment loses at most one batch and ends with the same bytes. Another model, picture or batch
    size starts afresh; a finished folder is only read. Pictures that cannot be read are left out with a warning.
    For several processes, give each a slice of the paths and a folder of its own, then `GalleryIndex.add` them up.
    """
    root, folder = Path(root), Path(folder)
    paths = find_pictures(root) if paths is None else list(paths)
    if not paths:
        raise DataError(f"{root} holds no picture; expected files ending in {', '.join(SUFFIXES)}.")
    folder.mkdir(parents=True, exist_ok=True)
    stamp = _stamp(model, root, paths, batch_size)
    manifest = folder / MANIFEST
    if not (manifest.exists() and _read(manifest).get("stamp") == stamp):
        unreadable = _encode_rows(model, root, folder, paths, batch_size, stamp)
        _finish(folder, paths, unreadable, stamp)
    return Gallery(GalleryIndex.load(folder), root)


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
            array = _rows_file(rows, (len(paths), found.shape[1]))
            array[list(pictures)] = found
            array.flush()
        missing = [row for row in batch if row not in pictures]
        progress = {**progress, "done": batch.stop, "unreadable": progress["unreadable"] + missing}
        write_json(state, progress)  # after the rows are on the disk: what it counts as done is done
    return progress["unreadable"]


def _rows_file(path: Path, shape: tuple[int, int]) -> np.ndarray:
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
        np.save(folder / name, np.load(folder / f"{stamp}.npy", mmap_mode="r")[keep])
    write_manifest(folder, name, [{"image": paths[row]} for row in keep], stamp=stamp)
    (folder / PROGRESS).unlink(missing_ok=True)


def _open(root: Path, path: str) -> Image.Image | None:
    try:
        return open_image(inside(root, path))
    except DataError:
        return None


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _stamp(model: Method, root: Path, paths: list[str], batch_size: int) -> str:
    digest = hashlib.blake2b(f"{model.name} {batch_size} {model.image_size}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for path in paths:
        file = inside(root, path)
        status = file.stat() if file.exists() else None
        digest.update(f"\0{path} {status and (status.st_size, status.st_mtime_ns)}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]
