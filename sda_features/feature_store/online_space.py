"""Whether Redis has room for what a run will write, before the run encodes anything long."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from redis.cluster import RedisCluster
from redis.exceptions import ResponseError

from sda_features.errors import OnlineStoreError
from sda_features.feature_store.online_rows import online_server
from sda_features.feature_store.repo import FeatureSet

ROW_BYTES = 500  # of a hash besides its vectors: key, fields, times, what the allocator rounds up


def check_space(opened: FeatureSet, items: int, sample: pa.Table) -> None:
    """Compare the memory that new rows need with what Redis may still use.

    Args:
        opened: the slot; with an online store that is not Redis nothing is checked.
        items: rows that will be written, at most.
        sample: some of them.

    Raises:
        OnlineStoreError: Redis has less. Under a policy that evicts keys it would drop others instead.
    """
    needed = items * (sample.nbytes // max(1, len(sample)) + ROW_BYTES)
    with online_server(opened) as server:
        memory = memory_of(server) if server is not None else {}
    limits = [limit for _, limit in memory.values()]
    if not limits or not all(limits):
        return  # no limit, or the user may not ask
    free = sum(max(0, limit - used) for used, limit in memory.values())
    if needed > free:
        raise OnlineStoreError(
            f"Expected room for {items:,} rows in Redis at {opened.config.redis_address()}, about {needed:,} bytes; "
            f"it has {free:,} of {sum(limits):,} bytes left (maxmemory). Prune versions that are not needed, raise "
            "maxmemory, or store smaller numbers (`sda-features init --feature-sets NAME:int8`)."
        )


def memory_of(server: Any) -> dict[str, tuple[int, int]]:
    """Bytes used and allowed by node; empty if the user may not ask."""
    nodes = {"server": server}
    if isinstance(server, RedisCluster):
        nodes = {node.name: server.get_redis_connection(node) for node in server.get_primaries()}  # type: ignore[no-untyped-call]
    try:
        infos = {name: node.info("memory") for name, node in nodes.items()}
    except ResponseError:
        return {}
    return {name: (int(info["used_memory"]), int(info.get("maxmemory", 0))) for name, info in infos.items()}
