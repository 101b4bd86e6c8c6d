"""Reads one picture the same way everywhere, and keeps many of them decoded and resized in one file."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from reidlib.errors import ConfigError, DataError, UnreadableError
from reidlib.paths import cache_dir, inside
from reidlib.rowstore import RowStore

MAX_PIXELS = 64_000_000
# Formats decoded by Pillow itself: EPS, for one, would start a program to interpret a stranger's file.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
# Full scales a deep picture may use; beyond them its own brightest value is white.
FULL_SCALES = {"I": (65535.0,), "F": (1.0, 255.0, 65535.0)}
FINER = 4  # a JPEG is decoded at least so many times larger than it is needed; the decoder halves what is beyond
CHUNK = 256  # pictures between two writes of the store
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZES = ("squash", "shortest", "longest")


def open_image(source: str | Path | bytes | BinaryIO, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture in a file, an upload's bytes or an open binary file, as 8-bit RGB the right way up.

    EXIF rotation is applied, deep greys are scaled to 8 bits, transparency is laid on white, and an animation gives
    its first frame. Raises DataError when it is missing, empty, truncated, no picture or above 64 megapixels.
    size: (height, width) that it is going to be resized to; a JPEG more than eight times as large is decoded at 1/2,
    1/4 or 1/8 of its size (libjpeg's means of 2 x 2 pixels and more), in as much less time and memory.
    """
    name = str(source) if isinstance(source, str | Path) else "the uploaded file"
    if isinstance(source, str | Path) and not os.path.isfile(source) and os.path.exists(source):  # noqa: PTH110, PTH113
        raise DataError(f"{name} is a folder, a pipe or a device; expected a picture.")  # a pipe would never end
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{name} is {width} x {height} pixels, above the limit of {MAX_PIXELS // 10**6} megapixels."
                )
            if size and image.format == "JPEG":
                image.draft(None, (FINER * max(size), FINER * max(size)))  # its EXIF may turn it by a quarter
            image.load()
            with suppress(Exception):  # damaged EXIF does not spoil a picture that is otherwise whole
                ImageOps.exif_transpose(image, in_place=True)
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
    return _rgb(image)


