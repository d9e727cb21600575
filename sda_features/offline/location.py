"""Where the rows of a slot lie: a local folder, or a URL of an object store (s3://, gs://, abfs://).

Credentials and endpoints come from the environment, under the names that object stores' own tools
use (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, ...): Arrow reads and
writes the parquet files, deltalake the log beside them, and both know these names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.fs as pa_fs

from sda_features.errors import FeatureStoreError

Location: TypeAlias = Path | str


def is_url(location: Location) -> bool:
    """Whether a location is a URL."""
    return "://" in str(location)


def open_folder(location: Location) -> pa_fs.FileSystem:
    """The file system whose root is this folder.

    Raises:
        FeatureStoreError: nothing here reads such URLs.
    """
    if not is_url(location):
        return pa_fs.SubTreeFileSystem(str(location), pa_fs.LocalFileSystem())
    try:
        files, root = pa_fs.FileSystem.from_uri(str(location))
    except (pa.ArrowException, OSError) as problem:
        raise FeatureStoreError(
            f"There is no file system for the offline rows at {location}: {problem}"
        ) from None
    return pa_fs.SubTreeFileSystem(root, files)


def parquet_names(location: Location) -> list[str]:
    """Names of the parquet files of a folder, sorted; none if it is missing.

    Names that begin with a dot or an underscore are no rows, as for every reader of parquet folders.
    """
    found = open_folder(location).get_file_info(pa_fs.FileSelector("", allow_not_found=True))
    files = [info.base_name for info in found if info.type == pa_fs.FileType.File]
    return sorted(name for name in files if name.endswith(".parquet") and name[0] not in "._")
