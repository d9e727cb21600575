"""The calls that need no Feast repo: checkpoints, runs, and the generated shop."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sda_features.api.calls import Group, call, given, parse
from sda_features.api.encoders import overrides_of
from sda_features.api.vector_set import CATALOG, Table
from sda_features.config import (
    AdapterSettings,
    AdaptSettings,
    BackboneSettings,
    BehaviourSettings,
    CatalogSettings,
    EvaluationSettings,
    LossSettings,
    ProjectionSettings,
    PromptSettings,
    TrainSettings,
)
from sda_features.errors import SettingsError
from sda_features.results import Result

if TYPE_CHECKING:
    from sda_features.lvlm.export import ExportResult, Target
    from sda_features.lvlm.finetune import AdaptResult
    from sda_features.lvlm.plan import Plan
    from sda_features.report.conflict import Conflicts
    from sda_features.workflows.doctor import Finding, Findings
    from sda_features.workflows.paper_tables import Comparison
    from sda_features.workflows.train import RunMetrics

REEVALUATION = Group(
    EvaluationSettings, skip=("split", "cold_share", "validation_from", "test_from"), defaults=False
)


@call(
    Group(BackboneSettings),
    Group(AdapterSettings, "adapter"),
    Group(LossSettings, "loss"),
    Group(BehaviourSettings),
    Group(ProjectionSettings, "projection"),
    Group(TrainSettings),
    CATALOG,
    Group(PromptSettings),
)
def adapt(
    catalog: Table,
    *,
    output: Table,
    dry_run: bool = False,
    card: str | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> AdaptResult | Plan:
    """Train MoDA adapters on a catalogue and write `output`/checkpoint; with `dry_run` only what it would need.

    Raises:
        SDAError: see `workflows.adapt`.
    """
    settings = AdaptSettings.parse(
        catalog=parse(CatalogSettings, options, path=catalog),
        backbone=parse(BackboneSettings, options),
        adapter=parse(AdapterSettings, options, "adapter"),
        loss=parse(LossSettings, options, "loss"),
        behaviour=parse(BehaviourSettings, options),
        projection=parse(ProjectionSettings, options, "projection"),
        train=parse(TrainSettings, options),
        prompts=parse(PromptSettings, options),
    )
    if card and not dry_run:
        raise SettingsError("--card is for --dry-run: it names a GPU to plan for.")
    from sda_features.workflows.adapt import adapt as run
    from sda_features.workflows.adapt import plan_adapt

    if dry_run:
        return plan_adapt(settings, card)
    return run(settings, Path(output), progress=progress, resume=resume)


@call(CATALOG)
def diagnose(
    checkpoints: Sequence[Table] = (),
    *,
    catalog: Table,
    kinds: Sequence[Literal["moda", "lora"]] = (),
    model: str | None = None,
    quantization: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    modules: Sequence[str] = ("q_proj", "k_proj"),
    items: int = 256,
    batch_size: int = 64,
    micro_batch_size: int = 16,
    seed: int = 0,
    output: Path | None = None,
    progress: bool = True,
    **options: Any,
) -> Conflicts:
    """Whether text and pictures pull an adapter the same way (paper, section 3.3.3).

    Raises:
        SettingsError: nothing to measure.
    """
    if not (checkpoints or kinds):
        raise SettingsError("Give a CHECKPOINT, or --adapter with --model for an untrained adapter.")
    if kinds and model is None:
        raise SettingsError(
            "--adapter starts an untrained adapter over a base model; name that with --model."
        )
    from sda_features.artifacts import check_folder
    from sda_features.catalog.rows import Catalog
    from sda_features.report.conflict import CONFLICT_FILES, Conflicts, write_conflict

    if output is not None:
        check_folder(output, CONFLICT_FILES, "an earlier diagnosis")
    opened = Catalog(parse(CatalogSettings, options, path=catalog))
    overrides = overrides_of(model, quantization, dtype, device, trust_remote_code)
    from sda_features.lvlm.diagnostics import diagnose_on_catalog, fresh, trained

    loads = [partial(trained, Path(folder), **overrides) for folder in checkpoints]
    for kind in kinds:
        loads.append(partial(fresh, AdapterSettings(kind=kind), BackboneSettings.parse(**overrides), seed))
    found = diagnose_on_catalog(
        loads,
        opened,
        modules=modules,
        items=items,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        seed=seed,
        progress=progress,
    )
    rows = [asdict(conflict) for conflict in found]
    if output is not None:
        write_conflict(output, rows)
    return Conflicts(rows)


@call()
def export(
    checkpoint: Table,
    *,
    output: Table,
    target: Target = "conditional-generation",
    model: str | None = None,
    trust_remote_code: bool = False,
    merged: bool = False,
    dtype: str = "auto",
) -> ExportResult:
    """Write a checkpoint as two PEFT LoRA adapters, and with `merged` as two models."""
    from sda_features.lvlm.export import export_checkpoint

    return export_checkpoint(
        Path(checkpoint),
        Path(output),
        target,
        model=model,
        trust_remote_code=trust_remote_code,
        merged=merged,
        dtype=dtype,
    )


@call(REEVALUATION)
def evaluate(
    run: Table, *, interactions: Table | None = None, content_weight: float | None = None, **options: Any
) -> RunMetrics:
    """The metrics of a saved run; with other settings of the protocol, its test items ranked again."""
    from sda_features.workflows.train import evaluate_run

    return evaluate_run(Path(run), given(REEVALUATION, options), interactions, content_weight)


@call()
def compare(run_a: Table, run_b: Table, *, seed: int = 0) -> Comparison:
    """Two runs, or two folders of seeds, user by user: paired t-test and bootstrap interval of each metric."""
    from sda_features.workflows.paper_tables import compare_folders

    return compare_folders(Path(run_a), Path(run_b), seed=seed)


@call()
def doctor(
    *,
    repo: Table | None = None,
    model: str | None = None,
    echo: Callable[[Finding], None] = lambda finding: None,
) -> Findings:
    """Look at Python, torch, Feast repo, Redis, disk and model; `echo` gets each finding as it is made."""
    from sda_features.workflows.doctor import Findings, examine

    findings = []
    for finding in examine(None if repo is None else Path(repo), model):
        findings.append(finding)
        echo(finding)
    return Findings(findings)


@dataclass(frozen=True)
class DemoResult(Result):
    """The numbers of the demo's closing table."""

    results: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """See `Result`."""
        return self.results


@call()
def demo(
    *,
    output: Table = "demo-output",
    seed: int = 0,
    progress: bool = True,
    echo: Callable[[str], None] = print,
) -> DemoResult:
    """Generate a small shop and walk adapt, feast apply, materialize, lookup and train on it."""
    from sda_features.demo.walk import walk

    walk(Path(output), echo, seed=seed, progress=progress)
    return DemoResult(json.loads((Path(output) / "results.json").read_text(encoding="utf-8")))