def _rgb(image: Image.Image) -> Image.Image:
    """The picture itself where it is RGB: Pillow would copy it, 200 MB for 48 megapixels."""
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True)
class Preprocess:
    """How a model takes pictures: at which (height, width), resized how, normalised by which mean and deviation.

    resize: "squash" to the size; "shortest", until the picture covers it, and cut at the centre; or "longest", until it
    fits into it, and laid on black. The arithmetic is open_clip's.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize: str = "squash"

    def pixels(self, image: Image.Image) -> np.ndarray:
        """A picture as uint8 (3, height, width)."""
        return resized(_rgb(image), self.size, self.interpolation, self.resize)

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocess":
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def resized(
    image: Image.Image, size: tuple[int, int], interpolation: str = "bicubic", resize: str = "squash"
) -> np.ndarray:
    """An RGB picture as uint8 (3, height, width); Pillow's "bicubic" or "bilinear", which filter where they shrink.

    resize: as in `Preprocess`.
    """
    if interpolation not in INTERPOLATIONS:
        raise ConfigError(f"interpolation should be 'bicubic' or 'bilinear' and got {interpolation!r}.")
    if resize not in RESIZES:
        raise ConfigError(f"resize should be one of {', '.join(RESIZES)} and got {resize!r}.")
    (height, width), (tall, wide) = size, image.size[::-1]
    if resize == "shortest":  # whole pixels are cut off the longer side, as torchvision does
        short = max(height, width)
        tall, wide = (int(short * tall / wide), short) if wide <= tall else (short, int(short * wide / tall))
    elif resize == "longest":
        ratio = max(tall / height, wide / width)
        tall, wide = round(tall / ratio), round(wide / ratio)
    else:
        tall, wide = height, width
    image = image.resize((wide, tall), INTERPOLATIONS[interpolation])
    if (tall, wide) != (height, width):
        left, top = round((wide - width) / 2), round((tall - height) / 2)
        if resize == "longest":
            left, top = -((width - wide) // 2), -((height - tall) // 2)
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image).transpose(2, 0, 1)


def read_pixels(
    source: str | Path | bytes | BinaryIO, size: tuple[int, int], interpolation: str = "bicubic", resize: str = "squash"
) -> np.ndarray:
    """A picture as uint8 (3, height, width), of which nothing larger stays in memory. Raises as `open_image` does."""
    return resized(open_image(source, size), size, interpolation, resize)


class Pixels:
    """Pictures of one data set at one size: `pixels[indices] -> uint8 (B, 3, H, W)`, indices into `paths` as given.

    Decoded once into a store that all pictures of `root` at this size and interpolation share, and read through the
    page cache ever after: a killed run goes on where it stopped, and only a changed or new picture is decoded again.
    cached: False decodes whenever pixels are asked for and writes nothing; None caches where the disk has room, and
    says so where it has not. `pixels.index[path]` is an index of a picture by name. Raises DataError, after the rest
    is cached, naming the pictures that cannot be read.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        size: tuple[int, int],
        interpolation: str = "bicubic",
        cached: bool | None = None,
        folder: Path | None = None,
        resize: str = "squash",
    ):
        if not len(paths):
            raise DataError(f"No pictures of {root} were given; expected at least one.")
        self.root, self.paths, self.size = Path(root), list(paths), tuple(size)
        self.interpolation, self.resize = interpolation, resize
        self.folder = Path(folder or cache_dir())
        self.index = {path: position for position, path in reversed(list(enumerate(self.paths)))}
        names = list(dict.fromkeys(self.paths))
        files = [inside(self.root, name) for name in names]
        stamps = [_stamp(file) for file in files]
        self.store = RowStore(self.folder / self._name(), (3, *self.size), np.uint8)
        need = self.store.lacks(names, stamps)
        self.cached = need < _free(self.folder) if cached is None else cached
        if self.cached:
            self._decode_missing(names, files, stamps)
            rows = dict(zip(names, self.store.find(names).tolist(), strict=True))
            self._rows = np.array([rows[path] for path in self.paths])
        elif cached is None:
            print(
                f"{len(names):,} pictures would take {need / 1e9:.1f} GB more in {self.folder}, which has "
                f"{_free(self.folder) / 1e9:.1f} GB free: they are decoded anew whenever they are needed. Loader "
                "processes (workers) help; so does REIDLIB_OUTPUTS on a larger disk."
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices) -> torch.Tensor:
        if self.cached:
            return torch.from_numpy(self.store[self._rows[indices]])
        chosen = np.arange(len(self))[indices]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(self._read, chosen.ravel().tolist()))
        return torch.from_numpy(np.stack(found).reshape(*chosen.shape, 3, *self.size))

    def __reduce__(self):  # a worker process opens the file itself; pickling the map would copy every pixel
        return Pixels, (self.root, self.paths, self.size, self.interpolation, self.cached, self.folder, self.resize)

    def _name(self) -> str:
        root = str(self.root.resolve())
        digest = hashlib.sha256(root.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        how = self.interpolation if self.resize == "squash" else f"{self.interpolation}-{self.resize}"
        return f"{Path(root).name}-{self.size[0]}x{self.size[1]}-{how}-{digest}"

    def _pixels(self, file: Path) -> np.ndarray:
        return read_pixels(file, self.size, self.interpolation, self.resize)

    def _read(self, position: int) -> np.ndarray:
        return self._pixels(inside(self.root, self.paths[position]))

    def _decode_missing(self, names: list[str], files: list[Path], stamps: list[str]) -> None:
        errors: dict[int, DataError] = {}

        def decoded(position: int) -> np.ndarray | None:
            try:
                return self._pixels(files[position])
            except DataError as error:
                errors[position] = error

        def make(positions: list[int]) -> tuple[list[int], np.ndarray]:
            found = [(at, pixels) for at, pixels in zip(positions, pool.map(decoded, positions), strict=True)]
            found = [(at, pixels) for at, pixels in found if pixels is not None]
            return [at for at, _ in found], np.array([pixels for _, pixels in found], np.uint8)

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each thread holds one picture at its full size
            failed = self.store.fill(names, stamps, make, batch_size=CHUNK, what="decoding", wait=True)
        if len(failed):
            raise UnreadableError({names[at]: str(errors[at]) for at in failed}, len(names))


def _stamp(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:
        return ""  # opening it says what is wrong
    return f"{status.st_size} {status.st_mtime_ns}"


def _free(folder: Path) -> int:
    """Bytes free on the disk of a folder that may not exist yet."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
