"""Any table a user has, opened in one way; parquet, CSV, JSON lines."""
