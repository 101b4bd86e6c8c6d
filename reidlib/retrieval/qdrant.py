"""The gallery index on a Qdrant vector store: embedded for a try, a server or a cluster for millions of pictures."""

from collections.abc import KeysView, Sequence

import numpy as np
import pandas as pd
import torch

from reidlib.errors import ConfigError, DataError
from reidlib.retrieval.index import checked

BATCH = 512


class QdrantIndex:
    """A collection of a Qdrant store with the calls of `GalleryIndex`: search, vectors, add, delete, metadata.

    `location` is ":memory:", a folder (both embedded, no server) or the address of a server or cluster,
    "http://host:6333". Ids are point ids: they stay as they are when others are deleted. Needs the extra `store`.
    """

    def __init__(
        self,
        embeddings: np.ndarray | torch.Tensor,
        metadata: Sequence[dict] | pd.DataFrame,
        location: str = ":memory:",
        collection: str = "gallery",
    ):
        try:
            from qdrant_client import QdrantClient, models
        except ImportError as error:
            raise ConfigError("QdrantIndex needs qdrant-client; run: pip install 'reidlib[store]'.") from error
        self.collection = collection
        remote = location == ":memory:" or "://" in location
        self.client = QdrantClient(location) if remote else QdrantClient(path=location)
        embeddings, metadata = checked(embeddings, metadata)
        self.width = embeddings.shape[1]
        if self.client.collection_exists(collection):
            self.client.delete_collection(collection)
        self.client.create_collection(
            collection, vectors_config=models.VectorParams(size=self.width, distance=models.Distance.DOT)
        )
        self.metadata: dict[int, dict] = {}
        self.add(embeddings, metadata)

    def __len__(self) -> int:
        return len(self.metadata)

    @property
    def ids(self) -> KeysView[int]:
        return self.metadata.keys()

    def vectors(self, ids: Sequence[int]) -> torch.Tensor:
        points = self.client.retrieve(self.collection, [int(i) for i in ids], with_vectors=True, with_payload=False)
        found = {point.id: point.vector for point in points}
        return torch.tensor([found[int(i)] for i in ids], dtype=torch.float32)

    def search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (Q, D) -> scores and point ids, both (Q, min(k, N)), best first."""
        from qdrant_client import models

        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise DataError(f"The queries have shape {tuple(queries.shape)}; expected (Q, {self.width}).")
        requests = [models.QueryRequest(query=query, limit=min(k, len(self))) for query in queries.tolist()]
        found = [answer.points for answer in self.client.query_batch_points(self.collection, requests)]
        scores = torch.tensor([[point.score for point in points] for points in found])
        return scores, torch.tensor([[point.id for point in points] for points in found])

    def add(self, embeddings: np.ndarray | torch.Tensor, metadata: Sequence[dict] | pd.DataFrame) -> None:
        embeddings, metadata = checked(embeddings, metadata)
        first = max(self.metadata, default=-1) + 1
        ids = range(first, first + len(metadata))
        rows = embeddings.astype(np.float32)
        self.client.upload_collection(self.collection, rows, metadata, ids, batch_size=BATCH, wait=True)
        self.metadata.update(zip(ids, metadata, strict=True))

    def delete(self, ids: Sequence[int]) -> None:
        from qdrant_client import models

        ids = [int(i) for i in ids]
        self.client.delete(self.collection, points_selector=models.PointIdsList(points=ids), wait=True)
        for i in ids:
            del self.metadata[i]
