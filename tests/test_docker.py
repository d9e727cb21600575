"""The container files, read as far as they can be judged without an engine."""

from __future__ import annotations

import fnmatch
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
TARGETS = ("cpu", "cuda")


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) in file order; comments dropped, continued lines joined."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Stage name -> (its base, its instructions)."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            match = re.fullmatch(r"(\S+) AS (\S+)", rest)
            assert match, f"FROM without a name: {rest}"
            found[match[2]] = (match[1], [])
        elif found:
            next(reversed(found.values()))[1].append((name, rest))
    return found


def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def reaches_builder(path: str) -> bool:
    """.dockerignore's rule: the last pattern that matches decides."""
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    matching = [line for line in patterns if fnmatch.fnmatch(path, line.lstrip("!").replace("**/", "*"))]
    return not matching or matching[-1].startswith("!")


def test_both_targets_exist_and_the_default_is_cpu() -> None:
    assert set(TARGETS) <= set(stages())
    assert list(stages())[-1] == "cpu"


@pytest.mark.parametrize("stage", stages())
def test_every_base_is_an_earlier_stage_or_a_pinned_image(stage: str) -> None:
    names = list(stages())
    base = stages()[stage][0]
    if base in names:
        assert names.index(base) < names.index(stage)
    else:
        assert re.search(r":\S*\d+\.\d+", base), f"{base} has no version in its tag"


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_the_command_line_as_a_user_who_is_not_root(target: str) -> None:
    commands = stages()[target][1]
    user = next(rest for name, rest in reversed(commands) if name == "USER")
    assert int(user.split(":")[0]) > 0
    assert commands.index(("USER", user)) > max(i for i, (name, _) in enumerate(commands) if name == "RUN")
    assert ("ENTRYPOINT", '["sda-features"]') in commands
    assert any(name == "ENV" and "HF_HUB_OFFLINE=1" in rest for name, rest in commands)


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    copied = []
    for name, rest in instructions():
        words = shlex.split(rest)
        if name == "COPY" and words[0].startswith("--from="):
            assert words[0].removeprefix("--from=") in stages()
        elif name == "COPY":
            copied += words[:-1]
    assert "constraints.txt" in copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert reaches_builder(path), f"{path} is in .dockerignore"


@pytest.mark.parametrize(
    "path", [".git", ".env", "tests", "runs", "feature_repo", "sda_features/__pycache__"]
)
def test_the_builder_does_not_see(path: str) -> None:
    assert not reaches_builder(path)


def test_installs_are_constrained_and_leave_no_cache() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and "/pip install" in rest]
    assert len(installs) == len(TARGETS)
    for command in installs:
        for part in command.split("&&"):
            if "/pip install" in part:
                assert "--no-cache-dir" in part
                assert "--constraint /tmp/constraints.txt" in part


def test_constraints_fit_builds_with_and_without_cuda() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    assert "+" not in torch, f"{torch} names one build; a plain version matches them all"


def test_the_online_store_is_pinned_checked_kept_and_not_public() -> None:
    store = compose()["services"]["online-store"]
    assert re.fullmatch(r"(valkey/valkey|redis):\d+\.\d+\.\d+", store["image"])
    assert store["healthcheck"]["test"] == ["CMD", "valkey-cli", "ping"]
    volume, _, inside = store["volumes"][0].partition(":")
    assert volume in compose()["volumes"]
    assert inside == "/data"


def test_nothing_is_published_beyond_this_machine() -> None:
    for name, service in compose()["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"
        assert service.get("network_mode") != "host"
        assert not service.get("privileged")


def test_the_command_line_waits_for_the_store_and_finds_its_files() -> None:
    service = compose()["services"]["cli"]
    assert service["depends_on"] == {"online-store": {"condition": "service_healthy"}}
    assert service["environment"]["SDA_REDIS"].split(":")[0] in compose()["services"]
    assert int(re.sub(r"\$\{SDA_USER:-(\d+).*", r"\1", service["user"])) > 0
    assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    targets = {service["build"]["target"].replace("${SDA_TARGET:-cpu}", "cpu")}
    assert targets <= set(stages())
    yaml_path = service["environment"]["FEAST_FS_YAML_FILE_PATH"]
    assert (ROOT / Path(yaml_path).relative_to("/data")).is_file()


def test_the_readme_names_every_variable() -> None:
    variables = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text())) - {"SDA_TARGET"}
    readme = (DOCKER / "README.md").read_text()
    assert all(variable in readme for variable in variables)
