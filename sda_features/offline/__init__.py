"""The rows of a slot as a Delta Lake table, in a folder or at a URL; no Feast in here."""
