"""`sda-features lookup`: read item vectors from the online store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sda_features.artifacts import to_json

if TYPE_CHECKING:
    from sda_features.serving import Embeddings

SHOWN = 4  # leading values of a vector


@click.command(name="lookup")
@click.argument("item_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--repo", type=click.Path(path_type=Path), default=".", show_default=True, help="Feast repo.")
@click.option("--feature-set", default="sda", show_default=True, help="Feature set to read.")
@click.option(
    "--modality",
    type=click.Choice(["text", "image", "both"]),
    default="both",
    show_default=True,
    help="Vectors to show.",
)
@click.option("--join-key", default="item_id", show_default=True, help="Join key of the item entity.")
@click.option(
    "--id-type",
    type=click.Choice(["string", "int32", "int64"]),
    default="string",
    show_default=True,
    help="Type of the ids in Feast.",
)
@click.option("--full", is_flag=True, help=f"Print all values of a vector, not only the first {SHOWN}.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    item_ids: tuple[str, ...],
    repo: Path,
    feature_set: str,
    modality: str,
    join_key: str,
    id_type: Any,
    full: bool,
    as_json: bool,
) -> None:
    """Show what the online store holds for the items ID...

    \b
    Example:
      sda-features lookup B001 B002 --repo shop/feature_repo
      sda-features lookup B001 --repo shop/feature_repo --modality text --full --json
    """
    from sda_features.serving import EmbeddingClient

    with EmbeddingClient.from_repo(repo, feature_set, join_key=join_key, id_type=id_type) as client:
        found = client.get(item_ids)
    modalities = ("text", "image") if modality == "both" else (modality,)
    items = [_describe(found, row, modalities, full) for row in range(len(found))]
    if as_json:
        click.echo(to_json({"view": client.view, "project": client.project, "items": items}))
        return
    for item in items:
        version = f"version {item['version']}" if item["version"] else "not in the online store"
        click.echo(f"{item['item_id']}  {version}")
        for name in modalities if item["version"] else ():
            click.echo(f"  {name:<6}{_line(item[name], full)}")
    if not (found.text_found.any() or found.image_found.any()):
        click.echo(
            f"No vectors of {client.view} in project {client.project} at {client.address}. Materialize them "
            "(`sda-features materialize`), or correct --feature-set, --join-key or --id-type.",
            err=True,
        )


def _describe(found: Embeddings, row: int, modalities: tuple[str, ...], full: bool) -> dict[str, Any]:
    """What was found for one item, in types that JSON has."""
    item: dict[str, Any] = {"item_id": found.item_ids[row], "version": found.versions[row]}
    for name in modalities:
        matrix, mask = (found.text, found.text_found) if name == "text" else (found.image, found.image_found)
        item[name] = None
        if mask[row]:
            vector = matrix[row].astype(float)
            values = vector if full else vector[:SHOWN]
            norm = float((vector @ vector) ** 0.5)
            item[name] = {"dim": len(vector), "norm": norm, "values": values.tolist()}
    return item


def _line(vector: dict[str, Any] | None, full: bool) -> str:
    if vector is None:
        return "missing"
    values = ", ".join(f"{value:.6g}" for value in vector["values"])
    more = "" if full or vector["dim"] <= SHOWN else ", ..."
    return f"found, dimension {vector['dim']}, norm {vector['norm']:.4f}: [{values}{more}]"
