"""A gallery in a vector store on disk or in an object store, for more pictures than a machine's memory holds.

The engine is LanceDB. Its embedded mode is the engine itself, the same Rust code over the same files on a laptop's
folder and on an object store that a cluster writes and many machines search; vectors and metadata stay there, and 100
million of 512 numbers (205 GB) are searched through a quantised index of a few bytes a vector. Qdrant's local mode is
an imitation in Python that looks at every vector, Milvus Lite holds its own kinds of index; either wants a server and
an operator at that size, and then only the client code is what was tried before. Needs the extra `store`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from reidlib.errors import ConfigError, DataError
from reidlib.retrieval.index import asked, checked

BATCH = 10_000  # rows written, or ids looked up, at a time
INDEXES = {  # kind -> its settings in LanceDB
    "IVF_FLAT": "IvfFlat",
    "IVF_SQ": "IvfSq",
    "IVF_PQ": "IvfPq",
    "IVF_RQ": "IvfRq",
    "IVF_HNSW_FLAT": "HnswFlat",
    "IVF_HNSW_SQ": "HnswSq",
    "IVF_HNSW_PQ": "HnswPq",
}
OWN = ("id", "vector", "more")  # columns that are no field of the metadata
LAST = 2**63 - 1


class Store:
    """A collection with the calls of `GalleryIndex`, and `add` and `delete`. Made by `create` and `connect`.

    A picture's id follows from its path ("image" in the metadata), so the same picture is never there twice (of 100
    million pictures, two share an id by chance with probability 0.0005). Fields whose values are texts, numbers,
    truth values or times can be filtered by (`where`, as in `GalleryIndex`), in the engine; all others are kept too.

    options: of each search, such as {"nprobes": 50, "refine_factor": 10}: partitions looked into, and by how many
    times more than k a quantised result is compared exactly.
    """

    def __init__(self, table, options: Mapping[str, int] | None = None):
        self.table, self.options = table, {"refine_factor": 10, **(options or {})}
        self.width = table.schema.field("vector").type.list_size
        self.fields = [name for name in table.schema.names if name not in OWN]
        self.about = json.loads((table.schema.metadata or {}).get(b"about", b"{}"))

    def __len__(self) -> int:
        return self.table.count_rows()

    def count(self, where: Mapping | None = None) -> int:
        return self.table.count_rows(self._condition(where))

    def ids(self, start: int = 0, count: int | None = None, where: Mapping | None = None) -> list[int]:
        """A page of the ids that fit, in the store's order; all of them where `count` is left out."""
        return self._read(self._condition(where), ["id"], count, start)["id"].to_pylist()

    def sample(self, count: int) -> list[int]:
        """About `count` ids at random: they are as good as random numbers."""
        within = f"id <= {LAST * count // max(count, len(self))}"
        return self._read(within, ["id"], count)["id"].to_pylist()

    def rows(self, ids: Sequence[int]) -> list[dict]:
        """The metadata of some pictures. Raises DataError for one that is not there."""
        return [self._metadata(row) for row in self._by_id(ids, [*self.fields, "more"])]

    def find(self, image: str) -> int | None:
        """The id of a picture by its path."""
        return next(iter(self.ids(where={"image": image})), None)

    def vectors(self, ids: Sequence[int]) -> torch.Tensor:
        """The embeddings of some pictures, (len(ids), D) float32."""
        found = [row["vector"] for row in self._by_id(ids, ["vector"])]
        return torch.tensor(found, dtype=torch.float32).reshape(len(found), self.width)

    def search(
        self, queries: torch.Tensor, k: int, where: Mapping | None = None, *, exact: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (Q, D) -> scores and ids, both (Q, at most k), best first; where one query finds fewer, -inf and -1.

        exact: goes through all vectors instead of the index.
        """
        queries = asked(queries, self.width, k).cpu().numpy()
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        for number, query in enumerate(queries):
            search = self.table.search(query, vector_column_name="vector").distance_type("dot").limit(k)
            if condition := self._condition(where):
                search = search.where(condition, prefilter=True)
            if exact:
                search = search.bypass_vector_index()
            else:
                for name, value in self.options.items():
                    search = getattr(search, name)(value)
            found = search.select(["id", "_distance"]).to_arrow()
            scores[number, : len(found)] = 1 - found["_distance"].to_numpy()  # it counts 1 - the inner product
            ids[number, : len(found)] = found["id"].to_numpy()
        most = int((ids >= 0).sum(1).max(initial=0))
        return torch.from_numpy(scores[:, :most]), torch.from_numpy(ids[:, :most])

    def add(
        self, embeddings: np.ndarray | torch.Tensor, metadata: Sequence[dict] | pd.DataFrame, *, new: bool = False
    ) -> None:
        """Adds pictures; one whose path is there already is replaced. Searches go on meanwhile.

        new: none of them is there, so that nothing is looked for: the time does not grow with the store.
        """
        embeddings, rows = checked(embeddings, metadata)
        if embeddings.shape[1] != self.width:
            raise DataError(f"The new embeddings have {embeddings.shape[1]} columns; expected {self.width}.")
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            batch = _table(embeddings[part], rows[part], self.table.schema)
            if new:
                self.table.add(batch)
            else:
                merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(batch)

    def delete(self, ids: Sequence[int]) -> None:
        """Removes pictures. Raises DataError for one that is not there."""
        self._by_id(ids, ["id"])
        for start in range(0, len(ids), BATCH):
            self.table.delete(_among(ids[start : start + BATCH]))

    def build_index(self, kind: str = "IVF_PQ", fields: Sequence[str] = (), **settings) -> None:
        """Makes searches fast: `kind` is one of `INDEXES`, `settings` are the engine's (num_partitions, num_bits, ...).

        SQ, PQ and RQ quantise, to about a byte, half a byte or a bit a number. fields: those that filters name often.
        What is added later is searched too, one by one until `optimize` is called.
        """
        from lancedb import index

        if kind not in INDEXES:
            raise ConfigError(f"The index {kind!r} is unknown; expected one of {', '.join(INDEXES)}.")
        for field in ("id", "image", *fields):
            self._known(field)
            self.table.create_index(field, config=index.BTree())
        try:
            config = getattr(index, INDEXES[kind])(distance_type="dot", **settings)
            self.table.create_index("vector", config=config)
        except (RuntimeError, ValueError, TypeError) as error:  # too few rows, a setting that it has not
            raise ConfigError(f"The {kind} index could not be built ({str(error).splitlines()[0]}).") from error

    def optimize(self) -> None:
        """Puts what was added since into the indexes, and small files together."""
        self.table.optimize()

    def recall(self, queries: torch.Tensor, k: int = 10) -> float:
        """The share of the exact k best of queries (Q, D) that a search through the index finds too."""
        right, found = self.search(queries, k, exact=True)[1], self.search(queries, k)[1]
        return float((right[:, :, None] == found[:, None, :]).any(2).float().mean())

    def _read(self, condition: str | None, columns: list[str], count: int | None = None, start: int = 0):
        query = self.table.search().select(columns)
        query = query.where(condition) if condition else query
        query = query.limit(self.table.count_rows() if count is None else count)
        return (query.offset(start) if start else query).to_arrow()

    def _by_id(self, ids: Sequence[int], columns: list[str]) -> list[dict]:
        """Some columns of each id in turn."""
        found: dict[int, dict] = {}
        try:
            ids = [int(i) for i in ids]
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"An id of a store is an integer ({error}).") from error
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            for row in self._read(_among(part), list({"id", *columns}), len(part)).to_pylist():
                found[row["id"]] = row
        if gone := [i for i in ids if i not in found]:
            raise DataError(f"Row {gone[0]} is not in the store of {len(self):,} pictures.")
        return [found[i] for i in ids]

    def _metadata(self, row: dict) -> dict:
        known = {name: row[name] for name in self.fields if row[name] is not None}
        return known | json.loads(row["more"])

    def _known(self, field: str) -> None:
        if field not in (*self.fields, "id"):
            raise DataError(f"The store has no field {field!r} to filter by; it has {', '.join(self.fields)}.")

    def _condition(self, where: Mapping | None) -> str | None:
        """`where` in the engine's SQL."""
        parts = []
        for field, wanted in (where or {}).items():
            self._known(field)
            if isinstance(wanted, tuple):
                low, high = wanted
                parts += [f"`{field}` >= {_literal(low)}"] if low is not None else []
                parts += [f"`{field}` <= {_literal(high)}"] if high is not None else []
            elif isinstance(wanted, list):
                parts.append(f"`{field}` IN ({', '.join(map(_literal, wanted))})" if wanted else "false")
            else:
                parts.append(f"`{field}` = {_literal(wanted)}")
        return " AND ".join(parts) or None


def connect(address: str, collection: str = "gallery", **options: int) -> Store:
    """Opens a collection that is there. address: a folder, or an object store's such as "s3://bucket/folder".

    options: of each search (see `Store`). Raises DataError where there is no such collection.
    """
    database = _database(address)
    names = _names(database)
    if collection not in names:
        raise DataError(f"{address} holds no collection {collection!r}; it holds {', '.join(names) or 'none'}.")
    return Store(database.open_table(collection), options)


def create(
    address: str,
    collection: str,
    embeddings: np.ndarray | torch.Tensor,
    metadata: Sequence[dict] | pd.DataFrame,
    *,
    about: Mapping | None = None,
    replace: bool = False,
    **options: int,
) -> Store:
    """Makes a collection of these pictures; their metadata decide which fields can be filtered by.

    about: which model encoded them (`Gallery.about`). replace: removes a collection of that name first. Raises
    DataError where there is one already.
    """
    embeddings, rows = checked(embeddings, metadata)
    last = sorted({row.get("image"): number for number, row in enumerate(rows)}.values())  # a picture counts once
    if len(last) < len(rows) and all("image" in row for row in rows):
        embeddings, rows = embeddings[last], [rows[number] for number in last]
    database = _database(address, new=True)
    if collection in _names(database) and not replace:
        raise DataError(
            f"{address} holds a collection {collection!r} already; open it with connect(), or say replace=True."
        )
    first = _table(embeddings[:BATCH], rows[:BATCH], _schema(embeddings, rows, about or {}))
    table = database.create_table(collection, first, mode="overwrite" if replace else "create")
    store = Store(table, options)
    store.add(embeddings[BATCH:], rows[BATCH:], new=True)
    return store


def _database(address: str, new: bool = False):
    try:
        import lancedb
    except ImportError as error:
        raise ConfigError("A store needs LanceDB; install it with: pip install 'reidlib[store]'.") from error
    address = str(address)
    if re.match(r"^(https?://|[\w.-]+:\d+$)", address):
        raise ConfigError(
            f"{address} is the address of a server; a store's is a folder or an object store's, such as s3://bucket."
        )
    if "://" not in address and not new and not Path(address).is_dir():
        raise DataError(f"There is no store {address}; expected a folder that create() has made.")
    return lancedb.connect(address, read_consistency_interval=timedelta(0))  # sees what other processes write


def _names(database) -> list[str]:
    names, page = [], None
    while page is None or page.page_token:
        page = database.list_tables(page_token=page and page.page_token)
        names += page.tables
    return names


def id_of(image: str) -> int:
    """The id of a picture, from its path: 63 bits."""
    return int.from_bytes(blake2b(image.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1


def _schema(embeddings: np.ndarray, rows: list[dict], about: Mapping):
    """Columns for the fields that can be filtered by."""
    import pyarrow as pa

    kinds: dict[str, set] = {"image": {str}}
    for row in rows:
        for field, value in row.items():
            if value is not None and field not in OWN:
                kinds.setdefault(field, set()).add(_kind(value))
    types = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64(), datetime: pa.timestamp("us")}
    fields = {field: types[of] for field, (of, *others) in kinds.items() if of in types and not others}
    fields |= {field: pa.float64() for field, of in kinds.items() if of == {int, float}}
    vector = pa.list_(pa.float16() if embeddings.dtype == np.float16 else pa.float32(), embeddings.shape[1])
    columns = {"id": pa.int64(), "vector": vector, **fields, "more": pa.string()}
    return pa.schema(list(columns.items()), metadata={"about": json.dumps(dict(about))})


def _kind(value: object) -> type | None:
    for kind, of in ((bool, bool | np.bool_), (int, int | np.integer), (float, float | np.floating), (str, str)):
        if isinstance(value, of):
            return kind
    return datetime if isinstance(value, date) else None


def _table(embeddings: np.ndarray, rows: list[dict], schema):
    import pyarrow as pa

    fields = [name for name in schema.names if name not in OWN]
    if missing := [number for number, row in enumerate(rows) if not isinstance(row.get("image"), str)]:
        raise DataError(f"Row {missing[0]} of the metadata names no picture; expected a text under 'image'.")
    flat = pa.array(np.ascontiguousarray(embeddings).ravel(), schema.field("vector").type.value_type)
    columns = {
        "id": pa.array([id_of(row["image"]) for row in rows], pa.int64()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1]),
        "more": [json.dumps({k: v for k, v in row.items() if k not in fields}, default=str) for row in rows],
    }
    for field in fields:
        values = [row.get(field) for row in rows]
        values = [None if isinstance(value, float) and value != value else value for value in values]
        try:
            columns[field] = pa.array(values, schema.field(field).type)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"The field {field!r} of the metadata holds another kind of value ({error}).") from error
    last = {identity: number for number, identity in enumerate(columns["id"].to_pylist())}  # a picture counts once
    return pa.table([columns[name] for name in schema.names], schema=schema).take(sorted(last.values()))


def _among(ids: Sequence[int]) -> str:
    return f"id IN ({', '.join(str(int(i)) for i in ids)})" if len(ids) else "false"


def _literal(value: object) -> str:
    match _kind(value):
        case kind if kind is bool:
            return "true" if value else "false"
        case kind if kind in (int, float):
            return repr(kind(value))
        case kind if kind is datetime:
            return f"timestamp '{value.isoformat(' ')}'"
        case kind if kind is str:
            return "'" + value.replace("'", "''") + "'"
    raise DataError(f"{value!r} is no value to filter by; expected a text, a number, a truth value or a time.")
