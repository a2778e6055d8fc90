"""docs/cli.md: its examples are run, in their order, and answer what it says; those without an answer can be run."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.raftctl import BOUND_SECONDS, ROOT, environment
from tests.cli.servers import serve
from tests.cli.test_against_etcdctl import normal
from tests.cli.zygote import raftctl

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
UNANSWERED = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DIFFERS = [
    (re.compile(r"\b[0-9a-f]{12,16}\b"), "ID"),
    (re.compile(r"\b\d{17,20}\b"), "ID"),
    (re.compile(r"(localhost|127\.0\.0\.1):\d{4,5}"), "ADDRESS"),
    (re.compile(r"\bm0\b"), "default"),
    (re.compile(r"[ -]{2,}"), " "),
]


def examples() -> list[tuple[str, str]]:
    """Each command line with what it prints."""
    found = []
    for block in BLOCK.findall((ROOT / "docs" / "cli.md").read_text()):
        for part in block.removeprefix("$ ").split("\n$ "):
            command, _, printed = part.partition("\n")
            found.append((command, printed.rstrip("\n")))
    return found


def settled(text: str) -> str:
    text = normal(text)
    for pattern, replacement in DIFFERS:
        text = pattern.sub(replacement, text)
    return text.rstrip("\n")


@pytest.fixture
def live(tmp_path: Path) -> Iterator[str]:
    with serve("raftkv", tmp_path) as endpoint:
        yield endpoint


def test_examples(live: str) -> None:
    assert len(examples()) >= 15
    start = f'raftctl() {{ "{sys.executable}" -m cli.raftctl "$@"; }}\n'
    for command, printed in examples():
        done = subprocess.run(
            ["sh", "-c", start + command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(RAFTCTL_ENDPOINTS=live) if "--endpoints" not in command else environment(),
            timeout=BOUND_SECONDS,
            check=False,
        )
        assert settled(done.stdout) == settled(printed), command


def test_examples_without_an_answer_have_commands_and_flags_that_exist() -> None:
    """Help is shown only when everything before it could be read."""
    lines = [
        line for block in UNANSWERED.findall((ROOT / "docs" / "cli.md").read_text()) for line in block.splitlines()
    ]
    assert len(lines) >= 10
    for line in lines:
        name, *words = shlex.split(line)
        end = words.index("--") if "--" in words else len(words)
        done = raftctl(*words[:end], "--help")
        plain = [word for word in words[:end] if not word.startswith("-")]
        assert (name, done.status, done.stderr) == ("raftctl", 0, ""), line
        usage = done.stdout.decode().partition("\n")[0]
        assert usage.startswith("Usage: raftctl "), line
        assert any(f" {word} " in usage for word in plain), line
