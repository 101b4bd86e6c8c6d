"""A gallery: pictures on the disk, their embeddings, and how to encode many of them without losing work."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw

from reidlib import weights
from reidlib.data.images import open_image
from reidlib.data.walk import SUFFIXES, find_pictures
from reidlib.errors import DataError
from reidlib.evaluation import Encoder
from reidlib.methods.base import Method
from reidlib.paths import inside, write_json
from reidlib.progress import tqdm
from reidlib.retrieval.index import GalleryIndex
from reidlib.rowstore import RowStore

AHEAD = 4  # batches of pictures decoded while the model is at work
QUIET = 2_000  # so few pictures need no progress bar
THUMBNAIL = (160, 224)


@dataclass
class Gallery:
    """An index (`GalleryIndex` or a `Store`) whose metadata name pictures ("image") relative to `root`.

    about: which model encoded it, {"model": name, "stamp": see `stamp_of`}, as far as it is known. unreadable: the
    pictures that were left out, as they cannot be read.
    """

    index: GalleryIndex
    root: Path
    about: dict = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    _thumbnails: Callable = field(init=False, repr=False)

    def __post_init__(self):
        self.root = Path(self.root)
        self._thumbnails = lru_cache(maxsize=4_096)(self._thumbnail)

    @classmethod
    def encode(
        cls, model: Method, table: pd.DataFrame, root: Path, folder: Path | None = None, batch_size: int = 64
    ) -> "Gallery":
        """Encodes the pictures of a table: column `image`, relative to `root`; the others become metadata.

        folder: keeps the embeddings there, in files of this model's own. Called again, it encodes what is new or has
        changed since; killed at any moment, it goes on where it stopped, to the same bytes. Pictures that cannot be
        read are left out, with a warning. Raises DataError where none can.
        """
        root, paths = Path(root), table["image"].tolist()
        if not paths:
            raise DataError(f"The gallery under {root} is empty; expected at least one picture.")
        about = {"model": model.name, "stamp": stamp_of(model)}
        encoder = _PictureEncoder(model, root, paths, batch_size)
        embeddings = encoder.in_memory() if folder is None else encoder.on_disk(Path(folder), about)
        readable = ~np.isnan(embeddings[:, 0]) if embeddings.shape[1] else np.zeros(len(paths), bool)
        unreadable = [path for path, can_be_read in zip(paths, readable, strict=True) if not can_be_read]
        if unreadable:
            names = ", ".join(unreadable[:3]) + (", ..." if len(unreadable) > 3 else "")
            if not readable.any():
                raise DataError(f"None of the {len(paths):,} pictures under {root} can be read: {names}")
            warnings.warn(
                f"{len(unreadable):,} of {len(paths):,} pictures cannot be read and are left out: {names}", stacklevel=2
            )
            embeddings, table = embeddings[readable], table[readable]
        return cls(GalleryIndex(embeddings, table), root, about, unreadable)

    def __len__(self) -> int:
        return len(self.index)

    def image(self, i: int) -> str:
        """The picture's path relative to the root."""
        return self.index.rows([i])[0]["image"]

    def open(self, i: int) -> Image.Image:
        return open_image(inside(self.root, self.image(i)))

    def thumbnail(self, i: int) -> bytes:
        """A JPEG at most 160 x 224 pixels, a grey one where the picture is gone; the latest few thousand are kept."""
        return self._thumbnails(self.image(i))

    def _thumbnail(self, image: str) -> bytes:
        try:
            picture = open_image(inside(self.root, image))
        except DataError:
            picture = _placeholder()
        scale = min(THUMBNAIL[0] / picture.width, THUMBNAIL[1] / picture.height)
        size, out = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), BytesIO()
        picture.resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=85)
        return out.getvalue()


def encode_folder(model: Method, root: Path, folder: Path, batch_size: int = 64) -> Gallery:
    """The pictures under `root` as a gallery whose embeddings are kept in `folder` (see `Gallery.encode`)."""
    paths, faults = find_pictures(root)
    if not paths:
        raise DataError(f"{root} holds no picture; expected files ending in {', '.join(SUFFIXES)}.")
    for fault in faults:
        warnings.warn(fault, stacklevel=2)
    return Gallery.encode(model, pd.DataFrame({"image": paths}), root, folder, batch_size)


