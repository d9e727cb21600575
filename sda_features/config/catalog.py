"""Settings of what is read of an item, and how it is asked about."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator

from sda_features.config.base import WIDEST, Count, Settings, Share


class CatalogSettings(Settings):
    """Where items come from and which of their columns are read."""

    path: str | Path = Field(
        description="Catalogue: a parquet, JSONL or CSV file, or a folder of parquet files; a path or an fsspec URL."
    )
    id_column: str = Field("item_id", description="Column with the item id.")
    text_columns: tuple[str, ...] = Field(
        (), description="Text columns in prompt order; none: every other column."
    )
    image_column: str | None = Field(
        None, description="Column with image bytes, a path or a URL; none: 'image' if present."
    )
    image_root: Path | None = Field(
        None, description="Folder that image paths are relative to and may not leave."
    )
    image_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts that image URLs may name, e.g. img.shop.example or img.shop.example:8080; "
        "an address that is not public is listed itself.",
    )
    image_timeout: float = Field(
        30.0, gt=0, le=3600, description="Seconds that the picture of a URL may take, retries included."
    )
    max_image_bytes: Count = Field(20_000_000, description="Largest encoded image, in bytes.")
    max_image_pixels: Count = Field(50_000_000, description="Largest image as stored, in pixels.")
    max_bad_rows: Share = Field(0.1, description="Share of bad rows above which the run stops.")
    max_unreachable: Share = Field(
        0.05,
        description="Share of rows whose picture cannot be reached now above which the run stops; such a row "
        "keeps what is stored of it.",
    )

    @field_validator("path")
    @classmethod
    def _path_or_url(cls, value: Path | str) -> Path | str:
        return Path(value) if isinstance(value, str) and "://" not in value else value

    @field_validator("image_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        pattern = r"[\w.-]+(:\d{1,5})?|\[[0-9a-fA-F:.]+\](:\d{1,5})?|[0-9a-fA-F:.]+"
        if wrong := [host for host in value if not re.fullmatch(pattern, host)]:
            raise ValueError(f"{wrong[0]!r} is no host; expected one such as img.shop.example, or host:port")
        return value


class PromptSettings(Settings):
    """The two prompts of an item (paper, section 2.1). Stored in the checkpoint."""

    text_instruction: str = Field(
        "Summarize the following item.", description="First line of the text prompt."
    )
    image_instruction: str = Field(
        "Summarize the item in the picture.",
        description="Line that follows the picture.",
    )
    max_field_chars: Count = Field(100, description="Length at which each field value is cut, in characters.")
    max_text_tokens: Count = Field(
        2048, description="Length at which a text prompt is cut, in tokens; what is cut is counted."
    )
    max_image_side: int = Field(
        256, ge=28, le=WIDEST, description="Longest side of an image after scaling down, in pixels."
    )
