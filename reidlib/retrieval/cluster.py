"""Encodes more pictures than one machine should: the same function in one process or on a Ray cluster.

A source is cut into pieces, a piece into Parquet files of `ROWS` pictures, each written whole. What is there is not
encoded again, so a job that was cut off goes on. Ray Data shares out the pieces to a pool of workers, each with the
model and a GPU where there are any, and gives the piece of a worker that died to another. Needs the extra `cluster`.
"""

import json
import tarfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from reidlib.data.walk import SUFFIXES, find_pictures
from reidlib.devices import pick_device
from reidlib.errors import ConfigError, DataError
from reidlib.evaluation import Encoder
from reidlib.methods.base import Method
from reidlib.models import load_model
from reidlib.retrieval.gallery import decoded, stamp_of
from reidlib.retrieval.store import Store, create

ROWS = 512  # pictures a file
MOST_BYTES = 200_000_000  # of one picture's file
ABOUT = "about.json"
Model = str | Callable[[], Method]


@dataclass(frozen=True)
class Piece:
    """What one worker encodes at a time: pictures by name, or one tar or Parquet file. `name` is that of its files."""

    name: str
    source: str
    files: tuple[str, ...]


def encode_pictures(
    model: Model, source: str | Path, out: str | Path, *, workers: int = 0, batch_size: int = 64
) -> list[str]:
    """Encodes all pictures of `source` into Parquet files under `out`; returns the names of those that it could not.

    model: a name for `load_model`, or a function without arguments that makes the model; each worker calls it. source
    and out: folders, or addresses such as "s3://bucket/folder". A source holds pictures at any depth, or webdataset
    tars, or Parquet files with columns `image` (a name) and `bytes`, of which further columns are kept as metadata.
    workers: 0 encodes in this process; more make a pool on the Ray cluster of `RAY_ADDRESS`, or on this machine.
    Raises DataError where the source holds nothing, or `out` the embeddings of another model.
    """
    made = _made(model)
    _claim(out, {"model": made.name, "stamp": stamp_of(made)})
    pieces = _pieces(str(source), out)
    if workers:
        del made
        _on_ray(model, pieces, str(out), workers, batch_size)
    else:
        worker = _Worker(lambda: made, str(out), batch_size)
        for piece in pieces:
            worker.encode(piece)
    unreadable = [name for table in encoded(out) for name, vector in _pairs(table) if vector is None]
    if unreadable:
        warnings.warn(
            f"{len(unreadable):,} pictures of {source} cannot be read and are left out, {unreadable[0]} first.",
            stacklevel=2,
        )
    return unreadable


def encoded(out: str | Path) -> Iterator:
    """The Parquet files under `out` one after another, as pyarrow tables of image, vector (null: unreadable), about."""
    from pyarrow import parquet

    system, folder = _system(out)
    for file in sorted(_listed(system, folder)):
        if file.endswith(".parquet"):
            yield parquet.read_table(file, filesystem=system)


def into_store(out: str | Path, address: str, collection: str = "gallery", *, replace: bool = False) -> Store:
    """What `encode_pictures` wrote as a collection of a store; never more than a file of it is in memory."""
    store, system = None, _system(out)
    about = json.loads(system[0].open_input_stream(f"{system[1]}/{ABOUT}").read())
    for table in encoded(out):
        rows = [row for row in table.to_pylist() if row["vector"] is not None]
        if rows:
            vectors = np.array([row["vector"] for row in rows], np.float32)
            metadata = [{**json.loads(row["about"]), "image": row["image"]} for row in rows]
            if store is None:
                store = create(address, collection, vectors, metadata, about=about, replace=replace)
            else:
                store.add(vectors, metadata, new=True)
    if store is None:
        raise DataError(f"{out} holds no embeddings; expected what encode_pictures wrote.")
    return store


class _Worker:
    """Holds the model, and encodes pieces; Ray makes as many as there are workers."""

    def __init__(self, model: Model, out: str, batch_size: int):
        self.model = _made(model).to(pick_device("auto")).eval()
        self.encoder, self.batch_size = Encoder(self.model, batch_size=batch_size), batch_size
        self.system, self.folder = _system(out)
        self.there = {Path(file).name for file in _listed(self.system, self.folder)}

    def __call__(self, batch: dict) -> dict:
        for piece in batch["item"]:
            self.encode(piece)
        return {"done": np.array([piece.name for piece in batch["item"]])}

    def encode(self, piece: Piece) -> None:
        pictures, number = _pictures(piece), 0
        while part := list(islice(pictures, ROWS)):
            file = f"{piece.name}-{number:05}.parquet"
            if file not in self.there:
                self._write(file, part)
            number += 1

    def _write(self, file: str, part: list[tuple[str, Callable[[], bytes], dict]]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        with ThreadPoolExecutor() as pool:
            pixels = list(pool.map(lambda item: _decoded(self.model, item[1]), part))
        vectors: list[np.ndarray | None] = [None] * len(part)
        readable = [place for place, picture in enumerate(pixels) if picture is not None]
        if readable:
            rows = self.encoder.images([pixels[place] for place in readable]).cpu().numpy()
            for place, row in zip(readable, rows, strict=True):
                vectors[place] = row
        names, about = [name for name, *_ in part], [json.dumps(more, default=str) for *_, more in part]
        table = pa.table({"image": names, "vector": pa.array(vectors, pa.list_(pa.float32())), "about": about})
        path = f"{self.folder}/{file}"
        if _is_local(self.system):  # an object store shows a file when it is whole; a folder when it is renamed
            parquet.write_table(table, f"{path}.part", filesystem=self.system)
            self.system.move(f"{path}.part", path)
        else:
            parquet.write_table(table, path, filesystem=self.system)


def _on_ray(model: Model, pieces: list[Piece], out: str, workers: int, batch_size: int) -> None:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("Encoding with workers needs Ray: pip install 'reidlib[cluster]'.") from error
    if not pieces:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.actor_task_retry_on_errors = False, True
    work = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        _Worker,
        fn_constructor_args=(model, out, batch_size),
        batch_size=1,
        batch_format="numpy",
        num_gpus=1 if ray.cluster_resources().get("GPU") else 0,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(pieces))),
    )
    for _ in work.iter_batches():
        pass


