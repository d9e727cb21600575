"""Rows into Redis: the right to write, the commands, the writer; no Feast in here."""
