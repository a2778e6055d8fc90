"""What nothing that is told may hold: the secrets that tests use, and what looks like one.

What a member logs is searched when it ends, and so are the metrics of one before its test ends, what is logged within
this process, and what raftctl says on stderr. What is found fails the test in its teardown (tests/conftest.py): whoever
finds something is about to stop processes, and must get on with that.

A password in a test bears a mark (`Process.client` and the runners of raftctl see to it), and so does a value where it
matters. What has none, being drawn at random, is told to `keep`. Tokens, keys and hashes are known by their shape.
"""

import logging
import re
from collections.abc import Sequence
from itertools import pairwise

MARKED = ("s3cret", "correct horse", "hunter2")
_SHAPED = re.compile(
    r"-----BEGIN|"  # a key or a certificate
    r"\beyJ[\w-]{10,}\.[\w-]+\.|"  # a JSON web token
    r"\b[A-Za-z]{16}\.\d+\b|"  # a simple token
    r"\$2[aby]\$\d\d\$"  # a hash of a password
)
MIN_LENGTH = 8
"""What is shorter is found by chance."""

_kept: set[str] = set()
_found: list[str] = []


def keep(*secrets: str) -> None:
    """Search for these as well, from now on."""
    for secret in secrets:
        assert len(secret) >= MIN_LENGTH, f"{secret!r} would be found everywhere"
        _kept.add(secret)


def check_marked(password: str) -> None:
    """See that a password would be found."""
    if password and password not in _kept:
        assert any(mark in password for mark in MARKED), f"passwords of tests have one of {MARKED} in them: {password}"


def check_marks(arguments: Sequence[str]) -> None:
    """See that the passwords in a command's arguments would be found."""
    words = [
        word for argument in arguments for word in (argument.split("=", 1) if argument[:2] == "--" else [argument])
    ]
    for flag, value in pairwise(words):
        if flag in ("--password", "--dest-password"):
            check_marked(value)
        elif flag in ("--user", "--dest-user"):
            check_marked(value.partition(":")[2])


def secret_in(text: str) -> str | None:
    """The first line with a secret in it, or None."""
    if not _holds(text):
        return None
    return next((line for line in text.splitlines() if _holds(line)), text)


def _holds(text: str) -> bool:
    return any(mark in text for mark in MARKED) or any(map(text.__contains__, _kept)) or bool(_SHAPED.search(text))


def look(where: str, text: str) -> None:
    """Search a text; what is found is told by `complain`."""
    line = secret_in(text)
    if line is not None:
        _found.append(f"{where}: {line}")


def complain() -> None:
    """Fail if something was found since the last time."""
    found = _found.copy()
    _found.clear()
    assert not found, f"a secret was told by {'; '.join(found)}"


class Listener(logging.Handler):
    """Searches what is logged within this process."""

    _format = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Search a line, with its fields and its traceback."""
        try:
            text = f"{self._format.format(record)} {getattr(record, 'fields', '')}"
        except (TypeError, ValueError):
            # Whoever formats it for people will complain.
            return
        look(f"a log line of {record.name}", text)
