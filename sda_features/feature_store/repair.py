"""The version record after Redis has lost it: from its copy, or from what is stored."""

from __future__ import annotations

from sda_features.errors import FeatureStoreError, OnlineStoreError
from sda_features.feature_store.online_rows import missing_online
from sda_features.feature_store.record_copy import read_copy
from sda_features.feature_store.versions import Versions, held_versions, match_version, stored_version
from sda_features.offline.parts import stored_rows
from sda_features.serving.pointer import Pointer, move_pointer


def repair(versions: Versions, live: str | None = None) -> Pointer:
    """Bring a lost or damaged record back; one that can be read stays as it is.

    The copy beside the offline rows says which version was live. A version enters the record only
    if each of its offline rows is online, so that what was changed since the copy is not served.

    Args:
        versions: the feature set.
        live: the version that is live, or an unambiguous beginning of it; None: as in the copy, or
            the only one.

    Raises:
        FeatureStoreError: no version is complete, or nothing says which one is live.
    """
    key, server = versions.key, versions.server
    found: bytes | None = server.get(key)  # type: ignore[assignment]
    if found is not None:
        try:
            return Pointer.parse(found)
        except OnlineStoreError as error:
            if "has format" in str(error):
                raise  # of a later release: not ours to replace
    copy = read_copy(versions.slots[0]) or Pointer()
    record = Pointer()
    for opened in versions.slots:
        held = held_versions(opened)
        if len(held) == 1 and not missing_online(server, opened, stored_rows(opened.folder))[0]:
            stored = copy.versions.get(held[0])
            in_place = stored is not None and stored.slot == opened.slot
            record = record.with_version(stored if stored and in_place else stored_version(opened, held[0]))
    if not record.versions:
        raise FeatureStoreError(
            f"No version of feature set {versions.name!r} is complete offline and online. Run `sda-features "
            "materialize` with the checkpoint that should be live."
        )
    chosen = match_version(live, list(record.versions), versions.name) if live else copy.live
    if chosen is None and len(record.versions) == 1:
        chosen = next(iter(record.versions))
    if chosen not in record.versions:
        raise FeatureStoreError(
            f"Nothing says which version of feature set {versions.name!r} was live; complete are "
            f"{', '.join(sorted(record.versions))}. Name one: sda-features versions --repair --live VERSION."
        )
    if copy.previous in record.versions and copy.previous != chosen:
        record = record.promoted(str(copy.previous))
    record = record.promoted(str(chosen))
    if found is not None:
        server.delete(key)  # it cannot be read
    move_pointer(server, key, lambda stored: stored if stored != Pointer() else record, "repair")
    return versions.move(lambda stored: stored, "")
