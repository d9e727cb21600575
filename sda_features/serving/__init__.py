"""Item vectors for a ranking service: `EmbeddingClient`. Needs numpy and redis; no torch, no Feast."""

from sda_features.serving.client import EmbeddingClient, Embeddings

__all__ = ["EmbeddingClient", "Embeddings"]
