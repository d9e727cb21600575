"""Every command is one call of the API, with the same options and defaults; a settings file is read by both."""

from __future__ import annotations

import ast
import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import sda_features
from sda_features import Repo
from sda_features.api.calls import CALLS, defaults
from sda_features.api.settings_file import FILE_NAME, SECTIONS, read_settings_file, write_settings_file
from sda_features.cli.main import VERBS, cli
from sda_features.config import GateSettings
from sda_features.errors import SettingsError

ROOT = Path(__file__).parents[2]
OF_THE_TERMINAL = {"as_json", "repo", "feature_set", "once", "audit", "verbose", "config", "log_json"}
OF_PYTHON = {"progress", "echo"}


def command(verb: str) -> click.Command:
    found = cli.get_command(click.Context(cli), verb)
    assert found is not None
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_has_its_call_with_the_same_options_and_defaults(verb: str) -> None:
    made: Any = command(verb)
    call = made.call
    assert CALLS[verb] is call
    of_class = call.__qualname__.startswith(("Repo.", "VectorSet."))  # `sda_features.demo` is a folder
    assert of_class or verb == "demo" or getattr(sda_features, call.__name__) is call
    params = {param.name: param for param in made.params} | ({"repair": made} if verb == "versions" else {})
    known = defaults(call)
    assert set(params) - OF_THE_TERMINAL - {"repairing"} == set(known) - OF_PYTHON - OF_THE_TERMINAL
    typed = made.make_context(verb, [], resilient_parsing=True).params
    for name, default in known.items():
        param = params.get(name)
        if not isinstance(param, click.Option) or param.required:
            continue
        plain = tuple(default) if isinstance(default, list | tuple) else default
        got = tuple(typed[name]) if isinstance(typed[name], list | tuple) else typed[name]
        assert str(got) == str(plain) or (not got and not plain), f"{verb} --{name}: {got!r}, call: {plain!r}"


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_only_parses_calls_and_shows(verb: str) -> None:
    made: Any = command(verb).callback

    def names(source: str) -> set[str]:
        return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}

    assert "show" in names(inspect.getsource(made))
    assert not names(inspect.getsource(inspect.getmodule(made))) & {"print", "json", "to_json"}


def test_an_option_that_there_is_not_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"materialize\(\) has no option 'batchsize'. Did you mean 'batch_size'"
    ):
        Repo(tmp_path)["sda"].materialize("items.csv", batchsize=3)


# The settings file


def write(folder: Path, text: str) -> Path:
    (folder / FILE_NAME).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("feature_sets = 3\nbatchsize = 2", "no setting 'batchsize'. Did you mean 'batch_size'"),
        ("[catalogue]\npath = 'a'", "no such table. Did you mean 'catalog'"),
        ("[catalog]\ntext_column = ['a']", "no setting 'text_column'. Did you mean 'text_columns'"),
        ("[training]\nlearning_rate = -1", "learning_rate: Input should be greater than 0"),
        ("[materialize]\nlearning_rate = 1", "no setting 'learning_rate'"),
        ("[sets]\nsda = 3", "expected a table"),
        ("a = [", "not a readable TOML file"),
    ],
)
def test_a_fault_of_the_file_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    write(tmp_path, text)
    with pytest.raises(SettingsError) as error:
        Repo(tmp_path)
    assert told in str(error.value)
    assert FILE_NAME in str(error.value)
    result = CliRunner().invoke(cli, ["config", "--repo", str(tmp_path)])
    assert isinstance(result.exception, SettingsError)


def test_the_file_that_init_writes_says_nothing_until_it_is_filled_in_and_then_the_defaults(
    tmp_path: Path,
) -> None:
    path = write_settings_file(tmp_path)
    assert path is not None
    assert write_settings_file(tmp_path) is None
    empty = read_settings_file(tmp_path)
    assert not any(empty.tables.values())
    text = path.read_text()
    lines = [line.removeprefix("# ") if " = " in line else line for line in text.splitlines()]
    filled = tomllib.loads("\n".join(line for line in lines if ' = ""' not in line))
    for name, model in SECTIONS.items():
        needed = {key: "." for key, field in model.model_fields.items() if field.is_required()}
        assert model.parse(**needed | filled[name]) == model.parse(**needed), name


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A settings file with one value at each place, and the files that it names."""
    (tmp_path / "items.csv").write_text("item_id,title\n1,a\n")
    (tmp_path / "logs").mkdir()
    return write(
        tmp_path,
        """
