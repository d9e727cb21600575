"""May this version be served? Checks of a candidate alone and against the live version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sda_features.artifacts import sha256_json, write_json
from sda_features.config import (
    CatalogSettings,
    EvaluationSettings,
    GateSettings,
    LogSettings,
    VectorEvaluationSettings,
)
from sda_features.errors import FeatureStoreError, ParityError
from sda_features.results import Result, text_table
from sda_features.workflows.inspect_vectors import (
    Space,
    compare_spaces,
    inspect_space,
    load_space,
    read_columns,
)
from sda_features.workflows.vectors import VectorReport, evaluate_feature_sets
from sda_features.workflows.verify import verify

PASSES = "gates"  # folder of verdicts in the repo
WATCHED = ("recall@", "ndcg@")  # metrics on the log that are checked


@dataclass(frozen=True)
class Check:
    """One condition, and for people the value and the limit."""

    name: str
    passed: bool
    found: str
    wanted: str


@dataclass(frozen=True)
class Verdict(Result):
    """Whether a version may be served.

    Attributes:
        live: the version it was compared with; None: there was none.
        thresholds: hash of the settings that the checks were made with.
        time: ISO time.
    """

    feature_set: str
    version: str
    live: str | None
    checks: tuple[Check, ...]
    thresholds: str
    time: str

    @property
    def passed(self) -> bool:
        """Whether every condition holds."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        rows = [
            [("pass" if check.passed else "FAIL"), check.name, check.found, check.wanted]
            for check in self.checks
        ]
        against = f"against {self.live}" if self.live else "no version is live"
        heading = f"{'pass' if self.passed else 'FAIL'}: {self.feature_set} {self.version}, {against}"
        return f"{heading}\n\n{text_table(rows, ['', 'check', 'found', 'wanted'], ['left'] * 4)}"

    def junit(self) -> str:
        """JUnit XML, one case a check."""
        failures = sum(not check.passed for check in self.checks)
        suite = ElementTree.Element(
            "testsuite",
            name=f"gate {self.feature_set} {self.version}",
            tests=str(len(self.checks)),
            failures=str(failures),
            timestamp=self.time,
        )
        for check in self.checks:
            case = ElementTree.SubElement(suite, "testcase", classname="sda-features.gate", name=check.name)
            if not check.passed:
                ElementTree.SubElement(case, "failure", message=f"{check.found}; wanted {check.wanted}")
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)

    def as_dict(self) -> dict[str, Any]:
        """See `Result`; with `passed`."""
        return {**asdict(self), "passed": self.passed}

    @property
    def exit_status(self) -> int:
        """3 if a check failed."""
        return 0 if self.passed else self.CHECK_FAILED


