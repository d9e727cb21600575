"""Item vectors for recommenders: adapt a vision-language model, store its vectors in Feast, serve them."""

__version__ = "0.1.0"
