"""Whether disk and Redis have room for what a run will write, before the run encodes anything long."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from sda_features.errors import FeatureStoreError, OnlineStoreError
from sda_features.feature_store.online_rows import online_server
from sda_features.feature_store.repo import FeatureSet
from sda_features.offline.location import is_url
from sda_features.online.pipelines import nodes_of

ROW_BYTES = 500  # of a hash besides its vectors: key, fields, times, what the allocator rounds up


class Memory(NamedTuple):
    """Memory of a server.

    Attributes:
        used: bytes.
        limit: bytes (maxmemory); 0: none.
        policy: what it does at the limit (maxmemory-policy).
    """

    used: int
    limit: int
    policy: str


def check_space(opened: FeatureSet, items: int, row: int) -> None:
    """Compare the space that new rows need with what the disk and Redis have left.

    Args:
        opened: the slot; an object store, and an online store that is not Redis, are not checked.
        items: rows that will be written, at most.
        row: bytes of one.

    Raises:
        FeatureStoreError: the disk has less.
        OnlineStoreError: Redis has less. Under a policy that evicts keys it would drop others instead.
    """
    if opened.has_folder and not is_url(opened.folder):
        folder = Path(opened.folder)
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        if items * row > free:
            raise FeatureStoreError(
                f"Expected room for {items:,} rows in {opened.folder}, about {items * row:,} bytes; the disk has "
                f"{free:,} bytes left. Prune versions that are not needed, or make room."
            )
    needed = items * (row + ROW_BYTES)
    with online_server(opened) as server:
        memory = memory_of(server) if server is not None else {}
    limits = [node.limit for node in memory.values()]
    if not limits or not all(limits):
        return  # no limit, or the user may not ask
    free = sum(max(0, node.limit - node.used) for node in memory.values())
    if needed > free:
        policies = ", ".join(sorted({node.policy for node in memory.values()}))
        raise OnlineStoreError(
            f"Expected room for {items:,} rows in Redis at {opened.config.redis_address()}, about {needed:,} bytes; "
            f"it has {free:,} of {sum(limits):,} bytes left (maxmemory, policy {policies}). Prune versions that are "
            "not needed, raise maxmemory, or store smaller numbers (`sda-features init --feature-sets NAME:int8`)."
        )


def memory_of(server: Any) -> dict[str, Memory]:
    """Memory by node; empty if the user may not ask."""
    try:
        infos = {name: node.info("memory") for name, node in nodes_of(server).items()}
    except ResponseError:
        return {}
    return {
        name: Memory(
            int(info["used_memory"]),
            int(info.get("maxmemory", 0)),
            info.get("maxmemory_policy", "noeviction"),
        )
        for name, info in infos.items()
    }
