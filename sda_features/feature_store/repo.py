"""Opening a feature set of an applied Feast repo, and keeping Feast quiet."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sda_features.errors import FeatureStoreError, SDAError
from sda_features.offline.location import Location, is_url
from sda_features.offline.schema import STORE_DTYPE_TAG
from sda_features.serving.codec import StoreDtype
from sda_features.serving.layout import ID_TYPES, IdType, view_name
from sda_features.serving.repo_config import RepoConfig, read_repo_config

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

logger = logging.getLogger(__name__)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class FeatureSet:
    """One slot of a feature set, as the registry of a Feast repo describes it."""

    name: str
    config: RepoConfig  # the repo's feature_store.yaml
    store: FeatureStore
    slot: int  # from 1
    view: FeatureView
    join_key: str  # of the view's entity
    id_type: IdType

    @property
    def has_folder(self) -> bool:
        """Whether the rows are in a folder of parquet files of our own, local or at the URL of an object store."""
        from feast import FileSource

        source = self.view.batch_source
        return isinstance(source, FileSource) and not source.path.endswith(".parquet")

    @property
    def store_dtype(self) -> StoreDtype:
        """How the numbers of its vectors are stored."""
        dtype: StoreDtype = self.view.tags.get(STORE_DTYPE_TAG, "float32")
        return dtype

    @property
    def folder(self) -> Location:
        """The folder with the rows of this slot: a path, or the URL of an object store.

        Raises:
            FeatureStoreError: the view's source is not a folder.
        """
        source = self.view.batch_source
        if not self.has_folder:
            raise FeatureStoreError(
                f"Expected {self.view.name} to read a folder of parquet files, got {type(source).__name__}. "
                "Write its rows with the tools of that source."
            )
        path = str(source.path).removeprefix("file://")
        return path if is_url(path) else Path(self.store.repo_path, path)

    def source_columns(self, *names: str) -> list[str]:
        """What the view's source calls features and the join key."""
        columns = {field: column for column, field in self.view.batch_source.field_mapping.items()}
        return [columns.get(name, name) for name in names]

    def pull_latest(self, columns: Sequence[str], end: datetime) -> pa.Table:
        """The newest row of each item up to `end`, from the offline store that the repo names.

        Args:
            columns: of the source, see `source_columns`: the ids, then features.
            end: with a time zone.

        Returns:
            These columns and the event timestamps, as the store has them.
        """
        with quiet_feast():
            from feast.infra.offline_stores.offline_utils import get_offline_store_from_config

            config, source = self.store.config, self.view.batch_source
            job = get_offline_store_from_config(config.offline_store).pull_latest_from_table_or_query(
                config=config,
                data_source=source,
                join_key_columns=[columns[0]],
                feature_name_columns=list(columns[1:]),
                timestamp_field=source.timestamp_field,
                created_timestamp_column=source.created_timestamp_column or None,
                start_date=EPOCH,
                end_date=end,
            )
            return job.to_arrow()


def open_feature_set(repo_path: Path | str, feature_set: str, slot: int = 1) -> FeatureSet:
    """Find a slot of a feature set in the registry of a Feast repo.

    Raises:
        FeatureStoreError: the folder is not a Feast repo, `feast apply` has not been run there, or
            the registry has no such view.
    """
    name = view_name(feature_set, slot)
    config = read_repo_config(repo_path)
    with quiet_feast():
        from feast import FeatureStore
        from feast.errors import FeastObjectNotFoundException

        from sda_features.feature_store.registry_file import write_registry_whole

        try:
            store = FeatureStore(repo_path=str(repo_path))
            write_registry_whole(store)
            view = store.get_feature_view(name)
        except FeastObjectNotFoundException:
            raise FeatureStoreError(_missing_view(store, repo_path, name)) from None
        except SDAError:
            raise
        except Exception as error:
            raise FeatureStoreError(
                f"Feast cannot open the repo {repo_path} ({type(error).__name__}). Run `feast apply` there to see why."
            ) from error
    columns = {column.name: column.dtype.to_value_type().name for column in view.entity_columns}
    if len(columns) != 1 or not set(columns.values()) <= ID_TYPES.keys():
        raise FeatureStoreError(
            f"Expected {name} to have one entity with ids of type {', '.join(ID_TYPES)}, got {columns}. "
            "Define it with `embedding_view` of sda_features.feature_store.definitions."
        )
    ((join_key, value_type),) = columns.items()
    return FeatureSet(feature_set, config, store, slot, view, join_key, ID_TYPES[value_type])


def open_slots(repo_path: Path | str, feature_set: str) -> list[FeatureSet]:
    """All slots of a feature set, from slot 1 to the first that the registry lacks.

    Raises:
        FeatureStoreError: see `open_feature_set`.
    """
    slots = [open_feature_set(repo_path, feature_set)]
    views = {view.name: view for view in slots[0].store.list_feature_views()}
    while view := views.get(view_name(feature_set, len(slots) + 1)):
        slots.append(replace(slots[0], slot=len(slots) + 1, view=view))
    _refuse_shared_folders(slots, views)
    return slots


def _refuse_shared_folders(slots: list[FeatureSet], views: dict[str, FeatureView]) -> None:
    """Two views on one folder would overwrite and prune one another's rows."""
    for opened, (other, view) in product(slots, views.items()):
        name, path = opened.view.name, getattr(opened.view.batch_source, "path", "")
        if path and name != other and getattr(view.batch_source, "path", "").rstrip("/") == path.rstrip("/"):
            raise FeatureStoreError(
                f"The feature views {name} and {other} both have their rows in {path}. Give each a folder of its "
                "own (embedding_source in the definitions), move the rows of one there, and run `feast apply`."
            )


@contextlib.contextmanager
def quiet_feast() -> Iterator[None]:
    """Send what Feast prints in the block to this module's debug log, and drop its warnings.

    Feast prints progress bars and dates; its dependencies announce their own deprecations. Both
    concern Feast's authors, not a user of this package. Errors pass.
    """
    printed = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        if text := printed.getvalue().strip():
            logger.debug("%s", text)


def _missing_view(store: Any, repo_path: Path | str, name: str) -> str:
    present = [view.name for view in store.list_feature_views()]
    if not present:
        return f"Nothing is registered in the Feast repo {repo_path}. Run `feast apply` there first."
    ours = sorted(view for view in present if view_name("x")[1:] in view)
    return (
        f"The Feast repo {repo_path} has no feature view {name}; item vectors there: {', '.join(ours) or 'none'}. "
        "Add it with `sda-features init --feature-sets ... --slots ...` and `feast apply`."
    )
