"""Adding item vectors to a Feast repo that a team already has: one file, nothing else.

The team's files are read as source and never run, so this needs no import of Feast. An entity for
items that the repo defines is imported by name: Feast registers an entity only where it finds it
as a module-level name, and without it `feast apply` succeeds while `materialize` fails.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from sda_features.artifacts import atomic_file
from sda_features.errors import FeatureStoreError, SettingsError
from sda_features.offline.empty_slot import keep_readable
from sda_features.offline.location import is_url
from sda_features.results import Result
from sda_features.serving.codec import STORE_DTYPES, StoreDtype
from sda_features.serving.layout import ID_TYPES, view_name
from sda_features.serving.repo_config import read_repo_config

FILE_NAME = "sda_item_embeddings.py"
SEAL = "# Written by `sda-features init`. sha256 of the lines below: "
SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages", "venv"}
OUR_ONLINE_STORE = "sda_features.feast_plugins.online_store.VectorRedisOnlineStore"
OUR_OFFLINE_STORE = "sda_features.feast_plugins.offline_store.VectorFileOfflineStore"
OUR_ENGINE = "sda_features.feast_plugins.engine.VectorEngine"
FILE_STORES = ("file", "dask", "duckdb", OUR_OFFLINE_STORE)  # offline stores that read parquet folders
ENGINES_HERE = ("local", OUR_ENGINE)  # batch engines that run where the folder is


@dataclass(frozen=True)
class FoundEntity:
    """A module-level `variable = Entity(...)` in a file of the repo."""

    module: str  # dotted, from the repo's root
    variable: str
    name: str | None = None  # None if it is not written as a literal
    join_key: str | None = None  # None if it is not written as a literal
    value_type: str | None = None  # None if it declares none

    def __str__(self) -> str:
        return f"{self.module}:{self.variable}"


@dataclass(frozen=True)
class Initialized(Result):
    """What `init_repo` did.

    Attributes:
        path: the file.
        action: whether it was created, updated, or already as it should be.
        entity: where the item entity comes from; None: the file defines one.
        views: names of the feature views.
        online_store: type of the repo's online store; EmbeddingClient reads redis.
        feast_materialize: whether the repo's own `feast materialize` writes the views, too.
        join_key: of a new entity.
        settings: the settings file, if this call wrote it.
    """

    path: Path
    action: Literal["created", "updated", "unchanged"]
    entity: FoundEntity | None
    views: tuple[str, ...]
    online_store: str
    feast_materialize: bool = True
    join_key: str = "item_id"
    settings: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """See `Result`; of the entity where it comes from."""
        return {**vars(self), "entity": str(self.entity) if self.entity else None}

    def __str__(self) -> str:
        entity = f"yours, {self.entity}" if self.entity else f"new, join key {self.join_key}"
        lines = [f"{self.action} {self.path}", *([f"created {self.settings}"] if self.settings else [])]
        lines += [f"  views   {', '.join(self.views)}", f"  entity  {entity}"]
        if self.entity and (self.entity.join_key, self.entity.value_type) != ("item_id", "STRING"):
            lines.append(
                f"  readers of the online store need: --join-key {self.entity.join_key or 'KEY'} "
                f"--id-type {(self.entity.value_type or 'STRING').lower()}"
            )
        if not self.feast_materialize:
            lines.append(
                "The repo's own `feast materialize` leaves these views out; `sda-features materialize` writes them."
            )
        if self.online_store == OUR_ONLINE_STORE:
            lines.append(
                f"The online store of this repo is {self.online_store}. Item vectors are read by EmbeddingClient, "
                "which needs no store of its own. In feature_store.yaml, switch to what Feast ships and keep the "
                "rest:\n  online_store:\n    type: redis"
            )
        elif self.online_store != "redis":
            lines.append(
                f"The online store of this repo is {self.online_store}; item vectors are served from Redis. "
                "In feature_store.yaml:\n"
                "  online_store:\n    type: redis\n    connection_string: localhost:6379"
            )
        return "\n".join([*lines, f"Next: cd {self.path.parent} && feast apply"])


def init_repo(
    repo_path: Path | str,
    *,
    feature_sets: Sequence[str] = ("sda", "vanilla"),
    slots: int = 2,
    entity: str | None = None,
    join_key: str = "item_id",
    source_folder: str = "data/item_embeddings",
    feast_materialize: bool | None = None,
    force: bool = False,
) -> Initialized:
    """Write the definitions of item-vector views into a Feast repo.

    Each slot gets a parquet file without rows, see offline/empty_slot.py.

    Args:
        repo_path: folder with feature_store.yaml.
        feature_sets: names of the feature sets; each becomes the view `{name}_item_embeddings`. A name
            with `:float16` or `:int8` behind it stores smaller numbers.
        slots: versions of a feature set that can be stored side by side; each has a view of its own.
        entity: the repo's entity of items, by its name in Feast, its variable, or `module:variable`;
            None: the one with this join key, or a new one.
        join_key: join key of the item entity.
        source_folder: folder of parquet parts, one folder a feature set below it; relative to the repo.
        feast_materialize: whether the repo's own `feast materialize` writes the views, too; it runs
            where the source folder is. None: yes, if its offline store reads folders of parquet files
            and its engine runs in one process.
        force: replace a file that was edited, or that something else wrote.

    Raises:
        FeatureStoreError: the folder is no Feast repo, the entity is not there, not unique or of
            another type, or the file exists and is not ours to replace.
        SettingsError: a feature set has an unusable name.
    """
    config = read_repo_config(repo_path)
    repo = Path(repo_path)
    dtypes = dict(map(_name_and_dtype, feature_sets))
    names = tuple(dtypes)
    if not names or slots < 1:
        raise FeatureStoreError(
            f"Expected at least one feature set and one slot, got {len(names)} and {slots}."
        )
    views = tuple(view_name(name, slot) for name, slot in product(names, range(1, slots + 1)))
    _refuse_shared_folders(names, slots, source_folder)
    found = _choose_entity(list(_entities(repo)), entity, join_key)
    if feast_materialize is None:
        feast_materialize = config.offline_type in FILE_STORES and config.engine_type in ENGINES_HERE
    content = _seal(_source(dtypes, slots, found, join_key, source_folder, feast_materialize))
    path = repo / FILE_NAME
    action: Literal["created", "updated", "unchanged"] = "created"
    if path.exists():
        existing = path.read_text(encoding="utf-8")
        action = "unchanged" if existing == content else "updated"
        if action == "updated" and not force and existing != _seal(existing.partition("\n")[2]):
            raise FeatureStoreError(
                f"{path} exists and was edited, or was not written by `sda-features init`. Move your changes to "
                "another file of the repo, or replace it with --force."
            )
    if action != "unchanged":
        with atomic_file(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    id_type = ID_TYPES[(found and found.value_type) or "STRING"]
    for name, slot in product(names, range(1, slots + 1)):
        folder = _slot_folder(source_folder, name, slot)
        keep_readable(folder if is_url(folder) else repo / folder, id_type, dtypes[name])
    return Initialized(path, action, found, views, config.online_type, feast_materialize, join_key)


def _slot_folder(source_folder: str, feature_set: str, slot: int) -> str:
    return f"{source_folder.rstrip('/')}/{feature_set}{f'_{slot}' if slot > 1 else ''}"


def _refuse_shared_folders(names: Sequence[str], slots: int, source_folder: str) -> None:
    """`sda` with two slots and a set named `sda_2` would write to one folder, and prune one another's rows."""
    owner: dict[str, str] = {}
    for name, slot in product(names, range(1, slots + 1)):
        folder = _slot_folder(source_folder, name, slot)
        if folder in owner:
            raise SettingsError(
                f"Feature set {owner[folder]!r} and feature set {name!r} would share the folder {folder}: slot "
                "numbers are appended to names. Rename one of them."
            )
        owner[folder] = name