def run_gate(
    repo: Path,
    feature_set: str,
    candidate: str,
    settings: CatalogSettings,
    limits: GateSettings,
    *,
    interactions: Path | None = None,
    log: LogSettings | None = None,
) -> Verdict:
    """Check a stored version; the verdict is also written to the repo, for `promote --gated`.

    Args:
        candidate: adapter version or its beginning.
        interactions: a log; then metrics of both versions on it are compared as well.

    Raises:
        SDAError: something cannot be read.
    """
    ids, _ = read_columns(settings)
    new = load_space(repo, feature_set, ids, candidate)
    served = load_space(repo, feature_set, ids)
    live = None if served.version == new.version else served
    numbers = inspect_space(new, {})
    checks = [*_alone(numbers, limits)]
    if live is not None:
        checks += _against(numbers, inspect_space(live, {}), compare_spaces(new, live), limits)
    if live is not None and interactions is not None:
        ours, theirs = (f"{feature_set}@{space.version}" for space in (new, live))
        report = evaluate_feature_sets(
            interactions,
            [ours, theirs],
            VectorEvaluationSettings(),
            EvaluationSettings(),
            log=log,
            repo=repo,
            catalog=settings.path,
        )
        checks += _on_log(report, ours, theirs, limits)
    checks.append(_parity(repo, feature_set, settings, new, limits))
    verdict = Verdict(
        feature_set,
        new.version,
        live.version if live else None,
        tuple(checks),
        sha256_json(limits.model_dump(mode="json"))[:12],
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_json(pass_file(repo, feature_set, verdict.version), verdict.as_dict())
    return verdict


def pass_file(repo: Path, feature_set: str, version: str) -> Path:
    """Where the verdict on a version is kept."""
    return repo / PASSES / f"{feature_set}-{version}.json"


def require_pass(repo: Path, feature_set: str, version: str) -> None:
    """Refuse a version that the gate has not passed.

    Raises:
        FeatureStoreError: no verdict names this version, or it failed.
    """
    path = pass_file(repo, feature_set, version)
    command = f"`sda-features gate {version} CATALOG --feature-set {feature_set}`"
    try:
        verdict: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        named = verdict["feature_set"], verdict["version"]
        failed = [check["name"] for check in verdict["checks"] if not check["passed"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise FeatureStoreError(
            f"--gated needs a pass of version {version}, and {path} holds none. Run {command} first."
        ) from None
    if named != (feature_set, version):
        raise FeatureStoreError(f"{path} is about {' '.join(map(str, named))}, not {feature_set} {version}.")
    if failed or not verdict.get("passed"):
        raise FeatureStoreError(
            f"The gate did not pass version {version}: {', '.join(failed)}. Mend that and run {command} again."
        )


def _at_most(name: str, value: float, limit: float, form: str = ".1%", unit: str = "") -> Check:
    return Check(name, value <= limit, f"{value:{form}}{unit}", f"<= {limit:{form}}{unit}")


def _at_least(name: str, value: float | None, limit: float, form: str) -> Check:
    value = value or 0
    return Check(name, value >= limit, f"{value:{form}}", f">= {limit:{form}}")


def _alone(numbers: Mapping[str, Any], limits: GateSettings) -> Iterator[Check]:
    without = numbers["without"]["any"] / numbers["items"]
    yield _at_most("items without any vector", without, limits.max_without)
    for name, title in (("text", "text"), ("image", "picture")):
        spread = numbers[name]["spread"]
        if spread is not None:
            yield _at_most(f"spread of {title} vectors", spread, limits.max_spread, ".3f")
    common = numbers["identical"]["image"]["common"]
    yield _at_most("items that share their picture with ten others", common, limits.max_common_pictures)


def _against(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], change: Mapping[str, Any], limits: GateSettings
) -> Iterator[Check]:
    for name, title in (("text", "text"), ("image", "picture")):
        lost = change["lost"][name] / ours["items"]
        yield _at_most(f"items that lost their {title} vector", lost, limits.max_lost)
        rank, before = ours[name]["effective_rank"], theirs[name]["effective_rank"]
        if before:
            yield _at_least(f"effective rank of {title} vectors", rank, limits.min_rank * before, ".1f")
    recall, before = ours["both"]["text_to_image"][10], theirs["both"]["text_to_image"][10]
    if before is not None:
        yield _at_least("text finds picture, R@10", recall, limits.min_recall * before, ".3f")
    kept = change["kept"]["both"]
    if kept is not None:
        yield _at_least("neighbours kept", kept, limits.min_kept, ".3f")
    size, before = (numbers["text"]["dim"] + numbers["image"]["dim"] for numbers in (ours, theirs))
    yield _at_most("size of an item", size / max(before, 1), limits.max_size, ".2f", " x live")


def _on_log(report: VectorReport, ours: str, theirs: str, limits: GateSettings) -> Iterator[Check]:
    """Metrics without training: co-occurrences and the next item, overall, in the tail, of cold items."""
    for row in report.differences(ours):
        if row["against"] != theirs or not row["metric"].startswith(WATCHED) or row["high"] is None:
            continue
        found = f"{row['ours']:.4f} against {row['theirs']:.4f}, difference {row['low']:+.4f} to {row['high']:+.4f}"
        passed = row["high"] >= -limits.max_worse
        yield Check(row["metric"], passed, found, f"interval reaches {-limits.max_worse:+.4f}")


def _parity(
    repo: Path, feature_set: str, settings: CatalogSettings, new: Space, limits: GateSettings
) -> Check:
    try:
        sample = min(limits.sample, len(new.text))
        found = verify(repo, feature_set, settings, version=new.version, sample=sample, progress=False)
    except ParityError as error:
        return Check("stores agree", False, str(error), "no difference")
    return Check("stores agree", True, f"{found.vectors:,} vectors are equal everywhere", "no difference")
