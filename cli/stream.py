"""`sda-features stream`: keep vectors up to date from a stream of events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet

from .options import REPO, settings_options, show, verb
from .ranges import COUNT, Device
from .version_options import vector_set


@verb(VectorSet.stream)
@click.argument("key")
@REPO
@click.option("--feature-set", default="sda", help="Feature set to write.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Checkpoint that `adapt` wrote.")
@click.option("--model", help="Base model; see `materialize`.")
@click.option("--quantization", type=click.Choice(["nf4", "int8", "none"]), help="See `materialize`.")
@click.option("--device", type=Device(), help="Torch device.")
@click.option("--url", help="Redis server with the stream.  [default: the repo's online store]")
@click.option("--group", default="sda-features", help="Consumer group.")
@click.option("--consumer", default="stream", help="Name of this process in the group.")
@click.option("--kafka", metavar="HOST:PORT", help="KEY is a topic of this Kafka; needs the extra kafka.")
@click.option(
    "--kafka-config", type=click.Path(path_type=Path), help="File of its client's settings, NAME=VALUE."
)
@click.option("--max-events", type=COUNT, default=256, help="Events written together.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a batch.")
@click.option("--once", is_flag=True, help="End when no event is left.")
@settings_options(VectorSet.stream)
def command(repo: Path, feature_set: str, as_json: bool, once: bool, **values: Any) -> None:
    """Take upserts and deletions of items from the Redis Stream KEY and write their vectors within seconds.

    An entry is `item` with a row of the catalogue as JSON; with `op delete` the item is gone. It is
    acknowledged when offline and online store have it. The version has to be stored: run
    `materialize` first. With --kafka, KEY is a topic: a value is a row as JSON, a key without a value
    deletes the item of that id.

    \b
    Example:
      sda-features stream items --checkpoint runs/sda/checkpoint --repo shop/feature_repo
      redis-cli XADD items "*" item '{"item_id": "B1", "title": "oak table", "image": "b1.jpg"}'
      redis-cli XADD items "*" op delete item '{"item_id": "B1"}'
    """
    for done in vector_set(repo, feature_set).stream(**values):
        if done.written or done.deleted or done.rejected:
            show(done, as_json)
        elif once:
            return
