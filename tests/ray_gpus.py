"""The Ray engine on this machine with two GPUs in name: `python -m tests.ray_gpus CATALOGUE MODEL NOTES`.

A process of its own, because Ray leaves files and processes to the garbage collector.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import ray

from sda_features.catalog.rows import Catalog
from sda_features.config import BackboneSettings, CatalogSettings, PromptSettings
from sda_features.errors import SettingsError
from sda_features.lvlm.checkpoint import LoadedEncoder, unadapted
from sda_features.workflows.engines import Progress
from sda_features.workflows.ray_engine import ray_engine

GPUS, SHARD_ROWS = 2, 8


def load_and_note(settings: BackboneSettings, notes: Path) -> LoadedEncoder:
    """Leave a file that is named like the GPUs this process may use."""
    (notes / f"gpu-{os.environ.get('CUDA_VISIBLE_DEVICES')}").touch()
    return unadapted(settings, PromptSettings())


def main(catalogue: str, model: str, notes: str) -> None:
    """Encode the catalogue and print what the engine took."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init("local", num_cpus=GPUS + 2, num_gpus=GPUS, include_dashboard=False, log_to_driver=False)
    settings = BackboneSettings.parse(model=model, quantization="none", device="cpu", dtype="float32")
    load = partial(load_and_note, settings, Path(notes))
    with ray_engine(load, 4, SHARD_ROWS) as encoding:
        catalog = Catalog(CatalogSettings.parse(path=catalogue))
        encoded = sum(len(shard.item_ids) for shard in encoding.shards(catalog, {}, Progress()))
    with pytest.raises(SettingsError) as refused, ray_engine(load, 4, SHARD_ROWS, workers=GPUS + 1):
        pass
    found = {"workers": encoding.workers, "options": encoding.options, "encoded": encoded}
    print(json.dumps({**found, "refused": str(refused.value)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
