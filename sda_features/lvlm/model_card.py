"""The README.md beside a checkpoint: what it is, what it was made from, how to use it."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from sda_features.config import AdaptSettings


def checkpoint_card(settings: AdaptSettings, manifest: dict[str, Any]) -> str:
    """Markdown made of facts that the settings of a run and the manifest of its checkpoint state."""
    adapter, loss, train = settings.adapter, settings.loss, settings.train
    metrics, data = manifest.get("metrics", {}), manifest.get("data", {})
    trained_on = data.get("pairs", 0) - data.get("held_out", 0)
    facts = {
        "base model": f"{manifest['base_model']['name']}, sha256 `{manifest['base_model']['sha256']}`",
        "held as": settings.backbone.quantization.replace("none", "unquantised"),
        "adapter": f"{adapter.kind}, rank {adapter.rank}, {adapter.experts} experts, alpha {adapter.alpha:g}",
        "trained values": f"{manifest.get('trainable_parameters', 0):,}",
        "loss": f"{loss.kind}, temperature {metrics.get('temperature', loss.temperature):.4g}",
        "trained for": f"{metrics.get('steps', train.steps)} steps of {train.batch_size} items, seed {train.seed}",
        "data": f"{trained_on:,} items with text and picture, sha256 `{data.get('sha256', '')}`",
        "vectors": "L2-normalised" if loss.normalize else "not normalised",
    }
    if held_out := metrics.get("held_out"):
        facts["held out"] = (
            f"{held_out['items']} items, text to image R@1 {held_out['recall@1']:.4f}, "
            f"R@10 {held_out['recall@10']:.4f}, weights of step {held_out['step']}"
        )
    table = tabulate(facts.items(), ["", ""], tablefmt="github")
    return f"""---
library_name: sda-features
base_model: {manifest["base_model"]["name"]}
---

# Item-vector adapter

{table}

```bash
sda-features materialize items.parquet --checkpoint PATH-OF-THIS-FOLDER --repo FEAST-REPO
sda-features export PATH-OF-THIS-FOLDER --output adapters
```

Vectors of two checkpoints do not lie in one space.
"""
