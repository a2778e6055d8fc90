"""docs/cli.md: its examples are run, in their order, and answer what it says; those without an answer can be run.
README.md: its Python is run.
"""

import asyncio
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.raftctl import BOUND_SECONDS, ROOT, environment
from tests.cli.servers import serve
from tests.cli.test_against_etcdctl import normal
from tests.cli.zygote import raftctl

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
UNANSWERED = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README_PYTHON = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
ENDPOINTS = "localhost:2379,localhost:22379,localhost:32379"
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


def test_the_clients_example_of_the_readme(live: str, tmp_path: Path) -> None:
    code = README_PYTHON[0]
    assert ENDPOINTS in code
    script = tmp_path / "example.py"
    script.write_text(code.replace(ENDPOINTS, live))
    process = subprocess.Popen(
        [sys.executable, "-u", str(script)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "b'world'\n"
        told = threading.Event()

        def write() -> None:
            # The watch begins when it does.
            while not told.wait(0.2):
                raftctl("--endpoints", live, "put", "/registry/hello", "again")

        writing = threading.Thread(target=write)
        writing.start()
        try:
            assert process.stdout.readline().startswith("[kv {")
        finally:
            told.set()
            writing.join()
        assert raftctl("--endpoints", live, "get", "jobs/done", "--print-value-only").stdout == b"1\n"
    finally:
        process.kill()
        process.communicate()


def test_the_tests_example_of_the_readme(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(README_PYTHON[1], names)
    asyncio.run(names["test_mine"](tmp_path))
    assert (tmp_path / "data" / "store" / "data.mdb").exists()


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