def _made(model: Model) -> Method:
    return load_model(model) if isinstance(model, str) else model()


def _claim(out: str | Path, about: dict) -> None:
    """Notes whose embeddings lie under `out`, or sees that they are this model's."""
    system, folder = _system(out)
    system.create_dir(folder)
    file = f"{folder}/{ABOUT}"
    if file not in _listed(system, folder):
        with system.open_output_stream(file) as stream:
            stream.write(json.dumps(about).encode())
    known = json.loads(system.open_input_stream(file).read())
    if known != about:
        raise DataError(f"{out} holds the embeddings of {known['model']} {known['stamp']}; choose another folder.")


def _pieces(source: str, out: str | Path) -> list[Piece]:
    """What is to be encoded: whole tars and Parquet files, which skip what they wrote, and pictures not encoded yet."""
    system, root = _system(source)
    single = source.endswith((".tar", ".parquet"))
    names = [root] if single else _listed(system, root)
    packed = sorted(name for name in names if name.endswith((".tar", ".parquet")))
    if packed:
        return [Piece(_mark(file), source, (file,)) for file in packed]
    if _is_local(system):
        found, faults = find_pictures(root)
        for fault in faults:
            warnings.warn(fault, stacklevel=3)
    else:
        found = sorted(name[len(root) + 1 :] for name in names if name.lower().endswith(SUFFIXES))
    if not found:
        raise DataError(f"{source} holds no picture, tar or Parquet file.")
    done = {name for table in encoded(out) for name in table["image"].to_pylist()}
    left = [name for name in found if name not in done]
    parts = [tuple(left[start : start + ROWS]) for start in range(0, len(left), ROWS)]
    return [Piece(_mark(*part), source, part) for part in parts]


def _pictures(piece: Piece) -> Iterator[tuple[str, Callable[[], bytes], dict]]:
    """(name, how to read its bytes, metadata) of each picture."""
    from pyarrow import parquet

    system, root = _system(piece.source)
    [first, *_] = piece.files
    if first.endswith(".tar"):
        with (
            system.open_input_stream(first, compression=None) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for member in tar:
                if member.isfile() and member.name.lower().endswith(SUFFIXES):
                    content = tar.extractfile(member).read() if member.size <= MOST_BYTES else b""
                    yield f"{Path(first).name}/{member.name}", lambda content=content: content, {}
    elif first.endswith(".parquet"):
        for batch in parquet.ParquetFile(system.open_input_file(first)).iter_batches(batch_size=ROWS):
            if not {"image", "bytes"} <= set(batch.schema.names):
                raise DataError(f"{first} has columns {', '.join(batch.schema.names)}; expected image and bytes.")
            for row in batch.to_pylist():
                name, content = row.pop("image"), row.pop("bytes") or b""
                yield name, lambda content=content: content, row
    else:
        for name in piece.files:
            yield name, lambda name=name: system.open_input_stream(f"{root}/{name}", compression=None).read(), {}


def _decoded(model: Method, read: Callable[[], bytes]) -> torch.Tensor | None:
    try:
        content = read()
    except OSError:
        return None
    return decoded(model, content)


def _pairs(table) -> Iterator[tuple[str, object]]:
    return zip(table["image"].to_pylist(), (v if v.is_valid else None for v in table["vector"]), strict=True)


def _system(address: str | Path):
    """The file system of an address, and the path there."""
    try:
        from pyarrow import fs
    except ImportError as error:
        raise ConfigError("Encoding needs pyarrow; install it with: pip install 'reidlib[cluster]'.") from error
    if "://" in str(address):
        return fs.FileSystem.from_uri(str(address).rstrip("/"))
    return fs.LocalFileSystem(), Path(address).absolute().as_posix()


def _is_local(system) -> bool:
    return system.type_name == "local"


def _listed(system, folder: str) -> list[str]:
    from pyarrow import fs

    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    return [info.path for info in system.get_file_info(selector) if info.type == fs.FileType.File]


def _mark(*names: str) -> str:
    return blake2b("\0".join(names).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
