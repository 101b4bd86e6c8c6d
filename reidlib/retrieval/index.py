"""Finds the nearest of many embeddings: exactly, in blocks over a memory-mapped file, or with faiss when asked."""

import json
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from reidlib.errors import ConfigError, DataError
from reidlib.paths import write_json, write_text, written_whole

BLOCK = 131_072  # rows of the gallery at a time
CONVERTED = 1_048_576  # and so many numbers, where they must be made float32: more would be written to memory and back
SCORES = 4_194_304  # and so many scores, where there are many queries
ALONE = 16_777_216  # numbers of a block from which on waking other threads pays
MAGNITUDE = 0x7FFFFFFF
BACKENDS = ("exact", "faiss")
MANIFEST = "index.json"


class GalleryIndex:
    """Embeddings (N, D), float32 or float16, with one dict of metadata a row; the score is the inner product.

    `backend="exact"` reads the embeddings once a search, block by block, so memory does not grow with the gallery.
    `backend="faiss"` (extra `large`) visits an eighth of an inverted file of sqrt(N) cells: faster and approximate.
    For a gallery beyond one machine, `QdrantIndex` in `reidlib.retrieval.qdrant` answers to the same calls.
    """

    def __init__(
        self, embeddings: np.ndarray | torch.Tensor, metadata: Sequence[dict] | pd.DataFrame, backend: str = "exact"
    ):
        if backend not in BACKENDS:
            raise ConfigError(f"The index backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}.")
        self.embeddings, self.metadata = checked(embeddings, metadata)
        self.backend = backend
        self._faiss = _faiss_of(self.embeddings) if backend == "faiss" else None

    def __len__(self) -> int:
        return len(self.metadata)

    @property
    def ids(self) -> range:
        return range(len(self))

    def vectors(self, ids: Sequence[int]) -> torch.Tensor:
        """The embeddings of some rows, (len(ids), D) float32."""
        return torch.from_numpy(self.embeddings[np.asarray(ids, dtype=np.int64)]).float()

    def search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (Q, D) -> scores and row numbers, both (Q, min(k, N)), best first.

        Works on the queries' device. Equal scores come in the order of their rows (with faiss, in any).
        """
        k = min(k, len(self))
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1]:
            raise DataError(f"The queries have shape {tuple(queries.shape)}; expected (Q, {self.embeddings.shape[1]}).")
        if self._faiss is not None:
            scores, indices = self._faiss.search(queries.float().cpu().numpy(), k)
            return torch.from_numpy(scores), torch.from_numpy(indices)
        return _search_blocks(self.embeddings, queries.float(), k)

    def add(self, embeddings: np.ndarray | torch.Tensor, metadata: Sequence[dict] | pd.DataFrame) -> None:
        """Appends rows. Copies the embeddings into memory once."""
        embeddings, metadata = checked(embeddings, metadata)
        if embeddings.shape[1] != self.embeddings.shape[1]:
            raise DataError(
                f"The new embeddings have {embeddings.shape[1]} columns; expected {self.embeddings.shape[1]}."
            )
        self._replace(np.concatenate([self.embeddings, embeddings.astype(self.embeddings.dtype)]), metadata)

    def delete(self, ids: Sequence[int]) -> None:
        """Removes rows; those after them move up. Copies what remains into memory once."""
        gone = set(map(int, ids))
        if not gone <= set(range(len(self))):
            raise DataError(f"Row {min(gone - set(range(len(self))))} is not in the index of {len(self)} rows.")
        keep = [row for row in range(len(self)) if row not in gone]
        kept = [self.metadata[row] for row in keep]
        self.metadata = []
        self._replace(self.embeddings[keep], kept)

    def _replace(self, embeddings: np.ndarray, more: list[dict]) -> None:
        self.embeddings, self.metadata = embeddings, self.metadata + more
        if self.backend == "faiss":
            self._faiss = _faiss_of(embeddings)

    def save(self, folder: Path) -> None:
        """Writes embeddings (.npy), metadata (JSON lines) and the manifest that names them: whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stem = uuid.uuid4().hex[:12]
        save_array(folder / f"{stem}.npy", self.embeddings)
        write_manifest(folder, f"{stem}.npy", self.metadata)

    @classmethod
    def load(cls, folder: Path, backend: str = "exact") -> "GalleryIndex":
        """Maps the saved embeddings; nothing is unpickled. Raises DataError on a missing or damaged index."""
        manifest = Path(folder) / MANIFEST
        try:
            names = json.loads(manifest.read_text())
            # Copy on write: torch wants writable memory, and the file stays as it is.
            embeddings = np.load(_beside(manifest, names["embeddings"]), mmap_mode="c", allow_pickle=False)
            lines = _beside(manifest, names["metadata"]).read_text().splitlines()
            return cls(embeddings, [json.loads(line) for line in lines], backend)
        except FileNotFoundError as error:
            raise DataError(f"{error.filename} does not exist; expected a saved gallery index.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{manifest} does not describe a whole gallery index ({error}).") from error


