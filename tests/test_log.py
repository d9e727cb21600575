"""What the command line says of itself: as text, as JSON, and never with a secret in it."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from sda_features.cli import log
from sda_features.cli.main import main

SECRET = "hunter2"
NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"redis://:{SECRET}@host:6379/0", "redis://:***@host:6379/0"),
        (f"rediss://ranker:{SECRET}@a,b", "rediss://ranker:***@a,b"),
        (f"host:6379,password={SECRET},ssl=true", "host:6379,password=***,ssl=true"),
        (f"{{'password': '{SECRET}', 'db': 1}}", "{'password': '***', 'db': 1}"),
        (f'{{"PASSWORD": "{SECRET}"}}', '{"PASSWORD": "***"}'),
        (f"https://shop/items?sig={SECRET}&v=1", "https://shop/items?sig=***&v=1"),
        ("http://localhost:8000/v1, a@b", "http://localhost:8000/v1, a@b"),
        ("the one with the password, s3://shop/a:b", "the one with the password, s3://shop/a:b"),
    ],
)
def test_passwords_are_left_out(text: str, shown: str) -> None:
    assert log.without_secrets(text) == shown


@pytest.mark.hostile
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "connection", [f"{NOWHERE},password={SECRET}", f"{NOWHERE},username=u,password={SECRET},ssl=true"]
)
@pytest.mark.parametrize("verb", [["lookup", "a"], ["doctor"]])
def test_no_command_shows_the_password_of_the_store(
    verb: list[str], connection: str, as_json: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody listens at the address, so each command has to say so, with its traceback."""
    (tmp_path / "feature_store.yaml").write_text(
        f"project: p\nprovider: local\nregistry: data/registry.db\nentity_key_serialization_version: 3\n"
        f"online_store: {{type: redis, connection_string: '{connection}'}}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--repo", str(tmp_path), "--verbose", *(["--log-json"] if as_json else [])])
    assert ended.value.code == 1
    said = "".join(capfd.readouterr())
    assert NOWHERE in said
    assert SECRET not in said


def test_every_line_is_json_the_progress_and_what_others_print_too(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("sda_features.somewhere")
    with log.messages(verbose=False, as_json=True):
        logger.debug("not asked for")
        logger.info("wrote %d rows", 3, extra={"view": "v", "rows": 3})
        for _ in tqdm(range(3), "encoding"):
            pass
        try:
            raise ValueError(f"redis://:{SECRET}@host")
        except ValueError:
            logger.exception("failed")
        print("no end of line", end="", file=sys.stderr)
    logger.error("after it")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    wrote, *printed, failed, last = lines
    assert (wrote["level"], wrote["message"], wrote["view"], wrote["rows"]) == (
        "INFO",
        "wrote 3 rows",
        "v",
        "3",
    )
    assert any(line["message"].startswith("encoding: 100%") for line in printed)
    assert {line["logger"] for line in [*printed, last]} == {"sda_features.printed"}
    assert "ValueError: redis://:***@host" in failed["traceback"]
    assert last["message"] == "no end of line"


@pytest.mark.parametrize(("verbose", "lines"), [(False, 2), (True, 4)])
def test_text_has_a_level_and_verbose_has_everything(
    verbose: bool, lines: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("sda_features.somewhere")
    with log.messages(verbose=verbose, as_json=False):
        for level in ("debug", "info", "warning", "error"):
            getattr(logger, level)("%s it is", level)
    expected = [f"{level}: {level} it is" for level in ("debug", "info", "warning", "error")]
    assert capfd.readouterr().err.splitlines() == expected[-lines:]
    logger.warning("as before")
    assert [record.message for record in caplog.records] == ["as before"]


def test_a_command_says_how_long_it_took_and_a_wrong_option_is_a_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main(["--log-json", "doctor", "--json"])
    printed = capfd.readouterr()
    assert json.loads(printed.out)["findings"]
    ended = json.loads(printed.err.splitlines()[-1])
    assert (ended["message"], float(ended["seconds"]) > 0) == ("doctor ended", True)
    with pytest.raises(SystemExit) as wrong:
        main(["lookup", "--log-json", "--nonsense"])
    assert wrong.value.code == 2
    error, _ = map(json.loads, capfd.readouterr().err.splitlines())
    assert (error["level"], error["message"]) == ("ERROR", "No such option '--nonsense'.")
