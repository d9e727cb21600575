"""Settings of the service: environment variables RANKING_..., each described once, on its field."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field

from sda_features.config import Settings
from sda_features.serving.layout import IdType

PREFIX = "RANKING_"
LINK = re.compile(r"service_host|service_port(_.+)?|port(_\d+_(tcp|udp|sctp)(_(addr|port|proto))?)?")


class ServiceSettings(Settings):
    """Read by `from_environment`: RANKING_RUN sets `run`, and so on."""

    run: Path = Field(description="Run folder of a trained recommender.")
    repo: Path = Field(description="Feast repo: a folder with feature_store.yaml.")
    feature_set: str = Field("sda", description="Feature set whose vectors the run was trained on.")
    join_key: str = Field("item_id", description="Join key of the item entity.")
    id_type: IdType = Field("string", description="Type of item ids in Feast.")
    deadline_ms: float = Field(50, gt=0, description="Longest wait for Redis, in milliseconds.")
    max_candidates: int = Field(1000, gt=0, description="Most candidates of a request.")
    max_history: int = Field(200, gt=0, description="Most history items of a request.")
    concurrency: int = Field(1, gt=0, description="Requests in work at a time; others wait their turn.")
    breaker_failures: int = Field(
        5, gt=0, description="Failed reads in a row after which Redis is left alone."
    )
    breaker_pause_s: float = Field(1.0, gt=0, description="Seconds until one request tries Redis again.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the variables that start with RANKING_.

        Those that Kubernetes and Docker set for a service called "ranking", such as
        RANKING_SERVICE_HOST and RANKING_PORT_80_TCP, are not meant for this one.

        Raises:
            SettingsError: a variable is unknown, missing or not usable.
        """
        own = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in environment.items()
            if name.startswith(PREFIX)
        }
        return cls.parse(**{name: value for name, value in own.items() if not LINK.fullmatch(name)})
