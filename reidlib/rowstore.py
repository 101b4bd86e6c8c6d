"""Rows of numbers on the disk, each under a key: decoded pictures, embeddings; what is missing or old is made anew."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np

from reidlib.errors import DataError, ReidError
from reidlib.paths import owned, write_text
from reidlib.progress import tqdm

ENTRY = np.dtype([("key", "<u8"), ("stamp", "<u8")])  # in the ledger, one a row; a stamp of 0: the row does not count
SORT_AFTER = 100_000  # entries written, or keys asked for, after which the ledger is sorted anew
MANY = 2_000  # fewer rows need no progress bar


class RowStore:
    """An array (N, *shape) of one dtype that grows by rows and survives kills: `store[store.find(keys, stamps)]`.

    A row has a key (the name of what it was made from) and a stamp (the state that was in: size and time of a file).
    `<path>.rows` holds the numbers; `<path>.ledger` opens with a line of JSON and then vouches for each row, written
    when that row's bytes are on the disk. So a killed writer loses the rows in its hands, and a truncated file those
    that it lacks. A row of another stamp is written anew in its place, a new key at the end; nothing else moves.

    stamp: what all rows have in common (the weights, the size of pictures); a store of another stamp, shape or dtype
    counts as empty and is begun afresh by the first write, while whoever reads the old one keeps it. shape, dtype: of
    a row; left out, they are those of the store there is, else of the first rows written. Reading needs no lock;
    writing has one owner at a time.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...] | None = None, dtype: np.typing.DTypeLike = None, stamp: str = ""
    ):
        self.path, self.stamp = Path(path), stamp
        self.shape = None if shape is None else tuple(shape)
        self.dtype = None if dtype is None else np.dtype(dtype)
        self.file, self.ledger = (self.path.with_name(f"{self.path.name}.{end}") for end in ("rows", "ledger"))
        self._owns = False
        self.reload()

    def reload(self) -> None:
        """Sees the rows that other processes have written since."""
        about, self._start, entries = self._read()
        wanted = {"stamp": self.stamp, "shape": self.shape, "dtype": self.dtype}
        self._fits = bool(about) and all(want in (None, about[name]) for name, want in wanted.items())
        if self._fits:
            self.shape, self.dtype = about["shape"], about["dtype"]
        self._ledger = entries if self._fits else entries[:0]  # with room behind the entries while it grows
        self._count, self._map = len(self._ledger), None
        self._sort()

    def __len__(self) -> int:
        """Rows in the file, those of keys that nobody asks for any more included."""
        return self._count

    def __getitem__(self, rows) -> np.ndarray:
        """Copies of rows by number."""
        return np.take(self.array, rows, axis=0)

    def __reduce__(self):  # a worker process maps the file itself; pickling the map would copy every row
        return RowStore, (self.path, self.shape, self.dtype, self.stamp)

    @property
    def array(self) -> np.ndarray:
        """All rows (N, *shape), mapped from the file and not to be written to."""
        if self._map is None or len(self._map) != len(self):
            shape = (len(self), *(self.shape or ()))
            self._map = np.memmap(self.file, self.dtype, mode="r", shape=shape) if len(self) else np.empty(shape)
        return self._map

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def find(self, keys: Sequence[str], stamps: Sequence[object] | None = None) -> np.ndarray:
        """The number of each key's row, int64 (n,); -1 where there is none, or one of another stamp.

        stamps: by key; None finds rows of any stamp.
        """
        if not len(self) or not len(keys):
            return np.full(len(keys), -1)
        wanted = _marks(keys)
        if self._recent and max(len(keys), len(self._recent)) > SORT_AFTER:
            self._sort()
        rows = np.zeros(len(keys), np.int64)
        if len(self._order):
            place = np.searchsorted(self._ledger["key"][: len(self._order)], wanted, sorter=self._order)
            rows = self._order[np.minimum(place, len(self._order) - 1)]
        if self._recent:
            pairs = zip(wanted.tolist(), rows.tolist(), strict=True)
            rows = np.array([self._recent.get(key, row) for key, row in pairs])
        found = self._ledger[rows]
        fits = (found["key"] == wanted) & (found["stamp"] != 0)
        if stamps is not None:
            fits &= found["stamp"] == _marks(keys, stamps)
        return np.where(fits, rows, -1)

    def lacks(self, keys: Sequence[str], stamps: Sequence[object]) -> int:
        """How many bytes `fill` would add to the disk; 0 as long as the shape of rows is not known."""
        if self.shape is None:
            return 0
        missing = self._missing(keys, stamps)
        new = self.find([keys[i] for i in missing]) < 0
        return int(new.sum()) * (self.row_bytes + ENTRY.itemsize)

    @contextmanager
    def writing(self, wait: bool = False) -> Iterator["RowStore"]:
        """Around `put`: no other process writes meanwhile. ReidError where one does, or with `wait` its turn comes."""
        with owned(self.path.with_name(f"{self.path.name}.lock"), self.file, wait):
            self.reload()
            self._owns = True
            try:
                yield self
            finally:
                self._owns = False

    def put(self, keys: Sequence[str], stamps: Sequence[object], rows: np.ndarray) -> None:
        """Writes rows (n, *shape) of different keys, in the place of an older row of that key; `writing` is around it.

        They count, and are found, when all of them are on the disk. Raises DataError where it is full.
        """
        if not self._owns:
            raise ReidError(f"Rows of {self.file} are written inside `with store.writing():`.")
        rows = np.ascontiguousarray(rows, self.dtype)
        try:
            if not self._fits:
                self._begin(rows)
            if rows.shape[1:] != self.shape:
                raise DataError(f"{self.file} holds rows of shape {self.shape} and was given {rows.shape[1:]}.")
            self._put(keys, stamps, rows)
        except OSError as error:
            self.reload()
            raise DataError(f"{self.file} could not be written ({error.strerror or error}).") from error

    def fill(
        self,
        keys: Sequence[str],
        stamps: Sequence[object],
        make: Callable[[list[int]], tuple[Sequence[int], np.ndarray]],
        *,
        batch_size: int = 256,
        what: str = "",
        wait: bool = False,
    ) -> np.ndarray:
        """Writes what is missing or has another stamp; returns the positions in `keys` that could not be made.

        make: positions in `keys` -> those of them that could be made, and their rows. It is asked for `batch_size` at
        a time, in the keys' order, and each batch is kept before the next. what: the progress bar's words.
        """
        if not self._missing(keys, stamps).size:  # so that a full store can be read where nobody may write
            return np.empty(0, np.int64)
        failed: list[int] = []
        with self.writing(wait):
            missing = self._missing(keys, stamps)
            need, free = self.lacks(keys, stamps), shutil.disk_usage(self.path.parent).free
            if need > free:
                raise DataError(
                    f"{self.file} needs {need / 1e9:.2f} GB more, and {free / 1e9:.2f} GB are free; make room, or "
                    "choose a folder on a larger disk (REIDLIB_OUTPUTS)."
                )
            hidden = None if len(missing) > MANY else True  # None: no bar where the output is no terminal
            with tqdm(total=len(missing), desc=what, leave=False, disable=hidden) as bar:
                for start in range(0, len(missing), batch_size):
                    part = missing[start : start + batch_size].tolist()
                    made, rows = make(part)
                    if len(made):
                        self.put([keys[i] for i in made], [stamps[i] for i in made], rows)
                    failed += sorted(set(part) - set(made))
                    bar.update(len(part))
        return np.array(failed, np.int64)

    # -- the files -------------------------------------------------------------------------------------------------

    def _missing(self, keys: Sequence[str], stamps: Sequence[object]) -> np.ndarray:
        """Positions of keys without a row of their stamp, each key once."""
        first = np.fromiter(({key: i for i, key in reversed(list(enumerate(keys)))}).values(), np.int64)
        return np.sort(first[self.find([keys[i] for i in first], [stamps[i] for i in first]) < 0])

    def _read(self) -> tuple[dict, int, np.ndarray]:
        """What the ledger opens with, how long that is, and its entries for the rows that are all in their file."""
        try:
            content, size = self.ledger.read_bytes(), self.file.stat().st_size
            line, newline, entries = content.partition(b"\n")
            about = json.loads(line)
            about |= {"shape": tuple(about["shape"]), "dtype": np.dtype(about["dtype"])}
            row = int(np.prod(about["shape"], dtype=np.int64)) * about["dtype"].itemsize
            count = min(len(entries) // ENTRY.itemsize, size // max(row, 1))
            return about, len(line) + len(newline), np.frombuffer(entries, ENTRY, count).copy()
        except (OSError, ValueError, LookupError, TypeError, RecursionError):  # none, or damaged: all is made anew
            return {}, 0, np.empty(0, ENTRY)

    def _begin(self, rows: np.ndarray) -> None:
        self.ledger.unlink(missing_ok=True)
        self.file.unlink(missing_ok=True)  # not emptied: others may have mapped it
        self.file.touch()
        self.shape, self.dtype = self.shape or rows.shape[1:], rows.dtype
        line = json.dumps({"stamp": self.stamp, "shape": self.shape, "dtype": self.dtype.str}) + "\n"
        write_text(self.ledger, line)
        self._start, self._fits = len(line.encode()), True

    def _put(self, keys: Sequence[str], stamps: Sequence[object], rows: np.ndarray) -> None:
        old = self.find(keys)
        new = old < 0
        number = np.where(new, len(self) + np.cumsum(new) - 1, old)
        if len(self) + new.sum() > len(self._ledger):
            self._ledger = np.concatenate([self._ledger, np.zeros(max(int(new.sum()), len(self)), ENTRY)])
        marks = _marks(keys)
        self._ledger["key"][number] = marks
        with self.file.open("r+b") as data, self.ledger.open("r+b") as ledger:
            ledger.truncate(self._start + len(self) * ENTRY.itemsize)  # half an entry, or entries without their rows
            if not new.all():  # rows about to be overwritten do not count until they are whole again
                self._ledger["stamp"][old[~new]] = 0
                self._write_entries(ledger, old[~new])
            for start, stop in _runs(number):
                data.seek(int(number[start]) * self.row_bytes)
                data.write(memoryview(rows[start:stop]).cast("B"))
            _sync(data)  # first the rows: an entry in the ledger vouches for them
            self._ledger["stamp"][number] = _marks(keys, stamps)
            self._write_entries(ledger, number)
        self._recent.update(zip(marks[new].tolist(), number[new].tolist(), strict=True))
        self._count += int(new.sum())

    def _write_entries(self, ledger: BinaryIO, numbers: np.ndarray) -> None:
        numbers = np.sort(numbers)
        for start, stop in _runs(numbers):
            ledger.seek(self._start + int(numbers[start]) * ENTRY.itemsize)
            ledger.write(self._ledger[numbers[start] : numbers[stop - 1] + 1].tobytes())
        _sync(ledger)

    def _sort(self) -> None:
        """Makes all entries found by bisection; those written since are found by `_recent`."""
        self._order, self._recent = np.argsort(self._ledger["key"][: len(self)], kind="stable"), {}


def _marks(keys: Sequence[str], stamps: Sequence[object] | None = None) -> np.ndarray:
    """64 bits for each key, or for each key with its stamp (so two keys of equal bits are never taken for another)."""
    words = keys if stamps is None else [f"{key}\0{stamp}" for key, stamp in zip(keys, stamps, strict=True)]
    digests = b"".join(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest() for word in words)
    return np.frombuffer(digests, "<u8")


def _runs(numbers: np.ndarray) -> list[tuple[int, int]]:
    """Slices of `numbers` that count up by one: one write each."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    edges = [0, *breaks.tolist(), len(numbers)]
    return [(start, stop) for start, stop in zip(edges, edges[1:], strict=False) if stop > start]


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
