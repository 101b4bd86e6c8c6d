"""Reads one picture the same way everywhere, and keeps many of them decoded and resized in one memory-mapped file."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from reidlib import paths as places
from reidlib.errors import DataError

try:
    import fcntl
except ImportError:  # Windows: two processes that fill one cache do the work twice, with the same result
    fcntl = None

MAX_PIXELS = 64_000_000
# Formats decoded by Pillow itself: EPS, for one, would start a program to interpret a stranger's file.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
# Full scales a deep picture may use; beyond them its own brightest value is white.
FULL_SCALES = {"I": (65535.0,), "F": (1.0, 255.0, 65535.0)}
CHUNK = 256
MANY = 2000


def open_image(source: str | Path | bytes | BinaryIO) -> Image.Image:
    """The picture in a file, an upload's bytes or an open binary file, as 8-bit RGB the right way up.

    EXIF rotation is applied, deep greys are scaled to 8 bits, transparency is laid on white, and an animation gives
    its first frame. Raises DataError when it is missing, empty, truncated, no picture or above 64 megapixels.
    """
    name = str(source) if isinstance(source, str | Path) else "the uploaded file"
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{name} is {width} x {height} pixels, above the limit of {MAX_PIXELS // 10**6} megapixels."
                )
            image.load()
            with suppress(Exception):  # damaged EXIF does not spoil a picture that is otherwise whole
                image = ImageOps.exif_transpose(image)
            return _as_rgb(image)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist; expected a picture.") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is empty or no picture; expected one of {', '.join(FORMATS)}.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} is above the limit of {MAX_PIXELS // 10**6} megapixels.") from error
    except Exception as error:  # a damaged file can make a decoder raise almost anything
        raise DataError(f"{name} cannot be read as a picture ({type(error).__name__}: {error}).") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    kind = image.mode.split(";")[0]
    if kind in FULL_SCALES:
        values = np.nan_to_num(np.asarray(image, dtype=np.float32)).clip(min=0)
        top = float(values.max())
        white = next((scale for scale in FULL_SCALES[kind] if top <= scale), top)
        image = Image.fromarray((values * (255 / white)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


class PixelCache:
    """Pictures of one data set at one size: `cache[indices] -> uint8 (B, 3, H, W)`, indices into `paths` as given.

    Filled once (Pillow's bicubic, which filters when it shrinks) and read through the page cache ever after. The
    file starts with a ledger of (bytes, modification time) for each picture, entered once its pixels are on the
    disk: so a killed run goes on where it stopped, a changed picture is done again, and nothing half-written counts.
    `cache.index[path]` is an index of a picture by name. Raises DataError, after the rest is cached, naming the
    pictures that cannot be read; also where the disk has too little room.
    """

    def __init__(self, root: Path, paths: Sequence[str], size: tuple[int, int], folder: Path | None = None):
        if not len(paths):
            raise DataError(f"No pictures of {root} were given to cache; expected at least one.")
        self.root, self.paths, self.size = Path(root), list(paths), tuple(size)
        self.folder = Path(folder or places.cache_dir())
        unique = {path: row for row, path in enumerate(dict.fromkeys(self.paths))}
        self._row = np.array([unique[path] for path in self.paths])
        self.index = {path: position for position, path in reversed(list(enumerate(self.paths)))}
        self.file = self.folder / self._name(unique)
        self.nbytes = self._header(unique) + len(unique) * self._row_bytes
        self._fill(list(unique))
        shape = (len(unique), 3, *self.size)
        self._pixels = np.memmap(self.file, np.uint8, mode="r", offset=self._header(unique), shape=shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices) -> torch.Tensor:
        return torch.from_numpy(np.take(self._pixels, self._row[indices], axis=0))

    def __reduce__(self):
        # A worker process maps the file itself; pickling the map would copy every pixel.
        return PixelCache, (self.root, self.paths, self.size, self.folder)

    @staticmethod
    def describe(paths: Sequence[str], size: tuple[int, int]) -> str:
        """What caching these pictures would take, in words, before anything is done."""
        count = len(set(paths))
        return f"{count:,} pictures at {size[0]} x {size[1]} take {count * 3 * size[0] * size[1] / 1e9:.2f} GB."

    @property
    def _row_bytes(self) -> int:
        return 3 * self.size[0] * self.size[1]

    @staticmethod
    def _header(pictures) -> int:
        return 16 * len(pictures)

    def _name(self, pictures) -> str:
        words = "\0".join([str(self.root.resolve()), str(self.size), *pictures])
        digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return f"{self.root.resolve().name}-{self.size[0]}x{self.size[1]}-{digest}.pixels"

    def _fill(self, pictures: list[str]) -> None:
        files = [places.inside(self.root, picture) for picture in pictures]
        stamps = np.array([_stamp(file) for file in files], dtype=np.int64)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file.touch()
            with self.file.open("r+b") as out:
                if fcntl:
                    fcntl.flock(out, fcntl.LOCK_EX)
                broken = self._write_missing(out, files, stamps)
        except OSError as error:
            raise DataError(f"The picture cache {self.file} could not be written ({error}).") from error
        if broken:
            first = " ".join(str(error) for error in broken[:3])
            raise DataError(f"{len(broken):,} of {len(files):,} pictures cannot be read; the first: {first}")

    def _write_missing(self, out: BinaryIO, files: list[Path], stamps: np.ndarray) -> list[DataError]:
        """Decodes the pictures that the ledger does not hold as they are now; returns the errors of unreadable ones."""
        header = self._header(files)
        ledger = np.frombuffer(out.read(header).ljust(header, b"\0"), np.int64).reshape(-1, 2)
        written = (os.fstat(out.fileno()).st_size - header) // self._row_bytes
        never = stamps[:, 0] == 0  # no file, or an empty one
        missing = np.flatnonzero((ledger != stamps).any(1) | (np.arange(len(files)) >= written) | never)
        need, free = len(missing) * self._row_bytes, shutil.disk_usage(self.folder).free
        if need > free:
            raise DataError(
                f"The picture cache needs {need / 1e9:.2f} GB in {self.folder}, where {free / 1e9:.2f} GB are free; "
                "make room, or set REIDLIB_OUTPUTS to a folder on a larger disk."
            )
        broken = []
        bar = tqdm(total=len(missing), desc="decoding", leave=False, disable=None if len(missing) > MANY else True)
        with ThreadPoolExecutor() as pool, bar:
            for rows in np.split(missing, range(CHUNK, len(missing), CHUNK)):
                done = []
                for row, pixels in zip(rows, pool.map(self._decode, [files[row] for row in rows]), strict=True):
                    if isinstance(pixels, DataError):
                        broken.append(pixels)
                    else:
                        _write(out, header + int(row) * self._row_bytes, pixels)
                        done.append(row)
                out.flush()
                os.fsync(out.fileno())  # the pixels first: an entry in the ledger vouches for them
                for row in done:
                    _write(out, 16 * int(row), stamps[row].tobytes())
                out.flush()
                bar.update(len(rows))
        return broken

    def _decode(self, file: Path) -> bytes | DataError:
        try:
            image = open_image(file).resize(self.size[::-1], Image.Resampling.BICUBIC)
        except DataError as error:
            return error
        return np.asarray(image).transpose(2, 0, 1).tobytes()


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return 0, 0  # opening it says what is wrong
    return status.st_size, status.st_mtime_ns


def _write(out: BinaryIO, offset: int, data: bytes) -> None:
    out.seek(offset)
    out.write(data)
