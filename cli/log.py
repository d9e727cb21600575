"""Where messages go: the one place that sets up logging, for people or, with --log-json, for machines.

The library only writes to loggers below `sda_features`; what a service does with them is its own affair.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import click

SECRET = re.compile(
    r"""(://[^\s/@:]*:)[^\s/@]+(?=@)  # redis://user:password@host
    |(\bpassword['"]?\s*[=:]\s*['"]?)[^\s,'"&}]+  # host:6379,password=...; a mapping
    |([?&](?:sig|token|X-Amz-Signature)=)[^\s&'"]+  # a signed URL""",
    re.IGNORECASE | re.VERBOSE,
)
STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime"}  # the rest came with `extra=`

logger = logging.getLogger("sda_features")


def without_secrets(text: str) -> str:
    """A text with the passwords of URLs and connection strings left out."""
    return SECRET.sub(r"\1\2\3***", text)


class Text(logging.Formatter):
    """A message as "level: message", below its traceback if it has one."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        head = f"{record.levelname.lower()}: "
        if sys.stderr.isatty():
            head = click.style(head, fg="red" if record.levelno >= logging.ERROR else "yellow", bold=True)
        trace = f"{self.formatException(record.exc_info)}\n" if record.exc_info else ""
        return without_secrets(f"{trace}{head}{record.getMessage()}")


class JSONLine(logging.Formatter):
    """A message as one JSON object: time (UTC), level, logger, message, the fields of `extra=`, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in STANDARD},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: without_secrets(str(value)) for name, value in line.items()})


class Printed(io.TextIOBase):
    """A stand-in for sys.stderr: each line that anything prints there, bars of progress too, becomes a message."""

    encoding, errors = "utf-8", "replace"  # without them click would look for a stream of bytes

    def __init__(self) -> None:
        self._line = ""

    def write(self, text: str) -> int:
        """Pass on the lines that are whole."""
        *lines, self._line = re.split(r"[\r\n]", self._line + text)
        for line in filter(str.strip, lines):
            logger.getChild("printed").info("%s", line.rstrip())
        return len(text)


@contextlib.contextmanager
def messages(*, verbose: bool, as_json: bool) -> Iterator[None]:
    """Send the messages of this package to standard error while the block runs.

    Args:
        verbose: all of them; else warnings and errors, and with `as_json` also what was done.
        as_json: one JSON object a line, in place of text.
    """
    stream, before = sys.stderr, (logger.handlers, logger.level, logger.propagate)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONLine() if as_json else Text())
    level = logging.DEBUG if verbose else logging.INFO if as_json else logging.WARNING
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)
    if as_json or not stream.isatty():  # a log: a line of progress every half minute
        os.environ.setdefault("TQDM_MININTERVAL", "30")
    if as_json:
        sys.stderr = Printed()
    try:
        yield
    finally:
        if as_json:
            sys.stderr.write("\n")  # what has no end of line yet
        sys.stderr = stream
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
