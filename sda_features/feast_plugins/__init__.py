"""Drop-in classes for feature_store.yaml: Feast's engine, online and offline store, with paths for vectors."""
