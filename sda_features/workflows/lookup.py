"""`lookup`: what the online store holds of some items, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sda_features.config import MODALITIES
from sda_features.results import Result

if TYPE_CHECKING:
    from sda_features.serving import EmbeddingClient, Embeddings

SHOWN = 4  # leading values of a vector


@dataclass(frozen=True)
class LookupResult(Result):
    """Items with `version` and, by modality, `dim`, `norm` and `values` of a vector, or None.

    Attributes:
        view, project, address: where they were looked for.
        items: one a requested id.
    """

    view: str
    project: str
    address: str
    items: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """See `Result`."""
        return {"view": self.view, "project": self.project, "items": self.items}

    def __str__(self) -> str:
        lines = []
        for item in self.items:
            version = f"version {item['version']}" if item["version"] else "not in the online store"
            lines.append(f"{item['item_id']}  {version}")
            vectors = [(name, item[name]) for name in MODALITIES if name in item and item["version"]]
            lines += [f"  {name:<6}{_line(vector)}" for name, vector in vectors]
        return "\n".join(lines)

    @property
    def found(self) -> bool:
        """Whether any item has a vector."""
        return any(item.get(name) for item in self.items for name in MODALITIES)


def look_up(
    client: EmbeddingClient, item_ids: Sequence[str | int], modality: str, full: bool
) -> LookupResult:
    """Read items; `full` keeps all values of a vector instead of the first."""
    found = client.get(item_ids)
    modalities = MODALITIES if modality == "both" else (modality,)
    items = [_describe(found, row, modalities, full) for row in range(len(found))]
    return LookupResult(client.view, client.project, str(client.address), items)


def _describe(found: Embeddings, row: int, modalities: Sequence[str], full: bool) -> dict[str, Any]:
    """What was found of one item, in types that JSON has."""
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


def _line(vector: dict[str, Any] | None) -> str:
    if vector is None:
        return "missing"
    values = ", ".join(f"{value:.6g}" for value in vector["values"])
    more = ", ..." if vector["dim"] > len(vector["values"]) else ""
    return f"found, dimension {vector['dim']}, norm {vector['norm']:.4f}: [{values}{more}]"
