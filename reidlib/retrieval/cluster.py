"""Encodes more pictures than one machine should: the same function in one process or on a Ray cluster.

A source is cut into pieces, a piece into Parquet files of `ROWS` pictures, each written whole. What is there is not
encoded again, so a job that was cut off goes on. Ray Data shares out the pieces to a pool of workers, each with the
model and a GPU where there are any, and gives the piece of a worker that died or failed to another, `RETRIES` times at
most. Needs the extra `cluster`.
"""

import json
import re
import tarfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch

from reidlib.data.walk import SUFFIXES, find_pictures
from reidlib.devices import pick_device
from reidlib.errors import ConfigError, DataError, ReidError
from reidlib.evaluation import Encoder
from reidlib.methods.base import Method
from reidlib.models import load_model
from reidlib.progress import tqdm
from reidlib.retrieval.gallery import decoded, stamp_of
from reidlib.retrieval.store import Store, create

ROWS = 512  # pictures a file, which is all that a kill can cost
FILES = 8  # at most, a piece of a folder
STORED = 100_000  # pictures put into a store at a time: each such step makes a new version of it
RETRIES = 3
MOST_BYTES = 200_000_000  # of one picture's file
ABOUT = "about.json"
Model = str | Callable[[], Method]
Picture = tuple[str, Callable[[], bytes], dict]  # its name, how to read its bytes, what its source tells beside


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
    tars, or Parquet files with columns `image` (a name of its own) and `bytes`, of which further columns are kept as
    metadata. A tar or Parquet file that is damaged is named like a picture; what of it could be read is kept.
    workers: 0 encodes in this process; more make a pool on the Ray cluster of `RAY_ADDRESS`, or on this machine.
    Raises DataError where the source holds nothing, or `out` the embeddings of another model, ReidError where Ray
    gives up; the same call goes on from there.
    """
    made = _made(model)
    _claim(out, {"model": made.name, "stamp": stamp_of(made)})
    pieces = _pieces(str(source), out, workers)
    if workers:
        del made
        done = _on_ray(model, pieces, str(out), workers, batch_size)
    else:
        done = map(_Worker(lambda: made, str(out), batch_size).encode, pieces)
    with tqdm(done, "encoding", total=len(pieces), unit=" pieces", disable=len(pieces) < 2) as bar:
        unreadable = sorted({name for names in bar for name in names} | set(_undecodable(out)))
    if unreadable:
        warnings.warn(
            f"{len(unreadable):,} pictures of {source} cannot be read and are left out, {unreadable[0]} first.",
            stacklevel=2,
        )
    return unreadable


def encoded(out: str | Path) -> Iterator:
    """The Parquet files under `out` one after another, as pyarrow tables: image, vector (null where the picture could
    not be decoded), and what the source tells beside.
    """
    from pyarrow import parquet

    system, folder = _system(out)
    for file in _written(system, folder):
        yield parquet.read_table(file, filesystem=system)


def into_store(
    out: str | Path,
    address: str,
    collection: str = "gallery",
    *,
    fields: Callable[[str], dict] | None = None,
    replace: bool = False,
) -> Store:
    """What `encode_pictures` wrote as a collection of a store; `STORED` pictures of it are in memory at a time.

    fields: from a picture's name to its metadata, such as {"camid": 3}, beside those of a Parquet source. What can be
    filtered by is what the first `STORED` pictures have.
    """
    store, (system, folder) = None, _system(out)
    if f"{folder}/{ABOUT}" not in _listed(system, folder):
        raise DataError(f"{out} holds no embeddings; expected what encode_pictures wrote.")
    about = json.loads(system.open_input_stream(f"{folder}/{ABOUT}").read())
    for vectors, names, told in _to_store(out):
        metadata = [(fields(name) if fields else {}) | row for name, row in zip(names, told, strict=True)]
        if store is None:
            store = create(address, collection, vectors, metadata, about=about, replace=replace)
        else:
            store.add(vectors, metadata, new=True)
    if store is None:
        raise DataError(f"None of the pictures under {out} could be decoded, so there is nothing to store.")
    return store


def _to_store(out: str | Path) -> Iterator[tuple[np.ndarray, list[str], list[dict]]]:
    """Vectors (at least `STORED` but for the last), names and metadata of what could be decoded."""
    import pyarrow as pa
    from pyarrow import compute

    held, files = [], encoded(out)
    while True:
        table = next(files, None)
        if table is not None:
            held.append(table.filter(compute.is_valid(table["vector"])))
        if held and (table is None or sum(map(len, held)) >= STORED):
            whole = pa.concat_tables(held, promote_options="permissive")
            if len(whole):
                vectors = compute.list_flatten(whole["vector"]).to_numpy().reshape(len(whole), -1)
                rows = whole.drop_columns(["vector"]).to_pylist()
                told = [{key: value for key, value in row.items() if value is not None} for row in rows]
                yield vectors, whole["image"].to_pylist(), told
            held = []
        if table is None:
            return


class _Worker:
    """Holds the model, and encodes pieces; Ray makes as many as there are workers."""

    def __init__(self, model: Model, out: str, batch_size: int):
        self.model = _made(model).to(pick_device("auto")).eval()
        self.encoder, self.batch_size = Encoder(self.model, batch_size=batch_size), batch_size
        self.system, self.folder = _system(out)

    def __call__(self, batch: dict) -> dict:
        return {"unreadable": ["\n".join(self.encode(piece)) for piece in batch["item"]]}

    def encode(self, piece: Piece) -> list[str]:
        """Encodes what is not there yet, the next part being decoded meanwhile; returns what could not be read.

        A picture that cannot be decoded is written without a vector, for good. One whose bytes did not come, which may
        be the network's fault, and the part in which a damaged file ends are not, so a later call tries them again.
        """
        failed: list[str] = []
        with ThreadPoolExecutor() as pool:
            waiting: deque[Callable[[], None]] = deque()
            for file, part in self._parts(piece, failed):
                pixels = [pool.submit(_decoded, self.model, read) for _, read, _ in part]
                waiting.append(partial(self._write, file, part, pixels, failed))
                if len(waiting) > 1:
                    waiting.popleft()()
            while waiting:
                waiting.popleft()()
        return failed

    def _parts(self, piece: Piece, failed: list[str]) -> Iterator[tuple[str, list[Picture]]]:
        from pyarrow import ArrowInvalid

        pictures = _pictures(piece)
        for number in count():
            try:
                part = list(islice(pictures, ROWS))
            except (tarfile.TarError, ArrowInvalid, DataError) as error:
                warnings.warn(f"{piece.files[0]} could not be read to its end ({error}).", stacklevel=2)
                failed.append(piece.files[0])
                return
            if not part:
                return
            file = f"{self.folder}/{piece.name}-{number:05}.parquet"
            if not self.system.get_file_info(file).is_file:
                yield file, part

    def _write(self, file: str, part: list[Picture], pixels: list[Future], failed: list[str]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        done = [(name, more, future.result()) for (name, _, more), future in zip(part, pixels, strict=True)]
        failed += [name for name, _, found in done if isinstance(found, OSError)]
        done = [one for one in done if not isinstance(one[2], OSError)]
        vectors: list[np.ndarray | None] = [None] * len(done)
        readable = [place for place, (*_, found) in enumerate(done) if found is not None]
        if readable:
            rows = self.encoder.images([done[place][2] for place in readable]).cpu().numpy()
            for place, row in zip(readable, rows, strict=True):
                if not np.isfinite(row).all():
                    raise DataError(f"{self.model.name} embeds {done[place][0]} as numbers that are not finite.")
                vectors[place] = row
        if not done:
            return
        table = pa.Table.from_pylist([{"image": name, **more} for name, more, _ in done])
        table = table.append_column("vector", pa.array(vectors, pa.list_(pa.float32())))
        if _is_local(self.system):  # an object store shows a file when it is whole; a folder when it is renamed
            parquet.write_table(table, f"{file}.part", filesystem=self.system)
            self.system.move(f"{file}.part", file)
        else:
            parquet.write_table(table, file, filesystem=self.system)


def _on_ray(model: Model, pieces: list[Piece], out: str, workers: int, batch_size: int) -> Iterator[list[str]]:
    """What could not be read of each piece."""
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
        max_task_retries=RETRIES,  # Ray's own are without end, also for what fails every time
    )
    try:
        for row in work.iter_rows():
            yield row["unreadable"].split("\n") if row["unreadable"] else []
    except ray.exceptions.RayError as error:
        raised = re.findall(r"^(?!ray\.)[\w.]+: .+$", str(error), re.MULTILINE)  # in the worker, below Ray's own
        cause = raised[-1] if raised else str(error).strip().splitlines()[0]
        raise ReidError(f"Encoding on Ray failed ({cause}); the same call goes on where it stopped.") from error


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


def _pieces(source: str, out: str | Path, workers: int) -> list[Piece]:
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
    from pyarrow import parquet

    where, folder = _system(out)
    files = _written(where, folder)
    tables = (parquet.read_table(file, columns=["image"], filesystem=where) for file in files)
    done = {name for table in tables for name in table["image"].to_pylist()}
    left = [name for name in found if name not in done]
    size = ROWS * min(FILES, max(1, len(left) // (ROWS * max(1, workers))))  # so that every worker has some
    parts = [tuple(left[start : start + size]) for start in range(0, len(left), size)]
    return [Piece(_mark(*part), source, part) for part in parts]


def _pictures(piece: Piece) -> Iterator[Picture]:
    """The pictures of a piece. Raises an error of tarfile or pyarrow, or DataError, where its file is damaged."""
    from pyarrow import parquet

    system, root = _system(piece.source)
    [first, *_] = piece.files
    if first.endswith(".tar"):
        tar_name = first[len(root) + 1 :] or Path(first).name  # one tar, or those in a folder
        with (
            system.open_input_stream(first, compression=None) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for member in tar:
                if member.isfile() and member.name.lower().endswith(SUFFIXES):
                    content = tar.extractfile(member).read() if member.size <= MOST_BYTES else b""
                    yield f"{tar_name}/{member.name}", lambda content=content: content, {}
            if system.get_file_info(first).size <= tar.offset:  # nothing follows the last member: tarfile lets it pass
                raise tarfile.ReadError("it has no end")
    elif first.endswith(".parquet"):
        for batch in parquet.ParquetFile(system.open_input_file(first)).iter_batches(batch_size=ROWS):
            if not {"image", "bytes"} <= set(batch.schema.names):
                raise DataError(f"{first} has columns {', '.join(batch.schema.names)}; expected image and bytes.")
            for row in batch.to_pylist():
                name, content, _ = row.pop("image"), row.pop("bytes") or b"", row.pop("vector", None)
                yield name, lambda content=content: content, row
    else:
        for name in piece.files:
            yield name, lambda name=name: system.open_input_stream(f"{root}/{name}", compression=None).read(), {}


def _decoded(model: Method, read: Callable[[], bytes]) -> torch.Tensor | OSError | None:
    try:
        content = read()
    except OSError as error:
        return error
    return decoded(model, content)


def _undecodable(out: str | Path) -> Iterator[str]:
    """The names of pictures without a vector; of files that hold none, only the end is read."""
    from pyarrow import compute, parquet

    system, folder = _system(out)
    for file in _written(system, folder):
        about = parquet.read_metadata(file, filesystem=system)
        last = about.num_columns - 1  # the vector's
        if any(about.row_group(group).column(last).statistics.null_count for group in range(about.num_row_groups)):
            table = parquet.read_table(file, filesystem=system)
            yield from table.filter(compute.is_null(table["vector"]))["image"].to_pylist()


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


def _written(system, folder: str) -> list[str]:
    return sorted(file for file in _listed(system, folder) if file.endswith(".parquet"))


def _listed(system, folder: str) -> list[str]:
    from pyarrow import fs

    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    return [info.path for info in system.get_file_info(selector) if info.type == fs.FileType.File]


def _mark(*names: str) -> str:
    return blake2b("\0".join(names).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
