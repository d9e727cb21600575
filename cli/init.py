"""`sda-features init`: add the item-vector definitions to a Feast repo."""

from __future__ import annotations

from pathlib import Path

import click

from sda_features.artifacts import to_json


@click.command(name="init")
@click.argument("repo", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option(
    "--feature-sets",
    default="sda,vanilla",
    show_default=True,
    metavar="A,B,...",
    help="Feature sets to define; NAME:float16 and NAME:int8 store smaller numbers.",
)
@click.option(
    "--slots",
    type=click.IntRange(1, 100),
    default=2,
    show_default=True,
    help="Versions of a feature set that can be stored side by side.",
)
@click.option("--entity", help="The repo's item entity: its name, its variable, or module:variable.")
@click.option("--join-key", default="item_id", show_default=True, help="Join key of the item entity.")
@click.option(
    "--source-folder",
    default="data/item_embeddings",
    show_default=True,
    help="Folder of the offline parts, relative to the repo.",
)
@click.option(
    "--feast-materialize/--no-feast-materialize",
    default=None,
    help="Whether the repo's own `feast materialize` writes the vectors, too; it runs where the source folder is. "
    "By default it does if its stores can read the folder.",
)
@click.option("--force", is_flag=True, help="Replace the file even if it was edited.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    repo: Path,
    feature_sets: str,
    slots: int,
    entity: str | None,
    join_key: str,
    source_folder: str,
    feast_materialize: bool | None,
    force: bool,
    as_json: bool,
) -> None:
    """Add the item-vector feature views to the Feast repo in REPO, as one file.

    An entity of items that the repo already has is used, and a file that you edited is not replaced.
    Beside it lies sda-gate.toml, the limits of `sda-features gate`. No other file is touched.

    \b
    Example:
      feast init shop && cd shop/feature_repo
      sda-features init
      feast apply
    """
    from sda_features.feature_store.init import OUR_ONLINE_STORE, init_repo

    result = init_repo(
        repo,
        feature_sets=[name.strip() for name in feature_sets.split(",") if name.strip()],
        slots=slots,
        entity=entity,
        join_key=join_key,
        source_folder=source_folder,
        feast_materialize=feast_materialize,
        force=force,
    )
    from sda_features.thresholds import write_thresholds

    limits = write_thresholds(repo)
    if as_json:
        click.echo(
            to_json(
                {
                    "path": str(result.path),
                    "action": result.action,
                    "entity": str(result.entity) if result.entity else None,
                    "views": result.views,
                    "online_store": result.online_store,
                    "feast_materialize": result.feast_materialize,
                }
            )
        )
        return
    click.echo(f"{result.action} {result.path}")
    if limits:
        click.echo(f"created {limits}")
    click.echo(f"  views   {', '.join(result.views)}")
    click.echo(f"  entity  {f'yours, {result.entity}' if result.entity else f'new, join key {join_key}'}")
    if result.entity and (result.entity.join_key, result.entity.value_type) != ("item_id", "STRING"):
        click.echo(
            f"  readers of the online store need: --join-key {result.entity.join_key or 'KEY'} "
            f"--id-type {(result.entity.value_type or 'STRING').lower()}"
        )
    if not result.feast_materialize:
        click.echo(
            "The repo's own `feast materialize` leaves these views out; `sda-features materialize` writes them."
        )
    if result.online_store == OUR_ONLINE_STORE:
        click.echo(
            f"The online store of this repo is {result.online_store}. Item vectors are read by EmbeddingClient, which "
            "needs no store of its own. In feature_store.yaml, switch to what Feast ships and keep the rest:\n"
            "  online_store:\n    type: redis"
        )
    elif result.online_store != "redis":
        click.echo(
            f"The online store of this repo is {result.online_store}; item vectors are served from Redis. "
            "In feature_store.yaml:\n"
            "  online_store:\n    type: redis\n    connection_string: localhost:6379"
        )
    click.echo(f"Next: cd {repo} && feast apply")