def _name_and_dtype(feature_set: str) -> tuple[str, StoreDtype]:
    """`name` and `name:dtype` as they are given."""
    name, _, given = feature_set.partition(":")
    dtype = next((known for known in STORE_DTYPES if known == (given or "float32")), None)
    if dtype is None:
        raise SettingsError(
            f"Expected a store dtype of {', '.join(STORE_DTYPES)} in {feature_set!r}, got {given!r}."
        )
    return name, dtype


def _source(
    feature_sets: Mapping[str, StoreDtype],
    slots: int,
    found: FoundEntity | None,
    join_key: str,
    source_folder: str,
    feast_materialize: bool,
) -> str:
    """Text of the definition file, without its seal."""
    names = ["embedding_source", "embedding_view", *([] if found else ["item_entity"])]
    lines = [
        '"""Item vectors as Feast feature views. Run `feast apply` to register them."""',
        "",
        f"from sda_features.feature_store.definitions import {', '.join(names)}",
        "",
    ]
    if found:
        lines.append(f"from {found.module} import {found.variable}  # by name: only so Feast registers it")
        item = found.variable
    else:
        lines.append(f"item = item_entity({json.dumps(join_key)})")
        item = "item"
    for feature_set, dtype in feature_sets.items():
        name = json.dumps(feature_set)
        stored = f", store_dtype={json.dumps(dtype)}" if dtype != "float32" else ""
        stored += "" if feast_materialize else ", online=False"
        lines.append("")
        for slot in range(1, slots + 1):
            suffix, option = (f"_{slot}", f", slot={slot}") if slot > 1 else ("", "")
            path = json.dumps(_slot_folder(source_folder, feature_set, slot))
            source = f"{feature_set}_source{suffix}"
            lines += [
                f"{source} = embedding_source({name}, {path}, {item}{option})",
                f"{view_name(feature_set, slot)} = embedding_view({name}, {source}, {item}{option}{stored})",
            ]
    return "\n".join(lines) + "\n"