def stamp_of(model: Method) -> str:
    """Sixteen hexadecimal digits of all that decides an embedding: the weights, the settings, the preprocessing."""
    settings = {name: value for name, value in vars(model).items() if _is_setting(name, value)}
    about = (type(model).__module__, type(model).__qualname__, model.mean, model.std, model.image_size, model.config)
    return blake2b(f"{about} {settings} {weights.fingerprint(model)}".encode(), digest_size=8).hexdigest()


def decoded(model: Method, source: Path | bytes) -> torch.Tensor | None:
    """A picture as uint8 pixels (3, H, W) at the model's size; None where it cannot be read."""
    try:
        return model.resized(source)
    except DataError:
        return None


class _PictureEncoder:
    """Embeds pictures by their position in a list; a picture that cannot be read becomes a row of NaN."""

    def __init__(self, model: Method, root: Path, paths: Sequence[str], batch_size: int):
        self.encoder, self.paths, self.batch_size = Encoder(model, batch_size=batch_size), paths, batch_size
        self.files = [inside(root, path) for path in paths]

    def in_memory(self) -> np.ndarray:
        return self._rows(range(len(self.files)), hidden=None if len(self.files) > QUIET else True)

    def on_disk(self, folder: Path, about: dict) -> np.ndarray:
        store = RowStore(folder / about["stamp"], dtype=np.float32, stamp=about["stamp"])
        stamps = [_state(file) for file in self.files]
        store.fill(self.paths, stamps, self._made, batch_size=AHEAD * self.batch_size, what="encoding")
        if not (note := folder / f"{about['stamp']}.json").exists():
            write_json(note, about)
        rows = store.find(self.paths, stamps)
        if len(store) and np.array_equal(rows, np.arange(len(rows))):  # mapped, and in memory that torch may write to
            return np.memmap(store.file, store.dtype, mode="c", shape=(len(rows), *store.shape))
        found = np.full((len(rows), *(store.shape or (1,))), np.nan, np.float32)
        found[rows >= 0] = store[rows[rows >= 0]] if len(store) else 0
        return found

    def _made(self, positions: list[int]) -> tuple[list[int], np.ndarray]:
        rows = self._rows(positions)
        return (positions if rows.shape[1] else []), rows

    def _rows(self, positions: Sequence[int], hidden: bool | None = True) -> np.ndarray:
        """(n, D) float32; D is 0 where no picture can be read. hidden: tqdm's `disable`."""
        readable, found = [], []
        with tqdm(total=len(positions), desc="encoding", disable=hidden) as bar:
            for batch in self._batches(positions):
                pixels = [picture for picture in batch if picture is not None]
                if pixels:
                    found.append(self.encoder.images(pixels).cpu().numpy())
                readable += [picture is not None for picture in batch]
                bar.update(len(batch))
        if not found:
            return np.empty((len(positions), 0), np.float32)
        rows = np.full((len(positions), found[0].shape[1]), np.nan, np.float32)
        rows[readable] = np.concatenate(found)
        wrong = np.flatnonzero(np.array(readable) & ~np.isfinite(rows).all(1))
        if len(wrong):
            name, picture = self.encoder.model.name, self.files[positions[wrong[0]]]
            raise DataError(f"{name} embeds {picture} as numbers that are not finite; its weights may be damaged.")
        return rows

    def _batches(self, positions: Sequence[int]) -> Iterator[list[torch.Tensor | None]]:
        """Decoded pictures; threads are `AHEAD` batches ahead of the model, each with one picture at its full size."""
        waiting: deque[list[Future]] = deque()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(positions), self.batch_size):
                batch = positions[start : start + self.batch_size]
                waiting.append([pool.submit(decoded, self.encoder.model, self.files[i]) for i in batch])
                if len(waiting) > AHEAD:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]


def _is_setting(name: str, value: object) -> bool:
    plain = isinstance(value, str | bool | int | float | tuple)
    return plain and not name.startswith("_") and name not in ("training", "config", "reads", "trains_on")


def _state(file: Path) -> tuple[int, int]:
    """Size and time of change, zeros for a file that is not there."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _placeholder() -> Image.Image:
    """A grey picture with a cross, for one that cannot be shown."""
    picture = Image.new("RGB", (THUMBNAIL[0] // 2, THUMBNAIL[1] // 2), "#d0d4da")
    width, height = picture.size
    pen = ImageDraw.Draw(picture)
    for line in ((0, 0, width, height), (0, height, width, 0)):
        pen.line(line, fill="#8a919c", width=2)
    return picture