interactions = "logs/log.csv"
seed = 5
batch_size = 7
[catalog]
path = "items.csv"
text_columns = ["title", "brand"]
[evaluation]
cutoff = 20
[materialize]
batch_size = 8
again = ["x", "y"]
[sets.vanilla]
model = "Qwen/some-model"
batch_size = 9
[evaluate_vectors]
eval_cutoff = 5
[limits]
min_kept = 0.5
""",
    )


def test_feature_set_then_command_then_model_then_top(given: Path) -> None:
    repo = Repo(given)

    def effective_settings(*arguments: str, **named: str) -> dict[str, tuple[Any, str]]:
        return {name: (value, where) for name, value, where in repo.config(*arguments, **named).settings}

    found = effective_settings("materialize")
    assert found["batch_size"] == (8, "[materialize]")
    assert found["catalog"] == (str(given / "items.csv"), "[catalog]")
    assert found["text_columns"] == (["title", "brand"], "[catalog]")
    assert found["model"] == (None, "default")
    vanilla = effective_settings("materialize", feature_set="vanilla")
    assert vanilla["batch_size"] == (9, "[sets.vanilla]")
    assert vanilla["model"] == ("Qwen/some-model", "[sets.vanilla]")
    train = effective_settings("train")
    assert train["eval_cutoff"] == (20, "[evaluation]")
    assert train["interactions"] == (str(given / "logs/log.csv"), "top")
    assert effective_settings("evaluate-vectors")["eval_cutoff"] == (5, "[evaluate-vectors]")
    assert repo.settings.limits(given) == GateSettings(min_kept=0.5)
    assert "[sets.vanilla]" in str(repo.config("materialize", feature_set="vanilla"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"batch_size": 8, "text_columns": ("title", "brand"), "again": ("x", "y")}),
        (["--batch-size", "3"], {"batch_size": 3}),
        (["--text-columns", "title"], {"text_columns": ("title",)}),
        (["--feature-set", "vanilla"], {"batch_size": 9, "model": "Qwen/some-model"}),
        (["other.csv"], {"catalog": "other.csv"}),
        (["--vectors", "items.csv"], {"catalog": None}),
    ],
    ids=str,
)
def test_the_command_line_wins_over_the_file(
    given: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: dict[str, Any]
) -> None:
    monkeypatch.chdir(given)
    made = command("materialize")
    context = made.make_context("materialize", [*arguments, "--checkpoint", "."])
    assert {name: context.params[name] for name in expected} == expected


def test_another_file_by_name_and_flags_that_are_wrong_name_the_option(given: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[materialize]\nbatch_size = 'many'\n")
    result = CliRunner().invoke(cli, ["materialize", "a.csv", "--repo", str(given), "--config", str(other)])
    assert result.exit_code == 2
    assert "--batch-size" in result.output
    assert Repo(given, config=other).settings.path == other


# The door


def test_a_repo_from_python(tmp_path: Path, make_repo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    repo = make_repo(slots=3)
    write(repo, '[materialize]\ntext_vectors = "text"\nimage_vectors = "image"\n')
    rng = np.random.default_rng(0)
    ids = [f"i{n}" for n in range(6)]
    for version in ("v1", "v2"):
        table = {name: list(rng.normal(size=(6, 4)).astype(np.float32)) for name in ("text", "image")}
        pq.write_table(pa.table({"item_id": ids} | table), tmp_path / f"{version}.parquet")
    sda = Repo(repo)["sda"]
    first = sda.materialize(vectors=str(tmp_path / "v1.parquet"), version="v1", progress=False)
    assert (first.encoded, first.live, first.as_dict()["bad_rows"]) == (6, "v1", 0)
    sda.materialize(vectors=tmp_path / "v2.parquet", version="v2", progress=False)
    assert [state.state for state in sda.versions().versions] == ["live", "stored"]
    assert [state.state for state in sda.promote("v2").versions] == ["previous", "live"]
    assert "live v1 -> v2" in str(sda.changes())
    assert [state.state for state in sda.rollback().versions] == ["live", "previous"]
    with sda.client(dim=4) as client:
        online = client.get(ids)
    offline = sda.vectors(ids)
    assert online.text.tobytes() == offline.text.tobytes()
    looked = sda.lookup(["i1", "none"], full=True)
    assert looked.items[0]["text"]["values"] == pytest.approx(offline.text[1].tolist())
    assert "not in the online store" in str(looked)
    assert sda.status().exit_status == 0
    assert sda.prune(["v2"]).as_dict() == {"feature_set": "sda", "deleted": ["v2"]}
    printed = CliRunner().invoke(cli, ["versions", "--repo", str(repo)]).output
    assert printed.rstrip() == str(sda.versions())
    told = CliRunner().invoke(cli, ["versions", "--repo", str(repo), "--json"]).output
    assert json.loads(told) == sda.versions().as_dict()
    assert not capsys.readouterr().out


def test_the_door_is_light_and_says_what_it_has() -> None:
    assert set(sda_features.__all__) == set(sda_features._MODULE_OF)
    for name in sda_features.__all__:
        assert getattr(sda_features, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        sda_features.nothing  # noqa: B018


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/python.md", "docs/results.md"])
def test_settings_files_in_the_docs_are_accepted(tmp_path: Path, page: str) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        assert read_settings_file(write(tmp_path, block)).tables
