"""Is this machine, this repo and this server fit for the job? One finding a question, and what to do."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sda_features.errors import SDAError
from sda_features.results import Result

if TYPE_CHECKING:
    from sda_features.serving.repo_config import RepoConfig

Status = Literal["ok", "note", "fault"]

LEAST_REDIS = 6
LITTLE_DISK = 5e9  # bytes
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Finding:
    """The answer to one question.

    Attributes:
        status: note: works, but read the advice; fault: some command will fail.
        advice: what to do; empty if nothing.
    """

    subject: str
    status: Status
    found: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f"\n{'':20} {self.advice}" if self.advice else ""
        return f"{self.status:<6} {self.subject:<13} {self.found}{advice}"


@dataclass(frozen=True)
class Findings(Result):
    """All answers of `examine`."""

    findings: list[Finding]

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))

    @property
    def exit_status(self) -> int:
        """1 if there is a fault."""
        return int(any(finding.status == "fault" for finding in self.findings))


def examine(repo: Path | None, model: str | None) -> Iterator[Finding]:
    """Look at everything in turn; nothing is changed.

    Args:
        repo: a Feast repo; None: leave it and its online store out.
        model: a model folder or checkpoint; None: leave it out.
    """
    yield Finding("Python", "ok", ".".join(map(str, sys.version_info[:3])))
    yield from _torch()
    yield _package("bitsandbytes", "train", "--quantization nf4 and int8 cannot be used; take none")
    yield _package("feast", "feast", "repos cannot be opened and vectors not stored; only lookups work")
    yield _disk(repo or Path())
    if model is not None:
        yield _model(Path(model))
    if repo is not None:
        yield from _repo(repo)


def _torch() -> Iterator[Finding]:
    torch_finding = _package("torch", "train", "nothing can be adapted, encoded or trained")
    yield torch_finding
    if torch_finding.status != "ok":
        return
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            card = f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
            bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
            advice = "It has no bfloat16; activations will be float32."
            yield _check("accelerator", card, bfloat16, "note", advice)
        return
    advice = "A 7B model needs a GPU; small models and everything but `adapt` and `materialize` run on a CPU."
    if torch.version.cuda:
        advice = "This torch is built for CUDA but sees no GPU: look at the driver with nvidia-smi. " + advice
    yield Finding("accelerator", "note", f"none; {torch.get_num_threads()} CPU threads", advice)


def _check(subject: str, found: str, holds: bool, otherwise: Status, advice: str) -> Finding:
    """ok if something holds; otherwise another status, with advice."""
    return Finding(subject, "ok", found) if holds else Finding(subject, otherwise, found, advice)


def _package(name: str, extra: str, without: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        advice = f"Without it {without}: pip install 'sda-features[{extra}]'."
        return Finding(name, "fault", "not installed", advice)


def _disk(folder: Path) -> Finding:
    existing = next(path for path in [folder.resolve(), *folder.resolve().parents] if path.exists())
    free = shutil.disk_usage(existing).free
    advice = "Offline rows take about 8 KB an item at 2 x 1024 float32; free some space."
    return _check("disk", f"{free / 1e9:.0f} GB free at {existing}", free >= LITTLE_DISK, "note", advice)


def _model(folder: Path) -> Finding:
    """The files of a model or checkpoint, without loading any."""
    if not folder.is_dir():
        advice = "If it is a name on the hub, it is downloaded on first use."
        return Finding("model", "note", f"{folder} is no folder", advice)
    fault = partial(Finding, "model", "fault")
    kind, names = "model", ["config.json", "tokenizer_config.json", "preprocessor_config.json"]
    if (folder / "settings.json").is_file():
        kind, names = "checkpoint", ["settings.json", "manifest.json", "adapter.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        missing.append("*.safetensors")
    if pointers := [path.name for path in weights if _begins_with(path, LFS_POINTER)]:
        return fault(f"{', '.join(pointers)} are git-lfs pointers, not weights", "Run `git lfs pull` there.")
    if missing:
        return fault(f"{folder} lacks {', '.join(missing)}", f"Expected the files of a {kind}; copy it anew.")
    size = sum(path.stat().st_size for path in weights)
    quantised = ""
    if kind == "model":
        with contextlib.suppress(ValueError):
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            quantised = str(config.get("quantization_config", {}).get("quant_method", ""))
    if quantised not in ("", "bitsandbytes"):
        advice = "Take the unquantised model; NF4 is made here."
        return fault(f"{folder} is quantised with {quantised}", advice)
    return Finding("model", "ok", f"{kind} {folder}, {size / 1e9:.2f} GB of weights")


def _begins_with(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as stream:
        return stream.read(len(magic)) == magic


def _repo(repo: Path) -> Iterator[Finding]:
    from sda_features.feature_store.repo import quiet_feast
    from sda_features.serving.repo_config import read_repo_config

    try:
        config = read_repo_config(repo)
    except SDAError as error:
        yield Finding("repo", "fault", str(repo), str(error))
        return
    try:
        with quiet_feast():
            from feast import FeatureStore

            views = FeatureStore(repo_path=str(repo)).list_feature_views()
        ours = sorted(view.name for view in views if "feature_set" in view.tags)
    except Exception as error:
        found = f"Feast cannot open {repo} ({type(error).__name__})"
        yield Finding("repo", "fault", found, "Run `feast apply` there to see why.")
        return
    if ours:
        yield Finding("repo", "ok", f"project {config.project}, {', '.join(ours)}")
    else:
        found = f"project {config.project} has no item vectors among its {len(views)} views"
        advice = f"Run `sda-features init {repo}`, then `feast apply` there."
        yield Finding("repo", "fault", found, advice)
    yield from _online(config)


def _online(config: RepoConfig) -> Iterator[Finding]:
    from redis.exceptions import RedisError

    try:
        address = config.redis_address()
    except SDAError as error:
        yield Finding("online store", "fault", config.online_type, str(error))
        return
    nodes = {"target_nodes": "random"} if address.redis_type == "redis_cluster" else {}
    try:
        with address.connect(timeout=5) as server:
            found = server.info(**nodes)
    except (RedisError, SDAError, OSError) as error:
        silent = f"{address} does not answer ({type(error).__name__})"
        advice = "Is it running, and are host, port, user and password in feature_store.yaml right?"
        yield Finding("online store", "fault", silent, advice)
        return
    number = str(found.get("valkey_version") or found.get("redis_version"))
    name = f"{'Valkey' if 'valkey_version' in found else 'Redis'} {number} at {address}"
    tested = int(number.split(".")[0]) >= LEAST_REDIS
    yield _check("online store", name, tested, "note", f"Versions below {LEAST_REDIS} were not tested.")
    role = str(found.get("role"))
    advice = "`materialize` needs the master: a replica takes no writes."
    yield _check("role", role, role == "master", "fault", advice)
    used, most = int(found["used_memory"]), int(found.get("maxmemory", 0))
    policy = str(found.get("maxmemory_policy"))
    limit = f"{most / 1e6:,.0f} MB" if most else "no limit"
    memory = f"{used / 1e6:,.0f} MB used of {limit}, policy {policy}"
    advice = f"With {policy} a full server drops vectors and the record of versions; set noeviction."
    yield _check("memory", memory, most == 0 or policy == "noeviction", "note", advice)
