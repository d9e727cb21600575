"""Ranking metrics and the protocols they are measured under; numpy only."""