def _seal(text: str) -> str:
    return f"{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def _choose_entity(entities: list[FoundEntity], wanted: str | None, join_key: str) -> FoundEntity | None:
    """The repo's item entity, or None if it has none."""
    if wanted is None:
        chosen = [entity for entity in entities if entity.join_key == join_key]
        namesake = next((entity for entity in entities if entity.name == "item"), None)
        if not chosen and namesake:
            raise FeatureStoreError(
                f"The repo has an entity `item` at {namesake} with the join key {namesake.join_key!r}, expected "
                f"{join_key!r}. Use it with --entity item, or name its key with --join-key."
            )
    else:
        chosen = [entity for entity in entities if wanted in (entity.name, entity.variable, str(entity))]
        if not chosen:
            module, _, variable = wanted.partition(":")
            if not all(part.isidentifier() for part in [*module.split("."), variable]):
                listed = ", ".join(f"{entity.name} ({entity})" for entity in entities) or "none"
                raise FeatureStoreError(
                    f"Expected an entity {wanted!r} in the repo, found: {listed}. "
                    "If it is made by a function, give its place as --entity module:variable."
                )
            chosen = [FoundEntity(module, variable)]
    if len(chosen) > 1:
        raise FeatureStoreError(
            f"Several entities of the repo fit: {', '.join(map(str, chosen))}. "
            "Choose one with --entity module:variable."
        )
    if not chosen:
        return None
    (entity,) = chosen
    if entity.value_type is not None and entity.value_type not in ID_TYPES:
        raise FeatureStoreError(
            f"Expected the entity at {entity} to have value_type {', '.join(ID_TYPES)}, got "
            f"{entity.value_type}. Choose another with --entity, or a new join key with --join-key."
        )
    return entity


def _entities(repo: Path) -> Iterator[FoundEntity]:
    """Entities that the repo's files define at module level, in the order of the files."""
    for path in sorted(repo.rglob("*.py")):
        parts = path.relative_to(repo).with_suffix("").parts
        hidden = any(part.startswith(".") or part in SKIPPED_FOLDERS for part in parts)
        if hidden or path.name == FILE_NAME or not all(part.isidentifier() for part in parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # `feast apply` will say so
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                target = statement.targets[0].id
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                target = statement.target.id
            else:
                continue
            if isinstance(statement.value, ast.Call) and _last_name(statement.value.func) == "Entity":
                yield _read_entity(".".join(parts), target, statement.value)


def _read_entity(module: str, variable: str, call: ast.Call) -> FoundEntity:
    arguments = {keyword.arg: keyword.value for keyword in call.keywords}
    name = _literal(arguments.get("name"))
    join_keys = arguments.get("join_keys")
    join_key = name if join_keys is None else None  # Feast's default
    if isinstance(join_keys, ast.List | ast.Tuple) and len(join_keys.elts) == 1:
        join_key = _literal(join_keys.elts[0])
    return FoundEntity(module, variable, name, join_key, _last_name(arguments.get("value_type")))


def _literal(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _last_name(node: ast.expr | None) -> str | None:
    """`STRING` of `ValueType.STRING` and of `STRING`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None
