"""Settings of an interaction log."""

from __future__ import annotations

from pydantic import Field

from sda_features.config.base import MANY, Settings


class LogColumns(Settings):
    """Where an interaction log has what."""

    user_column: str = Field("user_id", description="Column of the log with the user id.")
    item_column: str = Field("item_id", description="Column of the log with the item id.")
    time_column: str | None = Field(
        None,
        description="Column of the log that orders a user's rows; none: timestamp, position or event_timestamp.",
    )


class LogSettings(LogColumns):
    """How an interaction log is read."""

    k_core: int = Field(
        0,
        ge=0,
        le=MANY,
        description="Drop users and items with fewer interactions, until none is left; 0: keep all.",
    )
