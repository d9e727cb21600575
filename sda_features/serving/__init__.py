"""Item vectors for a ranking service: `EmbeddingClient`. Needs numpy and redis; no torch, no Feast.

`sda_features.serving.snapshot` reads vectors from a file instead, and needs pyarrow.
"""

from sda_features.serving.aio import AsyncEmbeddingClient
from sda_features.serving.client import EmbeddingClient
from sda_features.serving.reading import Embeddings

__all__ = ["AsyncEmbeddingClient", "EmbeddingClient", "Embeddings"]
