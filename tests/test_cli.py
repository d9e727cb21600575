from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from sda_features.api.calls import parse
from sda_features.cli.main import GROUPS, VERBS, cli, main
from sda_features.config import AdapterSettings, CatalogSettings, LossSettings, TrainSettings
from sda_features.errors import CatalogError, SettingsError
from sda_features.workflows.lookup import SHOWN

ROOT = Path(__file__).parents[1]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command, as a user runs it."""
    command = [Path(sys.executable).with_name("sda-features"), *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def python(script: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A script in a fresh process, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


VERB_OF_EACH_MODULE = ["config", "adapt", "materialize", "inspect", "lookup", "train"]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([verb, "--help"] for verb in VERB_OF_EACH_MODULE), ["--version"]],
    ids=" ".join,
)
def test_help_loads_neither_torch_nor_feast(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom sda_features.cli.main import main\n"
        f"sys.argv = ['sda-features', *{arguments!r}]\n"
        "try:\n    main()\nfinally:\n"
        "    print('LOADED', sorted({'torch', 'feast', 'transformers', 'peft', 'pandas'} & set(sys.modules)))"
    )
    assert python(script).stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_worked_example_and_a_json_form_and_is_documented(verb: str) -> None:
    done = CliRunner().invoke(cli, [verb, "--help"])
    assert done.exit_code == 0
    assert re.search(rf"Example:\n\s+(feast init .*\n\s+)?sda-features {verb}", done.output)
    assert "--json" in done.output
    assert f"sda-features {verb}" in (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert f"sda-features {verb}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_help_lists_every_verb_once_and_in_groups() -> None:
    lines = CliRunner().invoke(cli, ["--help"]).output.splitlines()
    listed = [line.split()[0] for line in lines if re.match(r"  [a-z]", line) and line.split()[0] in VERBS]
    assert listed == list(VERBS)
    assert [f"{title}:" for title in GROUPS] == [line for line in lines if line.rstrip(":") in GROUPS]


def test_the_help_of_lookup_says_how_many_values_it_prints() -> None:
    assert f"not only the first {SHOWN}." in " ".join(
        CliRunner().invoke(cli, ["lookup", "--help"]).output.split()
    )


def test_the_shell_completes_verbs_and_options() -> None:
    for words, wanted in (("sda-features eval", "evaluate-vectors"), ("sda-features similar --b", "--by")):
        last = str(len(words.split()) - 1)
        done = run(_SDA_FEATURES_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=last)
        assert done.returncode == 0, done.stderr
        assert wanted in done.stdout


def test_a_log_gets_no_line_for_every_step() -> None:
    script = (
        "import sys\nfrom sda_features.cli.main import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
        "from tqdm import tqdm\n"
        "bar = tqdm(range(20_000))\n"
        "for step in bar:\n    bar.set_postfix(step=step, refresh=False)\n"
    )
    assert len(re.split(r"[\r\n]+", python(script).stderr.strip())) <= 3


def test_the_reference_of_commands_is_what_the_commands_say() -> None:
    """In a fresh process: click keeps the help option of whichever context asked for it first."""
    done = python("from make_cli import render\nprint(render(), end='')", ROOT / "docs")
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == done.stdout, "run `make docs`"


def test_options_mirror_the_settings() -> None:
    def typed(*arguments: str) -> dict[str, Any]:
        command: Any = cli.get_command(click.Context(cli), "adapt")
        words = ["items.parquet", "--model", "m", "-o", "run", *arguments]
        return command.make_context("adapt", words).params

    given = ["--loss", "infonce", "--no-loss-normalize", "--loss-teacher", "moving"]
    seen = typed(*given, "--adapter-target-modules", "q_proj, k_proj", "--steps", "7")
    loss = parse(LossSettings, seen, "loss")
    assert (loss.kind, loss.normalize, loss.teacher) == ("infonce", False, "moving")
    adapter = parse(AdapterSettings, seen, "adapter")
    assert adapter.target_modules == ("q_proj", "k_proj")
    assert parse(TrainSettings, seen).steps == 7
    assert parse(LossSettings, typed(), "loss") == LossSettings()
    assert parse(AdapterSettings, typed(), "adapter") == AdapterSettings()


def test_all_faults_of_settings_are_reported_together() -> None:
    with pytest.raises(SettingsError) as error:
        CatalogSettings.parse(path="a.csv", max_bad_rows=3, max_image_bytes=0, colour="red")
    assert [line.split(":")[0] for line in str(error.value).splitlines()[1:]] == [
        "max_image_bytes",
        "max_bad_rows",
        "colour",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adapt", "none.parquet", "--model", "m", "-o", "run"], "none.parquet does not exist"),
        (["adapt", "items.parquet", "--model", "/no/model", "-o", "run"], "No model at '/no/model'"),
        (
            ["adapt", "items.parquet", "--model", "m", "-o", "r", "--text-columns", "name"],
            "has no column 'name'",
        ),
        (
            ["adapt", "items.parquet", "--model", "m", "-o", "r", "--adapter-rank", "6"],
            "does not split over 4",
        ),
        (["materialize", "items.parquet"], "Give --checkpoint"),
        (["materialize", "items.parquet", "--model", "m", "--repo", "nowhere"], "nowhere"),
        (["lookup", "a", "--repo", "nowhere"], "nowhere"),
        (
            ["stream", "items", "--model", "m", "--kafka", "k:9092", "--url", "redis://r"],
            "leave out the other",
        ),
        (["stream", "items", "--model", "m", "--kafka-config", "client.conf"], "leave out the other"),
        (["init", "nowhere"], "nowhere"),
        (["train", "none.parquet"], "none.parquet does not exist"),
        (["demo", "--output", "."], "holds no earlier demo"),
    ],
)
def test_a_users_mistake_is_one_message_without_a_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"item_id": ["a"], "title": ["x"]}), "items.parquet")
    monkeypatch.setattr(sys, "argv", ["sda-features", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    errors = capsys.readouterr().err
    assert ended.value.code == 1
    assert errors.startswith("error: ")
    assert message in errors
    assert "Traceback" not in errors
    assert (tmp_path / "items.parquet").exists()
    assert not (tmp_path / "run").exists()


def test_the_installed_command_prints_nothing_but_its_message(tmp_path: Path) -> None:
    done = run("adapt", str(tmp_path / "none.parquet"), "--model", "m", "-o", str(tmp_path / "run"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: Catalogue ")
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_option_is_answered_by_click() -> None:
    done = run("adapt", "--nonsense")
    assert done.returncode == 2
    assert "Usage: " in done.stderr


def test_json_and_version() -> None:
    assert run("--version").stdout.startswith("sda-features, version 0.1")
    with pytest.raises(json.JSONDecodeError):
        json.loads(run("--help").stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["adapt", "URL", "-o", "run", "--model", "none"],
        ["adapt", "URL", "-o", "run", "--model", "none", "--dry-run"],
        ["diagnose", "--adapter", "moda", "--model", "none", "--catalog", "URL"],
        ["materialize", "URL", "--model", "none"],
        ["verify", "URL"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_catalogue_may_lie_at_a_url(
    arguments: list[str], scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names a column of the file, so the command has opened it at its URL."""
    monkeypatch.chdir(tmp_path)
    url = f"{scheme}://{tmp_path}/items.parquet"
    with fsspec.open(url, "wb") as stream:
        pq.write_table(pa.table({"sku": ["a"], "title": ["lamp"]}), stream)
    found = CliRunner().invoke(cli, [url if argument == "URL" else argument for argument in arguments])
    assert isinstance(found.exception, CatalogError), found.exception
    assert f"{url} has no column 'item_id'. Its columns are sku, title." in str(found.exception)
