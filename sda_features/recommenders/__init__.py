"""Recommenders that read frozen item vectors, and the loop that trains them."""
