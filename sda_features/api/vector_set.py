"""The vectors of one feature set: made, moved, looked at, read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sda_features.api.calls import Group, call, parse
from sda_features.api.encoders import load_encoder, overrides_of
from sda_features.api.settings_file import SettingsFile
from sda_features.config import CatalogSettings, LogSettings
from sda_features.errors import SettingsError

if TYPE_CHECKING:
    from sda_features.feature_store.lifecycle import Changes, Pruned, VersionList
    from sda_features.feature_store.matrices import ItemVectors
    from sda_features.feature_store.status import Status
    from sda_features.feature_store.versions import Versions
    from sda_features.serving import EmbeddingClient
    from sda_features.workflows.gate import Verdict
    from sda_features.workflows.inspect_vectors import Inspection
    from sda_features.workflows.lookup import LookupResult
    from sda_features.workflows.materialize import MaterializeResult
    from sda_features.workflows.report import ReportWritten
    from sda_features.workflows.similar import IndexWritten, SimilarItems
    from sda_features.workflows.stream import Source, Streamed
    from sda_features.workflows.verify import Verified

CATALOG = Group(CatalogSettings, skip=("path",))
Table = str | Path


class VectorSet:
    """A feature set of a repo; `Repo(...)["sda"]`.

    Args:
        repo: the Feast repo.
        feature_set: name of the feature set.
        settings: what the repo's settings file says.
    """

    def __init__(self, repo: Path, feature_set: str, settings: SettingsFile):
        self.repo, self.feature_set, self.settings = repo, feature_set, settings

    # Making them

    @call(CATALOG)
    def materialize(
        self,
        catalog: Table | None = None,
        *,
        vectors: Path | None = None,
        text_vectors: str | None = None,
        image_vectors: str | None = None,
        version: str | None = None,
        checkpoint: Table | None = None,
        model: str | None = None,
        quantization: str | None = None,
        dtype: str | None = "fast",
        trust_remote_code: bool = False,
        device: str | None = None,
        dim: int | None = None,
        batch_size: int = 32,
        shard_rows: int = 1024,
        engine: Literal["local", "ray"] = "local",
        ray_address: str | None = None,
        workers: int | None = None,
        gpus_per_worker: float | None = None,
        promote: bool = False,
        max_removed: float = 0.1,
        repair: bool = False,
        again: Collection[str] = (),
        report: Path | None = None,
        progress: bool = True,
        **options: Any,
    ) -> MaterializeResult:
        """Encode a catalogue, or take vectors of an encoder of your own, and write them to Feast.

        Raises:
            SettingsError: options that do not go together.
            SDAError: see `workflows.materialize`.
        """
        if (catalog is None) == (vectors is None) or (
            vectors is None and any((text_vectors, image_vectors, version))
        ):
            raise SettingsError(
                "Give CATALOG, or --vectors with --text-vectors, --image-vectors or both; --version goes with "
                "--vectors."
            )
        if vectors is not None and (checkpoint, model, dim) != (None, None, None):
            raise SettingsError(
                "--vectors are stored as they are: leave out --checkpoint, --model and --dim."
            )
        if vectors is not None and engine != "local":
            raise SettingsError("--vectors need no encoding: leave out --engine.")
        if vectors is not None and not (text_vectors or image_vectors):
            raise SettingsError("Name the columns of --vectors with --text-vectors, --image-vectors or both.")
        if vectors is None and checkpoint is None and model is None:
            raise SettingsError("Give --checkpoint (adapted vectors) or --model (vanilla vectors).")
        if vectors is None and checkpoint is None and dim is not None:
            raise SettingsError("--dim needs a --checkpoint: it uses the rotation that `adapt` stored there.")
        if engine == "local" and (ray_address, workers, gpus_per_worker) != (None, None, None):
            raise SettingsError("--ray-address, --workers and --gpus-per-worker are for --engine ray.")
        overrides = overrides_of(model, quantization, dtype, device, trust_remote_code)
        checkpoint = checkpoint and Path(checkpoint).resolve()  # a worker has a working directory of its own
        from sda_features.workflows.engines import Engine, local_engine
        from sda_features.workflows.given_vectors import VectorTable, version_of
        from sda_features.workflows.materialize import materialize

        chosen: Engine = local_engine
        if engine == "ray":
            from sda_features.workflows.ray_engine import ray_engine

            chosen = partial(
                ray_engine, address=ray_address, workers=workers, gpus_per_worker=gpus_per_worker
            )
        source: CatalogSettings | VectorTable
        if vectors is not None:
            id_column = options.get("id_column") or "item_id"
            source = VectorTable(
                vectors, id_column, text_vectors, image_vectors, version or version_of(vectors)
            )
        else:
            source = parse(CatalogSettings, options, path=catalog)
        result = materialize(
            self.repo,
            self.feature_set,
            source,
            partial(load_encoder, checkpoint, dim, overrides, self.feature_set),
            engine=chosen,
            batch_size=batch_size,
            shard_rows=shard_rows,
            promote=promote,
            max_removed=max_removed,
            repair=repair,
            again=again,
            progress=progress,
        )
        if report is not None:
            result.report.write(report)
        return result

    @call(CATALOG)
    def stream(
        self,
        key: str,
        *,
        checkpoint: Table | None = None,
        model: str | None = None,
        quantization: str | None = None,
        device: str | None = None,
        url: str | None = None,
        group: str = "sda-features",
        consumer: str = "stream",
        kafka: str | None = None,
        kafka_config: Path | None = None,
        max_events: int = 256,
        **options: Any,
    ) -> Iterator[Streamed]:
        """Write what the Redis Stream `key` delivers, for ever; yields after each batch, empty ones too.

        With `kafka` (HOST:PORT) `key` is a topic there, and `kafka_config` a file of its client's settings.

        Raises:
            SDAError: see `workflows.stream`.
        """
        if checkpoint is None and model is None:
            raise SettingsError("Give --checkpoint (adapted vectors) or --model (vanilla vectors).")
        if (kafka and url) or (kafka_config and not kafka):
            raise SettingsError(
                "The stream is in Redis (--url) or in Kafka (--kafka, with --kafka-config): leave out the other."
            )
        from sda_features.workflows.stream import redis_stream, stream

        overrides = overrides_of(model, quantization, None, device, False)
        load = partial(load_encoder, checkpoint, None, overrides, self.feature_set)
        settings = parse(CatalogSettings, options, path="events.jsonl")
        if kafka:
            from sda_features.workflows.kafka_topic import kafka_topic

            opened: AbstractContextManager[Source] = kafka_topic(
                key, kafka, group, kafka_config, settings.id_column
            )
        else:
            opened = redis_stream(self.repo, key, url, group, consumer)
        with opened as source:
            yield from stream(self.repo, self.feature_set, settings, load, source, max_events=max_events)

    # Versions

    @call()
    def versions(self, *, repair: bool = False, live: str | None = None) -> VersionList:
        """What is stored; with `repair`, after a record that Redis has lost was restored, with `live` live."""
        if live and not repair:
            raise SettingsError("--live is for --repair; make a version live with `sda-features promote`.")
        from sda_features.feature_store.repair import repair as restore

        with self._open() as versions:
            if repair:
                restore(versions, live)
            return self._list(versions)

    def changes(self) -> Changes:
        """The audit list of the record, newest first; `versions --log`."""
        from sda_features.feature_store.lifecycle import Changes
        from sda_features.serving.pointer import read_audit

        with self._open() as versions:
            return Changes(self.feature_set, read_audit(versions.server, versions.key))

    @call()
    def promote(self, version: str, *, gated: bool = False) -> VersionList:
        """Serve a version, or the one that begins so; with `gated` only one that passed `gate`."""
        from sda_features.feature_store.lifecycle import list_versions, promote
        from sda_features.feature_store.versions import match_version

        with self._open() as versions:
            if gated:
                from sda_features.workflows.gate import require_pass

                stored = [state.version for state in list_versions(versions)]
                require_pass(self.repo, self.feature_set, match_version(version, stored, self.feature_set))
            promote(versions, version)
            return self._list(versions)

    @call()
    def rollback(self) -> VersionList:
        """Serve the version that was live before; a second call returns."""
        from sda_features.feature_store.lifecycle import rollback

        with self._open() as versions:
            rollback(versions)
            return self._list(versions)

    @call()
    def prune(self, names: Sequence[str] = (), *, keep: Sequence[str] = ()) -> Pruned:
        """Delete these versions, or all that are neither live nor kept, online and offline."""
        if names and keep:
            raise SettingsError(
                "Give versions to delete, or --keep and all others that are not live; not both."
            )
        from sda_features.feature_store.lifecycle import Pruned, prune

        with self._open() as versions:
            return Pruned(self.feature_set, prune(versions, names, keep=keep))

    @call()
    def status(self, *, max_age: float | None = None, orphans: bool = False, sweep: bool = False) -> Status:
        """Record, offline rows and Redis compared; `max_age` in hours; `sweep` deletes orphans first."""
        from sda_features.feature_store.status import status
        from sda_features.feature_store.status import sweep as delete

        with self._open() as versions:
            swept = delete(versions) if sweep else None
            seconds = None if max_age is None else max_age * 3600
            found = status(versions, max_age=seconds, orphans=orphans or sweep)
        return replace(found, swept=swept)

    def _open(self) -> AbstractContextManager[Versions]:
        from sda_features.feature_store.versions import open_versions

        return open_versions(self.repo, self.feature_set)

    def _list(self, versions: Versions) -> VersionList:
        from sda_features.feature_store.lifecycle import VersionList, list_versions

        return VersionList(self.feature_set, list_versions(versions))

    # Looking at them

    @call(CATALOG)
    def inspect(
        self, catalog: Table, *, version: str | None = None, against: str | None = None, **options: Any
    ) -> Inspection:
        """Alignment, spread, rank, neighbours, duplicates, of one version or beside another."""
        from sda_features.workflows.inspect_vectors import inspect_catalog

        settings = parse(CatalogSettings, options, path=catalog)
        return inspect_catalog(self.repo, self.feature_set, settings, version=version, against=against)

    @call(CATALOG)
    def report(
        self,
        catalog: Table,
        *,
        output: Table = "report.html",
        version: str | None = None,
        against: str | None = None,
        run: Path | None = None,
        recommenders: Sequence[Path] = (),
        max_megabytes: float = 40.0,
        progress: bool = True,
        **options: Any,
    ) -> ReportWritten:
        """Write a page to look at, an HTML file that holds everything it shows."""
        from sda_features.workflows.report import write_report

        return write_report(
            Path(output),
            self.repo,
            self.feature_set,
            parse(CatalogSettings, options, path=catalog),
            version=version,
            against=against,
            run=run,
            recommenders=[Path(folder) for folder in recommenders],
            max_megabytes=max_megabytes,
            progress=progress,
        )

    @call(CATALOG)
    def similar(
        self,
        item: str,
        catalog: Table,
        *,
        by: Literal["text", "image", "both"] = "both",
        k: int = 10,
        version: str | None = None,
        **options: Any,
    ) -> SimilarItems:
        """The items nearest to one, by exact search."""
        from sda_features.workflows.similar import similar_items

        settings = parse(CatalogSettings, options, path=catalog)
        return similar_items(self.repo, self.feature_set, settings, item, by=by, k=k, version=version)

    @call(CATALOG)
    def index(
        self,
        catalog: Table,
        *,
        output: Table = "index",
        version: str | None = None,
        codes: tuple[int, int] | None = None,
        **options: Any,
    ) -> IndexWritten:
        """Write indexes of nearest items (faiss), and with `codes` codes of items."""
        from sda_features.workflows.similar import write_index

        settings = parse(CatalogSettings, options, path=catalog)
        return write_index(self.repo, self.feature_set, settings, Path(output), version=version, codes=codes)

    @call(CATALOG, Group(LogSettings, "log"))
    def gate(
        self,
        candidate: str,
        catalog: Table,
        *,
        interactions: Table | None = None,
        thresholds: Path | None = None,
        junit: Path | None = None,
        markdown: Path | None = None,
        **options: Any,
    ) -> Verdict:
        """Whether a version may be served: alone and against the live one; files to write the verdict to."""
        from sda_features.artifacts import atomic_file
        from sda_features.workflows.gate import run_gate

        settings = parse(CatalogSettings, options, path=catalog)
        limits = self.settings.limits(self.repo, thresholds)
        log = parse(LogSettings, options, "log")
        interactions = None if interactions is None else Path(interactions)
        verdict = run_gate(
            self.repo, self.feature_set, candidate, settings, limits, interactions=interactions, log=log
        )
        for path, text in ((junit, verdict.junit()), (markdown, f"{verdict}\n")):
            if path is not None:
                with atomic_file(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
        return verdict

    @call(CATALOG)
    def verify(
        self,
        catalog: Table,
        *,
        version: str | None = None,
        sample: int | None = None,
        seed: int = 0,
        progress: bool = True,
        **options: Any,
    ) -> Verified:
        """Compare catalogue, offline rows, online bytes and the trainers' matrix.

        Raises:
            ParityError: at the first difference.
        """
        from sda_features.workflows.verify import verify

        settings = parse(CatalogSettings, options, path=catalog)
        return verify(
            self.repo,
            self.feature_set,
            settings,
            version=version,
            sample=sample,
            seed=seed,
            progress=progress,
        )

    # Reading them

    @call()
    def lookup(
        self,
        item_ids: Sequence[str | int],
        *,
        modality: Literal["text", "image", "both"] = "both",
        join_key: str = "item_id",
        id_type: Literal["string", "int32", "int64"] = "string",
        full: bool = False,
    ) -> LookupResult:
        """What the online store holds of some items, to look at; a service uses `client`."""
        from sda_features.workflows.lookup import look_up

        with self.client(join_key=join_key, id_type=id_type) as client:
            return look_up(client, item_ids, modality, full)

    def client(self, **arguments: Any) -> EmbeddingClient:
        """A client for a service; see `EmbeddingClient.from_repo`."""
        from sda_features.serving import EmbeddingClient

        return EmbeddingClient.from_repo(self.repo, self.feature_set, **arguments)

    def vectors(self, item_ids: Sequence[str], **arguments: Any) -> ItemVectors:
        """Matrices for a trainer, out of the offline store; see `load_vectors`."""
        from sda_features.feature_store.matrices import load_vectors

        return load_vectors(self.repo, self.feature_set, item_ids, **arguments)