def checked(embeddings: np.ndarray | torch.Tensor, metadata: Sequence[dict] | pd.DataFrame):
    """Embeddings as a (N, D) float array and metadata as N dicts; DataError where they do not fit."""
    rows = metadata.to_dict("records") if isinstance(metadata, pd.DataFrame) else list(metadata)
    array = embeddings.detach().cpu().numpy() if isinstance(embeddings, torch.Tensor) else embeddings
    if array.ndim != 2 or array.dtype not in (np.float32, np.float16):
        raise DataError(f"The embeddings are {array.dtype} {array.shape}; expected float32 or float16 (N, D).")
    if len(array) != len(rows):
        raise DataError(f"There are {len(array)} embeddings and {len(rows)} rows of metadata; expected as many.")
    return array, rows


def write_manifest(folder: Path, embeddings: str, metadata: list[dict], **more) -> None:
    """Makes `embeddings`, a file already in the folder, the index there, and drops the files of the one before."""
    lines = f"{Path(embeddings).stem}.jsonl"
    write_text(folder / lines, "".join(json.dumps(row) + "\n" for row in metadata))
    write_json(folder / MANIFEST, {"embeddings": embeddings, "metadata": lines, **more})
    for file in (*folder.glob("*.npy*"), *folder.glob("*.jsonl*")):  # with what a killed process was writing
        if file.name not in (embeddings, lines):
            file.unlink()


def save_array(path: Path, array: np.ndarray) -> None:
    with written_whole(path) as part, part.open("wb") as out:
        np.save(out, array)


def _beside(manifest: Path, name: str) -> Path:
    if Path(name).name != name:
        raise ValueError(f"the file name {name!r} leaves the folder")
    return manifest.parent / name


def _search_blocks(embeddings: np.ndarray, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    most = BLOCK if embeddings.dtype == np.float32 else min(BLOCK, CONVERTED // embeddings.shape[1])
    step = min(most, max(1_024, SCORES // max(1, len(queries))))
    best = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, len(embeddings), step):
            block = torch.from_numpy(embeddings[start : start + step]).to(queries.device).float()
            scores = _scores(block, queries, pool)
            mark = scores.topk(min(k, len(block))).values[:, -1:]
            rows = (scores < mark).logical_not().any(0).nonzero()[:, 0]  # the others need no key
            best = torch.cat([best, _keys(scores[:, rows], start + rows)], 1)
            best = best.topk(min(k, best.shape[1])).values
    return _unpacked(best)


def _scores(block: torch.Tensor, queries: torch.Tensor, pool: ThreadPoolExecutor) -> torch.Tensor:
    """(N, D), (Q, D) -> (Q, N).

    One query waits for memory alone. A dot product a row reads it nearly as fast as it can be read, where the
    matrix-vector products of BLAS took up to three times as long. Few queries are faster as columns than as rows.
    """
    if len(queries) > 1 or queries.device.type != "cpu":
        return (block @ queries.T).T
    column = queries.detach().numpy().T
    # The added axis makes it one product of (1, D) and (D, 1) a row.
    parts = block.chunk(torch.get_num_threads() if block.numel() >= ALONE else 1)
    run = map if len(parts) == 1 else pool.map
    scores = run(lambda rows: np.matmul(rows.numpy()[:, None], column), parts)
    return torch.from_numpy(np.concatenate(list(scores))[None, :, 0, 0])


def _keys(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """One integer for score (Q, N) and row (N,), larger for a better score and, at the same score, an earlier row.

    So equal scores have one order, whatever k and the blocks. The bits of a float sort like an integer, but for the
    magnitude of negative ones, which is turned round; they go above the row's 32 bits.
    """
    bits = (scores + 0.0).view(torch.int32).long()  # + 0 makes one zero of the two that floats have
    return ((bits ^ ((bits >> 63) & MAGNITUDE)) << 32) - rows


def _unpacked(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = -keys & 0xFFFFFFFF
    high = (keys + rows) >> 32
    return (high ^ ((high >> 63) & MAGNITUDE)).int().view(torch.float32), rows


def _faiss_of(embeddings: np.ndarray):
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("backend='faiss' needs faiss; install it with: pip install 'reidlib[large]'.") from error
    cells = max(1, int(len(embeddings) ** 0.5))
    width = embeddings.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.nprobe = max(1, cells // 8)
    sample = np.linspace(0, len(embeddings) - 1, min(len(embeddings), 64 * cells)).astype(np.int64)
    index.train(embeddings[sample].astype(np.float32, copy=False))
    for start in range(0, len(embeddings), BLOCK):
        index.add(embeddings[start : start + BLOCK].astype(np.float32, copy=False))
    return index
