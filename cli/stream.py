"""`sda-features stream`: keep vectors up to date from a stream of events."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from sda_features.config import CatalogSettings
from sda_features.errors import SettingsError

from .materialize import load_encoder
from .options import collect, settings_options
from .ranges import COUNT, Device

TIMEOUT = 60.0  # seconds; a read waits for events meanwhile


@click.command(name="stream")
@click.argument("key")
@click.option("--repo", type=click.Path(path_type=Path), default=".", show_default=True, help="Feast repo.")
@click.option("--feature-set", default="sda", show_default=True, help="Feature set to write.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Checkpoint that `adapt` wrote.")
@click.option("--model", help="Base model; see `materialize`.")
@click.option("--quantization", type=click.Choice(["nf4", "int8", "none"]), help="See `materialize`.")
@click.option("--device", type=Device(), help="Torch device.")
@click.option("--url", help="Redis server with the stream.  [default: the repo's online store]")
@click.option("--group", default="sda-features", show_default=True, help="Consumer group.")
@click.option("--consumer", default="stream", show_default=True, help="Name of this process in the group.")
@click.option("--max-events", type=COUNT, default=256, show_default=True, help="Events written together.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a batch.")
@click.option("--once", is_flag=True, help="End when no event is left.")
@settings_options(CatalogSettings, skip=("path",))
def command(
    key: str,
    repo: Path,
    feature_set: str,
    checkpoint: Path | None,
    model: str | None,
    quantization: str | None,
    device: str | None,
    url: str | None,
    group: str,
    consumer: str,
    max_events: int,
    as_json: bool,
    once: bool,
    **values: Any,
) -> None:
    """Take upserts and deletions of items from the Redis Stream KEY and write their vectors within seconds.

    An entry is `item` with a row of the catalogue as JSON; with `op delete` the item is gone. It is
    acknowledged when offline and online store have it. The version has to be stored: run
    `materialize` first.

    \b
    Example:
      sda-features stream items --checkpoint runs/sda/checkpoint --repo shop/feature_repo
      redis-cli XADD items "*" item '{"item_id": "B1", "title": "oak table", "image": "b1.jpg"}'
      redis-cli XADD items "*" op delete item '{"item_id": "B1"}'
    """
    if checkpoint is None and model is None:
        raise SettingsError("Give --checkpoint (adapted vectors) or --model (vanilla vectors).")
    import redis

    from sda_features.serving.connection import redis_errors
    from sda_features.serving.repo_config import read_repo_config
    from sda_features.workflows.stream import RedisStream, stream

    given = {"model": model, "quantization": quantization, "device": device}
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = CatalogSettings.parse(path="events.jsonl", **collect(CatalogSettings, values))
    load = partial(load_encoder, checkpoint and checkpoint.resolve(), None, overrides, feature_set)
    address = read_repo_config(repo).redis_address()
    with (
        redis_errors(address),
        redis.Redis.from_url(url) if url else address.connect(timeout=TIMEOUT) as server,
    ):
        source = RedisStream(server, key, group, consumer)
        for done in stream(repo, feature_set, settings, load, source, max_events=max_events):
            if done.written or done.deleted or done.rejected:
                shown = f"written {done.written:,}  deleted {done.deleted:,}  rejected {done.rejected:,}"
                click.echo(json.dumps(asdict(done)) if as_json else shown)
            elif once:
                return
